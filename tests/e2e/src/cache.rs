//! The folder that keeps what the lab built, from one checkout to the next. What is in it is not known here.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::say;

/// The cache folder of this project: `$XDG_CACHE_HOME/cinderblock` or `~/.cache/cinderblock`.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub(crate) fn folder() -> Result<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|folder| folder.join("cinderblock"))
        .context("neither XDG_CACHE_HOME nor HOME is set: the lab needs a cache folder")
}

/// Held by the one process that adds to this folder of the cache.
pub(crate) fn lock(folder: &Path) -> Result<File> {
    let file = folder.join("lock");
    let lock = File::create(&file).with_context(|| format!("creating {}", file.display()))?;
    if lock.try_lock().is_err() {
        say(&format!("waiting for another process that fills {}", folder.display()));
        lock.lock().with_context(|| format!("locking {}", file.display()))?;
    }
    Ok(lock)
}
