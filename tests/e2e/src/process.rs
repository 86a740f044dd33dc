//! Processes of this machine by pid and start time, so that a reused pid is never taken for the old process.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One process, for as long as this machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since this machine's boot.
    started: u64,
    /// Which boot of this machine.
    machine_boot: String,
}

/// What /proc/PID/stat tells.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
    threads: u32,
    started: u64,
}

impl Stat {
    /// True when nothing of the process runs any more. A zombie whose other threads are still on
    /// their way out holds its files and ports.
    fn is_over(&self) -> bool {
        self.state == 'X' || (self.state == 'Z' && self.threads <= 1)
    }
}

impl ProcessId {
    /// The process that has this pid now; none when there is none or it is a zombie.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let stat = stat(pid).filter(|stat| !stat.is_over())?;
        let machine_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self { pid, started: stat.started, machine_boot: machine_boot.trim().to_owned() })
    }

    /// True while this very process runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Ends it with SIGKILL; fine when it is gone already.
    ///
    /// # Errors
    /// The kernel refused the signal.
    pub fn kill(&self) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        // The descriptor holds on to the process, so what is checked is what is killed.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot kill process {}", self.pid)),
        }
    }

    /// Waits until it is gone; false when it outlives the timeout.
    #[must_use]
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        let start = Instant::now();
        while self.is_alive() {
            if start.elapsed() > timeout {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Its children.
    pub fn children(&self) -> impl Iterator<Item = Self> + '_ {
        all()
            .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == self.pid))
            .filter_map(Self::of)
    }
}

/// The pids of all processes.
pub(crate) fn all() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in parentheses may hold spaces and parentheses: what counts comes after the last one.
fn parse_stat(line: &str) -> Option<Stat> {
    let mut fields = line.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Fields 20 and 22 of the line; the state is field 3.
    let threads = fields.nth(15)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, parent, threads, started })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn stat_with_an_evil_name() {
        let line = "42 (a) b ( c) S 7 42 42 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 9876 1 2 3";
        let want = Stat { state: 'S', parent: 7, threads: 1, started: 9876 };
        assert_eq!(parse_stat(line), Some(want));
        let zombie = |threads| Stat { state: 'Z', parent: 7, threads, started: 1 };
        assert!(zombie(1).is_over() && !zombie(2).is_over());
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn a_killed_process_is_dead_even_as_a_zombie() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id().try_into().unwrap()).unwrap();
        let me = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        assert!(id.is_alive() && me.children().any(|it| it == id));
        let other = ProcessId { started: id.started + 1, ..id.clone() };
        other.kill().unwrap();
        assert!(id.is_alive() && !other.is_alive());
        id.kill().unwrap();
        assert!(id.wait_gone(Duration::from_secs(5)));
        id.kill().unwrap();
        child.wait().unwrap();
    }
}
