//! The driver in a node VM: its program built, started as `cinderblock standalone`, killed and started again, and spoken to over CSI. What is tested, shown or measured with it is elsewhere.

mod build;
mod class;
mod csi;
mod http;
mod lvm_count;
mod machine;
mod other;
mod standalone;
mod switch;

pub use build::{Profile, program};
pub use class::{Access, Class, Source};
pub use csi::{Csi, is_open, pb};
pub use lvm_count::{LvmCount, Programs};
pub use machine::{Kernel, Machine, backend, disk};
pub use other::{FROM, Other};
pub use standalone::{SOCKET, Standalone};
pub use switch::Power;
