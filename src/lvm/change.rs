//! What may be changed in a volume group, as data: one LVM process each. How LVM is told of a change
//! stands in `command`; whether it is to be made is never decided here.

use std::path::PathBuf;

use super::layout::ThickLayout;
use crate::names::{LvName, LvmUuid, VgName};
use crate::units::{Bytes, ExtentSize, Extents};

/// The VG that a command works on. Its devices are the only ones that LVM opens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name of the VG.
    pub vg: VgName,
    /// Its identifier.
    pub uuid: LvmUuid,
    /// Its extent size.
    pub extent_size: ExtentSize,
    /// All its PVs' devices.
    pub devices: Vec<PathBuf>,
}

/// A run of extents, by its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The PV's device.
    pub device: PathBuf,
    /// The first extent.
    pub start: u64,
    /// How many, at least one.
    pub len: u64,
}

impl Range {
    /// As lvextend(8) takes it: `device:first-last`.
    pub(super) fn argument(&self) -> String {
        let last = self.start.saturating_add(self.len).saturating_sub(1);
        format!("{}:{}-{last}", self.device.display(), self.start)
    }
}

/// A change of one VG. Each is one LVM process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a thick LV, active, with known signatures wiped.
    CreateThick {
        /// Its name.
        lv: LvName,
        /// Its size.
        extents: Extents,
        /// Its layout.
        layout: ThickLayout,
        /// The only extents that it may get. Empty: any.
        on: Vec<Range>,
        /// Its tags.
        tags: Vec<String>,
    },
    /// Makes a thin LV, active.
    CreateThin {
        /// Its name.
        lv: LvName,
        /// Its pool.
        pool: LvName,
        /// Its virtual size, a multiple of the extent size.
        size: Bytes,
        /// Its tags.
        tags: Vec<String>,
    },
    /// Makes a read-only, inactive thin snapshot.
    SnapshotThin {
        /// Its name.
        lv: LvName,
        /// What it is a snapshot of.
        origin: LvName,
        /// Its tags.
        tags: Vec<String>,
    },
    /// Makes a read-only copy-on-write snapshot of a thick LV, active when that one is.
    SnapshotThick {
        /// Its name.
        lv: LvName,
        /// What it is a snapshot of.
        origin: LvName,
        /// Room for the origin's old blocks.
        store: Extents,
        /// Its tags.
        tags: Vec<String>,
    },
    /// Makes a plain LV of what a copy-on-write snapshot keeps.
    SplitSnapshot {
        /// The snapshot.
        lv: LvName,
    },
    /// Makes a writable, active thin copy.
    CloneThin {
        /// Its name.
        lv: LvName,
        /// What it is a copy of.
        origin: LvName,
        /// Its tags.
        tags: Vec<String>,
    },
    /// Makes an LV larger.
    Extend {
        /// Which LV.
        lv: LvName,
        /// Its size afterwards.
        extents: Extents,
        /// The only extents that it may get. Empty: any.
        from: Vec<Range>,
    },
    /// Makes a thin pool's metadata larger, and the spare for its repair with it.
    ExtendMetadata {
        /// The pool.
        lv: LvName,
        /// The size of its metadata afterwards.
        size: Bytes,
        /// The only extents that it may get. Empty: any.
        from: Vec<Range>,
    },
    /// Removes an LV that is ours.
    Remove {
        /// Its name, for the log.
        lv: LvName,
        /// Which LV.
        uuid: LvmUuid,
    },
    /// Gives an LV another name, also one that is active.
    Rename {
        /// Which LV.
        lv: LvName,
        /// Its name afterwards.
        to: LvName,
    },
    /// Makes an LV that is ours writable.
    MakeWritable {
        /// Its name, for the log.
        lv: LvName,
        /// Which LV.
        uuid: LvmUuid,
    },
    /// Changes the tags of an LV that is ours.
    Retag {
        /// Its name, for the log.
        lv: LvName,
        /// Which LV.
        uuid: LvmUuid,
        /// Tags to add.
        add: Vec<String>,
        /// Tags to drop.
        del: Vec<String>,
    },
    /// Activates an LV, also one that is to be skipped at boot.
    Activate {
        /// Which LV.
        lv: LvName,
    },
    /// The same for what has lost disks: what was on them reads as errors. Only for an LV all of
    /// whose parts are on RAID that has enough legs left.
    ActivateDegraded {
        /// Which LV.
        lv: LvName,
    },
    /// Gives the kernel what the metadata says of an active LV, and lets it go on when it was held.
    Refresh {
        /// Which LV.
        lv: LvName,
    },
    /// Makes two LVs a thin pool that zeroes its blocks and fails writes when it is full.
    ConvertToPool {
        /// The LV that becomes its data, and whose name it gets.
        lv: LvName,
        /// The LV that becomes its metadata.
        metadata: LvName,
        /// Unit of allocation, a power of two from 64 KiB.
        chunk_size: Bytes,
    },
    /// Adds tags to an LV that has none of ours yet.
    Tag {
        /// Which LV.
        lv: LvName,
        /// Tags to add.
        add: Vec<String>,
    },
    /// Removes an LV that has no tags at all, unless somebody has it open or it is a pool with volumes: what an
    /// `lvconvert` that was cut has left of a pool. Whoever asks for it proves what it is.
    RemoveUnfinished {
        /// Its name.
        lv: LvName,
        /// Its identifier.
        uuid: LvmUuid,
    },
    /// Gives a RAID LV new legs, on disks that are there, for those on missing ones. It may be in use.
    ReplaceLegs {
        /// Which LV, or part of a thin pool.
        lv: LvName,
    },
    /// Removes the spare for the repair of pools' metadata, if it is on a missing disk. It holds nothing.
    RemoveLostSpare,
    /// Takes missing disks out of the VG. LVM refuses while an LV has anything on one.
    ForgetMissing,
    /// Adds a disk.
    ExtendVg {
        /// The disk, already a PV of ours.
        device: PathBuf,
    },
}

impl Change {
    /// The LV it is about. `None` when it is about the VG.
    #[must_use]
    pub const fn lv(&self) -> Option<&LvName> {
        match self {
            Self::CreateThick { lv, .. }
            | Self::CreateThin { lv, .. }
            | Self::SnapshotThin { lv, .. }
            | Self::SnapshotThick { lv, .. }
            | Self::SplitSnapshot { lv }
            | Self::CloneThin { lv, .. }
            | Self::Extend { lv, .. }
            | Self::ExtendMetadata { lv, .. }
            | Self::Remove { lv, .. }
            | Self::Rename { lv, .. }
            | Self::MakeWritable { lv, .. }
            | Self::Retag { lv, .. }
            | Self::Activate { lv }
            | Self::ActivateDegraded { lv }
            | Self::Refresh { lv }
            | Self::ConvertToPool { lv, .. }
            | Self::Tag { lv, .. }
            | Self::ReplaceLegs { lv }
            | Self::RemoveUnfinished { lv, .. } => Some(lv),
            Self::RemoveLostSpare | Self::ForgetMissing | Self::ExtendVg { .. } => None,
        }
    }
}
