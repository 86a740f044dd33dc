//! Ring 5: the driver on a real Kubernetes of two nodes, each test in a namespace of its own. What a lower ring shows as well is not repeated here.
//!
//! One cluster serves all tests; it comes up with the first and is thrown away after the last.
//! `CINDERBLOCK_KEEP=1` leaves it running, and the next run takes it as it is. Takes many minutes, so
//! it runs only when asked: `cargo xtask test kubernetes`.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

mod encryption;
mod expansion;
mod growth;
mod load;
mod mistakes;
mod objects;
mod orphans;
mod placement;
mod raid;
mod restarts;
mod snapshots;
mod support;
mod uninstall;
mod volumes;
mod wiping;
mod workloads;
mod world;

use std::env;
use std::process::ExitCode;

use libtest_mimic::Arguments;
use world::Tests;

fn main() -> ExitCode {
    // Several parts of names, as libtest takes them, and libtest-mimic does not.
    let is_flag = |word: &String| word.starts_with('-');
    let (flags, words): (Vec<_>, Vec<_>) = env::args().skip(1).partition(is_flag);
    let one = words.first().filter(|_| words.len() == 1);
    let given = [String::new()].into_iter().chain(flags).chain(one.cloned());
    let mut arguments = Arguments::from_iter(given);
    // Most of a test is waiting. More at once only makes two small VMs slower.
    arguments.test_threads = arguments.test_threads.or(Some(3));
    let mut tests = Tests::with_any_of(words);
    tests.add("volumes::every_kind_where_the_pod_is", volumes::every_kind_where_the_pod_is);
    tests.add("volumes::every_kind_at_once", volumes::every_kind_at_once);
    tests.add("volumes::mount_options_and_read_only", volumes::mount_options_and_read_only);
    tests.add("expansion::while_in_use", expansion::while_in_use);
    tests.add("expansion::too_large_and_lowered_again", expansion::too_large_and_lowered_again);
    tests.add("raid::a_mirror_on_two_disks", raid::a_mirror_on_two_disks);
    tests.add("raid::a_leg_that_fails_is_told_of", raid::a_leg_that_fails_is_told_of);
    tests.add("growth::a_pool_grows_under_a_pod", growth::a_pool_grows_under_a_pod);
    tests.add("wiping::a_deleted_claim_is_wiped", wiping::a_deleted_claim_is_wiped);
    tests.add("encryption::by_a_secret", encryption::by_a_secret);
    tests.add("snapshots::of_a_mounted_volume", snapshots::of_a_mounted_volume);
    tests.add("snapshots::of_a_block_volume", snapshots::of_a_block_volume);
    tests.add("snapshots::any_order_of_deletion", snapshots::any_order_of_deletion);
    tests.add("snapshots::of_thick_volumes", snapshots::of_thick_volumes);
    tests.add(
        "placement::what_only_one_node_has_room_for",
        placement::what_only_one_node_has_room_for,
    );
    tests.add("placement::too_large_for_all", placement::too_large_for_all);
    tests.add("workloads::generic_ephemeral_volume", workloads::generic_ephemeral_volume);
    tests.add("workloads::read_write_once_pod", workloads::read_write_once_pod);
    tests.add("workloads::fs_group", workloads::fs_group);
    tests.add("workloads::stateful_set", workloads::stateful_set);
    tests.add("workloads::retain", workloads::retain);
    tests.add(
        "orphans::a_retained_volume_without_an_object",
        orphans::a_retained_volume_without_an_object,
    );
    tests.add("mistakes::unknown_parameter", mistakes::unknown_parameter);
    tests.add("mistakes::unknown_backend", mistakes::unknown_backend);
    tests.add("mistakes::volume_group_that_is_missing", mistakes::volume_group_that_is_missing);
    tests.add("mistakes::access_mode_of_many_nodes", mistakes::access_mode_of_many_nodes);
    tests.add_alone("placement::capacity_follows_reality", placement::capacity_follows_reality);
    tests.add_alone("restarts::agent_and_controller", restarts::agent_and_controller);
    tests.add_alone("restarts::an_agent_that_is_killed_while_it_waits", restarts::agent_that_waits);
    tests.add_alone("load::a_rolling_upgrade_interrupts_nothing", load::rolling_upgrade);
    tests.add_alone("load::faults_without_an_api_server", load::api_server_away);
    tests.add_alone("restarts::node", restarts::node);
    tests.add_alone("restarts::a_node_that_is_off_keeps_its_volumes", restarts::node_off);
    tests.add_alone("restarts::a_node_that_is_replaced_keeps_its_volumes", restarts::node_replaced);
    tests.add_alone("uninstall::data_stays", uninstall::data_stays);
    tests.run(&arguments)
}
