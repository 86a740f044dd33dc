//! A host in memory, with LVM, disks and mounts, and with faults that strike where they are told
//! to. For tests: it answers the same argument lists, and its disks bear the same structures, as the
//! real ones, and the same conformance cases are run against both.
//!
//! It never decides anything for the driver: what the driver does not do is not done.

#![allow(
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a simulation that goes wrong shall stop the test"
)]

mod cow;
mod crypt;
mod cut;
mod disk_cache;
mod effects;
mod extents;
mod fault;
mod host;
mod lvcreate;
mod lvm;
mod missing;
mod pool;
mod pool_parts;
mod print;
mod programs;
mod raid;
mod random;
mod world;

pub use crypt::SimLuks;
pub use fault::{Fault, Mode};
pub use host::SimHost;
pub use pool::SimPool;
pub use random::Random;
pub use world::{Content, Mounted, World};
