//! What thin pools are made of: the hidden LVs of their data and metadata, and the spare.

use super::lvm::{Outcome, refuse, set_active, take_legs};
use super::pool::SimPool;
use super::world::{SimVg, World};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Area, Lv, LvLayout};
use crate::lvm::tag::Tags;
use crate::names::{LvName, LvmUuid, dm_name};
use crate::units::{Bytes, Extents};

/// A hidden LV, as LVM reports it.
pub(super) struct Hidden<'a> {
    pub(super) name: String,
    pub(super) uuid: LvmUuid,
    pub(super) role: &'static str,
    pub(super) parent: String,
    /// The LV itself, where more of it is known than its extents.
    pub(super) lv: Option<&'a Lv>,
    pub(super) areas: Vec<Area>,
    /// Whether LVM shows it all the same, to clear it.
    pub(super) shown: bool,
}

/// All hidden LVs of a VG.
pub(super) fn hidden(vg: &SimVg) -> Vec<Hidden<'_>> {
    let mut found = Vec::new();
    for pool in vg.state.lvs.values() {
        let roles = ["private,thin,pool,data", "private,thin,pool,metadata"];
        for (part, role) in pool.parts.iter().zip(roles) {
            found.push(Hidden {
                name: part.name.to_string(),
                uuid: part.uuid.clone(),
                role,
                parent: pool.name.to_string(),
                lv: Some(part),
                areas: part.areas.clone(),
                shown: false,
            });
        }
    }
    for (name, areas) in &vg.hidden {
        let plain = |name: String, role, parent: String, areas| {
            let uuid = LvmUuid::derived(&name);
            Hidden { name, uuid, role, parent, lv: None, areas, shown: false }
        };
        let part = vg.state.lvs.values().flat_map(|lv| &lv.parts).find(|part| part.name == *name);
        let Some(lv) = part.or_else(|| vg.state.lvs.get(name)).filter(|lv| !lv.legs.is_empty())
        else {
            let spare = format!("{name}_pmspare");
            found.push(plain(spare, "private,pool,spare", String::new(), areas.clone()));
            continue;
        };
        let shown = matches!(lv.layout, LvLayout::UnfinishedRaid(_));
        let parent = if part.is_some() { format!("[{name}]") } else { name.to_string() };
        for (i, leg) in lv.legs.iter().enumerate() {
            let mut data: Vec<Area> =
                areas.iter().filter(|area| leg.contains(&area.pv)).cloned().collect();
            if let Some(first) = data.first_mut() {
                let own = vec![Area { len: 1, ..first.clone() }];
                let name = format!("{name}_rmeta_{i}");
                let metadata = plain(name, "private,raid,metadata", parent.clone(), own);
                found.push(Hidden { shown, ..metadata });
                first.start = first.start.saturating_add(1);
                first.len = first.len.saturating_sub(1);
            }
            let name = format!("{name}_rimage_{i}");
            found.push(plain(name, "private,raid,image", parent.clone(), data));
        }
    }
    found
}

impl SimVg {
    /// Makes a part of a pool larger by so many extents, from these alone where any are named.
    pub(super) fn grow_part(
        &mut self,
        pool: &LvName,
        which: usize,
        more: u64,
        allowed: &[Area],
    ) -> Outcome {
        let part = self.state.lvs.get(pool).and_then(|pool| pool.parts.get(which)).cloned();
        let Some(mut part) = part else { return refuse("not a pool") };
        match &part.layout {
            LvLayout::Raid(layout) => {
                let Some(new) = take_legs(self, layout, more, 0, allowed) else {
                    return refuse("Insufficient suitable allocatable extents");
                };
                self.hidden.entry(part.name.clone()).or_default().extend(new);
            }
            layout => {
                let stripes =
                    if let LvLayout::Striped { stripes, .. } = layout { *stripes } else { 1 };
                let Some(new) = self.allocate(more, u64::from(stripes), allowed) else {
                    return refuse("Insufficient free space");
                };
                part.areas.extend(new);
                part.areas.sort();
            }
        }
        let size = self.state.extent_size.size_of(Extents::new(more));
        part.size = part.size.saturating_add(size);
        let found = self.state.lvs.get_mut(pool).and_then(|pool| pool.parts.get_mut(which));
        if let Some(found) = found {
            *found = part;
        }
        Ok(())
    }

