//! Which node has what: the nodes' inventories, indexed by id, by name and by volume group. An
//! entry of a node that went away stays as it was last seen, and is marked so.
//!
//! A node speaks for its own volume groups alone. What it says of others is left out, and a volume
//! group that two nodes say they have is nobody's: nothing is asked and nothing believed of it. But
//! disks move: a node that stays away loses them to the one that has them now.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::{BackendState, Inventory, Snapshot, Unfinished, Volume, VolumeAgent, What};
use crate::error::{Error, Result};
use crate::names::{CsiName, Handle, LvmUuid, NodeName};

/// How long an answer waits until the inventory shows it. It comes over the same connection, a
/// moment later.
const SHOW_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one node at a time; one more ends the oldest. A node has one for each address of
/// the controller, and one that it lost may still be here.
const SESSIONS_MAX: usize = 4;

/// How long a node has to be away until another is believed that has its volume group now. Longer
/// than a reboot: until then the other may be a liar that waits for one.
const AWAY: Duration = Duration::from_mins(10);

/// All nodes.
#[derive(Debug, Default)]
pub struct Registry {
    index: RwLock<Index>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Index {
    nodes: BTreeMap<NodeName, Node>,
    /// The nodes that say, or last said, that they have it. More than one is a dispute.
    vgs: BTreeMap<LvmUuid, BTreeSet<NodeName>>,
    volume_names: BTreeMap<CsiName, BTreeSet<(NodeName, Handle)>>,
    /// Of volumes that are not finished.
    unfinished_names: BTreeMap<CsiName, BTreeSet<(NodeName, Handle)>>,
    /// Of volumes that calls are making.
    making: BTreeMap<CsiName, BTreeSet<NodeName>>,
    snapshot_names: BTreeMap<CsiName, BTreeSet<(NodeName, Handle)>>,
    sessions: u64,
}

#[derive(Debug)]
struct Node {
    /// `None` while it is not connected.
    agent: Option<Arc<dyn VolumeAgent>>,
    /// Since when.
    away: Option<Instant>,
    session: u64,
    /// Its connections, the oldest first.
    ends: VecDeque<CancellationToken>,
    inventory: Arc<Inventory>,
}

/// A connected node, until this is dropped.
#[derive(Debug)]
pub struct Session {
    registry: Arc<Registry>,
    node: NodeName,
    id: u64,
    end: CancellationToken,
}

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node is there. A second session of one node takes the first one's place.
    #[must_use]
    pub fn connect(self: &Arc<Self>, node: NodeName, agent: Arc<dyn VolumeAgent>) -> Session {
        let mut index = self.write();
        index.sessions = index.sessions.wrapping_add(1);
        let id = index.sessions;
        let entry = index.nodes.entry(node.clone()).or_insert_with(|| Node {
            agent: None,
            away: None,
            session: id,
            ends: VecDeque::new(),
            inventory: Arc::default(),
        });
        entry.session = id;
        let end = CancellationToken::new();
        entry.ends.retain(|end| !end.is_cancelled());
        entry.ends.push_back(end.clone());
        if entry.ends.len() > SESSIONS_MAX {
            entry.ends.pop_front().unwrap_or_default().cancel();
        }
        entry.agent = Some(agent);
        entry.away = None;
        // What it had before may have changed while it was away: nothing is known until it tells.
        let before = Arc::clone(&entry.inventory);
        entry.inventory = Arc::new(Inventory { revision: 0, ..(*before).clone() });
        drop(index);
        self.changed();
        Session { registry: Arc::clone(self), node, id, end }
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Sees every change of what any node has.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The number of nodes that are connected and have told what they have.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.read().nodes.values().filter(|n| n.is_known()).count()
    }

    /// The number of volume groups that more than one node says it has.
    #[must_use]
    pub fn disputed(&self) -> usize {
        let index = self.read();
        index.vgs.keys().filter(|vg| index.holders(vg).len() > 1).count()
    }

    /// All nodes ever seen, with what they last told and whether they are connected. Nothing is
    /// known of a backend whose volume group is in dispute.
    #[must_use]
    pub fn nodes(&self) -> Vec<(NodeName, Arc<Inventory>, bool)> {
        let index = self.read();
        let row = |(name, n): (&NodeName, &Node)| (name.clone(), index.shown(n), n.is_known());
        index.nodes.iter().map(row).collect()
    }

