//! What a VG has lost with missing disks: what can still be used, what new legs give back, and when the
//! disks can be forgotten.

use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::names::{LvName, LvmUuid};

/// What is to be done next for a VG whose missing disks do not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mend {
    /// Nothing.
    Done,
    /// New legs for this RAID LV, which may be a part of a pool.
    ReplaceLegs(LvName),
    /// Nothing is on the missing disks any more.
    Forget,
    /// Nothing that anybody but a person may do, and the disks cannot be forgotten: beside what was refused, these
    /// LVs are lost with them, or are not ours and have something on them.
    Kept(Vec<LvName>),
}

/// What is next, with these LVs left alone: LVM has refused to mend them.
pub(crate) fn next(state: &VgState, refused: &[LvName]) -> Mend {
    if !state.is_partial() {
        return Mend::Done;
    }
    let in_need = |lv: &&Lv| lost_legs(state, lv) > 0 && survives(state, lv);
    let raid = raid_lvs(state).map(|(_, raid)| raid);
    let mut in_need = raid.filter(in_need).filter(|lv| !refused.contains(&lv.name));
    if let Some(lv) = in_need.next() {
        return Mend::ReplaceLegs(lv.name.clone());
    }
    if !state.lvs.values().any(|lv| has_lost(state, lv)) {
        return Mend::Forget;
    }
    let kept = state.lvs.values().filter(|lv| has_lost(state, lv) && !can_be_mended(state, lv));
    Mend::Kept(kept.map(|lv| lv.name.clone()).collect())
}

/// Whether all that an LV has lost is legs of RAID that is ours and has enough others.
fn can_be_mended(state: &VgState, lv: &Lv) -> bool {
    let mended = |it: &Lv| lost_legs(state, it) == 0 || survives(state, it);
    let here = |it: &Lv| it.areas.iter().all(|area| is_here(state, &area.pv));
    let whole = |it: &Lv| here(it) && mended(it);
    is_ours(state, lv) && whole(lv) && lv.parts.iter().all(whole)
}

/// Whether an LV is ours to mend: one of ours, or a pool that has such.
pub(crate) fn is_ours(state: &VgState, lv: &Lv) -> bool {
    let mut thin = state.lvs.values().filter(|thin| thin.pool() == Some(&lv.name));
    lv.tags.is_ours() || thin.any(|thin| thin.tags.is_ours())
}

fn is_here(state: &VgState, pv: &LvmUuid) -> bool {
    state.pvs.get(pv).is_some_and(|pv| pv.device.is_some())
}

/// The RAID LVs that are ours to mend, volumes and the parts of pools that have any; before each, the LV that is
/// seen: itself, or the pool.
pub(crate) fn raid_lvs(state: &VgState) -> impl Iterator<Item = (&Lv, &Lv)> {
    let ours = state.lvs.values().filter(|lv| is_ours(state, lv));
    let all = ours.flat_map(|lv| {
        std::iter::once((lv, lv)).chain(lv.parts.iter().map(move |part| (lv, part)))
    });
    all.filter(|(_, lv)| matches!(lv.layout, LvLayout::Raid(_)))
}

/// Whether anything of an LV itself is on a missing disk, legs that could be replaced among it.
fn has_lost(state: &VgState, lv: &Lv) -> bool {
    lv.areas.iter().any(|area| !is_here(state, &area.pv))
        || lost_legs(state, lv) > 0
        || lv.parts.iter().any(|part| has_lost(state, part))
}

/// Whether an LV can be used though disks of its VG are missing: so few of its legs are on them that
/// the others have all of its data. A thin volume can when its pool can, all of it.
pub(crate) fn survives(state: &VgState, lv: &Lv) -> bool {
    match &lv.layout {
        LvLayout::Raid(layout @ ThickLayout::Raid { .. }) => {
            lost_legs(state, lv) <= layout.spare_legs()
        }
        LvLayout::ThinPool { .. } => {
            !lv.parts.is_empty() && lv.parts.iter().all(|part| survives(state, part))
        }
        LvLayout::Thin { pool, .. } => {
            state.lvs.get(pool).is_some_and(|pool| survives(state, pool))
        }
        LvLayout::Raid(_)
        | LvLayout::Linear
        | LvLayout::Striped { .. }
        | LvLayout::UnfinishedRaid(_)
        | LvLayout::Cow { .. }
        | LvLayout::Other(_) => false,
    }
}

