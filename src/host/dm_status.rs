//! What the device-mapper driver says of a device, by one ioctl (linux/dm-ioctl.h). Changes
//! nothing but that what was begun and never finished goes, and what is held goes on.

#![allow(unsafe_code, reason = "no crate asks device-mapper without linking libdevmapper")]

use std::ffi::c_void;
use std::fs::File;
use std::io;

use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};

use super::luks;
use crate::names::CRYPT_PREFIX;

const CONTROL: &str = "/dev/mapper/control";

/// Size of `struct dm_ioctl`.
const HEADER: usize = 312;
/// Where in it the device's uuid is.
const UUID: usize = 176;
/// Size of `struct dm_target_spec`.
const TARGET: usize = 40;
/// Room for the header and the status of the few targets that most LVs have.
const BUFFER: usize = 16 << 10;
/// More than any device needs: LVM's metadata cannot describe an LV of so many segments.
const BUFFER_MAX: usize = 16 << 20;
/// `DM_LIST_DEVICES_CMD`.
const LIST_DEVICES: u8 = 2;
/// `DM_TABLE_STATUS_CMD`.
const TABLE_STATUS: u8 = 12;
/// `DM_TARGET_MSG_CMD`.
const TARGET_MESSAGE: u8 = 14;
/// `DM_TABLE_CLEAR_CMD`.
const TABLE_CLEAR: u8 = 10;
/// `DM_DEV_REMOVE_CMD`.
const DEV_REMOVE: u8 = 4;
/// `DM_DEV_SUSPEND_CMD`, which without its flag resumes.
const DEV_SUSPEND: u8 = 6;
/// `DM_SUSPEND_FLAG`: whoever reads or writes waits until the device is resumed.
const FLAG_SUSPENDED: u32 = 1 << 1;
/// `DM_ACTIVE_PRESENT_FLAG`: the device has a table that is in force.
const FLAG_ACTIVE: u32 = 1 << 5;
/// `DM_INACTIVE_PRESENT_FLAG`: the device has a table that is loaded, and not in force.
const FLAG_INACTIVE: u32 = 1 << 6;
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

/// A device of an LV or of a part of one, also a hidden one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its device-mapper name.
    pub name: String,
    /// What its uuid says behind the VG: the LV's identifier without dashes, perhaps a suffix.
    pub lv: String,
    /// Whether it is held: whoever reads or writes waits until it is resumed.
    pub suspended: bool,
}

/// All devices of the VG with this identifier (without dashes), also those without a table, which sysfs
/// does not show.
///
/// # Errors
/// When there is no device-mapper, or the answer makes no sense.
pub fn layers(vg: &str) -> io::Result<Vec<Layer>> {
    let control = control()?;
    let prefix = format!("LVM-{vg}");
    let mut layers = Vec::new();
    for name in list(&control)? {
        // It may go away meanwhile.
        let Some(answer) = look(&control, &name)? else { continue };
        let uuid = text(answer.get(UUID..HEADER).unwrap_or_default());
        let Some(lv) = uuid.strip_prefix(&prefix) else { continue };
        let suspended = flags(&answer).is_some_and(|flags| flags & FLAG_SUSPENDED != 0);
        layers.push(Layer { name, lv: lv.to_owned(), suspended });
    }
    Ok(layers)
}

/// The names of all devices.
fn list(control: &File) -> io::Result<Vec<String>> {
    let mut size = BUFFER;
    loop {
        let mut buffer = request_of("", size)?;
        call(control, LIST_DEVICES, &mut buffer)?;
        if !is_full(&buffer) {
            let nonsense = || io::Error::new(io::ErrorKind::InvalidData, "a list makes no sense");
            return names(&buffer).ok_or_else(nonsense);
        }
        size = size.saturating_mul(2);
    }
}

/// From a row of `struct dm_name_list`: a number (0 when there is no device at all), the distance to the
/// next (0 at the last), and the name.
fn names(buffer: &[u8]) -> Option<Vec<String>> {
    let mut at = usize::try_from(word(buffer, 16)?).ok()?;
    let mut names = Vec::new();
    loop {
        let number = buffer.get(at..)?.first_chunk().map(|b| u64::from_ne_bytes(*b))?;
        if number == 0 {
            return Some(names);
        }
        let next = usize::try_from(word(buffer, at.checked_add(8)?)?).ok()?;
        names.push(text(buffer.get(at.checked_add(12)?..)?));
        if next == 0 {
            return Some(names);
        }
        at = at.checked_add(next)?;
    }
}

