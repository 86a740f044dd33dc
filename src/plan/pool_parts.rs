//! Making a thin pool: LVM makes its data and its metadata as LVs of their own first, each leg where we
//! say, and then turns both into a pool. Cut anywhere, what is there is used, or removed: nobody has ever
//! had it. One lvcreate would do for a plain pool, but when it is cut it leaves an LV without a tag, which
//! nobody could prove to be ours.

use super::pool::{METADATA_MIN, METADATA_PER_CHUNK, chunk_size};
use super::{Plan, place};
use crate::config::{Share, ThinPool};
use crate::error::{Error, Result};
use crate::lvm::change::{Change, Range};
use crate::lvm::layout::{RaidLevel, ThickLayout};
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::lvm::tag::{Kind, OWNED, Tags};
use crate::units::{Bytes, ExtentSize, Extents};

/// What a pool is to be made of.
struct Shape {
    data: ThickLayout,
    metadata: ThickLayout,
    metadata_extents: Extents,
}

/// Whether an LV is one that we made to become a part of a pool, or a pool of ours.
pub(super) fn is_ours(lv: &Lv) -> bool {
    lv.tags.is_ours() && lv.tags.kind == Some(Kind::Pool)
}

/// What is left to do until the pool is there. Nothing else bears its name.
pub(super) fn plan(
    vg: &VgState,
    pool: &ThinPool,
    layout: ThickLayout,
    size: Share,
    reserve: Bytes,
) -> Result<Plan> {
    let shape = Shape::of(vg, layout, size);
    let name = pool.name.pool_metadata();
    let (data, metadata) = (vg.lvs.get(&pool.name), vg.lvs.get(&name));
    // Another pool may bear that name: it is nobody's to remove.
    let is_pool = |lv: &Lv| matches!(lv.layout, LvLayout::ThinPool { .. });
    if metadata.is_some_and(|lv| !is_ours(lv) || is_pool(lv)) {
        return Err(Error::failed_precondition(format!(
            "logical volume {}/{name} is in the way and not ours: rename or remove it",
            vg.name
        )));
    }
    let unfit = [
        metadata.filter(|lv| !shape.fits_metadata(vg.extent_size, lv)),
        // Data without metadata has lost it to somebody: begin anew.
        data.filter(|lv| lv.thick() != Some(layout) || metadata.is_none()),
    ];
    if let Some(lv) = unfit.into_iter().flatten().next() {
        let remove = Change::Remove { lv: lv.name.clone(), uuid: lv.uuid.clone() };
        return Ok(Plan::Rest(vec![remove]));
    }
    let free: Vec<Vec<(u64, u64)>> = vg.usable_pvs().map(|pv| pv.free.clone()).collect();
    match (data, metadata) {
        (None, None) => {
            let on = shape.place_metadata(vg).ok_or_else(|| no_room(vg, pool, &shape))?;
            let left = without(vg, &on);
            shape
                .data_extents(vg, &left, size, reserve)
                .ok_or_else(|| no_room(vg, pool, &shape))?;
            let (extents, layout) = (shape.metadata_extents, shape.metadata);
            let lv = name;
            Ok(Plan::Steps(vec![Change::CreateThick { lv, extents, layout, on, tags: tags() }]))
        }
        (None, Some(_)) => {
            let extents = shape.data_extents(vg, &free, size, reserve);
            let extents = extents.ok_or_else(|| no_room(vg, pool, &shape))?;
            let on = place::new_legs(vg, &layout, extents);
            let on = on.ok_or_else(|| no_room(vg, pool, &shape))?;
            let lv = pool.name.clone();
            Ok(Plan::Rest(vec![Change::CreateThick { lv, extents, layout, on, tags: tags() }]))
        }
        (Some(data), _) => Ok(Plan::Rest(vec![Change::ConvertToPool {
            lv: data.name.clone(),
            metadata: name,
            chunk_size: chunk_size(data.size),
        }])),
    }
}

