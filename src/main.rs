//! The program: reads the command line, runs, and says in one line why it ended.

use std::process::ExitCode;

use cinderblock::cli::Cli;
use clap::Parser;

/// Worker threads. Work is waiting for LVM and disks, whose calls have threads of their own.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(cinderblock::run::run(cli)).map_err(|e| e.chain()),
        Err(error) => Err(format!("cannot start threads: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!("{why}");
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// For who started it by hand: logging may not have begun.
#[allow(clippy::print_stderr, reason = "the one line that a failed start prints")]
fn complain(why: &str) {
    eprintln!("cinderblock: {why}");
}
