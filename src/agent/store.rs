//! The volume groups of this node, each with its queue: who may change one, how a change is carried
//! out, and how we come to know what it holds. LVM runs here and nowhere else in the agent.
//!
//! What a VG holds is first told by LVM's own report. From then on its disks are read, which must
//! give the same; where they cannot be read, or LVM and the disks ever disagree, the report decides
//! again. What neither can tell is an error ([`crate::error::ErrorKind::Unavailable`]), never "not there".

mod change;
mod flush;
mod mend;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};

use super::blocking::{Places, blocking};
use super::disks::{Disks, Look};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lvm::command;
use crate::lvm::metadata;
use crate::lvm::report::{self, Report};
use crate::lvm::state::VgState;
use crate::names::{LvmUuid, VgName};
use change::{failure, lost};

/// Calls that wait for one VG. LVM takes some 100 ms a call: more would wait longer than any
/// caller does.
const QUEUE_MAX: usize = 256;
/// How often the disks are looked at again before LVM is asked: a commit in progress takes
/// milliseconds.
const LOOKS_MAX: u32 = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// All VGs of this node.
#[derive(Debug)]
pub(super) struct Store<H> {
    pub(super) host: Arc<H>,
    pub(super) places: Places,
    vgs: RwLock<BTreeMap<LvmUuid, Arc<Vg>>>,
    /// What the last report said beside the VGs.
    last: RwLock<Option<Scanned>>,
    scanning: Mutex<()>,
    changes: watch::Sender<u64>,
}

/// What a report said beside the VGs themselves.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    /// VGs that LVM could not report, and why.
    pub(super) incomplete: BTreeMap<String, String>,
    /// PVs in no VG.
    pub(super) orphans: BTreeMap<LvmUuid, PathBuf>,
}

/// One VG.
#[derive(Debug)]
pub(super) struct Vg {
    pub(super) uuid: LvmUuid,
    state: watch::Sender<Arc<VgState>>,
    turn: Mutex<Disks>,
    waiting: AtomicUsize,
    /// What LVM does not come to the end of.
    hanging: RwLock<Option<String>>,
    /// Whether an LVM command may have been cut.
    cut: AtomicBool,
    /// Whether its disks have told the same as LVM so far.
    readable: AtomicBool,
    /// How often it was learnt, by whoever had the turn, what it holds.
    learnt: AtomicU64,
    /// Whether the next look has to read the text, whatever is committed.
    look_anew: AtomicBool,
    /// Which commit is known to be on the medium, and not in a disk's cache alone. 0: none.
    flushed: AtomicU64,
}

/// How often it had been learnt what each VG holds when a report was begun: what the report says of one
/// of which more was learnt since may be older than that.
type Begun = BTreeMap<LvmUuid, u64>;

/// The right to change a VG.
#[derive(Debug)]
pub(super) struct Turn<'a, H> {
    store: &'a Store<H>,
    vg: &'a Vg,
    disks: MutexGuard<'a, Disks>,
}

impl<H: Host> Store<H> {
    pub(super) fn new(host: Arc<H>) -> Self {
        let changes = watch::Sender::new(0);
        Self {
            host,
            places: Places::default(),
            vgs: RwLock::default(),
            last: RwLock::default(),
            scanning: Mutex::default(),
            changes,
        }
    }

