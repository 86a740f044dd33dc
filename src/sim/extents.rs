//! Extents: who has them, and which hold what somebody wrote.

use std::path::Path;

use super::world::{Content, EXTENT, SimVg, World};
use crate::lvm::state::{Area, Pv};
use crate::names::{LvName, LvmUuid};

impl World {
    /// Whether a device takes no writes.
    pub(super) fn read_only(&self, node: &Path) -> bool {
        self.lv_at(node).is_some_and(|(_, lv)| !lv.writable)
    }

    /// Makes a range of a device read as zeroes. Whether there is such a device.
    pub(super) fn zero(&mut self, node: &Path, offset: u64, len: u64) -> bool {
        self.zero_luks(node, offset, len);
        if self.mapping_at(node).is_some() {
            self.soil(node);
            return true;
        }
        let Some((_, lv)) = self.lv_at(node) else { return false };
        let (areas, uuid, size) = (lv.areas.clone(), lv.uuid.clone(), lv.size.get());
        let end = offset.saturating_add(len);
        let (first, last) = (offset.div_ceil(EXTENT), end.checked_div(EXTENT).unwrap_or_default());
        let mut at = 0_u64;
        for area in &areas {
            let (from, to) = (first.max(at), last.min(at.saturating_add(area.len)));
            for extent in from..to {
                let extent = area.start.saturating_add(extent.saturating_sub(at));
                self.clean.insert((area.pv.clone(), extent));
            }
            at = at.saturating_add(area.len);
        }
        // Where in it its user's data is, nobody knows: it is gone when all of it is. What has no
        // extents that are seen is cleared from its start on.
        let from_start = self.cleared.entry(uuid.clone()).or_default();
        if offset <= *from_start {
            *from_start = end.max(*from_start);
        }
        let whole = *from_start >= size;
        if whole || !areas.is_empty() && areas.iter().all(|area| self.is_clean(area)) {
            self.contents.insert(uuid, Content::default());
        }
        true
    }

    fn is_clean(&self, area: &Area) -> bool {
        let end = area.start.saturating_add(area.len);
        (area.start..end).all(|extent| self.clean.contains(&(area.pv.clone(), extent)))
    }

    /// Somebody writes to a device, anywhere.
    pub(super) fn soil(&mut self, node: &Path) {
        let Some((_, lv)) = self.lv_at(node) else { return };
        let (areas, uuid) = (lv.areas.clone(), lv.uuid.clone());
        self.cleared.remove(&uuid);
        let soiled = |pv: &LvmUuid, extent: u64| {
            areas
                .iter()
                .any(|a| a.pv == *pv && a.start <= extent && extent < a.start.saturating_add(a.len))
        };
        self.clean.retain(|(pv, extent)| !soiled(pv, *extent));
    }

    /// How many extents of a VG that nobody has hold what somebody wrote. Those that were never
    /// written to count as well.
    #[must_use]
    pub fn dirty_free_extents(&self, vg: &str) -> u64 {
        let Some(vg) = self.vg(vg) else { return 0 };
        let runs =
            vg.pvs.iter().flat_map(|(pv, state)| state.free.iter().map(move |run| (pv, run)));
        let dirty = |pv: &LvmUuid, (start, len): &(u64, u64)| {
            let extents = *start..start.saturating_add(*len);
            extents.filter(|extent| !self.clean.contains(&(pv.clone(), *extent))).count()
        };
        let count: usize = runs.map(|(pv, run)| dirty(pv, run)).sum();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// Whether a block LV shows any extent that holds what others wrote.
    #[must_use]
    pub fn shows_old_data(&self, vg: &str, lv: &str) -> bool {
        let Some(lv) = self.vg(vg).and_then(|vg| vg.lvs.get(&LvName::parse(lv).ok()?)) else {
            return false;
        };
        !lv.areas.iter().all(|area| self.is_clean(area))
    }
}

impl SimVg {
    /// Takes extents, over as many PVs at a time as there are stripes, only from `allowed` where
    /// that names any.
    pub(super) fn allocate(
        &mut self,
        count: u64,
        stripes: u64,
        allowed: &[Area],
    ) -> Option<Vec<Area>> {
        let mut pvs = self.state.pvs.clone();
        let usable = |area: &Area| {
            allowed.is_empty()
                || allowed.iter().any(|a| {
                    a.pv == area.pv
                        && a.start <= area.start
                        && area.start < a.start.saturating_add(a.len)
                })
        };
        let mut left = count;
        let mut taken = Vec::new();
        while left > 0 {
            let mut runs: Vec<Area> = pvs
                .iter()
                .filter_map(|(uuid, pv)| {
                    let areas = pv.free.iter().map(|(start, len)| Area {
                        pv: uuid.clone(),
                        start: *start,
                        len: *len,
                    });
                    let cut = areas.filter_map(|area| clip(&area, allowed)).filter(&usable);
                    cut.max_by_key(|area| area.len)
                })
                .collect();
            runs.sort_by_key(|area| std::cmp::Reverse(area.len));
            let wanted = usize::try_from(stripes).ok()?;
            let shortest = runs.get(wanted.checked_sub(1)?)?.len;
            let each = shortest.min(left.div_ceil(stripes));
            for run in runs.iter().take(wanted) {
                let area = Area { len: each, ..run.clone() };
                remove(pvs.get_mut(&area.pv)?, &area);
                taken.push(area);
            }
            left = left.saturating_sub(each.saturating_mul(stripes));
        }
        self.state.pvs = pvs;
        taken.sort();
        Some(taken)
    }

    /// Gives extents back.
    pub(super) fn release(&mut self, areas: &[Area]) {
        for area in areas {
            let Some(pv) = self.state.pvs.get_mut(&area.pv) else { continue };
            pv.free.push((area.start, area.len));
            pv.free.sort_unstable();
            let mut merged: Vec<(u64, u64)> = Vec::new();
            for (start, len) in std::mem::take(&mut pv.free) {
                match merged.last_mut() {
                    Some((s, l)) if s.saturating_add(*l) == start => *l = l.saturating_add(len),
                    _ => merged.push((start, len)),
                }
            }
            pv.free = merged;
        }
    }
}

/// The part of a run that may be taken.
fn clip(area: &Area, allowed: &[Area]) -> Option<Area> {
    if allowed.is_empty() {
        return Some(area.clone());
    }
    let end = area.start.saturating_add(area.len);
    allowed.iter().filter(|a| a.pv == area.pv).find_map(|a| {
        let from = area.start.max(a.start);
        let to = end.min(a.start.saturating_add(a.len));
        (from < to).then(|| Area { pv: area.pv.clone(), start: from, len: to.saturating_sub(from) })
    })
}

fn remove(pv: &mut Pv, area: &Area) {
    let end = area.start.saturating_add(area.len);
    let mut free = Vec::new();
    for (start, len) in std::mem::take(&mut pv.free) {
        let stop = start.saturating_add(len);
        if stop <= area.start || end <= start {
            free.push((start, len));
            continue;
        }
        if start < area.start {
            free.push((start, area.start.saturating_sub(start)));
        }
        if end < stop {
            free.push((end, stop.saturating_sub(end)));
        }
    }
    pv.free = free;
}
