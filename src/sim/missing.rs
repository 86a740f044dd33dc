//! Disks that do not come back: new legs for RAID, and VGs that forget the disks.

use super::lvm::{Outcome, Parsed, commit, refuse};
use super::world::{SimVg, World};
use crate::lvm::state::{Area, Lv};
use crate::names::{LvName, LvmUuid, VgName, dm_name};

/// `lvconvert --repair`
pub(super) fn replace_legs(world: &mut World, vg_name: &str, lv: &LvName) -> Outcome {
    let name = VgName::parse(vg_name).and_then(|vg| dm_name(&vg, lv)).unwrap_or_default();
    if world.raid_status(&name).is_none() {
        return refuse(format!("{vg_name}/{lv} must be active to perform this operation."));
    }
    let Some(vg) = world.vg_mut(vg_name) else { return refuse("no such volume group") };
    let Some(found) = find(vg, lv).cloned() else { return refuse("Failed to find logical volume") };
    let areas = vg.hidden.get(lv).cloned().unwrap_or_default();
    let (mut legs, mut left) = (found.legs.clone(), areas);
    for i in 0..legs.len() {
        let Some(leg) = legs.get(i).cloned() else { continue };
        if leg.iter().all(|pv| is_here(vg, pv)) {
            continue;
        }
        let lost: Vec<Area> = left.iter().filter(|area| leg.contains(&area.pv)).cloned().collect();
        let count = lost.iter().map(|area| area.len).sum();
        let others: Vec<Area> =
            free(vg).filter(|area| !legs.iter().any(|leg| leg.contains(&area.pv))).collect();
        let new = if others.is_empty() { None } else { vg.allocate(count, 1, &others) };
        let Some(new) = new else {
            return refuse("Insufficient suitable allocatable extents for logical volume");
        };
        vg.release(&lost);
        left.retain(|area| !lost.contains(area));
        let mut pvs: Vec<_> = new.iter().map(|area| area.pv.clone()).collect();
        pvs.dedup();
        left.extend(new);
        if let Some(leg) = legs.get_mut(i) {
            *leg = pvs;
        }
    }
    vg.hidden.insert(lv.clone(), left);
    if let Some(found) = find_mut(vg, lv) {
        found.legs = legs;
    }
    commit(world, vg_name);
    Ok(())
}

/// `lvremove --select lv_health_status=partial` of the spare.
pub(super) fn remove_lost_spare(world: &mut World, vg_name: &str) -> Outcome {
    let Some(vg) = world.vg_mut(vg_name) else { return refuse("no such volume group") };
    let is_spare = |(name, areas): (&LvName, &Vec<Area>)| {
        let pool = vg.state.lvs.get(name).is_some_and(|lv| !lv.parts.is_empty());
        let lost = areas.iter().any(|area| !is_here(vg, &area.pv));
        (pool && lost).then(|| name.clone())
    };
    let spares: Vec<_> = vg.hidden.iter().filter_map(is_spare).collect();
    for spare in &spares {
        if let Some(areas) = vg.hidden.remove(spare) {
            vg.release(&areas);
        }
    }
    if !spares.is_empty() {
        commit(world, vg_name);
    }
    Ok(())
}

/// `vgreduce --removemissing`
pub(super) fn vgreduce(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let (vg_name, _) = parsed.target();
    let Some(vg) = world.vg_mut(vg_name) else { return refuse("no such volume group") };
    let has_something = |pv: &LvmUuid| {
        let seen = vg
            .state
            .lvs
            .values()
            .flat_map(|lv| lv.areas.iter().chain(lv.parts.iter().flat_map(|part| &part.areas)));
        seen.chain(vg.hidden.values().flatten()).any(|area| area.pv == *pv)
    };
    let gone: Vec<_> = vg.state.pvs.keys().filter(|pv| !is_here(vg, pv)).cloned().collect();
    if gone.iter().any(has_something) {
        return refuse(
            "There are still partial LVs in the volume group. To remove them unconditionally use: vgreduce --removemissing --force.",
        );
    }
    vg.state.pvs.retain(|pv, _| !gone.contains(pv));
    commit(world, vg_name);
    Ok(())
}

fn is_here(vg: &SimVg, pv: &LvmUuid) -> bool {
    vg.state.pvs.get(pv).is_some_and(|pv| pv.device.is_some())
}

fn free(vg: &SimVg) -> impl Iterator<Item = Area> {
    let here = vg.state.pvs.iter().filter(|(_, pv)| pv.device.is_some() && pv.allocatable);
    let area =
        |pv: &LvmUuid, (start, len): &(u64, u64)| Area { pv: pv.clone(), start: *start, len: *len };
    let all = here.flat_map(|(uuid, pv)| pv.free.iter().map(|run| area(uuid, run)));
    all.collect::<Vec<_>>().into_iter()
}

fn find<'a>(vg: &'a SimVg, name: &LvName) -> Option<&'a Lv> {
    let parts = vg.state.lvs.values().flat_map(|lv| &lv.parts);
    vg.state.lvs.values().chain(parts).find(|lv| lv.name == *name)
}

fn find_mut<'a>(vg: &'a mut SimVg, name: &LvName) -> Option<&'a mut Lv> {
    if vg.state.lvs.contains_key(name) {
        return vg.state.lvs.get_mut(name);
    }
    vg.state.lvs.values_mut().flat_map(|lv| &mut lv.parts).find(|lv| lv.name == *name)
}
