//! One node VM: what it is made of, its life, its files. What runs inside is in `guest`; several nodes together are in `lab`.

mod disks;
mod launch;
mod node;
mod plug;
mod spawned;
mod spec;
mod state;

pub(crate) use node::BOOT_TIMEOUT;
pub use node::{Node, NodeState, NodeStatus};
pub use spawned::Spawned;
pub use spec::{GIB, MIB, NodeSpec};
pub(crate) use spec::{check_name, check_path};
pub(crate) use state::{Run, read_json, remove, write_json};