/// What is left to do for a pool that LVM has made of its parts: LVM leaves the tags to the part that its data
/// is in.
pub(super) fn finish(vg: &VgState, pool: &Lv) -> Option<Change> {
    let made = pool.parts.first().is_some_and(is_ours);
    if !made || is_ours(pool) {
        return None;
    }
    if vg.has_pool_spare || vg.lvs.values().any(|lv| lv.pool() == Some(&pool.name)) {
        return Some(Change::Tag { lv: pool.name.clone(), add: tags() });
    }
    // lvconvert was cut while it made the spare: nobody has had the pool, and it is made again, with one.
    let left = vg.lvs.values().find(|lv| is_unfinished_spare(lv, pool)).unwrap_or(pool);
    Some(Change::RemoveUnfinished { lv: left.name.clone(), uuid: left.uuid.clone() })
}

/// Whether an LV is what lvconvert makes first of a pool's spare (`_alloc_pool_metadata_spare` in LVM's
/// `pool_manip.c`): plain, of the metadata's size, with a name that LVM gives to what nobody names, and younger
/// than what the pool is made of. It is asked only of a VG whose pool has just been made and has no spare.
fn is_unfinished_spare(lv: &Lv, pool: &Lv) -> bool {
    let number = lv.name.as_str().strip_prefix("lvol");
    let unnamed = number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let [data, metadata] = pool.parts.as_slice() else { return false };
    unnamed
        && lv.layout == LvLayout::Linear
        && lv.tags == Tags::default()
        && lv.size == metadata.size
        && lv.created_unix >= data.created_unix
}

/// Whether a pool is not of the kind that the configuration says, and of which it is.
pub(super) fn differs(pool: &Lv, layout: ThickLayout) -> Option<String> {
    let has = pool.parts.first()?;
    let same = match (has.thick(), layout) {
        (Some(ThickLayout::Linear), ThickLayout::Linear)
        | (Some(ThickLayout::Striped { .. }), ThickLayout::Striped { .. }) => true,
        (Some(ThickLayout::Raid { level: a, .. }), ThickLayout::Raid { level: b, .. }) => a == b,
        // Whatever it is being made into is not told yet.
        (None, _) => matches!(has.layout, LvLayout::UnfinishedRaid(_)),
        (Some(_), _) => false,
    };
    let kind = has.thick().map_or_else(|| format!("{:?}", has.layout), |layout| layout.to_string());
    (!same).then_some(kind)
}

fn tags() -> Vec<String> {
    vec![OWNED.to_owned(), Kind::Pool.tag().to_owned()]
}

impl Shape {
    fn of(vg: &VgState, data: ThickLayout, size: Share) -> Self {
        let extent = vg.extent_size;
        let whole = usable(&data, vg.size());
        let wanted = match size {
            Share::Percent(percent) => whole.percent_floor(percent),
            Share::Size(size) => size,
        };
        let chunks = wanted.get().checked_div(chunk_size(wanted).get()).unwrap_or_default();
        let bytes = Bytes::new(chunks.saturating_mul(METADATA_PER_CHUNK)).max(METADATA_MIN);
        let metadata = match data.spare_legs() {
            0 => ThickLayout::Linear,
            spare => ThickLayout::Raid {
                level: RaidLevel::Raid1,
                legs: spare.saturating_add(1),
                stripe_size: Bytes::ZERO,
            },
        };
        Self { data, metadata, metadata_extents: extent.extents_ceil(bytes) }
    }

    fn fits_metadata(&self, extent: ExtentSize, lv: &Lv) -> bool {
        lv.thick() == Some(self.metadata) && extent.extents_ceil(lv.size) == self.metadata_extents
    }

    fn place_metadata(&self, vg: &VgState) -> Option<Vec<Range>> {
        if self.metadata.is_raid() {
            return place::new_legs(vg, &self.metadata, self.metadata_extents);
        }
        place::in_one_piece(vg, self.metadata_extents).map(|range| vec![range])
    }

