//! One `go build` with its progress, and the files that are taken from a Go module. Which tools there are is in `catalog`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Tools;
use super::catalog::{self, Module, SNAPSHOT_CRDS, Tool};
use super::go::Go;
use crate::{console, heartbeat, say};

/// Lines of a build's output in an error message.
const TAIL: usize = 20;

/// The folder of a pinned module in the checkout.
fn folder(module: Module) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/tools").join(module.folder())
}

fn command(go: &Go, module: Module) -> Command {
    let mut command = Command::new(&go.program);
    command
        .current_dir(folder(module))
        .env("GOTOOLCHAIN", go.toolchain)
        // Would be that of another Go.
        .env_remove("GOROOT")
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOFLAGS", "")
        .env("GOOS", "linux")
        .env("GOARCH", "amd64")
        .stdin(Stdio::null());
    command
}

/// Builds one tool; it gets its name when it is whole.
pub(super) fn build(go: &Go, tool: &Tool, tools: &Tools, place: &str) -> Result<()> {
    say(&format!("tools: {place}: building {}", tool.name));
    let start = Instant::now();
    let (bin, logs) = (tools.bin(), tools.dir().join("log"));
    for folder in [&bin, &logs] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let log = logs.join(format!("{}.log", tool.name));
    let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let partial = bin.join(format!(".{}.partial", tool.name));
    let mut command = command(go, tool.module);
    command.arg("build").args(catalog::build_flags()).arg("-o").arg(&partial).arg(tool.package);
    command.stdout(output.try_clone()?).stderr(output);
    let status = heartbeat::wait(command, &format!("tools: still building {}", tool.name))?;
    ensure!(
        status.success(),
        "`go build {}` failed ({status}); the end of {}:\n{}",
        tool.package,
        log.display(),
        console::tail(&log, TAIL)
    );
    finish(&partial, &tools.program(tool.name))?;
    say(&format!("tools: {place}: {} after {} s", tool.name, start.elapsed().as_secs()));
    Ok(())
}

/// Gives a file its name once it is on disk.
fn finish(partial: &Path, file: &Path) -> Result<()> {
    let done = || -> std::io::Result<()> {
        File::open(partial)?.sync_all()?;
        fs::rename(partial, file)
    };
    done().with_context(|| format!("moving {} to {}", partial.display(), file.display()))
}

/// What `go mod download -json` says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Download {
    #[serde(default)]
    dir: PathBuf,
    #[serde(default)]
    error: String,
}

/// Copies the snapshot CRDs out of their Go module.
pub(super) fn fetch_crds(go: &Go, to: &Path) -> Result<()> {
    let (module, inside) = SNAPSHOT_CRDS;
    let mut command = command(go, Module::Main);
    command.args(["mod", "download", "-json", module]).stderr(Stdio::inherit());
    let output = command.output().context("starting go")?;
    let download: Download = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`go mod download {module}` failed ({})", output.status))?;
    ensure!(download.error.is_empty(), "`go mod download {module}`: {}", download.error);
    let partial = to.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("removing {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let from = download.dir.join(inside);
    let entries = fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        // Besides the definitions there is a kustomization, which is no object.
        if name.to_str().is_some_and(|name| name.contains("snapshot.storage.k8s.io_")) {
            let text = fs::read(entry.path())
                .with_context(|| format!("reading {}", entry.path().display()))?;
            fs::write(partial.join(&name), text)
                .with_context(|| format!("writing to {}", partial.display()))?;
        }
    }
    fs::rename(&partial, to).with_context(|| format!("creating {}", to.display()))
}
