//! What a node is made of, and what is refused before anything starts. Nothing here touches a file.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::netns;

/// Bytes of a mebibyte.
pub const MIB: u64 = 1 << 20;

/// Bytes of a gibibyte.
pub const GIB: u64 = 1 << 30;

/// User-Mode Linux takes eight disks by letter; `a` stays free and `b` is the system disk.
pub(super) const MAX_DATA_DISKS: usize = 6;

/// Below this, udev and LVM together run out of memory.
const MIN_MEMORY_MIB: u32 = 192;

/// What a node is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Name and host name: lower-case letters, digits and dashes, 32 at most.
    pub name: String,
    /// 1 to [`netns::MAX_INDEX`]; decides addresses and tap, so unique in a lab.
    pub index: u8,
    /// Memory in MiB, 192 at least.
    pub memory_mib: u32,
    /// Size of the system disk in bytes; the file is sparse.
    pub system_disk: u64,
    /// Sizes of the data disks in bytes, six at most; the files are sparse. Disk 1 is `/dev/ubdc` and
    /// `/dev/disk/by-id/lab-disk1` in the guest.
    pub disks: Vec<u64>,
    /// Host folders that appear live and writable in the guest at the same path, besides the lab's.
    /// All other files of the host are below an overlay: once the guest has looked at a path there,
    /// it may not see what the host changes at it (or creates, if there was nothing) until it boots
    /// anew. Name here what changes, such as cargo's target folder.
    pub shares: Vec<PathBuf>,
    /// Whether it boots the lab's own kernel (see [`crate::kernel`]) instead of Debian's.
    #[serde(default)]
    pub own_kernel: bool,
}

impl NodeSpec {
    /// `node<index>` with 1024 MiB of memory, a system disk of 8 GiB and no data disk.
    #[must_use]
    pub fn new(index: u8) -> Self {
        Self {
            name: format!("node{index}"),
            index,
            memory_mib: 1024,
            system_disk: 8 * GIB,
            disks: Vec::new(),
            shares: Vec::new(),
            own_kernel: false,
        }
    }

    /// Another name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The lab's own kernel instead of Debian's.
    #[must_use]
    pub fn own_kernel(mut self) -> Self {
        self.own_kernel = true;
        self
    }

    /// Another amount of memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// One more data disk, of this many bytes.
    #[must_use]
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disks.push(bytes);
        self
    }

    /// One more host folder that appears live and writable in the guest.
    #[must_use]
    pub fn share(mut self, folder: impl Into<PathBuf>) -> Self {
        self.shares.push(folder.into());
        self
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// One sentence about the first thing that is wrong.
    pub fn validate(&self) -> Result<()> {
        check_name("node", &self.name)?;
        let name = &self.name;
        ensure!(
            (1..=netns::MAX_INDEX).contains(&self.index),
            "node {name}: index {} is out of range, take 1 to {}",
            self.index,
            netns::MAX_INDEX
        );
        ensure!(
            self.memory_mib >= MIN_MEMORY_MIB,
            "node {name}: {} MiB of memory are too few, take {MIN_MEMORY_MIB} or more",
            self.memory_mib
        );
        ensure!(
            self.system_disk >= 256 * MIB,
            "node {name}: the system disk has {} bytes, take 256 MiB or more",
            self.system_disk
        );
        ensure!(
            self.disks.len() <= MAX_DATA_DISKS,
            "node {name}: {} data disks, but {MAX_DATA_DISKS} is the most a VM takes",
            self.disks.len()
        );
        for (number, size) in self.disks.iter().enumerate().map(|(at, size)| (at + 1, size)) {
            ensure!(
                *size >= MIB && size % 512 == 0,
                "node {name}: disk {number} has {size} bytes, take 1 MiB or more in sectors of 512"
            );
        }
        for share in &self.shares {
            ensure!(
                share.is_absolute() && share.is_dir(),
                "node {name}: the share {} must be an existing folder with an absolute path",
                share.display()
            );
        }
        Ok(())
    }
}

/// Names become file, host, and namespace names.
pub(crate) fn check_name(what: &str, name: &str) -> Result<()> {
    let good = |character: char| matches!(character, 'a'..='z' | '0'..='9' | '-');
    ensure!(
        !name.is_empty()
            && name.len() <= 32
            && name.chars().all(good)
            && !name.starts_with('-')
            && !name.ends_with('-'),
        "{name:?} is no name for a {what}: use lower-case letters, digits and inner dashes, at most 32"
    );
    Ok(())
}

/// The kernel's command line splits at spaces and a disk's word at commas and colons.
pub(crate) fn check_path(dir: &Path) -> Result<()> {
    let good = |character: char| {
        character.is_alphanumeric() || matches!(character, '/' | '.' | '_' | '-' | '+' | '@' | '~')
    };
    ensure!(
        dir.is_absolute() && dir.to_str().is_some_and(|text| text.chars().all(good)),
        "the lab's directory {} does not fit on a kernel's command line: put it where the absolute \
         path has only letters, digits and / . _ - + @ ~",
        dir.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_specs_pass() {
        NodeSpec::new(1).validate().unwrap();
        let all = NodeSpec::new(2).name("a-1").memory_mib(512).disk(4 * GIB).disk(MIB).share("/");
        all.validate().unwrap();
        assert_eq!((all.disks.len(), all.name.as_str()), (2, "a-1"));
    }

    #[test]
    fn bad_specs_are_explained() {
        let many = (0..7).fold(NodeSpec::new(1), |spec, _| spec.disk(GIB));
        for (spec, word) in [
            (NodeSpec::new(0), "index 0"),
            (NodeSpec::new(245), "index 245"),
            (NodeSpec::new(1).name("A"), "no name for a node"),
            (NodeSpec::new(1).memory_mib(64), "64 MiB"),
            (NodeSpec::new(1).disk(1), "disk 1 has 1 bytes"),
            (NodeSpec::new(1).disk(GIB).disk(GIB + 1), "disk 2"),
            (many, "7 data disks"),
            (NodeSpec::new(1).share("relative"), "absolute path"),
        ] {
            let error = spec.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn names_and_paths() {
        for bad in ["", "-a", "a-", "a b", "a/b", "a_b", &"x".repeat(33)] {
            assert!(check_name("lab", bad).is_err(), "{bad:?}");
        }
        check_path(Path::new("/home/me/git-1/.lab/dev")).unwrap();
        for bad in ["relative", "/with space", "/a,b", "/a:b", "/a=b"] {
            assert!(check_path(Path::new(bad)).is_err(), "{bad:?}");
        }
    }
}
