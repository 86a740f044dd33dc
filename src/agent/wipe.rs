//! Wiping: clears the volumes that were deleted and whose class says that nothing of them may stay
//! on the disks, then removes them. Beside all calls, one volume of a VG at a time; the VG's turn is
//! taken for LVM's commands only. What is trash stands in the VG's metadata, so that an agent that
//! starts goes on where the one before it was cut.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Agent;
use super::blocking::blocking;
use super::carry_out::own_lv;
use super::store::Vg;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::host::dm::DmDevice;
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::lvm::tag::{Kind, Wipe, wiped_tag};
use crate::names::{LvName, LvmUuid};
use crate::plan::{self, Plan};
use crate::units::Bytes;

/// Zeroes are written in pieces of this: small enough that a disk's other users hardly notice one.
const ZERO_PIECE: Bytes = Bytes::mib(16);
/// A discard writes nothing, and pieces cost more than they save.
const DISCARD_PIECE: Bytes = Bytes::gib(1);
/// How much is zeroed before that is written into the VG's metadata: some minutes' work is lost by
/// a cut, and LVM runs once for it. A discard takes seconds and begins again.
const REMEMBER_EVERY: Bytes = Bytes::gib(64);
/// How often a volume that could not be cleared is tried again, and looked for what changed unseen.
const TRY_EVERY: Duration = Duration::from_mins(1);
const TELL_EVERY: Duration = Duration::from_mins(1);

/// What is known of wiping beside the VGs' metadata.
#[derive(Debug, Default)]
pub(super) struct Wiping {
    /// VGs in which a volume is being cleared.
    busy: Mutex<BTreeSet<LvmUuid>>,
    /// Volumes that were removed though their disks took no discard.
    undiscarded: AtomicU64,
}

/// One clears the trash of a VG, until this is dropped.
struct Busy<'a> {
    wiping: &'a Wiping,
    vg: &'a LvmUuid,
}

impl<'a> Busy<'a> {
    fn take(wiping: &'a Wiping, vg: &'a LvmUuid) -> Option<Self> {
        let mut busy = wiping.busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Not made before it is known to be ours: to drop one frees the place.
        busy.insert(vg.clone()).then(|| Self { wiping, vg })
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.wiping.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(self.vg);
    }
}

/// How a volume is being cleared.
struct Work {
    how: Wipe,
    piece: Bytes,
    /// Bytes a second.
    rate: Bytes,
    /// What is cleared already.
    from: Bytes,
}

impl<H: Host> Agent<H> {
    /// Deleted volumes that are still there, to be cleared or for their thick snapshots: how many, and
    /// how large.
    #[must_use]
    pub fn trash(&self) -> (u64, Bytes) {
        let mut count = 0_u64;
        let mut size = Bytes::ZERO;
        for vg in self.0.store.all() {
            for lv in vg.state().lvs.values().filter(|lv| lv.is_trash()) {
                count = count.saturating_add(1);
                size = size.saturating_add(lv.size);
            }
        }
        (count, size)
    }

    /// Volumes that were removed uncleared since the start, because their disks took no discard.
    #[must_use]
    pub fn undiscarded(&self) -> u64 {
        self.0.wiping.undiscarded.load(Ordering::Relaxed)
    }

