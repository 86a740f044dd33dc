//! Thin pools: what the kernel knows of them, beside what the VG's metadata says.

use std::path::Path;

use super::lvm::{Outcome, refuse};
use super::world::{SimVg, World};
use crate::lvm::state::{Area, LvLayout};
use crate::names::LvName;
use crate::units::{Bytes, Extents};

/// What the kernel knows of a thin pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimPool {
    /// What is in use of its data; a full pool has no more than all.
    pub data_used: Bytes,
    /// What is in use of its metadata.
    pub metadata_used: Bytes,
    /// Whether it holds writes back when it is full.
    pub queues: bool,
    /// Whether the kernel has given it up.
    pub failed: bool,
    pub(super) metadata: Extents,
}

impl World {
    /// What the kernel knows of a thin pool.
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn pool(&mut self, vg: &str, pool: &str) -> &mut SimPool {
        let pool = LvName::parse(pool).ok();
        let found = self.vg_mut(vg).and_then(|vg| vg.pools.get_mut(&pool?));
        found.unwrap_or_else(|| unreachable!("no such pool"))
    }

    /// Lets a pool give out blocks as they are, as one that somebody else has made may.
    pub fn stop_zeroing(&mut self, vg: &str, pool: &str) {
        let (Some(vg), Ok(pool)) = (self.vg_mut(vg), LvName::parse(pool)) else { return };
        vg.state.seqno = vg.state.seqno.wrapping_add(1);
        if let Some(LvLayout::ThinPool { zero, .. }) =
            vg.state.lvs.get_mut(&pool).map(|lv| &mut lv.layout)
        {
            *zero = false;
        }
    }

    /// The status line of an active thin pool. Once it has volumes, its LV is a layer above it.
    pub(super) fn pool_status(&self, dm: &str) -> Option<String> {
        let name = dm.strip_suffix("-tpool").unwrap_or(dm);
        let (vg, lv) = self.lv_at(&Path::new("/dev/mapper").join(name))?;
        let used = vg.state.lvs.values().any(|thin| thin.pool() == Some(&lv.name));
        if used != (name != dm) {
            return None;
        }
        let pool = vg.pools.get(&lv.name)?;
        let LvLayout::ThinPool { chunk_size, .. } = &lv.layout else { return None };
        if pool.failed {
            return Some("Fail".to_owned());
        }
        let chunks = |size: Bytes| size.get().checked_div(chunk_size.get()).unwrap_or_default();
        let total = chunks(lv.size);
        let used = chunks(pool.data_used).min(total);
        let metadata = vg.state.extent_size.size_of(pool.metadata);
        let blocks = |size: Bytes| size.get() / 4096;
        let mode = if used == total { "out_of_data_space" } else { "rw" };
        let discard = if self.no_discard { "no_discard_passdown" } else { "discard_passdown" };
        let full = if pool.queues { "queue_if_no_space" } else { "error_if_no_space" };
        Some(format!(
            "1 {}/{} {used}/{total} - {mode} {discard} {full} - 1024",
            blocks(pool.metadata_used.min(metadata)),
            blocks(metadata)
        ))
    }
}

impl SimVg {
    /// Makes a pool's metadata as large as that, and its spare with it where there is room for that.
    pub(super) fn extend_metadata(
        &mut self,
        pool: &LvName,
        wanted: Extents,
        allowed: &[Area],
    ) -> Outcome {
        let Some(have) = self.pools.get(pool).map(|pool| pool.metadata) else {
            return refuse("not a pool");
        };
        let more = wanted.saturating_sub(have);
        if more == Extents::ZERO {
            return refuse("New metadata size matches existing size.");
        }
        self.grow_part(pool, 1, more.get(), allowed)?;
        if let Some(areas) = self.allocate(more.get(), 1, allowed) {
            self.hidden.entry(pool.clone()).or_default().extend(areas);
        }
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.metadata = wanted;
        }
        Ok(())
    }
}
