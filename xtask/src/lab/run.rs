//! `lab run`: a program of the host inside the lab's network namespace. It never reaches into a VM.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use super::{Which, passed_on};

/// Run a program of this machine inside the lab's network, with KUBECONFIG and the lab's tools in PATH
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs it.
pub(super) fn run(which: &Which, arguments: &Arguments) -> Result<ExitCode> {
    let cluster = which.attach()?;
    let (program, words) = arguments.command.split_first().context("a program is missing")?;
    let mut command = cluster.command(program);
    command.args(words);
    Ok(passed_on(cluster.spawn(&mut command)?.wait()?))
}
