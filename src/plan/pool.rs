//! Making a thin pool, and finding one that may be used.

use super::{Plan, PoolRules, Rules, pool_parts};
use crate::config::{Share, ThinPool};
use crate::error::{Error, Result};
use crate::lvm::change::Change;
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::lvm::tag::Kind;
use crate::names::LvName;
use crate::units::{Bytes, Extents};

/// The smallest unit of allocation that LVM takes; small ones make snapshots cheap.
const CHUNK_MIN: Bytes = Bytes::kib(64);
/// The unit grows with the pool so that it has no more chunks than this: with the metadata per
/// chunk below that is 2 GiB of metadata, well within the kernel's limit of 16 GiB.
const CHUNKS_MAX: u64 = 16 << 20;
/// A mapped chunk takes about 48 bytes of metadata; twice that leaves room for snapshots, which
/// have mappings of their own.
pub(super) const METADATA_PER_CHUNK: u64 = 128;
/// Enough for thousands of small thin volumes.
pub(super) const METADATA_MIN: Bytes = Bytes::mib(16);

/// What is left to do until the pool is there.
///
/// # Errors
/// When it cannot be made, or what bears its name cannot be used.
pub fn plan(vg: &VgState, pool: &ThinPool, reserve: Bytes) -> Result<Plan> {
    let layout = pool.layout.unwrap_or(ThickLayout::Linear);
    let in_parts = pool.create_size.filter(|_| layout != ThickLayout::Linear);
    if let Some(size) = in_parts
        && vg.lvs.get(&pool.name).is_none_or(is_on_its_way)
    {
        return pool_parts::plan(vg, pool, layout, size, reserve);
    }
    let Some(found) = vg.lvs.get(&pool.name) else {
        let Some(size) = pool.create_size else {
            return Err(Error::failed_precondition(format!(
                "thin pool {}/{} does not exist: make it with lvcreate --type thin-pool, or give thinPool.size so that it is made",
                vg.name, pool.name
            )));
        };
        return Ok(Plan::Steps(vec![shape(vg, pool, size, reserve)?]));
    };
    match &found.layout {
        LvLayout::ThinPool { zero: true, .. } => is_as_configured(vg, found, pool.layout),
        LvLayout::ThinPool { zero: false, .. } => {
            Err(Error::failed_precondition(does_not_zero(vg, &pool.name)))
        }
        // lvcreate makes a plain LV first and turns it into a pool; it was cut in between.
        LvLayout::Linear
        | LvLayout::Striped { .. }
        | LvLayout::Raid(_)
        | LvLayout::UnfinishedRaid(_)
        | LvLayout::Thin { .. }
        | LvLayout::Cow { .. }
        | LvLayout::Other(_)
            if found.tags.is_ours() && found.tags.kind == Some(Kind::Pool) =>
        {
            let remove = Change::Remove { lv: found.name.clone(), uuid: found.uuid.clone() };
            Ok(Plan::Rest(vec![remove]))
        }
        LvLayout::Linear
        | LvLayout::Striped { .. }
        | LvLayout::Raid(_)
        | LvLayout::UnfinishedRaid(_)
        | LvLayout::Thin { .. }
        | LvLayout::Cow { .. }
        | LvLayout::Other(_) => Err(Error::failed_precondition(format!(
            "logical volume {}/{} is not a thin pool: configure another name under thinPool",
            vg.name, pool.name
        ))),
    }
}

/// Whether an LV is one that we made to become a pool, and is none yet.
fn is_on_its_way(lv: &Lv) -> bool {
    pool_parts::is_ours(lv) && !matches!(lv.layout, LvLayout::ThinPool { .. })
}

fn is_as_configured(vg: &VgState, pool: &Lv, layout: Option<ThickLayout>) -> Result<Plan> {
    if let Some(layout) = layout
        && let Some(has) = pool_parts::differs(pool, layout)
    {
        return Err(Error::failed_precondition(format!(
            "thin pool {}/{} is {has}, not {layout}: a pool that exists keeps its layout; correct thinPool.layout, or convert it with lvconvert",
            vg.name, pool.name
        )));
    }
    Ok(pool_parts::name_as_ours(pool).map_or(Plan::Done, |tag| Plan::Rest(vec![tag])))
}

/// The unit of allocation of a pool of that size.
pub(super) fn chunk_size(size: Bytes) -> Bytes {
    let mut chunk = CHUNK_MIN;
    while size.get().checked_div(chunk.get()).is_some_and(|chunks| chunks > CHUNKS_MAX) {
        chunk = chunk.saturating_add(chunk);
    }
    chunk
}

