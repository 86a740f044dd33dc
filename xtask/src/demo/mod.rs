//! `cargo xtask demo`: the main job from beginning to end, each step shown as it happens. What is shown is done here; how is the lab's and the driver's.

mod kubernetes;
mod standalone;
mod story;

use std::process::ExitCode;

use anyhow::Result;
use cinderblock_lab::packages;
use clap::Args;

/// Show the main job on a throwaway machine: claim, pod, write, snapshot, damage, restore, clone,
/// expand, delete; needs root
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Without Kubernetes: the same by CSI calls to the driver in one VM
    #[arg(long)]
    standalone: bool,
    /// Leave the machines running, with the volumes still there, for a look around
    #[arg(long)]
    keep: bool,
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure()?;
    if arguments.standalone {
        standalone::run(arguments.keep)?;
    } else {
        kubernetes::run(arguments.keep)?;
    }
    Ok(ExitCode::SUCCESS)
}
