//! A run of a script: rounds of calls, each explained by the model and compared with what is seen; at
//! the end everything is deleted, and the machine must be as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tonic::Code;

use crate::class::{CLASSES, Class};
use crate::client::Client;
use crate::doubt::later;
use crate::explain::{Circumstances, Told, explain};
use crate::machine::{Machine, VG};
use crate::observe::{Seen, look};
use crate::outcome::{Answer, Outcome};
use crate::rules::outcomes;
use crate::script::{Call, Op, PLACES, Round, SNAPSHOTS, Script, VOLUMES};
use crate::state::State;

/// What was begun has come to its end after this, whoever waited for it.
const SETTLE: Duration = Duration::from_secs(30);
/// What was deleted is wiped after this.
const WIPE: Duration = Duration::from_secs(3600);
/// More states than this are no knowledge any more.
const STATES_MAX: usize = 2000;

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub rounds: u64,
    pub calls: u64,
    /// Faults that struck.
    pub faults: u64,
    /// How often the process died.
    pub deaths: u64,
    /// Volumes and snapshots whose content was compared.
    pub contents: u64,
    /// How often which operation had which answer.
    pub answers: BTreeMap<String, u64>,
    /// All answers, and all effects on the machine.
    pub trace: Vec<String>,
}

impl Figures {
    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.calls += other.calls;
        self.faults += other.faults;
        self.deaths += other.deaths;
        self.contents += other.contents;
        for (kind, count) in &other.answers {
            *self.answers.entry(kind.clone()).or_default() += count;
        }
    }
}

/// Runs a script. Why it fails.
pub fn play(script: &Script) -> Result<Figures, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let mut run = Run::new(script.pace).await?;
        for (i, round) in script.rounds.iter().enumerate() {
            Box::pin(run.round(i, round)).await.map_err(|why| format!("round {i}: {why}"))?;
        }
        Box::pin(run.end()).await.map_err(|why| format!("at the end: {why}"))?;
        Ok(run.figures)
    })
}

struct Run {
    machine: Machine,
    pace: u64,
    states: BTreeSet<State>,
    figures: Figures,
    /// What there was before the first call.
    start: String,
}

impl Run {
    async fn new(pace: u64) -> Result<Self, String> {
        let machine = Machine::new(pace).await?;
        let start = summary(&machine.client);
        let states = BTreeSet::from([State::default()]);
        Ok(Self { machine, pace, states, figures: Figures::default(), start })
    }

    async fn round(&mut self, i: usize, round: &Round) -> Result<(), String> {
        let before = later(std::mem::take(&mut self.states));
        let trouble = round.fault.is_some() || round.calls.iter().any(|it| it.cancel.is_some());
        let circumstances = Circumstances { company: round.calls.len() > 1, trouble };
        let quiet = !circumstances.company && !trouble;
        let room = if quiet { self.room(&round.calls[0].op).await? } else { None };
        self.machine.host.arm(round.fault);
        let told = self.call(i, round).await?;
        self.count(round, &told);
        let formatted = self.formatted(&before, round);
        let died = self.machine.host.is_dead();
        if died {
            self.figures.deaths += 1;
            self.machine.after_death().await?;
        }
        self.machine.host.arm(None);
        formatted?;
        check_room(&before, &told, room)?;
        let mut states = explain(&before, &told, circumstances);
        if states.is_empty() {
            return Err(unexplained(&before, &told));
        }
        if !quiet {
            tokio::time::sleep(SETTLE).await;
            states = later(states);
        }
        let seen = look(&self.machine.client, (i % 4) as i32).await?;
        self.figures.contents += seen.compared();
        self.states =
            fitting(states, &seen).map_err(|why| format!("{why}\nafter {}", describe(&told)))?;
        self.check_capacity().await
    }

    async fn call(&mut self, i: usize, round: &Round) -> Result<Vec<Told>, String> {
        let mut tasks = Vec::new();
        for (n, call) in round.calls.iter().enumerate() {
            let (client, data) = (self.machine.client.clone(), format!("round {i} call {n}"));
            let task = tokio::spawn(client.call(*call, data.clone()));
            tasks.push((*call, data, task));
        }
        let mut told = Vec::new();
        for (call, data, task) in tasks {
            let answer = task.await.map_err(|e| e.to_string())?;
            told.push(Told { call, data, answer });
        }
        match round.calls.first().map(|call| call.op) {
            Some(Op::Restart) => self.machine.restart().await?,
            Some(Op::Reboot) => self.machine.reboot().await?,
            _ => {}
        }
        Ok(told)
    }