/// The rules of the pool that a thin LV is in.
///
/// # Errors
/// Why it is not one that may be used.
pub(super) fn of<'a>(vg: &VgState, rules: &'a Rules, lv: &Lv) -> Result<&'a PoolRules> {
    let has = lv.pool();
    if let Some(pool) = rules.pool.as_ref().filter(|pool| has == Some(&pool.lv)) {
        return Ok(pool);
    }
    let why = match has.and_then(|pool| vg.lvs.get(pool)) {
        Some(pool) => match &pool.layout {
            LvLayout::ThinPool { zero: false, .. } => does_not_zero(vg, &pool.name),
            LvLayout::ThinPool { zero: true, .. }
            | LvLayout::Linear
            | LvLayout::Striped { .. }
            | LvLayout::Raid(_)
            | LvLayout::UnfinishedRaid(_)
            | LvLayout::Thin { .. }
            | LvLayout::Cow { .. }
            | LvLayout::Other(_) => format!(
                "thin pool {}/{} is no backend's on this node: add it to the configuration",
                vg.name, pool.name
            ),
        },
        None => format!("its thin pool is not in volume group {}", vg.name),
    };
    Err(Error::failed_precondition(format!(
        "volume {} is in a thin pool that cannot be used: {why}",
        lv.name
    )))
}

fn does_not_zero(vg: &VgState, pool: &LvName) -> String {
    format!(
        "thin pool {}/{pool} does not zero new blocks, so a volume could show what another one wrote: lvchange --zero y {}/{pool}",
        vg.name, vg.name
    )
}

fn shape(vg: &VgState, pool: &ThinPool, size: Share, reserve: Bytes) -> Result<Change> {
    let extent = vg.extent_size;
    let wanted = size.of(vg.size());
    let chunk = chunk_size(wanted);
    let chunks = wanted.get().checked_div(chunk.get()).unwrap_or_default();
    let metadata = Bytes::new(chunks.saturating_mul(METADATA_PER_CHUNK)).max(METADATA_MIN);
    let metadata = extent.extents_ceil(metadata);
    // LVM keeps a spare of the same size.
    let beside = metadata.saturating_add(metadata).saturating_add(extent.extents_ceil(reserve));
    let room = vg.free_extents().saturating_sub(beside);
    let data = match size {
        // A share is of what there is; what its metadata and the reserve need comes off.
        Share::Percent(_) => extent.extents_floor(wanted).min(room),
        Share::Size(_) => extent.extents_ceil(wanted),
    };
    if data > room || data == Extents::ZERO {
        return Err(Error::failed_precondition(format!(
            "thin pool {}/{} of {wanted} does not fit: {} are free beyond its metadata and the reserve of {reserve}",
            vg.name,
            pool.name,
            extent.size_of(room)
        )));
    }
    Ok(Change::CreatePool { lv: pool.name.clone(), extents: data, metadata, chunk_size: chunk })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, vg};
    use super::*;

    fn pool(size: Option<Share>) -> ThinPool {
        ThinPool {
            name: lv_name("pool0"),
            create_size: size,
            layout: None,
            overprovision_percent: 100,
            autogrow: None,
        }
    }

    fn made(vg: &VgState, size: Share, reserve: Bytes) -> (u64, u64, Bytes) {
        match plan(vg, &pool(Some(size)), reserve).unwrap() {
            Plan::Steps(steps) => match &steps[..] {
                [Change::CreatePool { extents, metadata, chunk_size, .. }] => {
                    (extents.get(), metadata.get(), *chunk_size)
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_share_leaves_room_for_metadata_and_reserve() {
        let vg = vg(&[&[1000]]);
        let none = Bytes::ZERO;
        assert_eq!(made(&vg, Share::Percent(90), none), (900, 4, CHUNK_MIN));
        assert_eq!(made(&vg, Share::Percent(100), none), (992, 4, CHUNK_MIN));
        assert_eq!(made(&vg, Share::Percent(100), Bytes::mib(400)), (892, 4, CHUNK_MIN));
        assert_eq!(made(&vg, Share::Size(Bytes::gib(1)), none), (256, 4, CHUNK_MIN));
        assert!(plan(&vg, &pool(Some(Share::Size(Bytes::mib(3990)))), none).is_err());
        assert!(plan(&vg, &pool(None), none).unwrap_err().to_string().contains("thinPool.size"));
    }

    #[test]
    fn large_pools_have_larger_chunks() {
        let vg = vg(&[&[10 << 18]]);
        let (_, metadata, chunk) = made(&vg, Share::Percent(90), Bytes::ZERO);
        assert_eq!((chunk, metadata), (Bytes::mib(1), 289));
    }

    #[test]
    fn what_bears_the_name_must_be_a_pool_that_zeroes() {
        let mut vg = vg(&[&[1000]]);
        let ask = |vg: &VgState| plan(vg, &pool(Some(Share::Percent(50))), Bytes::ZERO);
        let thin_pool = |zero| LvLayout::ThinPool { zero, chunk_size: CHUNK_MIN };
        add(&mut vg, "pool0", Bytes::gib(1), thin_pool(true), &[]);
        assert_eq!(ask(&vg).unwrap(), Plan::Done);
        add(&mut vg, "pool0", Bytes::gib(1), thin_pool(false), &[]);
        assert!(ask(&vg).unwrap_err().to_string().contains("--zero y"));
        add(&mut vg, "pool0", Bytes::gib(1), LvLayout::Linear, &[]);
        assert!(ask(&vg).is_err());
        add(&mut vg, "pool0", Bytes::gib(1), LvLayout::Linear, &["cinderblock=1", "cb.pool"]);
        assert!(
            matches!(ask(&vg).unwrap(), Plan::Rest(s) if matches!(s[..], [Change::Remove { .. }]))
        );
    }
}
