//! Ring 3: the driver over its Unix socket, as a CO meets it. The same cases run against the
//! simulation and, in a node VM, against real LVM: so neither can drift from the other.
//!
//! Without `CINDERBLOCK_ENDPOINT` each test starts a driver on a simulated host. With it, all tests
//! talk to the driver at that socket, which has a backend `fast` with a thin pool.

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
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::tests_outside_test_module,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod controller;
mod driver;
mod fields;
mod node;
mod snapshots;
