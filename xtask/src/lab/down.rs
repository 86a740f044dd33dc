//! `lab down`. It asks nothing: a lab is made to be thrown away.

use std::process::ExitCode;

use anyhow::Result;
use cinderblock_lab::Cluster;

use super::Which;

/// Runs it.
pub(super) fn run(which: &Which) -> Result<ExitCode> {
    match &which.dir {
        Some(dir) => Cluster::down_at(&which.name, dir)?,
        None => Cluster::down(&which.name)?,
    }
    Ok(ExitCode::SUCCESS)
}
