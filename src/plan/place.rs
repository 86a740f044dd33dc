//! Which disks a striped or RAID volume lies on. Each stripe or leg is on one disk of its own when it
//! is made, and LVM is told which.
//!
//! A leg of RAID gets one run of extents at a time: given more, LVM 2.03 fills them in turns, the
//! longest first, and then legs change places and two of them may share a disk.

use crate::lvm::change::Range;
use crate::lvm::layout::{ThickLayout, metadata_extents};
use crate::lvm::state::{Lv, Pv, VgState};
use crate::names::LvmUuid;
use crate::units::{ExtentSize, Extents};

/// The most extents that an LV of this layout can have, `free` being the lengths of the free runs
/// of each PV, and `allowed` the extents that may be taken in all.
#[must_use]
pub(super) fn largest(
    extent: ExtentSize,
    free: &[Vec<u64>],
    layout: &ThickLayout,
    allowed: Extents,
) -> Extents {
    let legs = u64::from(layout.legs()).max(1);
    if legs == 1 {
        return free.iter().flatten().map(|n| Extents::new(*n)).sum::<Extents>().min(allowed);
    }
    let of_all = allowed.get().checked_div(legs).unwrap_or_default();
    // What LVM keeps for itself depends on the size, and takes one extent nearly always.
    for own in 0..=METADATA_MAX {
        let data = leg_room(free, layout, own).min(of_all.saturating_sub(own));
        let extents = Extents::new(data.saturating_mul(u64::from(layout.data_legs())));
        if own_extents(extent, layout, extents) <= own {
            return extents;
        }
    }
    Extents::ZERO
}

/// What LVM takes on each leg for itself.
fn own_extents(extent: ExtentSize, layout: &ThickLayout, extents: Extents) -> u64 {
    if layout.is_raid() { metadata_extents(extent, extent.size_of(extents)).get() } else { 0 }
}

/// dm-raid's metadata is at most 136 KiB here; with LVM's smallest extents, of 512 bytes, that is:
const METADATA_MAX: u64 = 272;

/// The data that each of so many legs has room for, each on a PV of its own.
fn leg_room(free: &[Vec<u64>], layout: &ThickLayout, own: u64) -> u64 {
    let mut rooms: Vec<u64> =
        free.iter().map(|runs| room(runs.iter().copied(), layout, own)).collect();
    rooms.sort_unstable_by(|a, b| b.cmp(a));
    let last = usize::try_from(layout.legs()).ok().and_then(|n| n.checked_sub(1));
    last.and_then(|i| rooms.get(i)).copied().unwrap_or_default()
}

/// What a PV has for the data of one stripe or leg.
fn room(runs: impl Iterator<Item = u64>, layout: &ThickLayout, own: u64) -> u64 {
    let most = if layout.is_raid() { runs.max().unwrap_or_default() } else { runs.sum() };
    most.saturating_sub(own)
}

fn runs(pv: &Pv) -> impl Iterator<Item = u64> {
    pv.free.iter().map(|(_, len)| *len)
}

fn longest(pv: &Pv) -> Option<(u64, u64)> {
    pv.free.iter().copied().max_by_key(|(_, len)| *len)
}

/// The PVs on which so many new extents go: those with the most room. Empty for any, `None` when
/// there are too few.
pub(super) fn new_legs(vg: &VgState, layout: &ThickLayout, extents: Extents) -> Option<Vec<Range>> {
    if layout.legs() == 1 {
        return Some(vec![]);
    }
    let own = own_extents(vg.extent_size, layout, extents);
    let each = layout.leg_extents(extents).get();
    let mut pvs: Vec<(u64, &Pv)> = vg
        .usable_pvs()
        .map(|pv| (room(runs(pv), layout, own), pv))
        .filter(|(room, _)| *room >= each)
        .collect();
    pvs.sort_by_key(|(room, _)| std::cmp::Reverse(*room));
    let legs = usize::try_from(layout.legs()).ok()?;
    let place = |pv: &Pv| {
        if !layout.is_raid() {
            return whole(pv);
        }
        let (start, _) = longest(pv)?;
        Some(Range { device: pv.device.clone()?, start, len: each.saturating_add(own) })
    };
    let ranges: Option<Vec<Range>> = pvs.iter().take(legs).map(|(_, pv)| place(pv)).collect();
    ranges.filter(|ranges| ranges.len() == legs)
}

