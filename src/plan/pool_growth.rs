//! Growing a thin pool before it runs full, and what has to be known of one that cannot.

use super::capacity::POOL_DATA_GUARD_BP;
use super::{Plan, Rules, place};
use crate::config::Share;
use crate::domain::PoolCapacity;
use crate::error::{Error, Result};
use crate::lvm::change::{Change, Range};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, VgState};
use crate::units::{Bytes, Extents};

/// Metadata grows so long before its guard at the latest (hundredths of a percent).
const METADATA_BEFORE_GUARD_BP: u64 = 500;
/// Metadata grows by half, and by no less than this: it is small, and each growth is an LVM
/// process.
const METADATA_STEP_MIN: Bytes = Bytes::mib(16);
/// The most that the kernel can use, as LVM counts it.
const METADATA_MAX: Bytes = Bytes::mib(16_192);

/// What somebody has to know of a pool; the worst counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Nothing.
    #[default]
    Good,
    /// When it is full, it will hold writes back instead of failing them.
    Queues,
    /// It should grow, and cannot.
    Stuck,
    /// It takes nothing new.
    Guarded,
    /// It takes no writes.
    NoWrites,
}

/// What is left to do until a pool is large enough for what is in it.
///
/// # Errors
/// [`crate::error::ErrorKind::NoSpace`] when the VG has no room for that.
pub fn plan(vg: &VgState, rules: &Rules) -> Result<Plan> {
    let Some(pool) = &rules.pool else { return Ok(Plan::Done) };
    let (Some(growth), Some(lv)) = (&pool.growth, vg.lvs.get(&pool.lv)) else {
        return Ok(Plan::Done);
    };
    let at = growth.rule.at_percent.saturating_mul(100);
    let extent = vg.extent_size;
    let mut stuck = None;
    let metadata_at = pool.metadata_guard_bp.saturating_sub(METADATA_BEFORE_GUARD_BP);
    if pool.metadata_used_bp >= at.min(metadata_at) && growth.metadata < METADATA_MAX {
        let step = growth.metadata.percent_floor(50).max(METADATA_STEP_MIN);
        let step = step.min(METADATA_MAX.saturating_sub(growth.metadata));
        match metadata_step(vg, rules, lv, extent.extents_ceil(step))? {
            Some((step, from)) => {
                let size = growth.metadata.saturating_add(extent.size_of(step));
                let lv = lv.name.clone();
                return Ok(Plan::Steps(vec![Change::ExtendMetadata { lv, size, from }]));
            }
            None if is_plain(lv.parts.get(1)) => {
                return Err(no_room(vg, rules, "metadata", pool.metadata_used_bp));
            }
            // The disks that its data is on may have room all the same.
            None => stuck = Some(no_room(vg, rules, "metadata", pool.metadata_used_bp)),
        }
    }
    let have = extent.extents_ceil(lv.size);
    let needed = if pool.data_used_bp >= POOL_DATA_GUARD_BP {
        // Whatever is promised: it could take nothing new.
        Extents::new(u64::MAX)
    } else {
        // What is in a pool cannot need more than all its volumes and snapshots together have.
        extent.extents_ceil(vg.thin_virtual_size(&pool.lv)).saturating_sub(have)
    };
    if pool.data_used_bp < at || needed == Extents::ZERO {
        return stuck.map_or(Ok(Plan::Done), Err);
    }
    let step = match growth.rule.by {
        Share::Percent(percent) => lv.size.percent_floor(percent),
        Share::Size(size) => size,
    };
    let step = extent.extents_ceil(step).max(Extents::new(1)).min(needed);
    let Some((step, from)) = grow_part(vg, rules, lv, lv.parts.first(), step)? else {
        return Err(no_room(vg, rules, "data", pool.data_used_bp));
    };
    let extents = have.saturating_add(step);
    Ok(Plan::Steps(vec![Change::Extend { lv: lv.name.clone(), extents, from }]))
}

/// How much the metadata grows now, at most so much, and where.
fn metadata_step(
    vg: &VgState,
    rules: &Rules,
    pool: &Lv,
    step: Extents,
) -> Result<Option<(Extents, Vec<Range>)>> {
    let part = pool.parts.get(1);
    if is_plain(part) {
        // The spare grows with it.
        let half = Extents::new(free(vg, rules).get() / 2);
        return Ok(Some((step.min(half), vec![])).filter(|(step, _)| *step > Extents::ZERO));
    }
    grow_part(vg, rules, pool, part, step)
}