    /// One node, as [`Self::nodes`] has it.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<(NodeName, Arc<Inventory>, bool)> {
        let index = self.read();
        let node = index.nodes.get(name)?;
        Some((name.clone(), index.shown(node), node.is_known()))
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// When it is not connected.
    pub fn agent(&self, node: &NodeName) -> Result<Arc<dyn VolumeAgent>> {
        let index = self.read();
        let found = index.nodes.get(node).and_then(|n| n.agent.clone());
        found.ok_or_else(|| {
            Error::unavailable(format!("node {node} is not connected: look at its cinderblock pod"))
        })
    }

    /// The node that has the volume group of an id.
    ///
    /// # Errors
    /// When no node that was seen has it: that does not mean that there is none. When more than
    /// one says so: then none is believed.
    pub fn node_of(&self, handle: &Handle) -> Result<NodeName> {
        self.read().node_of(&handle.vg).cloned()
    }

    /// Whether that node, and nobody else, has a volume group, for all that is known.
    #[must_use]
    pub fn is_of(&self, vg: &LvmUuid, node: &NodeName) -> bool {
        self.read().node_of(vg).is_ok_and(|holder| holder == node)
    }

    /// A volume by its id. `None` when its node says that there is none.
    ///
    /// # Errors
    /// When its node is not connected, or it is not known which that is.
    pub fn volume(&self, handle: &Handle) -> Result<Option<(NodeName, Arc<Volume>)>> {
        self.find(handle, |inventory| inventory.volumes.get(handle).cloned())
    }

    /// A snapshot by its id. `None` when its node says that there is none.
    ///
    /// # Errors
    /// When its node is not connected, or it is not known which that is.
    pub fn snapshot(&self, handle: &Handle) -> Result<Option<(NodeName, Arc<Snapshot>)>> {
        self.find(handle, |inventory| inventory.snapshots.get(handle).cloned())
    }

    fn find<T>(
        &self,
        handle: &Handle,
        record: impl Fn(&Inventory) -> Option<T>,
    ) -> Result<Option<(NodeName, T)>> {
        let index = self.read();
        let name = index.node_of(&handle.vg)?;
        let node = index.nodes.get(name);
        let found = node.and_then(|n| record(&n.inventory)).map(|found| (name.clone(), found));
        if found.is_some() || node.is_some_and(Node::is_known) {
            return Ok(found);
        }
        Err(Error::unavailable(format!(
            "node {name}, which has the volume group of {handle}, is not connected"
        )))
    }

    /// The node on which there is a volume of that name, or the beginning of one, or a call that is to make
    /// it. `None` when no node tells of one.
    ///
    /// # Errors
    /// When the only nodes that tell of one are in dispute with others.
    pub fn node_with_volume(&self, name: &CsiName) -> Result<Option<NodeName>> {
        let index = self.read();
        let mut dispute = None;
        let named = [&index.volume_names, &index.unfinished_names];
        for (node, handle) in named.iter().filter_map(|names| names.get(name)).flatten() {
            match index.node_of(&handle.vg) {
                Ok(holder) if holder == node => return Ok(Some(node.clone())),
                // Its disks have gone elsewhere since.
                Ok(_) => {}
                Err(error) => dispute = Some(error),
            }
        }
        let making = index.making.get(name).and_then(BTreeSet::first).cloned();
        dispute.map_or(Ok(making), Err)
    }

    /// The snapshots of that name.
    #[must_use]
    pub fn snapshots_named(&self, name: &CsiName) -> Vec<Arc<Snapshot>> {
        let index = self.read();
        let found = index.snapshot_names.get(name).into_iter().flatten();
        found
            .filter_map(|(node, handle)| {
                index.nodes.get(node)?.inventory.snapshots.get(handle).cloned()
            })
            .collect()
    }

    /// Volumes in the order of their ids, behind `after`, at most so many.
    #[must_use]
    pub fn volumes(&self, after: Option<&Handle>, most: usize) -> Vec<(NodeName, Arc<Volume>)> {
        self.read().list(after, most, |inventory| &inventory.volumes, |_| true)
    }

