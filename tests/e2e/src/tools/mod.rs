//! The lab's tools (Kubernetes, containerd, csi-sanity and others), built from Go modules into a cache. It never runs one of them.

mod build;
mod catalog;
mod go;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

pub use catalog::version;

use crate::{cache, say};
use catalog::{TOOLS, Tool};

/// The tools of this checkout in the cache.
///
/// The cache is `$XDG_CACHE_HOME/cinderblock` or `~/.cache/cinderblock`; a folder in it belongs to
/// exactly these pins and build flags, and what is in it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Where the tools are, or would be.
    ///
    /// # Errors
    /// There is no cache folder: neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn locate() -> Result<Self> {
        Ok(Self { dir: cache::folder()?.join(format!("tools-{}", catalog::key())) })
    }

    /// Those in this folder.
    pub(crate) fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The folder of everything.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of the programs, for PATH.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// One program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    /// The folder of the snapshot API's `CustomResourceDefinition`s.
    #[must_use]
    pub fn crds(&self) -> PathBuf {
        self.dir.join("crds")
    }

    /// The folder of the lab's own image archives.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// Held by the one process that adds to the folder.
    pub(crate) fn lock(&self) -> Result<File> {
        let dir = &self.dir;
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        cache::lock(dir)
    }

    fn missing(&self, names: &[&str]) -> Vec<&'static Tool> {
        TOOLS
            .iter()
            .filter(|tool| names.is_empty() || names.contains(&tool.name))
            .filter(|tool| !self.program(tool.name).exists())
            .collect()
    }
}

/// The names of all tools.
pub fn names() -> impl Iterator<Item = &'static str> {
    TOOLS.iter().map(|tool| tool.name)
}

/// Builds every tool that is not in the cache yet, and fetches the snapshot CRDs.
///
/// Nothing cached, it takes 15 to 20 minutes on two cores; then nothing.
///
/// # Errors
/// No Go and no way to get it, or a build fails; what was built stays.
pub fn ensure() -> Result<Tools> {
    let tools = Tools::locate()?;
    build_missing(&tools, &[])?;
    if !tools.crds().exists() {
        let _lock = tools.lock()?;
        if !tools.crds().exists() {
            build::fetch_crds(&go::find(&cache::folder()?)?, &tools.crds())?;
        }
    }
    Ok(tools)
}

/// As [`ensure`], for these tools alone and without the CRDs.
///
/// # Errors
/// As [`ensure`], and a name that is no tool's.
pub fn ensure_only(wanted: &[&str]) -> Result<Tools> {
    if let Some(unknown) = wanted.iter().find(|name| !names().any(|it| it == **name)) {
        let all: Vec<_> = names().collect();
        bail!("the lab has no tool {unknown}; it has {}", all.join(", "));
    }
    let tools = Tools::locate()?;
    if !wanted.is_empty() {
        build_missing(&tools, wanted)?;
    }
    Ok(tools)
}

fn build_missing(tools: &Tools, names: &[&str]) -> Result<()> {
    if tools.missing(names).is_empty() {
        return Ok(());
    }
    let _lock = tools.lock()?;
    // Another process may have built some meanwhile.
    let missing = tools.missing(names);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|tool| tool.name).collect();
    say(&format!("building {} into {}, once", names.join(", "), tools.dir.display()));
    if names.len() > TOOLS.len() / 2 {
        say("with nothing in Go's build cache this takes 15 to 20 minutes on two cores");
    }
    let go = go::find(&cache::folder()?)?;
    let start = Instant::now();
    for (number, tool) in missing.iter().enumerate() {
        let place = format!("{} of {}", number + 1, missing.len());
        build::build(&go, tool, tools, &place)?;
    }
    say(&format!("tools built in {} s", start.elapsed().as_secs()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_built() {
        let folder = tempfile::tempdir().unwrap();
        let tools = Tools { dir: folder.path().to_owned() };
        assert_eq!(tools.missing(&[]).len(), TOOLS.len());
        fs::create_dir(tools.bin()).unwrap();
        fs::write(tools.program("ctr"), "").unwrap();
        assert_eq!(tools.missing(&[]).len(), TOOLS.len() - 1);
        assert_eq!(tools.missing(&["ctr"]), Vec::<&Tool>::new());
        assert_eq!(tools.missing(&["etcd", "ctr"])[0].name, "etcd");
        drop(tools.lock().unwrap());
    }

    #[test]
    fn a_tool_that_is_none_is_named() {
        let error = ensure_only(&["ctr", "docker"]).unwrap_err().to_string();
        assert!(error.contains("no tool docker") && error.contains("csi-sanity"), "{error}");
    }
}
