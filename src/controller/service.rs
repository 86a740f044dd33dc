//! The controller's part of every request: find the node, ask it, and say what is.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::placement::{Candidate, Choice, Standing, choose, named};
use super::registry::Registry;
use crate::config::{Backend, Config};
use crate::domain::{
    BackendState, CapacityRange, ContentSource, CreateSnapshot, CreateVolume, Inventory, Orphan,
    Parameters, Snapshot, Told, Topology, Volume, VolumeClass, What,
};
use crate::error::{Error, ErrorKind, Result, few};
use crate::lvm::layout::ThickLayout;
use crate::names::{CsiName, Handle, LvName, NodeName};
use crate::units::Bytes;

/// A controller that has just started does not choose among nodes until all that live have had the
/// time to connect. A volume whose making was cut may be on any of them. A node dials again within 10
/// seconds, once it knows the address: a cluster's DNS may keep what it said before for 30.
const SETTLE: Duration = Duration::from_secs(45);
/// What a node offers that was not seen since the start is not known for so long: it may boot.
const UNSEEN: Duration = Duration::from_mins(10);
/// Entries of one page. A record has about 400 bytes, and a message 4 MiB at the most.
const PAGE_MAX: usize = 5_000;

/// Whether a volume may be made on the node of its source though the CO named other nodes: it may
/// have named its scheduler's guess.
pub trait SourcePlacement: Debug + Send + Sync {
    /// Asks about a claim.
    fn allows<'a>(
        &'a self,
        parameters: &'a Parameters,
        node: &'a NodeName,
    ) -> Pin<Box<dyn Future<Output = Result<bool>> + Send + 'a>>;
}

/// The controller.
#[derive(Debug)]
pub struct Controller {
    registry: Arc<Registry>,
    config: watch::Receiver<Arc<Config>>,
    source_placement: Option<Box<dyn SourcePlacement>>,
    /// Names that a call works on, or whose last call ended in doubt on that node.
    names: Mutex<BTreeMap<CsiName, Name>>,
    /// Since when nodes can come. Unset: they cannot yet.
    open_since: OnceLock<Instant>,
    settle: Duration,
}

#[derive(Debug)]
enum Name {
    /// A call works on it.
    Busy,
    /// The last call ended in doubt, or was cut, while that node was asked.
    InDoubt(NodeName),
}

/// A call that works on a name, until it is dropped - by its end, or with its caller.
#[derive(Debug)]
struct Attempt<'a> {
    controller: &'a Controller,
    name: CsiName,
    /// The node that may have it, for all that is known.
    node: Option<NodeName>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut names = self.controller.names.lock().unwrap_or_else(PoisonError::into_inner);
        match self.node.take() {
            Some(node) => drop(names.insert(self.name.clone(), Name::InDoubt(node))),
            None => drop(names.remove(&self.name)),
        }
    }
}

/// What a topology offers to a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Room in all.
    pub available: Bytes,
    /// The largest volume.
    pub largest: Bytes,
    /// The smallest volume.
    pub smallest: Bytes,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    /// Its entries, each with its node.
    pub entries: Vec<(NodeName, Arc<T>)>,
    /// Where the next page begins. `None` when this is the last.
    pub next: Option<Handle>,
}

