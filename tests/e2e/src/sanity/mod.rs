//! csi-sanity against the driver in a node VM. Which cases there are is csi-sanity's business; we leave none out.

mod report;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;
use crate::driver::{Kernel, Machine, Profile, SOCKET, backend, program};
use crate::lab::Lab;
use crate::tools::{self, Tools};
use crate::vm::GIB;

pub use report::Report;

const TOOL: &str = "csi-sanity";
const BACKEND: &str = "lvmdriver-1";
const VG: &str = "stack-volumes-lvmdriver-1";

/// Two blank disks.
const DISKS: [u64; 2] = [8 * GIB; 2];

/// In the VM, for what csi-sanity mounts.
const FOLDER: &str = "/run/csi-sanity";

/// Bytes of a volume, and after its expansion: large enough for every filesystem, small enough for
/// dozens at once.
const SIZES: [u64; 2] = [GIB / 2, GIB];

/// A run takes two minutes on an idle machine.
const TIMEOUT: Duration = Duration::from_mins(20);

/// What csi-sanity is run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Thin volumes with a filesystem.
    Thin,
    /// Thick volumes with a filesystem.
    Thick,
    /// Thin block volumes.
    Block,
    /// Thick volumes with a filesystem, each on two disks.
    Raid1,
    /// Thin volumes with a filesystem, encrypted.
    Luks,
}

/// A run that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// How its cases ended.
    pub report: Report,
    /// What csi-sanity wrote, unless it was streamed; and after a failure the logs.
    pub output: String,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Thin, Self::Thick, Self::Block, Self::Raid1, Self::Luks];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Thick => "thick",
            Self::Block => "block",
            Self::Raid1 => "raid1",
            Self::Luks => "luks",
        }
    }

    /// What the backend has. A pool would take one of the two disks that RAID needs.
    const fn backend(self) -> &'static str {
        match self {
            Self::Raid1 => "reserve: 0%",
            Self::Thin | Self::Thick | Self::Block | Self::Luks => {
                "thinPool: { name: pool0, size: 60%, overprovision: 20 }"
            }
        }
    }

    fn parameters(self) -> String {
        let more = match self {
            Self::Thin | Self::Block => "provisioning: thin",
            Self::Thick => "provisioning: thick",
            Self::Raid1 => "provisioning: thick\nlayout: raid1",
            Self::Luks => "provisioning: thin\nencryption: luks",
        };
        format!("backend: {BACKEND}\n{more}\n")
    }

    /// What comes with the calls that take a Secret. csi-sanity grows volumes without one.
    fn secrets(self) -> Option<&'static str> {
        (self == Self::Luks).then_some(
            "NodeStageVolumeSecret:\n  masterKey: csi-sanity knows what opens its volumes\n",
        )
    }

    /// The flags that decide which cases there are.
    fn selection(self) -> Vec<String> {
        match self {
            Self::Thin | Self::Thick | Self::Raid1 | Self::Luks => Vec::new(),
            Self::Block => vec!["-csi.testvolumeaccesstype=block".to_owned()],
        }
    }
}

/// Builds what a run needs: csi-sanity and the driver.
///
/// # Errors
/// A build fails.
pub fn build() -> Result<()> {
    tools::ensure_only(&[TOOL])?;
    program(Profile::Dev).map(drop)
}

