//! How a thick LV lies on its disks: the layouts that can be asked for, and what each costs. Pure
//! arithmetic; what a VG has room for is `plan`'s.

use std::fmt;

use crate::units::{Bytes, ExtentSize, Extents};

/// How a thick LV is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThickLayout {
    /// Extents in a row.
    Linear,
    /// Extents of several PVs in turn.
    Striped {
        /// Number of PVs, at least 2.
        stripes: u32,
        /// Bytes on one PV before the next one's turn; a power of two from 4 KiB.
        stripe_size: Bytes,
    },
    /// On several PVs so that some of them may be lost, each leg on a PV of its own (lvmraid(7)).
    Raid {
        /// Which one.
        level: RaidLevel,
        /// Number of legs, those for parity or copies included.
        legs: u32,
        /// Bytes on one PV before the next one's turn. Zero with [`RaidLevel::Raid1`].
        stripe_size: Bytes,
    },
}

/// What keeps the data when a disk is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaidLevel {
    /// Every leg has all of it.
    Raid1,
    /// Stripes, and the parity of each row on one leg more.
    Raid5,
    /// Stripes, and two different parities of each row on two legs more.
    Raid6,
    /// Stripes, and each of them twice.
    Raid10,
}

/// dm-raid's bitmap has a bit for each region; LVM's default (lvm.conf(5), `raid_region_size`).
const REGION_MIN: Bytes = Bytes::mib(2);
/// More regions than this, and each is made larger: dm-raid takes 2^21 at the most.
const REGIONS_MAX: u64 = 1 << 20;
/// dm-raid's own superblock and the bitmap's, in front of the bitmap (lvm2, `raid_rmeta_extents`).
const SUPERBLOCKS: u64 = 2 * 4096;

impl RaidLevel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raid1, Self::Raid5, Self::Raid6, Self::Raid10];

    /// LVM's name, which is that of the StorageClass parameter too.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raid1 => "raid1",
            Self::Raid5 => "raid5",
            Self::Raid6 => "raid6",
            Self::Raid10 => "raid10",
        }
    }

    /// By LVM's name of the segment type. Only LVM's default order of parity is known.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "raid5_ls" => Some(Self::Raid5),
            "raid6_zr" => Some(Self::Raid6),
            _ => Self::ALL.into_iter().find(|level| level.as_str() == text),
        }
    }

    /// How many legs there are for so many that hold data.
    #[must_use]
    pub const fn legs(self, data: u32) -> u32 {
        match self {
            Self::Raid1 => data,
            Self::Raid5 => data.saturating_add(1),
            Self::Raid6 => data.saturating_add(2),
            Self::Raid10 => data.saturating_mul(2),
        }
    }
}

impl ThickLayout {
    /// On how many PVs it lies at least.
    #[must_use]
    pub const fn legs(&self) -> u32 {
        match self {
            Self::Linear => 1,
            Self::Striped { stripes, .. } => *stripes,
            Self::Raid { legs, .. } => *legs,
        }
    }

    /// How many of its legs hold data of their own. An LV of this layout is a multiple of so many
    /// extents.
    #[must_use]
    pub const fn data_legs(&self) -> u32 {
        match self {
            Self::Linear => 1,
            Self::Striped { stripes, .. } => *stripes,
            Self::Raid { level, legs, .. } => match level {
                RaidLevel::Raid1 => 1,
                RaidLevel::Raid5 => legs.saturating_sub(1),
                RaidLevel::Raid6 => legs.saturating_sub(2),
                RaidLevel::Raid10 => *legs / 2,
            },
        }
    }

    /// Bytes on one PV before the next one's turn, where it has turns.
    #[must_use]
    pub fn stripe_size(&self) -> Option<Bytes> {
        match self {
            Self::Linear => None,
            Self::Striped { stripe_size, .. } | Self::Raid { stripe_size, .. } => {
                Some(*stripe_size).filter(|size| !size.is_zero())
            }
        }
    }

    /// What `lvcreate` is told for an LV of this size.
    #[must_use]
    pub fn options(&self, size: Bytes) -> Vec<String> {
        let mut options = Vec::new();
        let mut option = |key: &str, value: String| options.extend([key.to_owned(), value]);
        match self {
            Self::Linear => option("--type", "linear".to_owned()),
            Self::Striped { stripes, .. } => {
                option("--type", "striped".to_owned());
                option("--stripes", stripes.to_string());
            }
            Self::Raid { level, legs, .. } => {
                option("--type", level.as_str().to_owned());
                match level {
                    RaidLevel::Raid1 => option("--mirrors", legs.saturating_sub(1).to_string()),
                    RaidLevel::Raid5 | RaidLevel::Raid6 | RaidLevel::Raid10 => {
                        option("--stripes", self.data_legs().to_string());
                    }
                }
                if *level == RaidLevel::Raid10 {
                    option("--mirrors", "1".to_owned());
                }
                option("--regionsize", format!("{}b", region_size(size).get()));
            }
        }
        if let Some(size) = self.stripe_size() {
            option("--stripesize", format!("{}b", size.get()));
        }
        options
    }

