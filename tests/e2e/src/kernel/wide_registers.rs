//! What Debian's kernel needs to run on processors with AMX: a library that is preloaded into it. No kernel is built here.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{cache, programs, say};

/// Why it is needed, and what it does, is said there.
const SOURCE: &str = include_str!("../../lab/kernel/wide-registers.c");

/// Whether this machine's processor has more registers than Debian 12's User-Mode Linux knows.
pub(super) fn are_here() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| are_in(&text))
}

/// `cpuinfo` is the text of `/proc/cpuinfo`.
fn are_in(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .any(|(_, flags)| flags.split_whitespace().any(|flag| flag == "amx_tile"))
}

/// The library, compiled when it is not in the cache yet.
///
/// # Errors
/// There is no C compiler or cache folder, or the library cannot be compiled.
pub(super) fn library() -> Result<PathBuf> {
    let folder = cache::folder()?.join(format!("wide-registers-{}", super::key([SOURCE])));
    let library = folder.join("wide-registers.so");
    if library.exists() {
        return Ok(library);
    }
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let _lock = cache::lock(&folder)?;
    // Another process may have compiled it meanwhile.
    if library.exists() {
        return Ok(library);
    }
    say("this processor has AMX: compiling what Debian's kernel needs to run on it");
    let source = folder.join("wide-registers.c");
    fs::write(&source, SOURCE).with_context(|| format!("writing {}", source.display()))?;
    let partial = folder.join("wide-registers.partial");
    let words = ["-O2", "-shared", "-fPIC", "-o"].map(PathBuf::from);
    let words: Vec<_> = words.into_iter().chain([partial.clone(), source]).collect();
    programs::run("cc", &words, "").context("Debian's kernel cannot run on this processor")?;
    fs::rename(&partial, &library).with_context(|| format!("creating {}", library.display()))?;
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amx_is_read_from_the_flags() {
        assert!(are_in("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\nbugs\t\t:\n"));
        assert!(!are_in("processor\t: 0\nflags\t\t: fpu avx512f\nmodel name\t: amx_tile\n"));
        assert!(!are_in(""));
    }
}
