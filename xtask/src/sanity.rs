//! `cargo xtask sanity`: words for csi-sanity in a node VM. The run itself is in the lab.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cinderblock_lab::packages;
use cinderblock_lab::sanity::{self, Kind};
use clap::{Args, ValueEnum};

/// Run csi-sanity against the driver in a node VM; needs root
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// What the volumes are
    #[arg(value_enum)]
    kind: Words,
    /// csi-sanity's own flags, after `--`, such as -ginkgo.focus=ExpandVolume or -ginkgo.v
    #[arg(last = true)]
    flags: Vec<String>,
}

/// The kinds on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Words {
    /// Thin volumes with a filesystem
    Thin,
    /// Thick volumes with a filesystem
    Thick,
    /// Thin block volumes
    Block,
    /// Thick volumes with a filesystem, each on two disks
    Raid1,
    /// Encrypted thin volumes with a filesystem
    Luks,
}

impl From<Words> for Kind {
    fn from(words: Words) -> Self {
        match words {
            Words::Thin => Self::Thin,
            Words::Thick => Self::Thick,
            Words::Block => Self::Block,
            Words::Raid1 => Self::Raid1,
            Words::Luks => Self::Luks,
        }
    }
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    packages::ensure()?;
    let kind = Kind::from(arguments.kind);
    let run = sanity::run(kind, &arguments.flags, true)?;
    let report = &run.report;
    if !run.output.is_empty() {
        println!("{}", run.output);
    }
    println!("\ncsi-sanity, {} volumes, {} s", kind.name(), start.elapsed().as_secs());
    let left_out = report.to_string();
    if !left_out.is_empty() {
        println!("{left_out}");
    }
    if !report.not_asked.is_empty() {
        println!("{} cases are left out by your flags", report.not_asked.len());
    }
    for name in &report.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", report.passed, report.failed.len());
    // A selection that matches nothing proves nothing.
    let good = report.failed.is_empty() && report.passed > 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
