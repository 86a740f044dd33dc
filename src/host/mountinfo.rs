//! The kernel's table of mounts (proc(5), `/proc/[pid]/mountinfo`), read into rows. Pure.

use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number as the kernel shows it. Btrfs has one of its own, not its disk's.
    pub device: (u32, u32),
    /// What of the filesystem is mounted: `/`, or the file or directory that was bound.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// Whether this mount point is read-only.
    pub read_only: bool,
    /// Type of the filesystem.
    pub fs_type: String,
    /// What was mounted, in the words of the mount call: a device's path, `tmpfs`, ...
    pub source: PathBuf,
    /// Options of the filesystem itself.
    pub super_options: Vec<String>,
}

/// All mounts, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// A table of these mounts.
    #[must_use]
    pub const fn new(mounts: Vec<Mount>) -> Self {
        Self(mounts)
    }

    /// Reads the text. Lines that are not understood are left out: the kernel only ever adds
    /// fields in the middle, which are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(parse_line).collect())
    }

    /// The mount that is seen at `target`: the last one made there.
    #[must_use]
    pub fn at(&self, target: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|m| m.target == target)
    }

    /// All mounts.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }
}

fn parse_line(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(2);
    let (major, minor) = front.next()?.split_once(':')?;
    let root = unescape(front.next()?);
    let target = unescape(front.next()?);
    let read_only = front.next()?.split(',').any(|option| option == "ro");
    let mut back = back.split(' ');
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        target,
        read_only,
        fs_type: back.next()?.to_owned(),
        source: unescape(back.next()?),
        super_options: back.next()?.split(',').map(str::to_owned).collect(),
    })
}

/// Blank, tab, newline and backslash stand as octal numbers.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { tail.get(3..).unwrap_or_default() } else { tail };
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\
24 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
31 24 0:5 / /dev rw,nosuid master:2 - devtmpfs udev rw,size=1024k
90 24 253:3 / /var/lib/kubelet/plugins/a\\040b/globalmount rw,noatime shared:5 - ext4 /dev/mapper/vg0-pvc--1 rw,discard
91 24 253:3 / /pods/x/mount ro,noatime shared:5 - ext4 /dev/mapper/vg0-pvc--1 rw,discard
92 24 0:5 /dm-4 /pods/x/dev rw,nosuid shared:2 - devtmpfs udev rw
93 24 0:44 /@ /mnt rw - btrfs /dev/dm-5 rw,subvolid=5
94 24 253:9 / /mnt rw - xfs /dev/dm-9 rw
broken line
";

    #[test]
    fn reads_the_kernels_table() {
        let table = MountTable::parse(TEXT);
        assert_eq!(table.iter().count(), 7);
        let staged = table.at(Path::new("/var/lib/kubelet/plugins/a b/globalmount")).unwrap();
        assert_eq!(staged.device, (253, 3));
        assert_eq!(staged.fs_type, "ext4");
        assert_eq!(staged.source, Path::new("/dev/mapper/vg0-pvc--1"));
        assert_eq!(staged.super_options, ["rw", "discard"]);
        assert!(!staged.read_only);
        assert!(table.at(Path::new("/pods/x/mount")).unwrap().read_only);
        assert_eq!(table.at(Path::new("/pods/x/dev")).unwrap().root, Path::new("/dm-4"));
    }

    #[test]
    fn the_last_mount_hides_the_others() {
        let table = MountTable::parse(TEXT);
        assert_eq!(table.at(Path::new("/mnt")).unwrap().fs_type, "xfs");
        assert_eq!(table.at(Path::new("/nothing")), None);
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "[ -~\n]{0,200}") {
            drop(MountTable::parse(&text));
        }

        #[test]
        fn paths_survive_the_kernels_escaping(path in "/[ -~\\t\\n]{0,40}") {
            let escaped: String = path
                .chars()
                .map(|c| match c {
                    ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", c as u32),
                    c => c.to_string(),
                })
                .collect();
            prop_assert_eq!(unescape(&escaped), PathBuf::from(path));
        }
    }
}