fn is_plain(part: Option<&Lv>) -> bool {
    part.is_some_and(|part| part.thick() == Some(ThickLayout::Linear))
}

fn free(vg: &VgState, rules: &Rules) -> Extents {
    vg.free_extents().saturating_sub(vg.extent_size.extents_ceil(rules.reserve))
}

/// How much a part of a pool grows now, at most so much, and on which extents: stripes and legs are
/// placed by us, as those of volumes are. `None` when there is no room.
///
/// # Errors
/// When a disk is missing, or it has a layout that we cannot place.
fn grow_part(
    vg: &VgState,
    rules: &Rules,
    pool: &Lv,
    part: Option<&Lv>,
    step: Extents,
) -> Result<Option<(Extents, Vec<Range>)>> {
    let Some((part, layout)) = part.and_then(|part| Some((part, part.thick()?))) else {
        return Err(Error::failed_precondition(format!(
            "what pool {}/{} lies on is being changed, or is of a kind that this driver does not grow: look at lvs -a {}, and extend it by hand",
            vg.name, pool.name, vg.name
        )));
    };
    if vg.is_partial() {
        return Err(Error::unavailable(format!(
            "volume group {} misses a disk, and LVM changes nothing in it until the disk is back or replaced",
            vg.name
        )));
    }
    let unit = u64::from(layout.data_legs()).max(1);
    let whole = |extents: Extents| {
        Extents::new(extents.get().saturating_sub(extents.get().checked_rem(unit).unwrap_or(0)))
    };
    let of_all = free(vg, rules).get().checked_div(u64::from(layout.legs())).unwrap_or_default();
    let of_all = Extents::new(of_all.saturating_mul(unit));
    let room = match layout {
        ThickLayout::Linear => of_all,
        ThickLayout::Raid { .. } => of_all.min(place::growth_room(vg, part, &layout)),
        ThickLayout::Striped { .. } => {
            let capacity = super::capacity::of(vg, &Rules { pool: None, ..rules.clone() });
            let thick = Some(crate::domain::Provisioning::Thick);
            vg.extent_size.extents_floor(capacity.offer(thick, &layout, Bytes::ZERO).largest)
        }
    };
    let step = step.ceil_to_multiple_of(unit).min(whole(room));
    if step == Extents::ZERO {
        return Ok(None);
    }
    let from = match layout {
        ThickLayout::Linear => Some(vec![]),
        ThickLayout::Striped { .. } => place::new_legs(vg, &layout, step),
        ThickLayout::Raid { .. } => place::growth(vg, part, &layout, step),
    };
    Ok(from.map(|from| (step, from)))
}

fn no_room(vg: &VgState, rules: &Rules, what: &str, used_bp: u64) -> Error {
    Error::no_space(format!(
        "its {what} is {}.{:02}% full, and volume group {} has no room for it to grow beyond the reserve of {}: add a disk, or delete volumes or snapshots",
        used_bp / 100,
        used_bp % 100,
        vg.name,
        rules.reserve
    ))
}

impl PoolCapacity {
    /// What somebody has to know of it.
    #[must_use]
    pub fn condition(&self) -> Condition {
        if !self.healthy {
            Condition::NoWrites
        } else if self.trouble().is_some() {
            Condition::Guarded
        } else if self.stuck {
            Condition::Stuck
        } else if self.queues {
            Condition::Queues
        } else {
            Condition::Good
        }
    }

    /// Whether the kernel has given it up: then how full it is cannot be told.
    #[must_use]
    pub const fn failed(&self) -> bool {
        !self.healthy && self.data_used_bp == 0 && self.metadata_used_bp == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, thin, with_pool};
    use super::super::{Growth, PoolRules};
    use super::*;
    use crate::config::Autogrow;
    use crate::error::ErrorKind;
    use crate::lvm::layout::RaidLevel;
    use crate::lvm::state::LvLayout;
    use crate::names::LvmUuid;

    /// A pool of 10 GiB with 20 GiB promised and 200 extents of 4 MiB free.
    fn pool(change: impl FnOnce(&mut PoolRules)) -> (VgState, Rules) {
        let (mut vg, mut rules) = with_pool();
        add(&mut vg, "pvc-1", Bytes::gib(20), thin(None), &[]);
        let pool = rules.pool.as_mut().unwrap();
        let rule = Autogrow { at_percent: 80, by: Share::Size(Bytes::mib(400)) };
        pool.growth = Some(Growth { rule, metadata: Bytes::mib(16) });
        change(pool);
        (vg, rules)
    }

