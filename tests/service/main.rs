//! Ring 2: the agent on a simulated host with faults. For every use case, and for every effect that
//! it has on the host: let it fail, lose its reply, or kill the agent right before or after it; then
//! repeat the call, and demand the same end as if nothing had happened.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::doc_markdown,
    clippy::duration_suboptimal_units,
    clippy::needless_range_loop,
    clippy::single_match_else,
    clippy::type_complexity,
    clippy::wildcard_enum_match_arm,
    clippy::assertions_on_result_states,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::tests_outside_test_module,
    clippy::expect_used,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod behaviour;
mod copies;
mod cut_raid;
mod door;
mod encryption;
mod every_trouble;
mod fake_api;
mod faults;
mod growths;
mod hanging;
mod hostile;
mod link;
mod new_volumes;
mod orphans;
mod partitions;
mod peers;
mod pool_parts;
mod pools;
mod recorded_tags;
mod repair;
mod scale;
mod scale_cluster;
mod setup;
mod sockets;
mod support;
mod troubles;
mod use_cases;
mod versions;
mod wiping;
mod wire;
