//! One look: what nodes have against what the cluster knows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::{Mention, Orphans, Registry, Unknown, notice};
use crate::domain::{Inventory, Reason, Snapshot, Unfinished, Volume, What};
use crate::error::{Error, Result};
use crate::lvm::tag::Claim;
use crate::names::{CsiName, Handle, NodeName};
use crate::units::Bytes;

/// Claims that are asked for in one look. Of more nothing is concluded.
const CLAIMS_MAX: usize = 100;

/// A record of an inventory. No copy of it: there may be a hundred thousand.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Volume(Arc<Volume>),
    Snapshot(Arc<Snapshot>),
    Unfinished(Arc<Unfinished>),
}

impl Found {
    pub(super) fn get(inventory: &Inventory, handle: &Handle) -> Option<Self> {
        let volume = inventory.volumes.get(handle).cloned().map(Self::Volume);
        let snapshot = || inventory.snapshots.get(handle).cloned().map(Self::Snapshot);
        let unfinished = || inventory.unfinished.get(handle).cloned().map(Self::Unfinished);
        volume.or_else(snapshot).or_else(unfinished)
    }

    fn all(inventory: &Inventory) -> impl Iterator<Item = Self> {
        let volumes = inventory.volumes.values().cloned().map(Self::Volume);
        let snapshots = inventory.snapshots.values().cloned().map(Self::Snapshot);
        let unfinished = inventory.unfinished.values().cloned().map(Self::Unfinished);
        volumes.chain(snapshots).chain(unfinished)
    }

    pub(super) fn handle(&self) -> &Handle {
        match self {
            Self::Volume(volume) => &volume.handle,
            Self::Snapshot(snapshot) => &snapshot.handle,
            Self::Unfinished(unfinished) => &unfinished.handle,
        }
    }

    pub(super) fn what(&self) -> What {
        match self {
            Self::Volume(_) => What::Volume,
            Self::Snapshot(_) => What::Snapshot,
            Self::Unfinished(unfinished) => unfinished.what,
        }
    }

    pub(super) fn name(&self) -> &CsiName {
        match self {
            Self::Volume(volume) => &volume.name,
            Self::Snapshot(snapshot) => &snapshot.name,
            Self::Unfinished(unfinished) => &unfinished.name,
        }
    }

    pub(super) fn size(&self) -> Bytes {
        match self {
            Self::Volume(volume) => volume.size,
            Self::Snapshot(snapshot) => snapshot.size,
            Self::Unfinished(unfinished) => unfinished.size,
        }
    }

    pub(super) fn created_unix(&self) -> i64 {
        match self {
            Self::Volume(volume) => volume.created_unix,
            Self::Snapshot(snapshot) => snapshot.created_unix,
            Self::Unfinished(unfinished) => unfinished.created_unix,
        }
    }

    pub(super) fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Volume(volume) => volume.claim.as_ref(),
            Self::Snapshot(_) => None,
            Self::Unfinished(unfinished) => unfinished.claim.as_ref(),
        }
    }

    /// Of a snapshot: its volume.
    fn source(&self) -> Option<&Handle> {
        match self {
            Self::Volume(_) => None,
            Self::Snapshot(snapshot) => Some(&snapshot.source),
            Self::Unfinished(unfinished) => unfinished.source.as_ref(),
        }
    }
}

/// As the registry has it: its name, what it has, and whether it is connected.
type Node = (NodeName, Arc<Inventory>, bool);

/// What a node has, and whether the cluster knows it.
struct Candidate<'a> {
    node: &'a NodeName,
    found: Found,
    known: bool,
}

/// All candidates, in the order of their ids.
struct Candidates<'a>(Vec<Candidate<'a>>);

