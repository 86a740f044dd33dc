//! Long-running programs on the host inside the lab's network namespace, taken up again by any process. Which ones there are is in `control_plane`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::NetNs;
use crate::process::ProcessId;
use crate::vm::{read_json, remove, write_json};
use crate::{console, programs};

/// Lines of a log in an error message.
const TAIL: usize = 20;

/// A program that is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Daemon {
    pub(super) name: &'static str,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) log: PathBuf,
    /// Where it is written down that it runs.
    pub(super) state: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    process: ProcessId,
    program: PathBuf,
    arguments: Vec<String>,
}

impl Daemon {
    /// Starts it unless it runs already with the same arguments.
    pub(super) fn ensure(&self, net: &NetNs) -> Result<()> {
        if let Some(running) = self.running()? {
            if (&running.program, &running.arguments) == (&self.program, &self.arguments) {
                return Ok(());
            }
            self.stop()?;
        }
        self.start(net).with_context(|| format!("starting {}", self.name))
    }

    fn start(&self, net: &NetNs) -> Result<()> {
        for folder in [self.log.parent(), self.state.parent()].into_iter().flatten() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let log =
            File::create(&self.log).with_context(|| format!("creating {}", self.log.display()))?;
        // In a session of its own, so that it outlives this process and its terminal.
        let setsid = programs::find("setsid").context("the program setsid is not installed")?;
        let mut command = Command::new(setsid);
        command
            .arg(&self.program)
            .args(&self.arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = net.inside(|| command.spawn())??;
        let pid = i32::try_from(child.id()).context("a process id out of range")?;
        let Some(process) = ProcessId::of(pid) else {
            bail!("it ended at once: {}", self.tail());
        };
        // Reaps it should it end before this process does.
        drop(std::thread::spawn(move || child.wait()));
        let (program, arguments) = (self.program.clone(), self.arguments.clone());
        write_json(&self.state, &Running { process, program, arguments })
    }

    /// Ends it; fine when it does not run.
    pub(super) fn stop(&self) -> Result<()> {
        if let Some(running) = self.running()? {
            running.process.kill()?;
            ensure!(
                running.process.wait_gone(Duration::from_mins(1)),
                "{} (process {}) survives SIGKILL",
                self.name,
                running.process.pid
            );
        }
        remove(&self.state)
    }

    /// Its process id while it runs.
    pub(super) fn pid(&self) -> Result<Option<i32>> {
        Ok(self.running()?.map(|running| running.process.pid))
    }

    /// Fails when it does not run any more.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.pid()?.is_some(), "{} has ended; {}", self.name, self.tail());
        Ok(())
    }

    /// The end of its log, for messages.
    pub(super) fn tail(&self) -> String {
        tail(&self.log)
    }

    fn running(&self) -> Result<Option<Running>> {
        let running: Option<Running> = read_json(&self.state)?;
        Ok(running.filter(|running| running.process.is_alive()))
    }
}

/// The end of a log, for messages.
pub(super) fn tail(log: &Path) -> String {
    format!("the end of {}:\n{}", log.display(), console::tail(log, TAIL))
}