impl Controller {
    /// A controller. `settle` tells whether it has to wait for nodes that dial it, from
    /// [`Self::nodes_can_come`] on.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        config: watch::Receiver<Arc<Config>>,
        source_placement: Option<Box<dyn SourcePlacement>>,
        settle: bool,
    ) -> Self {
        let (open_since, settle) = if settle {
            (OnceLock::new(), SETTLE)
        } else {
            (OnceLock::from(Instant::now()), Duration::ZERO)
        };
        let names = Mutex::default();
        Self { registry, config, source_placement, names, open_since, settle }
    }

    /// From now on nodes can connect. Again, it changes nothing.
    pub fn nodes_can_come(&self) {
        self.open_since.get_or_init(Instant::now);
    }

    /// Whether nodes have had so long to connect; if not, how much is missing.
    fn missing_of(&self, wait: Duration) -> Option<Duration> {
        let open = self.open_since.get().map_or(Duration::ZERO, Instant::elapsed);
        wait.checked_sub(open).filter(|missing| !missing.is_zero())
    }

    /// What a list leaves out must not be taken to be gone.
    fn must_be_settled(&self) -> Result<()> {
        match self.missing_of(self.settle) {
            None => Ok(()),
            Some(missing) => Err(Error::unavailable(format!(
                "the controller has just started; nodes have {} more seconds to connect before what there is can be listed",
                missing.as_secs().saturating_add(1)
            ))),
        }
    }

    /// Makes a volume. Where it is.
    ///
    /// # Errors
    /// As the node says, or when no node can be asked.
    pub async fn create_volume(
        &self,
        request: CreateVolume,
        topology: Topology,
        parameters: &Parameters,
    ) -> Result<(NodeName, Volume)> {
        let config = Arc::clone(&self.config.borrow());
        let backend = config.backend(request.class.backend.as_ref())?;
        let mut attempt = self.begin(&request.name)?;
        let doubt = attempt.node.clone();
        let nodes = self.nodes_for(&request, backend, &topology, parameters, doubt).await?;
        let result = self.create_on(&request, nodes, &mut attempt).await;
        let in_doubt = matches!(
            result.as_ref().map_err(Error::kind),
            Err(ErrorKind::Unavailable | ErrorKind::Pending)
        );
        if !in_doubt {
            attempt.node = None;
        }
        result
    }

    /// One call a name. It knows the node on which an earlier call ended in doubt.
    fn begin(&self, name: &CsiName) -> Result<Attempt<'_>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let node = match names.get(name) {
            Some(Name::Busy) => {
                return Err(Error::pending(format!("another call is making {name}; try again")));
            }
            Some(Name::InDoubt(node)) => Some(node.clone()),
            None => None,
        };
        names.insert(name.clone(), Name::Busy);
        Ok(Attempt { controller: self, name: name.clone(), node })
    }

    async fn create_on(
        &self,
        request: &CreateVolume,
        nodes: Vec<NodeName>,
        attempt: &mut Attempt<'_>,
    ) -> Result<(NodeName, Volume)> {
        let mut refusals = Vec::new();
        for node in nodes {
            let agent = self.registry.agent(&node)?;
            attempt.node = Some(node.clone());
            match agent.create_volume(request.clone()).await {
                Ok(Told { value, revision }) => {
                    self.registry.shows(&node, revision).await;
                    let expected = LvName::for_volume(&request.name);
                    let right = value.name == request.name && value.handle.lv == expected;
                    self.believe(&node, &value.handle, right)?;
                    return Ok((node, value));
                }
                // Nothing was left there; another node may have room.
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    refusals.push(format!("node {node}: {}", error.chain()));
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::no_space(few(refusals.into_iter(), "; ")))
    }

    /// The nodes to ask, in their order.
    async fn nodes_for(
        &self,
        request: &CreateVolume,
        backend: &Backend,
        topology: &Topology,
        parameters: &Parameters,
        doubt: Option<NodeName>,
    ) -> Result<Vec<NodeName>> {
        // Where it is already, perhaps half, it has to be finished.
        if let Some(node) = self.registry.node_with_volume(&request.name)? {
            return Ok(vec![node]);
        }
        if let Some(source) = &request.source {
            return self.node_of_source(source, topology, parameters).await.map(|node| vec![node]);
        }
        if let Some(node) = doubt {
            return Ok(vec![node]);
        }
        let one = topology.requisite.len() == 1;
        if let Some(missing) = self.missing_of(self.settle).filter(|_| !one) {
            return Err(Error::unavailable(format!(
                "the controller has just started; nodes have {} more seconds to connect before one is chosen",
                missing.as_secs().saturating_add(1)
            )));
        }
        let size = request.range.required.unwrap_or(Bytes::ZERO);
        match choose(&self.candidates(backend, &request.class, topology), topology, size) {
            Choice::Try(nodes) => Ok(nodes),
            Choice::NoRoom(why) => Err(Error::no_space(format!(
                "no room for {} on backend {}: {why}",
                request.name, backend.name
            ))),
            Choice::Wait(why) => {
                Err(Error::unavailable(format!("{} cannot be placed now: {why}", request.name)))
            }
        }
    }

    fn candidates(
        &self,
        backend: &Backend,
        class: &VolumeClass,
        topology: &Topology,
    ) -> Vec<Candidate> {
        let standing = |inventory: &Inventory, connected: bool| {
            if !connected {
                return Standing::Unknown(
                    "it is not connected: look at its cinderblock pod".to_owned(),
                );
            }
            match inventory.backends.get(&backend.name).map(|b| &b.state) {
                None => Standing::Without,
                Some(BackendState::Unusable(why)) => Standing::Unusable(why.clone()),
                Some(BackendState::Unknown(why)) => Standing::Unknown(why.clone()),
                Some(BackendState::Ready { capacity, .. }) => {
                    let offer = capacity.offer(class.provisioning, &class.layout, class.header());
                    Standing::Room { available: offer.available, largest: offer.largest }
                }
            }
        };
        let nodes = match named(topology) {
            [] => self.registry.nodes(),
            named => named.iter().filter_map(|node| self.registry.node(node)).collect(),
        };
        nodes
            .into_iter()
            .map(|(node, i, connected)| Candidate { node, standing: standing(&i, connected) })
            .collect()
    }

    async fn node_of_source(
        &self,
        source: &ContentSource,
        topology: &Topology,
        parameters: &Parameters,
    ) -> Result<NodeName> {
        let handle = source.handle();
        let there = match source {
            ContentSource::Volume(_) => self.registry.volume(handle)?.map(|(node, _)| node),
            ContentSource::Snapshot(_) => self.registry.snapshot(handle)?.map(|(node, _)| node),
        };
        let what = if matches!(source, ContentSource::Volume(_)) { "volume" } else { "snapshot" };
        let Some(node) = there else {
            // Its node is to say so: a call that was cut may have left a half-made volume there, of which
            // nobody else knows, and "not found" would leave it for ever.
            return self.registry.node_of(handle);
        };
        if topology.requisite.is_empty() || topology.requisite.contains(&node) {
            return Ok(node);
        }
        let allowed = match &self.source_placement {
            Some(ask) => ask.allows(parameters, &node).await?,
            None => false,
        };
        if allowed {
            return Ok(node);
        }
        let names = few(topology.requisite.iter().map(ToString::to_string), ", ");
        Err(Error::no_space(format!(
            "the source {what} {handle} is on node {node}, and a volume made of it can be nowhere else; asked for was {names}"
        )))
    }

    /// Removes a volume.
    ///
    /// # Errors
    /// As the node says, or when it is not connected.
    pub async fn delete_volume(&self, handle: Handle) -> Result<()> {
        let node = self.registry.node_of(&handle)?;
        let told = self.registry.agent(&node)?.delete_volume(handle).await?;
        self.registry.shows(&node, told.revision).await;
        Ok(())
    }

    /// Removes what is proved to be an orphan. No call makes a volume of that name meanwhile.
    ///
    /// # Errors
    /// As the node says, when it is not connected, or when such a call is at work.
    pub(super) async fn remove_orphan(&self, orphan: &Orphan) -> Result<()> {
        let handle = orphan.handle.clone();
        if orphan.what == What::Snapshot {
            return self.delete_snapshot(handle).await;
        }
        let mut attempt = self.begin(&orphan.name)?;
        self.delete_volume(handle).await?;
        attempt.node = None;
        Ok(())
    }

    /// Makes a volume larger. Its size then.
    ///
    /// # Errors
    /// As the node says, or when it is not connected.
    pub async fn expand_volume(&self, handle: Handle, range: CapacityRange) -> Result<Bytes> {
        let node = self.registry.node_of(&handle)?;
        let told = self.registry.agent(&node)?.expand_volume(handle, range).await?;
        self.registry.shows(&node, told.revision).await;
        Ok(told.value)
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// As the node says, or when it is not connected.
    pub async fn create_snapshot(&self, request: CreateSnapshot) -> Result<(NodeName, Snapshot)> {
        // The node sees its own only.
        let others = self.registry.snapshots_named(&request.name);
        if let Some(other) = others.iter().find(|s| s.source != request.source) {
            return Err(Error::already_exists(format!(
                "there is a snapshot {} already, and it was taken of {}",
                request.name, other.source
            )));
        }
        let node = self.registry.node_of(&request.source)?;
        let (name, source) = (request.name.clone(), request.source.clone());
        let told = self.registry.agent(&node)?.create_snapshot(request).await?;
        self.registry.shows(&node, told.revision).await;
        let Told { value, .. } = told;
        let right = value.name == name
            && value.source == source
            && value.handle.vg == source.vg
            && value.handle.lv == LvName::for_snapshot(&name);
        self.believe(&node, &value.handle, right)?;
        Ok((node, value))
    }

    /// Whether what a node has made can be what was asked for. An id leads to whatever bears it, and
    /// is kept for ever: one of another node's must not come from this one.
    fn believe(&self, node: &NodeName, handle: &Handle, right: bool) -> Result<()> {
        if right && self.registry.node_of(handle)? == *node {
            return Ok(());
        }
        tracing::error!(%node, %handle, "the node answers with an id that cannot be its own: it is not believed");
        Err(Error::unavailable(format!(
            "node {node} answers with the id {handle}, which cannot be that of what it was asked for"
        )))
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// As the node says, or when it is not connected.
    pub async fn delete_snapshot(&self, handle: Handle) -> Result<()> {
        let node = self.registry.node_of(&handle)?;
        let told = self.registry.agent(&node)?.delete_snapshot(handle).await?;
        self.registry.shows(&node, told.revision).await;
        Ok(())
    }

    /// A volume and its node.
    ///
    /// # Errors
    /// When there is none, or its node is not connected.
    pub fn volume(&self, handle: &Handle) -> Result<(NodeName, Arc<Volume>)> {
        let found = self.registry.volume(handle)?;
        found.ok_or_else(|| Error::not_found(format!("there is no volume {handle}")))
    }

    /// A snapshot and its node.
    ///
    /// # Errors
    /// When there is none, or its node is not connected.
    pub fn snapshot(&self, handle: &Handle) -> Result<(NodeName, Arc<Snapshot>)> {
        let found = self.registry.snapshot(handle)?;
        found.ok_or_else(|| Error::not_found(format!("there is no snapshot {handle}")))
    }

    /// A page of volumes. Those of nodes that are not connected are as they were last seen; those of which it
    /// is not known whose they are, are left out.
    ///
    /// # Errors
    /// When nodes may yet connect.
    pub fn volumes(&self, after: Option<&Handle>, most: Option<usize>) -> Result<Listing<Volume>> {
        self.must_be_settled()?;
        let most = most.unwrap_or(PAGE_MAX).min(PAGE_MAX);
        Ok(page(self.registry.volumes(after, most.saturating_add(1)), most, |v| &v.handle))
    }

    /// A page of snapshots, of all volumes, as [`Self::volumes`], or of one.
    ///
    /// # Errors
    /// When it is not known which node has the volume, or nodes may yet connect.
    pub fn snapshots(
        &self,
        after: Option<&Handle>,
        most: Option<usize>,
        source: Option<&Handle>,
    ) -> Result<Listing<Snapshot>> {
        match source {
            Some(source) => drop(self.registry.node_of(source)?),
            None => self.must_be_settled()?,
        }
        let most = most.unwrap_or(PAGE_MAX).min(PAGE_MAX);
        let wanted = |s: &Snapshot| source.is_none_or(|source| s.source == *source);
        let found = self.registry.snapshots(after, most.saturating_add(1), wanted);
        Ok(page(found, most, |s| &s.handle))
    }

    /// What is offered to a class on a node, or on all. `None` asks for all backends.
    ///
    /// # Errors
    /// When the class names no backend that there is, or the node may yet connect.
    pub fn capacity(
        &self,
        class: Option<&VolumeClass>,
        node: Option<&NodeName>,
    ) -> Result<Capacity> {
        let config = Arc::clone(&self.config.borrow());
        let backends: Vec<&Backend> = match class {
            Some(class) => vec![config.backend(class.backend.as_ref())?],
            None => config.backends().collect(),
        };
        let mut nodes = match node {
            Some(node) => self.registry.node(node).into_iter().collect(),
            None => self.registry.nodes(),
        };
        // A node that went away offers nothing; one that may yet come is not known.
        let wait = if self.settle.is_zero() { Duration::ZERO } else { UNSEEN };
        if node.is_some() && nodes.is_empty() && self.missing_of(wait).is_some() {
            return Err(Error::unavailable(
                "the node has not connected since the controller started: look at its cinderblock pod",
            ));
        }
        nodes.retain(|(_, _, connected)| *connected);
        let mut total = Capacity::default();
        for (_, inventory, _) in &nodes {
            for backend in &backends {
                let state = inventory.backends.get(&backend.name).map(|b| &b.state);
                let Some(BackendState::Ready { capacity, .. }) = state else { continue };
                let offer = match class {
                    Some(class) => {
                        capacity.offer(class.provisioning, &class.layout, class.header())
                    }
                    None => capacity.offer(None, &ThickLayout::Linear, Bytes::ZERO),
                };
                total.available = total.available.saturating_add(offer.available);
                total.largest = total.largest.max(offer.largest);
                let smaller = total.smallest.is_zero() || offer.smallest < total.smallest;
                total.smallest = if smaller { offer.smallest } else { total.smallest };
            }
        }
        Ok(total)
    }
}

fn page<T>(
    mut entries: Vec<(NodeName, Arc<T>)>,
    most: usize,
    handle: impl Fn(&T) -> &Handle,
) -> Listing<T> {
    let more = entries.len() > most;
    entries.truncate(most);
    let next = entries.last().filter(|_| more).map(|(_, last)| handle(last).clone());
    Listing { entries, next }
}
