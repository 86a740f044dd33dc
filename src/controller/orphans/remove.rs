//! Removing orphans: the ones that a person names, each proved once more right before.

use super::Orphans;
use super::look::Found;
use crate::domain::{Orphan, What};
use crate::error::{Error, Result};
use crate::names::Handle;

impl Orphans {
    /// Removes orphans by their ids: what became of each. The cluster is asked anew before each, for a
    /// removal can take minutes.
    ///
    /// # Errors
    /// When the cluster cannot be asked at the beginning. Then nothing is removed.
    pub async fn remove(&self, handles: &[Handle]) -> Result<Vec<Result<Orphan>>> {
        self.look().await?;
        let mut removed = Vec::new();
        let mut looked = Ok(());
        for (nth, handle) in handles.iter().enumerate() {
            if nth > 0 && looked.is_ok() {
                looked = self.look().await;
            }
            removed.push(match &looked {
                Ok(()) => Box::pin(self.remove_one(handle)).await,
                Err(error) => Err(Error::unavailable(format!("{handle} stays: {}", error.chain()))),
            });
        }
        Ok(removed)
    }

    /// Removes one, by what was seen right before.
    async fn remove_one(&self, handle: &Handle) -> Result<Orphan> {
        let orphan = self.proved(handle).await?;
        let Orphan { node, what, size, .. } = &orphan;
        let claim = orphan.claim.as_ref().map(|c| format!("{}/{}", c.namespace, c.name));
        tracing::warn!(%node, %handle, %what, %size, claim, "removing an orphan, as somebody has ordered");
        self.controller.remove_orphan(&orphan).await?;
        Ok(orphan)
    }

    /// An orphan, after all that can be known.
    async fn proved(&self, handle: &Handle) -> Result<Orphan> {
        let refused =
            |why: String| Err(Error::failed_precondition(format!("{handle} stays: {why}")));
        // Not when several nodes say that they have its volume group.
        self.registry.node_of(handle)?;
        let seen = self.seen();
        let Some(orphan) = seen.orphans.into_iter().find(|orphan| orphan.handle == *handle) else {
            return refused(self.why_not(handle));
        };
        // Who is to have it is not there, but may come: the provisioner has not given up.
        if let Some(claim) = orphan.claim.as_ref().filter(|_| orphan.what == What::Volume)
            && self.cluster.is_claimed(claim, &orphan.name).await?
        {
            return refused(format!(
                "the claim {}/{} that it was made for is there, and wants it or has no volume: delete the claim first",
                claim.namespace, claim.name
            ));
        }
        Ok(orphan)
    }

    fn why_not(&self, handle: &Handle) -> String {
        let nodes = self.registry.nodes();
        let mut connected = nodes.iter().filter(|(_, _, connected)| *connected);
        let Some(found) = connected.find_map(|(_, inventory, _)| Found::get(inventory, handle))
        else {
            return "no node that is connected has it".to_owned();
        };
        let table = self.table();
        if table.unknown.contains_key(handle) {
            return format!(
                "no object of the cluster knows it, but that has to be so for {:?} before it is an orphan",
                self.grace
            );
        }
        if found.what() == What::Snapshot && !table.snapshots {
            return "the cluster has no snapshot API, so nobody can say whether it is needed"
                .to_owned();
        }
        "an object of the cluster knows it: delete the claim or the VolumeSnapshot, or the object itself"
            .to_owned()
    }
}
