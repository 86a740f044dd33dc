//! Mounting: options as Kubernetes gives them become flags of mount(2) and data for the
//! filesystem; what is mounted already is for `mountinfo` to tell.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::bind;
use crate::lvm::tag::FsType;

/// What to mount where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountCall {
    /// A filesystem from its device.
    Device {
        /// Device node.
        device: PathBuf,
        /// Where.
        target: PathBuf,
        /// Its type.
        fs: FsType,
        /// Options as in fstab(5).
        options: Vec<String>,
    },
    /// What is seen at one place, a second time at another.
    Bind {
        /// What.
        source: PathBuf,
        /// Where.
        target: PathBuf,
        /// Options of the mount point: `ro`, `noexec`, ...; those of the filesystem do not count.
        options: Vec<String>,
    },
}

/// Options as mount(2) takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Flags of the mount point, and of any filesystem.
    pub flags: MountFlags,
    /// What only this filesystem knows, separated by commas.
    pub data: String,
}

impl Options {
    /// From a list as in fstab(5); of contradicting ones the last counts.
    #[must_use]
    pub fn parse<'a>(list: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut flags, mut data) = (MountFlags::empty(), Vec::new());
        for option in list {
            let (flag, on) = match option {
                "ro" => (MountFlags::RDONLY, true),
                "rw" => (MountFlags::RDONLY, false),
                "nosuid" => (MountFlags::NOSUID, true),
                "suid" => (MountFlags::NOSUID, false),
                "nodev" => (MountFlags::NODEV, true),
                "dev" => (MountFlags::NODEV, false),
                "noexec" => (MountFlags::NOEXEC, true),
                "exec" => (MountFlags::NOEXEC, false),
                "sync" => (MountFlags::SYNCHRONOUS, true),
                "async" => (MountFlags::SYNCHRONOUS, false),
                "dirsync" => (MountFlags::DIRSYNC, true),
                "noatime" => (MountFlags::NOATIME, true),
                "atime" => (MountFlags::NOATIME, false),
                "nodiratime" => (MountFlags::NODIRATIME, true),
                "diratime" => (MountFlags::NODIRATIME, false),
                "relatime" => (MountFlags::RELATIME, true),
                "strictatime" => (MountFlags::STRICTATIME, true),
                "lazytime" => (MountFlags::LAZYTIME, true),
                "silent" => (MountFlags::SILENT, true),
                // fstab's words for mount(8), not for the kernel.
                "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "" => continue,
                other => {
                    data.push(other);
                    continue;
                }
            };
            flags.set(flag, on);
        }
        Self { flags, data: data.join(",") }
    }
}

/// Mounts.
///
/// # Errors
/// What mount(2) says. A bind whose options could not be set is taken back.
pub fn mount(call: &MountCall) -> io::Result<()> {
    match call {
        MountCall::Device { device, target, fs, options } => {
            let options = Options::parse(options.iter().map(String::as_str));
            let data = CString::new(options.data).map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidInput, "a mount option holds a zero byte")
            })?;
            let data = Some(data.as_c_str()).filter(|d| !d.is_empty());
            Ok(rustix::mount::mount(device, target, fs.as_str(), options.flags, data)?)
        }
        MountCall::Bind { source, target, options } => {
            let flags = of_mount_point(options);
            if flags.is_empty() {
                return Ok(rustix::mount::mount_bind(source, target)?);
            }
            match bind::bind(source, target, flags) {
                Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {
                    bind_in_two_steps(source, target, flags)
                }
                done => done,
            }
        }
    }
}

/// The flags of a bind: those of the filesystem do not count.
fn of_mount_point(options: &[String]) -> MountFlags {
    let flags = Options::parse(options.iter().map(String::as_str)).flags;
    flags.difference(
        MountFlags::SILENT | MountFlags::LAZYTIME | MountFlags::DIRSYNC | MountFlags::SYNCHRONOUS,
    )
}

/// As kernels before Linux 5.12 can: the call that makes a bind knows no options.
fn bind_in_two_steps(source: &Path, target: &Path, flags: MountFlags) -> io::Result<()> {
    rustix::mount::mount_bind(source, target)?;
    let given = rustix::mount::mount_remount(target, flags | MountFlags::BIND, c"");
    Ok(given.inspect_err(|_| {
        if let Err(error) = unmount(target) {
            tracing::warn!(target = %target.display(), %error, "cannot take back a mount");
        }
    })?)
}

/// Unmounts what is seen at a place. Never lazily, never by force: who still uses it must be seen.
///
/// # Errors
/// What umount2(2) says; `EBUSY` when it is in use.
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)?)
}

/// Whether a filesystem has any file but `lost+found`. It is mounted, read-only and its log replayed, at
/// no place that anybody sees: when this process ends, it is not mounted any more. `None`: what is there
/// is no whole filesystem, as when its making was cut.
///
/// # Errors
/// When it cannot be mounted for another reason, or be read.
pub fn has_files(device: &Path, fs: FsType) -> io::Result<Option<bool>> {
    let making = fsopen(fs.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&making, "source", device)?;
    fsconfig_set_flag(&making, "ro")?;
    if fs == FsType::Xfs {
        // Another one with this UUID, of a disk's copy, says nothing about this one.
        fsconfig_set_flag(&making, "nouuid")?;
    }
    if let Err(errno) = fsconfig_create(&making) {
        let is_half_made = [Errno::INVAL, Errno::UCLEAN, Errno::BADMSG, Errno::IO].contains(&errno);
        tracing::info!(device = %device.display(), %fs, %errno, is_half_made, "no filesystem to look into");
        return if is_half_made { Ok(None) } else { Err(errno.into()) };
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = fsmount(&making, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let root = openat(&mount, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(root)? {
        let entry = entry?;
        if ![&b"."[..], b"..", b"lost+found"].contains(&entry.file_name().to_bytes()) {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() {
        let parse = |text: &str| Options::parse(text.split(','));
        let options = parse("defaults,noatime,discard,ro,commit=5,nosuid");
        let flags = MountFlags::NOATIME | MountFlags::RDONLY | MountFlags::NOSUID;
        assert_eq!(options, Options { flags, data: "discard,commit=5".to_owned() });
        assert_eq!(parse("ro,rw").flags, MountFlags::empty());
        assert_eq!(parse("").data, "");
    }
}
