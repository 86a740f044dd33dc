//! The host: the only place that starts a program, opens a device, mounts, or reads the kernel's
//! view. What an operation means, and what LVM's answers say, is decided elsewhere.

pub mod invocation;