fn whole(pv: &Pv) -> Option<Range> {
    Some(Range { device: pv.device.clone()?, start: 0, len: pv.extents.get() })
}

/// So many extents in one piece, in the longest run that there is.
pub(super) fn in_one_piece(vg: &VgState, extents: Extents) -> Option<Range> {
    let runs = vg.usable_pvs().filter_map(|pv| Some((pv, longest(pv)?)));
    let (pv, (start, len)) = runs.max_by_key(|(_, (_, len))| *len)?;
    let device = pv.device.clone()?;
    (len >= extents.get()).then(|| Range { device, start, len: extents.get() })
}

/// The longest run of free extents on the PVs that a leg has.
fn longest_of_leg<'a>(vg: &'a VgState, leg: &[LvmUuid]) -> Option<(&'a Pv, (u64, u64))> {
    let pvs = leg.iter().filter_map(|pv| vg.pvs.get(pv)).filter(|pv| pv.allocatable);
    pvs.filter_map(|pv| Some((pv, longest(pv)?))).max_by_key(|(_, (_, len))| *len)
}

/// How much a RAID LV can grow at once, in extents of data, each leg on the PVs that it has.
pub(super) fn growth_room(vg: &VgState, lv: &Lv, layout: &ThickLayout) -> Extents {
    let each = lv.legs.iter().map(|leg| longest_of_leg(vg, leg).map_or(0, |(_, (_, len))| len));
    let each = each.min().unwrap_or_default();
    Extents::new(each.saturating_mul(u64::from(layout.data_legs())))
}

