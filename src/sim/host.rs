//! The simulated host: every effect passes one gate, where faults strike. What an effect does to the
//! world is not known here.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::fault::{Fault, Mode};
use super::random::Random;
use super::world::World;

/// What a call takes at most, where calls take their time.
const CALL_MILLIS_MAX: u64 = 40;

/// A host in memory. Clones are one; an agent that dies leaves it behind for the next.
#[derive(Clone, Debug)]
pub struct SimHost {
    world: Arc<Mutex<World>>,
    gate: Arc<Mutex<Gate>>,
    /// Whether the agent's process is dead.
    dead: watch::Sender<bool>,
    /// LVM's changes with this in them do not come to their end.
    stalled: watch::Sender<Option<String>>,
    /// Answers of LVM that are late, though what they say is of when it was asked.
    late: watch::Sender<Option<String>>,
    /// Calls about what has one of these in its name get no answer.
    silent: watch::Sender<Vec<String>>,
}

#[derive(Debug, Default)]
struct Gate {
    fault: Option<Fault>,
    effects: Vec<String>,
    runs: Vec<String>,
    pace: Option<Random>,
    /// Whether a call that is being made is about something silent.
    met_silence: bool,
    /// Calls that have no answer yet.
    unanswered: usize,
}

/// What the gate says of an effect.
pub(super) enum Pass {
    Free,
    Strike(Mode),
    Dead,
}

impl SimHost {
    /// A host.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self {
            world: Arc::new(Mutex::new(world)),
            gate: Arc::default(),
            dead: watch::Sender::new(false),
            stalled: watch::Sender::new(None),
            late: watch::Sender::new(None),
            silent: watch::Sender::new(Vec::new()),
        }
    }

    /// The same machine for the process that comes after this one: what is left of that one, which is
    /// dead from now on, does nothing to it any more.
    #[must_use]
    pub fn next_process(&self) -> Self {
        self.dead.send_replace(true);
        let gate = Gate { pace: self.gate().pace.clone(), ..Gate::default() };
        Self {
            world: Arc::clone(&self.world),
            gate: Arc::new(Mutex::new(gate)),
            dead: watch::Sender::new(false),
            stalled: watch::Sender::new(None),
            late: watch::Sender::new(None),
            silent: watch::Sender::new(Vec::new()),
        }
    }

    /// From now on every call takes a while, how long is made from this number: which of several
    /// that run at once is the first to have its effect differs from number to number, and is the
    /// same each time with the same one.
    pub fn pace(&self, seed: u64) {
        self.gate().pace = Some(Random::new(seed));
    }

    /// From now on LVM hangs in changes whose commands have this in them; `None`: in none any more.
    pub fn stall(&self, part: Option<&str>) {
        self.stalled.send_replace(part.map(ToOwned::to_owned));
    }

    /// From now on the answers of LVM's reads that have this in them are held back; `None`: none any more.
    pub fn hold_back(&self, part: Option<&str>) {
        self.late.send_replace(part.map(ToOwned::to_owned));
    }

    /// From now on the kernel gives no answer to calls about devices, disks and paths with one of these in
    /// their names, as it does when a disk hangs. None: to no call any more.
    pub fn silence(&self, parts: &[&str]) {
        self.silent.send_replace(parts.iter().map(|part| (*part).to_owned()).collect());
    }

    /// Calls that have got no answer so far: each has a thread.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.gate().unanswered
    }

    /// Waits until the agent's process is dead.
    pub async fn death(&self) {
        // The sender is here, so that it cannot end otherwise.
        drop(self.dead.subscribe().wait_for(|dead| *dead).await);
    }

    /// Whether the agent's process is dead.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// What there is now.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a fault strike from now on, counting effects anew; `None` takes it away and brings a
    /// dead process back to life.
    pub fn arm(&self, fault: Option<Fault>) {
        let mut gate = self.gate();
        gate.fault = fault;
        gate.effects.clear();
        self.dead.send_replace(false);
    }

    /// The effects since [`SimHost::arm`].
    #[must_use]
    pub fn effects(&self) -> Vec<String> {
        self.gate().effects.clone()
    }

    /// All programs run since the host was made, by their labels.
    #[must_use]
    pub fn programs_run(&self) -> Vec<String> {
        self.gate().runs.clone()
    }

    /// Takes down that a program is run.
    pub(super) fn note_run(&self, label: String) {
        self.gate().runs.push(label);
    }

    /// Notes what a call is about.
    pub(super) fn ask(&self, what: &str) -> io::Result<()> {
        if self.silent.borrow().iter().any(|part| what.contains(part)) {
            self.gate().met_silence = true;
            return Err(io::Error::other("nobody waits for this answer"));
        }
        Ok(())
    }

    /// What a call gave, when it is given. Whoever does not wait for it ends nothing.
    pub(super) async fn answer<T: Send + 'static>(&self, done: T) -> T {
        if !std::mem::take(&mut self.gate().met_silence) {
            return done;
        }
        {
            let mut gate = self.gate();
            gate.unanswered = gate.unanswered.saturating_add(1);
        }
        let host = self.clone();
        let thread = tokio::spawn(async move {
            drop(host.silent.subscribe().wait_for(Vec::is_empty).await);
            let mut gate = host.gate();
            gate.unanswered = gate.unanswered.saturating_sub(1);
            drop(gate);
            done
        });
        match thread.await {
            Ok(done) => done,
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits for as long as LVM hangs in this command.
    pub(super) async fn hang(&self, command: &str) {
        wait_for_others(&self.stalled, command).await;
    }

    /// Waits for as long as the answer to this command is held back.
    pub(super) async fn be_late(&self, command: &str) {
        wait_for_others(&self.late, command).await;
    }

    /// Has an effect pass the gate.
    pub(super) fn pass(&self, what: String) -> Pass {
        if self.is_dead() {
            return Pass::Dead;
        }
        let mut gate = self.gate();
        let at = gate.effects.len();
        gate.effects.push(what);
        match gate.fault.filter(|fault| fault.at == at) {
            Some(fault) => {
                drop(gate);
                self.dead.send_replace(fault.mode.kills());
                Pass::Strike(fault.mode)
            }
            None => Pass::Free,
        }
    }

    /// Has an effect pass the gate, and does it as the gate says.
    pub(super) fn effect<T>(
        &self,
        what: String,
        work: impl FnOnce(&mut World) -> io::Result<T>,
    ) -> io::Result<T> {
        let struck = || io::Error::other("injected fault");
        match self.pass(what) {
            Pass::Dead => Err(struck()),
            Pass::Free => work(&mut self.world()),
            Pass::Strike(mode) => {
                if mode.happens() {
                    work(&mut self.world())?;
                }
                Err(struck())
            }
        }
    }

    /// An error when the agent's process is dead.
    pub(super) fn alive(&self) -> io::Result<()> {
        if self.is_dead() { Err(io::Error::other("the process is dead")) } else { Ok(()) }
    }

    /// Others get a chance, as they would while something takes its time.
    pub(super) async fn take_time(&self) {
        let millis = self.gate().pace.as_mut().map(|pace| pace.below(CALL_MILLIS_MAX));
        match millis {
            Some(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            None => tokio::task::yield_now().await,
        }
    }
}

async fn wait_for_others(who_waits: &watch::Sender<Option<String>>, command: &str) {
    let goes_on =
        |waits: &Option<String>| waits.as_ref().is_none_or(|part| !command.contains(part));
    // The sender is here, so that it cannot end otherwise.
    drop(who_waits.subscribe().wait_for(goes_on).await);
}
