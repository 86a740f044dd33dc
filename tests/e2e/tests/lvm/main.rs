//! Ring 4: the driver on real LVM, real device-mapper and disks that can be cut, each test in a node VM of its own. What the
//! simulation shows as well is not repeated here. It needs root and half a GiB of memory per VM, and fails without.
//!
//! Takes minutes, so it runs only when asked: `cargo test -p cinderblock-lab --test lvm -- --test-threads=2`.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    reason = "an integration test is a test module as a whole"
)]

mod blank;
mod churn;
mod conformance;
mod copies;
mod disks;
mod encryption;
mod faults;
mod filesystems;
mod foreign;
mod fragments;
mod full;
mod full_area;
mod full_metadata;
mod group;
mod growth;
mod losses;
mod many;
mod missing;
mod power;
mod processes;
mod raid;
mod raid_pool;
mod scale;
mod support;
mod upgrade;
mod wiping;