    fn count(&mut self, round: &Round, told: &[Told]) {
        let effects = self.machine.host.effects();
        self.figures.rounds += 1;
        self.figures.calls += told.len() as u64;
        self.figures.faults += u64::from(round.fault.is_some_and(|fault| effects.len() > fault.at));
        for it in told {
            *self.figures.answers.entry(kind(it)).or_default() += 1;
        }
        self.figures.trace.extend(told.iter().map(|it| format!("{:?}", it.answer)));
        self.figures.trace.extend(effects);
    }

    /// That nothing was formatted that was in use before.
    fn formatted(&self, before: &BTreeSet<State>, round: &Round) -> Result<(), String> {
        let is_mkfs = |it: &&String| it.starts_with("mkfs") || it.contains("luksFormat");
        for effect in self.machine.host.effects().iter().filter(is_mkfs) {
            let device = effect.split(' ').next_back().unwrap_or_default();
            let Some(v) = crate::observe::volume_at(&self.machine.client, device) else {
                return Err(format!("this formats no volume of ours: {effect}"));
            };
            let deleted = round.calls.iter().any(|it| it.op == Op::Delete { v });
            let used = |it: &State| {
                let pending = it.volumes.get(&v).map(|it| it.bytes.pending);
                pending.is_some_and(|pending| pending != crate::state::Pending::Fresh)
            };
            if !deleted && before.iter().all(used) {
                return Err(format!("a volume in use is formatted: {effect}"));
            }
        }
        Ok(())
    }

    /// How large a volume that a call asks for may be, by what the driver offers.
    async fn room(&self, op: &Op) -> Result<Option<(u64, bool)>, String> {
        let Op::Create { class, .. } = *op else { return Ok(None) };
        let class = Class::of(class);
        if !class.is_known() {
            return Ok(None);
        }
        let offered = self.machine.client.capacity(class).await;
        let (_, largest) = offered.map_err(|e| format!("no capacity is told: {e}"))?;
        // What is being wiped makes room at any time.
        let trash = summary(&self.machine.client).contains("lv cb-trash-");
        Ok(Some((largest, trash)))
    }

    /// That no more is offered than there is.
    async fn check_capacity(&self) -> Result<(), String> {
        let client = &self.machine.client;
        for class in [&CLASSES[0], &CLASSES[3], &CLASSES[5], &CLASSES[10]] {
            let (free, pool, promised) = {
                let world = client.host.world();
                let vg = world.vg(VG).ok_or("there is no volume group")?;
                let free = vg.extent_size.size_of(vg.free_extents()).get() >> 20;
                let pool = vg.lvs.values().find(|lv| !lv.parts.is_empty());
                let pool = pool.ok_or("there is no pool")?;
                let promised = vg.thin_virtual_size(&pool.name).get() >> 20;
                (free, pool.size.get() >> 20, promised)
            };
            let told = client.capacity(class).await.map_err(|e| e.to_string())?;
            let most = if class.is_thin() { (4 * pool).saturating_sub(promised) } else { free };
            if told.0 > most || told.1 > most {
                return Err(format!("{class:?} is offered {told:?} MiB of {most}"));
            }
        }
        Ok(())
    }

    /// Deletes everything: nothing may be left.
    async fn end(&mut self) -> Result<(), String> {
        let client = self.machine.client.clone();
        let mut ops = Vec::new();
        for at in 0..PLACES {
            ops.push(Op::Unpublish { v: 0, at });
        }
        for v in 0..VOLUMES {
            ops.push(Op::Unstage { v });
        }
        // Sources first in one half of all runs, snapshots first in the other.
        let volumes = (0..VOLUMES).map(|v| Op::Delete { v });
        let snapshots = (0..SNAPSHOTS).map(|s| Op::DeleteSnapshot { s });
        if self.pace.is_multiple_of(2) {
            ops.extend(volumes.chain(snapshots));
        } else {
            ops.extend(snapshots.chain(volumes));
        }
        for op in ops {
            delete(&client, op).await?;
        }
        let mut waited = Duration::ZERO;
        loop {
            let now = summary(&client);
            if now == self.start {
                return Ok(());
            }
            if waited > WIPE {
                return Err(format!("left is\n{now}\nand was\n{}", self.start));
            }
            tokio::time::sleep(SETTLE).await;
            waited += SETTLE;
        }
    }
}

