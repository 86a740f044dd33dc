//! Fetching Debian's Linux source through apt, from a suite that the machine itself need not use. It builds nothing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{programs, say};

/// Backports of Debian 13: the machine's own suite is too old. The keyring is that of the machine's
/// package debian-archive-keyring.
const SUITE: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
    http://deb.debian.org/debian trixie-backports main\n";

/// The version that was tried. When Debian has it no more, the newest is taken.
const PACKAGE: &str = "linux-source-7.2";

/// Fetches the source and unpacks it below `work`; the result is its topmost folder.
pub(super) fn fetch(work: &Path) -> Result<PathBuf> {
    let apt = Apt::new(work)?;
    say("kernel: fetching Debian's Linux source (165 MB)");
    apt.run(&["update", "-q"]).context("apt-get cannot read the suite trixie-backports")?;
    let package = apt.download()?;
    let unpacked = work.join("package");
    run("dpkg-deb", &["-x".into(), package.into(), unpacked.clone().into()])?;
    let archive = first(&unpacked.join("usr/src"), ".tar.xz")?;
    say("kernel: unpacking");
    let tree = work.join("source");
    create(&tree)?;
    let words = ["-xJf".into(), archive.into(), "-C".into(), tree.clone().into()];
    let words: Vec<_> = words.into_iter().chain(["--strip-components=1".into()]).collect();
    run("tar", &words)?;
    Ok(tree)
}

/// apt with lists of its own: it leaves the machine's alone.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(work: &Path) -> Result<Self> {
        let folder = work.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            create(&folder.join(part))?;
        }
        let list = folder.join("sources.list");
        fs::write(&list, SUITE).with_context(|| format!("writing {}", list.display()))?;
        Ok(Self { folder })
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let program = programs::find("apt-get").context("this system has no apt-get")?;
        let part = |name: &str, file: &str| {
            let mut word = OsString::from(format!("{name}="));
            word.push(self.folder.join(file));
            word
        };
        let mut command = Command::new(program);
        for option in [
            part("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=-".into(),
            part("Dir::State::Lists", "lists"),
            part("Dir::Cache", "cache"),
            "APT::Sandbox::User=root".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command.args(words).current_dir(&self.folder).env("LC_ALL", "C.UTF-8");
        let status = command.stdin(Stdio::null()).status().context("starting apt-get")?;
        ensure!(status.success(), "`apt-get {}` failed ({status})", words.join(" "));
        Ok(())
    }

    /// The package's file.
    fn download(&self) -> Result<PathBuf> {
        if self.run(&["download", "-q", PACKAGE]).is_ok() {
            return first(&self.folder, ".deb");
        }
        say(&format!("kernel: Debian has {PACKAGE} no more; taking the newest"));
        let index = fs::read_dir(self.folder.join("lists"))
            .context("reading apt's lists")?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().ends_with("_Packages"))
            .context("apt-get fetched no list of packages")?;
        let text =
            fs::read_to_string(&index).with_context(|| format!("reading {}", index.display()))?;
        let newest = newest(&text).context("trixie-backports has no linux-source")?;
        self.run(&["download", "-q", newest])?;
        first(&self.folder, ".deb")
    }
}

/// Of all packages `linux-source-<version>`, that of the highest version.
fn newest(index: &str) -> Option<&str> {
    let version = |name: &str| -> Option<Vec<u32>> {
        name.strip_prefix("linux-source-")?.split('.').map(|part| part.parse().ok()).collect()
    };
    index
        .lines()
        .filter_map(|line| line.strip_prefix("Package: "))
        .filter(|name| version(name).is_some())
        .max_by_key(|name| version(name))
}

fn first(folder: &Path, ending: &str) -> Result<PathBuf> {
    fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with(ending))
        .with_context(|| format!("{} has no file *{ending}", folder.display()))
}

fn run(program: &str, words: &[OsString]) -> Result<()> {
    programs::run(program, words, "").map(drop)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_source_is_that_of_the_highest_version() {
        let index = "Package: linux-source-7.9\nVersion: 7.9.3-1\n\nPackage: linux-source\n\n\
            Package: linux-source-7.10\n\nPackage: linux-source-rt-8\n\nPackage: zlib\n";
        assert_eq!(newest(index), Some("linux-source-7.10"));
        assert_eq!(newest("Package: linux-source\n"), None);
    }
}
