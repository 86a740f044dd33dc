//! The driver of another commit: its sources taken out of git, its program, its chart. What the two versions do with each other's volumes is elsewhere.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::{cargo, programs, say};

/// The commit of the other version that tests are told to take.
pub const FROM: &str = "CINDERBLOCK_FROM";

/// Another version of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    commit: String,
    sources: PathBuf,
}

impl Other {
    /// The one that tests are told to take, if they are.
    ///
    /// # Errors
    /// As [`Other::at`].
    pub fn told() -> Result<Option<Self>> {
        env::var(FROM).ok().map(|revision| Self::at(&revision)).transpose()
    }

    /// That of a commit, a tag or whatever else git knows a revision by.
    ///
    /// # Errors
    /// Git is not there, or does not know it, as in a clone without history; or the disk is full.
    pub fn at(revision: &str) -> Result<Self> {
        let named = format!("{revision}^{{commit}}");
        let workspace = cargo::workspace().display().to_string();
        let ask = ["-C", &workspace, "rev-parse", "--quiet", "--verify", "--short=12", &named];
        let commit = programs::run("git", &ask, "").with_context(|| {
            format!("git has no commit {revision}: give one of this repository, and fetch its history if this is a shallow clone")
        })?;
        let commit = commit.trim().to_owned();
        let sources = cargo::target_folder()?.join("other").join(&commit);
        if !sources.is_dir() {
            take_out(&workspace, &commit, &sources)?;
        }
        Ok(Self { commit, sources })
    }

    /// Its commit, in short.
    #[must_use]
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Its chart.
    #[must_use]
    pub fn chart(&self) -> PathBuf {
        self.sources.join("deploy/helm/cinderblock")
    }

    /// Builds its program for tests: some minutes the first time, a moment later on.
    ///
    /// # Errors
    /// As [`super::program`].
    pub fn program(&self) -> Result<PathBuf> {
        say(&format!("building cinderblock of {}", self.commit));
        let mut cargo = cargo::command()?;
        // All other versions share what they are made of.
        cargo
            .current_dir(&self.sources)
            .env("CARGO_TARGET_DIR", self.sources.with_file_name("target"));
        let built = super::build::driver_of(cargo::build_by(cargo, &super::build::WORDS)?)?;
        // The next version's is put at the same place.
        let kept = self.sources.with_extension("program");
        fs::copy(&built, &kept)
            .with_context(|| format!("copying {} to {}", built.display(), kept.display()))?;
        Ok(kept)
    }
}

/// Puts the files of a commit into a folder, all of them or none.
fn take_out(workspace: &str, commit: &str, folder: &Path) -> Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut git = Command::new("git")
        .args(["-C", workspace, "archive", "--format=tar", commit])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting git")?;
    let files = git.stdout.take().context("git has no output")?;
    let unpacked = Command::new("tar")
        .args(["-x", "-C"])
        .arg(&partial)
        .stdin(files)
        .status()
        .context("starting tar")?;
    ensure!(
        git.wait()?.success() && unpacked.success(),
        "taking {commit} out of git failed: see above"
    );
    fs::rename(&partial, folder).with_context(|| format!("naming {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_not_there_is_told() {
        let error = format!("{:#}", Other::at("no-such-commit").unwrap_err());
        assert!(error.starts_with("git has no commit no-such-commit: give one of"), "{error}");
    }
}
