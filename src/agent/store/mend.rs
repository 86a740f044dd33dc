//! What an LVM command leaves that is killed, and how the VG gets over it: devices that are held, so that
//! whoever uses them waits for ever; tables that would come into force at the wrong time; thin LVs
//! that their pool does not know. The next command mends none of it by itself, and some of it makes
//! every next command fail.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::{Turn, Vg};
use crate::agent::blocking::{On, within};
use crate::agent::device::KERNEL_TIMEOUT;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::dm_status::Layer;
use crate::host::dm_undo::Halves;
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::names::{LvName, dm_name};
use crate::plan::missing::is_ours;

/// What the names of parts go on with behind that of their LV (lvmraid(7), lvmthin(7)).
const PARTS: [&str; 4] = ["_rimage_", "_rmeta_", "_tdata", "_tmeta"];
/// Length of an LV's identifier without dashes.
const ID: usize = 32;

impl Vg {
    /// Whether an LVM command may have been cut since this was last mended: at the agent's start, and
    /// when one did not end well.
    pub(super) fn may_be_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

impl<H: Host> Turn<'_, H> {
    /// Mends what a command left that was cut, if one may have been. What cannot be mended now is tried
    /// again before each change, and every few seconds.
    pub(super) async fn mend(&mut self) {
        if !self.vg.may_be_cut() {
            return;
        }
        match self.try_to_mend().await {
            Ok(mended) => self.vg.set_cut(!mended),
            Err(error) => {
                tracing::error!(vg = %self.vg.name(), error = error.chain(), "an LVM command was cut, and what it left cannot be mended now; it is tried again");
            }
        }
    }

    /// Whether all is as it should be.
    async fn try_to_mend(&mut self) -> Result<bool> {
        let state = self.refresh_though_partial().await?;
        // While it helps: what is held up by another goes on after that.
        let mut held = usize::MAX;
        while held > 0 {
            let layers = self.layers(&state).await?;
            let still = held_lvs(&state, layers.iter().filter(|layer| layer.suspended));
            if !self.take_back(&state, &layers).await? {
                // It is at work still, or somebody else's: LVM waits for it, and this is done later.
                return Ok(false);
            }
            // Parts seemed to be in use as long as there was what LVM had begun to make of them.
            let left = self.layers(&state).await?;
            if !abandoned(&state, &left).is_empty() && !self.take_back(&state, &left).await? {
                return Ok(false);
            }
            if still.len() >= held {
                break;
            }
            held = still.len();
            self.let_go_on(&state, &pools_first(still)).await;
        }
        Ok(self.remove_cut_thin(&state).await? && held == 0)
    }

    /// Has LVM resume what is held, and nothing more: for another process than the agent, which may be at work meanwhile. What looks cut
    /// may be whole a moment later, so nothing is removed on account of that. Whether nothing is held any more.
    pub(super) async fn resume(&mut self) -> Result<bool> {
        let state = self.refresh_though_partial().await?;
        let mut held = usize::MAX;
        loop {
            let layers = self.layers(&state).await?;
            let still = held_lvs(&state, layers.iter().filter(|layer| layer.suspended));
            if still.is_empty() || still.len() >= held {
                return Ok(still.is_empty());
            }
            // Whoever resumes a device puts the table in force that was loaded.
            let devices = may_lose_tables(&state, &layers);
            if !self.undo(&state, Halves { devices, ..Halves::default() }).await? {
                return Ok(false);
            }
            held = still.len();
            self.let_go_on(&state, &pools_first(still)).await;
        }
    }

    /// Removes the thin LVs that LVM was cut at. Whether none is left.
    async fn remove_cut_thin(&mut self, state: &VgState) -> Result<bool> {
        let cut: Vec<_> = state.lvs.values().filter(|lv| lv.is_cut_thin()).collect();
        if cut.is_empty() {
            return Ok(true);
        }
        self.wake_pools(state, &cut).await?;
        let layers = self.layers(state).await?;
        if !self.take_back(state, &layers).await? {
            return Ok(false);
        }
        let mut removed = true;
        for lv in cut {
            tracing::warn!(vg = %state.name, lv = %lv.name, "LVM was cut when it made this: it is removed, and made anew when it is asked for again");
            let change = Change::Remove { lv: lv.name.clone(), uuid: lv.uuid.clone() };
            removed &= self.command_or_log(&change).await;
        }
        self.refresh_though_partial().await?;
        Ok(removed)
    }

