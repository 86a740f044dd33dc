//! Thick snapshots kept alive: how full they are, as the kernel tells; growing those in time that do
//! not have all the room they can need; and saying so when one is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Agent;
use super::blocking::{On, within};
use super::device::KERNEL_TIMEOUT;
use super::store::Vg;
use crate::domain::Reason;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::cow_status::CowStatus;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::Kind;
use crate::names::{Handle, LvmUuid, dm_name};
use crate::plan;
use crate::units::Extents;

/// How often they are looked at, by one ioctl each.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// A growth that LVM refused, or that the VG had no room for, is tried again after this.
const GROW_AGAIN: Duration = Duration::from_mins(1);

/// What is known of all thick snapshots beside what the VGs hold.
#[derive(Debug, Default)]
pub(super) struct Cows {
    seen: Mutex<BTreeMap<LvmUuid, Seen>>,
    /// VGs whose snapshots are being looked at.
    looking: Mutex<BTreeSet<LvmUuid>>,
    shown: watch::Sender<Arc<ThickSnapshots>>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    status: Option<CowStatus>,
    growing: bool,
    /// Why it cannot grow, though it should.
    stuck: Option<String>,
    refused: Option<Instant>,
}

/// How full thick snapshots are, as far as anything is known of them.
pub type ThickSnapshots = BTreeMap<Handle, CowStatus>;

impl Cows {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<LvmUuid, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looking(&self) -> MutexGuard<'_, BTreeSet<LvmUuid>> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a snapshot is known to be lost.
    pub(super) fn is_lost(&self, lv: &LvmUuid) -> bool {
        self.lock().get(lv).is_some_and(|seen| seen.status == Some(CowStatus::Lost))
    }
}

impl<H: Host> Agent<H> {
    /// How full the thick snapshots are, and every change of it.
    #[must_use]
    pub fn thick_snapshots(&self) -> watch::Receiver<Arc<ThickSnapshots>> {
        self.0.cows.shown.subscribe()
    }

    /// What is wrong with the snapshots of volumes, and of which.
    pub(super) fn snapshot_troubles(&self) -> Vec<(Handle, Reason, String)> {
        let seen = self.0.cows.lock().clone();
        let mut found = Vec::new();
        for vg in self.0.store.all() {
            let state = vg.state();
            for lv in state.lvs.values().filter(|lv| lv.is_snapshot()) {
                let (Some(of), Some(seen)) = (lv.cow_origin(), seen.get(&lv.uuid)) else {
                    continue;
                };
                let name = lv.csi_name().map_or_else(|| lv.name.to_string(), |n| n.to_string());
                let (reason, sentence) = match (seen.status, &seen.stuck) {
                    (Some(CowStatus::Lost), _) => (
                        Reason::SnapshotLost,
                        format!(
                            "{name} ran full, and nothing can be restored from it: delete it, and take the next one with a larger cowSize"
                        ),
                    ),
                    (_, Some(why)) => (
                        Reason::SnapshotCannotGrow,
                        format!("{name} is lost when its room is full, and it cannot grow: {why}"),
                    ),
                    (_, None) => continue,
                };
                found.push((state.handle(of), reason, sentence));
            }
        }
        found
    }

    fn show_cows(&self) {
        let seen = self.0.cows.lock().clone();
        let mut all = ThickSnapshots::new();
        for vg in self.0.store.all() {
            let state = vg.state();
            let ours = state.lvs.values().filter(|lv| is_ours(lv));
            all.extend(
                ours.filter_map(|lv| Some((state.handle(&lv.name), seen.get(&lv.uuid)?.status?))),
            );
        }
        self.0.cows.shown.send_if_modified(|old| {
            let changed = **old != all;
            if changed {
                *old = Arc::new(all);
            }
            changed
        });
    }

    /// Keeps thick snapshots from running full, for ever.
    pub(super) async fn keep_thick_snapshots(&self) {
        let mut tick = tokio::time::interval(WATCH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mut there = Vec::new();
            for vg in self.0.store.all() {
                let state = vg.state();
                let ours = state.lvs.values().filter(|lv| is_ours(lv));
                there.extend(ours.map(|lv| lv.uuid.clone()));
                let agent = self.clone();
                if self.0.cows.looking().insert(vg.uuid.clone()) {
                    // Apart: its disks may hang, and those of the others must not wait for them.
                    tokio::spawn(async move { agent.watch_cows(&vg).await });
                }
            }
            self.0.cows.lock().retain(|uuid, _| there.contains(uuid));
            self.show_cows();
        }
    }

    async fn watch_cows(&self, vg: &Arc<Vg>) {
        let state = vg.state();
        for lv in state.lvs.values().filter(|lv| is_ours(lv)) {
            if let Err(error) = self.watch_cow(vg, &state, lv).await {
                tracing::debug!(vg = %state.name, lv = %lv.name, error = error.chain(), "cannot look at the snapshot");
            }
        }
        self.0.cows.looking().remove(&vg.uuid);
        self.show_cows();
    }

