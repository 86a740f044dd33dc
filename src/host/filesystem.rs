//! What each filesystem wants: how it is made, checked, given a UUID and grown. Pure: argument
//! lists, and what the programs' exit codes mean.

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::invocation::{Effect, Input, Invocation, Program, STDIN};
use super::runner::{Completed, Exit};
use crate::lvm::tag::FsType;

/// A probe reads a few hundred KiB; a device that takes longer hangs.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// What `blkid -p` says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It knows nothing of what is on it: blank, as far as anybody can tell.
    Nothing,
    /// It found something; what, in its own words (`TYPE=ext4 UUID=...`).
    Found(String),
}

/// Makes a filesystem. `uuid` is the one that [`crate::names::LvmUuid::filesystem_uuid`] derives.
///
/// Nothing is discarded: a thin volume has nothing yet, and a thick one's extents are as they are.
#[must_use]
pub fn make(fs: FsType, device: &Path, uuid: Uuid) -> Invocation {
    let device = device.to_string_lossy().into_owned();
    let uuid = uuid.to_string();
    match fs {
        FsType::Ext4 => change(
            Program::MkfsExt4,
            &[
                // -F: a whole device is meant. -m 0: nothing is kept back for root.
                // metadata_csum_seed: a clone's UUID is changed without rewriting every checksum.
                "-q",
                "-F",
                "-m",
                "0",
                "-O",
                "metadata_csum_seed",
                "-E",
                "nodiscard",
                "-U",
                &uuid,
                &device,
            ],
        ),
        FsType::Xfs => {
            change(Program::MkfsXfs, &["-q", "-f", "-K", "-m", &format!("uuid={uuid}"), &device])
        }
        FsType::Btrfs => change(Program::MkfsBtrfs, &["-q", "-f", "-K", "-U", &uuid, &device]),
    }
}

/// What has to be run on an unmounted filesystem before it is mounted: repairs that are always
/// safe. The others repair by replaying their log when they are mounted.
#[must_use]
pub fn check(fs: FsType, device: &Path) -> Option<Invocation> {
    let device = device.to_string_lossy();
    match fs {
        FsType::Ext4 => Some(change(Program::E2fsck, &["-p", &device])),
        FsType::Xfs | FsType::Btrfs => None,
    }
}

/// What a check found.
///
/// # Errors
/// When a person has to look at it, with what the program said.
pub fn check_result(done: &Completed) -> Result<(), String> {
    match done.exit {
        // e2fsck(8): 1 is "errors corrected", 2 "corrected, reboot" (for a mounted root).
        Exit::Code(0..=2) => Ok(()),
        // What it found is in its standard output.
        Exit::Code(_) | Exit::Signal(_) => {
            let found = done.stdout.lines().map(str::trim).filter(|line| !line.is_empty()).take(4);
            let found: Vec<_> =
                [done.complaint()].into_iter().chain(found.map(str::to_owned)).collect();
            Err(found.join("; "))
        }
    }
}

/// Whether a program says that another has the device, or that another resize is at it. In the words of
/// e2fsprogs 1.47, xfsprogs 6.1 and btrfs-progs 6.2: their exit codes do not tell.
#[must_use]
pub fn is_busy(done: &Completed) -> bool {
    const WORDS: [&str; 6] = [
        // mke2fs.
        " in use",
        // e2fsck, of a device that is mounted or in use, and of nothing else.
        "cannot continue, aborting",
        // libext2fs, libxfs and btrfs-progs with the words of EBUSY.
        "resource busy",
        // xfs_growfs.
        "in progress already",
        // btrfs, by itself and with the words of its kernel module.
        "another exclusive operation",
        "operation in progress",
    ];
    let said = done.stderr.to_ascii_lowercase();
    !done.success() && WORDS.iter().any(|words| said.contains(words))
}

/// Whether a program says that the name of its device is not there, as for a moment when udev is late.
#[must_use]
pub fn is_gone(done: &Completed) -> bool {
    // mke2fs, which would make a file if it were told a size, and the words of ENOENT.
    const WORDS: [&str; 2] = ["does not exist", "no such file or directory"];
    let said = done.stderr.to_ascii_lowercase();
    !done.success() && WORDS.iter().any(|words| said.contains(words))
}

/// Whether the log has to be replayed by a mount before [`set_uuid`] works.
#[must_use]
pub const fn replay_before_set_uuid(fs: FsType) -> bool {
    match fs {
        // e2fsck has replayed it; btrfs keeps its log, see `superblock::btrfs_with_uuid`.
        FsType::Ext4 | FsType::Btrfs => false,
        FsType::Xfs => true,
    }
}

/// Gives an unmounted filesystem another UUID. `None`: its superblock has to be written.
#[must_use]
pub fn set_uuid(fs: FsType, device: &Path, uuid: Uuid) -> Option<Invocation> {
    let (device, uuid) = (device.to_string_lossy(), uuid.to_string());
    match fs {
        FsType::Ext4 => Some(change(Program::Tune2fs, &["-U", &uuid, &device])),
        FsType::Xfs => Some(change(Program::XfsAdmin, &["-U", &uuid, &device])),
        FsType::Btrfs => None,
    }
}

/// Gives an unmounted XFS a new log: only for one that was proved clean, as what it says is lost.
#[must_use]
pub fn new_xfs_log(device: &Path) -> Invocation {
    change(Program::XfsRepair, &["-L", &device.to_string_lossy()])
}

/// Mends an unmounted XFS whose log is clean; it refuses any other.
#[must_use]
pub fn repair_xfs(device: &Path) -> Invocation {
    change(Program::XfsRepair, &[&device.to_string_lossy()])
}

