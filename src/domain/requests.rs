//! Requests, and the records of volumes and snapshots that answer them.

use std::collections::BTreeMap;
use std::fmt;

use super::class::{Provisioning, VolumeClass};
use crate::lvm::tag::{Claim, FsType, Usage};
use crate::names::{CsiName, Handle, NodeName};
use crate::units::Bytes;

/// What a volume's size may be. Zero never stands for "any": that is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapacityRange {
    /// At least so much.
    pub required: Option<Bytes>,
    /// At most so much.
    pub limit: Option<Bytes>,
}

/// Who may use a volume how (CSI spec, `VolumeCapability.AccessMode`). Those that need more than
/// one node are refused before this type is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// One place on one node.
    SingleWriter,
    /// One place on one node, only to read.
    SingleReader,
    /// Any number of places on one node.
    MultiWriter,
}

/// As what a volume is given to its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessType {
    /// As a device.
    Block,
    /// With a filesystem.
    Mount {
        /// Its type.
        fs: FsType,
        /// Options for mounting it, as in fstab(5). They may hold secrets: never to be logged.
        options: Vec<String>,
    },
}

/// How a volume is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// As what.
    pub access: AccessType,
    /// By whom.
    pub mode: AccessMode,
}

impl AccessType {
    /// The same, as it is kept with the volume.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        match self {
            Self::Block => Usage::Block,
            Self::Mount { fs, .. } => Usage::Filesystem(*fs),
        }
    }
}

/// Where a volume's content comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentSource {
    /// From a volume.
    Volume(Handle),
    /// From a snapshot.
    Snapshot(Handle),
}

impl ContentSource {
    /// The id of what it comes from.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        match self {
            Self::Volume(handle) | Self::Snapshot(handle) => handle,
        }
    }
}

/// Make a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// What the CO calls it.
    pub name: CsiName,
    /// How large.
    pub range: CapacityRange,
    /// Of which class.
    pub class: VolumeClass,
    /// For which use.
    pub usage: Usage,
    /// With which content.
    pub source: Option<ContentSource>,
    /// For which claim.
    pub claim: Option<Claim>,
}

/// Make a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSnapshot {
    /// What the CO calls it.
    pub name: CsiName,
    /// Of which volume.
    pub source: Handle,
    /// Room for what the volume overwrites, when the volume is thick.
    pub cow_size: CowSize,
}

/// How much room a thick volume's snapshot gets at first for what the volume overwrites, in percent
/// of what it can need at the most. With less than all, it grows when it fills up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CowSize(u8);

impl CowSize {
    /// All that it can ever need: it cannot run full.
    pub const FULL: Self = Self(100);

    /// `None` when it is not from 1 to 100.
    #[must_use]
    pub const fn percent(percent: u8) -> Option<Self> {
        if percent >= 1 && percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// In percent, from 1 to 100.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub handle: Handle,
    /// What the CO calls it.
    pub name: CsiName,
    /// Its size.
    pub size: Bytes,
    /// Where its content came from.
    pub source: Option<ContentSource>,
    /// Where its room comes from.
    pub provisioning: Provisioning,
    /// Whether it is encrypted: what its user has grows on the node, also as a device.
    pub encrypted: bool,
    /// When it was made, in seconds since 1970. 0 when its agent does not say.
    pub created_unix: i64,
    /// The claim it was made for, where that is known.
    pub claim: Option<Claim>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub handle: Handle,
    /// What the CO calls it.
    pub name: CsiName,
    /// The volume it was taken of, which may be gone.
    pub source: Handle,
    /// The size of the smallest volume that can be made of it.
    pub size: Bytes,
    /// When it was taken, in seconds since 1970.
    pub created_unix: i64,
    /// Whether it can be restored from. A thick snapshot whose room ran out is lost.
    pub ready: bool,
}

/// What an LV of ours is to the CO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
        })
    }
}

/// A volume or snapshot whose making or removing was begun and has not come to its end. Nobody has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id, or what is to be its id.
    pub handle: Handle,
    /// What it is.
    pub what: What,
    /// What the CO calls it.
    pub name: CsiName,
    /// The size that it has now.
    pub size: Bytes,
    /// When it was begun, in seconds since 1970.
    pub created_unix: i64,
    /// The claim it was begun for, where that is known.
    pub claim: Option<Claim>,
    /// Of a snapshot: the volume it is of.
    pub source: Option<Handle>,
}

/// Where a volume may be: nodes, in the CO's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// It must be on one of these. Empty: anywhere.
    pub requisite: Vec<NodeName>,
    /// It should be on the first of these that has room.
    pub preferred: Vec<NodeName>,
}

/// Parameters of a request that are not ours to read, by key.
pub type Parameters = BTreeMap<String, String>;