    /// That a change does not have LVM tell a pool of a thin LV that it was cut at: of a snapshot, it would
    /// have to hold the volume while it does.
    ///
    /// # Errors
    /// When it would.
    pub(super) fn must_not_tell_pool(&self, change: &Change) -> Result<()> {
        let state = self.vg.state();
        let pool_of =
            |lv: &LvName| state.lvs.get(lv).filter(|lv| !lv.is_cut_thin())?.pool().cloned();
        let pool = if let Change::CreateThin { pool, .. } = change {
            Some(pool.clone())
        } else if let Change::SnapshotThin { origin: lv, .. }
        | Change::CloneThin { origin: lv, .. }
        | Change::Remove { lv, .. } = change
        {
            pool_of(lv)
        } else {
            None
        };
        let cut = |lv: &&Lv| lv.is_cut_thin() && lv.pool() == pool.as_ref();
        match state.lvs.values().find(cut) {
            Some(cut) => Err(Error::unavailable(format!(
                "LVM was killed when it made {0} in volume group {1}, and {0} cannot be removed now (the agent's log says why): nothing is made or \
                 removed in its thin pool until it is",
                cut.name, state.name
            ))),
            None => Ok(()),
        }
    }

    /// Only a pool that is active can be told to forget a thin device.
    async fn wake_pools(&self, state: &VgState, cut: &[&Lv]) -> Result<()> {
        let layers = self.layers(state).await?;
        let pools: BTreeSet<_> = cut.iter().filter_map(|lv| lv.pool()).collect();
        for pool in pools.into_iter().filter_map(|pool| state.lvs.get(pool)) {
            let id = pool.uuid.compact();
            if !layers.iter().any(|layer| layer.lv.starts_with(&id)) {
                self.command_or_log(&Change::Activate { lv: pool.name.clone() }).await;
            }
        }
        Ok(())
    }

    /// Takes back what is half done. `false`: somebody is at work.
    async fn take_back(&self, state: &VgState, layers: &[Layer]) -> Result<bool> {
        let halves = Halves {
            abandoned: abandoned(state, layers),
            devices: may_lose_tables(state, layers),
            thin: state.lvs.values().filter_map(|lv| half_made(state, lv)).collect(),
        };
        self.undo(state, halves).await
    }

    /// Takes this back, under LVM's lock. `false`: somebody is at work.
    async fn undo(&self, state: &VgState, halves: Halves) -> Result<bool> {
        let name = state.name.clone();
        let what = format!("device-mapper about volume group {name}");
        let done = within(self.store, On::Vg(&state.uuid), KERNEL_TIMEOUT, &what, move |host| {
            host.take_back(&name, &halves)
        });
        done.await?.map_err(|e| {
            Error::host(format!("cannot tell whether LVM is at work in {}", state.name)).because(e)
        })
    }

    /// Has LVM resume what is held. One that fails may go on with the next.
    async fn let_go_on(&self, state: &VgState, held: &[&Lv]) {
        for lv in held {
            tracing::error!(vg = %state.name, lv = %lv.name, "LVM was cut while it held this: whoever uses it waits; it is resumed");
            self.command_or_log(&Change::Refresh { lv: lv.name.clone() }).await;
        }
    }

    /// Whether it went well. What did not is tried again, with all else.
    async fn command_or_log(&self, change: &Change) -> bool {
        let ran = self.command(change).await;
        if let Err(error) = &ran {
            tracing::error!(vg = %self.vg.name(), error = error.chain(), "an LVM command was cut, and what it left cannot be mended now; it is tried again");
        }
        ran.is_ok()
    }

    async fn layers(&self, state: &VgState) -> Result<Vec<Layer>> {
        let (uuid, what) = (state.uuid.clone(), format!("the devices of {}", state.name));
        let found = within(self.store, On::Vg(&state.uuid), KERNEL_TIMEOUT, &what, move |host| {
            host.layers(&uuid)
        })
        .await?;
        found.map_err(|e| Error::host(format!("cannot look up {what}")).because(e))
    }
}

