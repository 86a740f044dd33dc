//! Boot steps that say on the console what they do, so that the host can tell which one failed. It does none of the steps.

use anyhow::{Context, Result};

use crate::bootfile::{FAILED, STEP};

/// Does one step; the error has the step's name in front.
pub(super) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("{STEP}{name}");
    work().with_context(|| name.to_owned())
}

/// One line that is no step, such as something that is missing but not needed.
pub(super) fn note(line: &str) {
    println!("lab-guest: note: {line}");
}

/// The last word of a boot that failed.
pub(super) fn failed(error: &anyhow::Error) {
    // One line: the host shows it as it is.
    println!("{FAILED}{}", format!("{error:#}").replace('\n', " / "));
}
