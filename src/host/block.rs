//! Block devices: reading past every cache, writing zeroes, and who uses a disk. Nothing here knows
//! what the bytes mean.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags};

use crate::units::Bytes;

/// What `O_DIRECT` wants of offsets, lengths and memory; no device has larger logical blocks.
const ALIGNMENT: u64 = 4096;
/// Zeroes are written in pieces of this size, so that a long job can be watched.
pub const ZERO_PIECE: Bytes = Bytes::mib(256);

/// A disk, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its device node, all links followed.
    pub node: PathBuf,
    /// Its size.
    pub size: Bytes,
    /// Its partitions, as the kernel knows them.
    pub partitions: Vec<String>,
    /// Devices made of it: device-mapper, MD, bcache.
    pub holders: Vec<String>,
    /// Whether somebody has it for himself: a mount, swap, a holder in another namespace.
    pub claimed: bool,
}

/// Reads from a device itself, not from the page cache.
///
/// # Errors
/// When it cannot be opened or read, or ends before the last byte.
pub fn read(device: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let file = direct(device)?;
    let invalid =
        || io::Error::new(io::ErrorKind::InvalidInput, "a read beyond what a device can have");
    let start = offset.saturating_sub(offset.checked_rem(ALIGNMENT).unwrap_or_default());
    let end = offset
        .checked_add(len)
        .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
        .ok_or_else(invalid)?;
    let to_usize = |n: u64| usize::try_from(n).map_err(|_| invalid());
    let (want, align) = (to_usize(end.saturating_sub(start))?, to_usize(ALIGNMENT)?);
    // Room to begin at an aligned address: no safe type promises alignment.
    let mut memory = vec![0_u8; want.saturating_add(align)];
    let skip = memory.as_ptr().align_offset(align);
    let buffer = memory.get_mut(skip..).and_then(|m| m.get_mut(..want)).ok_or_else(invalid)?;
    file.read_exact_at(buffer, start)?;
    let from = to_usize(offset.saturating_sub(start))?;
    let to = from.saturating_add(to_usize(len)?);
    buffer.get(from..to).map(<[u8]>::to_vec).ok_or_else(invalid)
}

fn direct(device: &Path) -> io::Result<File> {
    opened(device, OFlags::DIRECT)
}

/// A block device, to be read.
fn opened(device: &Path, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from((flags | OFlags::NOCTTY).bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(device)?;
    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
    }
    Ok(file)
}

/// Writes to a device and waits until it is on the medium. Whoever reads the device through the page
/// cache sees it as well.
///
/// # Errors
/// What the kernel says; some of it may be written then.
pub fn write(device: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(device)?;
    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
    }
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

/// Has disks write what they keep in their own caches to the medium, all at once. What was written past the page
/// cache, as LVM writes, is there without that only on disks that keep nothing.
#[must_use]
pub fn flush(devices: &[PathBuf]) -> Vec<io::Result<()>> {
    let flush = |device: &PathBuf| Ok(rustix::fs::fsync(&opened(device, OFlags::empty())?)?);
    std::thread::scope(|scope| {
        let all: Vec<_> = devices.iter().map(|device| scope.spawn(move || flush(device))).collect();
        let died = || Err(io::Error::other("a thread of the agent died"));
        all.into_iter().map(|one| one.join().unwrap_or_else(|_| died())).collect()
    })
}

/// Makes a range read as zeroes, by the device's own means where it has them. Returns when that is
/// on the medium.
///
/// # Errors
/// What the kernel says; some of the range may be zeroed then.
pub fn zero(device: &Path, offset: u64, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(device)?;
    rustix::fs::fallocate(
        &file,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        offset,
        len,
    )?;
    Ok(rustix::fs::fsync(&file)?)
}

/// Looks at a disk without changing anything.
///
/// # Errors
/// When it is not there, or no block device, or sysfs cannot be read.
pub fn disk(path: &Path) -> io::Result<Disk> {
    let node = fs::canonicalize(path)?;
    let meta = fs::metadata(&node)?;
    if !meta.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
    }
    let (major, minor) = super::dm::numbers(meta.rdev());
    let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let sectors = fs::read_to_string(sysfs.join("size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    let mut partitions = Vec::new();
    for entry in fs::read_dir(&sysfs)? {
        let entry = entry?;
        if entry.path().join("partition").exists() {
            partitions.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let mut holders = Vec::new();
    match fs::read_dir(sysfs.join("holders")) {
        Ok(entries) => {
            for entry in entries {
                holders.push(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    partitions.sort();
    holders.sort();
    let size = Bytes::new(sectors.saturating_mul(512));
    Ok(Disk { claimed: claimed(&node)?, node, size, partitions, holders })
}

/// Asks the kernel for the device for ourselves alone: it refuses while anybody else in any
/// namespace has it (mounts, swap, MD, device-mapper).
fn claimed(node: &Path) -> io::Result<bool> {
    let flags = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
    match OpenOptions::new().read(true).custom_flags(flags).open(node) {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        Err(e) => Err(e),
    }
}
