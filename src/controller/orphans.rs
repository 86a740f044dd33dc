//! Orphans: volumes and snapshots of ours that no object of the cluster knows. They are found and told
//! of; only a person removes one, by its id, and only what is proved to be an orphan at that instant.
//!
//! What the cluster knows is read whole, now and then, and kept by nobody. Without a complete list
//! nothing is concluded. An orphan is what was absent from every list for a while, because an object is
//! written after what it stands for is made.

mod look;
mod remove;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Controller, Notice, Registry, Tells};
use crate::domain::{Answer, Inventory, Orphan, OrphansSeen, Reason, Subject, What};
use crate::lvm::tag::Claim;
use crate::names::{CsiName, Handle, NodeName};
use look::Found;

/// Orphans that are told of in one look; the others are told of in the next ones. When a whole cluster
/// is forgotten, that must not fill the API server.
const TELL_MAX: usize = 20;

/// What an object of the cluster says that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mention<'a> {
    /// A volume or snapshot, by its id.
    Handle(&'a str),
    /// A snapshot, of which nothing is known yet but the id of its volume.
    SnapshotOf(&'a str),
}

/// Takes what is mentioned.
pub type See<'a> = &'a mut (dyn for<'m> FnMut(Mention<'m>) + Send);

/// What the cluster knows.
pub trait Cluster: Debug + Send + Sync {
    /// All that stands for volumes. With success, all of it was seen.
    fn volumes<'a>(&'a self, see: See<'a>) -> Answer<'a, ()>;

    /// All that stands for snapshots, in the same way. `false`: the cluster does not know snapshots.
    fn snapshots<'a>(&'a self, see: See<'a>) -> Answer<'a, bool>;

    /// Whether the claim that a volume was made for is still there and wants it.
    fn is_claimed<'a>(&'a self, claim: &'a Claim, volume: &'a CsiName) -> Answer<'a, bool>;
}

