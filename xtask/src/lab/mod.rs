//! `cargo xtask lab`: its subcommands and which lab they are about. The lab itself is a library.

mod down;
mod exec;
mod kubectl;
mod logs;
mod run;
mod status;
mod up;

use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

use anyhow::Result;
use cinderblock_lab::{Cluster, Lab};
use clap::{Args, Subcommand};

/// The words after `cargo xtask lab`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    command: Command,
}

/// Which lab.
#[derive(Debug, Args)]
struct Which {
    /// The lab's name
    #[arg(long, global = true, default_value = "dev")]
    name: String,
    /// The lab's directory [default: .lab/NAME in the workspace]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Arguments),
    /// Take the lab down; its logs stay
    Down,
    /// Show nodes, control plane, addresses and files
    Status,
    Kubectl(kubectl::Arguments),
    Exec(exec::Arguments),
    Run(run::Arguments),
    Logs(logs::Arguments),
}

impl Which {
    /// The machines, with a cluster on them or without.
    fn lab(&self) -> Result<Lab> {
        match &self.dir {
            Some(dir) => Lab::attach_at(&self.name, dir),
            None => Lab::attach(&self.name),
        }
    }

    fn attach(&self) -> Result<Cluster> {
        match &self.dir {
            Some(dir) => Cluster::attach_at(&self.name, dir),
            None => Cluster::attach(&self.name),
        }
    }
}

/// Runs one subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let which = &arguments.which;
    match &arguments.command {
        Command::Up(arguments) => up::run(which, arguments),
        Command::Down => down::run(which),
        Command::Status => status::run(which),
        Command::Kubectl(arguments) => kubectl::run(which, arguments),
        Command::Exec(arguments) => exec::run(which, arguments),
        Command::Run(arguments) => run::run(which, arguments),
        Command::Logs(arguments) => logs::run(which, arguments),
    }
}

/// Our exit code for that of a program which we ran for the user.
fn passed_on(status: ExitStatus) -> ExitCode {
    code(status.code())
}

fn code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
