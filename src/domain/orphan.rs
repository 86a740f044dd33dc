//! What no object of the cluster knows.

use std::time::Duration;

use super::requests::What;
use crate::lvm::tag::Claim;
use crate::names::{CsiName, Handle, NodeName, VgName};
use crate::units::Bytes;

/// A volume or snapshot of ours that no object of the cluster knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its node.
    pub node: NodeName,
    /// Its VG.
    pub volume_group: VgName,
    /// Its id.
    pub handle: Handle,
    /// What it is.
    pub what: What,
    /// Whether it was never finished.
    pub unfinished: bool,
    /// What the CO called it.
    pub name: CsiName,
    /// Its size.
    pub size: Bytes,
    /// When it was made, in seconds since 1970. 0 when that is not known.
    pub created_unix: i64,
    /// The claim it was made for, where that is known.
    pub claim: Option<Claim>,
}

/// What is known of orphans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrphansSeen {
    /// All of them on nodes that are connected.
    pub orphans: Vec<Orphan>,
    /// How many are not known to the cluster either, but not for long enough.
    pub waiting: usize,
    /// How long ago the cluster was last asked with success. `None`: never.
    pub looked: Option<Duration>,
    /// Why it could not be asked since.
    pub failure: Option<String>,
    /// Whether the cluster knows snapshots, and they were looked for.
    pub snapshots: bool,
    /// Nodes that are not connected: what they have is not known.
    pub away: Vec<NodeName>,
}
