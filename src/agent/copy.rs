//! Copying: gives volumes the content of a source whose blocks they cannot share. Beside all calls,
//! some volumes of a node at a time; the VG's turn is taken for LVM's commands only. What is to be
//! copied, and how far it is, stands in the VG's metadata, so that an agent that starts goes on where
//! the one before it was cut. Until all of it is there, nobody gets the volume.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::blocking::blocking;
use super::carry_out::own_lv;
use super::store::Vg;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::host::copy::{Copied, Copier};
use crate::host::dm::DmDevice;
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Kind, Pending, Source, Usage, Wipe, copied_tag};
use crate::names::{LvName, LvmUuid};
use crate::plan::{self, Plan};
use crate::units::Bytes;

/// Volumes of a node that are copied at once. More would only make every one of them slower.
const AT_ONCE: usize = 2;
/// What is copied before anybody is asked whether to go on. With a limit, so much as it allows in a
/// quarter of a second.
const PIECE: Bytes = Bytes::mib(64);
/// How often it is written into the VG's metadata how much is copied: so much is copied again after
/// a cut, and LVM runs once for it.
const REMEMBER_EVERY: Duration = Duration::from_secs(20);
/// How often a volume that could not be copied is tried again.
const TRY_EVERY: Duration = Duration::from_mins(1);
/// How long a call waits for the copy before it says how far that is; the sidecars wait a minute.
const WAIT: Duration = Duration::from_secs(40);
/// Whoever works on a volume or its source has done so within some of these.
const GUARD_AGAIN: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_mins(1);
/// What the engine copies in.
const ALIGNMENT: u64 = 4096;

/// All copies.
#[derive(Debug)]
pub(super) struct Copies {
    running: Mutex<BTreeMap<LvmUuid, Arc<Copy>>>,
    /// When those failed that did.
    failed: Mutex<BTreeMap<LvmUuid, Instant>>,
    places: Semaphore,
    bytes: [AtomicU64; 3],
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            failed: Mutex::default(),
            places: Semaphore::new(AT_ONCE),
            bytes: Default::default(),
        }
    }
}

/// What all copies since the start did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyTotals {
    /// Volumes that are being copied, or wait for it.
    pub running: u64,
    /// Bytes read from sources.
    pub read: u64,
    /// Bytes written to volumes.
    pub written: u64,
    /// Bytes zeroed on volumes.
    pub zeroed: u64,
}

/// One volume that is being copied.
#[derive(Debug)]
struct Copy {
    done: AtomicU64,
    total: AtomicU64,
    stop: CancellationToken,
    /// How it ended.
    ended: watch::Sender<Option<std::result::Result<(), String>>>,
}