    fn step((vg, rules): &(VgState, Rules)) -> Change {
        match plan(vg, rules).unwrap() {
            Plan::Steps(mut steps) if steps.len() == 1 => steps.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn data(extents: u64) -> Change {
        Change::Extend { lv: lv_name("pool0"), extents: Extents::new(extents), from: vec![] }
    }

    #[test]
    fn data_grows_from_its_threshold_on() {
        let (vg, rules) = pool(|p| p.data_used_bp = 7_990);
        assert_eq!(plan(&vg, &rules).unwrap(), Plan::Done);
        assert_eq!(step(&pool(|p| p.data_used_bp = 8_000)), data(2_560 + 100));
        // A share is of the pool; what is free is less, and all of it is taken.
        let share = |percent| {
            pool(|p| {
                p.data_used_bp = 8_000;
                p.growth.as_mut().unwrap().rule.by = Share::Percent(percent);
            })
        };
        assert_eq!(step(&share(5)), data(2_560 + 128));
        assert_eq!(step(&share(20)), data(2_560 + 200));
        let mut kept = share(20);
        kept.1.reserve = Bytes::mib(400);
        assert_eq!(step(&kept), data(2_560 + 100));
        kept.1.reserve = Bytes::mib(800);
        let error = plan(&kept.0, &kept.1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("its data is 80.00% full"), "{error}");
    }

    #[test]
    fn no_larger_than_what_is_promised_unless_it_takes_nothing_new() {
        let mut full = pool(|p| p.data_used_bp = 9_490);
        add(&mut full.0, "pvc-1", Bytes::gib(10), thin(None), &[]);
        assert_eq!(plan(&full.0, &full.1).unwrap(), Plan::Done);
        add(&mut full.0, "snap-1", Bytes::mib(8), thin(Some("pvc-1")), &[]);
        assert_eq!(step(&full), data(2_562));
        full.1.pool.as_mut().unwrap().data_used_bp = 9_500;
        assert_eq!(step(&full), data(2_660));
    }

    #[test]
    fn metadata_first_with_room_for_its_spare() {
        let metadata = |mib| {
            let (lv, from) = (lv_name("pool0"), vec![]);
            Change::ExtendMetadata { lv, size: Bytes::mib(mib), from }
        };
        let full = |p: &mut PoolRules| (p.data_used_bp, p.metadata_used_bp) = (9_000, 8_000);
        assert_eq!(step(&pool(full)), metadata(32));
        let larger = pool(|p| {
            full(p);
            p.growth.as_mut().unwrap().metadata = Bytes::mib(400);
            p.growth.as_mut().unwrap().rule.at_percent = 90;
        });
        assert_eq!(step(&larger), metadata(600));
        let mut tight = pool(full);
        tight.1.reserve = Bytes::mib(800 - 12);
        assert_eq!(step(&tight), metadata(20));
        tight.1.reserve = Bytes::mib(800 - 4);
        let error = plan(&tight.0, &tight.1).unwrap_err();
        assert!(error.to_string().contains("its metadata is 80.00% full"), "{error}");
        // The kernel takes no more: only data is left to grow.
        let most = pool(|p| {
            full(p);
            p.growth.as_mut().unwrap().metadata = METADATA_MAX;
        });
        assert_eq!(step(&most), data(2_660));
    }

    #[test]
    fn little_metadata_grows_before_lvm_makes_nothing_new() {
        let little = |bp| pool(|p| (p.metadata_guard_bp, p.metadata_used_bp) = (7_500, bp));
        let (vg, rules) = little(6_990);
        assert_eq!(plan(&vg, &rules).unwrap(), Plan::Done);
        let (lv, from) = (lv_name("pool0"), vec![]);
        let grown = Change::ExtendMetadata { lv, size: Bytes::mib(32), from };
        assert_eq!(step(&little(7_000)), grown);
    }

    #[test]
    fn legs_grow_where_they_are_and_what_cannot_be_placed_not_at_all() {
        let raid1 = |p: &mut PoolRules| p.data_used_bp = 8_500;
        let (mut vg, mut rules) = pool(raid1);
        let (level, stripe_size) = (RaidLevel::Raid1, Bytes::ZERO);
        let mirror = ThickLayout::Raid { level, legs: 2, stripe_size };
        let lv = vg.lvs.get_mut(&lv_name("pool0")).unwrap();
        for part in &mut lv.parts {
            part.layout = LvLayout::Raid(mirror);
            part.legs = ["pv0", "pv1"].map(|pv| vec![LvmUuid::derived(pv)]).to_vec();
        }
        let from = |change: &Change| match change {
            Change::Extend { extents, from, .. } => (extents.get(), from.len()),
            Change::ExtendMetadata { size, from, .. } => (size.get() >> 20, from.len()),
            other => panic!("{other:?}"),
        };
        let at = (vg, rules.clone());
        assert_eq!(from(&step(&at)), (2_560 + 100, 2));
        let mut vg = at.0;
        // Its copies count: 150 of 200 are kept, so each leg gets half of the rest.
        rules.reserve = Bytes::mib(600);
        assert_eq!(from(&step(&(vg.clone(), rules.clone()))), (2_560 + 25, 2));
        rules.reserve = Bytes::ZERO;
        rules.pool.as_mut().unwrap().metadata_used_bp = 8_000;
        assert_eq!(from(&step(&(vg.clone(), rules.clone()))), (32, 2));
        // The metadata has no room where it is; the data has.
        let lv = vg.lvs.get_mut(&lv_name("pool0")).unwrap();
        lv.parts[1].legs[0] = vec![LvmUuid::derived("elsewhere")];
        assert_eq!(from(&step(&(vg.clone(), rules.clone()))), (2_560 + 100, 2));
        rules.pool.as_mut().unwrap().data_used_bp = 5_000;
        let error = plan(&vg, &rules).unwrap_err();
        assert!(error.to_string().contains("its metadata is 80.00% full"), "{error}");
        let mut partial = vg.clone();
        partial.pvs.get_mut(&LvmUuid::derived("pv0")).unwrap().device = None;
        rules.pool.as_mut().unwrap().data_used_bp = 9_000;
        let error = plan(&partial, &rules).unwrap_err();
        assert!(error.to_string().contains("misses a disk"), "{error}");
        // LVM would choose by itself.
        rules.pool.as_mut().unwrap().data_used_bp = 9_000;
        for odd in
            [LvLayout::UnfinishedRaid("raid1".to_owned()), LvLayout::Other("raid4".to_owned())]
        {
            let lv = vg.lvs.get_mut(&lv_name("pool0")).unwrap();
            lv.parts.iter_mut().for_each(|part| part.layout = odd.clone());
            let error = plan(&vg, &rules).unwrap_err();
            assert!(error.to_string().contains("extend it by hand"), "{error}");
        }
        let lv = vg.lvs.get_mut(&lv_name("pool0")).unwrap();
        let stripes = LvLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) };
        lv.parts[0].layout = stripes;
        lv.parts[1].layout = LvLayout::Linear;
        rules.pool.as_mut().unwrap().metadata_used_bp = 0;
        assert_eq!(from(&step(&(vg, rules))), (2_560 + 100, 2));
    }