/// Deletes something, as often as it takes while the driver is busy with it.
async fn delete(client: &Client, op: Op) -> Result<(), String> {
    for _ in 0..20 {
        match client.clone().call(Call { op, cancel: None }, String::new()).await {
            Answer::Done => return Ok(()),
            Answer::Refused { code: Code::Aborted | Code::Unavailable, .. } => {
                tokio::time::sleep(SETTLE).await;
            }
            // A snapshot that is being copied from.
            Answer::Refused { code: Code::FailedPrecondition, .. }
                if matches!(op, Op::DeleteSnapshot { .. }) =>
            {
                tokio::time::sleep(SETTLE).await;
            }
            other => return Err(format!("{op:?}: {other:?}")),
        }
    }
    Err(format!("{op:?} comes to no end"))
}

/// What there is, but for directories that are the kubelet's to remove.
fn summary(client: &Client) -> String {
    let all = client.host.world().summary();
    let kept: Vec<&str> = all.lines().filter(|line| !line.starts_with("/stage")).collect();
    kept.join("\n")
}

/// The states that show what is seen.
fn fitting(states: BTreeSet<State>, seen: &Seen) -> Result<BTreeSet<State>, String> {
    let mut why = Vec::new();
    let mut fit = BTreeSet::new();
    for state in states {
        match seen.differs(&state) {
            None => drop(fit.insert(state)),
            Some(what) if why.len() < 4 => why.push(what),
            Some(_) => {}
        }
    }
    match fit.len() {
        0 => Err(format!("seen is not what the answers mean: {}", why.join("\nor: "))),
        1..STATES_MAX => Ok(fit),
        n => Err(format!("the model is lost among {n} states")),
    }
}

fn check_room(
    before: &BTreeSet<State>,
    told: &[Told],
    room: Option<(u64, bool)>,
) -> Result<(), String> {
    let (Some((largest, trash)), [one]) = (room, told) else { return Ok(()) };
    let Op::Create { v, from, class, .. } = one.call.op else { return Ok(()) };
    match &one.answer {
        Answer::Made { size, .. } if *size > largest && !trash => {
            let there = before.iter().any(|it| it.volumes.contains_key(&v));
            if there { Ok(()) } else { Err(format!("{size} MiB were made where {largest} fit")) }
        }
        Answer::Refused { code: Code::ResourceExhausted, why } => {
            // A clone of a thick volume takes more than itself.
            let clone = matches!(from, crate::script::From::OfVolume(_));
            let fits = |it: &State| {
                let made = outcomes(it, &one.call.op, "")
                    .into_iter()
                    .find_map(|it| it.next.volumes.get(&v).map(|volume| volume.size));
                made.is_some_and(|size| size <= largest)
            };
            if !clone && before.iter().all(fits) {
                return Err(format!("{largest} MiB are offered to {:?}: {why}", Class::of(class)));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The operation's name, and in a word how it ended.
fn kind(told: &Told) -> String {
    let op = format!("{:?}", told.call.op);
    let op = op.split(' ').next().unwrap_or_default();
    match &told.answer {
        Answer::Refused { code, .. } => format!("{op} {code:?}"),
        Answer::Lost => format!("{op} lost"),
        Answer::NotThere => format!("{op} to nothing"),
        _ => format!("{op} ok"),
    }
}

fn describe(told: &[Told]) -> String {
    let lines: Vec<_> = told.iter().map(|it| format!("{:?}: {:?}", it.call, it.answer)).collect();
    lines.join("\n")
}

fn unexplained(before: &BTreeSet<State>, told: &[Told]) -> String {
    let mut text = format!("no order explains these answers:\n{}", describe(told));
    for state in before.iter().take(2) {
        text += &format!("\nwhere there was {state:?}");
        for one in told {
            let may: Vec<_> =
                outcomes(state, &one.call.op, "").iter().map(Outcome::describe).collect();
            text += &format!("\n{:?} may be answered {}", one.call.op, may.join(" or "));
        }
    }
    text
}
