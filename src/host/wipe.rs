//! Clearing a device that nobody needs any more. Whoever has it claimed - a mount, another device -
//! makes the kernel refuse, at every call.

#![allow(unsafe_code, reason = "rustix has no call of its own for BLKDISCARD")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Setter};

use crate::lvm::tag::Wipe;

/// `BLKDISCARD` of linux/fs.h: `_IO(0x12, 119)`, with the first byte and the length.
const BLKDISCARD: ioctl::Opcode = ioctl::opcode::none(0x12, 119);

/// Clears a range of a device. Returns when that is on the medium.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] when the device takes no discard, [`io::ErrorKind::ResourceBusy`]
/// when somebody has it, otherwise what the kernel says; some of the range may be cleared then.
pub fn clear(device: &Path, how: Wipe, offset: u64, len: u64) -> io::Result<()> {
    let file = alone(device)?;
    match how {
        Wipe::Zero => {
            // Writes zeroes, or has the device do so; never gives blocks back instead.
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, offset, len)?;
            Ok(rustix::fs::fsync(&file)?)
        }
        Wipe::Discard => discard(&file, offset, len).map_err(|errno| match errno {
            Errno::OPNOTSUPP => io::Error::new(io::ErrorKind::Unsupported, errno),
            other => other.into(),
        }),
    }
}

fn alone(device: &Path) -> io::Result<File> {
    let flags = (OFlags::EXCL | OFlags::NOCTTY).bits();
    let flags = i32::try_from(flags).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(device)?;
    if !file.metadata()?.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a block device"));
    }
    Ok(file)
}

fn discard(file: &File, offset: u64, len: u64) -> rustix::io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64 behind its argument, which `Setter` points to for the time
    // of the call, and writes nothing back.
    unsafe { ioctl::ioctl(file, Setter::<BLKDISCARD, [u64; 2]>::new([offset, len])) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_device_is_cleared() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "mine").unwrap();
        for how in [Wipe::Zero, Wipe::Discard] {
            let error = clear(file.path(), how, 0, 4).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), b"mine");
    }
}
