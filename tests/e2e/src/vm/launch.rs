//! Starting a User-Mode-Linux process for a node. It does not wait for the boot and keeps no state.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::disks::Disk;
use super::spec::{MIB, NodeSpec};
use crate::netns::{self, NetNs};
use crate::process::ProcessId;
use crate::{kernel, programs};

/// Where a User-Mode-Linux process keeps its guest's memory.
const SHM: &str = "/dev/shm";

/// The init program's name in the node's folder.
pub(super) const INIT: &str = "lab-guest";

/// Starts the VM, in a session and a process namespace of its own: it outlives this process, and
/// dies as a whole with the returned process (the parent of the VM's kernel).
pub(super) fn launch(
    spec: &NodeSpec,
    folder: &Path,
    disks: &[Disk],
    net: &NetNs,
    console: &Path,
) -> Result<Option<ProcessId>> {
    let program = kernel::find(spec.own_kernel)?;
    let preload = kernel::preload(&program)?;
    check_memory(spec)?;
    // A leftover of a power cut; the kernel refuses a name that seems in use.
    let uml = folder.join("uml");
    if uml.exists() {
        fs::remove_dir_all(&uml).with_context(|| format!("removing {}", uml.display()))?;
    }
    let log = File::create(console).with_context(|| format!("creating {}", console.display()))?;
    let setsid = programs::find("setsid").context("the program setsid is not installed")?;
    let mut command = Command::new(setsid);
    command
        .args(["unshare", "--pid", "--fork", "--kill-child", "--"])
        // Process 1 of the namespace. The kernel itself must not be that: when it panics it
        // aborts, and process 1 cannot abort itself.
        .args(["setsid", "--fork", "--wait"])
        .arg(program)
        .args(kernel_words(spec, folder, disks))
        .env_clear()
        .env("PATH", programs::GUEST_PATH)
        // Also because Linux 7.2 loses its processes when it has no variable besides PATH.
        .env("TMPDIR", SHM)
        .envs(preload.map(|library| ("LD_PRELOAD", library)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut child = net
        .inside(|| command.spawn())?
        .with_context(|| format!("starting the VM of node {}", spec.name))?;
    let process = i32::try_from(child.id()).ok().and_then(ProcessId::of);
    // Reaps it should it end before this process does.
    drop(std::thread::spawn(move || child.wait()));
    Ok(process)
}

/// Ends VMs on this folder's disks that no state file knows: whoever started them died meanwhile.
pub(super) fn end_strays(folder: &Path, net: &NetNs) -> Result<()> {
    let init = init_word(folder);
    for process in net.processes() {
        // Only in the lab's own namespace, and by a whole word that names this very folder.
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word == init.as_encoded_bytes()) {
            process.kill()?;
            ensure!(
                process.wait_gone(Duration::from_mins(1)),
                "process {}, a VM on the disks in {}, survives SIGKILL",
                process.pid,
                folder.display()
            );
        }
    }
    Ok(())
}

fn init_word(folder: &Path) -> OsString {
    let mut word = OsString::from("init=");
    word.push(folder.join(INIT));
    word
}

fn kernel_words(spec: &NodeSpec, folder: &Path, disks: &[Disk]) -> Vec<OsString> {
    let index = spec.index;
    let mut words: Vec<OsString> = [
        &format!("umid={}", spec.name),
        &format!("mem={}M", spec.memory_mib),
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        // Channel 0 is the log; stdin must be there, but is /dev/null.
        "con=null",
        "con0=fd:0,fd:1",
        // The old ptys are 512 devices that udev would look at.
        "pty.legacy_count=0",
        // Several times as fast as ptrace. Debian's kernel knows no such word; it gives it to init.
        "seccomp=auto",
        // A panic ends the process instead of booting again.
        "panic=-1",
        "noreboot",
        &format!("vec0:transport=tap,ifname={},mac=02:cb:00:00:00:{index:02x}", netns::tap(index)),
    ]
    .map(OsString::from)
    .to_vec();
    let with_path = |before: &str, path: &Path, after: &str| {
        let mut word = OsString::from(before);
        word.push(path);
        word.push(after);
        word
    };
    words.push(with_path("uml_dir=", &folder.join("uml"), ""));
    words.extend(disks.iter().map(|disk| {
        with_path(&format!("ubd{}=", disk.letter), &disk.file, &format!(",,{}", disk.serial))
    }));
    words.push(init_word(folder));
    words
}

/// The kernel would fall over, not complain, when the memory behind it runs out.
fn check_memory(spec: &NodeSpec) -> Result<()> {
    let Ok(shm) = rustix::fs::statvfs(SHM) else {
        return Ok(());
    };
    let free = shm.f_bavail.saturating_mul(shm.f_frsize) / MIB;
    ensure!(
        free >= u64::from(spec.memory_mib),
        "node {} wants {} MiB of memory, which live in {SHM}, but only {free} MiB are free there: stop \
         other VMs, give nodes less memory, or run `mount -o remount,size=<more> {SHM}`",
        spec.name,
        spec.memory_mib
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::disks;
    use super::super::spec::GIB;
    use super::*;

    #[test]
    fn the_command_line_is_complete() {
        let folder = Path::new("/x/nodes/node3");
        let spec = NodeSpec::new(3).memory_mib(300).disk(GIB);
        let words = kernel_words(&spec, folder, &disks::of(&spec, folder));
        let line = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        for word in [
            "umid=node3",
            "mem=300M",
            "ubdb=/x/nodes/node3/system.img,,lab-system",
            "ubdc=/x/nodes/node3/disk1.img,,lab-disk1",
            "vec0:transport=tap,ifname=tap3,mac=02:cb:00:00:00:03",
            "init=/x/nodes/node3/lab-guest",
        ] {
            assert!(line.contains(word), "{word} is not in {line}");
        }
    }

    #[test]
    fn too_much_memory_is_refused() {
        let error = check_memory(&NodeSpec::new(1).memory_mib(u32::MAX)).unwrap_err().to_string();
        assert!(error.contains("node1 wants 4294967295 MiB"), "{error}");
    }
}
