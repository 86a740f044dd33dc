//! The inventory: built from what the VGs hold, and published whenever that changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use super::Agent;
use super::store::Vg;
use crate::domain::{
    BackendState, BackendStatus, ContentSource, Inventory, Provisioning, Snapshot, Unfinished,
    Volume, What,
};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Kind, Source};
use crate::names::Handle;

/// How often the disks are looked at for changes by others: a few hundred bytes a disk.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a VG's disks may take to be compared with LVM's report.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is known is published although backends have not been set up by then.
const FIRST_SET_UP: Duration = Duration::from_mins(1);

impl<H: Host> Agent<H> {
    /// Scans, sets up backends and publishes, for ever.
    pub(super) async fn keep_inventory(&self) {
        self.first_scan().await;
        self.watch_raid().await;
        let changes = self.0.store.changes();
        // The first inventory must not say that what is wrong is not.
        let first = self.set_up_backends_to_the_end();
        tokio::pin!(first);
        let is_over = tokio::time::timeout(FIRST_SET_UP, &mut first).await.is_ok();
        let set_up = async {
            if !is_over {
                first.await;
            }
            self.keep_set_up().await;
        };
        tokio::join!(set_up, self.keep_published(changes), self.keep_raid());
    }

    /// Sets up backends when something has changed that they depend on. Apart from all else: it waits
    /// for LVM, which may hang.
    async fn keep_set_up(&self) {
        let mut config = self.0.config.clone();
        let mut labels = self.0.labels.clone();
        let mut tick = ticks();
        loop {
            // A sender that is gone will change nothing any more: wait for the others.
            tokio::select! {
                Ok(()) = config.changed() => {}
                Ok(()) = labels.changed() => {}
                _ = tick.tick() => if !self.backends_need_attention() {
                    continue;
                },
            }
            self.set_up_backends_to_the_end().await;
        }
    }

    async fn set_up_backends_to_the_end(&self) {
        let agent = self.clone();
        self.to_its_end(async move { agent.set_up_backends().await }).await;
    }

    /// Apart from what is published: a disk may hang.
    async fn keep_raid(&self) {
        let mut tick = ticks();
        loop {
            tick.tick().await;
            self.watch_raid().await;
            self.publish();
        }
    }

    async fn keep_published(&self, mut changes: watch::Receiver<u64>) {
        let mut tick = ticks();
        loop {
            tokio::select! {
                Ok(()) = changes.changed() => {}
                _ = tick.tick() => {
                    for vg in self.0.store.all() {
                        // Apart: a disk may hang. What is seen is told as a change.
                        let agent = self.clone();
                        tokio::spawn(async move { agent.notice(vg).await });
                    }
                }
            }
            self.publish();
        }
    }

    /// Looks whether somebody else changed a VG, and mends what a cut LVM command left.
    async fn notice(&self, vg: Arc<Vg>) {
        if self.0.store.notice(&vg).await {
            let agent = self.clone();
            self.to_its_end(async move { agent.0.store.mend(&vg).await }).await;
        }
    }

    /// Resumes what LVM and cryptsetup held that were killed, and nothing more: where another LVM command is at work, or
    /// nothing is ours, nothing is done. May be called beside an agent of another process.
    ///
    /// # Errors
    /// When LVM gives no report, or something in a VG is suspended still; that is after all VGs were seen to.
    pub async fn resume_held(&self) -> Result<()> {
        self.resume_mappings().await;
        self.0.store.scan().await?;
        let mut result = Ok(());
        for vg in self.0.store.all() {
            result = result.and(self.0.store.resume(&vg).await);
        }
        result
    }

