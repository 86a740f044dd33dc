//! What there is: disks, volume groups, active devices, what they hold, mounts and paths.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::crypt::{Mapping, SimLuks};
use super::pool::SimPool;
use super::raid::SimRaid;
use crate::host::PathKind;
use crate::host::dm::DmDevice;
use crate::host::mountinfo::Mount;
use crate::host::superblock::Superblock;
use crate::lvm::state::{Area, Lv, LvLayout, Pv, VgState};
use crate::lvm::tag::{FsType, Tags};
use crate::names::{LvName, LvmUuid, VgName, dm_name};
use crate::units::{Bytes, ExtentSize, Extents};

/// Device-mapper's major number in the simulation.
pub(super) const MAJOR: u32 = 253;
pub(super) const EXTENT: u64 = 4 << 20;

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub(super) disks: BTreeMap<PathBuf, SimDisk>,
    pub(super) vgs: BTreeMap<LvmUuid, SimVg>,
    /// Active devices: minor by name.
    pub(super) active: BTreeMap<String, u32>,
    /// Those that are suspended: an LVM command was killed while it held them.
    pub(super) held: BTreeSet<String>,
    /// Thin devices that a pool has and LVM has not noted: the pool's device and their number.
    pub(super) half_made: BTreeSet<(String, u64)>,
    /// Decrypted devices, by name.
    pub(super) mappings: BTreeMap<String, Mapping>,
    pub(super) contents: BTreeMap<LvmUuid, Content>,
    pub(super) mounts: Vec<Mount>,
    /// Devices that a process outside the agent has open.
    pub(super) opened: BTreeSet<PathBuf>,
    pub(super) paths: BTreeMap<PathBuf, PathKind>,
    /// Whether its disks take no discard.
    pub no_discard: bool,
    /// Whether its disks do not empty their caches when they are asked to.
    pub no_flush: bool,
    /// How much of thick snapshots' room is in use.
    pub(super) cow_used: BTreeMap<LvmUuid, Bytes>,
    /// How far LVs are copied from others, from the first byte on.
    pub(super) copied: BTreeMap<(LvmUuid, LvmUuid), u64>,
    /// How far LVs are cleared since somebody wrote to them, from the first byte on.
    pub(super) cleared: BTreeMap<LvmUuid, u64>,
    /// Extents that hold nothing of anybody.
    pub(super) clean: BTreeSet<(LvmUuid, u64)>,
    pub(super) numbers: u64,
    /// What makes its identifiers other than another world's.
    name: String,
}

#[derive(Clone, Debug)]
pub(super) struct SimDisk {
    pub(super) link: PathBuf,
    pub(super) size: Bytes,
    pub(super) holds: Holds,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Nothing,
    Something(String),
    Pv(LvmUuid),
}

#[derive(Clone, Debug)]
pub(super) struct SimVg {
    pub(super) state: VgState,
    /// Extents of LVs that nobody sees: a pool's data, metadata and spare.
    pub(super) hidden: BTreeMap<LvName, Vec<Area>>,
    pub(super) pools: BTreeMap<LvName, SimPool>,
    /// What the kernel says of RAID LVs, where it is not what their disks say.
    pub(super) raid: BTreeMap<LvName, SimRaid>,
    pub(super) next_device_id: u64,
    /// Which commit is on the medium, and not in a disk's cache alone.
    pub(super) flushed: u64,
}

/// What an LV holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Its filesystem.
    pub superblock: Option<Superblock>,
    /// Whether it is an XFS whose log is zeroed, and the new one not written.
    pub log_cut: bool,
    /// Something else that a probe finds.
    pub foreign: Option<String>,
    /// What its user has written.
    pub data: String,
    /// Its LUKS header; all else is what is seen through that.
    pub luks: Option<SimLuks>,
    /// The copy of the header.
    pub luks_copy: Option<SimLuks>,
}

/// A mount, as a test wants to see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mounted {
    /// Where.
    pub target: PathBuf,
    /// Of which device.
    pub source: PathBuf,
    /// Whether it is read-only.
    pub read_only: bool,
}

impl World {
    /// Blank disks of these sizes, as /dev/sda, /dev/sdb, ... and /dev/disk/by-id/disk0, ..., each
    /// under /dev/disk/by-path too.
    #[must_use]
    pub fn with_disks(sizes: &[Bytes]) -> Self {
        let mut world = Self::default();
        for (i, size) in sizes.iter().enumerate() {
            let letter = char::from(b'a'.saturating_add(u8::try_from(i).unwrap_or(25)));
            let link = PathBuf::from(format!("/dev/disk/by-id/disk{i}"));
            let disk = SimDisk { link, size: *size, holds: Holds::Nothing };
            world.disks.insert(PathBuf::from(format!("/dev/sd{letter}")), disk);
        }
        world
    }

