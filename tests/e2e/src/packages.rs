//! Which programs the lab needs and which Debian packages bring them. It installs packages and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{programs, say};

/// Where Debian's package `user-mode-linux` keeps the kernel's modules, one folder per version.
pub const UML_MODULES: &str = "/usr/lib/uml/modules";

/// One thing to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// A program, searched in PATH and the sbin folders.
    Program(&'static str),
    /// Any of these files.
    Files(&'static [&'static str]),
    /// A program that needs no shared library, as it is copied into an image of its own.
    Static(&'static str),
    /// Modules of a User-Mode-Linux kernel, of whatever version is installed.
    UmlModules,
}

/// What is looked for, and the package that has it.
const NEEDED: [(Probe, &str); 31] = [
    (Probe::Program("linux.uml"), "user-mode-linux"),
    (Probe::UmlModules, "user-mode-linux"),
    (Probe::Program("lvm"), "lvm2"),
    (Probe::Program("dmsetup"), "dmsetup"),
    (Probe::Program("strace"), "strace"),
    (Probe::Program("thin_check"), "thin-provisioning-tools"),
    (Probe::Program("udevadm"), "udev"),
    (Probe::Files(&["/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd"]), "udev"),
    (Probe::Program("modprobe"), "kmod"),
    (Probe::Program("insmod"), "kmod"),
    (Probe::Program("mkfs.xfs"), "xfsprogs"),
    (Probe::Program("xfs_growfs"), "xfsprogs"),
    (Probe::Program("mkfs.btrfs"), "btrfs-progs"),
    (Probe::Program("mkfs.ext4"), "e2fsprogs"),
    (Probe::Program("resize2fs"), "e2fsprogs"),
    (Probe::Program("cryptsetup"), "cryptsetup-bin"),
    (Probe::Program("ip"), "iproute2"),
    (Probe::Program("runc"), "runc"),
    (Probe::Files(&["/usr/lib/cni/bridge"]), "containernetworking-plugins"),
    (Probe::Files(&["/usr/lib/cni/host-local"]), "containernetworking-plugins"),
    (Probe::Program("socat"), "socat"),
    (Probe::Static("busybox"), "busybox-static"),
    (Probe::Program("mmdebstrap"), "mmdebstrap"),
    (Probe::Program("iptables"), "iptables"),
    (Probe::Program("iptables-legacy"), "iptables"),
    (Probe::Program("mount"), "mount"),
    (Probe::Program("umount"), "mount"),
    (Probe::Program("blkid"), "util-linux"),
    (Probe::Program("unshare"), "util-linux"),
    (Probe::Program("setsid"), "util-linux"),
    (Probe::Program("findmnt"), "util-linux"),
];

/// What it takes to build a kernel: a quarter of an hour's work, done once.
const NEEDED_FOR_KERNEL: [(Probe, &str); 9] = [
    (Probe::Program("gcc"), "gcc"),
    (Probe::Files(&["/usr/include/stdio.h"]), "libc6-dev"),
    (Probe::Program("make"), "make"),
    (Probe::Program("flex"), "flex"),
    (Probe::Program("bison"), "bison"),
    (Probe::Program("bc"), "bc"),
    (Probe::Program("xz"), "xz-utils"),
    (Probe::Program("perl"), "perl"),
    (Probe::Files(&["/usr/share/keyrings/debian-archive-keyring.gpg"]), "debian-archive-keyring"),
];

/// The packages that must be installed before a lab can come up; empty when nothing is missing.
#[must_use]
pub fn missing() -> BTreeSet<&'static str> {
    missing_of(&NEEDED)
}

fn missing_of(needed: &[(Probe, &'static str)]) -> BTreeSet<&'static str> {
    needed.iter().filter(|(probe, _)| !present(*probe)).map(|(_, package)| *package).collect()
}

/// Checks that nothing is missing, and installs nothing.
///
/// # Errors
/// One sentence that names the missing packages and the command that installs them.
pub fn check() -> Result<()> {
    let missing = missing();
    ensure!(
        missing.is_empty(),
        "the lab needs packages that are not installed: run `{}`",
        install_line(&missing)
    );
    Ok(())
}

/// Makes sure that what VMs need is installed. Installs what is missing with `apt-get`, printing its
/// progress; quick when nothing is.
///
/// # Errors
/// One sentence saying what to do, when this is no Debian-like system, the user is not root, or
/// `apt-get` fails or does not bring what it should.
pub fn ensure() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the VMs are User-Mode-Linux, which runs on x86_64 Linux alone: use such a machine"
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "VMs, their disks and their network take root: run this with sudo"
    );
    install(&NEEDED)
}

/// Makes sure that a kernel can be built here, as [`ensure`] does for VMs.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_for_kernel() -> Result<()> {
    install(&NEEDED_FOR_KERNEL)
}

