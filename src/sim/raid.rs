//! RAID: what the kernel says of its legs.

use std::path::Path;

use super::world::{SimVg, World};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, LvLayout};
use crate::names::{LvName, dm_name};

/// What the kernel does with the legs of a RAID LV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SimRaid {
    /// A letter for each leg: `A` works, `a` is not in step, `D` has failed.
    health: String,
    action: String,
}

impl World {
    /// Lets the kernel say this of a RAID LV's legs, and that this is what it does.
    pub fn set_raid(&mut self, vg: &str, lv: &str, health: &str, action: &str) {
        let (Some(vg), Ok(lv)) = (self.vg_mut(vg), LvName::parse(lv)) else { return };
        let raid = SimRaid { health: health.to_owned(), action: action.to_owned() };
        vg.raid.insert(lv, raid);
    }

    /// The part of an active pool that has that device.
    fn part_at(&self, dm: &str) -> Option<(&SimVg, &Lv)> {
        self.vgs.values().find_map(|vg| {
            let state = &vg.state;
            let is_active = |lv: &Lv| {
                dm_name(&state.name, &lv.name).is_ok_and(|n| self.active.contains_key(&n))
            };
            let used = |pool: &Lv| {
                is_active(pool)
                    || state.lvs.values().any(|lv| lv.pool() == Some(&pool.name) && is_active(lv))
            };
            let pools = state.lvs.values().filter(|lv| !lv.parts.is_empty() && used(lv));
            let mut parts = pools.flat_map(|pool| &pool.parts);
            let part =
                parts.find(|part| dm_name(&state.name, &part.name).is_ok_and(|n| n == dm))?;
            Some((vg, part))
        })
    }

    /// The status line of an active RAID LV. A leg without its disk has failed.
    pub(super) fn raid_status(&self, dm: &str) -> Option<String> {
        let (vg, lv) =
            self.lv_at(&Path::new("/dev/mapper").join(dm)).or_else(|| self.part_at(dm))?;
        let LvLayout::Raid(ThickLayout::Raid { level, legs, .. }) = &lv.layout else { return None };
        let here = |pv: &_| vg.state.pvs.get(pv).is_some_and(|pv| pv.device.is_some());
        let leg = |pvs: &Vec<_>| if pvs.iter().all(&here) { 'A' } else { 'D' };
        let (health, action) = match vg.raid.get(&lv.name) {
            Some(raid) => (raid.health.clone(), raid.action.as_str()),
            None => (lv.legs.iter().map(leg).collect(), "idle"),
        };
        let all = 1_000;
        let done = if health.contains('a') { 250 } else { all };
        Some(format!("{} {legs} {health} {done}/{all} {action} 0 0 -", level.as_str()))
    }
}