/// Grows a mounted filesystem to the size of its device.
#[must_use]
pub fn grow(fs: FsType, device: &Path, mounted_at: &Path) -> Invocation {
    let (device, mounted_at) = (device.to_string_lossy(), mounted_at.to_string_lossy());
    match fs {
        FsType::Ext4 => change(Program::Resize2fs, &[&device]),
        FsType::Xfs => change(Program::XfsGrowfs, &["-d", &mounted_at]),
        FsType::Btrfs => change(Program::Btrfs, &["filesystem", "resize", "max", &mounted_at]),
    }
}

/// Asks what is on a device, of the device itself and of nobody's cache.
///
/// blkid says of a name that is not there what it says of a blank device, so it gets no name.
#[must_use]
pub fn probe(device: &Path) -> Invocation {
    let args = ["-p", "-o", "export", STDIN].map(str::to_owned).to_vec();
    let input = Input::File(device.to_owned());
    Invocation { program: Program::Blkid, args, effect: Effect::Read(PROBE_TIMEOUT), input }
}

/// What [`probe`] found.
///
/// # Errors
/// When nothing can be concluded: then the device is *not* blank.
pub fn probe_result(done: &Completed) -> Result<Probe, String> {
    let words = || {
        let lines = done.stdout.lines().filter(|l| !l.is_empty() && !l.starts_with("DEVNAME="));
        lines.collect::<Vec<_>>().join(" ")
    };
    match done.exit {
        Exit::Code(0) => Ok(Probe::Found(words())),
        // blkid(8): 2 is "nothing found" - and, alas, also "cannot be opened" and "cannot be read": hence
        // the open device, and whoever asks has to read it himself as well.
        Exit::Code(2) if done.stdout.is_empty() && done.stderr.is_empty() => Ok(Probe::Nothing),
        // 8 is "ambivalent": more than one signature.
        Exit::Code(8) => Ok(Probe::Found("more than one signature".to_owned())),
        Exit::Code(_) | Exit::Signal(_) => Err(done.complaint()),
    }
}

fn change(program: Program, args: &[&str]) -> Invocation {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Invocation { program, args, effect: Effect::Change, input: Input::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_lists() {
        let (device, at) = (Path::new("/dev/mapper/vg0-pvc--1"), Path::new("/staging"));
        let uuid = Uuid::from_u128(7);
        let mut lines = Vec::new();
        for fs in FsType::ALL {
            lines.push(make(fs, device, uuid).to_string());
            lines.extend(check(fs, device).map(|c| c.to_string()));
            lines.extend(set_uuid(fs, device, uuid).map(|c| c.to_string()));
            lines.push(grow(fs, device, at).to_string());
        }
        lines.push(new_xfs_log(device).to_string());
        lines.push(repair_xfs(device).to_string());
        lines.push(probe(device).to_string());
        insta::assert_snapshot!(lines.join("\n"));
    }

    fn done(code: i32, stdout: &str, stderr: &str) -> Completed {
        Completed { exit: Exit::Code(code), stdout: stdout.into(), stderr: stderr.into() }
    }

    #[test]
    fn blank_only_when_blkid_says_just_that() {
        assert_eq!(probe_result(&done(2, "", "")), Ok(Probe::Nothing));
        let found = probe_result(&done(0, "DEVNAME=/dev/dm-3\nTYPE=ext4\nUSAGE=filesystem\n", ""));
        assert_eq!(found, Ok(Probe::Found("TYPE=ext4 USAGE=filesystem".to_owned())));
        assert!(matches!(probe_result(&done(8, "", "")), Ok(Probe::Found(_))));
        assert!(probe_result(&done(2, "", "blkid: error: /dev/dm-3: No such device")).is_err());
        assert!(probe_result(&done(4, "", "usage")).is_err());
        assert!(probe_result(&Completed { exit: Exit::Signal(9), ..done(0, "", "") }).is_err());
    }

    #[test]
    fn another_that_has_the_device_is_told_from_a_failure() {
        for said in [
            "/dev/mapper/vg0-pvc--1 is apparently in use by the system; will not make a filesystem here!",
            "e2fsck: Cannot continue, aborting.",
            "mkfs.xfs: cannot open /dev/mapper/vg0-pvc--1: Device or resource busy",
            "xfs_growfs: growfs operation in progress already",
            "ERROR: unable to start resize, another exclusive operation 'resize' in progress",
            "ERROR: unable to resize '/mnt': add/delete/balance/replace/resize operation in progress",
        ] {
            assert!(is_busy(&done(1, "", said)), "{said}");
            assert!(!is_busy(&done(0, "", said)), "{said}");
        }
        assert!(!is_busy(&done(1, "", "No space left on device")));
        assert!(!is_busy(&done(4, "", "UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.")));
    }

    #[test]
    fn a_device_whose_name_is_away_is_told_from_a_failure() {
        for said in [
            "The file /dev/mapper/vg0-pvc--1 does not exist and no size was specified.",
            "e2fsck: No such file or directory while trying to open /dev/mapper/vg0-pvc--1",
            "Error accessing specified device /dev/mapper/vg0-pvc--1: No such file or directory",
        ] {
            assert!(is_gone(&done(8, "", said)), "{said}");
            assert!(!is_gone(&done(0, "", said)), "{said}");
        }
        assert!(!is_gone(&done(4, "", "UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.")));
    }

    #[test]
    fn a_corrected_filesystem_is_fine_and_a_broken_one_is_not() {
        for code in 0..=2 {
            assert_eq!(check_result(&done(code, "", "")), Ok(()));
        }
        assert!(check_result(&done(4, "", "UNEXPECTED INCONSISTENCY")).is_err());
    }
}
