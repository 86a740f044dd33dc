//! A whole cluster.

#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]
