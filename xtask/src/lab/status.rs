//! `lab status`. It changes nothing.

use std::process::ExitCode;

use anyhow::Result;

use super::Which;

/// Runs it.
pub(super) fn run(which: &Which) -> Result<ExitCode> {
    println!("{}", which.attach()?.status()?);
    Ok(ExitCode::SUCCESS)
}
