//! The host: the only place that starts a program, opens a device, mounts, or reads the kernel's
//! view. What an operation means, and what LVM's answers say, is decided elsewhere.
//!
//! [`Host`] is what the agent needs of it; [`Linux`] is the real one.

mod bind;
pub mod block;
pub mod copy;
pub mod cow_status;
pub mod dm;
pub mod dm_status;
pub mod dm_undo;
pub mod filesystem;
pub mod invocation;
mod linux;
pub mod luks;
pub mod mount;
pub mod mountinfo;
pub mod raid_status;
pub mod runner;
pub mod superblock;
pub mod wipe;
pub mod xfs_log;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinError;

use crate::lvm::tag::{FsType, Wipe};
use crate::names::{LvmUuid, VgName};
use crate::units::Bytes;
use block::Disk;
use copy::{Copied, Copier};
use dm::DmDevice;
use dm_status::{DmStatus, Layer};
use dm_undo::Halves;
use invocation::Invocation;
pub use linux::Linux;
use mount::MountCall;
use mountinfo::MountTable;
use runner::{Completed, RunError};

/// What is at a path. Links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// Nothing.
    Absent,
    /// A directory.
    Directory,
    /// A plain file.
    File,
    /// A block device of this number.
    BlockDevice((u32, u32)),
    /// Something else: a link, a socket, ...
    Other,
}

/// How full a filesystem is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// All blocks, blocks in use, and blocks that an ordinary user may still take.
    pub bytes: Usage,
    /// The same of inodes; all zero where the filesystem does not count them.
    pub inodes: Usage,
}

/// Total, used and available; used and available need not sum up to the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In all.
    pub total: u64,
    /// In use.
    pub used: u64,
    /// To be had.
    pub available: u64,
}

/// What the agent needs of a host. All but [`Host::run`] may block, on a hanging disk for ever:
/// they are called by way of [`Host::apart`].
pub trait Host: Debug + Send + Sync + 'static {
    /// Runs a program to its end.
    fn run(&self, call: &Invocation) -> impl Future<Output = Result<Completed, RunError>> + Send;

    /// Does something that may block, on a thread made for that.
    ///
    /// # Errors
    /// When the thread died.
    fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, JoinError>> + Send {
        let host = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&host))
    }

    /// The active device of that device-mapper name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn device(&self, dm_name: &str) -> io::Result<Option<DmDevice>>;

    /// What device-mapper says of an active device: who has it open, how full a pool is.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn device_status(&self, dm_name: &str) -> io::Result<Option<DmStatus>>;

    /// Reads from a device, past every cache.
    ///
    /// # Errors
    /// When not all of it can be read.
    fn read_device(&self, device: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>>;

    /// Writes to a device, and waits until it is on the medium.
    ///
    /// # Errors
    /// When that is not so for all of it.
    fn write_device(&self, device: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Has disks write what they keep in their own caches to the medium, all at once: what came of each.
    fn flush(&self, devices: &[PathBuf]) -> Vec<io::Result<()>>;

    /// Makes a range of a device read as zeroes.
    ///
    /// # Errors
    /// When that is not so for the whole range.
    fn zero_device(&self, device: &Path, offset: u64, len: u64) -> io::Result<()>;

    /// Clears a range of a device that nobody else has.
    ///
    /// # Errors
    /// When that is not so for the whole range; [`io::ErrorKind::Unsupported`] when the device
    /// takes no discard.
    fn clear_device(&self, device: &Path, how: Wipe, offset: u64, len: u64) -> io::Result<()>;

    /// Copies a range of one device to the same place of another, which nobody else has, and reads back
    /// what it changed. `offset` and `len` are multiples of 4096.
    ///
    /// # Errors
    /// When that is not so for the whole range.
    fn copy_device(&self, devices: &mut Copier, offset: u64, len: u64) -> io::Result<Copied>;

    /// Looks at a disk.
    ///
    /// # Errors
    /// When there is none, or it cannot be looked at.
    fn disk(&self, path: &Path) -> io::Result<Disk>;

    /// All mounts.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn mounts(&self) -> io::Result<MountTable>;

    /// Mounts.
    ///
    /// # Errors
    /// When nothing was mounted.
    fn mount(&self, call: &MountCall) -> io::Result<()>;

    /// Unmounts what is seen at a place.
    ///
    /// # Errors
    /// When it is still mounted.
    fn unmount(&self, target: &Path) -> io::Result<()>;

    /// What is at a path.
    ///
    /// # Errors
    /// When that cannot be told.
    fn path_kind(&self, path: &Path) -> io::Result<PathKind>;

    /// Makes a directory, with its parents.
    ///
    /// # Errors
    /// When it is not there afterwards.
    fn make_directory(&self, path: &Path) -> io::Result<()>;

    /// Makes an empty file to mount a device on.
    ///
    /// # Errors
    /// When it is not there afterwards.
    fn make_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory, or a file. Never what is in a directory.
    ///
    /// # Errors
    /// When it is still there.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes from a directory the links that lead nowhere, and then the directory if it is empty.
    /// Fine when there is none.
    ///
    /// # Errors
    /// When a dead link, or the empty directory, is still there.
    fn remove_dead_links(&self, directory: &Path) -> io::Result<()>;

    /// Removes a device of device-mapper whose making was cut: it never had a table in force, and nobody
    /// has it open. Whether there was one.
    ///
    /// # Errors
    /// When it is still there.
    fn remove_unfinished_device(&self, dm_name: &str) -> io::Result<bool>;

    /// Resumes our decrypted devices that are suspended: their names, and whether each goes on.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn resume_mappings(&self) -> io::Result<Vec<(String, io::Result<()>)>>;

    /// All devices of a VG's LVs and of their parts, also of those that are hidden.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn layers(&self, vg: &LvmUuid) -> io::Result<Vec<Layer>>;

    /// Takes back at device-mapper what an LVM command that was killed had begun there. `false`: another
    /// command is at work in the VG, and nothing was done.
    ///
    /// # Errors
    /// When something half done is still there.
    fn take_back(&self, vg: &VgName, halves: &Halves) -> io::Result<bool>;

    /// Whether the filesystem of a device has any file but what mkfs puts there (`lost+found`). Its log
    /// is replayed. It is mounted at no place, and by nobody once this has an answer. `None`: there is no
    /// whole filesystem.
    ///
    /// # Errors
    /// When it cannot be mounted for another reason, or be read.
    fn has_files(&self, device: &Path, fs: FsType) -> io::Result<Option<bool>>;

    /// How full the filesystem at a path is.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn filesystem_usage(&self, path: &Path) -> io::Result<FilesystemUsage>;

    /// The number and size of the block device at a path, links followed.
    ///
    /// # Errors
    /// When there is none.
    fn block_size(&self, path: &Path) -> io::Result<((u32, u32), Bytes)>;
}
