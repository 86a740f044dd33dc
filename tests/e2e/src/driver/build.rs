//! Building the driver's program with cargo. It is not run here.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cargo::{self, Artifact};
use crate::say;

/// How the driver is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As for tests: built soon, slower.
    Dev,
    /// As it is delivered.
    Release,
}

impl Profile {
    /// Its name, as cargo's options have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

/// Builds the driver (a moment when it is fresh) and returns its program.
///
/// # Errors
/// There is no cargo, or the build fails.
pub fn program(profile: Profile) -> Result<PathBuf> {
    say("building cinderblock");
    let mut words = WORDS.to_vec();
    if profile == Profile::Release {
        words.push("--release");
    }
    driver_of(cargo::build(&words)?)
}

/// How cargo is told to build it.
pub(super) const WORDS: [&str; 5] = ["build", "--package", "cinderblock", "--bin", "cinderblock"];

/// The driver's program among what cargo built.
pub(super) fn driver_of(built: Vec<Artifact>) -> Result<PathBuf> {
    built
        .into_iter()
        .find(|it| it.target == "cinderblock" && it.kind == "bin")
        .map(|it| it.executable)
        .context("cargo built cinderblock, but did not say where it is")
}
