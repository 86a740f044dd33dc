//! What the controller asks of a node, whether the agent is in this process or behind a
//! connection.

use std::fmt::Debug;
use std::pin::Pin;

use super::requests::{CapacityRange, CreateSnapshot, CreateVolume, Snapshot, Volume};
use crate::error::Result;
use crate::names::Handle;
use crate::units::Bytes;

/// A future of no particular type: agents of different kinds stand in one table.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// An answer, and the revision of the inventory from which on it shows there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told<T> {
    /// The answer.
    pub value: T,
    /// The revision.
    pub revision: u64,
}

/// Changes of volumes and snapshots on one node. Each can be repeated, and goes on to its end
/// even when nobody waits for its answer any more.
pub trait VolumeAgent: Debug + Send + Sync {
    /// Makes a volume, or finds it made.
    fn create_volume(&self, request: CreateVolume) -> Answer<'_, Told<Volume>>;

    /// Removes a volume, or finds it gone.
    fn delete_volume(&self, volume: Handle) -> Answer<'_, Told<()>>;

    /// Makes a volume larger, or finds it large enough. Answers with its size.
    fn expand_volume(&self, volume: Handle, range: CapacityRange) -> Answer<'_, Told<Bytes>>;

    /// Takes a snapshot, or finds it taken.
    fn create_snapshot(&self, request: CreateSnapshot) -> Answer<'_, Told<Snapshot>>;

    /// Removes a snapshot, or finds it gone.
    fn delete_snapshot(&self, snapshot: Handle) -> Answer<'_, Told<()>>;
}