    /// Gives back what the parts of a pool have.
    pub(super) fn release_parts(&mut self, pool: &Lv) {
        for part in &pool.parts {
            self.release(&part.areas);
            if let Some(areas) = self.hidden.remove(&part.name) {
                self.release(&areas);
            }
        }
    }
}

/// `lvconvert --type thin-pool`
pub(super) fn convert(
    world: &mut World,
    vg_name: &str,
    lv: &LvName,
    metadata: &LvName,
    (zero, chunk_size): (bool, Bytes),
) -> Outcome {
    let uuid = world.new_uuid();
    world.numbers = world.numbers.wrapping_add(1);
    let created_unix = i64::try_from(world.numbers).unwrap_or_default();
    let Some(vg) = world.vg_mut(vg_name) else { return refuse("no such volume group") };
    let (Some(data), Some(meta)) =
        (vg.state.lvs.get(lv).cloned(), vg.state.lvs.get(metadata).cloned())
    else {
        return refuse("Failed to find logical volume");
    };
    let count = vg.state.extent_size.extents_ceil(meta.size);
    let Some(spare) = vg.allocate(count.get(), 1, &[]) else {
        return refuse("insufficient free space for the spare");
    };
    let mut parts = Vec::new();
    for (part, end) in [(data.clone(), "tdata"), (meta.clone(), "tmeta")] {
        vg.state.lvs.remove(&part.name);
        let name = LvName::parse(&format!("{lv}_{end}")).unwrap_or_else(|_| unreachable!("{end}"));
        if let Some(areas) = vg.hidden.remove(&part.name) {
            vg.hidden.insert(name.clone(), areas);
        }
        parts.push(Lv { name, ..part });
    }
    let pool = Lv {
        name: lv.clone(),
        uuid,
        size: data.size,
        layout: LvLayout::ThinPool { zero, chunk_size },
        tags: Tags::default(),
        created_unix,
        writable: true,
        areas: vec![],
        legs: vec![],
        parts,
        queued: false,
    };
    vg.state.lvs.insert(lv.clone(), pool);
    vg.hidden.insert(lv.clone(), spare);
    let kernel = SimPool { metadata: count, metadata_used: Bytes::kib(40), ..SimPool::default() };
    vg.pools.insert(lv.clone(), kernel);
    let name = dm_name(&vg.state.name, metadata).unwrap_or_default();
    world.active.remove(&name);
    for old in [data.uuid, meta.uuid] {
        world.contents.remove(&old);
    }
    set_active(world, vg_name, lv);
    Ok(())
}

/// Whether LVM refuses to activate an LV: something of it lies on a disk that is missing. RAID may
/// lack legs; what lies on it may not, for LVM, unless it is told to take what there is.
pub(super) fn refuses_to_activate(vg: &SimVg, lv: &Lv) -> bool {
    let here = |pv: &LvmUuid| vg.state.pvs.get(pv).is_some_and(|pv| pv.device.is_some());
    match &lv.layout {
        LvLayout::Raid(layout @ ThickLayout::Raid { .. }) => {
            let lost = lv.legs.iter().filter(|leg| !leg.iter().all(&here)).count();
            u32::try_from(lost).unwrap_or(u32::MAX) > layout.spare_legs()
        }
        LvLayout::Thin { pool, .. } => {
            vg.state.lvs.get(pool).is_none_or(|pool| refuses_to_activate(vg, pool))
        }
        LvLayout::ThinPool { .. } => {
            let lacks = |part: &Lv| {
                !part.areas.iter().all(|area| here(&area.pv))
                    || !part.legs.iter().flatten().all(&here)
            };
            lv.parts.iter().any(lacks)
        }
        _ => !lv.areas.iter().all(|area| here(&area.pv)),
    }
}