impl Copies {
    fn running(&self) -> MutexGuard<'_, BTreeMap<LvmUuid, Arc<Copy>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, BTreeMap<LvmUuid, Instant>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, copied: Copied) {
        for (sum, bytes) in self.bytes.iter().zip([copied.read, copied.written, copied.zeroed]) {
            sum.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

impl Copy {
    fn progress(&self) -> String {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        if total == 0 {
            return "waiting for its turn".to_owned();
        }
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or_default();
        format!("{percent}% of {} copied", Bytes::new(total))
    }
}

impl<H: Host> Agent<H> {
    /// What copies do and did.
    #[must_use]
    pub fn copies(&self) -> CopyTotals {
        let [read, written, zeroed] = [0, 1, 2]
            .map(|i: usize| self.0.copies.bytes.get(i).map_or(0, |n| n.load(Ordering::Relaxed)));
        let running = u64::try_from(self.0.copies.running().len()).unwrap_or(u64::MAX);
        CopyTotals { running, read, written, zeroed }
    }

    /// Copies what is to be copied though nobody asks for it any more, for ever.
    pub(super) async fn keep_copying(&self) {
        let mut changes = self.0.store.changes();
        let mut tick = tokio::time::interval(TRY_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = changes.changed() => {}
                _ = tick.tick() => {}
            }
            for vg in self.0.store.all() {
                let state = vg.state();
                self.0.copies.failed().retain(|_, at| at.elapsed() < TRY_EVERY);
                let due = |lv: &&Lv| !self.0.copies.failed().contains_key(&lv.uuid);
                for lv in state.lvs.values().filter(|lv| is_to_be_copied(&state, lv)).filter(due) {
                    drop(self.begin_copy(&vg, lv));
                }
                for image in state.lvs.values().filter(|lv| is_left(&state, lv)).filter(due) {
                    self.remove_image(&vg, image);
                }
                let agent = self.clone();
                self.to_its_end(async move {
                    agent.remove_lost_copies(&vg).await;
                    agent.remove_lost_growths(&vg).await;
                })
                .await;
            }
        }
    }

    /// Waits until a volume's content is complete, or for as long as a caller can wait.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`], with how far it is.
    pub(super) async fn wait_for_copy(&self, vg: &Arc<Vg>, lv: &Lv) -> Result<()> {
        let Some(copy) = self.begin_copy(vg, lv) else {
            return Err(Error::unavailable("the agent is ending; try again"));
        };
        let mut ended = copy.ended.subscribe();
        let end = tokio::time::timeout(WAIT, ended.wait_for(Option::is_some)).await;
        let failed = match end {
            Ok(Ok(end)) => end.clone().and_then(std::result::Result::err),
            Ok(Err(_)) => Some("it was cut".to_owned()),
            Err(_) => {
                return Err(Error::unavailable(format!(
                    "volume {} is being copied from its source: {}; it goes on by itself",
                    lv.name,
                    copy.progress()
                )));
            }
        };
        let Some(why) = failed else { return Ok(()) };
        Err(Error::unavailable(format!("volume {} cannot be copied now: {why}", lv.name)))
    }

    /// Whether a volume's content is being copied, or what that has left being removed.
    pub(super) fn is_being_copied(&self, state: &VgState, lv: &Lv) -> bool {
        is_to_be_copied(state, lv) || self.0.copies.running().contains_key(&lv.uuid)
    }

    /// Stops copying a volume, and waits until that is so.
    pub(super) async fn stop_copy(&self, lv: &LvmUuid) {
        let copy = self.0.copies.running().get(lv).cloned();
        if let Some(copy) = copy {
            copy.stop.cancel();
            let mut ended = copy.ended.subscribe();
            drop(ended.wait_for(Option::is_some).await);
        }
    }

    /// Begins to copy a volume, or finds it begun. `None` when the agent is ending.
    fn begin_copy(&self, vg: &Arc<Vg>, lv: &Lv) -> Option<Arc<Copy>> {
        if self.0.stop.is_cancelled() {
            return None;
        }
        let mut running = self.0.copies.running();
        if let Some(copy) = running.get(&lv.uuid) {
            return Some(Arc::clone(copy));
        }
        let copy = Arc::new(Copy {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stop: self.0.stop.child_token(),
            ended: watch::Sender::new(None),
        });
        running.insert(lv.uuid.clone(), Arc::clone(&copy));
        drop(running);
        let (agent, vg, uuid, name) =
            (self.clone(), Arc::clone(vg), lv.uuid.clone(), lv.name.clone());
        let task = Arc::clone(&copy);
        self.0.tasks.spawn(async move {
            let done = Box::pin(agent.copy(&vg, &name, &uuid, &task)).await;
            if let Err(error) = done.as_ref().map_err(Error::chain)
                && !task.stop.is_cancelled()
            {
                tracing::warn!(vg = %vg.name(), lv = %name, error, "cannot copy a volume; trying again in {TRY_EVERY:?}");
                agent.0.copies.failed().insert(uuid.clone(), Instant::now());
            }
            agent.0.copies.running().remove(&uuid);
            task.ended.send_replace(Some(done.map_err(|error| error.chain())));
        });
        Some(copy)
    }

    async fn copy(&self, vg: &Vg, lv: &LvName, uuid: &LvmUuid, copy: &Copy) -> Result<()> {
        self.set_up_copy(vg, lv, uuid, copy).await?;
        let place = copy.stop.run_until_cancelled(self.0.copies.places.acquire()).await;
        let _place = place.and_then(std::result::Result::ok).ok_or_else(stopped)?;
        let state = vg.state();
        let Some(found) = still(&state, lv, uuid).filter(|lv| is_copying(lv)) else {
            return Ok(());
        };
        let from = plan::copy::source(&state, found).ok_or_else(|| {
            Error::not_found(format!("what volume {lv} is copied from is not there"))
        })?;
        let source = self.activate(vg, &from.name).await?;
        self.must_be_readable(&state, from).await?;
        let target = self.activate(vg, lv).await?;
        let started = Instant::now();
        let at = Bytes::new(copied_so_far(found).min(source.size.get()));
        tracing::info!(vg = %state.name, %lv, from = %from.name, size = %source.size, %at, "copying a volume");
        self.copy_all(vg, found, (&source, &target), copy).await?;
        let (size, elapsed) = (source.size, started.elapsed());
        // What a snapshot showed after its room ran out is not what was taken.
        self.must_be_readable(&state, from).await?;
        self.settle_copy(vg, lv, uuid).await?;
        tracing::info!(vg = %state.name, %lv, from = %from.name, %size, ?elapsed, "copied a volume");
        self.set_up_copy(vg, lv, uuid, copy).await
    }

    /// Takes the image of a volume that is to be copied, and removes one that is not needed any more.
    async fn set_up_copy(&self, vg: &Vg, lv: &LvName, uuid: &LvmUuid, copy: &Copy) -> Result<()> {
        let _guards = loop {
            let source = still(&vg.state(), lv, uuid).and_then(|lv| lv.tags.source.clone());
            let source = source.map(|source| self.0.guards.source(&vg.uuid, source.lv()));
            match (self.0.guards.lv(&vg.uuid, lv), source.transpose()) {
                (Ok(lv), Ok(source)) => break (lv, source),
                _ if copy.stop.is_cancelled() => return Err(stopped()),
                _ => tokio::time::sleep(GUARD_AGAIN).await,
            }
        };
        // The image is taken of the source, or removed from what that is called now.
        let state = vg.state();
        let image = state.lvs.get(&lv.image()).and_then(Lv::cow_origin).cloned();
        let source = still(&state, lv, uuid).and_then(|lv| match lv.tags.source.clone()? {
            Source::Volume(source) => Some(source),
            Source::Snapshot(_) => None,
        });
        if let Some(origin) = image.or(source) {
            self.wait_in_step(vg, &origin).await?;
        }
        self.carry_out(vg, |state, rules| match still(state, lv, uuid) {
            Some(found) => plan::copy::plan(state, rules, found),
            None => Ok(Plan::Done),
        })
        .await
        .map(drop)
    }

    async fn copy_all(
        &self,
        vg: &Vg,
        lv: &Lv,
        (source, target): (&DmDevice, &DmDevice),
        copy: &Copy,
    ) -> Result<()> {
        let payload = source.size.get();
        // Nobody sees behind a filesystem, and noise under a key; a device shows all that it has, and a
        // pool zeroes it.
        let tail = lv.pool().is_none()
            && !lv.tags.luks
            && !matches!(lv.tags.usage, Some(Usage::Filesystem(_)));
        let total = if tail { target.size.get() } else { payload };
        copy.total.store(total, Ordering::Relaxed);
        let mut at = copied_so_far(lv).min(total);
        let mut devices = Copier::new(source.node.clone(), target.node.clone());
        let (mut remembered, mut told) = (Instant::now(), Instant::now());
        while at < total {
            if copy.stop.is_cancelled() {
                return Err(stopped());
            }
            let rate = self.copy_rate(&vg.state());
            let limit = rate.map_or(PIECE, |rate| quarter(rate).min(PIECE)).get();
            let end = if at < payload { payload } else { total };
            let len = limit.min(end.saturating_sub(at));
            let started = Instant::now();
            devices = self.copy_piece(devices, (at, len, at >= payload)).await?;
            at = at.saturating_add(len);
            copy.done.store(at, Ordering::Relaxed);
            if remembered.elapsed() >= REMEMBER_EVERY && at < total {
                self.remember_copied(vg, lv, Bytes::new(at)).await;
                remembered = Instant::now();
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tracing::info!(vg = %vg.name(), lv = %lv.name, progress = copy.progress(), "copying a volume");
            }
            if let Some(rate) = rate {
                let pause = time_of(len, rate).saturating_sub(started.elapsed());
                copy.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
        }
        Ok(())
    }

    /// Copies a range, or zeroes it where the source has nothing any more.
    async fn copy_piece(
        &self,
        devices: Copier,
        (at, len, zero): (u64, u64, bool),
    ) -> Result<Copier> {
        let sentence = format!(
            "cannot copy {} to {} at byte {at}",
            devices.from.display(),
            devices.to.display()
        );
        let (devices, copied) = blocking(&self.0.store.host, move |host| {
            let mut devices = devices;
            if zero {
                // It wants the device for itself.
                devices = Copier::new(devices.from, devices.to);
                let zeroed = host.clear_device(&devices.to, Wipe::Zero, at, len);
                return (devices, zeroed.map(|()| Copied { zeroed: len, ..Copied::default() }));
            }
            let copied = host.copy_device(&mut devices, at, len);
            (devices, copied)
        })
        .await?;
        let copied = copied.map_err(|e| Error::host(sentence).because(e))?;
        self.0.copies.count(copied);
        Ok(devices)
    }

    /// Writes into the VG's metadata how much is copied. What was copied is on the medium.
    async fn remember_copied(&self, vg: &Vg, lv: &Lv, bytes: Bytes) {
        let bytes = Bytes::new(bytes.get().saturating_sub(bytes.get() % ALIGNMENT));
        let noted = self.carry_out(vg, |state, _| {
            Ok(match still(state, &lv.name, &lv.uuid).filter(|lv| is_copying(lv)) {
                Some(now) if now.tags.copied_bytes != Some(bytes) => {
                    let del = now.tags.copied_bytes.map(copied_tag).into_iter().collect();
                    let (lv, uuid) = (lv.name.clone(), lv.uuid.clone());
                    Plan::Steps(vec![Change::Retag { lv, uuid, add: vec![copied_tag(bytes)], del }])
                }
                _ => Plan::Done,
            })
        });
        if let Err(error) = noted.await {
            tracing::warn!(vg = %vg.name(), lv = %lv.name, error = error.chain(), "cannot note how much is copied: a restart begins further back");
        }
    }

    /// Its content is complete: from now on it is like any volume made from a source.
    async fn settle_copy(&self, vg: &Vg, lv: &LvName, uuid: &LvmUuid) -> Result<()> {
        self.carry_out(vg, |state, _| {
            Ok(match still(state, lv, uuid).filter(|lv| is_copying(lv)) {
                Some(found) => Plan::Steps(vec![Change::Retag {
                    lv: lv.clone(),
                    uuid: uuid.clone(),
                    add: vec![Pending::Restored.tag().to_owned()],
                    del: [Pending::Copying.tag().to_owned()]
                        .into_iter()
                        .chain(found.tags.copied_bytes.map(copied_tag))
                        .collect(),
                }]),
                None => Plan::Done,
            })
        })
        .await?;
        self.publish();
        Ok(())
    }

    /// Removes the image of a copy that is not there any more.
    fn remove_image(&self, vg: &Arc<Vg>, image: &Lv) {
        if self.0.stop.is_cancelled() {
            return;
        }
        let origin = image.cow_origin().cloned();
        let (agent, vg, uuid) = (self.clone(), Arc::clone(vg), image.uuid.clone());
        self.0.tasks.spawn(async move {
            let removed = async {
                if let Some(origin) = &origin {
                    agent.wait_in_step(&vg, origin).await?;
                }
                agent.carry_out(&vg, |state, _| Ok(plan::copy::left(state, &uuid))).await
            };
            if let Err(error) = removed.await {
                tracing::warn!(vg = %vg.name(), error = error.chain(), "cannot remove what a copy has left; trying again in {TRY_EVERY:?}");
                agent.0.copies.failed().insert(uuid, Instant::now());
            }
        });
    }
}

fn is_copying(lv: &Lv) -> bool {
    lv.tags.is_ours() && lv.tags.pending == Some(Pending::Copying)
}

/// Whether there is work to do for a volume: its content, or an image that is left.
fn is_to_be_copied(state: &VgState, lv: &Lv) -> bool {
    let image = || state.lvs.get(&lv.name.image()).is_some_and(is_image);
    lv.is_volume() && (is_copying(lv) && !plan::copy::is_lost(state, lv) || image())
}

fn is_image(lv: &Lv) -> bool {
    lv.tags.is_ours() && lv.tags.kind == Some(Kind::Image) && !lv.is_trash()
}

/// Whether it is an image of which nobody knows for what.
fn is_left(state: &VgState, lv: &Lv) -> bool {
    is_image(lv) && !matches!(plan::copy::left(state, &lv.uuid), Plan::Done)
}

fn still<'a>(state: &'a VgState, lv: &LvName, uuid: &LvmUuid) -> Option<&'a Lv> {
    own_lv(state, lv).ok().filter(|lv| lv.uuid == *uuid)
}

fn copied_so_far(lv: &Lv) -> u64 {
    lv.tags.copied_bytes.unwrap_or_default().get()
}

fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the copy was stopped; it goes on at the agent's next start")
}

fn quarter(rate: Bytes) -> Bytes {
    let bytes = rate.get() / 4;
    Bytes::new(bytes.saturating_sub(bytes % ALIGNMENT).max(1 << 20))
}

fn time_of(len: u64, rate: Bytes) -> Duration {
    let millis = len.saturating_mul(1000).checked_div(rate.get()).unwrap_or_default();
    Duration::from_millis(millis)
}
