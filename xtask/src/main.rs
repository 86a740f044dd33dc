//! The project's own commands: `cargo xtask <command>`. What they do is in the libraries that they call.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a developer tool: it talks on the terminal, and a panic costs a run, not a volume"
)]

mod bench;
mod chart;
mod demo;
mod fuzz;
mod image;
mod lab;
mod sanity;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Arguments),
    Chart(chart::Arguments),
    Demo(demo::Arguments),
    Fuzz(fuzz::Arguments),
    /// A throwaway Kubernetes with nodes in VMs; needs root
    Lab(lab::Arguments),
    Image(image::Arguments),
    Sanity(sanity::Arguments),
    Test(test::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Chart(arguments) => chart::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Image(arguments) => image::run(&arguments),
        Command::Sanity(arguments) => sanity::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        // Whoever read our output has seen enough.
        if error.chain().any(is_closed_pipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn is_closed_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let words = "xtask lab --name x exec node1 -- lvs -a";
        Arguments::try_parse_from(words.split(' ')).unwrap();
        let words = "xtask lab kubectl get pods -A -o wide --watch";
        Arguments::try_parse_from(words.split(' ')).unwrap();
        Arguments::try_parse_from(["xtask", "lab", "run"]).unwrap_err();
        let words = "xtask sanity block -- -ginkgo.focus=ExpandVolume -ginkgo.v";
        Arguments::try_parse_from(words.split(' ')).unwrap();
        Arguments::try_parse_from(["xtask", "sanity", "other"]).unwrap_err();
        Arguments::try_parse_from(["xtask", "test"]).unwrap();
        let words = "xtask test faults --for 30m --seed 7";
        Arguments::try_parse_from(words.split(' ')).unwrap();
        Arguments::try_parse_from(["xtask", "test", "faults", "--for", "30"]).unwrap_err();
    }
}
