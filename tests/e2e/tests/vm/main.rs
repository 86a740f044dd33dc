//! Real VMs: boots them, runs programs in them, cuts their power. Needs root, the lab's packages and half a GiB of memory per node.
//!
//! Without root or packages the tests fail; so they run only when asked: `cargo xtask test lab`.

#![allow(
    clippy::tests_outside_test_module,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "an integration test is a test module as a whole"
)]

mod calls;
mod lifecycle;
mod support;
