//! The image's base: of Debian's packages only the programs that the driver runs, with their libraries, licences and the names of the packages. The driver is not in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use ring::digest::{SHA256, digest};

use crate::{hex, programs, say};

/// Raised when the base is made in another way, so that an old one is not used.
const FORMAT: u32 = 1;

const SUITE: &str = "bookworm";

const PACKAGES: [&str; 13] = [
    "base-files",
    "btrfs-progs",
    "coreutils",
    "cryptsetup-bin",
    "dash",
    "dmsetup",
    "e2fsprogs",
    "libgcc-s1",
    "lvm2",
    "mount",
    "thin-provisioning-tools",
    "util-linux",
    "xfsprogs",
];

/// What the driver starts, what those start, and a few words for a person who looks around. A name
/// that is a link brings what it points to.
const KEPT: [&str; 55] = [
    "/bin/btrfs",
    "/bin/cat",
    "/bin/dd",
    "/bin/findmnt",
    "/bin/ls",
    "/bin/lsblk",
    "/bin/mount",
    "/bin/sh",
    "/bin/sleep",
    "/bin/umount",
    "/etc/debian_version",
    "/etc/mke2fs.conf",
    "/etc/os-release",
    "/sbin/blkid",
    "/sbin/blockdev",
    "/sbin/cryptsetup",
    "/sbin/dmsetup",
    "/sbin/dumpe2fs",
    "/sbin/e2fsck",
    "/sbin/fsck.ext4",
    "/sbin/lvchange",
    "/sbin/lvconvert",
    "/sbin/lvcreate",
    "/sbin/lvdisplay",
    "/sbin/lvextend",
    "/sbin/lvm",
    "/sbin/lvremove",
    "/sbin/lvrename",
    "/sbin/lvs",
    "/sbin/mke2fs",
    "/sbin/mkfs.btrfs",
    "/sbin/mkfs.ext4",
    "/sbin/mkfs.xfs",
    "/sbin/pvcreate",
    "/sbin/pvs",
    "/sbin/resize2fs",
    "/sbin/tune2fs",
    "/sbin/vgchange",
    "/sbin/vgcfgrestore",
    "/sbin/vgcreate",
    "/sbin/vgextend",
    "/sbin/vgs",
    "/sbin/wipefs",
    "/sbin/xfs_repair",
    "/usr/bin/env",
    "/usr/bin/sha256sum",
    "/usr/sbin/cache_check",
    "/usr/sbin/thin_check",
    "/usr/sbin/thin_dump",
    "/usr/sbin/thin_repair",
    "/usr/sbin/xfs_admin",
    "/usr/sbin/xfs_db",
    "/usr/sbin/xfs_growfs",
    "/usr/sbin/xfs_info",
    "/usr/sbin/xfs_io",
];

/// Opened by name while a program runs: nothing links to it.
const ALSO: &str = "libgcc_s.so.1";

/// Which state of Debian's archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Debian {
    /// That of today, with its security updates.
    Today,
    /// That of an instant, as <https://snapshot.debian.org> names it: `20260901T000000Z`.
    At(String),
}

impl Debian {
    /// The lines of sources.list.
    fn sources(&self) -> Result<Vec<String>> {
        let (archive, security) = match self {
            Self::Today => (
                "http://deb.debian.org/debian".to_owned(),
                "http://deb.debian.org/debian-security".to_owned(),
            ),
            Self::At(instant) => {
                let good = instant.len() == 16
                    && instant.chars().all(|it| it.is_ascii_digit() || it == 'T' || it == 'Z');
                ensure!(
                    good,
                    "{instant:?} is no instant of snapshot.debian.org: write 20260901T000000Z"
                );
                let of =
                    |name: &str| format!("http://snapshot.debian.org/archive/{name}/{instant}");
                (of("debian"), of("debian-security"))
            }
        };
        Ok(vec![
            format!("deb {archive} {SUITE} main"),
            format!("deb {archive} {SUITE}-updates main"),
            format!("deb {security} {SUITE}-security main"),
        ])
    }
}

