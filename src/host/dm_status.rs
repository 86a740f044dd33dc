//! What the device-mapper driver says of a device, by one ioctl (linux/dm-ioctl.h). Changes
//! nothing but that a device which nobody ever finished goes.

#![allow(unsafe_code, reason = "no crate asks device-mapper without linking libdevmapper")]

use std::ffi::c_void;
use std::fs::File;
use std::io;

use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};

const CONTROL: &str = "/dev/mapper/control";

/// Size of `struct dm_ioctl`.
const HEADER: usize = 312;
/// Size of `struct dm_target_spec`.
const TARGET: usize = 40;
/// Room for the header and the status of the few targets that an LV has.
const BUFFER: usize = 16 << 10;
/// `DM_TABLE_STATUS_CMD`.
const TABLE_STATUS: u8 = 12;
/// `DM_DEV_REMOVE_CMD`.
const DEV_REMOVE: u8 = 4;
/// `DM_ACTIVE_PRESENT_FLAG`: the device has a table that is in force.
const FLAG_ACTIVE: u32 = 1 << 5;
/// `DM_BUFFER_FULL_FLAG`: the answer did not fit.
const FLAG_BUFFER_FULL: u32 = 1 << 8;
/// `DM_NOFLUSH_FLAG`: a thin pool does not write its metadata before it answers, so that a look
/// costs no disk anything and never waits for one. Blocks given out since count all the same.
const FLAG_NO_FLUSH: u32 = 1 << 11;
/// Version of the interface that we speak: 4.0.0, which every kernel since 2.6 takes.
const VERSION: [u32; 3] = [4, 0, 0];

/// What the driver says of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmStatus {
    /// How many have it open: mounts, other devices, processes.
    pub open_count: u32,
    /// Type and status line of each target.
    pub targets: Vec<(String, String)>,
}

/// Asks the driver about a device. `None` when it is not active.
///
/// # Errors
/// When there is no device-mapper, or the answer makes no sense.
pub fn status(name: &str) -> io::Result<Option<DmStatus>> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    let mut buffer = request(name)?;
    match call(&control, TABLE_STATUS, &mut buffer) {
        Ok(()) => parse(&buffer).map(Some).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("status of device {name} makes no sense"),
            )
        }),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Removes a device that never had a table in force, and that nobody has open: what a program leaves that
/// is killed while it makes one. Whether there was one.
///
/// # Errors
/// When there is no device-mapper, or the device is still there.
pub fn remove_unfinished(name: &str) -> io::Result<bool> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    let mut buffer = request(name)?;
    match call(&control, TABLE_STATUS, &mut buffer) {
        Ok(()) => {}
        Err(rustix::io::Errno::NXIO) => return Ok(false),
        Err(e) => return Err(e.into()),
    }
    let word = |at: usize| buffer.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b));
    let unfinished = word(28).is_some_and(|flags| flags & FLAG_ACTIVE == 0) && word(24) == Some(0);
    if !unfinished {
        return Ok(false);
    }
    call(&control, DEV_REMOVE, &mut request(name)?)?;
    Ok(true)
}

/// One call of the driver. `buffer` is as [`request`] makes it, and has the answer then.
fn call(control: &File, command: u8, buffer: &mut Vec<u8>) -> rustix::io::Result<()> {
    debug_assert_eq!(buffer.len(), BUFFER);
    // SAFETY: `Call` passes a pointer to `buffer`, which outlives the call. The kernel reads
    // `data_size` (BUFFER, its full length) from the header and never reads or writes beyond it.
    unsafe { ioctl::ioctl(control, Call { command, buffer }) }
}

struct Call<'a> {
    command: u8,
    buffer: &'a mut [u8],
}

// SAFETY: the opcode is that of a command of device-mapper, whose argument is a `struct dm_ioctl` followed by
// room for the answer, all of `data_size` bytes; `request` makes just that, and `as_ptr` hands over
// its start. The output is what the kernel left there: plain bytes, valid in any combination.
unsafe impl Ioctl for Call<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        ioctl::opcode::read_write::<[u8; HEADER]>(0xfd, self.command)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.buffer.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

fn request(name: &str) -> io::Result<Vec<u8>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a device name is too long");
    let mut buffer = vec![0; BUFFER];
    let mut put = |at: usize, bytes: &[u8]| -> io::Result<()> {
        let room = buffer.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or_else(invalid)?.copy_from_slice(bytes);
        Ok(())
    };
    for (at, word) in [0, 4, 8].into_iter().zip(VERSION) {
        put(at, &word.to_ne_bytes())?;
    }
    put(12, &u32::try_from(BUFFER).unwrap_or(u32::MAX).to_ne_bytes())?;
    put(16, &u32::try_from(HEADER).unwrap_or(u32::MAX).to_ne_bytes())?;
    put(28, &FLAG_NO_FLUSH.to_ne_bytes())?;
    if name.len() >= 128 {
        return Err(invalid());
    }
    put(48, name.as_bytes())?;
    Ok(buffer)
}

pub(crate) fn parse(buffer: &[u8]) -> Option<DmStatus> {
    let word = |at: usize| buffer.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b));
    if word(28)? & FLAG_BUFFER_FULL != 0 {
        return None;
    }
    let start = usize::try_from(word(16)?).ok()?;
    let (count, open_count) = (word(20)?, word(24)?);
    let mut targets = Vec::new();
    let mut at = start;
    for _ in 0..count {
        let next = usize::try_from(word(at.checked_add(20)?)?).ok()?;
        let kind = text(buffer.get(at.checked_add(24)?..at.checked_add(TARGET)?)?);
        let status = text(buffer.get(at.checked_add(TARGET)?..)?);
        targets.push((kind, status));
        // Each is behind the one before: else a few bytes could stand for as many as can be counted.
        let next = start.checked_add(next)?;
        if next < at.checked_add(TARGET)? {
            return None;
        }
        at = next;
    }
    Some(DmStatus { open_count, targets })
}

/// Up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_as_the_kernel_lays_them_out() {
        let mut buffer = request("vg0-pool0-tpool").unwrap();
        assert_eq!(text(&buffer[48..]), "vg0-pool0-tpool");
        assert_eq!(buffer[28..32], FLAG_NO_FLUSH.to_ne_bytes());
        assert!(request(&"x".repeat(128)).is_err());
        buffer[20..24].copy_from_slice(&2_u32.to_ne_bytes());
        buffer[24..28].copy_from_slice(&4_u32.to_ne_bytes());
        let mut target = |at: usize, next: u32, kind: &str, status: &str| {
            buffer[at + 20..at + 24].copy_from_slice(&next.to_ne_bytes());
            buffer[at + 24..at + 24 + kind.len()].copy_from_slice(kind.as_bytes());
            buffer[at + 40..at + 40 + status.len()].copy_from_slice(status.as_bytes());
        };
        target(HEADER, 64, "thin-pool", "0 1/2 3/4 - rw");
        target(HEADER + 64, 128, "linear", "");
        let status = parse(&buffer).unwrap();
        assert_eq!(status.open_count, 4);
        assert_eq!(status.targets[0], ("thin-pool".to_owned(), "0 1/2 3/4 - rw".to_owned()));
        assert_eq!(status.targets[1].0, "linear");
        let mut circle = buffer.clone();
        circle[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
        circle[HEADER + 64 + 20..][..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert_eq!(parse(&circle), None);
        buffer[28..32].copy_from_slice(&FLAG_BUFFER_FULL.to_ne_bytes());
        assert_eq!(parse(&buffer), None);
    }
}
