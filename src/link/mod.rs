//! The connection between a node and a controller, and the only place that names the messages of
//! the agent protocol. The node dials, says who it is by a token, and then serves; the controller
//! asks. Neither waits for a peer that is silent.
//!
//! ```text
//!   node                                   controller
//!   dial: TLS to each controller  ------>  accept: TLS, deadline
//!   Hello { token }               ------>  who is it? (Authenticator)
//!                                 <------  Welcome { labels } or a refusal
//!   serve: NodeAgent over HTTP/2  <-----   client: watches the inventory, asks for changes, and
//!                                          asks again now and then who it is
//! ```

mod accept;
mod client;
mod dial;
mod failure;
mod features;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzzing;
mod hello;
mod inventory;
mod serve;
mod stream;
mod troubles;
mod unfinished;
mod wire;

pub use accept::{Accept, Authenticator, IDENTIFY_EVERY, NodeLabels, Peer};
pub use dial::{Dial, run as dial};

use std::time::Duration;

/// Version of the protocol that this program speaks.
const PROTOCOL: u32 = 1;
/// A peer that does not finish its greeting within this time is given up.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing comes back within these is given up.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