    async fn first_scan(&self) {
        self.resume_mappings().await;
        let mut wait = Duration::from_secs(1);
        while let Err(error) = self.0.store.scan().await {
            tracing::error!(error = error.chain(), "LVM gives no report; trying again in {wait:?}");
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2).min(Duration::from_mins(1));
        }
        for vg in self.0.store.all() {
            let compare = async { self.0.store.turn(&vg).await?.compare().await };
            let compared = tokio::time::timeout(COMPARE_TIMEOUT, compare).await;
            if let Err(error) =
                compared.unwrap_or_else(|_| Err(Error::unavailable("its disks give no answer")))
            {
                tracing::warn!(vg = %vg.name(), error = error.chain(), "cannot compare the disks with LVM's report");
            }
        }
    }

    /// Publishes what is known now. The revision from which on it shows.
    pub(super) fn publish(&self) -> u64 {
        let mut now = self.build();
        let mut revision = 0;
        self.0.inventory.send_if_modified(|old| {
            now.revision = old.revision;
            let changed = old.revision == 0 || **old != now;
            if changed {
                now.revision = old.revision.saturating_add(1);
                *old = Arc::new(std::mem::take(&mut now));
            }
            revision = old.revision;
            changed
        });
        revision
    }

    fn build(&self) -> Inventory {
        let mut inventory = Inventory {
            backends: self.backend_states(),
            making: self.0.making.names(),
            ..Inventory::default()
        };
        let used: Vec<_> = inventory.backends.values().filter_map(ready_vg).cloned().collect();
        // Also when its last volume is gone, and its backend with it: whoever did not hear that has to be told.
        let told = Arc::clone(&self.0.inventory.borrow());
        for vg in self.0.store.all() {
            let state = vg.state();
            let before = records(&inventory);
            for lv in state.lvs.values() {
                if let Some(volume) = volume_of(&state, lv).filter(|_| !lv.is_unfinished()) {
                    inventory.volumes.insert(volume.handle.clone(), Arc::new(volume));
                } else if let Some(mut snapshot) = snapshot_of(&state, lv) {
                    snapshot.ready = !self.0.cows.is_lost(&lv.uuid);
                    inventory.snapshots.insert(snapshot.handle.clone(), Arc::new(snapshot));
                } else if let Some(unfinished) = unfinished_of(&state, lv) {
                    inventory.unfinished.insert(unfinished.handle.clone(), Arc::new(unfinished));
                }
            }
            if records(&inventory) > before
                || used.contains(&state.uuid)
                || told.vgs.contains_key(&state.uuid)
            {
                inventory.vgs.insert(state.uuid.clone(), state.name.clone());
            }
        }
        inventory.troubles = self.troubles(&inventory);
        share(&told, &mut inventory);
        inventory
    }
}

fn ticks() -> Interval {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

fn records(inventory: &Inventory) -> usize {
    let Inventory { volumes, snapshots, unfinished, .. } = inventory;
    volumes.len().saturating_add(snapshots.len()).saturating_add(unfinished.len())
}

fn ready_vg(status: &BackendStatus) -> Option<&crate::names::LvmUuid> {
    match &status.state {
        BackendState::Ready { vg, .. } => Some(vg),
        BackendState::Unusable(_) | BackendState::Unknown(_) => None,
    }
}

/// Records that did not change stay the same in memory, also for whoever holds the old inventory.
fn share(old: &Inventory, new: &mut Inventory) {
    fn keep<T: PartialEq>(old: &BTreeMap<Handle, Arc<T>>, new: &mut BTreeMap<Handle, Arc<T>>) {
        for (handle, record) in new {
            if let Some(same) = old.get(handle).filter(|o| *o == record) {
                *record = Arc::clone(same);
            }
        }
    }
    keep(&old.volumes, &mut new.volumes);
    keep(&old.snapshots, &mut new.snapshots);
    keep(&old.unfinished, &mut new.unfinished);
}

/// The record of an LV that is a volume of ours.
pub(super) fn volume_of(state: &VgState, lv: &Lv) -> Option<Volume> {
    if !lv.is_volume() {
        return None;
    }
    let source = lv.tags.source.as_ref().map(|source| match source {
        Source::Volume(lv) => ContentSource::Volume(state.handle(lv)),
        Source::Snapshot(lv) => ContentSource::Snapshot(state.handle(lv)),
    });
    Some(Volume {
        handle: state.handle(&lv.name),
        name: lv.csi_name()?,
        size: lv.payload(),
        source,
        provisioning: if lv.pool().is_some() { Provisioning::Thin } else { Provisioning::Thick },
        encrypted: lv.tags.luks,
        created_unix: lv.created_unix,
        claim: lv.tags.claim.clone(),
    })
}

/// The record of an LV that is a snapshot of ours.
pub(super) fn snapshot_of(state: &VgState, lv: &Lv) -> Option<Snapshot> {
    if !lv.is_snapshot() || lv.is_unfinished() {
        return None;
    }
    Some(Snapshot {
        handle: state.handle(&lv.name),
        name: lv.csi_name()?,
        source: state.handle(lv.tags.source.as_ref()?.lv()),
        size: lv.payload(),
        created_unix: lv.created_unix,
        ready: true,
    })
}

/// The record of an LV that is to become a volume or snapshot of ours, or was to go.
fn unfinished_of(state: &VgState, lv: &Lv) -> Option<Unfinished> {
    if !lv.is_unfinished() {
        return None;
    }
    let what = match lv.tags.kind {
        Some(Kind::Volume) if lv.is_volume() => What::Volume,
        Some(Kind::Snapshot) if lv.is_snapshot() => What::Snapshot,
        _ => return None,
    };
    let source = lv.tags.source.as_ref().filter(|_| what == What::Snapshot);
    Some(Unfinished {
        handle: state.handle(&lv.name),
        what,
        name: lv.csi_name()?,
        size: lv.payload(),
        created_unix: lv.created_unix,
        claim: lv.tags.claim.clone(),
        source: source.map(|source| state.handle(source.lv())),
    })
}