    async fn watch_cow(&self, vg: &Arc<Vg>, state: &VgState, lv: &Lv) -> Result<()> {
        let Some(status) = self.look_at_cow(state, lv).await? else { return Ok(()) };
        let CowStatus::Valid { used, .. } = status else { return Ok(()) };
        let Some(wanted) = plan::cow::wanted_store(state, lv, used) else { return Ok(()) };
        {
            let mut all = self.0.cows.lock();
            let seen = all.entry(lv.uuid.clone()).or_default();
            let soon = seen.refused.is_some_and(|at| at.elapsed() < GROW_AGAIN);
            if seen.growing || soon || self.0.stop.is_cancelled() {
                return Ok(());
            }
            seen.growing = true;
        }
        let (agent, vg, lv) = (self.clone(), Arc::clone(vg), lv.clone());
        self.0.tasks.spawn(async move { agent.grow_cow(&vg, &lv, wanted).await });
        Ok(())
    }

    async fn grow_cow(&self, vg: &Vg, lv: &Lv, wanted: Extents) {
        let name = &lv.name;
        let grown =
            self.carry_out(vg, |state, rules| plan::cow::grow(state, rules, name, wanted)).await;
        let mut all = self.0.cows.lock();
        let seen = all.entry(lv.uuid.clone()).or_default();
        seen.growing = false;
        seen.refused = grown.is_err().then(Instant::now);
        let stuck = grown.as_ref().err().map(Error::chain);
        let news = seen.stuck.is_some() != stuck.is_some();
        seen.stuck = stuck;
        drop(all);
        if news {
            self.publish_again();
        }
        match grown {
            Ok(state) => {
                let size = state.extent_size.size_of(wanted);
                tracing::info!(vg = %state.name, lv = %name, room = %size, "a thick snapshot has more room");
            }
            Err(error) => {
                tracing::warn!(vg = %vg.name(), lv = %name, error = error.chain(), "a thick snapshot fills up and cannot grow: when it is full, it is lost");
            }
        }
    }

    /// What the kernel says of a snapshot now. `None` when it is not active.
    async fn look_at_cow(&self, state: &VgState, lv: &Lv) -> Result<Option<CowStatus>> {
        let name = dm_name(&state.name, &lv.name).map_err(|e| Error::invalid(e.to_string()))?;
        let what = format!("snapshot {name}");
        let status = within(
            &self.0.store,
            On::Lv(&state.uuid, &lv.name),
            KERNEL_TIMEOUT,
            &what,
            move |host| host.device_status(&name),
        );
        let status = status
            .await?
            .map_err(|e| Error::host(format!("cannot ask the kernel about {what}")).because(e))?;
        let target = status.and_then(|s| s.targets.into_iter().find(|t| t.0 == "snapshot"));
        let Some(status) = target.and_then(|(_, line)| CowStatus::parse(&line)) else {
            return Ok(None);
        };
        let before = {
            let mut all = self.0.cows.lock();
            all.entry(lv.uuid.clone()).or_default().status.replace(status)
        };
        if status == CowStatus::Lost && before != Some(CowStatus::Lost) {
            tracing::error!(vg = %state.name, lv = %lv.name, "the thick snapshot ran full and is lost: nothing can be restored from it; delete it, and take the next one with a larger cowSize");
            self.publish_again();
        }
        Ok(Some(status))
    }

    /// Makes sure that an active thick snapshot shows what it was taken of. Anything else does.
    ///
    /// # Errors
    /// When it is lost.
    pub(super) async fn must_be_readable(&self, state: &VgState, lv: &Lv) -> Result<()> {
        if lv.cow_origin().is_none() {
            return Ok(());
        }
        match self.look_at_cow(state, lv).await? {
            Some(CowStatus::Valid { .. }) => Ok(()),
            Some(CowStatus::Lost) => Err(lost(lv)),
            None => Err(Error::unavailable(format!("snapshot {} is not active", lv.name))),
        }
    }

    /// Makes sure, before anything is made from it, that a snapshot is not lost.
    ///
    /// # Errors
    /// When it is.
    pub(super) async fn must_not_be_lost(&self, vg: &Vg, snapshot: &Handle) -> Result<()> {
        let state = vg.state();
        let Some(lv) = state.lvs.get(&snapshot.lv).filter(|lv| is_ours(lv)) else { return Ok(()) };
        self.activate(vg, &lv.name).await?;
        self.must_be_readable(&state, lv).await
    }
}

fn is_ours(lv: &Lv) -> bool {
    lv.tags.is_ours()
        && matches!(lv.tags.kind, Some(Kind::Snapshot | Kind::Image))
        && lv.cow_origin().is_some()
}

fn lost(lv: &Lv) -> Error {
    Error::failed_precondition(format!(
        "snapshot {} is lost: the volume overwrote more than the snapshot had room for. Delete it, and take the next one with a larger cowSize",
        lv.name
    ))
}