    /// All VGs that the last report knew.
    pub(super) fn all(&self) -> Vec<Arc<Vg>> {
        self.vgs.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What the last report said beside the VGs. `None` before the first.
    pub(super) fn scanned(&self) -> Option<Scanned> {
        self.last.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sees every change of what any VG holds.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The VG with that identifier.
    ///
    /// # Errors
    /// When this node does not see it now: that says nothing about what it holds.
    pub(super) fn vg(&self, uuid: &LvmUuid) -> Result<Arc<Vg>> {
        let vgs = self.vgs.read().unwrap_or_else(PoisonError::into_inner);
        vgs.get(uuid).cloned().ok_or_else(|| {
            Error::unavailable(format!(
                "this node sees no volume group with the identifier {uuid} now: its disks may be missing"
            ))
        })
    }

    /// Asks LVM for everything.
    ///
    /// # Errors
    /// When LVM gives no report; then nothing is changed in what we know.
    pub(super) async fn scan(&self) -> Result<()> {
        let _one = self.scanning.lock().await;
        let begun = self.begun();
        let report = self.report().await?;
        self.take(report, &begun, None);
        Ok(())
    }

    fn begun(&self) -> Begun {
        self.all().iter().map(|vg| (vg.uuid.clone(), vg.learnt.load(Ordering::Relaxed))).collect()
    }

    async fn report(&self) -> Result<Report> {
        let call = command::report();
        let unavailable = |why: &str| Error::unavailable(format!("LVM gives no report: {why}"));
        let done =
            self.host.run(&call).await.map_err(|e| unavailable("it did not run").because(e))?;
        report::parse(&done.stdout).map_err(|e| {
            // LVM writes nothing to the report when it fails early.
            unavailable(&done.complaint()).because(e)
        })
    }

    /// Takes over what a report says: of a VG that is being changed, or was looked at since the report
    /// was begun, nothing. `own` is the VG whose turn the caller has.
    fn take(&self, report: Report, begun: &Begun, own: Option<&LvmUuid>) {
        let mut vgs = self.vgs.write().unwrap_or_else(PoisonError::into_inner);
        let mut gone: Vec<LvmUuid> = vgs.keys().cloned().collect();
        for state in report.vgs {
            gone.retain(|uuid| *uuid != state.uuid);
            match vgs.get(&state.uuid) {
                Some(vg) => vg.take(state, begun, own),
                None => drop(vgs.insert(state.uuid.clone(), Arc::new(Vg::new(state)))),
            }
        }
        for uuid in gone {
            if vgs.get(&uuid).is_some_and(|vg| !vg.may_be_taken(begun, own)) {
                continue;
            }
            // Forgotten, not absent: whoever asks for it is told that it is not seen.
            if let Some(vg) = vgs.remove(&uuid) {
                tracing::warn!(vg = %vg.state().name, %uuid, "LVM does not report the volume group any more");
            }
        }
        drop(vgs);
        for (name, why) in &report.incomplete {
            tracing::warn!(vg = name, why, "LVM could not report the volume group");
        }
        let scanned = Scanned { incomplete: report.incomplete, orphans: report.orphans };
        *self.last.write().unwrap_or_else(PoisonError::into_inner) = Some(scanned);
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Waits for the right to change a VG.
    ///
    /// # Errors
    /// When too many wait already.
    pub(super) async fn turn<'a>(&'a self, vg: &'a Vg) -> Result<Turn<'a, H>> {
        let waiting = Waiting::new(vg)?;
        let disks = vg.turn.lock().await;
        drop(waiting);
        Ok(Turn { store: self, vg, disks })
    }

    /// Looks whether somebody else changed a VG, unless it is being changed by us now. Whether there may
    /// be something to mend.
    pub(super) async fn notice(&self, vg: &Vg) -> bool {
        let Ok(disks) = vg.turn.try_lock() else { return false };
        let mut turn = Turn { store: self, vg, disks };
        if let Err(error) = turn.refresh().await {
            tracing::warn!(vg = %vg.state().name, error = error.chain(), "cannot read the volume group");
            return false;
        }
        // A VG in which nothing is ours is for others to mend.
        vg.may_be_cut() && vg.state().lvs.values().any(|lv| lv.tags.is_ours())
    }

    /// Mends what a command left that was cut, unless the VG is being changed by us now: then that does.
    pub(super) async fn mend(&self, vg: &Vg) {
        let Ok(disks) = vg.turn.try_lock() else { return };
        Turn { store: self, vg, disks }.mend().await;
    }

    /// Has LVM resume what is held in a VG, as far as it is ours.
    ///
    /// # Errors
    /// It cannot be read, or still holds something.
    pub(super) async fn resume(&self, vg: &Vg) -> Result<()> {
        if self.turn(vg).await?.resume().await? {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "in volume group {} something is suspended still: LVM is at work there, or cannot resume it (the lines above say why)",
            vg.name()
        )))
    }

    /// Runs a command that makes PVs or VGs.
    ///
    /// # Errors
    /// When it failed, with what LVM said.
    pub(super) async fn run(&self, call: &crate::host::invocation::Invocation) -> Result<()> {
        let label = call.label();
        let done = self.host.run(call).await.map_err(|e| lost(&label, e))?;
        if done.success() { Ok(()) } else { Err(Error::host(failure(&label, &done))) }
    }
}

impl Vg {
    fn new(state: VgState) -> Self {
        Self {
            uuid: state.uuid.clone(),
            state: watch::Sender::new(Arc::new(state)),
            turn: Mutex::default(),
            waiting: AtomicUsize::new(0),
            hanging: RwLock::default(),
            cut: AtomicBool::new(true),
            readable: AtomicBool::new(true),
            learnt: AtomicU64::new(0),
            look_anew: AtomicBool::new(false),
            flushed: AtomicU64::new(0),
        }
    }

