//! The kernel of the VMs: User-Mode Linux, built once from Debian's Linux source into the cache. It starts no VM.
//!
//! Debian has a User-Mode Linux too, which is that of Debian 12. It lets its processes run under ptrace, and
//! takes several times as long to start a program; from Linux 6.16 on they can run under seccomp filters.
//! So nearly all VMs boot this one, and Debian's where the source cannot be had. Some tests want Debian's in
//! any case, as its device-mapper is what many nodes have.

mod build;
mod source;
mod wide_registers;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use ring::digest::{Context as Hasher, SHA256};

use crate::{cache, packages, programs, say};

/// Names a User-Mode-Linux program that VMs are to boot, such as `linux.uml`, which is Debian's.
pub const VARIABLE: &str = "CINDERBLOCK_LAB_KERNEL";

/// Debian's.
const OF_DEBIAN: &str = "linux.uml";

/// What is asked of the kernel, besides what User-Mode Linux has by default.
const CONFIG: &str = include_str!("../../lab/kernel/config");

/// Raised when the way of building changes so that an old kernel must not be used.
const FORMAT: &str = "1";

/// The kernel that a VM boots: the lab's own if it is built and `own` is set, or else Debian's.
///
/// # Errors
/// There is none, or not the one that [`VARIABLE`] names.
pub fn find(own: bool) -> Result<PathBuf> {
    if let Some(wanted) = wanted() {
        return programs::find(&wanted)
            .with_context(|| format!("{VARIABLE} names {wanted}, which is no program here"));
    }
    if own {
        let own = program(&folder()?);
        if own.exists() {
            return Ok(own);
        }
    }
    programs::find(OF_DEBIAN).context(
        "linux.uml is not installed: run `apt-get install -y --no-install-recommends \
         user-mode-linux`",
    )
}

/// What is to be preloaded into the kernel's process, on processors that the kernel does not know.
///
/// # Errors
/// It is needed and cannot be compiled.
pub(crate) fn preload(program: &Path) -> Result<Option<PathBuf>> {
    let of_debian = program.file_name().is_some_and(|name| name == OF_DEBIAN);
    (of_debian && wide_registers::are_here()).then(wide_registers::library).transpose()
}

/// Builds the kernel when it is not in the cache yet. Where that cannot be done, it says why, and VMs
/// will boot Debian's.
///
/// Nothing cached, it takes 10 to 20 minutes on two cores; then nothing.
///
/// # Errors
/// There is no cache folder, or it cannot be written.
pub fn ensure() -> Result<()> {
    let folder = folder()?;
    if wanted().is_some() || program(&folder).exists() {
        return Ok(());
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let _lock = cache::lock(&folder)?;
    // Another process may have built it meanwhile.
    if program(&folder).exists() {
        return Ok(());
    }
    let work = folder.join("work");
    let made = make(&folder, &work);
    // Gigabytes, of use to nobody.
    clear(&work)?;
    if let Err(error) = made {
        say(&format!("the VMs' kernel cannot be built: {error:#}"));
        say("the VMs boot Debian's kernel, with which all takes twice as long and more");
    }
    Ok(())
}

fn make(folder: &Path, work: &Path) -> Result<()> {
    say(&format!("building the VMs' kernel into {}, once", folder.display()));
    say("this takes 10 to 20 minutes on two cores");
    let start = Instant::now();
    packages::ensure_for_kernel()?;
    clear(work)?;
    let tree = source::fetch(work)?;
    let built = build::build(&tree, work, CONFIG, &folder.join("build.log"))?;
    let partial = folder.join("linux.partial");
    fs::copy(&built, &partial).with_context(|| format!("creating {}", partial.display()))?;
    File::open(&partial)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&partial, program(folder)))
        .with_context(|| format!("creating {}", program(folder).display()))?;
    say(&format!("the VMs' kernel is built, after {} s", start.elapsed().as_secs()));
    Ok(())
}

fn clear(work: &Path) -> Result<()> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("removing {}", work.display()))?;
    }
    Ok(())
}

fn wanted() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|name| !name.is_empty())
}

/// A folder of the cache belongs to exactly this configuration.
fn folder() -> Result<PathBuf> {
    Ok(cache::folder()?.join(format!("kernel-{}", key([CONFIG, FORMAT]))))
}

/// Stands for exactly these texts in the name of a folder.
fn key<const N: usize>(texts: [&str; N]) -> String {
    let mut hasher = Hasher::new(&SHA256);
    for text in texts {
        hasher.update(text.as_bytes());
        hasher.update(&[0]);
    }
    crate::hex(&hasher.finish().as_ref()[..6])
}

fn program(folder: &Path) -> PathBuf {
    folder.join("linux")
}
