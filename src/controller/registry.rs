//! Which node has what: the nodes' inventories, indexed by id, by name and by volume group. An
//! entry of a node that went away stays as it was last seen, and is marked so.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::{Inventory, Snapshot, Volume, VolumeAgent};
use crate::error::{Error, Result};
use crate::names::{CsiName, Handle, LvmUuid, NodeName};

/// How long an answer waits until the inventory shows it. It comes over the same connection, a
/// moment later.
const SHOW_TIMEOUT: Duration = Duration::from_secs(10);

/// All nodes.
#[derive(Debug, Default)]
pub struct Registry {
    index: RwLock<Index>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Index {
    nodes: BTreeMap<NodeName, Node>,
    vgs: BTreeMap<LvmUuid, NodeName>,
    volumes: BTreeMap<Handle, NodeName>,
    snapshots: BTreeMap<Handle, NodeName>,
    volume_names: BTreeMap<CsiName, BTreeSet<Handle>>,
    snapshot_names: BTreeMap<CsiName, BTreeSet<Handle>>,
    sessions: u64,
}

#[derive(Debug)]
struct Node {
    /// `None` while it is not connected.
    agent: Option<Arc<dyn VolumeAgent>>,
    session: u64,
    inventory: Arc<Inventory>,
}

/// A connected node, until this is dropped.
#[derive(Debug)]
pub struct Session {
    registry: Arc<Registry>,
    node: NodeName,
    id: u64,
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
            session: id,
            inventory: Arc::default(),
        });
        entry.session = id;
        entry.agent = Some(agent);
        // What it had before may have changed while it was away: nothing is known until it tells.
        let before = Arc::clone(&entry.inventory);
        entry.inventory = Arc::new(Inventory { revision: 0, ..(*before).clone() });
        drop(index);
        self.changed();
        Session { registry: Arc::clone(self), node, id }
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

    /// All nodes ever seen, with what they last told and whether they are connected.
    #[must_use]
    pub fn nodes(&self) -> Vec<(NodeName, Arc<Inventory>, bool)> {
        let index = self.read();
        let row =
            |(name, n): (&NodeName, &Node)| (name.clone(), Arc::clone(&n.inventory), n.is_known());
        index.nodes.iter().map(row).collect()
    }

    /// One node, as [`Self::nodes`] has it.
    #[must_use]
    pub fn node(&self, name: &NodeName) -> Option<(NodeName, Arc<Inventory>, bool)> {
        let index = self.read();
        let node = index.nodes.get(name)?;
        Some((name.clone(), Arc::clone(&node.inventory), node.is_known()))
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
    /// When no node that was seen has it: that does not mean that there is none.
    pub fn node_of(&self, handle: &Handle) -> Result<NodeName> {
        self.read().vgs.get(&handle.vg).cloned().ok_or_else(|| {
            Error::unavailable(format!(
                "no node that is connected has volume group {}: its node may be down, or its disks missing",
                handle.vg
            ))
        })
    }

    /// Whether a node's picture of its volumes is true now.
    fn is_known(&self, handle: &Handle) -> Result<bool> {
        let node = self.node_of(handle)?;
        Ok(self.read().nodes.get(&node).is_some_and(Node::is_known))
    }

    /// A volume by its id. `None` when its node says that there is none.
    ///
    /// # Errors
    /// When its node is not connected.
    pub fn volume(&self, handle: &Handle) -> Result<Option<(NodeName, Arc<Volume>)>> {
        let index = self.read();
        let found = index.volumes.get(handle).and_then(|node| {
            Some((node.clone(), Arc::clone(index.nodes.get(node)?.inventory.volumes.get(handle)?)))
        });
        drop(index);
        self.or_absent(handle, found)
    }

    /// A snapshot by its id. `None` when its node says that there is none.
    ///
    /// # Errors
    /// When its node is not connected.
    pub fn snapshot(&self, handle: &Handle) -> Result<Option<(NodeName, Arc<Snapshot>)>> {
        let index = self.read();
        let found = index.snapshots.get(handle).and_then(|node| {
            Some((
                node.clone(),
                Arc::clone(index.nodes.get(node)?.inventory.snapshots.get(handle)?),
            ))
        });
        drop(index);
        self.or_absent(handle, found)
    }

    fn or_absent<T>(&self, handle: &Handle, found: Option<T>) -> Result<Option<T>> {
        if found.is_some() || self.is_known(handle)? {
            return Ok(found);
        }
        let node = self.node_of(handle)?;
        Err(Error::unavailable(format!(
            "node {node}, which has the volume group of {handle}, is not connected"
        )))
    }

    /// The nodes on which there is a volume of that name.
    #[must_use]
    pub fn nodes_with_volume(&self, name: &CsiName) -> Vec<NodeName> {
        let index = self.read();
        let handles = index.volume_names.get(name).into_iter().flatten();
        handles.filter_map(|handle| index.volumes.get(handle).cloned()).collect()
    }

    /// The snapshots of that name.
    #[must_use]
    pub fn snapshots_named(&self, name: &CsiName) -> Vec<Arc<Snapshot>> {
        let index = self.read();
        let handles = index.snapshot_names.get(name).into_iter().flatten();
        handles
            .filter_map(|handle| {
                let node = index.nodes.get(index.snapshots.get(handle)?)?;
                node.inventory.snapshots.get(handle).cloned()
            })
            .collect()
    }

    /// Volumes in the order of their ids, behind `after`, at most so many.
    #[must_use]
    pub fn volumes(&self, after: Option<&Handle>, most: usize) -> Vec<(NodeName, Arc<Volume>)> {
        let index = self.read();
        let row = |(handle, node): (&Handle, &NodeName)| {
            let volume = index.nodes.get(node)?.inventory.volumes.get(handle)?;
            Some((node.clone(), Arc::clone(volume)))
        };
        index.volumes.range(behind(after)).filter_map(row).take(most).collect()
    }

    /// Snapshots in the order of their ids, behind `after`, that `wanted` takes, at most so many.
    #[must_use]
    pub fn snapshots(
        &self,
        after: Option<&Handle>,
        most: usize,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> Vec<(NodeName, Arc<Snapshot>)> {
        let index = self.read();
        let row = |(handle, node): (&Handle, &NodeName)| {
            let snapshot = index.nodes.get(node)?.inventory.snapshots.get(handle)?;
            wanted(snapshot).then(|| (node.clone(), Arc::clone(snapshot)))
        };
        index.snapshots.range(behind(after)).filter_map(row).take(most).collect()
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

fn behind(after: Option<&Handle>) -> (Bound<Handle>, Bound<Handle>) {
    (after.map_or(Bound::Unbounded, |handle| Bound::Excluded(handle.clone())), Bound::Unbounded)
}

impl Session {
    /// The node has this now.
    pub fn update(&self, inventory: &Arc<Inventory>) {
        let mut index = self.registry.write();
        let Some(entry) = index.nodes.get_mut(&self.node).filter(|n| n.session == self.id) else {
            return;
        };
        let old = std::mem::replace(&mut entry.inventory, Arc::clone(inventory));
        index.replace(&self.node, &old, inventory);
        drop(index);
        self.registry.changed();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut index = self.registry.write();
        if let Some(entry) = index.nodes.get_mut(&self.node).filter(|n| n.session == self.id) {
            entry.agent = None;
        }
        drop(index);
        self.registry.changed();
    }
}

impl Index {
    fn replace(&mut self, node: &NodeName, old: &Inventory, new: &Inventory) {
        for vg in old.vgs.keys().filter(|vg| !new.vgs.contains_key(*vg)) {
            if self.vgs.get(vg) == Some(node) {
                self.vgs.remove(vg);
            }
        }
        for (vg, name) in &new.vgs {
            let before = self.vgs.insert(vg.clone(), node.clone());
            if let Some(before) = before.filter(|before| before != node) {
                tracing::warn!(%vg, %name, %node, %before, "a volume group is seen on another node than before");
            }
        }
        for (handle, gone) in old.volumes.iter().filter(|(h, _)| !new.volumes.contains_key(*h)) {
            if self.volumes.get(handle) == Some(node) {
                self.volumes.remove(handle);
                unname(&mut self.volume_names, &gone.name, handle);
            }
        }
        for (handle, volume) in &new.volumes {
            self.volumes.insert(handle.clone(), node.clone());
            self.volume_names.entry(volume.name.clone()).or_default().insert(handle.clone());
        }
        for (handle, gone) in old.snapshots.iter().filter(|(h, _)| !new.snapshots.contains_key(*h))
        {
            if self.snapshots.get(handle) == Some(node) {
                self.snapshots.remove(handle);
                unname(&mut self.snapshot_names, &gone.name, handle);
            }
        }
        for (handle, snapshot) in &new.snapshots {
            self.snapshots.insert(handle.clone(), node.clone());
            self.snapshot_names.entry(snapshot.name.clone()).or_default().insert(handle.clone());
        }
    }
}

fn unname(names: &mut BTreeMap<CsiName, BTreeSet<Handle>>, name: &CsiName, handle: &Handle) {
    if let Some(handles) = names.get_mut(name) {
        handles.remove(handle);
        if handles.is_empty() {
            names.remove(name);
        }
    }
}
