//! What has to be done: pure functions from what a VG holds and what is asked to the changes that
//! are left to make. No clock, no input or output, nothing awaited.
//!
//! Every plan can be made again after any part of it was carried out: it then asks for the rest,
//! and in the end for nothing ([`Plan::Done`]).

pub mod capacity;
pub mod copy;
pub mod cow;
pub mod create;
mod encryption;
pub mod expand;
pub(crate) mod missing;
mod place;
pub mod pool;
pub mod pool_growth;
mod pool_parts;
pub mod remove;
mod restore;
pub mod snapshot;

use crate::config::Autogrow;
use crate::error::{Error, Result};
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::names::{CsiName, LvName};
use crate::units::Bytes;

/// What is left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: things are as they were asked for.
    Done,
    /// These changes, in this order; then plan again. Nothing of it is there yet.
    Steps(Vec<Change>),
    /// The same, but some of it is there already: to give up now would leave it behind.
    Rest(Vec<Change>),
    /// Zero all of this LV and drop its tag `cb.fresh`; then plan again.
    Zero(LvName),
    /// Nothing but to copy this LV's content from its source, which goes on by itself.
    Copy(LvName),
}

/// What a planner knows beside the VG itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The backend's thin pool, if it has one.
    pub pool: Option<PoolRules>,
    /// What is never given out of the VG.
    pub reserve: Bytes,
}

/// What a planner knows of the thin pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRules {
    /// Its LV.
    pub lv: LvName,
    /// How much may be promised, in percent of its size.
    pub overprovision_percent: u64,
    /// Data in use, in hundredths of a percent.
    pub data_used_bp: u64,
    /// Metadata in use, in hundredths of a percent.
    pub metadata_used_bp: u64,
    /// When so much of its metadata is in use, it takes nothing new.
    pub metadata_guard_bp: u64,
    /// Whether it takes writes at all.
    pub healthy: bool,
    /// Whether it holds writes back when it is full, instead of failing them.
    pub queues: bool,
    /// Whether it should grow by itself, and cannot.
    pub stuck: bool,
    /// How it grows by itself. `None`: not at all, or nothing is known to grow from.
    pub growth: Option<Growth>,
}

/// How a thin pool grows by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// When, and by how much.
    pub rule: Autogrow,
    /// How much metadata it has. What the VG holds does not tell.
    pub metadata: Bytes,
}

/// The LV of that name, which must be ours and bear that CSI name if it is there.
fn own<'a>(
    vg: &'a VgState,
    lv: &LvName,
    name: &CsiName,
    is: fn(&Lv) -> bool,
) -> Result<Option<&'a Lv>> {
    match vg.lvs.get(lv) {
        None => Ok(None),
        Some(found) if is(found) && found.csi_name().as_ref() == Some(name) => Ok(Some(found)),
        Some(_) => Err(Error::already_exists(format!(
            "volume group {} has a logical volume {lv} that was not made for {name}: rename or remove it, or use another name",
            vg.name
        ))),
    }
}

/// That a RAID volume with data cannot be used now.
pub(crate) fn unfinished_raid(vg: &VgState, lv: &Lv) -> Error {
    Error::unavailable(format!(
        "the legs of RAID volume {0}/{1} are being changed, or a change of them was cut: look at lvs -a {0}, and repeat the lvconvert that was begun",
        vg.name, lv.name
    ))
}

#[cfg(test)]
pub(crate) mod fixture {
    //! A VG to plan on.

    use std::collections::BTreeMap;

    use super::{PoolRules, Rules};
    use crate::lvm::state::{Lv, LvLayout, Pv, VgState};
    use crate::lvm::tag::Tags;
    use crate::names::{LvName, LvmUuid, VgName};
    use crate::units::{Bytes, ExtentSize, Extents};

    pub(crate) fn lv_name(text: &str) -> LvName {
        LvName::parse(text).unwrap()
    }

    /// A VG of 4 MiB extents with these free runs on its PVs, and nothing in it.
    pub(crate) fn vg(free: &[&[u64]]) -> VgState {
        let pvs = free.iter().enumerate().map(|(i, runs)| {
            let mut next = 0;
            let free = runs
                .iter()
                .map(|len| {
                    let run = (next, *len);
                    next += len + 1;
                    run
                })
                .collect();
            let pv = Pv {
                device: Some(format!("/dev/pv{i}").into()),
                allocatable: true,
                extents: Extents::new(runs.iter().sum::<u64>() + runs.len() as u64),
                free,
            };
            (LvmUuid::derived(&format!("pv{i}")), pv)
        });
        VgState {
            name: VgName::parse("vg0").unwrap(),
            uuid: LvmUuid::derived("vg0"),
            seqno: 1,
            extent_size: ExtentSize::new(4 << 20).unwrap(),
            tags: vec![],
            exported: false,
            system_id: String::new(),
            pvs: pvs.collect(),
            lvs: BTreeMap::new(),
            has_pool_spare: false,
        }
    }

    pub(crate) fn add(vg: &mut VgState, name: &str, size: Bytes, layout: LvLayout, tags: &[&str]) {
        let mut lv = Lv {
            name: lv_name(name),
            uuid: LvmUuid::derived(name),
            size,
            layout,
            tags: Tags::parse(tags.iter().copied()),
            created_unix: 1,
            writable: true,
            areas: vec![],
            legs: vec![],
            parts: vec![],
            queued: false,
        };
        // A pool of LVM's own making lies on plain LVs.
        if let LvLayout::ThinPool { .. } = lv.layout {
            let part = |end| Lv {
                name: lv_name(&format!("{name}_{end}")),
                layout: LvLayout::Linear,
                tags: Tags::default(),
                ..lv.clone()
            };
            lv.parts = vec![part("tdata"), part("tmeta")];
        }
        vg.lvs.insert(lv.name.clone(), lv);
    }

    pub(crate) fn thin(origin: Option<&str>) -> LvLayout {
        LvLayout::Thin { pool: lv_name("pool0"), device_id: 1, origin: origin.map(lv_name) }
    }

    /// A VG with a pool of 10 GiB, twice of which may be promised.
    pub(crate) fn with_pool() -> (VgState, Rules) {
        let mut vg = vg(&[&[100], &[100]]);
        let layout = LvLayout::ThinPool { zero: true, chunk_size: Bytes::kib(64) };
        add(&mut vg, "pool0", Bytes::gib(10), layout, &["cinderblock=1", "cb.pool"]);
        let pool = PoolRules {
            lv: lv_name("pool0"),
            overprovision_percent: 200,
            data_used_bp: 1_000,
            metadata_used_bp: 1_000,
            metadata_guard_bp: super::capacity::POOL_METADATA_GUARD_BP,
            healthy: true,
            queues: false,
            stuck: false,
            growth: None,
        };
        (vg, Rules { pool: Some(pool), reserve: Bytes::ZERO })
    }
}
