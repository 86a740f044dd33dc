//! How much room may be promised. Honest: what the layout costs, the reserve, overcommitment and a
//! pool that fills up all count.

use super::{PoolRules, Rules};
use crate::domain::{BackendCapacity, PoolCapacity, Provisioning};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::VgState;
use crate::units::{Bytes, Extents};

/// A pool whose data is fuller than this promises nothing more (hundredths of a percent).
pub const POOL_DATA_GUARD_BP: u64 = 9_500;
/// The same for its metadata, sooner: a pool without metadata has to be repaired offline.
pub const POOL_METADATA_GUARD_BP: u64 = 8_500;
/// Full (hundredths of a percent).
pub const FULL_BP: u64 = 10_000;
/// A pool takes no writes when all of its metadata is in use, of which the kernel keeps some for itself and counts it as used
/// (`drivers/md/dm-thin.c`, `PM_OUT_OF_METADATA_SPACE`). Less than a block in a hundred may be freed by its last commit.
pub const METADATA_FULL_BP: u64 = 9_900;
const LVM_LEAVES: Bytes = Bytes::mib(4);

/// The guard of a pool with so much metadata: LVM makes nothing new in one that has less than 4 MiB, or a quarter, of its metadata left
/// (lvm2's `lib/metadata/thin_manip.c`, `_pool_metadata_min_threshold`).
#[must_use]
pub fn metadata_guard(metadata: Bytes) -> u64 {
    let left = LVM_LEAVES.get().saturating_mul(10_000).checked_div(metadata.get());
    let lvm = 10_000_u64.saturating_sub(left.unwrap_or(u64::MAX).min(2_500));
    lvm.min(POOL_METADATA_GUARD_BP)
}

/// What a backend offers for one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Room in all.
    pub available: Bytes,
    /// The largest volume that can be made.
    pub largest: Bytes,
    /// The smallest volume that is made.
    pub smallest: Bytes,
}

/// The figures of a VG.
#[must_use]
pub fn of(vg: &VgState, rules: &Rules) -> BackendCapacity {
    let runs = vg.usable_pvs().map(|pv| pv.free.iter().map(|(_, len)| *len).collect()).collect();
    BackendCapacity {
        extent_size: vg.extent_size,
        vg_size: vg.size(),
        reserve: rules.reserve,
        free_runs: runs,
        pool: rules.pool.as_ref().and_then(|pool| {
            Some(PoolCapacity {
                size: vg.lvs.get(&pool.lv)?.size,
                promised: vg.thin_virtual_size(&pool.lv),
                overprovision_percent: pool.overprovision_percent,
                data_used_bp: pool.data_used_bp,
                metadata_used_bp: pool.metadata_used_bp,
                metadata_guard_bp: pool.metadata_guard_bp,
                healthy: pool.healthy,
                queues: pool.queues,
                stuck: pool.stuck,
            })
        }),
    }
}

impl BackendCapacity {
    /// What a class gets when it does not say.
    #[must_use]
    pub const fn default_provisioning(&self) -> Provisioning {
        if self.pool.is_some() { Provisioning::Thin } else { Provisioning::Thick }
    }

    /// What is offered to a class whose volumes have a header of this size before their data.
    #[must_use]
    pub fn offer(
        &self,
        provisioning: Option<Provisioning>,
        layout: &ThickLayout,
        header: Bytes,
    ) -> Offer {
        let raw = self.raw_offer(provisioning, layout);
        let unit = u64::from(layout.data_legs());
        // One extent more than the header takes, in whole rows of stripes.
        let least = self.extent_size.extents_floor(header).get().saturating_add(1);
        let least = Extents::new(least).ceil_to_multiple_of(unit);
        Offer {
            available: raw.available.saturating_sub(header),
            largest: raw.largest.saturating_sub(header),
            smallest: self.extent_size.size_of(least).saturating_sub(header),
        }
    }

    fn raw_offer(&self, provisioning: Option<Provisioning>, layout: &ThickLayout) -> Offer {
        let extent = self.extent_size;
        let unit = u64::from(layout.data_legs());
        let smallest = extent.size_of(Extents::new(unit));
        match provisioning.unwrap_or_else(|| self.default_provisioning()) {
            Provisioning::Thin => {
                let room = self.pool.map_or(Bytes::ZERO, |pool| pool.room());
                let largest = extent.size_of(extent.extents_floor(room));
                Offer { available: room, largest, smallest }
            }
            Provisioning::Thick => {
                let free: Extents = self.free_runs.iter().flatten().map(|n| Extents::new(*n)).sum();
                let available = extent.size_of(free).saturating_sub(self.reserve);
                let allowed = extent.extents_floor(available);
                let largest = super::place::largest(extent, &self.free_runs, layout, allowed);
                let share = allowed.get().checked_div(u64::from(layout.legs()));
                let available = Extents::new(share.unwrap_or_default().saturating_mul(unit));
                Offer {
                    available: extent.size_of(available),
                    largest: extent.size_of(largest),
                    smallest,
                }
            }
        }
    }
}

