//! The controller: knows which node has what, chooses nodes for new volumes and hands every change
//! to the node that has to make it. It keeps no state of its own: all it knows, nodes told it, and
//! a node that is not connected tells nothing - not even that something is not there.

mod orphans;
mod placement;
mod registry;
mod service;
mod troubles;

pub use orphans::{Cluster, Mention, Orphans, See};
pub use placement::{Candidate, Choice, Standing, choose};
pub use registry::{Registry, Session};
pub use service::{Capacity, Controller, Listing, SourcePlacement};
pub use troubles::{Notice, Tells, Watch, tell_of_troubles};
