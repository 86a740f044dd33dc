//! Process 1 of a VM: stage 2 of the boot (mounts, modules, udev, network), then reaping. Programs for the host run in `server`.

use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use super::root::{make, mount_at};
use super::step::{failed, note, step};
use super::{SERVE, modules, root};
use crate::bootfile::{BootFile, SYSTEM_DEVICE};
use crate::programs;

/// udev's rule for the lab's disks. The serial numbers come from the host.
const DISK_RULE: &str = r#"# Stable links for the lab's disks.
ACTION=="remove", GOTO="lab_disk_end"
SUBSYSTEM!="block", GOTO="lab_disk_end"
KERNEL!="ubd*", GOTO="lab_disk_end"
ENV{DEVTYPE}=="disk", ATTR{serial}=="?*", ENV{ID_SERIAL}="$attr{serial}"
ENV{DEVTYPE}=="partition", IMPORT{parent}="ID_SERIAL"
ENV{DEVTYPE}=="disk", ENV{ID_SERIAL}=="?*", SYMLINK+="disk/by-id/$env{ID_SERIAL}"
ENV{DEVTYPE}=="partition", ENV{ID_SERIAL}=="?*", SYMLINK+="disk/by-id/$env{ID_SERIAL}-part%n"
LABEL="lab_disk_end"
"#;

/// The kubelet reads the clock rate, which User-Mode Linux does not give.
const CPUINFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 1\n\
    model name\t: User-Mode Linux\ncpu MHz\t\t: 2000.000\ncache size\t: 1024 KB\nphysical id\t: 0\n\
    siblings\t: 1\ncore id\t\t: 0\ncpu cores\t: 1\nflags\t\t: fpu\n\n";

/// Boots the VM and then looks after it for ever. `own` is this program's path on the host.
pub(super) fn init(own: &Path) -> ! {
    let folder = own.parent().unwrap_or(Path::new("/")).to_owned();
    let booted = step("read the boot file", || BootFile::read(&folder))
        .and_then(|boot| root::enter().and_then(|()| stage2(&boot)));
    let error = match booted.and_then(|()| look_after(own, &folder)) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    failed(&error);
    rustix::fs::sync();
    loop {
        let _ = reboot(RebootCommand::PowerOff);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn stage2(boot: &BootFile) -> Result<()> {
    step("mount the kernel's file systems", mounts)?;
    step("mount the host's folders", || shares(&boot.shares))?;
    step("load modules", modules::load_all)?;
    step("set names", || names(boot))?;
    step("start the network", || network(boot))?;
    step("start udev", udev)
}

fn mounts() -> Result<()> {
    mount_at("proc", "/proc", "proc", "")?;
    mount_at("sysfs", "/sys", "sysfs", "")?;
    mount_at("devtmpfs", "/dev", "devtmpfs", "mode=755")?;
    make(Path::new("/dev/pts"))?;
    make(Path::new("/dev/shm"))?;
    mount_at("devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666")?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", "mode=1777")?;
    mount_at("tmpfs", "/tmp", "tmpfs", "mode=1777")?;
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", "")?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        replace_link(Path::new(target), Path::new(link))?;
    }
    for folder in ["/run/lock/lvm", "/run/lvm", "/run/udev/rules.d"] {
        make(Path::new(folder))?;
    }
    write("/run/cpuinfo", CPUINFO)?;
    mount_bind("/run/cpuinfo", "/proc/cpuinfo").context("mount --bind /proc/cpuinfo")?;
    // What the kubelet and a CSI driver mount in pods must be seen by all.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .context("mount --make-rshared /")
}

/// After the tmpfs on /tmp and /run, as a lab may live there.
fn shares(folders: &[PathBuf]) -> Result<()> {
    for folder in folders {
        make(folder)?;
        let path = folder.to_str().context("a share's path is no text")?;
        mount_at("none", path, "hostfs", path)?;
    }
    Ok(())
}

fn names(boot: &BootFile) -> Result<()> {
    rustix::system::sethostname(boot.node.as_bytes()).context("sethostname")?;
    write("/etc/hostname", &format!("{}\n", boot.node))?;
    write("/etc/machine-id", &format!("{}\n", boot.machine_id))?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {}\n", boot.address, boot.node);
    write("/etc/hosts", &hosts)
}

fn network(boot: &BootFile) -> Result<()> {
    let BootFile { address, prefix, gateway, .. } = boot;
    let lines = format!(
        "link set lo up\naddr add {address}/{prefix} dev vec0\nlink set vec0 up\n\
         route add default via {gateway}\n"
    );
    programs::run("ip", &["-batch", "-"], &lines)
        .context("vec0 is the tap that the VM got from its host")?;
    write("/proc/sys/net/ipv4/ip_forward", "1")?;
    // The kernel has ip_tables and no nftables.
    for name in ["iptables", "ip6tables"] {
        for kind in ["", "-save", "-restore"] {
            let link = PathBuf::from(format!("/etc/alternatives/{name}{kind}"));
            let legacy = PathBuf::from(format!("/usr/sbin/{name}-legacy{kind}"));
            if link.is_symlink() && legacy.exists() {
                replace_link(&legacy, &link)?;
            }
        }
    }
    Ok(())
}

fn udev() -> Result<()> {
    write("/run/udev/rules.d/60-lab-disk.rules", DISK_RULE)?;
    let daemon = ["/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd"]
        .into_iter()
        .find(|file| Path::new(file).exists())
        .context("systemd-udevd is not installed")?;
    // It keeps its stdout: a pipe here would wait for the daemon's end.
    let status = Command::new(daemon)
        .arg("--daemon")
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("starting {daemon}"))?;
    anyhow::ensure!(status.success(), "{daemon} --daemon: {status}");
    let trigger = ["trigger", "--action=add", "--subsystem-match=block", "--subsystem-match=misc"];
    programs::run("udevadm", &trigger, "")?;
    if let Err(error) = programs::run("udevadm", &["settle", "--timeout=30"], "") {
        note(&format!("{error:#}"));
    }
    anyhow::ensure!(Path::new(SYSTEM_DEVICE).exists(), "{SYSTEM_DEVICE} is gone");
    Ok(())
}

/// Keeps the exec server running and reaps orphans.
fn look_after(own: &Path, folder: &Path) -> Result<Infallible> {
    loop {
        let server = Command::new(own)
            .arg(SERVE)
            .arg(folder)
            .env_clear()
            .envs([("PATH", programs::GUEST_PATH), ("HOME", "/root"), ("LC_ALL", "C.UTF-8")])
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {} {SERVE}", own.display()))?;
        loop {
            let Some((pid, status)) = wait(WaitOptions::empty()).context("waiting for children")?
            else {
                continue;
            };
            if u32::try_from(pid.as_raw_nonzero().get()) == Ok(server.id()) {
                note(&format!("the exec server ended ({status:?}) and is started again"));
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn write(file: &str, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {file}"))?;
    if file.starts_with("/etc/") {
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(file, mode).with_context(|| format!("chmod {file}"))?;
    }
    Ok(())
}

fn replace_link(target: &Path, link: &Path) -> Result<()> {
    if link.is_symlink() {
        fs::remove_file(link).with_context(|| format!("removing {}", link.display()))?;
    }
    symlink(target, link).with_context(|| format!("creating the link {}", link.display()))
}
