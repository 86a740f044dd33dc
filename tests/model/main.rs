//! The model check: a random client drives the driver over its CSI socket, on the simulated host,
//! by calls that collide, contradict each other, are repeated and are cancelled, while faults strike
//! and its process dies. A small model says what each answer may be, and what every volume holds.
//! `docs/testing.md` says how to run it for longer, and what to do when it fails.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::enum_glob_use,
    clippy::format_push_string,
    clippy::unnecessary_wraps,
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

mod class;
mod client;
mod doubt;
mod explain;
mod machine;
mod observe;
mod outcome;
mod random_runs;
mod regressions;
mod rules;
mod run;
mod script;
mod shrink;
mod state;
