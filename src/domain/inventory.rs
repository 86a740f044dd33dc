//! A node's picture of its backends, volumes and snapshots, as the agent publishes it and the
//! controller keeps it. A value: whoever holds one sees it as it was at its revision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::capacity::BackendCapacity;
use super::requests::{Snapshot, Unfinished, Volume};
use super::trouble::Troubles;
use crate::names::{BackendName, CsiName, Handle, LvmUuid, VgName};

/// All that a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Grows with every change; begins anew when the agent does.
    pub revision: u64,
    /// Its backends.
    pub backends: BTreeMap<BackendName, BackendStatus>,
    /// The VGs of its backends, and all others that hold volumes of ours, or did since the agent started.
    pub vgs: BTreeMap<LvmUuid, VgName>,
    /// Its volumes, by id.
    pub volumes: BTreeMap<Handle, Arc<Volume>>,
    /// Its snapshots, by id.
    pub snapshots: BTreeMap<Handle, Arc<Snapshot>>,
    /// Volumes and snapshots that are being made or removed, or were when that was cut, by id.
    pub unfinished: BTreeMap<Handle, Arc<Unfinished>>,
    /// Volumes that calls are making now, or wait to make, also those of which there is nothing yet.
    pub making: BTreeSet<CsiName>,
    /// What is wrong.
    pub troubles: Troubles,
}

/// A backend on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStatus {
    /// The VG it should have.
    pub volume_group: VgName,
    /// What it has.
    pub state: BackendState,
}

/// Whether a backend can take volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// It can, so many.
    Ready {
        /// Its VG.
        vg: LvmUuid,
        /// What it has to give.
        capacity: BackendCapacity,
    },
    /// It is known why it cannot: what is wrong, and what to do, in a sentence.
    Unusable(String),
    /// Nothing is known now: LVM could not be asked.
    Unknown(String),
}
