//! The lab: cluster nodes as User-Mode-Linux virtual machines on a plain Linux machine, a throwaway Kubernetes on them, and what starts the driver there and talks to it.
//!
//! A [`Lab`] is a directory, a network namespace and some [`Node`]s. Each node sees the host's
//! files through an overlay, has disks of its own, and runs programs for the host ([`Exec`]).
//! Everything needs root.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "a developer tool: it talks on the terminal, and a panic costs a test run, not a volume"
)]

pub mod bootfile;
mod cache;
pub mod cargo;
pub mod cluster;
pub mod console;
pub mod driver;
pub mod driver_image;
pub mod exec;
pub mod guest;
mod guest_program;
mod heartbeat;
pub mod images;
pub mod install;
pub mod kernel;
pub mod lab;
pub mod libtest;
pub mod long;
pub mod manifests;
pub mod netns;
pub mod oci;
pub mod packages;
pub mod pki;
pub mod process;
mod programs;
pub mod protocol;
mod run_within;
pub mod sanity;
pub mod tools;
pub mod vm;

pub use cluster::{Cluster, Namespace, Object, Options, Service};
pub use exec::{Exec, Output, TimedOut};
pub use lab::{Lab, LabStatus};
pub use netns::NetNs;
pub use protocol::{ProcessState, Status};
pub use vm::{Node, NodeSpec, NodeState, NodeStatus, Spawned};

/// One line of progress.
pub(crate) fn say(line: &str) {
    println!("lab: {line}");
}

/// A hash that is short to show and the same in every build (FNV-1a, 64 bits).
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |number: u8| char::from_digit(u32::from(number), 16).unwrap_or('?');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