    /// Clears what is deleted, for ever.
    pub(super) async fn keep_wiping(&self) {
        let mut changes = self.0.store.changes();
        let mut tick = tokio::time::interval(TRY_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = changes.changed() => {}
                _ = tick.tick() => {}
            }
            for vg in self.0.store.all() {
                if has_trash(&vg.state()) && !self.0.stop.is_cancelled() {
                    let agent = self.clone();
                    drop(self.0.tasks.spawn(async move { agent.empty_trash(&vg).await }));
                }
            }
        }
    }

    /// Clears all trash of a VG, unless another one does.
    async fn empty_trash(&self, vg: &Vg) {
        // Looked at again after the place is free: what came meanwhile is nobody else's.
        while has_trash(&vg.state()) && !self.0.stop.is_cancelled() {
            let Some(_busy) = Busy::take(&self.0.wiping, &vg.uuid) else { return };
            let mut failed = BTreeSet::new();
            while let Some(uuid) = next_trash(&vg.state(), &failed) {
                if self.0.stop.is_cancelled() {
                    return;
                }
                if let Err(error) = self.wipe(vg, &uuid).await {
                    if !self.0.stop.is_cancelled() {
                        let lv = LvName::trash(&uuid);
                        tracing::warn!(vg = %vg.name(), %lv, error = error.chain(), "cannot wipe a deleted volume; trying again in {TRY_EVERY:?}");
                    }
                    failed.insert(uuid);
                }
            }
            if !failed.is_empty() {
                self.pause(TRY_EVERY).await;
            }
        }
    }

    async fn wipe(&self, vg: &Vg, uuid: &LvmUuid) -> Result<()> {
        let lv = LvName::trash(uuid);
        let _guard = self.0.guards.lv(&vg.uuid, &lv)?;
        // Without a disk of its VG it could not be removed afterwards, and would be cleared again and again.
        let state = self.0.store.turn(vg).await?.refresh().await?;
        let found = own_lv(&state, &lv)?;
        if !may_go(&state, found) {
            return Err(Error::unavailable(format!("{lv} has thick snapshots")));
        }
        self.must_be_idle(&state, &lv).await?;
        // Not yet done if it was kept for its snapshots. What is split from a volume has no header.
        if found.tags.kind == Some(Kind::Volume) {
            self.erase_keys(vg, &state, found).await?;
        }
        if found.tags.wipe.is_none() {
            // It was kept for its snapshots, and nothing else.
            self.carry_out(vg, |state, _| Ok(plan::remove::trash(state, uuid))).await?;
            return Ok(());
        }
        if !found.writable {
            self.make_writable(vg, &lv, uuid).await?;
        }
        let device = self.activate(vg, &lv).await?;
        let work = self.work(&state, found);
        let (size, from, how) = (device.size, work.from, work.how);
        tracing::info!(vg = %state.name, %lv, %size, %from, %how, "wiping a deleted volume");
        let started = Instant::now();
        match self.clear(vg, found, &device, &work).await {
            Ok(()) => {
                let elapsed = started.elapsed();
                tracing::info!(vg = %state.name, %lv, %size, %how, ?elapsed, "wiped a deleted volume");
            }
            Err(error) if error.kind() == ErrorKind::Unimplemented => {
                self.0.wiping.undiscarded.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(vg = %state.name, %lv, %size, error = error.chain(), "no discard reaches its disks: the volume is removed, and what was in it stays on them until it is overwritten");
            }
            Err(error) => return Err(error),
        }
        self.carry_out(vg, |state, _| Ok(plan::remove::trash(state, uuid))).await?;
        Ok(())
    }

    fn work(&self, state: &VgState, lv: &Lv) -> Work {
        let rate = self.wipe_rate(state);
        match (lv.tags.wipe, pool_chunk(state, lv)) {
            (Some(Wipe::Zero), None) => {
                let from = lv.tags.wiped_bytes.unwrap_or_default();
                Work { how: Wipe::Zero, piece: ZERO_PIECE, rate, from }
            }
            // Zeroes would fill a pool: in one, nothing but a discard is ever done.
            (_, chunk) => {
                let chunk = chunk.unwrap_or(Bytes::kib(64)).get().max(1);
                // A pool gives back whole chunks, so that none may lie in two pieces.
                let count = DISCARD_PIECE.get().checked_div(chunk).unwrap_or_default().max(1);
                let piece = Bytes::new(chunk.saturating_mul(count));
                Work { how: Wipe::Discard, piece, rate, from: Bytes::ZERO }
            }
        }
    }

    /// A pool takes a discard of a volume and forgets the blocks, whether or not its disks come to
    /// know of it.
    async fn discard_must_arrive(&self, state: &VgState, pool: &LvName) -> Result<()> {
        let status = self.pool_status(state, pool).await?;
        if status.is_some_and(|status| status.passes_discards) {
            return Ok(());
        }
        let sentence = format!("thin pool {}/{pool} passes no discard on to its disks", state.name);
        Err(Error::new(ErrorKind::Unimplemented, sentence))
    }

    /// Clears a device from where it was left to its end.
    async fn clear(&self, vg: &Vg, lv: &Lv, device: &DmDevice, work: &Work) -> Result<()> {
        let (total, how) = (device.size.get(), work.how);
        if let Some(pool) = lv.pool() {
            self.discard_must_arrive(&vg.state(), pool).await?;
        }
        let mut at = work.from.get().min(total);
        let mut remembered = at;
        let mut told = Instant::now();
        while at < total {
            if self.0.stop.is_cancelled() {
                return Err(Error::unavailable(
                    "the agent is ending; wiping goes on at its next start",
                ));
            }
            let len = work.piece.get().min(total.saturating_sub(at));
            let (node, started) = (device.node.clone(), Instant::now());
            blocking(&self.0.store.host, move |host| host.clear_device(&node, how, at, len))
                .await?
                .map_err(|e| refused(how, &device.name, at, e))?;
            at = at.saturating_add(len);
            if how == Wipe::Zero
                && at < total
                && at.saturating_sub(remembered) >= REMEMBER_EVERY.get()
            {
                remembered = at;
                if let Err(error) = self.remember(vg, &lv.name, Bytes::new(at)).await {
                    tracing::warn!(vg = %vg.name(), lv = %lv.name, error = error.chain(), "cannot note how much is wiped: a restart begins further back");
                }
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                let (done, of) = (Bytes::new(at), device.size);
                tracing::info!(vg = %vg.name(), lv = %lv.name, %done, %of, "wiping a deleted volume");
            }
            self.pause(rest(work, len, started.elapsed())).await;
        }
        Ok(())
    }

    /// Waits, or until the agent ends.
    async fn pause(&self, time: Duration) {
        if !time.is_zero() {
            self.0.stop.run_until_cancelled(tokio::time::sleep(time)).await;
        }
    }

    /// A snapshot is read-only, and the kernel discards nothing that is.
    async fn make_writable(&self, vg: &Vg, lv: &LvName, uuid: &LvmUuid) -> Result<()> {
        let change = Change::MakeWritable { lv: lv.clone(), uuid: uuid.clone() };
        self.carry_out(vg, |state, _| {
            Ok(match state.lvs.get(lv).filter(|lv| lv.is_trash() && !lv.writable) {
                Some(_) => Plan::Steps(vec![change.clone()]),
                None => Plan::Done,
            })
        })
        .await
        .map(drop)
    }

    /// Writes into the VG's metadata how much is cleared.
    async fn remember(&self, vg: &Vg, lv: &LvName, bytes: Bytes) -> Result<()> {
        let mut turn = self.0.store.turn(vg).await?;
        let state = turn.refresh().await?;
        let found = own_lv(&state, lv)?;
        let change = Change::Retag {
            lv: lv.clone(),
            uuid: found.uuid.clone(),
            add: vec![wiped_tag(bytes)],
            del: found.tags.wiped_bytes.map(wiped_tag).into_iter().collect(),
        };
        turn.run(&change).await?;
        turn.refresh().await.map(drop)
    }
}

