//! The project's own commands: `cargo xtask <command>`. What they do is in the libraries that they call.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a developer tool talks on the terminal"
)]

mod lab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A throwaway Kubernetes with nodes in VMs; needs root
    Lab(lab::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
