//! Asking cargo for programs and tests of this workspace. What they are for is not known here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::programs;

/// A program that cargo built, or found fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The name of its target.
    pub target: String,
    /// What kind of target: `bin`, `lib`, `test` and others.
    pub kind: String,
    /// The folder of its package.
    pub package: PathBuf,
    /// Whether it is a test executable, not the program itself.
    pub is_test: bool,
    /// The file.
    pub executable: PathBuf,
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// The workspace's folder.
#[must_use]
pub fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

/// A call of the cargo that runs us, or of the one in PATH, in this workspace.
///
/// # Errors
/// There is no cargo.
pub fn command() -> Result<Command> {
    let cargo = std::env::var_os("CARGO").map(PathBuf::from).or_else(|| programs::find("cargo"));
    let mut command = Command::new(cargo.context("cargo is not in PATH: install Rust")?);
    command.current_dir(workspace()).stdin(Stdio::null());
    Ok(command)
}

/// Runs a cargo command that builds, with cargo's own messages on stderr, and returns the programs
/// that came of it.
///
/// # Errors
/// Cargo cannot be started or fails.
pub fn build(words: &[&str]) -> Result<Vec<Artifact>> {
    let output = command()?
        .args(words)
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    let line = words.join(" ");
    ensure!(output.status.success(), "`cargo {line}` failed: its errors are above");
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(artifact).collect())
}

/// One line of cargo's JSON, if it is about a program.
fn artifact(line: &str) -> Option<Artifact> {
    let message: Message = serde_json::from_str(line).ok()?;
    let target = message.target?;
    Some(Artifact {
        target: target.name,
        kind: target.kind.into_iter().next()?,
        package: message.manifest_path?.parent()?.to_owned(),
        is_test: message.profile?.test,
        executable: message.executable?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_programs_are_understood() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w#a@0.1.0",
            "manifest_path":"/w/Cargo.toml","target":{"kind":["test"],"name":"service"},
            "profile":{"opt_level":"0","test":true},"executable":"/t/service-1","fresh":true}"#
            .replace('\n', "");
        let found = artifact(&line).unwrap();
        assert_eq!((found.target.as_str(), found.kind.as_str()), ("service", "test"));
        assert_eq!(found.package, Path::new("/w"));
        assert!(found.is_test && found.executable.ends_with("service-1"));
        assert_eq!(artifact(&line.replace("\"/t/service-1\"", "null")), None);
        assert_eq!(artifact(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(artifact("no json"), None);
    }

    #[test]
    fn the_workspace_is_above_us() {
        assert!(workspace().join("tests/e2e/Cargo.toml").exists());
    }
}