/// Whether all data of an LV is on disks that are there.
pub(crate) fn is_whole(state: &VgState, lv: &Lv) -> bool {
    match &lv.layout {
        LvLayout::Raid(_) => survives(state, lv),
        LvLayout::ThinPool { .. } => lv.parts.iter().all(|part| is_whole(state, part)),
        LvLayout::Thin { pool, .. } => {
            state.lvs.get(pool).is_some_and(|pool| is_whole(state, pool))
        }
        LvLayout::Linear
        | LvLayout::Striped { .. }
        | LvLayout::UnfinishedRaid(_)
        | LvLayout::Cow { .. }
        | LvLayout::Other(_) => lv.areas.iter().all(|area| is_here(state, &area.pv)),
    }
}

/// The thick snapshots of an LV that are lost with a missing disk, and without which LVM does not
/// activate it: what they keep is on that disk.
pub(crate) fn lost_snapshots<'a>(state: &'a VgState, lv: &'a Lv) -> impl Iterator<Item = &'a Lv> {
    state.cow_snapshots(&lv.name).filter(|snapshot| is_lost_with_disk(state, snapshot))
}

/// Whether what a thick snapshot keeps is on a disk that is missing.
pub(crate) fn is_lost_with_disk(state: &VgState, lv: &Lv) -> bool {
    lv.cow_origin().is_some() && lv.areas.iter().any(|area| !is_here(state, &area.pv))
}