    /// What it held when we last looked.
    pub(super) fn state(&self) -> Arc<VgState> {
        Arc::clone(&self.state.borrow())
    }

    pub(super) fn name(&self) -> VgName {
        self.state.borrow().name.clone()
    }

    /// What LVM does not come to the end of, in a sentence. `None` when all is well.
    pub(super) fn hanging(&self) -> Option<String> {
        self.hanging.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a report says of it, if that can be no older than what is known.
    fn take(&self, state: VgState, begun: &Begun, own: Option<&LvmUuid>) {
        let state = Arc::new(with_queued_of(state, &self.state()));
        if own == Some(&self.uuid) {
            self.learn(state);
            return;
        }
        // Nobody begins to change it, or to look at it, meanwhile.
        let turn = self.turn.try_lock();
        if turn.is_ok() && self.is_as_begun(begun) {
            self.set(state);
        }
        // What is known now need not be what was read from the disks last.
        self.look_anew.store(true, Ordering::Relaxed);
    }

    /// Whether what a report says of it now can be no older than what is known.
    fn may_be_taken(&self, begun: &Begun, own: Option<&LvmUuid>) -> bool {
        own == Some(&self.uuid) || (self.turn.try_lock().is_ok() && self.is_as_begun(begun))
    }

    fn is_as_begun(&self, begun: &Begun) -> bool {
        begun.get(&self.uuid) == Some(&self.learnt.load(Ordering::Relaxed))
    }

    /// What whoever has the turn learnt of it.
    fn learn(&self, state: Arc<VgState>) -> bool {
        self.learnt.fetch_add(1, Ordering::Relaxed);
        self.set(state)
    }

    fn set(&self, state: Arc<VgState>) -> bool {
        self.state.send_if_modified(|old| {
            let changed = **old != *state;
            if changed {
                *old = state;
            }
            changed
        })
    }
}

impl<H: Host> Turn<'_, H> {
    /// What the VG holds now.
    ///
    /// # Errors
    /// When that cannot be told, or disks are missing.
    pub(super) async fn refresh(&mut self) -> Result<Arc<VgState>> {
        let state = self.refresh_though_partial().await?;
        if state.is_partial() { Err(partial(&state)) } else { Ok(state) }
    }

    /// The same, also when disks are missing: nothing may be changed then, and what is not there
    /// may be on them.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(super) async fn refresh_though_partial(&mut self) -> Result<Arc<VgState>> {
        let state = match self.look().await? {
            Some(state) => state,
            None => self.ask_lvm().await?,
        };
        if state.exported || !state.system_id.is_empty() {
            return Err(Error::unavailable(format!(
                "volume group {} is exported or belongs to another host (system id {:?}): import it with vgimport or vgchange --systemid",
                state.name, state.system_id
            )));
        }
        Ok(state)
    }

