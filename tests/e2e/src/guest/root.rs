//! Stage 1 of a boot: the host's files as lower layer, the system disk above, and a pivot into both. It sets up nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::modules;
use super::step::step;
use crate::bootfile::{SYSTEM_DEVICE, SYSTEM_DISK};

/// Where the system disk is mounted before the pivot; a folder that every system has.
const SYSTEM: &str = "/mnt";

/// A power cut is part of the tests. With delayed allocation it leaves files empty that were written
/// half a minute before, such as an image's programs, and containerd would run those for ever.
/// Without it, whatever is synced takes with it everything written earlier.
const OPTIONS: &str = "nodelalloc";

/// Folders that must be on a real file system: containerd's own overlays refuse an overlay below.
const REAL: [(&str, &str); 2] =
    [("containerd", "/var/lib/containerd"), ("kubelet", "/var/lib/kubelet")];

/// Leaves this process, the only one, in the node's root.
pub(super) fn enter() -> Result<()> {
    step("mount /proc", || mount_at("proc", "/proc", "proc", ""))?;
    step("mount /sys", || mount_at("sysfs", "/sys", "sysfs", ""))?;
    step("mount /dev", || {
        // Some kernels do so themselves.
        if Path::new(SYSTEM_DEVICE).exists() {
            return Ok(());
        }
        mount_at("devtmpfs", "/dev", "devtmpfs", "")
    })?;
    step("load overlay", || {
        let known = fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
        if known.lines().any(|line| line.ends_with("\toverlay")) {
            return Ok(());
        }
        modules::insert("overlay")
    })?;
    step("mount the system disk", || mount_at(SYSTEM_DEVICE, SYSTEM, "ext4", OPTIONS))?;
    step("mount the root", || {
        let sub = |name: &str| Path::new(SYSTEM).join(name);
        for name in ["upper", "work", "root"] {
            fs::create_dir_all(sub(name)).with_context(|| format!("creating {name}"))?;
        }
        mount_at(
            "overlay",
            "/mnt/root",
            "overlay",
            "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work",
        )?;
        for (name, target) in REAL {
            let target = sub("root").join(target.trim_start_matches('/'));
            fs::create_dir_all(sub(name)).with_context(|| format!("creating {name}"))?;
            make(&target)?;
            mount_bind(sub(name), &target).with_context(|| format!("{}", target.display()))?;
        }
        Ok(())
    })?;
    step("mount /run", || {
        mount_at("tmpfs", "/mnt/root/run", "tmpfs", "mode=755")?;
        let system = format!("/mnt/root{SYSTEM_DISK}");
        make(Path::new(&system))?;
        mount_bind(SYSTEM, &system).context("binding the system disk")
    })?;
    step("enter the root", || {
        std::env::set_current_dir("/mnt/root").context("cd")?;
        // The old root ends up on top of the new one, from where it is taken off.
        rustix::process::pivot_root(".", ".").context("pivot_root")?;
        unmount(".", UnmountFlags::DETACH).context("umount of the old root")?;
        std::env::set_current_dir("/").context("cd /")
    })
}

/// Mounts a file system on a folder that is there.
pub(super) fn mount_at(source: &str, target: &str, kind: &str, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options).context("mount options")?;
    let data = Some(options.as_c_str()).filter(|data| !data.is_empty());
    mount(source, target, kind, MountFlags::empty(), data)
        .with_context(|| format!("mount -t {kind} {source} {target}"))
}

/// Creates a folder and those above it.
pub(super) fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}
