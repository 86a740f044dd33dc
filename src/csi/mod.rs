//! The CSI edge, and the only place that names its messages. What stands here checks the form of a
//! request, turns it into a domain request, calls one use case and turns the answer back; every
//! decision is made further in.

mod controller;
mod health;
mod identity;
mod node;
mod observe;
pub mod request;
mod response;
mod server;
mod status;

pub use controller::ControllerService;
pub use identity::{IdentityService, Readiness};
pub use node::NodeService;
pub use observe::Observer;
pub use server::{Services, serve};
pub use status::code;