/// Asks the driver about a device. `None` when it is not active.
///
/// # Errors
/// When there is no device-mapper, or the answer makes no sense.
pub fn status(name: &str) -> io::Result<Option<DmStatus>> {
    let Some(answer) = look(&control()?, name)? else { return Ok(None) };
    let makes_no_sense = || {
        let sentence = format!("status of device {name} makes no sense");
        io::Error::new(io::ErrorKind::InvalidData, sentence)
    };
    parse(&answer).map(Some).ok_or_else(makes_no_sense)
}

/// Removes a device that never had a table in force, and that nobody has open: what a program leaves that
/// is killed while it makes one. Whether there was one.
///
/// # Errors
/// When there is no device-mapper, or the device is still there.
pub fn remove_unfinished(name: &str) -> io::Result<bool> {
    let control = control()?;
    let Some(answer) = look(&control, name)? else { return Ok(false) };
    let unfinished = flags(&answer).is_some_and(|flags| flags & FLAG_ACTIVE == 0)
        && word(&answer, 24) == Some(0);
    if !unfinished {
        return Ok(false);
    }
    call(&control, DEV_REMOVE, &mut request(name)?)?;
    Ok(true)
}

/// Removes a device that nobody has open. Whether it is gone.
///
/// # Errors
/// When there is no device-mapper, or it cannot be removed for another reason.
pub fn remove_idle(name: &str) -> io::Result<bool> {
    match call(&control()?, DEV_REMOVE, &mut request(name)?) {
        Ok(()) | Err(rustix::io::Errno::NXIO) => Ok(true),
        Err(rustix::io::Errno::BUSY) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Resumes the devices of dm-crypt whose names begin so and that are suspended: their names, and whether each
/// goes on; one does not after `cryptsetup luksSuspend`. One that never had a table in force is left alone.
///
/// # Errors
/// When there is no device-mapper, or it does not tell which there are.
pub fn resume_crypt(prefix: &str) -> io::Result<Vec<(String, io::Result<()>)>> {
    let control = control()?;
    let mut resumed = Vec::new();
    for name in list(&control)?.into_iter().filter(|name| name.starts_with(prefix)) {
        // It may go away meanwhile.
        let Some(answer) = look(&control, &name)? else { continue };
        let is_crypt =
            text(answer.get(UUID..HEADER).unwrap_or_default()).starts_with(luks::UUID_PREFIX);
        let held = flags(&answer)
            .is_some_and(|flags| flags & FLAG_SUSPENDED != 0 && flags & FLAG_ACTIVE != 0);
        if is_crypt && held {
            let done = call(&control, DEV_SUSPEND, &mut request(&name)?);
            resumed.push((name, done.map_err(io::Error::from)));
        }
    }
    Ok(resumed)
}

/// The names of LVM's devices, and of the decrypted ones of ours, that were in force and are suspended: whoever uses one waits.
///
/// # Errors
/// As [`layers`].
pub fn held() -> io::Result<Vec<String>> {
    let control = control()?;
    let mut held = Vec::new();
    for name in list(&control)? {
        // It may go away meanwhile.
        let Some(answer) = look(&control, &name)? else { continue };
        let uuid = text(answer.get(UUID..HEADER).unwrap_or_default());
        let is_meant = uuid.starts_with("LVM-") || name.starts_with(CRYPT_PREFIX);
        let is_held = flags(&answer)
            .is_some_and(|flags| flags & FLAG_SUSPENDED != 0 && flags & FLAG_ACTIVE != 0);
        if is_meant && is_held {
            held.push(name);
        }
    }
    Ok(held)
}

/// Drops the table of a device that was loaded and never put in force. Whether there was one.
///
/// # Errors
/// When there is no device-mapper, or the table is still there.
pub fn clear_table(name: &str) -> io::Result<bool> {
    let control = control()?;
    let Some(answer) = look(&control, name)? else { return Ok(false) };
    if flags(&answer).is_none_or(|flags| flags & FLAG_INACTIVE == 0) {
        return Ok(false);
    }
    call(&control, TABLE_CLEAR, &mut request(name)?)?;
    Ok(true)
}

/// Deletes a thin device that is not active from its pool
/// (Documentation/admin-guide/device-mapper/thin-provisioning.rst). Whether there was one. `pool` is
/// the name of the pool's LV: once it has volumes, that is a layer above the pool itself.
///
/// # Errors
/// When it is still there.
pub fn delete_thin(pool: &str, number: u64) -> io::Result<bool> {
    let control = control()?;
    for pool in [&format!("{pool}-tpool"), pool] {
        let mut buffer = request(pool)?;
        // `struct dm_target_msg`: a sector (0, of the only target), and the message.
        let message = format!("delete {number}");
        let room = buffer.get_mut(HEADER.saturating_add(8)..);
        let room = room.and_then(|room| room.get_mut(..message.len()));
        room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(message.as_bytes());
        match call(&control, TARGET_MESSAGE, &mut buffer) {
            Ok(()) => return Ok(true),
            // There is no such thin device.
            Err(rustix::io::Errno::NODATA) => return Ok(false),
            // There is no such pool.
            Err(rustix::io::Errno::NXIO) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

fn control() -> io::Result<File> {
    File::options().read(true).write(true).open(CONTROL)
}

/// The driver's answer about a device. `None` when there is none.
fn look(control: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    look_with(name, |buffer| call(control, TABLE_STATUS, buffer))
}

/// The same by whatever answers. A fragmented LV has a target for each of its segments.
fn look_with(
    name: &str,
    mut ask: impl FnMut(&mut [u8]) -> rustix::io::Result<()>,
) -> io::Result<Option<Vec<u8>>> {
    let mut size = BUFFER;
    loop {
        let mut buffer = request_of(name, size)?;
        match ask(&mut buffer) {
            Ok(()) if is_full(&buffer) && size < BUFFER_MAX => size = size.saturating_mul(2),
            Ok(()) => return Ok(Some(buffer)),
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

fn is_full(answer: &[u8]) -> bool {
    flags(answer).is_some_and(|flags| flags & FLAG_BUFFER_FULL != 0)
}

fn flags(answer: &[u8]) -> Option<u32> {
    word(answer, 28)
}

fn word(answer: &[u8], at: usize) -> Option<u32> {
    answer.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// One call of the driver. `buffer` is as [`request_of`] makes it, and has the answer then.
fn call(control: &File, command: u8, buffer: &mut [u8]) -> rustix::io::Result<()> {
    if word(buffer, 12) != u32::try_from(buffer.len()).ok() {
        return Err(rustix::io::Errno::INVAL);
    }
    // SAFETY: `Call` passes a pointer to `buffer`, which outlives the call. The kernel reads
    // `data_size` from the header and never reads or writes beyond it, and that is the buffer's length,
    // as was just made sure.
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
    request_of(name, BUFFER)
}

fn request_of(name: &str, size: usize) -> io::Result<Vec<u8>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "a device name is too long");
    let mut buffer = vec![0; size];
    let mut put = |at: usize, bytes: &[u8]| -> io::Result<()> {
        let room = buffer.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
        room.ok_or_else(invalid)?.copy_from_slice(bytes);
        Ok(())
    };
    for (at, word) in [0, 4, 8].into_iter().zip(VERSION) {
        put(at, &word.to_ne_bytes())?;
    }
    put(12, &u32::try_from(size).map_err(|_| invalid())?.to_ne_bytes())?;
    put(16, &u32::try_from(HEADER).unwrap_or(u32::MAX).to_ne_bytes())?;
    put(28, &FLAG_NO_FLUSH.to_ne_bytes())?;
    if name.len() >= 128 {
        return Err(invalid());
    }
    put(48, name.as_bytes())?;
    Ok(buffer)
}

pub(crate) fn parse(buffer: &[u8]) -> Option<DmStatus> {
    let word = |at: usize| word(buffer, at);
    if is_full(buffer) {
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

    /// As the kernel does: so many targets as there is room for, and a flag where that is not all.
    fn answer(buffer: &mut [u8], targets: usize) {
        let rows = (buffer.len() - HEADER) / 48;
        let flag = if rows < targets { FLAG_BUFFER_FULL } else { 0 };
        buffer[28..32].copy_from_slice(&flag.to_ne_bytes());
        let shown = rows.min(targets);
        buffer[20..24].copy_from_slice(&u32::try_from(shown).unwrap().to_ne_bytes());
        buffer[24..28].copy_from_slice(&3_u32.to_ne_bytes());
        for row in 0..shown {
            let at = HEADER + row * 48;
            let next = u32::try_from((row + 1) * 48).unwrap();
            buffer[at + 20..at + 24].copy_from_slice(&next.to_ne_bytes());
            buffer[at + 24..at + 30].copy_from_slice(b"linear");
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_is_asked_for_again_with_more_room() {
        for (targets, asked) in [(2, 1), (334, 1), (335, 2), (400, 2), (20_000, 7)] {
            let mut calls = 0;
            let look = look_with("vg0-pvc--1", |buffer| {
                calls += 1;
                answer(buffer, targets);
                Ok(())
            });
            let status = parse(&look.unwrap().unwrap()).unwrap();
            assert_eq!((status.targets.len(), status.open_count), (targets, 3));
            assert_eq!(calls, asked, "{targets}");
        }
        let endless = look_with("vg0-pvc--1", |buffer| {
            answer(buffer, usize::MAX);
            Ok(())
        });
        assert_eq!(parse(&endless.unwrap().unwrap()), None);
        let none = look_with("vg0-pvc--1", |_| Err(rustix::io::Errno::NXIO));
        assert_eq!(none.unwrap(), None);
    }
}
