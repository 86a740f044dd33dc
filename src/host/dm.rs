//! Device-mapper as sysfs shows it: which LVs are active and as which device; and what a thin
//! pool's status line says. Changes nothing.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::units::Bytes;

const SECTOR: u64 = 512;

/// An active device of LVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmDevice {
    /// Its name.
    pub name: String,
    /// Its uuid: `LVM-`, the VG's and the LV's identifiers without dashes, perhaps a suffix.
    pub uuid: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// Its size.
    pub size: Bytes,
    /// Its device node, whose number was compared.
    pub node: PathBuf,
}

/// How full a thin pool is, from its status line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "words of the kernel's line, independent of each other"
)]
pub struct PoolStatus {
    /// Metadata blocks in use and in all.
    pub metadata: (u64, u64),
    /// Data blocks (chunks) in use and in all.
    pub data: (u64, u64),
    /// Whether it takes writes.
    pub writable: bool,
    /// Whether the kernel wants `thin_check` before it goes on.
    pub needs_check: bool,
    /// Whether it holds writes back when it is full, instead of failing them.
    pub queues: bool,
    /// Whether it passes discards on to its disks. The kernel stops that where they take none, or
    /// only smaller ones than the pool's chunks.
    pub passes_discards: bool,
}

/// The device of that name. `None` when it is not active.
///
/// # Errors
/// When sysfs cannot be read, or there is no node for the device under /dev.
pub fn find(name: &str) -> io::Result<Option<DmDevice>> {
    // The node under /dev/mapper tells which sysfs entry to look at, and sysfs whether that is true:
    // a left-over node may bear any name.
    if let Ok(meta) = fs::metadata(Path::new("/dev/mapper").join(name)) {
        let (major, minor) = numbers(meta.rdev());
        if let Some(found) = read(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")), name)?
        {
            return Ok(Some(found));
        }
    }
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("dm-") {
            continue;
        }
        if let Some(found) = read(&entry.path(), name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn read(sysfs: &Path, name: &str) -> io::Result<Option<DmDevice>> {
    let text = |file: &str| fs::read_to_string(sysfs.join(file)).map(|t| t.trim_end().to_owned());
    let found = match text("dm/name") {
        Ok(found) => found,
        // It went away meanwhile, or is no device of device-mapper.
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    if found != name {
        return Ok(None);
    }
    let parsed = || {
        let (uuid, dev, size) = (text("dm/uuid").ok()?, text("dev").ok()?, text("size").ok()?);
        let (major, minor) = dev.split_once(':')?;
        let size = Bytes::new(size.parse::<u64>().ok()?.checked_mul(SECTOR)?);
        Some((uuid, (major.parse().ok()?, minor.parse().ok()?), size))
    };
    let Some((uuid, number, size)) = parsed() else {
        return Ok(None);
    };
    let node = node(name, number)?;
    Ok(Some(DmDevice { name: found, uuid, number, size, node }))
}

/// ENODEV once it is gone, and EINVAL while it is being removed (`dm_attr_show` in
/// linux/drivers/md/dm-sysfs.c).
fn gone(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || e.raw_os_error() == Some(19 /* ENODEV */)
}

/// A device node with that number, by its name or by its number.
fn node(name: &str, number: (u32, u32)) -> io::Result<PathBuf> {
    let by_name = Path::new("/dev/mapper").join(name);
    let by_number = PathBuf::from(format!("/dev/dm-{}", number.1));
    let fits = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|m| m.file_type().is_block_device() && numbers(m.rdev()) == number)
    };
    [by_name, by_number].into_iter().find(fits).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "device {name} is active as {}:{}, but neither /dev/mapper/{name} nor /dev/dm-{} is its node: \
                 the host's /dev must be mounted here",
                number.0, number.1, number.1
            ),
        )
    })
}

/// Major and minor of a device number.
#[must_use]
pub fn numbers(rdev: u64) -> (u32, u32) {
    (rustix::fs::major(rdev), rustix::fs::minor(rdev))
}

impl PoolStatus {
    /// From the status line of a `thin-pool` target
    /// (Documentation/admin-guide/device-mapper/thin-provisioning.rst). A pool that failed has no
    /// figures and takes no writes.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let transaction = words.next()?;
        if matches!(transaction, "Fail" | "Error") {
            return Some(Self { needs_check: true, ..Self::default() });
        }
        let mut ratio = || {
            let (used, total) = words.next()?.split_once('/')?;
            Some((used.parse().ok()?, total.parse().ok()?))
        };
        let (metadata, data) = (ratio()?, ratio()?);
        let rest: Vec<&str> = words.collect();
        Some(Self {
            metadata,
            data,
            writable: rest.contains(&"rw"),
            needs_check: rest.contains(&"needs_check"),
            queues: rest.contains(&"queue_if_no_space"),
            passes_discards: rest.contains(&"discard_passdown"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_status_lines() {
        let line = "3 120/1024 783/65216 - rw no_discard_passdown error_if_no_space - 256 ";
        let status = PoolStatus {
            metadata: (120, 1024),
            data: (783, 65216),
            writable: true,
            needs_check: false,
            queues: false,
            passes_discards: false,
        };
        assert_eq!(PoolStatus::parse(line), Some(status));
        let queues = line.replace("error_if", "queue_if");
        assert_eq!(PoolStatus::parse(&queues), Some(PoolStatus { queues: true, ..status }));
        let full = "3 120/1024 65216/65216 - out_of_data_space discard_passdown error_if_no_space needs_check 256";
        let status = PoolStatus::parse(full).unwrap();
        assert!(!status.writable && status.needs_check && status.passes_discards);
        assert!(!PoolStatus::parse("Fail").unwrap().writable);
        assert_eq!(PoolStatus::parse("rubbish"), None);
    }
}
