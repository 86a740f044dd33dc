//! Kernel modules of the running User-Mode-Linux kernel, if it has any: the lab's own has all built in. It loads them and unloads none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::step::note;
use crate::packages::UML_MODULES;
use crate::programs;

/// A node without these is of no use.
const REQUIRED: [&str; 8] = [
    "dm-mod",
    "dm-thin-pool",
    "dm-snapshot",
    "dm-mirror",
    "dm-raid",
    "dm-crypt",
    "dm-delay",
    "dm-flakey",
];

/// These are reported when missing.
const WANTED: [&str; 22] = [
    "dm-dust",
    "dm-zero",
    "dm-integrity",
    "dm-log-writes",
    "raid1",
    "loop",
    "fuse",
    "ext4",
    "xfs",
    "btrfs",
    "overlay",
    "veth",
    "bridge",
    "br_netfilter",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "iptable_mangle",
    "nf_nat",
    "xt_MASQUERADE",
    "xt_comment",
    "xt_conntrack",
];

/// The folder of the running kernel's modules.
fn folder() -> Result<PathBuf> {
    let release = rustix::system::uname();
    let release = release.release().to_str().context("the kernel's version is no text")?;
    let folder = Path::new(UML_MODULES).join(release);
    ensure!(
        folder.join("modules.dep").exists(),
        "the kernel is {release}, but the host has no {}: install user-mode-linux again",
        folder.display()
    );
    Ok(folder)
}

/// Loads one module and what it needs before modprobe can find anything.
pub(super) fn insert(name: &str) -> Result<()> {
    let folder = folder()?;
    let index = fs::read_to_string(folder.join("modules.dep")).context("reading modules.dep")?;
    let files = dependencies(&index, name)
        .with_context(|| format!("{} has no module {name}", folder.display()))?;
    for file in files {
        let module = file_module(file).replace('-', "_");
        if !Path::new("/sys/module").join(&module).exists() {
            programs::run("insmod", &[folder.join(file)], "")?;
        }
    }
    Ok(())
}

/// The files to load for a module, in order; none when there is no such module.
fn dependencies<'a>(index: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let lines: BTreeMap<&str, (&str, &str)> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (file_module(file), (file, needs)))
        .collect();
    let (file, needs) = lines.get(name)?;
    Some(needs.split_whitespace().rev().chain([*file]).collect())
}

/// `kernel/fs/overlayfs/overlay.ko.xz` is the module `overlay`.
fn file_module(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

/// Loads everything that a node needs, through modprobe.
pub(super) fn load_all() -> Result<()> {
    // Only a kernel that can load modules has a list of them.
    if !Path::new("/proc/modules").exists() {
        let dm = Path::new("/sys/module/dm_mod").exists();
        ensure!(dm, "the kernel has no device-mapper and loads no modules");
        return Ok(());
    }
    let folder = folder()?;
    let link = Path::new("/lib/modules").join(folder.file_name().unwrap_or_default());
    if !link.exists() {
        fs::create_dir_all("/lib/modules").context("creating /lib/modules")?;
        symlink(&folder, &link).with_context(|| format!("creating {}", link.display()))?;
    }
    let all: Vec<_> = ["-a"].iter().chain(&REQUIRED).chain(&WANTED).copied().collect();
    let Err(error) = programs::run("modprobe", &all, "") else {
        return Ok(());
    };
    let error = error.to_string();
    let missing = |name: &&str| error.contains(&format!("Module {name} not found"));
    for name in WANTED.iter().filter(|name| missing(name)) {
        note(&format!("the kernel has no module {name}"));
    }
    let lost: Vec<_> = REQUIRED.iter().filter(|name| missing(name)).copied().collect();
    if !lost.is_empty() {
        bail!("the kernel lacks {}: install Debian's user-mode-linux", lost.join(", "));
    }
    if !error.contains("not found") {
        note(&error);
    }
    ensure!(Path::new("/sys/module/dm_mod").exists(), "modprobe loaded no device-mapper: {error}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let index = "kernel/a/one.ko: kernel/b/two.ko kernel/b/three.ko\nkernel/b/two.ko.xz:\n";
        let files = dependencies(index, "one").unwrap();
        assert_eq!(files, ["kernel/b/three.ko", "kernel/b/two.ko", "kernel/a/one.ko"]);
        assert_eq!(dependencies(index, "two").unwrap(), ["kernel/b/two.ko.xz"]);
        assert_eq!(dependencies(index, "four"), None);
    }
}