/// The folder with the base's files, made unless it is there.
pub(super) fn ensure(folder: &Path, debian: &Debian, fresh: bool) -> Result<PathBuf> {
    let key = format!("{FORMAT} {PACKAGES:?} {KEPT:?} {debian:?}");
    let key = hex(&digest(&SHA256, key.as_bytes()).as_ref()[..6]);
    let base = folder.join(format!("base-{key}"));
    let name = folder.join("lock");
    let lock = File::create(&name).with_context(|| format!("creating {}", name.display()))?;
    lock.lock().with_context(|| format!("locking {}", name.display()))?;
    if fresh || !base.exists() {
        super::need_root()?;
        // One name for all: what a failure left goes with the next try.
        let work = folder.join("base.partial");
        remove(&work)?;
        fs::create_dir_all(&work).with_context(|| format!("creating {}", work.display()))?;
        let root = work.join("root");
        unpack(&root, &debian.sources()?)?;
        let tree = work.join("tree");
        pick(&root, &tree).context("picking the base's files")?;
        remove(&base)?;
        fs::rename(&tree, &base).with_context(|| format!("creating {}", base.display()))?;
        remove(&work)?;
    }
    Ok(base)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// Unpacks the packages and what they depend on. No script of a package is run.
fn unpack(root: &Path, sources: &[String]) -> Result<()> {
    say(&format!("unpacking {} of Debian {SUITE}", PACKAGES.join(", ")));
    let program = programs::find("mmdebstrap")
        .context("mmdebstrap is not installed: run `apt-get install -y mmdebstrap`")?;
    let status = Command::new(program)
        .args(["--quiet", "--variant=extract", "--mode=root", "--format=directory"])
        // The packages themselves are looked at afterwards.
        .arg("--skip=essential/unlink,cleanup/apt/cache,download/empty")
        .args([
            "--aptopt=APT::Install-Recommends \"false\"",
            "--aptopt=Acquire::Check-Valid-Until \"false\"",
        ])
        .arg("--aptopt=Acquire::Retries \"3\"")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SUITE)
        .arg(root)
        .args(sources)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .status()
        .context("starting mmdebstrap")?;
    ensure!(
        status.success(),
        "mmdebstrap could not unpack Debian's packages: its output above says why"
    );
    Ok(())
}

/// Copies what is kept, and what that needs, from `root` to `tree`.
fn pick(root: &Path, tree: &Path) -> Result<()> {
    let mut picked = Picked { root, tree, paths: BTreeSet::new() };
    for name in KEPT {
        picked.add(Path::new(name)).with_context(|| format!("taking {name}"))?;
    }
    for library in also(root)? {
        picked.add(&library)?;
    }
    let programs: Vec<_> = picked.paths.iter().cloned().collect();
    for library in libraries(root, &programs)? {
        picked.add(&library).with_context(|| format!("taking {}", library.display()))?;
    }
    let paths = picked.paths;
    for (package, control) in owners(root, &paths)? {
        let write = |name: String, bytes: &[u8]| -> Result<()> {
            let file = tree.join(name);
            fs::create_dir_all(file.parent().unwrap_or(tree))?;
            fs::write(&file, bytes).with_context(|| format!("writing {}", file.display()))
        };
        // Where scanners of images without dpkg look.
        write(format!("var/lib/dpkg/status.d/{package}"), control.as_bytes())?;
        let copyright = root.join(format!("usr/share/doc/{package}/copyright"));
        if let Ok(bytes) = fs::read(&copyright) {
            write(format!("usr/share/doc/{package}/copyright"), &bytes)?;
        }
    }
    Ok(())
}

struct Picked<'a> {
    root: &'a Path,
    tree: &'a Path,
    /// Absolute in the image.
    paths: BTreeSet<PathBuf>,
}

impl Picked<'_> {
    /// Copies one file; of a link, what it points to as well.
    fn add(&mut self, path: &Path) -> Result<()> {
        if !self.paths.insert(path.to_owned()) {
            return Ok(());
        }
        let (from, to) = (inside(self.root, path), inside(self.tree, path));
        fs::create_dir_all(to.parent().unwrap_or(self.tree))?;
        let data = from.symlink_metadata().with_context(|| format!("{}", from.display()))?;
        if data.is_symlink() {
            let target = fs::read_link(&from)?;
            std::os::unix::fs::symlink(&target, &to)?;
            let whole = path.parent().unwrap_or(Path::new("/")).join(target);
            return self.add(&plain(&whole));
        }
        ensure!(data.is_file(), "{} is no file", from.display());
        fs::copy(&from, &to)?;
        // Nobody in a container gets another user's rights.
        let mode = data.permissions().mode() & 0o755;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        Ok(())
    }
}

/// `/sbin/../bin/x` as `/bin/x`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            out.pop();
        } else {
            out.push(part);
        }
    }
    out
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The library that nothing links to, in the folder of this architecture.
fn also(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("lib"))?.flatten() {
        let name = entry.file_name();
        if entry.path().join(ALSO).exists() {
            found.push(Path::new("/lib").join(name).join(ALSO));
        }
    }
    ensure!(!found.is_empty(), "there is no {ALSO}");
    Ok(found)
}

