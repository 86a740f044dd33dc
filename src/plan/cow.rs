//! Copy-on-write snapshots of thick volumes: how much room one needs, and growing it in time.

use super::{Plan, Rules};
use crate::domain::CowSize;
use crate::error::{Error, Result};
use crate::lvm::change::Change;
use crate::lvm::command::COW_CHUNK;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::names::LvName;
use crate::units::{Bytes, Extents};

/// What the kernel writes of each chunk that a snapshot keeps (dm-snap-persistent.c).
const EXCEPTION: u64 = 16;
/// A snapshot that does not have all the room that it can need grows at this part of it in use, in
/// percent: to twice the room it has, so that the last part is as large as all before it.
const GROW_AT_PERCENT: u64 = 60;
/// The least that one begins with, where that is not more than it can need: what is left of it when it
/// begins to grow has to last for a look and an `lvextend`, however fast the volume is written to.
const STORE_MIN: Bytes = Bytes::mib(512);

/// The most room that a snapshot of so much can need: every chunk, a list of them, and the header.
/// LVM gives no more (lvm2, `_cow_max_size`). When a piece of the list is full, the kernel clears the
/// next one at once, also where there is nothing left to write into it.
#[must_use]
pub fn largest_store(vg: &VgState, origin: Bytes) -> Extents {
    let chunk = COW_CHUNK.get();
    let chunks = origin.get().div_ceil(chunk);
    let full = chunks.saturating_mul(EXCEPTION).checked_div(chunk).unwrap_or_default();
    let lists = full.saturating_add(1);
    let all = chunks.saturating_add(lists).saturating_add(1);
    vg.extent_size.extents_ceil(Bytes::new(all.saturating_mul(chunk)))
}

/// The room that a snapshot gets at first.
#[must_use]
pub fn store(vg: &VgState, origin: Bytes, size: CowSize) -> Extents {
    let all = largest_store(vg, origin);
    let part = all.get().saturating_mul(u64::from(size.get())).div_ceil(100);
    Extents::new(part).max(vg.extent_size.extents_ceil(STORE_MIN)).min(all)
}

/// Whether a volume can have thick snapshots.
///
/// # Errors
/// When it cannot, and why.
pub fn may_have_snapshots(origin: &Lv) -> Result<()> {
    match origin.thick() {
        Some(_) => Ok(()),
        None => Err(Error::failed_precondition(format!(
            "volume {} has a layout of which this driver takes no snapshots: {:?}",
            origin.name, origin.layout
        ))),
    }
}

/// How large a snapshot's room should be, when so much of it is in use (in bytes). `None`: as it is.
#[must_use]
pub fn wanted_store(vg: &VgState, lv: &Lv, used: Bytes) -> Option<Extents> {
    let LvLayout::Cow { store, .. } = lv.layout else { return None };
    if used.get().saturating_mul(100) < store.get().saturating_mul(GROW_AT_PERCENT) {
        return None;
    }
    let have = vg.extent_size.extents_ceil(store);
    let wanted = Extents::new(have.get().saturating_mul(2)).min(largest_store(vg, lv.size));
    (wanted > have).then_some(wanted)
}

/// What is left to do until a snapshot has so much room, or as much as the VG can give.
///
/// # Errors
/// [`crate::error::ErrorKind::NoSpace`] when the VG can give none.
pub fn grow(vg: &VgState, rules: &Rules, lv: &LvName, wanted: Extents) -> Result<Plan> {
    let Some(found) = vg.lvs.get(lv).filter(|lv| lv.tags.is_ours()) else { return Ok(Plan::Done) };
    let LvLayout::Cow { store, .. } = found.layout else { return Ok(Plan::Done) };
    let have = vg.extent_size.extents_ceil(store);
    if have >= wanted {
        return Ok(Plan::Done);
    }
    let room = vg.free_extents().saturating_sub(vg.extent_size.extents_ceil(rules.reserve));
    let extents = wanted.min(have.saturating_add(room));
    if extents <= have {
        return Err(Error::no_space(format!(
            "volume group {} has no room for it to grow beyond the reserve of {}: add a disk, or delete volumes or snapshots",
            vg.name, rules.reserve
        )));
    }
    Ok(Plan::Steps(vec![Change::Extend { lv: lv.clone(), extents, from: vec![] }]))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, vg};
    use super::*;

    fn percent(n: u8) -> CowSize {
        CowSize::percent(n).unwrap()
    }

    #[test]
    fn room_for_all_that_can_be_overwritten() {
        let vg = vg(&[&[1000]]);
        // As LVM itself counts it: 200 MiB, a list of 50 KiB and a header, in extents of 4 MiB.
        assert_eq!(largest_store(&vg, Bytes::mib(200)), Extents::new(51));
        assert_eq!(store(&vg, Bytes::gib(1), CowSize::FULL), Extents::new(257));
        // 63 pieces of the list are just full; the one that is cleared then would not fit into 4033.
        assert_eq!(store(&vg, Bytes::mib(16_128), CowSize::FULL), Extents::new(4034));
        assert_eq!(store(&vg, Bytes::gib(1), percent(75)), Extents::new(193));
        assert_eq!(store(&vg, Bytes::gib(1), percent(1)), Extents::new(128));
        assert_eq!(store(&vg, Bytes::mib(8), percent(1)), Extents::new(3));
        assert_eq!((CowSize::percent(0), CowSize::percent(101)), (None, None));
    }

    #[test]
    fn one_with_less_grows_in_time_and_no_further_than_it_can_need() {
        let mut vg = vg(&[&[60]]);
        let cow = |store| LvLayout::Cow {
            origin: lv_name("pvc-1"),
            chunk_size: COW_CHUNK,
            store: Bytes::mib(store),
        };
        add(&mut vg, "snap-1", Bytes::mib(200), cow(16), &["cinderblock=1", "cb.snapshot"]);
        let lv = vg.lvs[&lv_name("snap-1")].clone();
        assert_eq!(wanted_store(&vg, &lv, Bytes::mib(9)), None);
        assert_eq!(wanted_store(&vg, &lv, Bytes::mib(10)), Some(Extents::new(8)));
        let name = lv_name("snap-1");
        let to = |plan| match plan {
            Ok(Plan::Steps(steps)) => match &steps[..] {
                [Change::Extend { extents, .. }] => extents.get(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        let rules = Rules::default();
        assert_eq!(to(grow(&vg, &rules, &name, Extents::new(8))), 8);
        assert_eq!(to(grow(&vg, &rules, &name, Extents::new(100))), 64, "all that is free");
        let all = Rules { reserve: Bytes::gib(1), ..Rules::default() };
        let error = grow(&vg, &all, &name, Extents::new(8)).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::NoSpace);
        vg.lvs.get_mut(&name).unwrap().layout = cow(160);
        let lv = vg.lvs[&name].clone();
        assert_eq!(wanted_store(&vg, &lv, Bytes::mib(150)), Some(Extents::new(51)));
        vg.lvs.get_mut(&name).unwrap().layout = cow(204);
        assert_eq!(wanted_store(&vg, &vg.lvs[&name], Bytes::mib(204)), None);
        assert_eq!(grow(&vg, &rules, &name, Extents::new(51)).unwrap(), Plan::Done);
    }
}