    #[test]
    fn a_pool_that_is_not_to_grow_is_left_alone() {
        let (vg, rules) = pool(|p| (p.data_used_bp, p.growth) = (9_900, None));
        assert_eq!(plan(&vg, &rules).unwrap(), Plan::Done);
    }

    #[test]
    fn the_worst_is_told() {
        let told = |change: fn(&mut PoolRules)| {
            let (vg, rules) = pool(change);
            let capacity = rules.pool.unwrap().capacity(&vg).unwrap();
            (capacity.condition(), capacity.trouble().unwrap_or_default())
        };
        assert_eq!(told(|_| {}).0, Condition::Good);
        assert_eq!(told(|p| p.queues = true).0, Condition::Queues);
        assert_eq!(told(|p| (p.queues, p.stuck) = (true, true)).0, Condition::Stuck);
        let (condition, trouble) = told(|p| (p.stuck, p.data_used_bp) = (true, 9_550));
        assert_eq!(condition, Condition::Guarded);
        assert!(trouble.contains("95.50% full: it cannot grow: add a disk"), "{trouble}");
        let (condition, trouble) = told(|p| (p.healthy, p.data_used_bp) = (false, 10_000));
        assert_eq!(condition, Condition::NoWrites);
        assert!(trouble.contains("100.00% full: extend it"), "{trouble}");
        let (condition, trouble) = told(|p| {
            (p.healthy, p.data_used_bp, p.metadata_used_bp) = (false, 0, 0);
        });
        assert_eq!(condition, Condition::NoWrites);
        assert!(trouble.contains("takes no writes"), "{trouble}");
    }
}