/// What the loader in the root says that these programs need, and the loader.
fn libraries(root: &Path, programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let loader = match std::env::consts::ARCH {
        "x86_64" => "/lib64/ld-linux-x86-64.so.2",
        "aarch64" => "/lib/ld-linux-aarch64.so.1",
        other => bail!("no image is made for {other} yet: take x86_64 or aarch64"),
    };
    let mut all = BTreeSet::from([PathBuf::from(loader)]);
    for program in programs {
        let head = fs::read(inside(root, program)).unwrap_or_default();
        if !head.starts_with(b"\x7fELF") {
            continue;
        }
        let words = [&root.display().to_string(), loader, "--list", &program.display().to_string()];
        let list = programs::run("chroot", &words, "")?;
        all.extend(list.lines().filter_map(library));
    }
    Ok(all)
}

/// `  libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x0000...)`
fn library(line: &str) -> Option<PathBuf> {
    let (_, found) = line.split_once("=> ")?;
    let path = found.split_whitespace().next().filter(|path| path.starts_with('/'))?;
    Some(PathBuf::from(path))
}

/// The packages that the files are of, each with its control file.
fn owners(root: &Path, paths: &BTreeSet<PathBuf>) -> Result<BTreeMap<String, String>> {
    let archives = root.join("var/cache/apt/archives");
    let mut owners = BTreeMap::new();
    for entry in fs::read_dir(&archives)?.flatten() {
        let file = entry.path();
        if file.extension().is_none_or(|it| it != "deb") {
            continue;
        }
        let file = file.display().to_string();
        let list = programs::run("dpkg-deb", &["--contents", &file], "")?;
        if list.lines().filter_map(listed).any(|path| paths.contains(&path)) {
            let control = programs::run("dpkg-deb", &["--field", &file], "")?;
            let name = control.lines().find_map(|line| line.strip_prefix("Package: "));
            let name = name.with_context(|| format!("{file} has no name"))?.to_owned();
            owners.insert(name, control);
        }
    }
    ensure!(!owners.is_empty(), "there is no package in {}", archives.display());
    Ok(owners)
}

/// `-rwxr-xr-x root/root 123 2023-01-01 00:00 ./sbin/lvm`
fn listed(line: &str) -> Option<PathBuf> {
    let name = line.split_whitespace().nth(5)?;
    Some(Path::new("/").join(name.trim_start_matches("./")))
}

/// Runs the driver on the base, so that one that needs a newer libc is noticed here and not in a
/// cluster. Without root it is left to the one who made the base.
pub(super) fn prove(base: &Path, program: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let copy = base.with_extension("proof");
    remove(&copy)?;
    let run = || -> Result<()> {
        let (from, to) = (base.display().to_string(), copy.display().to_string());
        programs::run("cp", &["-a", "--reflink=auto", &from, &to], "")?;
        fs::copy(program, copy.join("cinderblock"))?;
        programs::run("chroot", &[to.as_str(), "/cinderblock", "--version"], "")?;
        // Every library of LVM's is there too.
        programs::run("chroot", &[to.as_str(), "/sbin/lvm", "version", "--driverloaded", "n"], "")?;
        // And those of cryptsetup, which looks for its ciphers and for randomness when it uses them.
        fs::create_dir_all(copy.join("dev"))?;
        for (name, minor) in [("dev/random", "8"), ("dev/urandom", "9")] {
            let node = copy.join(name).display().to_string();
            programs::run("mknod", &[node.as_str(), "c", "1", minor], "")?;
        }
        let hash = ["/sbin/cryptsetup", "benchmark", "--hash", "sha256"];
        programs::run("chroot", &[&[to.as_str()][..], &hash].concat(), "").map(drop)
    };
    let proved = run().with_context(|| {
        format!("the driver does not run on Debian {SUITE}: build it on {SUITE} or an older system")
    });
    remove(&copy)?;
    proved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_loader_and_of_dpkg() {
        let line = "\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f44)";
        assert_eq!(library(line).unwrap(), Path::new("/lib/x86_64-linux-gnu/libm.so.6"));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007f44)"), None);
        let line = "lrwxrwxrwx root/root 0 2023-01-01 00:00 ./sbin/lvs -> lvm";
        assert_eq!(listed(line).unwrap(), Path::new("/sbin/lvs"));
        assert_eq!(
            plain(Path::new("/etc/../usr/lib/os-release")),
            Path::new("/usr/lib/os-release")
        );
    }

    #[test]
    fn instants_are_those_of_the_snapshot_archive() {
        let sources = Debian::At("20260901T000000Z".to_owned()).sources().unwrap();
        assert!(sources[0].ends_with("/archive/debian/20260901T000000Z bookworm main"));
        Debian::At("yesterday".to_owned()).sources().unwrap_err();
        assert_eq!(Debian::Today.sources().unwrap().len(), 3);
    }
}
