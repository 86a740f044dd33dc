//! A lab of one VM with blank disks and a driver that uses them, for as long as a value lives. What is done with it is the caller's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Standalone;
use crate::console;
use crate::lab::Lab;
use crate::say;
use crate::vm::{Node, NodeSpec, NodeState};

/// Enough for LVM, a mkfs and the driver at once.
const MEMORY_MIB: u32 = 512;

/// How long making a VG, and a pool in it, may take on a loaded host.
const SETUP_TIMEOUT: Duration = Duration::from_mins(2);

/// Lines of each log after a failure.
const LOG_LINES: usize = 300;
const CONSOLE_LINES: usize = 30;

/// What a person would look at first. What only asks the kernel comes before what reads disks: a device
/// that is held keeps whoever reads it.
const LOOKS: [&str; 6] = [
    "echo w >/proc/sysrq-trigger; dmesg | tail -n 150",
    "ps -eo pid,ppid,stat,wchan:32,etimes,args | grep -v '\\]$'",
    "dmsetup info -c; dmsetup table; dmsetup status --noflush",
    "grep /dev/mapper /proc/mounts",
    "lsblk",
    "pvs -a; vgs; lvs -a -o +lv_tags",
];
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);

/// What a VM boots (see [`crate::kernel`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The lab's own, if it is built: new and fast.
    Own,
    /// That of Debian 12, whose device-mapper is what many nodes have.
    Debian,
}

/// One VM and the driver in it. The lab is down when this is dropped; its logs stay.
#[derive(Debug)]
pub struct Machine {
    /// The lab.
    pub lab: Lab,
    /// The VM.
    pub node: Node,
    /// The driver.
    pub driver: Standalone,
    kept: bool,
}

/// The path of data disk `number` (from 1) in a VM.
#[must_use]
pub fn disk(number: usize) -> String {
    format!("/dev/disk/by-id/lab-disk{number}")
}

/// The configuration of one backend whose VG is made of the first `disks` data disks. `more` are
/// further lines of YAML.
#[must_use]
pub fn backend(name: &str, volume_group: &str, disks: usize, more: &str) -> String {
    let devices: Vec<_> = (1..=disks).map(disk).collect();
    let mut text = format!(
        "backends:\n  - name: {name}\n    volumeGroup: {volume_group}\n    create: true\n    \
         devices: [{}]\n",
        devices.join(", ")
    );
    for line in more.lines() {
        text.extend(["    ", line.trim(), "\n"]);
    }
    text
}

impl Machine {
    /// Boots a VM with disks of these sizes in bytes, and puts the driver's program there. What an
    /// earlier run left in the lab is taken down first.
    ///
    /// # Errors
    /// As [`Lab::up`] and [`Standalone::new`].
    pub fn boot(
        lab: Lab,
        kernel: Kernel,
        disks: &[u64],
        program: &Path,
        backends: &str,
    ) -> Result<Self> {
        Self::boot_numbered(1, lab, kernel, disks, program, backends)
    }

    /// The same as node `number`, which is in its name: for a second machine beside one that is `node1`.
    ///
    /// # Errors
    /// As [`Machine::boot`].
    pub fn boot_numbered(
        number: u8,
        lab: Lab,
        kernel: Kernel,
        disks: &[u64],
        program: &Path,
        backends: &str,
    ) -> Result<Self> {
        lab.down()?;
        let spec = NodeSpec::new(number).memory_mib(MEMORY_MIB);
        let spec = if kernel == Kernel::Own { spec.own_kernel() } else { spec };
        let spec = disks.iter().fold(spec, |spec, bytes| spec.disk(*bytes));
        let node = lab.up(&[spec])?.remove(0);
        let driver = Standalone::new(&node, program, backends)?;
        Ok(Self { lab, node, driver, kept: false })
    }

    /// Starts the driver and waits until the backend takes volumes.
    ///
    /// # Errors
    /// As [`Standalone::start`] and [`Standalone::wait_for_backend`].
    pub fn start(&self, backend: &str) -> Result<()> {
        self.driver.start()?;
        self.driver.wait_for_backend(backend, SETUP_TIMEOUT)
    }

    /// Lets the VM and the driver run on when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// What a script in the VM writes to stdout.
    ///
    /// # Errors
    /// It fails, or a command in it does; the message has its stderr.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.node.exec(["sh", "-euc", script]).timeout(Duration::from_mins(5)).text()
    }

    /// The ends of all logs and the state of LVM, after a failure.
    #[must_use]
    pub fn story(&self) -> String {
        let (log, console) = (self.driver.log(), self.node.console());
        let mut story = format!(
            "{}:\n{}\n{}:\n{}\n",
            log.display(),
            self.driver.log_tail(LOG_LINES),
            console.display(),
            console::tail(&console, CONSOLE_LINES)
        );
        let state = self.node.state();
        if !matches!(state, Ok(NodeState::Running { .. })) {
            story.extend(["the VM does not run: ", &format!("{state:?}"), "\n"]);
            return story;
        }
        for look in LOOKS {
            let seen = self.node.exec(["sh", "-c", look]).timeout(LOOK_TIMEOUT).run();
            let seen = seen.map_or_else(|e| format!("{e:#}"), |seen| seen.stdout_text());
            story.extend(["# ", look, "\n", &seen, "\n"]);
        }
        story
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.lab.down() {
            say(&format!("{error:#}"));
        }
        // A copy of the program for each lab would fill the disk.
        drop(fs::remove_dir_all(self.lab.dir().join("driver")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_of_a_backend() {
        let text = backend("b", "vg0", 2, "reserve: 0%\nthinPool: { size: 60% }");
        let want = "backends:\n  - name: b\n    volumeGroup: vg0\n    create: true\n    devices: \
                    [/dev/disk/by-id/lab-disk1, /dev/disk/by-id/lab-disk2]\n    reserve: 0%\n    \
                    thinPool: { size: 60% }\n";
        assert_eq!(text, want);
    }
}
