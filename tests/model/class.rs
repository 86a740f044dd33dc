//! The kinds of volumes: parameters of a StorageClass, and what it is used for.

use crate::script::Access;

/// A kind of volume. Sizes are in MiB.
#[derive(Debug)]
pub struct Class {
    pub parameters: &'static [(&'static str, &'static str)],
    pub access: Access,
}

const THIN: (&str, &str) = ("provisioning", "thin");
const THICK: (&str, &str) = ("provisioning", "thick");
const LUKS: (&str, &str) = ("encryption", "luks");
const RAID1: (&str, &str) = ("layout", "raid1");

/// All kinds. The last is a mistake.
pub static CLASSES: [Class; 15] = [
    Class { parameters: &[THIN], access: Access::Ext4 },
    Class { parameters: &[THIN], access: Access::Xfs },
    Class { parameters: &[THIN], access: Access::Block },
    Class { parameters: &[THICK], access: Access::Ext4 },
    Class { parameters: &[THICK], access: Access::Block },
    Class { parameters: &[THICK, RAID1], access: Access::Ext4 },
    Class { parameters: &[THICK, ("wipe", "zero")], access: Access::Block },
    Class { parameters: &[THIN, LUKS], access: Access::Ext4 },
    Class { parameters: &[THICK, LUKS], access: Access::Block },
    Class { parameters: &[THIN, ("wipe", "discard")], access: Access::Btrfs },
    Class { parameters: &[THICK, ("layout", "striped")], access: Access::Xfs },
    Class { parameters: &[THICK, RAID1], access: Access::Block },
    Class { parameters: &[THICK, LUKS, ("wipe", "zero")], access: Access::Ext4 },
    Class { parameters: &[THICK, ("wipe", "discard")], access: Access::Ext4 },
    Class { parameters: &[("colour", "blue")], access: Access::Ext4 },
];

impl Class {
    pub fn of(number: u8) -> &'static Self {
        &CLASSES[usize::from(number) % CLASSES.len()]
    }

    fn has(&self, parameter: (&str, &str)) -> bool {
        self.parameters.contains(&parameter)
    }

    pub fn is_known(&self) -> bool {
        self.has(THIN) || self.has(THICK)
    }

    pub fn is_thin(&self) -> bool {
        self.has(THIN)
    }

    pub fn is_luks(&self) -> bool {
        self.has(LUKS)
    }

    pub fn is_wiped(&self) -> bool {
        self.parameters.iter().any(|(key, _)| *key == "wipe")
    }

    /// Data goes to so many disks in turn.
    pub fn stripes(&self) -> u64 {
        if self.has(("layout", "striped")) { 2 } else { 1 }
    }

    /// What is before the data, in MiB.
    pub fn header(&self) -> u64 {
        if self.is_luks() { 32 } else { 0 }
    }

    /// A thick volume with a filesystem, whose free blocks hold what was on the disks before.
    pub fn hides(&self) -> bool {
        !self.is_thin() && !self.is_luks() && self.access != Access::Block
    }

    /// A thick volume as a device, which shows all that is in it.
    pub fn shows(&self) -> bool {
        !self.is_thin() && !self.is_luks() && self.access == Access::Block
    }
}
