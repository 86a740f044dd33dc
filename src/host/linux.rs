//! The real host: every call goes straight to the kernel or to the runner.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::block::{self, Disk};
use super::copy::{Copied, Copier};
use super::dm::{self, DmDevice};
use super::dm_status::{self, DmStatus, Layer};
use super::dm_undo::{self, Halves};
use super::invocation::Invocation;
use super::mount::{self, MountCall};
use super::mountinfo::MountTable;
use super::runner::{Completed, RunError, Runner};
use super::{FilesystemUsage, Host, PathKind, Usage, wipe};
use crate::error::Result;
use crate::lvm::tag::{FsType, Wipe};
use crate::metrics::ProgramMetrics;
use crate::names::{CRYPT_PREFIX, LvmUuid, VgName};
use crate::units::Bytes;

/// The host that this process runs on.
#[derive(Debug)]
pub struct Linux {
    runner: Runner,
}

impl Linux {
    /// Finds all programs. `lvm_dir` is an empty directory of ours that LVM takes for its
    /// `/etc/lvm`.
    ///
    /// # Errors
    /// When a program is missing, with the package that has it.
    pub fn new(lvm_dir: &Path, metrics: ProgramMetrics) -> Result<Self> {
        Ok(Self { runner: Runner::new(lvm_dir, metrics)? })
    }
}

impl Host for Linux {
    async fn run(&self, call: &Invocation) -> Result<Completed, RunError> {
        self.runner.run(call).await
    }

    fn device(&self, dm_name: &str) -> io::Result<Option<DmDevice>> {
        dm::find(dm_name)
    }

    fn device_status(&self, dm_name: &str) -> io::Result<Option<DmStatus>> {
        dm_status::status(dm_name)
    }

    fn read_device(&self, device: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        block::read(device, offset, len)
    }

    fn write_device(&self, device: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        block::write(device, offset, bytes)
    }

    fn flush(&self, devices: &[PathBuf]) -> Vec<io::Result<()>> {
        block::flush(devices)
    }

    fn zero_device(&self, device: &Path, offset: u64, len: u64) -> io::Result<()> {
        block::zero(device, offset, len)
    }

    fn clear_device(&self, device: &Path, how: Wipe, offset: u64, len: u64) -> io::Result<()> {
        wipe::clear(device, how, offset, len)
    }

    fn copy_device(&self, devices: &mut Copier, offset: u64, len: u64) -> io::Result<Copied> {
        devices.copy(offset, len)
    }

    fn disk(&self, path: &Path) -> io::Result<Disk> {
        block::disk(path)
    }

    fn mounts(&self) -> io::Result<MountTable> {
        Ok(MountTable::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn mount(&self, call: &MountCall) -> io::Result<()> {
        mount::mount(call)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        mount::unmount(target)
    }

    fn path_kind(&self, path: &Path) -> io::Result<PathKind> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(PathKind::Absent),
            Err(e) => return Err(e),
        };
        let kind = meta.file_type();
        Ok(if kind.is_dir() {
            PathKind::Directory
        } else if kind.is_file() {
            PathKind::File
        } else if kind.is_block_device() {
            PathKind::BlockDevice(dm::numbers(meta.rdev()))
        } else {
            PathKind::Other
        })
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
    }

    fn make_file(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.make_directory(parent)?;
        }
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
        match made {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.path_kind(path)? {
            PathKind::Absent => Ok(()),
            PathKind::Directory => fs::remove_dir(path),
            PathKind::File | PathKind::BlockDevice(_) | PathKind::Other => fs::remove_file(path),
        }
    }

    fn remove_dead_links(&self, directory: &Path) -> io::Result<()> {
        remove_dead_links(directory)
    }

    fn remove_unfinished_device(&self, dm_name: &str) -> io::Result<bool> {
        dm_status::remove_unfinished(dm_name)
    }

    fn resume_mappings(&self) -> io::Result<Vec<(String, io::Result<()>)>> {
        dm_status::resume_crypt(CRYPT_PREFIX)
    }

    fn layers(&self, vg: &LvmUuid) -> io::Result<Vec<Layer>> {
        dm_status::layers(&vg.compact())
    }

    fn take_back(&self, vg: &VgName, halves: &Halves) -> io::Result<bool> {
        dm_undo::take_back(vg, halves)
    }

    fn has_files(&self, device: &Path, fs: FsType) -> io::Result<Option<bool>> {
        mount::has_files(device, fs)
    }

    fn filesystem_usage(&self, path: &Path) -> io::Result<FilesystemUsage> {
        let stat = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(FilesystemUsage {
            bytes: Usage {
                total: bytes(stat.f_blocks),
                used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
                available: bytes(stat.f_bavail),
            },
            inodes: Usage {
                total: stat.f_files,
                used: stat.f_files.saturating_sub(stat.f_ffree),
                available: stat.f_favail,
            },
        })
    }

    fn block_size(&self, path: &Path) -> io::Result<((u32, u32), Bytes)> {
        let meta = fs::metadata(path)?;
        if !meta.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
        }
        let (major, minor) = dm::numbers(meta.rdev());
        let sectors = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
        let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
        Ok(((major, minor), Bytes::new(sectors.saturating_mul(512))))
    }
}

fn remove_dead_links(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut empty = true;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_symlink() && !leads_to_a_device(&entry.path())? {
            fs::remove_file(entry.path())?;
        } else {
            empty = false;
        }
    }
    if empty { fs::remove_dir(directory) } else { Ok(()) }
}

/// Whether a link ends at something that is there. A node without a device behind it, which stays
/// where udev does not know of it, is nothing.
fn leads_to_a_device(link: &Path) -> io::Result<bool> {
    let meta = match fs::metadata(link) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    if !meta.file_type().is_block_device() {
        return Ok(true);
    }
    let (major, minor) = dm::numbers(meta.rdev());
    Path::new(&format!("/sys/dev/block/{major}:{minor}")).try_exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_dead_links_and_an_empty_directory_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let vg = dir.path().join("vg0");
        remove_dead_links(&vg).unwrap();
        fs::create_dir(&vg).unwrap();
        symlink("/dev/null", vg.join("alive")).unwrap();
        symlink("/no/such", vg.join("dead")).unwrap();
        fs::write(vg.join("file"), "").unwrap();
        remove_dead_links(&vg).unwrap();
        assert!(vg.join("alive").is_symlink() && vg.join("file").exists());
        assert!(!vg.join("dead").is_symlink());
        fs::remove_file(vg.join("alive")).unwrap();
        fs::remove_file(vg.join("file")).unwrap();
        remove_dead_links(&vg).unwrap();
        assert!(!vg.exists());
    }
}
