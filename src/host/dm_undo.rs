//! Takes back at device-mapper what an LVM command that was killed had begun there, under LVM's own
//! lock: no other command is at work then, so what is half done stays so for ever. What LVM itself
//! can mend is left to LVM.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::FlockOperation;

use super::dm_status;
use crate::names::VgName;

/// Where LVM keeps its locks (lvmlocking, `locking_dir`; Debian's default).
const LOCKS: &str = "/run/lock/lvm";

/// What a command that was cut may have left in a VG.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Halves {
    /// Devices that may have a table which was loaded and never put in force: whoever resumes one next
    /// would put it in force. And devices that may never have had one in force: they keep their names
    /// from whatever is to bear them.
    pub devices: Vec<String>,
    /// Devices that nothing has a use for: they are removed unless somebody has them open. LVM refuses to
    /// activate an LV while a part of it is active, and to take a snapshot where one of its layers is left.
    pub abandoned: Vec<String>,
    /// Thin devices that LVM may have made, but not noted: the device-mapper name of the pool's LV, and their
    /// number. When that is a snapshot, LVM refuses every further change of the pool.
    pub thin: Vec<(String, u64)>,
}

/// Takes back what is half done, as far as the kernel lets it. `false`: another command is at work in the
/// VG, so nothing was looked at.
///
/// # Errors
/// When it cannot be told whether another command is at work.
pub fn take_back(vg: &VgName, halves: &Halves) -> io::Result<bool> {
    let Some(_lock) = lock(Path::new(LOCKS), vg)? else { return Ok(false) };
    // Whether something was there and is gone. What one device refuses does not keep the others.
    let done = |device: &str, what: &str, result: io::Result<bool>| match result {
        Ok(true) => {
            tracing::warn!(%vg, device, "LVM was cut: {what}");
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::error!(%vg, device, %error, "LVM was cut, and what it left cannot be taken back; not {what}");
            false
        }
    };
    for device in &halves.devices {
        let cleared = dm_status::clear_table(device);
        done(device, "dropped a table that it had loaded and not put in force", cleared);
        let removed = dm_status::remove_unfinished(device);
        done(device, "removed a device that it had begun to make", removed);
    }
    // One may be made of others.
    let mut left: Vec<&String> = halves.abandoned.iter().collect();
    loop {
        let before = left.len();
        left.retain(|device| {
            !done(device, "removed a device that nothing uses", dm_status::remove_idle(device))
        });
        if left.is_empty() || left.len() == before {
            break;
        }
    }
    for (pool, number) in &halves.thin {
        let what = format!("deleted thin device {number}, which it had made and not noted");
        done(pool, &what, dm_status::delete_thin(pool, *number));
    }
    Ok(true)
}

/// LVM's lock of a VG, as LVM takes it to write. `None`: somebody else has it.
fn lock(folder: &Path, vg: &VgName) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(format!("V_{vg}"));
    loop {
        let file = File::options().read(true).append(true).create(true).open(&path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        // LVM removes the file when it lets go of the lock: ours may be one that nobody sees any more.
        let ours = file.metadata()?;
        match fs::metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                return Ok(Some(file));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvms_lock_is_had_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let vg = VgName::parse("vg0").unwrap();
        let first = lock(folder.path(), &vg).unwrap().unwrap();
        assert!(lock(folder.path(), &vg).unwrap().is_none());
        // LVM lets go, and takes its file away: the next is another file.
        fs::remove_file(folder.path().join("V_vg0")).unwrap();
        drop(first);
        assert!(lock(folder.path(), &vg).unwrap().is_some());
    }
}