/// How many cases there are with these flags of csi-sanity's own; nothing is started but csi-sanity.
///
/// # Errors
/// csi-sanity cannot be built, or does not take the flags.
pub fn count(kind: Kind, flags: &[String]) -> Result<usize> {
    let tools = tools::ensure_only(&[TOOL])?;
    let folder = std::env::temp_dir().join(format!("csi-sanity-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let file = folder.join(format!("{}.json", kind.name()));
    let output = Command::new(tools.program(TOOL))
        .args(["-csi.endpoint=unix:///none", "-ginkgo.dry-run"])
        .arg(format!("-ginkgo.json-report={}", file.display()))
        .args(kind.selection())
        .args(flags)
        .output()
        .with_context(|| format!("starting {}", tools.program(TOOL).display()))?;
    let report = fs::read(&file).context("reading csi-sanity's list of cases");
    drop(fs::remove_dir_all(&folder));
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "csi-sanity does not list its cases: {complaint}");
    Ok(Report::parse(&report?)?.passed)
}

/// Runs csi-sanity in a new VM, with `flags` of its own besides ours. With `streamed` its output is
/// copied to ours while it comes.
///
/// # Errors
/// Something is missing, the VM or the driver do not come up, or csi-sanity does not come to its
/// end. Cases that fail are no error.
pub fn run(kind: Kind, flags: &[String], streamed: bool) -> Result<Run> {
    let tools = tools::ensure_only(&[TOOL])?;
    let program = program(Profile::Dev)?;
    let name = format!("sanity-{}", kind.name());
    let lab = Lab::at(&name, &cargo::workspace().join(".lab").join(&name))?;
    let more = kind.backend();
    let machine =
        Machine::boot(lab, Kernel::Own, &DISKS, &program, &backend(BACKEND, VG, 2, more))?;
    let ran = run_in(&machine, kind, flags, streamed, &tools);
    match ran {
        Ok(run) if run.report.failed.is_empty() => Ok(run),
        Ok(run) => Ok(Run { output: format!("{}\n{}", run.output, machine.story()), ..run }),
        Err(error) => Err(error.context(machine.story())),
    }
}

fn run_in(
    machine: &Machine,
    kind: Kind,
    flags: &[String],
    streamed: bool,
    tools: &Tools,
) -> Result<Run> {
    machine.start(BACKEND)?;
    machine.sh(&format!("mkdir -p {FOLDER}"))?;
    let folder = machine.lab.dir();
    let (parameters, report) = (folder.join("parameters.yaml"), folder.join("report.json"));
    fs::write(&parameters, kind.parameters())
        .with_context(|| format!("writing {}", parameters.display()))?;
    let mut words = words(kind, flags, &tools.program(TOOL), &parameters, &report);
    if let Some(text) = kind.secrets() {
        let secrets = folder.join("secrets.yaml");
        fs::write(&secrets, text).with_context(|| format!("writing {}", secrets.display()))?;
        words.push(format!("-csi.secrets={}", secrets.display()));
    }
    let exec = machine.node.exec(words).timeout(TIMEOUT);
    let (status, output) = if streamed {
        (exec.stream(None)?, String::new())
    } else {
        let output = exec.run()?;
        let text = format!("{}\n{}", output.stdout_text(), output.stderr_text());
        (output.status, text)
    };
    let json = fs::read(&report).with_context(|| {
        format!("csi-sanity ended ({status}) without a report; what it wrote: {output}")
    })?;
    let report = Report::parse(&json)?;
    // Its own judgement counts as well: something besides the cases may have failed.
    if report.failed.is_empty() && !status.success() {
        bail!("csi-sanity ended with {status}, though no case failed; what it wrote: {output}");
    }
    Ok(Run { report, output })
}

fn words(
    kind: Kind,
    flags: &[String],
    program: &Path,
    parameters: &Path,
    report: &Path,
) -> Vec<String> {
    let mut words = vec![
        program.display().to_string(),
        format!("-csi.endpoint=unix://{SOCKET}"),
        format!("-csi.stagingdir={FOLDER}/staging"),
        format!("-csi.mountdir={FOLDER}/mount"),
        format!("-csi.testvolumesize={}", SIZES[0]),
        format!("-csi.testvolumeexpandsize={}", SIZES[1]),
        format!("-csi.testvolumeparameters={}", parameters.display()),
        "-ginkgo.no-color".to_owned(),
        format!("-ginkgo.json-report={}", report.display()),
    ];
    words.extend(kind.selection());
    words.extend_from_slice(flags);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_leaves_a_case_out() {
        for kind in Kind::ALL {
            let words =
                words(kind, &["-x".to_owned()], Path::new("p"), Path::new("q"), Path::new("r"));
            assert!(!words.iter().any(|word| word.contains("ginkgo.skip")), "{kind:?}");
            assert_eq!(words.last().unwrap(), "-x");
        }
    }
}
