//! `cargo xtask chart`: words for rendering the manifests. How is in the lab.

use std::process::ExitCode;

use anyhow::Result;
use cinderblock_lab::manifests;
use clap::Args;

/// Check the Helm chart and render manifests/ from it
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Write nothing, and fail when a file is not what the chart gives
    #[arg(long)]
    check: bool,
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let files = manifests::render()?;
    if arguments.check {
        manifests::check(&files)?;
        println!("{} manifests are as the chart gives them", files.len());
        println!("{} values are refused or rendered as they should be", manifests::check_values()?);
    } else {
        for file in manifests::write(&files)? {
            println!("wrote {}", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