    /// The same with another name: two worlds of one name give the same identifiers.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Puts something on a disk that a probe finds.
    pub fn put_on_disk(&mut self, link: &Path, what: &str) {
        if let Some(node) = self.disk_node(link)
            && let Some(disk) = self.disks.get_mut(&node)
        {
            disk.holds = Holds::Something(what.to_owned());
        }
    }

    /// Takes it away again, as wipefs does.
    pub fn clear_disk(&mut self, link: &Path) {
        if let Some(node) = self.disk_node(link)
            && let Some(disk) = self.disks.get_mut(&node)
        {
            disk.holds = Holds::Nothing;
        }
    }

    /// The node of a disk by any of its names.
    pub(super) fn disk_node(&self, path: &Path) -> Option<PathBuf> {
        let by_path = |link: &Path| {
            path.strip_prefix("/dev/disk/by-path").ok() == link.file_name().map(Path::new)
        };
        let is = |node: &Path, link: &Path| node == path || link == path || by_path(link);
        let found = self.disks.iter().find(|(node, disk)| is(node, &disk.link));
        found.map(|(node, _)| node.clone())
    }

    /// An identifier that was never given before.
    pub(super) fn new_uuid(&mut self) -> LvmUuid {
        self.numbers = self.numbers.wrapping_add(1);
        LvmUuid::derived(&format!("sim {} {}", self.name, self.numbers))
    }

    /// The VG of that name.
    #[must_use]
    pub fn vg(&self, name: &str) -> Option<&VgState> {
        self.vgs.values().map(|vg| &vg.state).find(|state| state.name.as_str() == name)
    }

    pub(super) fn vg_mut(&mut self, name: &str) -> Option<&mut SimVg> {
        self.vgs.values_mut().find(|vg| vg.state.name.as_str() == name)
    }

    /// Makes a VG of PVs.
    pub(super) fn add_vg(&mut self, name: VgName, disks: &[PathBuf], tags: Vec<String>) -> LvmUuid {
        let uuid = self.new_uuid();
        let state = VgState {
            name,
            uuid: uuid.clone(),
            seqno: 1,
            extent_size: ExtentSize::new(EXTENT).unwrap_or_else(|| unreachable!("4 MiB")),
            tags,
            exported: false,
            system_id: String::new(),
            pvs: BTreeMap::new(),
            lvs: BTreeMap::new(),
            has_pool_spare: false,
        };
        let (hidden, pools, raid) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let vg = SimVg { state, hidden, pools, raid, next_device_id: 1, flushed: 0 };
        self.vgs.insert(uuid.clone(), vg);
        for disk in disks {
            self.add_pv(&uuid, disk);
        }
        uuid
    }

    /// Makes a disk part of a VG, and a PV if it is none.
    pub(super) fn add_pv(&mut self, vg: &LvmUuid, node: &Path) {
        let fresh = self.new_uuid();
        let Some(disk) = self.disks.get_mut(node) else { return };
        let pv = match &disk.holds {
            Holds::Pv(pv) => pv.clone(),
            Holds::Nothing | Holds::Something(_) => fresh,
        };
        disk.holds = Holds::Pv(pv.clone());
        // 64 MiB of metadata and the label come off.
        let count = disk.size.saturating_sub(Bytes::mib(65)).get() / EXTENT;
        let state = Pv {
            device: Some(node.to_owned()),
            allocatable: true,
            extents: Extents::new(count),
            free: vec![(0, count)],
        };
        if let Some(vg) = self.vgs.get_mut(vg) {
            vg.state.pvs.insert(pv, state);
        }
    }

    /// The VG and LV of a device node.
    pub(super) fn lv_at(&self, node: &Path) -> Option<(&SimVg, &Lv)> {
        let mapped = self.mapping_at(node).map(|mapping| &mapping.lv);
        self.vgs.values().find_map(|vg| {
            let lv = vg.state.lvs.values().find(|lv| {
                let name = dm_name(&vg.state.name, &lv.name).unwrap_or_default();
                mapped == Some(&lv.uuid)
                    || Path::new("/dev/mapper").join(&name) == node
                        && self.active.contains_key(&name)
            })?;
            Some((vg, lv))
        })
    }

    /// The active device of that name.
    pub(super) fn device(&self, name: &str) -> Option<DmDevice> {
        let node = Path::new("/dev/mapper").join(name);
        if let Some(mapping) = self.mappings.get(name) {
            let (uuid, number) = (mapping.uuid.clone(), (MAJOR, mapping.minor));
            return Some(DmDevice {
                name: name.to_owned(),
                uuid,
                number,
                size: mapping.size,
                node,
            });
        }
        let minor = *self.active.get(name)?;
        let (vg, lv) = self.lv_at(&node)?;
        Some(DmDevice {
            name: name.to_owned(),
            uuid: format!("LVM-{}{}", vg.state.uuid.compact(), lv.uuid.compact()),
            number: (MAJOR, minor),
            size: lv.size,
            node,
        })
    }

