//! A bind mount that has its options from its first moment. What is mounted where is for `mount` to know.

#![allow(unsafe_code, reason = "rustix has no mount_setattr(2)")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// Attributes of a mount point that `mount_setattr(2)` changes, as `struct mount_attr` of linux/mount.h has them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// How a time of access is kept is one of four ways, and so is cleared before it is set.
const ATIME: u64 = 0x70;

/// Flags of mount(2), and the attributes that they are.
const FLAGS: [(MountFlags, u64); 5] = [
    (MountFlags::RDONLY, 0x1),
    (MountFlags::NOSUID, 0x2),
    (MountFlags::NODEV, 0x4),
    (MountFlags::NOEXEC, 0x8),
    (MountFlags::NODIRATIME, 0x80),
];

/// The same, for the time of access.
const TIMES: [(MountFlags, u64); 3] =
    [(MountFlags::RELATIME, 0), (MountFlags::NOATIME, 0x10), (MountFlags::STRICTATIME, 0x20)];

impl Attributes {
    /// What these flags add to what the mount has already.
    fn of(flags: MountFlags) -> Self {
        let mut them = Self::default();
        for (flag, attribute) in FLAGS {
            if flags.contains(flag) {
                them.set |= attribute;
            }
        }
        for (flag, attribute) in TIMES {
            if flags.contains(flag) {
                them.set = them.set & !ATIME | attribute;
                them.clear = ATIME;
            }
        }
        them
    }
}

/// Binds what is seen at `source` to `target` with these flags besides those that it has. Nobody ever sees it there
/// without them, and neither does a mount namespace that it propagates to: a remount would reach this one alone.
///
/// # Errors
/// What `open_tree(2)`, `mount_setattr(2)` and `move_mount(2)` say; `ENOSYS` before Linux 5.12. Nothing is mounted then.
pub(super) fn bind(source: &Path, target: &Path, flags: MountFlags) -> io::Result<()> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree: OwnedFd = open_tree(CWD, source, clone)?;
    set(&tree, Attributes::of(flags))?;
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

fn set(tree: impl AsFd, attributes: Attributes) -> io::Result<()> {
    let (tree, size) = (tree.as_fd().as_raw_fd(), size_of::<Attributes>());
    // SAFETY: The path is an empty C string, and `attributes` lives until the call returns, is laid out as the
    // kernel has it, and is of the size that the kernel is told; both are only read. `tree` is open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_attributes() {
        let of = |flags| {
            let them = Attributes::of(flags);
            (them.set, them.clear)
        };
        assert_eq!(of(MountFlags::empty()), (0, 0));
        assert_eq!(of(MountFlags::RDONLY | MountFlags::NOEXEC), (0x9, 0));
        assert_eq!(of(MountFlags::NOATIME | MountFlags::NODIRATIME), (0x90, ATIME));
        assert_eq!(of(MountFlags::RELATIME), (0, ATIME));
        // The kernel refuses two of them.
        assert_eq!(of(MountFlags::NOATIME | MountFlags::STRICTATIME), (0x20, ATIME));
        assert_eq!(of(MountFlags::LAZYTIME), (0, 0));
    }
}
