//! Making a volume larger. Never smaller.

use super::create::{check_pool, check_room, places};
use super::{Plan, Rules, place};
use crate::domain::CapacityRange;
use crate::error::{Error, ErrorKind, Result};
use crate::lvm::change::{Change, Range};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Kind, Pending, Tags, Usage};
use crate::names::{LvName, LvmUuid};
use crate::units::{Bytes, Extents};

/// What is left to do until the volume has the size.
///
/// # Errors
/// When it cannot have it. Lack of room is [`ErrorKind::OutOfRange`]: the request can be lowered.
pub fn plan(vg: &VgState, rules: &Rules, lv: &Lv, range: &CapacityRange) -> Result<Plan> {
    let layout = lv.thick();
    if layout.is_none() && lv.pool().is_none() {
        return Err(Error::failed_precondition(format!(
            "volume {} has a layout that this driver does not make: {:?}",
            lv.name, lv.layout
        )));
    }
    let extents = wanted(vg, lv, layout.as_ref(), range)?;
    let have = vg.extent_size.extents_ceil(lv.size);
    if extents <= have {
        return Ok(leftover(vg, lv).map_or(Plan::Done, |growth| Plan::Rest(vec![growth])));
    }
    let more = extents.saturating_sub(have);
    without_snapshots(vg, lv)?;
    let plan = match layout {
        None => thin(vg, rules, lv, extents, more),
        Some(layout) if shows_old_data(lv) => zeroed_first(vg, rules, lv, &layout, extents, more),
        Some(layout) => room(vg, rules, lv, &layout, more)
            .map(|from| Plan::Steps(vec![extend(lv, extents, from)])),
    };
    plan.map_err(|e| {
        if e.kind() == ErrorKind::NoSpace { e.with_kind(ErrorKind::OutOfRange) } else { e }
    })
}

fn wanted(
    vg: &VgState,
    lv: &Lv,
    layout: Option<&ThickLayout>,
    range: &CapacityRange,
) -> Result<Extents> {
    let unit = layout.map_or(1, |layout| u64::from(layout.data_legs()));
    let required = range.required.unwrap_or(Bytes::ZERO).saturating_add(lv.header());
    let required = vg.extent_size.extents_ceil(required);
    let extents = required.ceil_to_multiple_of(unit).max(vg.extent_size.extents_ceil(lv.size));
    let size = vg.extent_size.size_of(extents).saturating_sub(lv.header());
    match range.limit {
        Some(limit) if size > limit => Err(Error::out_of_range(format!(
            "volume {} would have {size}, more than the limit of {limit}; volumes are never made smaller",
            lv.name
        ))),
        _ if size > Bytes::MAX => {
            Err(Error::out_of_range(format!("a size of {size} is too large")))
        }
        _ => Ok(extents),
    }
}

