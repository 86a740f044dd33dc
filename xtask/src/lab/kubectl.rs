//! `lab kubectl`: the lab's kubectl as administrator. Its words are passed on as they are.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{Which, passed_on};

/// Run kubectl as the lab's administrator
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Words for kubectl
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs it.
pub(super) fn run(which: &Which, arguments: &Arguments) -> Result<ExitCode> {
    let cluster = which.attach()?;
    let mut command = cluster.command("kubectl");
    command.args(&arguments.words);
    Ok(passed_on(cluster.spawn(&mut command)?.wait()?))
}
