//! A node's disks as sparse files on the host. An existing disk is kept as it is; nothing here looks into one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::spec::NodeSpec;
use crate::programs;

/// A disk as the VM gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    /// The file on the host.
    pub(super) file: PathBuf,
    /// The letter of /dev/ubdX.
    pub(super) letter: char,
    /// The serial number, from which udev makes the link in /dev/disk/by-id.
    pub(super) serial: String,
}

/// All disks of a node whose files are in `folder`; the system disk first.
pub(super) fn of(spec: &NodeSpec, folder: &Path) -> Vec<Disk> {
    let system =
        Disk { file: folder.join("system.img"), letter: 'b', serial: "lab-system".to_owned() };
    let data = spec.disks.iter().zip('c'..).enumerate().map(|(at, (_, letter))| Disk {
        file: data_file(folder, at + 1),
        letter,
        serial: format!("lab-disk{}", at + 1),
    });
    std::iter::once(system).chain(data).collect()
}

/// The file of data disk `number` (from 1).
pub(super) fn data_file(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("disk{number}.img"))
}

/// Makes the files that are not there yet, and a file system on a new system disk.
pub(super) fn ensure(spec: &NodeSpec, folder: &Path) -> Result<Vec<Disk>> {
    let disks = of(spec, folder);
    let sizes = std::iter::once(&spec.system_disk).chain(&spec.disks);
    for (disk, size) in disks.iter().zip(sizes) {
        let file = &disk.file;
        if let Ok(data) = file.metadata() {
            ensure!(
                data.len() == *size,
                "{} has {} bytes, but node {} is to have a disk of {size}: take the lab down first",
                file.display(),
                data.len(),
                spec.name
            );
            continue;
        }
        // A disk that is half made never gets its final name.
        let fresh = file.with_extension("new");
        make(&fresh, *size, disk.letter == 'b')
            .and_then(|()| Ok(fs::rename(&fresh, file)?))
            .with_context(|| format!("making the disk {}", file.display()))?;
    }
    Ok(disks)
}

fn make(file: &Path, size: u64, system: bool) -> Result<()> {
    File::create(file)?.set_len(size)?;
    if system {
        let lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        let words = ["-q", "-F", "-L", "lab-system", "-E", lazy].map(AsRef::as_ref);
        let words: Vec<_> = words.into_iter().chain([file.as_os_str()]).collect();
        programs::run("mkfs.ext4", &words, "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::spec::{GIB, MIB};
    use super::*;

    #[test]
    fn disks_are_sparse_kept_and_lettered() {
        let folder = tempfile::tempdir().unwrap();
        let spec = NodeSpec::new(1).disk(3 * GIB).disk(5 * MIB);
        let disks = ensure(&spec, folder.path()).unwrap();
        let letters: String = disks.iter().map(|disk| disk.letter).collect();
        assert_eq!(letters, "bcd");
        assert_eq!(disks[2].serial, "lab-disk2");
        let system = disks[0].file.metadata().unwrap();
        assert!(system.len() == 8 * GIB && system.blocks() * 512 < GIB);
        fs::write(&disks[2].file, vec![7; 5 << 20]).unwrap();
        ensure(&spec, folder.path()).unwrap();
        assert_eq!(fs::read(&disks[2].file).unwrap()[0], 7);
        let error = ensure(&NodeSpec::new(1).disk(GIB), folder.path()).unwrap_err().to_string();
        assert!(error.contains("disk1.img has 3221225472 bytes"), "{error}");
    }
}
