//! Finding the `lab-guest` program of this very build for the VMs to start. It builds that one program at most.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{programs, say};

/// The line of `cargo build --message-format=json` that names the program.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Builds `lab-guest` with cargo (a moment when it is fresh) and returns its path; without cargo
/// it is the one beside the running program.
pub(crate) fn locate() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").map(PathBuf::from).or_else(|| programs::find("cargo"));
    if let Some(cargo) = cargo {
        return build(&cargo);
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

fn build(cargo: &Path) -> Result<PathBuf> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    say("building lab-guest");
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--bin", "lab-guest", "--message-format"])
        .args(["json-render-diagnostics", "--manifest-path", manifest])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {}", cargo.display()))?;
    ensure!(output.status.success(), "cargo could not build lab-guest: its errors are above");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .find(|file| file.file_name().is_some_and(|name| name == "lab-guest"))
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