impl PoolCapacity {
    /// What may still be promised. A pool that is nearly full or not well promises nothing.
    #[must_use]
    pub fn room(&self) -> Bytes {
        if self.trouble().is_some() {
            return Bytes::ZERO;
        }
        self.size.percent_floor(self.overprovision_percent).saturating_sub(self.promised)
    }

    /// Whether it is room that a pool lacks which takes no writes: for data, or for metadata.
    #[must_use]
    pub const fn is_out_of_room(&self) -> bool {
        self.data_used_bp >= FULL_BP || self.metadata_used_bp >= METADATA_FULL_BP
    }

    /// Why it promises nothing, however much was promised so far.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        // A pool that is full takes no writes either; then it is the room that it lacks.
        if !self.healthy && !self.is_out_of_room() {
            return Some("it takes no writes: look at `lvs -a` and at the kernel's log".to_owned());
        }
        let (what, used) = if self.data_used_bp >= POOL_DATA_GUARD_BP {
            ("data", self.data_used_bp)
        } else if self.metadata_used_bp >= self.metadata_guard_bp {
            ("metadata", self.metadata_used_bp)
        } else {
            return None;
        };
        let remedy = if self.stuck {
            "it cannot grow: add a disk to the volume group, or delete volumes or snapshots"
        } else if self.healthy || what == "data" {
            "extend it"
        } else {
            "extend it, and if it takes no writes then, look at `lvs -a` and at the kernel's log"
        };
        Some(format!("its {what} is {}.{:02}% full: {remedy}", used / 100, used % 100))
    }
}

impl PoolRules {
    /// The pool's figures in that VG. `None` when the pool is not there.
    #[must_use]
    pub fn capacity(&self, vg: &VgState) -> Option<PoolCapacity> {
        of(vg, &Rules { pool: Some(self.clone()), reserve: Bytes::ZERO }).pool
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, thin, vg, with_pool};
    use super::*;

    const STRIPED: ThickLayout = ThickLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) };

    #[test]
    fn thick_room_less_the_reserve() {
        let rules = Rules { pool: None, reserve: Bytes::mib(40) };
        let capacity = of(&vg(&[&[100, 20], &[30]]), &rules);
        let offer = capacity.offer(None, &ThickLayout::Linear, Bytes::ZERO);
        assert_eq!(offer.available, Bytes::mib(600 - 40));
        assert_eq!(offer.largest, Bytes::mib(560));
        assert_eq!(offer.smallest, Bytes::mib(4));
        let offer = capacity.offer(None, &STRIPED, Bytes::ZERO);
        assert_eq!(offer.largest, Bytes::mib(60 * 4));
        assert_eq!(offer.smallest, Bytes::mib(8));
        assert_eq!(
            capacity.offer(Some(Provisioning::Thin), &ThickLayout::Linear, Bytes::ZERO).largest,
            Bytes::ZERO
        );
    }

    #[test]
    fn the_guard_of_little_metadata_is_where_lvm_takes_nothing_new() {
        for (mib, guard) in [(0, 7_500), (2, 7_500), (16, 7_500), (20, 8_000), (32, 8_500)] {
            assert_eq!(metadata_guard(Bytes::mib(mib)), guard, "{mib} MiB");
        }
    }

    #[test]
    fn a_pool_promises_what_it_may_and_no_more() {
        let (mut vg, rules) = with_pool();
        let room = |vg: &VgState, rules: &Rules| {
            of(vg, rules).offer(None, &ThickLayout::Linear, Bytes::ZERO).largest
        };
        assert_eq!(room(&vg, &rules), Bytes::gib(20));
        add(&mut vg, "pvc-1", Bytes::gib(15), thin(None), &[]);
        add(&mut vg, "snap-1", Bytes::gib(4), thin(Some("pvc-1")), &[]);
        assert_eq!(room(&vg, &rules), Bytes::gib(1));
        let with = |change: fn(&mut PoolRules)| {
            let mut rules = rules.clone();
            change(rules.pool.as_mut().unwrap());
            room(&vg, &rules)
        };
        assert_eq!(with(|p| p.data_used_bp = POOL_DATA_GUARD_BP), Bytes::ZERO);
        assert_eq!(with(|p| p.metadata_used_bp = POOL_METADATA_GUARD_BP), Bytes::ZERO);
        assert_eq!(with(|p| p.healthy = false), Bytes::ZERO);
        assert_eq!(with(|p| p.overprovision_percent = 100), Bytes::ZERO);
    }
}
