//! The controller's part of every request: find the node, ask it, and say what is.

mod reads;

pub use reads::{Capacity, Listing};

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
use crate::names::{CsiName, Handle, LvName, NodeName};
use crate::units::Bytes;

/// A controller that has just started does not choose among nodes until all that live have had the
/// time to connect. A volume whose making was cut may be on any of them. A node dials again within 10
/// seconds, once it knows the address: a cluster's DNS may keep what it said before for 30.
const SETTLE: Duration = Duration::from_secs(45);

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
}