    pub(super) fn content_mut(&mut self, node: &Path) -> Option<&mut Content> {
        // Who reads or writes there would wait for ever.
        if self.held.iter().any(|name| Path::new("/dev/mapper").join(name) == node) {
            return None;
        }
        let uuid = self.lv_at(node)?.1.uuid.clone();
        Some(self.contents.entry(uuid).or_default())
    }

    /// Gives an LV another name, with all that goes by it.
    pub fn rename(&mut self, vg: &str, from: &LvName, to: &LvName) {
        let Some(vg) = self.vg_mut(vg) else { return };
        let Some(mut lv) = vg.state.lvs.remove(from) else { return };
        lv.name = to.clone();
        vg.state.lvs.insert(to.clone(), lv);
        if let Some(hidden) = vg.hidden.remove(from) {
            vg.hidden.insert(to.clone(), hidden);
        }
        if let Some(raid) = vg.raid.remove(from) {
            vg.raid.insert(to.clone(), raid);
        }
        for other in vg.state.lvs.values_mut() {
            match &mut other.layout {
                LvLayout::Thin { origin: Some(origin), .. } | LvLayout::Cow { origin, .. }
                    if origin == from =>
                {
                    *origin = to.clone();
                }
                _ => {}
            }
        }
        let vg = vg.state.name.clone();
        if let (Ok(old), Ok(new)) = (dm_name(&vg, from), dm_name(&vg, to))
            && let Some(minor) = self.active.remove(&old)
        {
            self.active.insert(new, minor);
        }
    }

    /// Somebody has an LV open, and whoever wants it for himself has to wait.
    pub fn occupy(&mut self, vg: &str, lv: &str) {
        let name = self.vg(vg).and_then(|vg| dm_name(&vg.name, &LvName::parse(lv).ok()?).ok());
        let name = name.unwrap_or_default();
        let Some(device) = self.device(&name) else { unreachable!("{lv} is not active") };
        self.opened.insert(device.node);
    }

    /// How many have a device open that is mounted, or held by a process.
    pub(super) fn users(&self, node: &Path) -> usize {
        let mounts = self.mounts.iter().filter(|mount| mount.source == node).count();
        mounts.saturating_add(usize::from(self.opened.contains(node)))
    }

    /// A filesystem that is mounted somewhere meets an error, and takes no writes any more.
    pub fn stop_filesystem(&mut self, at: &Path) {
        let device = self.mounts.iter().find(|m| m.target == at).map(|m| m.device);
        for mount in self.mounts.iter_mut().filter(|m| Some(m.device) == device) {
            mount.super_options.push("ro".to_owned());
        }
    }

    /// The host starts anew: nothing is active or mounted.
    pub fn reboot(&mut self) {
        self.active.clear();
        self.held.clear();
        self.mappings.clear();
        self.mounts.clear();
        self.opened.clear();
    }

    /// Nobody has it open any more.
    pub fn vacate(&mut self) {
        self.opened.clear();
    }

    /// What an LV holds.
    #[must_use]
    pub fn content(&self, vg: &str, lv: &str) -> Option<&Content> {
        let lv = self.vg(vg)?.lvs.get(&LvName::parse(lv).ok()?)?;
        self.contents.get(&lv.uuid)
    }

    /// Puts something onto an LV behind everybody's back.
    pub fn set_content(&mut self, vg: &str, lv: &str, content: Content) {
        let lv = LvName::parse(lv).ok().and_then(|lv| self.vg(vg)?.lvs.get(&lv).cloned());
        if let Some(lv) = lv {
            self.contents.insert(lv.uuid, content);
        }
    }

    /// Changes the tags of an LV, as an admin may.
    pub fn retag(&mut self, vg: &str, lv: &str, change: impl FnOnce(&mut Tags)) {
        let Ok(lv) = LvName::parse(lv) else { return };
        if let Some(vg) = self.vg_mut(vg) {
            vg.state.seqno = vg.state.seqno.wrapping_add(1);
            if let Some(lv) = vg.state.lvs.get_mut(&lv) {
                change(&mut lv.tags);
            }
        }
    }

    /// Takes a disk away.
    pub fn lose_disk(&mut self, link: &Path) {
        let Some(node) = self.disk_node(link) else { return };
        self.disks.remove(&node);
        for pv in self.vgs.values_mut().flat_map(|vg| vg.state.pvs.values_mut()) {
            pv.device.take_if(|device| *device == node);
        }
    }

