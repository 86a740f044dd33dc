//! Finding the `lab-guest` program of this very build for the VMs to start. It builds that one program at most.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{cargo, say};

/// Builds `lab-guest` with cargo (a moment when it is fresh) and returns its path; without cargo
/// it is the one beside the running program.
pub(crate) fn locate() -> Result<PathBuf> {
    if cargo::command().is_ok() {
        return build();
    }
    let own = std::env::current_exe().context("finding the running program")?;
    beside(&own).with_context(|| {
        format!(
            "lab-guest, the program that the VMs start, is not beside {}: run `cargo build -p \
             cinderblock-lab`",
            own.display()
        )
    })
}

fn build() -> Result<PathBuf> {
    say("building lab-guest");
    cargo::build(&["build", "--quiet", "--package", "cinderblock-lab", "--bin", "lab-guest"])?
        .into_iter()
        .find(|it| it.target == "lab-guest")
        .map(|it| it.executable)
        .context("cargo built lab-guest, but did not say where it is")
}

/// Test programs are one folder below the others.
fn beside(own: &Path) -> Option<PathBuf> {
    own.ancestors().skip(1).take(2).map(|dir| dir.join("lab-guest")).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let guest = folder.path().join("lab-guest");
        assert_eq!(beside(&folder.path().join("deps/test")), None);
        std::fs::write(&guest, "").unwrap();
        assert_eq!(beside(&folder.path().join("deps/test")), Some(guest.clone()));
        assert_eq!(beside(&folder.path().join("xtask")), Some(guest));
    }
}
