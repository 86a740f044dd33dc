//! What the status line of a `raid` target says: which legs work, and how far they are in step.

/// The state of a RAID LV, from its status line
/// (Documentation/admin-guide/device-mapper/dm-raid.rst).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RaidStatus {
    /// Legs in all.
    pub legs: u32,
    /// Legs that are lost: failed, or their disk is missing.
    pub failed: u32,
    /// Legs that work and are not in step yet.
    pub behind: u32,
    /// How much is in step, and of how much; the unit is the kernel's own.
    pub in_step: (u64, u64),
    /// What it does now, in the kernel's words: `idle`, `resync`, `recover`, `check`, ...
    pub action: String,
}

impl RaidStatus {
    /// How much is in step, while not all is.
    #[must_use]
    pub fn percent_in_step(&self) -> Option<u64> {
        let (done, all) = self.in_step;
        (done < all).then(|| done.saturating_mul(100).checked_div(all).unwrap_or_default())
    }

    /// Reads the line. `None` when it is not such a line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        words.next().filter(|kind| kind.starts_with("raid"))?;
        let legs = words.next()?.parse().ok()?;
        let health = words.next()?;
        let (done, all) = words.next()?.split_once('/')?;
        let count = |what: &[char]| {
            u32::try_from(health.chars().filter(|leg| what.contains(leg)).count()).ok()
        };
        Some(Self {
            legs,
            failed: count(&['D', '-'])?,
            behind: count(&['a'])?,
            in_step: (done.parse().ok()?, all.parse().ok()?),
            action: words.next().unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines() {
        let status = RaidStatus::parse("raid1 2 AA 24576/24576 idle 0 0 -").unwrap();
        assert_eq!((status.legs, status.failed, status.behind), (2, 0, 0));
        let status = RaidStatus::parse("raid5_ls 3 aaa 4096/16384 resync 0 0 -").unwrap();
        assert_eq!((status.failed, status.behind, status.in_step), (0, 3, (4096, 16384)));
        assert_eq!(status.percent_in_step(), Some(25));
        assert_eq!(status.action, "resync");
        let status = RaidStatus::parse("raid6_zr 5 A-DAA 16384/16384 idle 0 0 -").unwrap();
        assert_eq!((status.legs, status.failed), (5, 2));
        for line in ["", "linear", "raid1 2", "raid1 x AA 1/1 idle", "raid1 2 AA 1 idle"] {
            assert_eq!(RaidStatus::parse(line), None, "{line}");
        }
    }
}