/// How many legs of a RAID LV are on disks that are missing.
pub(crate) fn lost_legs(state: &VgState, lv: &Lv) -> u32 {
    let LvLayout::Raid(layout) = &lv.layout else { return 0 };
    // A leg that lies on no disk is lost as well, and so is one that is not known.
    let here = |leg: &&Vec<LvmUuid>| !leg.is_empty() && leg.iter().all(|pv| is_here(state, pv));
    let found = u32::try_from(lv.legs.iter().filter(here).count()).unwrap_or_default();
    layout.legs().saturating_sub(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::layout::RaidLevel;
    use crate::plan::fixture::{add, lv_name, vg};
    use crate::units::Bytes;

    #[test]
    fn a_volume_survives_as_many_disks_as_its_layout_says() {
        for (level, legs, spare) in
            [(RaidLevel::Raid1, 3, 2), (RaidLevel::Raid5, 3, 1), (RaidLevel::Raid6, 5, 2)]
        {
            let mut state = vg(&[&[10], &[10], &[10], &[10], &[10], &[10]]);
            let layout = ThickLayout::Raid { level, legs, stripe_size: Bytes::ZERO };
            add(&mut state, "pvc-1", Bytes::gib(1), LvLayout::Raid(layout), &["cinderblock=1"]);
            let pv = |n: u32| LvmUuid::derived(&format!("pv{n}"));
            let lv = state.lvs.get_mut(&lv_name("pvc-1")).unwrap();
            lv.legs = (0..legs).map(|n| vec![pv(n)]).collect();
            let lv = lv.clone();
            for unknown in [vec![], vec![vec![]; lv.legs.len()]] {
                assert!(!survives(&state, &Lv { legs: unknown, ..lv.clone() }), "{level:?}");
            }
            let mut lose = |n| state.pvs.get_mut(&pv(n)).unwrap().device = None;
            // One that it has no leg on.
            lose(5);
            for n in 0..spare {
                lose(n);
            }
            assert!(survives(&state, &lv), "{level:?}");
            state.pvs.get_mut(&pv(spare)).unwrap().device = None;
            assert!(!survives(&state, &lv), "{level:?}");
        }
    }

    /// The spare of a pool does not count: it is for repairs.
    #[test]
    fn a_thin_volume_survives_with_all_of_its_pool() {
        let mut state = vg(&[&[10], &[10], &[10]]);
        let thin = crate::plan::fixture::thin(None);
        let pool = LvLayout::ThinPool { zero: true, chunk_size: Bytes::kib(64) };
        add(&mut state, "pool0", Bytes::gib(1), pool, &[]);
        add(&mut state, "pvc-1", Bytes::gib(1), thin, &["cinderblock=1"]);
        let pv = |n: u32| LvmUuid::derived(&format!("pv{n}"));
        let (level, stripe_size) = (RaidLevel::Raid1, Bytes::ZERO);
        let parts = &mut state.lvs.get_mut(&lv_name("pool0")).unwrap().parts;
        for (part, on) in parts.iter_mut().zip([[0, 1], [1, 2]]) {
            part.layout = LvLayout::Raid(ThickLayout::Raid { level, legs: 2, stripe_size });
            part.legs = on.map(|n| vec![pv(n)]).to_vec();
        }
        state.pvs.get_mut(&pv(0)).unwrap().device = None;
        let of = |state: &VgState, name| {
            let lv = &state.lvs[&lv_name(name)];
            (survives(state, lv), is_whole(state, lv))
        };
        assert_eq!((of(&state, "pool0"), of(&state, "pvc-1")), ((true, true), (true, true)));
        state.pvs.get_mut(&pv(2)).unwrap().device = None;
        assert_eq!(of(&state, "pvc-1"), (true, true));
        state.pvs.get_mut(&pv(1)).unwrap().device = None;
        assert_eq!(of(&state, "pvc-1"), (false, false));
        // Half of it on plain extents is not for LVM to make up.
        state.pvs.get_mut(&pv(1)).unwrap().device = Some("/dev/pv1".into());
        let parts = &mut state.lvs.get_mut(&lv_name("pool0")).unwrap().parts;
        (parts[1].layout, parts[1].legs) = (LvLayout::Linear, vec![]);
        assert_eq!(of(&state, "pvc-1"), (false, true));
    }

    #[test]
    fn what_is_not_raid_does_not() {
        let mut state = vg(&[&[10]]);
        add(&mut state, "pvc-1", Bytes::gib(1), LvLayout::Linear, &["cinderblock=1"]);
        assert!(!survives(&state, &state.lvs[&lv_name("pvc-1")]));
    }

    /// RAID first; the disk goes when nothing is on it, and not while somebody's LV is.
    #[test]
    fn legs_are_replaced_and_then_the_disk_is_forgotten() {
        let mut state = vg(&[&[10], &[10], &[10]]);
        assert_eq!(next(&state, &[]), Mend::Done);
        let pv = |n: u32| LvmUuid::derived(&format!("pv{n}"));
        let layout =
            ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
        let name = lv_name("pvc-1");
        add(&mut state, "pvc-1", Bytes::gib(1), LvLayout::Raid(layout), &["cinderblock=1"]);
        state.lvs.get_mut(&name).unwrap().legs = vec![vec![pv(0)], vec![pv(1)]];
        state.pvs.get_mut(&pv(0)).unwrap().device = None;
        let replace = Mend::ReplaceLegs(name.clone());
        assert_eq!(next(&state, &[]), replace);
        // LVM found no room for the new leg.
        assert_eq!(next(&state, std::slice::from_ref(&name)), Mend::Kept(vec![]));
        state.lvs.get_mut(&name).unwrap().legs = vec![vec![pv(2)], vec![pv(1)]];
        assert_eq!(next(&state, &[]), Mend::Forget);
        // What has no copies is lost with the disk, whoever it was.
        for (tags, other) in [(&["cinderblock=1"][..], "pvc-2"), (&[], "foreign")] {
            let mut state = state.clone();
            add(&mut state, other, Bytes::gib(1), LvLayout::Linear, tags);
            let area = crate::lvm::state::Area { pv: pv(0), start: 0, len: 1 };
            state.lvs.get_mut(&lv_name(other)).unwrap().areas = vec![area];
            assert_eq!(next(&state, &[]), Mend::Kept(vec![lv_name(other)]));
        }
        // Neither is RAID of somebody else ours to mend, nor what has lost more than it can.
        let mut foreign = state.clone();
        let lv = foreign.lvs.get_mut(&name).unwrap();
        (lv.legs, lv.tags) = (vec![vec![pv(0)], vec![pv(1)]], crate::lvm::tag::Tags::default());
        assert_eq!(next(&foreign, &[]), Mend::Kept(vec![name.clone()]));
        state.lvs.get_mut(&name).unwrap().legs = vec![vec![pv(0)], vec![pv(0)]];
        assert_eq!(next(&state, &[]), Mend::Kept(vec![name]));
    }
}
