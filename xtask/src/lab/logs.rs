//! `lab logs`: which logs there are, and the end of one. It removes none.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cinderblock_lab::Lab;
use clap::Args;

use super::Which;

/// Show the end of a log; without a name, which logs there are
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A log's name or a part of it, such as kubelet or node1.console
    what: Option<String>,
    /// How many lines
    #[arg(long, short = 'n', default_value_t = 100)]
    lines: usize,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
}

/// Runs it; the lab may be down.
pub(super) fn run(which: &Which, arguments: &Arguments) -> Result<ExitCode> {
    let lab = match &which.dir {
        Some(dir) => Lab::at(&which.name, dir)?,
        None => Lab::new(&which.name)?,
    };
    let folder = lab.dir().join("log");
    let logs = logs(&folder)?;
    let Some(what) = &arguments.what else {
        let mut out = std::io::stdout().lock();
        for log in &logs {
            writeln!(out, "{:>12}  {}", log.metadata()?.len(), name(log))?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    // Of the boot before, so shown by its whole name alone.
    let old = |log: &Path| name(log).ends_with(".1");
    let found: Vec<_> = logs
        .iter()
        .filter(|log| name(log).contains(what) && (!old(log) || &name(log) == what))
        .collect();
    let exact = found.iter().find(|log| [what.clone(), format!("{what}.log")].contains(&name(log)));
    match (exact, found.as_slice()) {
        (Some(log), _) | (None, [log]) => show(log, arguments)?,
        (None, []) => {
            let all: Vec<_> = logs.iter().map(|log| name(log)).collect();
            bail!("{} has no log {what}; it has {}", folder.display(), all.join(", "));
        }
        (None, several) => {
            let all: Vec<_> = several.iter().map(|log| name(log)).collect();
            bail!("{what} could be {}", all.join(" or "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn logs(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("there are no logs in {}", folder.display()))?;
    let mut logs: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    logs.sort();
    Ok(logs)
}

fn name(log: &Path) -> String {
    log.file_name().unwrap_or_default().display().to_string()
}

fn show(log: &Path, arguments: &Arguments) -> Result<()> {
    let reading = || format!("reading {}", log.display());
    let mut file = File::open(log).with_context(reading)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(reading)?;
    let mut out = std::io::stdout().lock();
    out.write_all(last_lines(&bytes, arguments.lines))?;
    if !arguments.follow {
        return Ok(());
    }
    loop {
        out.flush()?;
        sleep(Duration::from_millis(300));
        // Written anew when its program was started again.
        if file.metadata().with_context(reading)?.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
        bytes.clear();
        file.read_to_end(&mut bytes).with_context(reading)?;
        out.write_all(&bytes)?;
    }
}

fn last_lines(bytes: &[u8], count: usize) -> &[u8] {
    let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let before: usize = lines.iter().rev().skip(count).map(|line| line.len()).sum();
    bytes.get(before..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(last_lines(b"a\nb\nc", 1), b"c");
        assert_eq!(last_lines(b"a\n", 5), b"a\n");
        assert_eq!(last_lines(b"", 5), b"");
    }
}