    /// How much data there will be, with these runs free beside the metadata. `None` when it does not
    /// fit. A share is of the VG, copies and parity included; a size is what can be written.
    fn data_extents(
        &self,
        vg: &VgState,
        free: &[Vec<(u64, u64)>],
        size: Share,
        reserve: Bytes,
    ) -> Option<Extents> {
        let extent = vg.extent_size;
        let runs: Vec<Vec<u64>> =
            free.iter().map(|runs| runs.iter().map(|(_, len)| *len).collect()).collect();
        let all: Extents = runs.iter().flatten().map(|n| Extents::new(*n)).sum();
        // LVM keeps a spare for the metadata.
        let beside = self.metadata_extents.saturating_add(extent.extents_ceil(reserve));
        let allowed = all.saturating_sub(beside);
        let largest = |allowed: Extents| place::largest(extent, &runs, &self.data, allowed);
        let extents = match size {
            Share::Percent(percent) => {
                largest(extent.extents_floor(vg.size().percent_floor(percent)).min(allowed))
            }
            Share::Size(size) => {
                let unit = u64::from(self.data.data_legs());
                let wanted = extent.extents_ceil(size).ceil_to_multiple_of(unit);
                Some(wanted).filter(|wanted| *wanted <= largest(allowed))?
            }
        };
        Some(extents).filter(|extents| *extents > Extents::ZERO)
    }
}

/// What can be written of so much room.
fn usable(layout: &ThickLayout, room: Bytes) -> Bytes {
    let data = room.get().saturating_mul(u64::from(layout.data_legs()));
    Bytes::new(data.checked_div(u64::from(layout.legs())).unwrap_or_default())
}

/// The free runs of the PVs without these extents, which lie at the start of a run each.
fn without(vg: &VgState, taken: &[Range]) -> Vec<Vec<(u64, u64)>> {
    let left = |pv: &crate::lvm::state::Pv| {
        let cut = |(start, len): &(u64, u64)| {
            let range = taken
                .iter()
                .find(|range| Some(&range.device) == pv.device.as_ref() && range.start == *start);
            let gone = range.map_or(0, |range| range.len);
            (start.saturating_add(gone), len.saturating_sub(gone))
        };
        pv.free.iter().map(cut).filter(|(_, len)| *len > 0).collect()
    };
    vg.usable_pvs().map(left).collect()
}