/// LVM grows a thick volume that has thick snapshots only while it is not active.
fn without_snapshots(vg: &VgState, lv: &Lv) -> Result<()> {
    let names: Vec<_> = vg.cow_snapshots(&lv.name).map(|lv| lv.name.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let images = vg.cow_snapshots(&lv.name).all(|lv| lv.tags.kind == Some(Kind::Image));
    if images {
        return Err(Error::unavailable(format!(
            "volume {} is being copied ({}), and grows when that is done",
            lv.name,
            names.join(", ")
        )));
    }
    Err(Error::failed_precondition(format!(
        "volume {} cannot grow while it has thick snapshots, because LVM cannot grow one that is in use: delete {} first",
        lv.name,
        names.join(", ")
    )))
}

fn extend(lv: &Lv, extents: Extents, from: Vec<Range>) -> Change {
    Change::Extend { lv: lv.name.clone(), extents, from }
}

fn thin(vg: &VgState, rules: &Rules, lv: &Lv, extents: Extents, more: Extents) -> Result<Plan> {
    let pool = super::pool::of(vg, rules, lv)?;
    check_pool(vg, pool, vg.extent_size.size_of(more))?;
    Ok(Plan::Steps(vec![extend(lv, extents, vec![])]))
}

/// Whether whoever has the volume would see what its new extents held before. A filesystem never
/// shows what it has not written, a fresh volume is zeroed as a whole before its first use, and what
/// others wrote is noise under an encrypted volume's key.
fn shows_old_data(lv: &Lv) -> bool {
    !lv.tags.luks
        && !matches!(lv.tags.usage, Some(Usage::Filesystem(_)))
        && lv.tags.pending != Some(Pending::Fresh)
}

/// Where a thick LV gets more extents from. Empty: wherever LVM finds them.
fn room(
    vg: &VgState,
    rules: &Rules,
    lv: &Lv,
    layout: &ThickLayout,
    more: Extents,
) -> Result<Vec<Range>> {
    if !layout.is_raid() {
        check_room(vg, rules, layout, more)?;
        return places(vg, layout, more);
    }
    let raw = layout.leg_extents(more).get().saturating_mul(u64::from(layout.legs()));
    check_room(vg, rules, &ThickLayout::Linear, Extents::new(raw))?;
    place::growth(vg, lv, layout, more).ok_or_else(|| {
        Error::no_space(format!(
            "volume {} cannot grow by {}: each of its legs grows on the disks it has, and these have room for {}",
            lv.name,
            vg.extent_size.size_of(more),
            vg.extent_size.size_of(place::growth_room(vg, lv, layout))
        ))
    })
}

/// The extents go into an LV of their own first, are zeroed there where nobody sees them, and then
/// become the volume's. Cut anywhere, this begins again with whatever is there.
fn zeroed_first(
    vg: &VgState,
    rules: &Rules,
    lv: &Lv,
    layout: &ThickLayout,
    extents: Extents,
    more: Extents,
) -> Result<Plan> {
    let name = lv.name.growth();
    // Where each leg of RAID grows is chosen first; to zero those extents, they lie in a row.
    let raw = layout.leg_extents(more).get().saturating_mul(u64::from(layout.legs()));
    let raw = if layout.is_raid() { Extents::new(raw) } else { more };
    let Some(growth) = vg.lvs.get(&name) else {
        let on = room(vg, rules, lv, layout, more)?;
        let tags = Tags {
            owned: Some(1),
            kind: Some(Kind::Growth),
            pending: Some(Pending::Fresh),
            ..Tags::default()
        };
        let layout = if layout.is_raid() { ThickLayout::Linear } else { *layout };
        let create = Change::CreateThick { lv: name, extents: raw, layout, on, tags: tags.print() };
        return Ok(Plan::Steps(vec![create]));
    };
    let Some(remove) = leftover(vg, lv) else {
        return Err(Error::failed_precondition(format!(
            "logical volume {}/{name} is in the way and not ours: rename or remove it",
            vg.name
        )));
    };
    if vg.extent_size.extents_ceil(growth.size) != raw {
        return Ok(Plan::Rest(vec![remove]));
    }
    if growth.tags.pending == Some(Pending::Fresh) {
        return Ok(Plan::Zero(name));
    }
    let mut from = Vec::new();
    for area in &growth.areas {
        let pv = vg.pvs.get(&area.pv);
        let device = pv.and_then(|pv| pv.device.clone()).ok_or_else(|| {
            Error::unavailable(format!(
                "volume group {}: physical volume {} is missing",
                vg.name, area.pv
            ))
        })?;
        from.push(Range { device, start: area.start, len: area.len });
    }
    Ok(Plan::Rest(vec![remove, extend(lv, extents, from)]))
}

/// Removes what an expansion that was given up has left.
pub(super) fn leftover(vg: &VgState, lv: &Lv) -> Option<Change> {
    let growth = vg.lvs.get(&lv.name.growth()).filter(|growth| growth.is_growth())?;
    Some(Change::Remove { lv: growth.name.clone(), uuid: growth.uuid.clone() })
}

/// What makes the extents go that a volume of this name, which may be gone, did not get.
#[must_use]
pub fn give_up(vg: &VgState, volume: &LvName, uuid: &LvmUuid) -> Plan {
    let is = |growth: &&Lv| growth.is_growth() && growth.uuid == *uuid;
    match vg.lvs.get(&volume.growth()).filter(is) {
        Some(growth) => {
            let (lv, uuid) = (growth.name.clone(), growth.uuid.clone());
            Plan::Steps(vec![Change::Remove { lv, uuid }])
        }
        None => Plan::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, thin, vg, with_pool};
    use super::*;
    use crate::lvm::state::{Area, LvLayout};

    fn to(size: Bytes) -> CapacityRange {
        CapacityRange { required: Some(size), limit: None }
    }

    fn go(vg: &VgState, rules: &Rules, range: CapacityRange) -> Result<Plan> {
        plan(vg, rules, &vg.lvs[&lv_name("pvc-1")], &range)
    }

    #[test]
    fn a_filesystem_grows_in_one_step_and_never_shrinks() {
        let mut vg = vg(&[&[1000]]);
        add(&mut vg, "pvc-1", Bytes::gib(1), LvLayout::Linear, &["cinderblock=1", "cb.use=ext4"]);
        let rules = Rules::default();
        let extents = Extents::new(512);
        let step = Change::Extend { lv: lv_name("pvc-1"), extents, from: vec![] };
        assert_eq!(go(&vg, &rules, to(Bytes::gib(2))).unwrap(), Plan::Steps(vec![step]));
        for done in [Bytes::gib(1), Bytes::mib(10), Bytes::ZERO] {
            assert_eq!(go(&vg, &rules, to(done)).unwrap(), Plan::Done);
        }
        let odd = CapacityRange { required: Some(Bytes::gib(1)), limit: Some(Bytes::mib(1023)) };
        assert_eq!(go(&vg, &rules, odd).unwrap_err().kind(), ErrorKind::OutOfRange);
        // No room can be asked for less; it is not "try again".
        assert_eq!(go(&vg, &rules, to(Bytes::gib(9))).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(
            go(&vg, &rules, to(Bytes::new(u64::MAX))).unwrap_err().kind(),
            ErrorKind::OutOfRange
        );
    }

    #[test]
    fn thin_growth_counts_against_the_pool() {
        let (mut vg, rules) = with_pool();
        add(&mut vg, "pvc-1", Bytes::gib(15), thin(None), &["cinderblock=1", "cb.use=block"]);
        assert!(
            matches!(go(&vg, &rules, to(Bytes::gib(20))).unwrap(), Plan::Steps(s) if s.len() == 1)
        );
        assert_eq!(go(&vg, &rules, to(Bytes::gib(21))).unwrap_err().kind(), ErrorKind::OutOfRange);
        let error = go(&vg, &Rules::default(), to(Bytes::gib(16))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    }

    /// Whoever has a raw thick volume never sees what its new extents held before.
    #[test]
    fn a_thick_block_volume_gets_zeroed_extents() {
        let mut vg = vg(&[&[1000]]);
        let rules = Rules::default();
        add(&mut vg, "pvc-1", Bytes::gib(1), LvLayout::Linear, &["cinderblock=1", "cb.use=block"]);
        let range = to(Bytes::gib(2));
        let Plan::Steps(steps) = go(&vg, &rules, range).unwrap() else { panic!() };
        let [Change::CreateThick { lv, extents, tags, .. }] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!((lv.as_str(), extents.get()), ("pvc-1.growth", 256));
        assert_eq!(tags, &["cinderblock=1", "cb.growth", "cb.fresh"]);

        let tags = ["cinderblock=1", "cb.growth", "cb.fresh"];
        add(&mut vg, "pvc-1.growth", Bytes::gib(1), LvLayout::Linear, &tags);
        assert_eq!(go(&vg, &rules, range).unwrap(), Plan::Zero(lv_name("pvc-1.growth")));

        add(&mut vg, "pvc-1.growth", Bytes::gib(1), LvLayout::Linear, &tags[..2]);
        let pv = LvmUuid::derived("pv0");
        vg.lvs.get_mut(&lv_name("pvc-1.growth")).unwrap().areas =
            vec![Area { pv, start: 7, len: 256 }];
        let Plan::Rest(steps) = go(&vg, &rules, range).unwrap() else { panic!() };
        let [Change::Remove { .. }, Change::Extend { from, extents, .. }] = &steps[..] else {
            panic!("{steps:?}")
        };
        assert_eq!(from, &[Range { device: "/dev/pv0".into(), start: 7, len: 256 }]);
        assert_eq!(extents.get(), 512);

        // Another size was asked for meanwhile, or none.
        for other in [Bytes::gib(3), Bytes::gib(1)] {
            let Plan::Rest(steps) = go(&vg, &rules, to(other)).unwrap() else { panic!() };
            assert!(matches!(&steps[..], [Change::Remove { .. }]), "{steps:?}");
        }
        add(&mut vg, "pvc-1.growth", Bytes::gib(1), LvLayout::Linear, &["mine"]);
        assert_eq!(go(&vg, &rules, range).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    }

    #[test]
    fn a_fresh_block_volume_is_zeroed_later_as_a_whole() {
        let mut vg = vg(&[&[1000]]);
        let tags = ["cinderblock=1", "cb.use=block", "cb.fresh"];
        add(&mut vg, "pvc-1", Bytes::gib(1), LvLayout::Linear, &tags);
        let plan = go(&vg, &Rules::default(), to(Bytes::gib(2))).unwrap();
        assert!(matches!(plan, Plan::Steps(s) if matches!(s[..], [Change::Extend { .. }])));
    }

    #[test]
    fn what_was_left_goes_only_while_it_is_what_was_seen() {
        let mut vg = vg(&[&[1000]]);
        let (name, tags) = (lv_name("pvc-1"), ["cinderblock=1", "cb.growth", "cb.fresh"]);
        add(&mut vg, "pvc-1.growth", Bytes::gib(1), LvLayout::Linear, &tags);
        let uuid = vg.lvs[&name.growth()].uuid.clone();
        let remove = Change::Remove { lv: name.growth(), uuid: uuid.clone() };
        assert_eq!(give_up(&vg, &name, &uuid), Plan::Steps(vec![remove]));
        assert_eq!(give_up(&vg, &name, &LvmUuid::derived("another")), Plan::Done);
        assert_eq!(give_up(&vg, &lv_name("pvc-2"), &uuid), Plan::Done);
        for others in [&["mine"][..], &["cb.growth"], &["cinderblock=2", "cb.growth"], &tags[..1]] {
            add(&mut vg, "pvc-1.growth", Bytes::gib(1), LvLayout::Linear, others);
            assert_eq!(give_up(&vg, &name, &uuid), Plan::Done, "{others:?}");
        }
    }
}
