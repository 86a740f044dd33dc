//! What a volume group holds, as far as anything we do depends on it. Made by `report` and by
//! `metadata`, read by the planners; it changes nothing itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::layout::ThickLayout;
use super::tag::{Kind, Pending, Tags, Usage};
use crate::names::{CsiName, Handle, LvName, LvmUuid, VgName};
use crate::units::{Bytes, ExtentSize, Extents};

/// What an encrypted LV has before the data of its user: the LUKS2 header and, from the half on, a
/// copy of it.
pub const LUKS_HEADER: Bytes = Bytes::mib(32);

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgState {
    /// Its name. Two VGs may have the same one.
    pub name: VgName,
    /// Its identifier.
    pub uuid: LvmUuid,
    /// Grows with every change of the metadata.
    pub seqno: u64,
    /// Size of all its extents.
    pub extent_size: ExtentSize,
    /// Tags of the VG itself.
    pub tags: Vec<String>,
    /// Whether LVM lets nobody use it until it is imported.
    pub exported: bool,
    /// Owner among hosts that share the disks; empty for a VG of this host alone.
    pub system_id: String,
    /// Its disks, by PV identifier.
    pub pvs: BTreeMap<LvmUuid, Pv>,
    /// Its visible LVs. Hidden ones (legs, pool metadata) only show as space that is not free.
    pub lvs: BTreeMap<LvName, Lv>,
    /// Whether it has the hidden LV that LVM keeps for the repair of thin pools' metadata.
    pub has_pool_spare: bool,
}

/// A physical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pv {
    /// Where the device is now. `None` when it is missing.
    pub device: Option<PathBuf>,
    /// Whether LVM may allocate from it.
    pub allocatable: bool,
    /// Number of extents.
    pub extents: Extents,
    /// Runs of free extents: first extent and length, in order of the first.
    pub free: Vec<(u64, u64)>,
}

/// A visible logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lv {
    /// Its name.
    pub name: LvName,
    /// Its identifier.
    pub uuid: LvmUuid,
    /// Its size (of a thin LV: the virtual size; of a pool: the room for data).
    pub size: Bytes,
    /// What it is made of.
    pub layout: LvLayout,
    /// Its tags.
    pub tags: Tags,
    /// When it was made, in seconds since 1970.
    pub created_unix: i64,
    /// Whether it may be written to.
    pub writable: bool,
    /// The extents that it has itself, by PV and first extent. Those of hidden LVs do not count.
    pub areas: Vec<Area>,
    /// Of a RAID LV: the PVs that the data of each leg lies on, in order. Empty for any other.
    pub legs: Vec<Vec<LvmUuid>>,
    /// Of a thin pool: the hidden LVs of its data and of its metadata. Empty for any other.
    pub parts: Vec<Self>,
    /// Of a thin LV: whether its pool has not been told of it for sure, since LVM was cut when it made
    /// it. Only the disks tell: LVM's report has no word for it.
    pub queued: bool,
}

/// A run of extents of one PV.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Area {
    /// The PV.
    pub pv: LvmUuid,
    /// The first extent.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// What an LV is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LvLayout {
    /// Extents in a row.
    Linear,
    /// Extents of several PVs in turn.
    Striped {
        /// Number of stripes, at least 2.
        stripes: u32,
        /// Bytes on one PV before the next one's turn.
        stripe_size: Bytes,
    },
    /// RAID; always a [`ThickLayout::Raid`].
    Raid(ThickLayout),
    /// RAID whose legs LVM is making or replacing, or was cut at that: the metadata of some is not
    /// cleared, and it must not be activated. That it holds nothing is for `cb.fresh` to prove. By
    /// LVM's name of the segment type.
    UnfinishedRaid(String),
    /// A pool for thin LVs.
    ThinPool {
        /// Whether blocks are zeroed before they are first given out.
        zero: bool,
        /// Unit of allocation.
        chunk_size: Bytes,
    },
    /// A thin LV.
    Thin {
        /// The pool it lives in.
        pool: LvName,
        /// Its number in the pool, for ever.
        device_id: u64,
        /// The LV it was snapshotted from, while that one exists.
        origin: Option<LvName>,
    },
    /// A copy-on-write snapshot of a thick LV. Its size is that of what it shows.
    Cow {
        /// The LV it was taken of, without which it cannot be read.
        origin: LvName,
        /// Unit in which the origin's old blocks are kept.
        chunk_size: Bytes,
        /// Room for them. When it is full, the snapshot is lost.
        store: Bytes,
    },
    /// Anything else, by LVM's name of the segment type. Counted as used space, never touched.
    Other(String),
}

