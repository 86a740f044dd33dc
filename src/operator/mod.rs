//! What a person asks of a controller by the command line, and the only place that names these
//! messages. They go over a Unix socket that only the controller's own user can open: who may
//! execute commands in its pod, and nobody over the network.

mod ask;
mod serve;

pub use ask::{Ask, ask};
pub use serve::serve;

/// Orphans of one list. A row has 700 bytes at the most, and a message 4 MiB.
const ROWS_MAX: usize = 5_000;
/// Orphans that one call removes.
const HANDLES_MAX: usize = 100;