impl<'a> Candidates<'a> {
    /// What nodes have that are connected, in volume groups that nobody else says he has.
    fn new(registry: &Registry, nodes: &'a [Node]) -> Self {
        let connected = nodes.iter().filter(|(_, _, connected)| *connected);
        let of = |(node, inventory, _): &'a Node| {
            let own = inventory.vgs.keys().filter(|vg| registry.is_of(vg, node));
            let own: BTreeSet<_> = own.collect();
            let all = Found::all(inventory).filter(move |found| own.contains(&found.handle().vg));
            all.map(move |found| Candidate { node, found, known: false })
        };
        let mut all: Vec<_> = connected.flat_map(of).collect();
        all.sort_unstable_by(|a, b| a.found.handle().cmp(b.found.handle()));
        Self(all)
    }

    fn see(&mut self, mention: Mention<'_>) {
        match mention {
            Mention::Handle(text) => {
                // What is no id of ours is another driver's.
                let Ok(handle) = Handle::parse(text) else { return };
                let at = self.0.binary_search_by(|c| c.found.handle().cmp(&handle)).ok();
                if let Some(candidate) = at.and_then(|at| self.0.get_mut(at)) {
                    candidate.known = true;
                }
            }
            Mention::SnapshotOf(text) => {
                let Ok(volume) = Handle::parse(text) else { return };
                let of = self.0.iter_mut().filter(|c| c.found.source() == Some(&volume));
                of.for_each(|c| c.known = true);
            }
        }
    }
}

impl Orphans {
    /// Asks the cluster for all that it knows, and notes what of ours it does not.
    ///
    /// # Errors
    /// When there is no complete answer. Then nothing is concluded.
    pub async fn look(&self) -> Result<()> {
        let _one = self.looking.lock().await;
        let looked = self.compare().await;
        self.table().failure = looked.as_ref().err().map(Error::chain);
        looked
    }

    /// What is still being made belongs to the claim that waits for it: a copy may take hours.
    async fn see_claims(&self, candidates: &mut Candidates<'_>) -> Result<()> {
        let mut asked = 0_usize;
        for candidate in candidates.0.iter_mut().filter(|candidate| !candidate.known) {
            let Found::Unfinished(unfinished) = &candidate.found else { continue };
            let Some(claim) = &unfinished.claim else { continue };
            asked = asked.saturating_add(1);
            candidate.known =
                asked > CLAIMS_MAX || self.cluster.is_claimed(claim, &unfinished.name).await?;
        }
        Ok(())
    }

    async fn compare(&self) -> Result<()> {
        // Before the list: what is made while it is read is not in it.
        let (nodes, now) = (self.registry.nodes(), Instant::now());
        let mut candidates = Candidates::new(&self.registry, &nodes);
        let mut snapshots = true;
        if !candidates.0.is_empty() {
            let mut see = |mention: Mention<'_>| candidates.see(mention);
            self.cluster.volumes(&mut see).await?;
            snapshots = self.cluster.snapshots(&mut see).await?;
            self.see_claims(&mut candidates).await?;
        }
        let judged = |c: &&Candidate<'_>| !c.known && (snapshots || c.found.what() == What::Volume);
        let mut table = self.table();
        let mut unknown = BTreeMap::new();
        for Candidate { node, found, .. } in candidates.0.iter().filter(judged) {
            let (handle, created_unix) = (found.handle(), found.created_unix());
            let before = table.unknown.get(handle).filter(|u| u.created_unix == created_unix);
            let (since, told) = before.map_or((now, false), |u| (u.since, u.told));
            let entry = Unknown {
                node: (*node).clone(),
                what: found.what(),
                created_unix,
                since,
                last: now,
                told,
            };
            unknown.insert(handle.clone(), entry);
        }
        let connected = nodes.iter().filter(|(_, _, connected)| *connected);
        let connected: BTreeMap<_, _> = connected.map(|(name, has, _)| (name, has)).collect();
        let mut over = Vec::new();
        for (handle, old) in &table.unknown {
            if unknown.contains_key(handle) {
                continue;
            }
            let Some(inventory) = connected.get(&old.node) else {
                // Nothing new is known of a node that is away.
                unknown.insert(handle.clone(), old.clone());
                continue;
            };
            // Nobody can say that it is gone whose volume group is not seen, or is in dispute.
            let judged = snapshots || old.what == What::Volume;
            if old.told
                && judged
                && inventory.vgs.contains_key(&handle.vg)
                && self.registry.is_of(&handle.vg, &old.node)
            {
                let sentence = Reason::Orphaned.mended_sentence().to_owned();
                over.push(notice(handle, old, sentence, true));
            }
        }
        table.over.append(&mut over);
        table.unknown = unknown;
        table.snapshots = snapshots;
        table.looked = Some(now);
        Ok(())
    }
}
