//! RAID: what the kernel says of its legs.

use std::path::Path;

use super::world::World;
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::LvLayout;
use crate::names::LvName;

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

    /// The status line of an active RAID LV. A leg without its disk has failed.
    pub(super) fn raid_status(&self, dm: &str) -> Option<String> {
        let (vg, lv) = self.lv_at(&Path::new("/dev/mapper").join(dm))?;
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
