//! Copy-on-write snapshots of thick LVs, as LVM and the kernel have them; and copying one device to
//! another.

use std::io;
use std::path::Path;

use super::lvm::{Outcome, refuse, set_active};
use super::world::{Content, SimVg, World};
use crate::host::copy::Copied;
use crate::lvm::state::{Lv, LvLayout};
use crate::names::{LvName, LvmUuid, VgName, dm_name};
use crate::units::{Bytes, Extents};

impl World {
    /// So much of a thick snapshot's room is in use. When that is all of it, the snapshot is lost for
    /// ever.
    pub fn fill_snapshot(&mut self, vg: &str, lv: &str, used: Bytes) {
        let lv = LvName::parse(lv).ok().and_then(|lv| self.vg(vg)?.lvs.get(&lv).cloned());
        if let Some(lv) = lv {
            self.cow_used.insert(lv.uuid, used);
        }
    }

    /// The kernel's status line of a thick snapshot.
    pub(super) fn cow_status(&self, dm: &str) -> Option<String> {
        let node = Path::new("/dev/mapper").join(dm);
        let (_, lv) = self.lv_at(&node)?;
        let LvLayout::Cow { store, .. } = lv.layout else { return None };
        let used = self.cow_used.get(&lv.uuid).copied().unwrap_or(Bytes::kib(192));
        if used >= store {
            return Some("Invalid".to_owned());
        }
        Some(format!("{}/{} 256", used.get() / 512, store.get() / 512))
    }

    /// Copies a range. What is whole is known when nothing was left out from the first byte on.
    pub(super) fn copy(
        &mut self,
        from: &Path,
        to: &Path,
        (offset, len): (u64, u64),
    ) -> io::Result<Copied> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if self.cow_status(&name(from)).as_deref() == Some("Invalid") {
            return Err(io::Error::other("Input/output error"));
        }
        if self.mounts.iter().any(|m| m.source == to) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        if self.read_only(to) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let source = self.lv_at(from).ok_or_else(gone)?.1.clone();
        let target = self.lv_at(to).ok_or_else(gone)?.1.clone();
        let end = offset.saturating_add(len);
        if end > source.size.get() || end > target.size.get() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.soil(to);
        let key = (target.uuid.clone(), source.uuid.clone());
        let done = self.copied.entry(key).or_default();
        if offset <= *done {
            *done = end.max(*done);
        }
        let whole = *done >= source.size.get();
        let content = match self.contents.get(&source.uuid) {
            Some(content) if whole => content.clone(),
            None if whole => Content::default(),
            _ => Content { data: "half copied".to_owned(), ..Content::default() },
        };
        self.contents.insert(target.uuid, content);
        Ok(Copied { read: len, written: len, zeroed: 0 })
    }
}

/// `lvcreate --type snapshot`: what is to be made of a thick LV. Whether it is active then.
pub(super) fn create(
    vg: &mut SimVg,
    active: bool,
    origin: Option<&Lv>,
    (count, chunk): (u64, Bytes),
    lv: &mut Lv,
) -> Result<bool, (i32, String)> {
    let Some(origin) = origin else { return refuse("Failed to find origin") };
    if origin.thick().is_none() {
        return refuse("Snapshots of this type are not supported.");
    }
    let Some(areas) = vg.allocate(count, 1, &[]) else {
        return refuse("Insufficient free space");
    };
    let store = vg.state.extent_size.size_of(Extents::new(count));
    lv.layout = LvLayout::Cow { origin: origin.name.clone(), chunk_size: chunk, store };
    lv.size = origin.size;
    lv.areas = areas;
    Ok(active)
}

/// `lvconvert --splitsnapshot`
pub(super) fn split(world: &mut World, vg_name: &str, name: &LvName) -> Outcome {
    let Some(vg) = world.vg_mut(vg_name) else { return refuse("no such volume group") };
    let Some(lv) = vg.state.lvs.get_mut(name) else { return refuse("Failed to find snapshot") };
    let LvLayout::Cow { store, .. } = lv.layout else { return refuse("not a snapshot") };
    (lv.layout, lv.size) = (LvLayout::Linear, store);
    let content =
        Content { foreign: Some("what a snapshot kept".to_owned()), ..Content::default() };
    let uuid = lv.uuid.clone();
    world.contents.insert(uuid, content);
    Ok(())
}

/// Activates an LV, and with it its origin and snapshots: they are one for LVM.
pub(super) fn activate_all(world: &mut World, vg: &str, lv: &LvName) {
    let Some(state) = world.vg(vg).cloned() else { return };
    let origin = state.lvs.get(lv).and_then(Lv::cow_origin).unwrap_or(lv).clone();
    let snapshots: Vec<LvName> = state.cow_snapshots(&origin).map(|lv| lv.name.clone()).collect();
    set_active(world, vg, &origin);
    for snapshot in snapshots {
        set_active(world, vg, &snapshot);
    }
}

/// Whether an LV is active.
pub(super) fn is_active(world: &World, vg: &VgName, lv: &LvName) -> bool {
    dm_name(vg, lv).is_ok_and(|name| world.active.contains_key(&name))
}

/// What the copies to an LV, or from it, have done is not known any more.
pub(super) fn forget(world: &mut World, lv: &LvmUuid) {
    world.copied.retain(|(target, source), _| target != lv && source != lv);
    world.cow_used.remove(lv);
}
