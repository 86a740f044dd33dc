//! What the controller tells of what nodes told it: volumes, snapshots and room. Nothing here asks a node, or changes anything.

use std::sync::Arc;
use std::time::Duration;

use super::Controller;
use crate::config::Backend;
use crate::domain::{BackendState, Snapshot, Volume, VolumeClass};
use crate::error::{Error, Result};
use crate::lvm::layout::ThickLayout;
use crate::names::{Handle, NodeName};
use crate::units::Bytes;

/// What a node offers that was not seen since the start is not known for so long: it may boot.
const UNSEEN: Duration = Duration::from_mins(10);
/// Entries of one page. A record has about 400 bytes, and a message 4 MiB at the most.
const PAGE_MAX: usize = 5_000;

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
