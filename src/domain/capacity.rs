//! What a backend has to give, as figures: small enough to be sent to the controller after every
//! change. What may be promised of it is reckoned in `plan::capacity`.

use crate::units::{Bytes, ExtentSize};

/// The room of one backend on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendCapacity {
    /// Extent size of its VG.
    pub extent_size: ExtentSize,
    /// Size of its VG.
    pub vg_size: Bytes,
    /// What is never given out of the VG.
    pub reserve: Bytes,
    /// Free extents: for each PV from which LVM may allocate, the lengths of its free runs.
    pub free_runs: Vec<Vec<u64>>,
    /// Its thin pool.
    pub pool: Option<PoolCapacity>,
}

/// The room of a thin pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolCapacity {
    /// Room for data.
    pub size: Bytes,
    /// Sum of the sizes of all thin LVs in it, snapshots included.
    pub promised: Bytes,
    /// How much may be promised, in percent of the size.
    pub overprovision_percent: u64,
    /// Data in use, in hundredths of a percent.
    pub data_used_bp: u64,
    /// Metadata in use, in hundredths of a percent.
    pub metadata_used_bp: u64,
    /// When so much of its metadata is in use, it takes nothing new.
    pub metadata_guard_bp: u64,
    /// Whether it takes writes at all.
    pub healthy: bool,
    /// Whether it holds writes back when it is full, instead of failing them.
    pub queues: bool,
    /// Whether it should grow by itself, and cannot.
    pub stuck: bool,
}