impl VgState {
    /// Free extents of all PVs from which LVM may allocate.
    #[must_use]
    pub fn free_extents(&self) -> Extents {
        self.usable_pvs().flat_map(|pv| &pv.free).map(|(_, len)| Extents::new(*len)).sum()
    }

    /// PVs that are present and from which LVM may allocate.
    pub fn usable_pvs(&self) -> impl Iterator<Item = &Pv> {
        self.pvs.values().filter(|pv| pv.allocatable && pv.device.is_some())
    }

    /// Size of all PVs.
    #[must_use]
    pub fn size(&self) -> Bytes {
        self.extent_size.size_of(self.pvs.values().map(|pv| pv.extents).sum())
    }

    /// Whether disks are missing.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.pvs.values().any(|pv| pv.device.is_none())
    }

    /// The PVs' devices, for `--devices`.
    #[must_use]
    pub fn devices(&self) -> Vec<PathBuf> {
        self.pvs.values().filter_map(|pv| pv.device.clone()).collect()
    }

    /// Sum of the virtual sizes of all thin LVs in `pool`, snapshots and foreign ones included.
    #[must_use]
    pub fn thin_virtual_size(&self, pool: &LvName) -> Bytes {
        self.lvs.values().filter(|lv| lv.pool() == Some(pool)).map(|lv| lv.size).sum()
    }

    /// The copy-on-write snapshots of an LV: they are lost with it.
    pub fn cow_snapshots(&self, of: &LvName) -> impl Iterator<Item = &Lv> {
        self.lvs.values().filter(move |lv| lv.cow_origin() == Some(of))
    }

    /// The id of an LV of this VG.
    #[must_use]
    pub fn handle(&self, lv: &LvName) -> Handle {
        Handle { vg: self.uuid.clone(), lv: lv.clone() }
    }
}

impl Lv {
    /// The pool of a thin LV.
    #[must_use]
    pub const fn pool(&self) -> Option<&LvName> {
        match &self.layout {
            LvLayout::Thin { pool, .. } => Some(pool),
            LvLayout::Linear
            | LvLayout::Striped { .. }
            | LvLayout::Raid(_)
            | LvLayout::UnfinishedRaid(_)
            | LvLayout::ThinPool { .. }
            | LvLayout::Cow { .. }
            | LvLayout::Other(_) => None,
        }
    }

    /// The LV that a copy-on-write snapshot was taken of.
    #[must_use]
    pub const fn cow_origin(&self) -> Option<&LvName> {
        if let LvLayout::Cow { origin, .. } = &self.layout { Some(origin) } else { None }
    }

    /// Its layout, when it is a thick LV as we make them.
    #[must_use]
    pub const fn thick(&self) -> Option<ThickLayout> {
        match &self.layout {
            LvLayout::Linear => Some(ThickLayout::Linear),
            LvLayout::Striped { stripes, stripe_size } => {
                Some(ThickLayout::Striped { stripes: *stripes, stripe_size: *stripe_size })
            }
            LvLayout::Raid(layout) => Some(*layout),
            LvLayout::UnfinishedRaid(_)
            | LvLayout::ThinPool { .. }
            | LvLayout::Thin { .. }
            | LvLayout::Cow { .. }
            | LvLayout::Other(_) => None,
        }
    }