/// A thin LV of ours that LVM was cut at: its pool's device name and its number there.
fn half_made(state: &VgState, lv: &Lv) -> Option<(String, u64)> {
    let LvLayout::Thin { pool, device_id, .. } = &lv.layout else { return None };
    let pool = dm_name(&state.name, pool).ok().filter(|_| lv.is_cut_thin())?;
    Some((pool, *device_id))
}

/// A volume cannot go on before its pool does: the pools, or all where there is none.
fn pools_first(held: Vec<&Lv>) -> Vec<&Lv> {
    let is_pool = |lv: &&Lv| matches!(lv.layout, LvLayout::ThinPool { .. });
    if held.iter().any(is_pool) { held.into_iter().filter(is_pool).collect() } else { held }
}

/// The devices whose tables may be dropped that are not in force: all but volumes of a pool that is held.
/// The kernel holds such a volume once for each of its tables, and lets go of it once for each that is
/// left when the pool goes on: one whose table were dropped meanwhile would be held until the next boot
/// (drivers/md/dm-thin.c, `suspend_active_thins`).
fn may_lose_tables(state: &VgState, layers: &[Layer]) -> Vec<String> {
    let held = held_lvs(state, layers.iter().filter(|layer| layer.suspended));
    let in_held = |lv: &&Lv| held.iter().any(|held| lv.pool() == Some(&held.name));
    let ids: Vec<_> = state.lvs.values().filter(in_held).map(|lv| lv.uuid.compact()).collect();
    let may = |it: &&Layer| !ids.iter().any(|id| it.lv.starts_with(id));
    layers.iter().filter(may).map(|layer| layer.name.clone()).collect()
}

/// Devices that nothing has a use for: parts of what is not active itself (LVM gives no LV a name that
/// looks like a part's), and what lies under a thick snapshot or its volume where there is none.
fn abandoned(state: &VgState, layers: &[Layer]) -> Vec<String> {
    let active: BTreeSet<_> = layers.iter().filter_map(|layer| layer.lv.get(..ID)).collect();
    let is_active = |lv: &Lv| active.contains(lv.uuid.compact().as_str());
    let inactive = state.lvs.values().filter(|lv| is_ours(state, lv) && !is_active(lv));
    let inactive: Vec<_> = inactive.filter_map(|lv| dm_name(&state.name, &lv.name).ok()).collect();
    let is_part = |layer: &&Layer| {
        let mut parts = inactive.iter().filter_map(|lv| layer.name.strip_prefix(lv.as_str()));
        parts.any(|part| PARTS.iter().any(|kind| part.starts_with(kind)))
    };
    let is_useless = |layer: &&Layer| {
        let (lv, suffix) = layer.lv.split_at_checked(ID).unwrap_or_default();
        if !matches!(suffix, "-cow" | "-real") {
            return false;
        }
        let lv = state.lvs.values().find(|it| it.tags.is_ours() && it.uuid.compact() == lv);
        lv.is_some_and(|lv| match suffix {
            "-cow" => lv.cow_origin().is_none(),
            _ => state.cow_snapshots(&lv.name).next().is_none(),
        })
    };
    let abandoned = layers.iter().filter(|layer| is_part(layer) || is_useless(layer));
    abandoned.map(|layer| layer.name.clone()).collect()
}

/// The LVs that devices belong to, as far as they are ours to see to.
fn held_lvs<'a, 'b>(state: &'a VgState, held: impl Iterator<Item = &'b Layer>) -> Vec<&'a Lv> {
    let held: Vec<_> = held.collect();
    let is_held = |lv: &Lv| {
        let id = lv.uuid.compact();
        held.iter().any(|layer| layer.lv.starts_with(&id))
    };
    // LVM holds a thick snapshot and its volume together, by the volume.
    let snapshot = |lv: &Lv| state.cow_snapshots(&lv.name).any(is_held);
    state
        .lvs
        .values()
        .filter(|lv| is_held(lv) || lv.parts.iter().any(is_held) || snapshot(lv))
        .filter(|lv| lv.cow_origin().is_none() && is_ours(state, lv))
        .collect()
}
