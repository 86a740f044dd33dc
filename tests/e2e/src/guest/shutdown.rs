//! Powering a VM off in order: programs end, file systems are unmounted, disks are written. It is never called for a power cut.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};

use super::step::note;
use crate::bootfile::SYSTEM_DISK;
use crate::process;

/// These stay mounted to the end; everything below them does too.
const KEPT: [&str; 6] = ["/", "/proc", "/sys", "/dev", "/run", "/tmp"];

/// How long a file system may be busy after everything that used it was killed.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);

/// Ends everything and powers off; does not return.
pub(super) fn shutdown(grace: Duration) -> ! {
    note("shutting down");
    signal_all(Signal::TERM);
    let start = Instant::now();
    while start.elapsed() < grace && others().next().is_some() {
        sleep(Duration::from_millis(50));
    }
    signal_all(Signal::KILL);
    rustix::fs::sync();
    unmount_all();
    rustix::fs::sync();
    for target in ["/", SYSTEM_DISK] {
        // The journal copes when something still writes.
        let _ = mount_remount(target, MountFlags::RDONLY, "");
    }
    rustix::fs::sync();
    note("power off");
    loop {
        let _ = reboot(RebootCommand::PowerOff);
        sleep(Duration::from_secs(1));
    }
}

/// All processes but init, this one, and the kernel's threads (which have no command line).
fn others() -> impl Iterator<Item = Pid> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    process::all()
        .filter(move |pid| *pid != 1 && *pid != own)
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()))
        .filter_map(Pid::from_raw)
}

fn signal_all(signal: Signal) {
    for pid in others() {
        let _ = kill_process(pid, signal);
    }
}

/// Again and again for a while: a killed program lets go of its files only when the kernel has ended it,
/// and that takes as long as its last write.
fn unmount_all() {
    let start = Instant::now();
    loop {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let failed: Vec<_> = unmountable(&table)
            .into_iter()
            .filter_map(|target| {
                let error = unmount(target.as_str(), UnmountFlags::empty()).err()?;
                Some((target, error))
            })
            .collect();
        if failed.is_empty() {
            return;
        }
        if start.elapsed() > UNMOUNT_PATIENCE {
            for (target, error) in failed {
                note(&format!("{target} stays mounted: {error}"));
            }
            return;
        }
        sleep(Duration::from_millis(50));
    }
}

/// What to unmount, the newest first. Not the host's folders: they are on the host's disk, where
/// nothing of theirs gets lost with the VM.
fn unmountable(mountinfo: &str) -> Vec<String> {
    let kept = |target: &str| {
        KEPT.iter().any(|it| *it == target || (*it != "/" && target.starts_with(&format!("{it}/"))))
    };
    let mut targets: Vec<_> = mountinfo
        .lines()
        .filter(|line| !line.contains(" - hostfs "))
        .filter_map(|line| line.split(' ').nth(4))
        .map(|target| target.replace("\\040", " "))
        .filter(|target| !kept(target))
        .collect();
    targets.reverse();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmounts_in_reverse_and_keeps_the_base() {
        let table = "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /proc rw - proc proc rw\n\
                     3 1 0:3 / /sys/fs/cgroup rw - cgroup2 c rw\n4 1 0:4 / /data rw - ext4 /dev/x rw\n\
                     5 4 0:5 / /data/a\\040b rw - xfs /dev/y rw\n6 1 0:6 / /devices rw - ext4 z rw\n\
                     7 1 0:7 / /work rw - hostfs hostfs rw\n";
        assert_eq!(unmountable(table), ["/devices", "/data/a b", "/data"]);
    }
}