/// The very extents that a RAID LV grows by, each leg on the PVs that it has. `None` when there is
/// no room.
pub(super) fn growth(
    vg: &VgState,
    lv: &Lv,
    layout: &ThickLayout,
    more: Extents,
) -> Option<Vec<Range>> {
    if u32::try_from(lv.legs.len()).ok()? != layout.legs() {
        return None;
    }
    let each = layout.leg_extents(more).get();
    let place = |leg: &Vec<LvmUuid>| {
        let (pv, (start, len)) = longest_of_leg(vg, leg)?;
        let device = pv.device.clone()?;
        (len >= each).then_some(Range { device, start, len: each })
    };
    lv.legs.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, vg};
    use super::*;
    use crate::lvm::layout::RaidLevel;
    use crate::lvm::state::LvLayout;
    use crate::units::Bytes;
    use proptest::prelude::*;

    fn raid(level: RaidLevel, data: u32) -> ThickLayout {
        ThickLayout::Raid { level, legs: level.legs(data), stripe_size: Bytes::kib(64) }
    }

    fn text(range: &Range) -> String {
        format!("{}:{}+{}", range.device.display(), range.start, range.len)
    }

    fn most(free: &[&[u64]], layout: ThickLayout, allowed: u64) -> u64 {
        let free: Vec<Vec<u64>> = free.iter().map(|runs| runs.to_vec()).collect();
        let extent = ExtentSize::new(4 << 20).unwrap();
        largest(extent, &free, &layout, Extents::new(allowed)).get()
    }

    #[test]
    fn each_leg_needs_a_disk_of_its_own_and_an_extent_for_lvm() {
        let mirror = raid(RaidLevel::Raid1, 2);
        assert_eq!(most(&[&[10], &[10]], mirror, 1000), 9);
        assert_eq!(most(&[&[10], &[4], &[4]], mirror, 1000), 3);
        assert_eq!(most(&[&[10]], mirror, 1000), 0);
        assert_eq!(most(&[&[10], &[1, 1, 1]], mirror, 1000), 0);
        assert_eq!(most(&[&[10], &[2, 3, 2]], mirror, 1000), 2);
        assert_eq!(most(&[&[10], &[10]], mirror, 11), 4);
        assert_eq!(most(&[&[10], &[8], &[6]], raid(RaidLevel::Raid5, 2), 1000), 10);
        assert_eq!(most(&[&[10_u64][..]; 5], raid(RaidLevel::Raid6, 3), 1000), 27);
        assert_eq!(most(&[&[10_u64][..]; 4], raid(RaidLevel::Raid10, 2), 1000), 18);
        assert_eq!(most(&[&[10_u64][..]; 3], raid(RaidLevel::Raid10, 2), 1000), 0);
        let striped = ThickLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) };
        assert_eq!(most(&[&[10], &[4], &[4]], striped, 1000), 8);
        assert_eq!(most(&[&[5, 5], &[10]], striped, 1000), 20);
        assert_eq!(most(&[&[5, 5], &[10]], striped, 15), 14);
        assert_eq!(most(&[&[10]], striped, 1000), 0);
        assert_eq!(most(&[&[10, 3], &[2]], ThickLayout::Linear, 1000), 15);
    }

    proptest! {
        /// What is offered can be placed, on as many disks as there are legs, and not more of it.
        #[test]
        fn what_is_offered_has_a_place(
            free in proptest::collection::vec(proptest::collection::vec(1..30u64, 0..4), 1..7),
            which in 0..5usize,
            data in 2..4u32,
        ) {
            let runs: Vec<&[u64]> = free.iter().map(Vec::as_slice).collect();
            let vg = vg(&runs);
            let striped = ThickLayout::Striped { stripes: data, stripe_size: Bytes::kib(64) };
            let layout = RaidLevel::ALL.get(which).map_or(striped, |level| raid(*level, data));
            let all = Extents::new(free.iter().flatten().sum());
            let largest = largest(vg.extent_size, &free, &layout, all);
            prop_assert!(largest.get().is_multiple_of(u64::from(layout.data_legs())));
            if largest > Extents::ZERO {
                let places = new_legs(&vg, &layout, largest).unwrap();
                prop_assert_eq!(places.len(), usize::try_from(layout.legs()).unwrap());
            }
            let more = largest.saturating_add(Extents::new(u64::from(layout.data_legs())));
            prop_assert!(new_legs(&vg, &layout, more).is_none());
        }
    }

    #[test]
    fn the_disks_with_most_room_are_taken() {
        let vg = vg(&[&[10], &[30], &[5, 20]]);
        let mirror = raid(RaidLevel::Raid1, 2);
        let striped = ThickLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) };
        let places = |layout: &ThickLayout, extents| {
            let ranges = new_legs(&vg, layout, Extents::new(extents))?;
            Some(ranges.iter().map(text).collect::<Vec<_>>())
        };
        assert_eq!(places(&mirror, 19).unwrap(), ["/dev/pv1:0+20", "/dev/pv2:6+20"]);
        assert_eq!(places(&mirror, 20), None);
        assert_eq!(places(&striped, 50).unwrap(), ["/dev/pv1:0+31", "/dev/pv2:0+27"]);
        assert_eq!(places(&striped, 52), None);
        assert_eq!(places(&ThickLayout::Linear, 52).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn legs_grow_where_they_are() {
        let mut vg = vg(&[&[10], &[4, 8], &[50]]);
        let mirror = raid(RaidLevel::Raid1, 2);
        add(&mut vg, "pvc-1", Bytes::gib(1), LvLayout::Raid(mirror), &["cinderblock=1"]);
        let pv = |n: usize| vec![LvmUuid::derived(&format!("pv{n}"))];
        let lv = vg.lvs.get_mut(&lv_name("pvc-1")).unwrap();
        lv.legs = vec![pv(0), pv(1)];
        let lv = lv.clone();
        assert_eq!(growth_room(&vg, &lv, &mirror).get(), 8);
        let ranges = growth(&vg, &lv, &mirror, Extents::new(7)).unwrap();
        let mut places: Vec<_> = ranges.iter().map(text).collect();
        places.sort();
        assert_eq!(places, ["/dev/pv0:0+7", "/dev/pv1:5+7"]);
        assert_eq!(growth(&vg, &lv, &mirror, Extents::new(9)), None);
    }
}
