//! How full a copy-on-write snapshot is, as the kernel's status line says (dm-snap.c).

use crate::units::Bytes;

const SECTOR: u64 = 512;

/// What the kernel says of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CowStatus {
    /// It can be read.
    Valid {
        /// Room in use, the kernel's own lists included.
        used: Bytes,
        /// All the room there is.
        total: Bytes,
    },
    /// Its room ran out, or it could not be written to: what it showed is lost.
    Lost,
}

impl CowStatus {
    /// Reads the status line of a target of type `snapshot`. `None` when it makes no sense.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        if ["Invalid", "Overflow", "Merge"].contains(&first) {
            return Some(Self::Lost);
        }
        let (used, total) = first.split_once('/')?;
        let bytes =
            |sectors: &str| sectors.parse().ok().map(|n: u64| Bytes::new(n.saturating_mul(SECTOR)));
        Some(Self::Valid { used: bytes(used)?, total: bytes(total)? })
    }

    /// How much of its room is in use, in hundredths of a percent; all of it when it is lost.
    #[must_use]
    pub fn used_bp(self) -> u32 {
        match self {
            Self::Lost => 10_000,
            Self::Valid { used, total } => {
                let bp = used.get().saturating_mul(10_000).checked_div(total.get());
                u32::try_from(bp.unwrap_or_default()).unwrap_or(10_000)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        let valid = CowStatus::Valid { used: Bytes::kib(192), total: Bytes::mib(204) };
        assert_eq!(CowStatus::parse("384/417792 256"), Some(valid));
        assert_eq!((valid.used_bp(), CowStatus::Lost.used_bp()), (9, 10_000));
        for lost in ["Invalid", "Overflow", "Merge failed"] {
            assert_eq!(CowStatus::parse(lost), Some(CowStatus::Lost));
        }
        for odd in ["", "Unknown", "384", "a/b c"] {
            assert_eq!(CowStatus::parse(odd), None);
        }
    }
}
