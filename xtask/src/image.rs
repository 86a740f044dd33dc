//! `cargo xtask image`: words for the driver's image. Making it is in the lab.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use cinderblock_lab::driver::Profile;
use cinderblock_lab::driver_image::{self, Debian, Recipe};
use clap::{Args, ValueEnum};

/// Make the driver's image as an OCI archive, without a container engine
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to put it [default: below cargo's target folder]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How the driver is built
    #[arg(long, value_enum, default_value = "release")]
    profile: Words,
    /// Make the base anew, with Debian's updates of today; needs root
    #[arg(long)]
    fresh: bool,
    /// Take Debian's packages as they were at an instant, such as 20260901T000000Z
    #[arg(long, value_name = "INSTANT")]
    snapshot: Option<String>,
    /// Make it twice from the ground and demand the same digest; needs root
    #[arg(long)]
    check: bool,
}

/// The profiles on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Words {
    /// Built soon, neither optimised nor compressed
    Dev,
    /// As it is delivered
    Release,
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let profile = match arguments.profile {
        Words::Dev => Profile::Dev,
        Words::Release => Profile::Release,
    };
    let mut recipe = Recipe::new(profile);
    recipe.fresh_base = arguments.fresh;
    if let Some(instant) = &arguments.snapshot {
        recipe.debian = Debian::At(instant.clone());
    }
    if arguments.check {
        driver_image::check(&recipe)?;
    }
    let image = driver_image::build(&Recipe { fresh_base: false, ..recipe })?;
    let file = match &arguments.output {
        Some(output) => {
            std::fs::copy(&image.archive, output).with_context(|| {
                format!("copying {} to {}", image.archive.display(), output.display())
            })?;
            output
        }
        None => &image.archive,
    };
    println!("{}\n{}\n{}", image.name, image.digest, file.display());
    Ok(ExitCode::SUCCESS)
}