    /// Reads the disks. `None` when they do not tell for sure.
    async fn look(&mut self) -> Result<Option<Arc<VgState>>> {
        if !self.vg.readable.load(Ordering::Relaxed) {
            return Ok(None);
        }
        for again in 0..LOOKS_MAX {
            if again > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            if self.vg.look_anew.swap(false, Ordering::Relaxed) {
                self.disks.forget();
            }
            let known = self.vg.state();
            let devices: BTreeMap<LvmUuid, PathBuf> = known
                .pvs
                .iter()
                .filter_map(|(uuid, pv)| Some((uuid.clone(), pv.device.clone()?)))
                .collect();
            let mut disks = std::mem::take(&mut *self.disks);
            let pvs = devices.clone();
            let reading = blocking(&self.store.host, move |host| {
                let look = disks.look(host, &pvs);
                (look, disks)
            });
            let (look, disks) = self.wait_for("reading the metadata", reading).await?;
            *self.disks = disks;
            match look {
                Look::Unchanged => return Ok(Some(known)),
                Look::Unsure(why) => {
                    tracing::debug!(vg = %known.name, why, "the disks do not tell for sure");
                }
                Look::Text(text) => match metadata::parse(&text, &devices) {
                    // A disk was added or replaced: LVM knows where it is.
                    Ok(state) if state.uuid != known.uuid || state.is_partial() => break,
                    Ok(state) => return Ok(Some(self.learn(state))),
                    Err(error) => {
                        tracing::warn!(vg = %known.name, %error, "the metadata on disk is not understood; LVM is asked instead");
                        break;
                    }
                },
            }
        }
        self.disks.forget();
        Ok(None)
    }

    async fn ask_lvm(&mut self) -> Result<Arc<VgState>> {
        let _one = self.store.scanning.lock().await;
        let begun = self.store.begun();
        let report = self.store.report().await?;
        let uuid = &self.vg.uuid;
        let seen = report.vgs.iter().any(|vg| vg.uuid == *uuid);
        let why = report.incomplete.get(self.vg.name().as_str()).cloned();
        self.store.take(report, &begun, Some(uuid));
        if seen {
            return Ok(self.vg.state());
        }
        Err(Error::unavailable(match why {
            Some(why) => format!("LVM could not report volume group {}: {why}", self.vg.name()),
            None => format!("LVM does not see volume group {} ({uuid}) any more", self.vg.name()),
        }))
    }

    fn learn(&self, state: VgState) -> Arc<VgState> {
        let state = Arc::new(state);
        if self.vg.learn(Arc::clone(&state)) {
            self.store.changed();
        }
        state
    }

    /// Compares what the disks tell with what LVM told just now. When they differ, the disks are
    /// not read any more.
    pub(super) async fn compare(&mut self) -> Result<()> {
        let told = self.vg.state();
        self.disks.forget();
        let Some(read) = self.look().await? else { return Ok(()) };
        let told = Arc::new(with_queued_of(VgState::clone(&told), &read));
        if *told != *read && told.seqno == read.seqno {
            tracing::error!(
                vg = %told.name,
                "LVM's report and the metadata on disk differ; LVM is asked after every change from now on. Please report this."
            );
            self.vg.readable.store(false, Ordering::Relaxed);
            self.vg.learn(told);
        }
        Ok(())
    }
}

/// Counts one who waits for a turn, until it is dropped.
struct Waiting<'a>(&'a Vg);

impl<'a> Waiting<'a> {
    fn new(vg: &'a Vg) -> Result<Self> {
        let before = vg.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Self(vg);
        if before >= QUEUE_MAX {
            return Err(Error::unavailable(format!(
                "{QUEUE_MAX} calls wait for volume group {} already; try again later",
                vg.name()
            )));
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What LVM reports, with what only the disks tell.
fn with_queued_of(mut told: VgState, read: &VgState) -> VgState {
    if told.seqno == read.seqno {
        for (name, lv) in &mut told.lvs {
            lv.queued = read.lvs.get(name).is_some_and(|read| read.queued && read.uuid == lv.uuid);
        }
    }
    told
}

/// That disks are missing, and which.
pub(super) fn partial(state: &VgState) -> Error {
    let missing = state.pvs.iter().filter(|(_, pv)| pv.device.is_none());
    let missing: Vec<_> = missing.map(|(id, _)| id.as_str()).collect();
    Error::unavailable(format!(
        "volume group {} misses physical volume {}: bring the disk back",
        state.name,
        missing.join(", ")
    ))
}