/// Looks for orphans.
#[derive(Debug)]
pub struct Orphans {
    registry: Arc<Registry>,
    controller: Arc<Controller>,
    cluster: Box<dyn Cluster>,
    /// How long something has to be absent.
    grace: Duration,
    table: Mutex<Table>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Table {
    unknown: BTreeMap<Handle, Unknown>,
    looked: Option<Instant>,
    failure: Option<String>,
    snapshots: bool,
    /// What was told and is over.
    over: Vec<Notice>,
}

/// Something of ours that the cluster does not know.
#[derive(Clone, Debug)]
struct Unknown {
    node: NodeName,
    what: What,
    /// Something else may get the same id later.
    created_unix: i64,
    /// The first and the last list that it was absent from.
    since: Instant,
    last: Instant,
    told: bool,
}

impl Unknown {
    fn is_orphan(&self, grace: Duration) -> bool {
        self.last.saturating_duration_since(self.since) >= grace
    }
}

impl Orphans {
    /// Nothing is known yet: [`Orphans::run`] looks.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        controller: Arc<Controller>,
        cluster: Box<dyn Cluster>,
        grace: Duration,
    ) -> Self {
        let (table, looking) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { registry, controller, cluster, grace, table, looking }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long something has to be unknown to the cluster before it counts as an orphan.
    #[must_use]
    pub const fn grace(&self) -> Duration {
        self.grace
    }

    /// Looks every so often, and tells of what it finds, until `stop`.
    pub async fn run(
        self: Arc<Self>,
        every: Duration,
        to: Box<dyn Tells>,
        stop: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let work = async {
            loop {
                tick.tick().await;
                if let Err(error) = self.look().await {
                    tracing::warn!(
                        error = error.chain(),
                        "cannot look for orphans; trying again in {every:?}"
                    );
                }
                self.tell(&*to).await;
            }
        };
        stop.run_until_cancelled(work).await;
    }

    /// What was found when it was last looked.
    #[must_use]
    pub fn seen(&self) -> OrphansSeen {
        let nodes = self.registry.nodes();
        let inventories: BTreeMap<_, _> = nodes
            .iter()
            .filter(|(_, _, c)| *c)
            .map(|(name, inventory, _)| (name, inventory))
            .collect();
        let table = self.table();
        let mut seen = OrphansSeen {
            looked: table.looked.map(|at| at.elapsed()),
            failure: table.failure.clone(),
            snapshots: table.snapshots,
            away: nodes.iter().filter(|(_, _, c)| !c).map(|(name, _, _)| name.clone()).collect(),
            ..OrphansSeen::default()
        };
        for (handle, unknown) in &table.unknown {
            let Some(inventory) = inventories.get(&unknown.node) else { continue };
            let Some(orphan) = orphan(inventory, handle, unknown) else { continue };
            if !self.registry.is_of(&handle.vg, &unknown.node) {
                continue;
            }
            if unknown.is_orphan(self.grace) {
                seen.orphans.push(orphan);
            } else {
                seen.waiting = seen.waiting.saturating_add(1);
            }
        }
        seen
    }

    /// Tells of orphans that nobody was told of yet, and of what is none any more.
    async fn tell(&self, to: &dyn Tells) {
        let over = std::mem::take(&mut self.table().over);
        for notice in over.iter().take(TELL_MAX) {
            tracing::info!(node = %notice.node, subject = ?notice.subject, "no orphan any more: {}", notice.sentence);
            // Nobody has to do anything about it.
            drop(to.tell(notice).await);
        }
        let seen = self.seen();
        let untold = |orphan: &Orphan| {
            self.table().unknown.get(&orphan.handle).filter(|unknown| !unknown.told).cloned()
        };
        let new = seen.orphans.iter().filter_map(|orphan| Some((orphan, untold(orphan)?)));
        for (orphan, unknown) in new.take(TELL_MAX) {
            let Orphan { node, handle, what, size, .. } = orphan;
            let notice = notice(handle, &unknown, sentence(orphan), false);
            if let Err(error) = to.tell(&notice).await {
                tracing::warn!(error = error.chain(), "cannot tell of an orphan; trying again");
                return;
            }
            tracing::warn!(%node, %handle, %what, %size, "an orphan: {}", notice.sentence);
            if let Some(unknown) = self.table().unknown.get_mut(handle) {
                unknown.told = true;
            }
        }
    }
}

/// What is unknown, as its node has it now. `None` when that is something else, or nothing.
fn orphan(inventory: &Inventory, handle: &Handle, unknown: &Unknown) -> Option<Orphan> {
    let found = Found::get(inventory, handle)?;
    if found.created_unix() != unknown.created_unix {
        return None;
    }
    Some(Orphan {
        node: unknown.node.clone(),
        volume_group: inventory.vgs.get(&handle.vg)?.clone(),
        handle: handle.clone(),
        what: found.what(),
        unfinished: matches!(found, Found::Unfinished(_)),
        name: found.name().clone(),
        size: found.size(),
        created_unix: unknown.created_unix,
        claim: found.claim().cloned(),
    })
}

/// That something is an orphan, or is none any more, as every controller tells it: so it is told once.
fn notice(handle: &Handle, unknown: &Unknown, sentence: String, over: bool) -> Notice {
    Notice {
        node: unknown.node.clone(),
        subject: Subject::Volume(handle.clone()),
        volume: None,
        reason: Reason::Orphaned,
        over,
        sentence,
        since_unix: unknown.created_unix,
    }
}

fn sentence(orphan: &Orphan) -> String {
    let Orphan { what, size, volume_group, claim, .. } = orphan;
    let object = match what {
        What::Volume => "PersistentVolume",
        What::Snapshot => "VolumeSnapshotContent",
    };
    let begun = if orphan.unfinished { ", which was never finished" } else { "" };
    let claim = claim.as_ref().map(|c| format!(", made for claim {}/{}", c.namespace, c.name));
    format!(
        "no {object} knows this {what} of {size} in volume group {volume_group}{begun}{}: it stays until somebody gives \
         it one or removes it; `cinderblock orphans` in a controller's pod lists all",
        claim.unwrap_or_default()
    )
}
