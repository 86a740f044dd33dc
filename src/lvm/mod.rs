//! LVM as data: what a volume group holds, how a step becomes a command line, how LVM's answers
//! become typed results. Pure: nothing here runs a program, opens a device or knows the time.

mod args;
pub mod change;
pub mod command;
pub mod label;
pub mod layout;
pub mod metadata;
mod pool_command;
mod pool_parts;
pub mod report;
pub mod state;
pub mod tag;
pub mod text;
