//! The manifests for an installation without Helm, rendered from the chart with Helm. The chart itself is written by hand.

mod values;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::install::{self, NAMESPACE, RELEASE, own_helm, succeeded};
use crate::run_within;
use crate::tools;

/// Helm reads a folder and writes text.
const TIMEOUT: Duration = Duration::from_mins(1);

const NAMESPACE_MANIFEST: &str = "---
apiVersion: v1
kind: Namespace
metadata:
  name: cinderblock
  labels:
    # The nodes' pods mount for others, which takes a privileged container.
    pod-security.kubernetes.io/enforce: privileged
";

/// The chart's templates of classes: they are examples, and not in what installs the driver.
const CLASSES: [(&str, &str); 2] = [
    ("templates/storageclasses.yaml", "examples/storageclasses.yaml"),
    ("templates/volumesnapshotclasses.yaml", "examples/volumesnapshotclass.yaml"),
];

/// A file that is rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The file.
    pub file: PathBuf,
    /// What is to be in it.
    pub text: String,
}

/// Checks the chart as `helm lint --strict` does, and renders all files.
///
/// # Errors
/// Helm cannot be had, or finds a fault in the chart.
pub fn render() -> Result<Vec<Rendered>> {
    let helm = Helm::ensure()?;
    let folder = crate::cargo::workspace().join("manifests");
    let chart = install::chart().display().to_string();
    let values = folder.join("values.yaml").display().to_string();
    helm.run(&["lint", "--strict", "--quiet", &chart, "--values", &values])?;
    let template =
        ["template", RELEASE, &chart, "--namespace", NAMESPACE, "--values", values.as_str()];
    let mut install = helm.run(&template)?;
    let mut files = Vec::new();
    for (shown, file) in CLASSES {
        let text = helm.run(&[&template[..], &["--show-only", shown]].concat())?;
        install = without(&install, shown);
        files.push(Rendered { file: folder.join(file), text: tidy(&text, "") });
    }
    let file = folder.join("install.yaml");
    files.push(Rendered { file, text: tidy(&install, NAMESPACE_MANIFEST) });
    Ok(files)
}

/// Demands that the chart refuses values that are wrong, and says where; returns how many were tried.
///
/// # Errors
/// Helm cannot be had, or the first values that were taken.
pub fn check_values() -> Result<usize> {
    values::check(&Helm::ensure()?, &install::chart().display().to_string())
}

/// Writes what is not as rendered, and returns those files.
///
/// # Errors
/// A file cannot be written.
pub fn write(files: &[Rendered]) -> Result<Vec<&Path>> {
    let changed = differing(files);
    for rendered in files.iter().filter(|it| changed.contains(&it.file.as_path())) {
        let file = &rendered.file;
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(file, &rendered.text))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(changed)
}

/// Demands that all files are as rendered.
///
/// # Errors
/// One sentence that names those that are not.
pub fn check(files: &[Rendered]) -> Result<()> {
    let differing: Vec<_> =
        differing(files).iter().map(|file| file.display().to_string()).collect();
    if differing.is_empty() {
        return Ok(());
    }
    bail!("{} is not what the chart gives: run `cargo xtask chart`", differing.join(", "))
}

fn differing(files: &[Rendered]) -> Vec<&Path> {
    let same = |it: &&Rendered| fs::read_to_string(&it.file).is_ok_and(|text| text == it.text);
    files.iter().filter(|it| !same(it)).map(|it| it.file.as_path()).collect()
}

struct Helm {
    program: PathBuf,
}

impl Helm {
    fn ensure() -> Result<Self> {
        Ok(Self { program: tools::ensure_only(&["helm"])?.program("helm") })
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, "")
    }

    fn run_with(&self, arguments: &[&str], stdin: &str) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        let line = format!("`helm {}`", arguments.join(" "));
        let output =
            run_within::run(own_helm(&mut command), stdin.as_bytes(), TIMEOUT, |command| {
                command.spawn().context("starting helm")
            });
        succeeded(&line, &output?)
    }
}

/// All documents but those of one template.
fn without(text: &str, template: &str) -> String {
    let source = format!("# Source: {RELEASE}/{template}\n");
    text.split("---\n")
        .filter(|document| !document.contains(&source))
        .collect::<Vec<_>>()
        .join("---\n")
}

/// Without Helm's own marks, and with a word about where it comes from.
fn tidy(text: &str, before: &str) -> String {
    let mut out = format!(
        "# Rendered from deploy/helm/{RELEASE} by `cargo xtask chart`: change it there.\n{before}"
    );
    let marks = ["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "];
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if !marks.iter().any(|mark| line.trim_start().starts_with(mark)) {
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helms_marks_go() {
        let text = "---\n# Source: cinderblock/templates/a.yaml\nkind: A\nmetadata:\n  labels:\n    \
                    helm.sh/chart: c-1\n    keep: x\n\n---\n# Source: cinderblock/templates/b.yaml\nkind: B\n";
        let left = tidy(&without(text, "templates/b.yaml"), "");
        assert!(left.ends_with("---\nkind: A\nmetadata:\n  labels:\n    keep: x\n"), "{left}");
    }

    #[test]
    fn drift_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/x.yaml");
        let files = [Rendered { file: file.clone(), text: "a\n".to_owned() }];
        let error = check(&files).unwrap_err().to_string();
        assert!(error.contains("x.yaml") && error.contains("cargo xtask chart"), "{error}");
        assert_eq!(write(&files).unwrap(), [file.as_path()]);
        check(&files).unwrap();
        assert!(write(&files).unwrap().is_empty());
    }
}
