//! What is asked of us and what we answer, in our own types. They name no CSI message, no
//! Kubernetes object and no command; whoever holds one has nothing left to check about its form.

mod capacity;
mod class;
mod inventory;
mod keys;
mod orphan;
mod port;
mod repair;
mod requests;
mod trouble;

pub use capacity::{BackendCapacity, PoolCapacity};
pub use class::{Provisioning, VolumeClass};
pub(crate) use class::{claim, pool_layout};
pub use inventory::{BackendState, BackendStatus, Inventory};
pub use keys::{Key, Keys, Secrets};
pub use orphan::{Orphan, OrphansSeen};
pub use port::{Answer, Told, VolumeAgent};
pub use repair::Repaired;
pub use requests::{
    AccessMode, AccessType, Capability, CapacityRange, ContentSource, CowSize, CreateSnapshot,
    CreateVolume, Parameters, Snapshot, Topology, Unfinished, Volume, What,
};
pub use trouble::{Grade, Reason, Subject, Trouble, Troubles};
