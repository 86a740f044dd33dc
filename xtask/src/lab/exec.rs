//! `lab exec`: a program in a node's VM, as root. It has no terminal.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::{Which, code};

/// Run a program in a node's VM as root
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The node's name
    node: String,
    /// Pass on all of our stdin first
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Seconds that it may take
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// Runs it.
pub(super) fn run(which: &Which, arguments: &Arguments) -> Result<ExitCode> {
    let node = which.lab()?.node(&arguments.node)?;
    let mut stdin = Vec::new();
    if arguments.stdin {
        std::io::stdin().read_to_end(&mut stdin).context("reading stdin")?;
    }
    let mut exec = node.exec(&arguments.command);
    // A lab without a cluster has no programs of its own.
    if let Ok(cluster) = which.attach() {
        exec = exec.env("PATH", &cluster.node_path());
    }
    let timeout = Duration::from_secs(arguments.timeout);
    let status = exec.stdin(stdin).timeout(timeout).stream(None)?;
    Ok(code(status.code()))
}
