//! Cinderblock, the LVM storage driver for Kubernetes.

#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::assertions_on_result_states,
        clippy::indexing_slicing,
        clippy::wildcard_enum_match_arm,
        reason = "a test that goes wrong shall fail, loudly and at once"
    )
)]

pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
pub mod controller;
pub mod csi;
pub mod domain;
pub mod error;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod host;
pub mod kube;
pub mod kubelet;
pub mod link;
pub mod lvm;
pub mod metrics;
pub mod names;
pub mod net;
pub mod operator;
pub mod plan;
pub mod run;
pub mod secret;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
pub mod telemetry;
pub mod tls;
pub mod units;
