//! Making a thin pool, and finding one that may be used.

use super::{Plan, PoolRules, Rules, pool_parts};
use crate::config::ThinPool;
use crate::error::{Error, Result};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::names::LvName;
use crate::units::Bytes;

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
    if let Some(size) = pool.create_size
        && vg.lvs.get(&pool.name).is_none_or(is_on_its_way)
    {
        let layout = pool.layout.unwrap_or(ThickLayout::Linear);
        return pool_parts::plan(vg, pool, layout, size, reserve);
    }
    let Some(found) = vg.lvs.get(&pool.name) else {
        return Err(Error::failed_precondition(format!(
            "thin pool {}/{} does not exist: make it with lvcreate --type thin-pool, or give thinPool.size so that it is made",
            vg.name, pool.name
        )));
    };
    match &found.layout {
        LvLayout::ThinPool { zero: true, .. } => is_as_configured(vg, found, pool.layout),
        LvLayout::ThinPool { zero: false, .. } => {
            Err(Error::failed_precondition(does_not_zero(vg, &pool.name)))
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
    Ok(pool_parts::finish(vg, pool).map_or(Plan::Done, |step| Plan::Rest(vec![step])))
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

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, vg};
    use super::*;
    use crate::config::Share;
    use crate::lvm::change::Change;

    fn pool(size: Option<Share>) -> ThinPool {
        ThinPool {
            name: lv_name("pool0"),
            create_size: size,
            layout: None,
            overprovision_percent: 100,
            autogrow: None,
        }
    }

    #[test]
    fn what_is_not_there_and_not_to_be_made_is_asked_for() {
        let refused = plan(&vg(&[&[1000]]), &pool(None), Bytes::ZERO).unwrap_err();
        assert!(refused.to_string().contains("thinPool.size"), "{refused}");
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