fn has_trash(state: &VgState) -> bool {
    state.lvs.values().any(|lv| may_go(state, lv))
}

/// Whether it is trash that nothing depends on: a thick snapshot cannot be read without its origin.
fn may_go(state: &VgState, lv: &Lv) -> bool {
    lv.is_trash() && state.cow_snapshots(&lv.name).next().is_none()
}

fn next_trash(state: &VgState, but: &BTreeSet<LvmUuid>) -> Option<LvmUuid> {
    state
        .lvs
        .values()
        .find(|lv| may_go(state, lv) && !but.contains(&lv.uuid))
        .map(|lv| lv.uuid.clone())
}

/// The unit in which the pool of a thin LV gives blocks out.
fn pool_chunk(state: &VgState, lv: &Lv) -> Option<Bytes> {
    let LvLayout::ThinPool { chunk_size, .. } = state.lvs.get(lv.pool()?)?.layout else {
        return None;
    };
    Some(chunk_size)
}

/// How long the disks are left to others after a piece. Zeroes keep to a rate; a discard, whose cost
/// nobody knows beforehand, takes half of the time.
fn rest(work: &Work, len: u64, took: Duration) -> Duration {
    match work.how {
        Wipe::Discard => took,
        Wipe::Zero => {
            let millis = len.saturating_mul(1000).checked_div(work.rate.get()).unwrap_or_default();
            Duration::from_millis(millis).saturating_sub(took)
        }
    }
}

fn refused(how: Wipe, device: &str, at: u64, error: std::io::Error) -> Error {
    let sentence = format!("cannot wipe {device} by {how} at byte {at}");
    match (how, error.kind()) {
        (Wipe::Discard, std::io::ErrorKind::Unsupported) => {
            Error::new(ErrorKind::Unimplemented, sentence).because(error)
        }
        (_, std::io::ErrorKind::ResourceBusy) => {
            Error::failed_precondition(format!("{sentence}: it is in use")).because(error)
        }
        _ => Error::host(sentence).because(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_keep_to_their_rate_and_discards_leave_half_of_the_time() {
        let work = |how| Work { how, piece: ZERO_PIECE, rate: Bytes::mib(16), from: Bytes::ZERO };
        let seconds = Duration::from_secs;
        let len = ZERO_PIECE.get();
        assert_eq!(
            rest(&work(Wipe::Zero), len, Duration::from_millis(300)),
            Duration::from_millis(700)
        );
        assert_eq!(rest(&work(Wipe::Zero), len, seconds(3)), Duration::ZERO);
        assert_eq!(rest(&work(Wipe::Discard), len, seconds(3)), seconds(3));
    }
}
