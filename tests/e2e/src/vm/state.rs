//! A node's state files, so that any process can take up a VM that another one started. It only reads and writes files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::process::ProcessId;

/// The VM that runs, or ran, on a node's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The parent of the VM's kernel; ends with it.
    pub(crate) process: ProcessId,
    /// The boot's secret.
    pub(crate) token: String,
}

/// Writes JSON so that a reader sees the old file or the new one.
pub(crate) fn write_json(file: &Path, value: &impl Serialize) -> Result<()> {
    let write = || -> Result<()> {
        let next = file.with_extension("new");
        let mut json = serde_json::to_vec_pretty(value)?;
        json.push(b'\n');
        fs::write(&next, json)?;
        fs::rename(&next, file)?;
        Ok(())
    };
    write().with_context(|| format!("writing {}", file.display()))
}

/// Reads JSON; none when there is no such file.
pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(file: &Path) -> Result<Option<T>> {
    match fs::read(file) {
        Ok(json) => serde_json::from_slice(&json).map(Some).with_context(|| {
            format!("{} is damaged: take the lab down and up again", file.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// Removes a file; fine when it is not there.
pub(crate) fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_files_round_trip_and_may_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.json");
        assert_eq!(read_json::<Run>(&file).unwrap(), None);
        let process = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        let run = Run { process, token: "t".to_owned() };
        write_json(&file, &run).unwrap();
        assert_eq!(read_json::<Run>(&file).unwrap(), Some(run));
        fs::write(&file, "{").unwrap();
        let error = read_json::<Run>(&file).unwrap_err().to_string();
        assert!(error.contains("run.json is damaged"), "{error}");
        remove(&file).unwrap();
        remove(&file).unwrap();
    }
}