fn no_room(vg: &VgState, pool: &ThinPool, shape: &Shape) -> Error {
    let apart =
        if shape.data.legs() > 1 { ", each stripe or leg on a disk of its own" } else { "" };
    Error::failed_precondition(format!(
        "thin pool {}/{} does not fit into the {} that are free: it is to be {}{apart}, with {} of metadata ({}) and as much as a spare, beyond the reserve",
        vg.name,
        pool.name,
        vg.extent_size.size_of(vg.free_extents()),
        shape.data,
        vg.extent_size.size_of(shape.metadata_extents),
        shape.metadata
    ))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, vg};
    use super::*;
    use crate::lvm::state::Area;
    use crate::names::LvmUuid;
    use crate::plan::pool;

    fn raid(level: RaidLevel, data: u32) -> ThickLayout {
        let stripe_size = if level == RaidLevel::Raid1 { Bytes::ZERO } else { Bytes::kib(64) };
        ThickLayout::Raid { level, legs: level.legs(data), stripe_size }
    }

    fn config(layout: ThickLayout, size: Share) -> ThinPool {
        ThinPool {
            name: lv_name("pool0"),
            create_size: Some(size),
            layout: Some(layout),
            overprovision_percent: 100,
            autogrow: None,
        }
    }

    /// Does what a step says, as LVM would.
    fn apply(vg: &mut VgState, change: &Change) {
        vg.seqno += 1;
        match change {
            Change::CreateThick { lv, extents, layout, on, tags } => {
                let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
                let size = vg.extent_size.size_of(*extents);
                let made = match layout {
                    ThickLayout::Linear => LvLayout::Linear,
                    ThickLayout::Striped { stripes, stripe_size } => {
                        LvLayout::Striped { stripes: *stripes, stripe_size: *stripe_size }
                    }
                    ThickLayout::Raid { .. } => LvLayout::Raid(*layout),
                };
                add(vg, lv.as_str(), size, made, &tags);
                let mut legs = Vec::new();
                for range in on {
                    let (uuid, pv) = vg
                        .pvs
                        .iter_mut()
                        .find(|(_, pv)| pv.device.as_ref() == Some(&range.device))
                        .unwrap();
                    legs.push(vec![uuid.clone()]);
                    if layout.is_raid() || *layout == ThickLayout::Linear {
                        let run = pv.free.iter_mut().find(|run| run.0 == range.start).unwrap();
                        *run = (run.0 + range.len, run.1 - range.len);
                    }
                }
                vg.lvs.get_mut(lv).unwrap().legs = legs;
            }
            Change::ConvertToPool { lv, metadata, chunk_size } => {
                vg.has_pool_spare = true;
                let mut parts = vec![vg.lvs.remove(lv).unwrap(), vg.lvs.remove(metadata).unwrap()];
                for (part, end) in parts.iter_mut().zip(["tdata", "tmeta"]) {
                    part.name = lv_name(&format!("{lv}_{end}"));
                }
                let layout = LvLayout::ThinPool { zero: true, chunk_size: *chunk_size };
                add(vg, lv.as_str(), parts[0].size, layout, &[]);
                vg.lvs.get_mut(lv).unwrap().parts = parts;
            }
            Change::Tag { lv, add } => {
                let tags = Tags::parse(add.iter().map(String::as_str));
                vg.lvs.get_mut(lv).unwrap().tags = tags;
            }
            Change::Remove { lv, .. } => drop(vg.lvs.remove(lv)),
            other => panic!("{other:?}"),
        }
    }

    fn next(vg: &VgState, config: &ThinPool) -> Option<Change> {
        match pool::plan(vg, config, Bytes::ZERO).unwrap() {
            Plan::Done => None,
            Plan::Steps(mut steps) | Plan::Rest(mut steps) => Some(steps.remove(0)),
            Plan::Zero(_) | Plan::Copy(_) => panic!("nothing is to be written"),
        }
    }

    #[test]
    fn every_layout_is_made_step_by_step_and_then_done() {
        let striped = ThickLayout::Striped { stripes: 3, stripe_size: Bytes::kib(64) };
        for (layout, wanted) in [
            (raid(RaidLevel::Raid1, 2), 749),
            (raid(RaidLevel::Raid5, 2), 998),
            (raid(RaidLevel::Raid10, 2), 748),
            (raid(RaidLevel::Raid6, 3), 897),
            (striped, 1500),
            (ThickLayout::Linear, 1500),
        ] {
            let mut vg = match layout.legs() {
                1..=3 => vg(&[&[999], &[999], &[999]]),
                4 => vg(&[&[749], &[749], &[749], &[749]]),
                _ => vg(&[&[599], &[599], &[599], &[599], &[599]]),
            };
            let config = config(layout, Share::Percent(50));
            let mut steps = Vec::new();
            while let Some(step) = next(&vg, &config) {
                apply(&mut vg, &step);
                steps.push(step);
                assert!(steps.len() <= 4, "{steps:?}");
            }
            assert_eq!(steps.len(), 4, "{layout}");
            let pool = &vg.lvs[&lv_name("pool0")];
            assert!(is_ours(pool), "{layout}");
            let extents = vg.extent_size.extents_ceil(pool.parts[0].size).get();
            assert_eq!(extents, wanted, "{layout}");
            let copies = pool.parts[1].thick().unwrap().spare_legs();
            assert_eq!(copies, layout.spare_legs(), "{layout}");
        }
    }

    #[test]
    fn what_was_cut_is_used_or_made_anew() {
        let layout = raid(RaidLevel::Raid1, 2);
        let config = config(layout, Share::Size(Bytes::mib(400)));
        let whole = vg(&[&[500], &[500]]);
        let ours = ["cinderblock=1", "cb.pool"];
        let unfinished = || LvLayout::UnfinishedRaid("raid1".to_owned());
        let removes = |vg: &VgState, name: &str| match next(vg, &config).unwrap() {
            Change::Remove { lv, .. } => assert_eq!(lv.as_str(), name),
            other => panic!("{other:?}"),
        };
        let mut cut = whole.clone();
        add(&mut cut, "pool0.meta", Bytes::mib(16), unfinished(), &ours);
        removes(&cut, "pool0.meta");
        // The configuration has changed since.
        add(&mut cut, "pool0.meta", Bytes::mib(20), LvLayout::Raid(layout), &ours);
        removes(&cut, "pool0.meta");
        add(&mut cut, "pool0.meta", Bytes::mib(16), LvLayout::Raid(layout), &ours);
        assert!(matches!(next(&cut, &config).unwrap(), Change::CreateThick { .. }));
        add(&mut cut, "pool0", Bytes::mib(400), unfinished(), &ours);
        removes(&cut, "pool0");
        add(&mut cut, "pool0", Bytes::mib(400), LvLayout::Raid(layout), &ours);
        assert!(matches!(next(&cut, &config).unwrap(), Change::ConvertToPool { .. }));
        cut.lvs.remove(&lv_name("pool0.meta"));
        removes(&cut, "pool0");
        // Others' LVs are left alone, and so is another pool of ours.
        let mut other = whole.clone();
        let layout_of_pool = LvLayout::ThinPool { zero: true, chunk_size: Bytes::kib(64) };
        add(&mut other, "pool0.meta", Bytes::mib(400), layout_of_pool, &ours);
        assert!(pool::plan(&other, &config, Bytes::ZERO).is_err());
        for name in ["pool0", "pool0.meta"] {
            let mut foreign = whole.clone();
            add(&mut foreign, name, Bytes::mib(400), LvLayout::Raid(layout), &[]);
            assert!(pool::plan(&foreign, &config, Bytes::ZERO).is_err(), "{name}");
        }
    }

    /// Extents of a plain pool's data and metadata, and its chunks.
    fn plain(vg: &VgState, size: Share, reserve: Bytes) -> (u64, u64, Bytes) {
        let mut vg = vg.clone();
        let config = config(ThickLayout::Linear, size);
        while let Plan::Steps(steps) | Plan::Rest(steps) =
            pool::plan(&vg, &config, reserve).unwrap()
        {
            apply(&mut vg, &steps[0]);
        }
        let pool = &vg.lvs[&lv_name("pool0")];
        let extents = |n: usize| vg.extent_size.extents_ceil(pool.parts[n].size).get();
        let LvLayout::ThinPool { chunk_size, .. } = pool.layout else { panic!("{pool:?}") };
        (extents(0), extents(1), chunk_size)
    }

    #[test]
    fn a_share_leaves_room_for_metadata_and_reserve() {
        let (disk, none, chunk) = (vg(&[&[1000]]), Bytes::ZERO, Bytes::kib(64));
        assert_eq!(plain(&disk, Share::Percent(90), none), (900, 4, chunk));
        assert_eq!(plain(&disk, Share::Percent(100), none), (992, 4, chunk));
        assert_eq!(plain(&disk, Share::Percent(100), Bytes::mib(400)), (892, 4, chunk));
        assert_eq!(plain(&disk, Share::Size(Bytes::gib(1)), none), (256, 4, chunk));
        let too_large = config(ThickLayout::Linear, Share::Size(Bytes::mib(3990)));
        assert!(pool::plan(&disk, &too_large, none).is_err());
    }

    #[test]
    fn large_pools_have_larger_chunks() {
        let vg = vg(&[&[10 << 18]]);
        let (_, metadata, chunk) = plain(&vg, Share::Percent(90), Bytes::ZERO);
        assert_eq!((chunk, metadata), (Bytes::mib(1), 289));
    }

    #[test]
    fn a_pool_whose_spare_was_cut_is_made_again_and_nothing_else_is_touched() {
        let mut cut = vg(&[&[1000]]);
        let config = config(ThickLayout::Linear, Share::Percent(50));
        while let Some(step) = next(&cut, &config) {
            let converts = matches!(step, Change::ConvertToPool { .. });
            apply(&mut cut, &step);
            if converts {
                break;
            }
        }
        assert!(matches!(next(&cut, &config), Some(Change::Tag { .. })));
        cut.has_pool_spare = false;
        let removes = |vg: &VgState| match next(vg, &config) {
            Some(Change::RemoveUnfinished { lv, .. }) => lv.to_string(),
            other => panic!("{other:?}"),
        };
        // Others' LVs: of another name, size, kind or age, or with a tag.
        let mib = Bytes::mib;
        add(&mut cut, "lvol", mib(16), LvLayout::Linear, &[]);
        add(&mut cut, "lvol0a", mib(16), LvLayout::Linear, &[]);
        add(&mut cut, "lvol0", mib(20), LvLayout::Linear, &[]);
        add(&mut cut, "lvol1", mib(16), LvLayout::Linear, &["theirs"]);
        let striped = LvLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) };
        add(&mut cut, "lvol2", mib(16), striped, &[]);
        add(&mut cut, "lvol3", mib(16), LvLayout::Linear, &[]);
        let data = cut.lvs[&lv_name("pool0")].parts[0].created_unix;
        cut.lvs.get_mut(&lv_name("lvol3")).unwrap().created_unix = data - 1;
        assert_eq!(removes(&cut), "pool0");
        add(&mut cut, "lvol4", mib(16), LvLayout::Linear, &[]);
        assert_eq!(removes(&cut), "lvol4");
        // Somebody has made a volume in the pool.
        let pool = lv_name("pool0");
        let thin = LvLayout::Thin { pool: pool.clone(), device_id: 1, origin: None };
        add(&mut cut, "theirs", mib(64), thin, &[]);
        assert!(matches!(next(&cut, &config), Some(Change::Tag { .. })));
        cut.lvs.remove(&lv_name("theirs"));
        // It is as whole as a user wants it to be, once it is named.
        cut.lvs.get_mut(&pool).unwrap().tags = Tags::parse(["cinderblock=1", "cb.pool"]);
        assert_eq!(next(&cut, &config), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_anything_is_made() {
        let ask = |free: &[&[u64]], size, reserve| {
            let config = config(raid(RaidLevel::Raid1, 2), size);
            pool::plan(&vg(free), &config, reserve)
        };
        let size = |mib| Share::Size(Bytes::mib(mib));
        // 4 of metadata and one of LVM's own, then as much data; 4 for the spare on one of them.
        assert!(ask(&[&[100], &[100]], size(4 * 92), Bytes::ZERO).is_ok());
        assert!(ask(&[&[100], &[100]], size(4 * 93), Bytes::ZERO).is_err());
        assert!(ask(&[&[100], &[104]], size(4 * 94), Bytes::ZERO).is_ok());
        assert!(ask(&[&[100], &[104]], size(4 * 95), Bytes::ZERO).is_err());
        assert!(ask(&[&[100], &[104]], size(4 * 94), Bytes::mib(4)).is_err());
        assert!(ask(&[&[100]], size(40), Bytes::ZERO).is_err());
        assert!(ask(&[&[100], &[3]], Share::Percent(50), Bytes::ZERO).is_err());
    }

    #[test]
    fn a_pool_of_another_kind_is_not_taken_for_the_one_that_is_asked_for() {
        let mut vg = vg(&[&[100], &[100]]);
        let layout = LvLayout::ThinPool { zero: true, chunk_size: Bytes::kib(64) };
        add(&mut vg, "pool0", Bytes::gib(1), layout, &["cinderblock=1", "cb.pool"]);
        let mut part = vg.lvs[&lv_name("pool0")].clone();
        part.layout = LvLayout::Linear;
        let pv = LvmUuid::derived("pv0");
        part.areas = vec![Area { pv, start: 0, len: 256 }];
        vg.lvs.get_mut(&lv_name("pool0")).unwrap().parts = vec![part.clone(), part];
        let mut config = config(raid(RaidLevel::Raid1, 2), Share::Percent(50));
        let error = pool::plan(&vg, &config, Bytes::ZERO).unwrap_err().to_string();
        assert!(error.contains("is linear, not raid1 on 2 disks"), "{error}");
        config.layout = None;
        assert_eq!(pool::plan(&vg, &config, Bytes::ZERO).unwrap(), Plan::Done);
    }
}