fn install(needed: &[(Probe, &'static str)]) -> Result<()> {
    let wanted = missing_of(needed);
    if wanted.is_empty() {
        return Ok(());
    }
    let list = wanted.iter().copied().collect::<Vec<_>>().join(" ");
    let apt = programs::find("apt-get").with_context(|| {
        format!(
            "this system has no apt-get: install the counterparts of Debian's packages {list} by \
             hand, or use a machine with Debian 12 or newer"
        )
    })?;
    say(&format!("installing packages: {list}"));
    if !apt_get(&apt, &install_words(&wanted))? {
        say("apt-get failed; updating its package lists and trying again");
        if !apt_get(&apt, &["update", "-q"])? || !apt_get(&apt, &install_words(&wanted))? {
            bail!(
                "apt-get could not install {list}: its output above says why; repair that and run \
                 `{}`",
                install_line(&wanted)
            );
        }
    }
    let left: Vec<_> =
        needed.iter().filter(|(probe, _)| !present(*probe)).map(|(probe, _)| probe).collect();
    ensure!(
        left.is_empty(),
        "apt-get installed {list}, but these are still missing: {left:?}; the lab is made for \
         Debian 12 and newer on x86_64"
    );
    say("all packages are installed");
    Ok(())
}

fn apt_get(apt: &Path, words: &[&str]) -> Result<bool> {
    let status = Command::new(apt)
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
        .status()
        .with_context(|| format!("cannot start {}", apt.display()))?;
    Ok(status.success())
}

fn install_words<'a>(packages: &BTreeSet<&'a str>) -> Vec<&'a str> {
    ["install", "-q", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(packages.iter().copied())
        .collect()
}

fn install_line(packages: &BTreeSet<&str>) -> String {
    let mut words = vec!["apt-get"];
    words.extend(install_words(packages).into_iter().filter(|word| *word != "-q"));
    words.join(" ")
}

fn present(probe: Probe) -> bool {
    match probe {
        Probe::Program(name) => programs::find(name).is_some(),
        Probe::Files(files) => files.iter().any(|file| Path::new(file).exists()),
        Probe::Static(name) => programs::find(name).is_some_and(|file| is_static(&file)),
        Probe::UmlModules => uml_versions(Path::new(UML_MODULES)).next().is_some(),
    }
}

/// Kernel versions whose modules are there.
fn uml_versions(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("modules.dep").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// A dynamic program names its loader in its first page.
fn is_static(file: &Path) -> bool {
    let mut head = Vec::new();
    let read = fs::File::open(file).and_then(|file| file.take(4096).read_to_end(&mut head));
    read.is_ok() && head.starts_with(b"\x7fELF") && !head.windows(4).any(|bytes| bytes == b"/ld-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_run_is_complete() {
        let line = install_line(&BTreeSet::from(["lvm2", "udev"]));
        assert_eq!(line, "apt-get install -y --no-install-recommends lvm2 udev");
    }

    #[test]
    fn uml_versions_are_discovered() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("9.9.1")).unwrap();
        fs::create_dir_all(folder.path().join("empty")).unwrap();
        fs::write(folder.path().join("9.9.1/modules.dep"), "").unwrap();
        assert_eq!(uml_versions(folder.path()).collect::<Vec<_>>(), ["9.9.1"]);
        assert_eq!(uml_versions(&folder.path().join("absent")).count(), 0);
    }

    #[test]
    fn a_dynamic_program_is_not_static() {
        assert!(!is_static(&std::env::current_exe().unwrap()));
        assert!(!is_static(Path::new("/etc/passwd")));
        assert!(!is_static(Path::new("/no/such/file")));
    }
}