    /// What an encrypted volume has before the data of its user.
    #[must_use]
    pub const fn header(&self) -> Bytes {
        if self.tags.luks { LUKS_HEADER } else { Bytes::ZERO }
    }

    /// Its size, as its user sees it.
    #[must_use]
    pub const fn payload(&self) -> Bytes {
        self.size.saturating_sub(self.header())
    }

    /// Whether it is a volume of ours.
    #[must_use]
    pub fn is_volume(&self) -> bool {
        self.tags.is_ours() && self.tags.kind == Some(Kind::Volume) && !self.is_trash()
    }

    /// Whether it is a snapshot of ours.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.tags.is_ours() && self.tags.kind == Some(Kind::Snapshot) && !self.is_trash()
    }

    /// Whether it holds extents that a volume of ours was about to get.
    #[must_use]
    pub fn is_growth(&self) -> bool {
        self.tags.is_ours() && self.tags.kind == Some(Kind::Growth)
    }

    /// Whether it was a volume or snapshot of ours, is deleted, and has to be cleared or has thick
    /// snapshots that cannot be read without it. Its name is
    /// made from its own identifier: an LV that was renamed by mistake, because it had taken the
    /// name of the one that was meant, does not bear it.
    #[must_use]
    pub fn is_trash(&self) -> bool {
        self.tags.is_ours()
            && matches!(self.tags.kind, Some(Kind::Volume | Kind::Snapshot | Kind::Image))
            && self.name == LvName::trash(&self.uuid)
    }

    /// Whether its disks held something before that was never zeroed, only hidden by its filesystem. A
    /// thin pool zeroes everything, and under an encrypted volume's key it is noise.
    #[must_use]
    pub fn hides_old_data(&self) -> bool {
        let thick = self.pool().is_none() && matches!(self.tags.usage, Some(Usage::Filesystem(_)));
        !self.tags.luks && (self.tags.hides || thick)
    }

    /// The name that the CO gave to this volume or snapshot. `None` when it cannot be told.
    #[must_use]
    pub fn csi_name(&self) -> Option<CsiName> {
        if let Some(name) = &self.tags.name {
            return Some(name.clone());
        }
        let lv = self.name.as_str();
        if self.is_volume() {
            return CsiName::parse(lv).ok();
        }
        let rest = lv.strip_prefix("snap-")?;
        CsiName::parse(&format!("snapshot-{rest}")).ok()
    }

    /// Whether LVM was cut when it made this thin LV of ours, so that nobody ever had it and its pool
    /// may not know it.
    #[must_use]
    pub fn is_cut_thin(&self) -> bool {
        let image = self.tags.is_ours() && self.tags.kind == Some(Kind::Image);
        let unused = self.is_volume() && self.tags.pending.is_some();
        self.queued && (image || self.is_snapshot() || unused)
    }

    /// Whether LVM was cut when it made this RAID volume of ours, so that nobody ever had it, nothing was
    /// copied to it, and it must not be activated.
    #[must_use]
    pub fn is_cut_raid(&self) -> bool {
        let blank = match self.tags.pending {
            Some(Pending::Fresh) => true,
            Some(Pending::Copying) => self.tags.copied_bytes.is_none(),
            Some(Pending::Restored) | None => false,
        };
        matches!(self.layout, LvLayout::UnfinishedRaid(_)) && self.is_volume() && blank
    }

    /// Whether making it is not finished: it was to be born larger than it is, its content is not
    /// all there, or it was cut. A thick snapshot begins, and may end, as a plain LV.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        // A volume in use may look so while somebody replaces a disk of it: it is there all the same.
        let cut = matches!(self.layout, LvLayout::UnfinishedRaid(_));
        cut && self.tags.pending == Some(Pending::Fresh)
            || self.is_cut_thin()
            || self.tags.born_bytes.is_some_and(|born| self.size < born)
            || self.tags.pending == Some(Pending::Copying)
            || self.tags.kind == Some(Kind::Snapshot) && self.thick().is_some()
    }
}