    /// Whether it survives the loss of a disk.
    #[must_use]
    pub const fn is_raid(&self) -> bool {
        matches!(self, Self::Raid { .. })
    }

    /// How many legs may be lost.
    #[must_use]
    pub const fn spare_legs(&self) -> u32 {
        match self {
            Self::Linear | Self::Striped { .. } => 0,
            Self::Raid { level, legs, .. } => match level {
                RaidLevel::Raid1 => legs.saturating_sub(1),
                RaidLevel::Raid5 | RaidLevel::Raid10 => 1,
                RaidLevel::Raid6 => 2,
            },
        }
    }

    /// What each leg takes for an LV of so many extents, without LVM's own.
    #[must_use]
    pub fn leg_extents(&self, extents: Extents) -> Extents {
        let data = u64::from(self.data_legs()).max(1);
        Extents::new(extents.get().div_ceil(data))
    }
}

impl fmt::Display for ThickLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear => f.write_str("linear"),
            Self::Striped { stripes, stripe_size } => {
                write!(f, "striped over {stripes} disks by {stripe_size}")
            }
            Self::Raid { level, legs, .. } => write!(f, "{} on {legs} disks", level.as_str()),
        }
    }
}

/// The size of the regions of a RAID LV of this size: a power of two.
#[must_use]
pub fn region_size(size: Bytes) -> Bytes {
    let least = size.get().div_ceil(REGIONS_MAX).max(1);
    Bytes::new(least.checked_next_power_of_two().unwrap_or(1 << 63)).max(REGION_MIN)
}

/// What LVM takes on each leg for its own: superblocks and bitmap (lvm2, `raid_rmeta_extents`).
#[must_use]
pub fn metadata_extents(extent: ExtentSize, size: Bytes) -> Extents {
    let regions = size.get().checked_div(region_size(size).get()).unwrap_or_default();
    let bytes = Bytes::new(SUPERBLOCKS.saturating_add(regions.div_ceil(8)));
    extent.extents_ceil(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raid(level: RaidLevel, data: u32) -> ThickLayout {
        ThickLayout::Raid { level, legs: level.legs(data), stripe_size: Bytes::kib(64) }
    }

    #[test]
    fn legs_and_what_they_hold() {
        for (layout, legs, data, spare, each) in [
            (ThickLayout::Linear, 1, 1, 0, 12),
            (ThickLayout::Striped { stripes: 3, stripe_size: Bytes::kib(64) }, 3, 3, 0, 4),
            (
                ThickLayout::Raid { level: RaidLevel::Raid1, legs: 3, stripe_size: Bytes::ZERO },
                3,
                1,
                2,
                12,
            ),
            (raid(RaidLevel::Raid5, 2), 3, 2, 1, 6),
            (raid(RaidLevel::Raid6, 3), 5, 3, 2, 4),
            (raid(RaidLevel::Raid10, 2), 4, 2, 1, 6),
        ] {
            assert_eq!(
                (layout.legs(), layout.data_legs(), layout.spare_legs()),
                (legs, data, spare)
            );
            assert_eq!(layout.leg_extents(Extents::new(12)).get(), each, "{layout}");
        }
        for level in RaidLevel::ALL {
            assert_eq!(RaidLevel::parse(level.as_str()), Some(level));
        }
        assert_eq!(RaidLevel::parse("raid4"), None);
    }

    #[test]
    fn metadata_of_legs() {
        let extent = |bytes| ExtentSize::new(bytes).unwrap();
        assert_eq!(region_size(Bytes::gib(1)), Bytes::mib(2));
        assert_eq!(region_size(Bytes::gib(16 << 10)), Bytes::mib(16));
        for size in [Bytes::mib(1), Bytes::gib(100), Bytes::gib(1 << 20)] {
            assert_eq!(metadata_extents(extent(4 << 20), size).get(), 1, "{size}");
        }
        assert_eq!(metadata_extents(extent(4096), Bytes::gib(1)).get(), 3);
    }
}