    /// Snapshots in the order of their ids, behind `after`, that `wanted` takes, at most so many.
    #[must_use]
    pub fn snapshots(
        &self,
        after: Option<&Handle>,
        most: usize,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> Vec<(NodeName, Arc<Snapshot>)> {
        self.read().list(after, most, |inventory| &inventory.snapshots, wanted)
    }

    /// Waits until the inventory of a node shows what an answer of its told.
    pub async fn shows(&self, node: &NodeName, revision: u64) {
        let mut changes = self.changes.subscribe();
        let shown = || {
            let index = self.read();
            index
                .nodes
                .get(node)
                .is_none_or(|n| n.agent.is_none() || n.inventory.revision >= revision)
        };
        let wait = async { while !shown() && changes.changed().await.is_ok() {} };
        if tokio::time::timeout(SHOW_TIMEOUT, wait).await.is_err() {
            tracing::warn!(%node, revision, "the node's inventory does not show its own answer yet");
        }
    }
}

impl Node {
    fn is_known(&self) -> bool {
        self.agent.is_some() && self.inventory.revision > 0
    }
}

impl Session {
    /// The node has this now.
    pub fn update(&self, inventory: &Arc<Inventory>) {
        let inventory = own(&self.node, inventory);
        let mut index = self.registry.write();
        let Some(entry) = index.nodes.get_mut(&self.node).filter(|n| n.session == self.id) else {
            return;
        };
        let old = std::mem::replace(&mut entry.inventory, Arc::clone(&inventory));
        index.replace(&self.node, &old, &inventory);
        drop(index);
        self.registry.changed();
    }

    /// Waits until the node has so many newer connections that this one has to end.
    pub async fn replaced(&self) -> Error {
        self.end.cancelled().await;
        Error::unavailable("the node has newer connections")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end.cancel();
        let mut index = self.registry.write();
        if let Some(entry) = index.nodes.get_mut(&self.node).filter(|n| n.session == self.id) {
            entry.agent = None;
            entry.away = Some(Instant::now());
        }
        drop(index);
        self.registry.changed();
    }
}

/// What a node may speak of: volumes and snapshots in volume groups that it says it has.
fn own(node: &NodeName, told: &Arc<Inventory>) -> Arc<Inventory> {
    let is_own = |handle: &Handle| told.vgs.contains_key(&handle.vg);
    let mut all = told.volumes.keys().chain(told.snapshots.keys()).chain(told.unfinished.keys());
    let foreign = all.find(|handle| !is_own(handle));
    let Some(foreign) = foreign else { return Arc::clone(told) };
    tracing::error!(%node, %foreign, "the node tells of volumes in volume groups that it does not have: they are left out");
    let mut rest = (**told).clone();
    rest.volumes.retain(|handle, _| is_own(handle));
    rest.snapshots.retain(|handle, _| is_own(handle));
    rest.unfinished.retain(|handle, _| is_own(handle));
    Arc::new(rest)
}

impl Index {
    fn node_of(&self, vg: &LvmUuid) -> Result<&NodeName> {
        match self.holders(vg)[..] {
            [node] => Ok(node),
            [] => Err(Error::unavailable(format!(
                "no node that is connected has volume group {vg}: its node may be down, or its disks missing"
            ))),
            [..] => Err(Error::unavailable(self.dispute(vg).unwrap_or_default())),
        }
    }

    /// The nodes that have a volume group, for all that is known: more than one is a dispute.
    fn holders(&self, vg: &LvmUuid) -> Vec<&NodeName> {
        let all = self.vgs.get(vg).into_iter().flatten();
        let is_here = |node: &&NodeName| {
            let away = self.nodes.get(*node).and_then(|node| node.away);
            away.is_none_or(|since| since.elapsed() < AWAY)
        };
        let here: Vec<_> = all.clone().filter(is_here).collect();
        if here.is_empty() { all.collect() } else { here }
    }

    /// Why nobody is believed about a volume group. `None` where one node has it.
    fn dispute(&self, vg: &LvmUuid) -> Option<String> {
        let nodes = Some(self.holders(vg)).filter(|nodes| nodes.len() > 1)?;
        let say = |node: &NodeName| {
            let connected = self.nodes.get(node).is_some_and(Node::is_known);
            if connected { node.to_string() } else { format!("{node} (not connected now)") }
        };
        let nodes: Vec<String> = nodes.into_iter().map(say).collect();
        Some(format!(
            "more than one node says that it has volume group {vg}: {}; none is believed. Disks that both see, or copies of one disk, have to be taken from \
             one of them (vgchange --uuid gives a copy its own identifier); disks that were moved are believed \
             when the other node has been away for ten minutes; if neither is so, a node lies",
            nodes.join(" and ")
        ))
    }

