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

/// A target of a package of this workspace, built or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// What kind of target: `bin`, `lib`, `test` and others.
    pub kind: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<RawTarget>,
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<RawTarget>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct RawTarget {
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
    let mut command = Command::new(
        cargo.context("cargo is not in PATH: install it with rustup (https://rustup.rs)")?,
    );
    detach(command.current_dir(workspace()).stdin(Stdio::null()));
    Ok(command)
}

/// Keeps from a command what cargo has told us about our own package. A cargo that inherits it
/// compiles every crate anew whose build script looks at it.
pub fn detach(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_about_the_caller) {
            command.env_remove(name);
        }
    }
}

/// Whether it is such a variable.
fn is_about_the_caller(variable: &str) -> bool {
    let told = ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];
    told.contains(&variable)
        || variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_MANIFEST_")
}

/// All targets of this workspace; nothing is built.
///
/// # Errors
/// Cargo cannot be started or fails.
pub fn targets() -> Result<Vec<Target>> {
    let targets = metadata()?.packages.into_iter().flat_map(|package| package.targets);
    Ok(targets
        .filter_map(|it| Some(Target { kind: it.kind.into_iter().next()?, name: it.name }))
        .collect())
}

/// Where cargo puts what it builds of this workspace.
///
/// # Errors
/// As [`targets`].
pub fn target_folder() -> Result<PathBuf> {
    Ok(metadata()?.target_directory)
}

fn metadata() -> Result<Metadata> {
    let output = command()?
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "`cargo metadata` failed: its errors are above");
    serde_json::from_slice(&output.stdout).context("`cargo metadata`")
}

/// Runs a cargo command that builds, with cargo's own messages on stderr, and returns the programs
/// that came of it.
///
/// # Errors
/// Cargo cannot be started or fails.
pub fn build(words: &[&str]) -> Result<Vec<Artifact>> {
    build_by(command()?, words)
}

/// As [`build`], with a command that has a workspace of its own.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_by(mut cargo: Command, words: &[&str]) -> Result<Vec<Artifact>> {
    let output = cargo
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
    fn only_what_is_about_the_caller_is_kept_from_cargo() {
        for name in ["CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "OUT_DIR"] {
            assert!(is_about_the_caller(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_BUILD_JOBS", "PATH"] {
            assert!(!is_about_the_caller(name), "{name}");
        }
    }

    #[test]
    fn targets_are_there_before_they_are_built() {
        let targets = targets().unwrap();
        let has = |kind: &str, name: &str| {
            targets.contains(&Target { name: name.to_owned(), kind: kind.to_owned() })
        };
        assert!(has("bin", "cinderblock") && has("test", "cluster") && !has("bin", "cluster"));
    }

    #[test]
    fn the_workspace_is_above_us() {
        assert!(workspace().join("tests/e2e/Cargo.toml").exists());
    }
}
