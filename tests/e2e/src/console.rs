//! Reading a VM's console log: how far the boot came, and the last lines for an error message. It never writes there.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::bootfile::{FAILED, READY, STEP};

/// Bytes of the log's end that a tail is cut from.
const TAIL_BYTES: u64 = 16 << 10;

/// How far a boot came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The exec server listens.
    Ready,
    /// A step failed: which one and why, in the guest's words.
    Failed(String),
    /// The last step that began; none while the kernel boots.
    At(Option<String>),
}

/// How far the boot that writes this log came.
#[must_use]
pub fn progress(log: &Path) -> Progress {
    progress_of(&fs::read(log).unwrap_or_default())
}

fn progress_of(log: &[u8]) -> Progress {
    let text = String::from_utf8_lossy(log);
    let mut at = None;
    for line in text.lines().map(str::trim) {
        if let Some((_, why)) = line.split_once(FAILED) {
            return Progress::Failed(why.to_owned());
        }
        if line.contains(READY) {
            return Progress::Ready;
        }
        if let Some((_, step)) = line.split_once(STEP) {
            at = Some(step.to_owned());
        }
    }
    Progress::At(at)
}

/// The last `count` lines, indented, without control characters.
#[must_use]
pub fn tail(log: &Path, count: usize) -> String {
    let mut end = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        file.read_to_end(&mut end)
    });
    match read {
        Ok(_) => tail_of(&end, count),
        Err(error) => format!("  (no console log at {}: {error})", log.display()),
    }
}

fn tail_of(log: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<String> = text.lines().map(plain).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(count);
    lines[from..].iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

/// Drops escape sequences (as far as programs in a guest colour their output) and control characters.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' && characters.next_if_eq(&'[').is_some() {
            while characters.next().is_some_and(|it| !('@'..='~').contains(&it)) {}
        } else if !character.is_control() {
            out.push(character);
        } else if character == '\t' {
            out.push(' ');
        }
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_the_last_word() {
        assert_eq!(progress_of(b"Linux version 6\r\n"), Progress::At(None));
        let two = b"x\r\nlab-guest: step: mount /proc\r\nlab-guest: step: load overlay\r\n";
        assert_eq!(progress_of(two), Progress::At(Some("load overlay".to_owned())));
        let failed = b"lab-guest: step: a\nlab-guest: failed: a: no such file\nKernel panic\n";
        assert_eq!(progress_of(failed), Progress::Failed("a: no such file".to_owned()));
        assert_eq!(progress_of(b"lab-guest: ready after 3.1 s\n"), Progress::Ready);
    }

    #[test]
    fn the_tail_is_plain_text() {
        let log = b"first\r\n\x1b[0;1;38;5;185mcolour\x1b[0m\r\n\r\nlast\ttab\r\n";
        assert_eq!(tail_of(log, 2), "  | colour\n  | last tab");
        assert!(tail(Path::new("/no/such/log"), 3).contains("no console log"));
    }
}