    /// Takes a disk away and puts a blank one in its place.
    pub fn replace_disk(&mut self, link: &Path) {
        let Some(node) = self.disk_node(link) else { return };
        let Some(mut disk) = self.disks.get(&node).cloned() else { return };
        self.lose_disk(link);
        disk.holds = Holds::Nothing;
        self.disks.insert(node, disk);
    }

    /// Somebody takes all free extents of a disk for something else.
    pub fn fill_disk(&mut self, link: &Path) {
        let Some(node) = self.disk_node(link) else { return };
        for pv in self.vgs.values_mut().flat_map(|vg| vg.state.pvs.values_mut()) {
            if pv.device.as_ref() == Some(&node) {
                pv.free.clear();
            }
        }
    }

    /// Writes to what is mounted or bound at a path, as a pod would.
    ///
    /// # Panics
    /// When nothing is there.
    pub fn write(&mut self, path: &Path, data: &str) {
        let mount = self.mounts.iter().rev().find(|m| m.target == path);
        let source = mount.map(|m| m.source.clone()).filter(|s| s.starts_with("/dev/mapper"));
        let node = source.unwrap_or_else(|| {
            let bound = mount.map(|m| m.root.clone()).unwrap_or_default();
            Path::new("/dev").join(bound.strip_prefix("/").unwrap_or(&bound))
        });
        self.soil(&node);
        let Some(content) = self.content_mut(&node) else { unreachable!("nothing at {path:?}") };
        data.clone_into(&mut content.data);
    }

    /// What was written to what is mounted or bound at a path.
    #[must_use]
    pub fn read(&self, path: &Path) -> Option<String> {
        let mut copy = self.clone();
        let mount = copy.mounts.iter().rev().find(|m| m.target == path)?;
        let node = if mount.source.starts_with("/dev/mapper") {
            mount.source.clone()
        } else {
            Path::new("/dev").join(mount.root.strip_prefix("/").ok()?)
        };
        copy.content_mut(&node).map(|content| content.data.clone())
    }

    /// All mounts, in order of their places.
    #[must_use]
    pub fn mounted(&self) -> Vec<Mounted> {
        let row = |m: &Mount| Mounted {
            target: m.target.clone(),
            source: if m.source.starts_with("/dev") { m.source.clone() } else { m.root.clone() },
            read_only: m.read_only,
        };
        let mut rows: Vec<_> = self.mounts.iter().map(row).collect();
        rows.sort();
        rows
    }

    /// Everything that must be the same after the same calls, however often they were cut: not
    /// identifiers, times and places on disks.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut lines = Vec::new();
        for vg in self.vgs.values() {
            let state = &vg.state;
            lines.push(format!(
                "vg {} tags {:?} pvs {} free {}",
                state.name,
                state.tags,
                state.pvs.len(),
                state.free_extents()
            ));
            for (name, pool) in &vg.pools {
                lines.push(format!("pool {name} {pool:?}"));
            }
            for lv in state.lvs.values() {
                let layout = match &lv.layout {
                    LvLayout::Thin { pool, origin, .. } => format!("thin in {pool} of {origin:?}"),
                    LvLayout::ThinPool { .. } => {
                        let parts: Vec<_> = lv.parts.iter().map(|it| &it.layout).collect();
                        format!("{:?} of {parts:?}", lv.layout)
                    }
                    other => format!("{other:?}"),
                };
                let name = dm_name(&state.name, &lv.name).unwrap_or_default();
                let content = self.contents.get(&lv.uuid).cloned().unwrap_or_default();
                let fs = content.superblock.map(|sb| {
                    let own = if sb.uuid == lv.uuid.filesystem_uuid() { "own" } else { "other" };
                    let log = if content.log_cut { ", its log cut" } else { "" };
                    format!("{} {own} uuid {}{log}", sb.fs, sb.size)
                });
                lines.push(format!(
                    "lv {} {} {layout} tags {:?} writable {} active {} fs {fs:?} data {:?}{}",
                    lv.name,
                    lv.size,
                    lv.tags.print(),
                    lv.writable,
                    self.active.contains_key(&name),
                    content.data,
                    self.luks_summary(&lv.uuid)
                ));
            }
        }
        lines.extend(self.held.iter().map(|name| format!("{name} is held")));
        lines.extend(self.half_made.iter().map(|(pool, thin)| format!("{pool} has {thin} half")));
        lines.extend(self.mounted().iter().map(|m| format!("{m:?}")));
        lines.extend(self.paths.iter().map(|(path, kind)| format!("{} {kind:?}", path.display())));
        lines.join("\n")
    }

    /// The filesystem on a device.
    pub(super) fn filesystem_at(&self, node: &Path) -> Option<FsType> {
        let content = self.contents.get(&self.lv_at(node)?.1.uuid)?;
        let hidden = content.luks.is_some() && self.mapping_at(node).is_none();
        content.superblock.filter(|_| !hidden).map(|sb| sb.fs)
    }
}
