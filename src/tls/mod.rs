//! Certificates of the connection between controller and nodes: made, kept fresh and checked. Where
//! they are stored is for `kube` and for the command line to say.
//!
//! By default the controller is its own certificate authority. The authority's key lives in a
//! Secret, its certificate in a ConfigMap that every node mounts; each controller makes itself a
//! certificate in memory and a new one long before that ends. The authority, too, is followed by a
//! next one in time, whose certificate is published long before it signs anything. A user's own
//! certificate takes the place of all this.

mod authority;
mod files;
mod server;

pub use authority::{Authority, Step, next_step};
pub use files::follow_files;
pub use server::{Identity, client_config, server_config};