    /// A node's inventory as it counts.
    fn shown(&self, node: &Node) -> Arc<Inventory> {
        let disputed = |state: &BackendState| match state {
            BackendState::Ready { vg, .. } => self.dispute(vg),
            BackendState::Unusable(_) | BackendState::Unknown(_) => None,
        };
        if !node.inventory.backends.values().any(|b| disputed(&b.state).is_some()) {
            return Arc::clone(&node.inventory);
        }
        let mut shown = (*node.inventory).clone();
        for backend in shown.backends.values_mut() {
            if let Some(why) = disputed(&backend.state) {
                backend.state = BackendState::Unknown(why);
            }
        }
        Arc::new(shown)
    }

    /// Records in the order of their ids, behind `after`, at most so many. Those in dispute are
    /// left out.
    fn list<T>(
        &self,
        after: Option<&Handle>,
        most: usize,
        records: impl Fn(&Inventory) -> &BTreeMap<Handle, Arc<T>>,
        wanted: impl Fn(&T) -> bool,
    ) -> Vec<(NodeName, Arc<T>)> {
        let mut rows = Vec::new();
        let from = after.map_or(Bound::Unbounded, |after| Bound::Included(&after.vg));
        for vg in self.vgs.range::<LvmUuid, _>((from, Bound::Unbounded)).map(|(vg, _)| vg) {
            let [name] = self.holders(vg)[..] else { continue };
            let Some(node) = self.nodes.get(name) else { continue };
            let behind = after.filter(|after| after.vg == *vg);
            let behind = behind.map_or(Bound::Unbounded, Bound::Excluded);
            let of_vg = records(&node.inventory)
                .range::<Handle, _>((behind, Bound::Unbounded))
                .skip_while(|(handle, _)| handle.vg < *vg)
                .take_while(|(handle, _)| handle.vg == *vg)
                .filter(|(_, record)| wanted(record));
            let left = most.saturating_sub(rows.len());
            rows.extend(of_vg.take(left).map(|(_, record)| (name.clone(), Arc::clone(record))));
            if rows.len() >= most {
                break;
            }
        }
        rows
    }

    fn replace(&mut self, node: &NodeName, old: &Inventory, new: &Inventory) {
        for vg in old.vgs.keys().filter(|vg| !new.vgs.contains_key(*vg)) {
            if let Some(nodes) = self.vgs.get_mut(vg) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.vgs.remove(vg);
                }
            }
        }
        for vg in new.vgs.keys() {
            let is_new = self.vgs.entry(vg.clone()).or_default().insert(node.clone());
            if let Some(why) = self.dispute(vg).filter(|_| is_new) {
                tracing::error!(%node, "{why}");
            }
        }
        rename(&mut self.volume_names, node, &old.volumes, &new.volumes, |v| &v.name);
        let (before, now) = (unfinished_volumes(old), unfinished_volumes(new));
        rename(&mut self.unfinished_names, node, &before, &now, |v| &v.name);
        for name in old.making.difference(&new.making) {
            if let Some(nodes) = self.making.get_mut(name) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.making.remove(name);
                }
            }
        }
        for name in new.making.difference(&old.making) {
            self.making.entry(name.clone()).or_default().insert(node.clone());
        }
        rename(&mut self.snapshot_names, node, &old.snapshots, &new.snapshots, |s| &s.name);
    }
}

fn unfinished_volumes(inventory: &Inventory) -> BTreeMap<Handle, Arc<Unfinished>> {
    let volumes = inventory.unfinished.iter().filter(|(_, lv)| lv.what == What::Volume);
    volumes.map(|(handle, lv)| (handle.clone(), Arc::clone(lv))).collect()
}

/// Keeps the names of a node's records.
fn rename<T>(
    names: &mut BTreeMap<CsiName, BTreeSet<(NodeName, Handle)>>,
    node: &NodeName,
    old: &BTreeMap<Handle, Arc<T>>,
    new: &BTreeMap<Handle, Arc<T>>,
    name: impl Fn(&T) -> &CsiName,
) {
    for (handle, record) in old {
        if new.get(handle).is_some_and(|now| name(now) == name(record)) {
            continue;
        }
        if let Some(found) = names.get_mut(name(record)) {
            found.remove(&(node.clone(), handle.clone()));
            if found.is_empty() {
                names.remove(name(record));
            }
        }
    }
    for (handle, record) in new {
        if old.get(handle).is_none_or(|before| name(before) != name(record)) {
            let found = names.entry(name(record).clone()).or_default();
            found.insert((node.clone(), handle.clone()));
        }
    }
}
