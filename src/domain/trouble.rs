//! What is wrong with a volume or a backend, as users are told of it: in Kubernetes as events, over
//! CSI as health.

use std::collections::BTreeMap;

use crate::names::{BackendName, Handle};

/// What a trouble is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A volume.
    Volume(Handle),
    /// A backend on a node.
    Backend(BackendName),
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Disks of a RAID volume are lost, or are being rebuilt.
    VolumeDegraded,
    /// A RAID volume is brought in step. Nothing is lost.
    VolumeResyncing,
    /// What a volume lies on is not there.
    VolumeInaccessible,
    /// A filesystem has stopped taking writes, though it was mounted for writing.
    FilesystemReadOnly,
    /// A thick snapshot of a volume ran full: nothing can be restored from it.
    SnapshotLost,
    /// A thick snapshot of a volume should have more room, and cannot.
    SnapshotCannotGrow,
    /// A backend takes no volumes.
    BackendNotReady,
    /// A backend is not as its configuration says.
    BackendSetupFailed,
    /// A disk of a volume group is missing.
    PhysicalVolumeMissing,
    /// Legs of the RAID that a thin pool lies on are lost, or are being rebuilt.
    ThinPoolDegraded,
    /// A thin pool should grow, and cannot.
    ThinPoolCannotGrow,
    /// A thin pool takes nothing new.
    ThinPoolAlmostFull,
    /// A thin pool takes no writes, because it has no room.
    ThinPoolFull,
    /// A thin pool takes no writes, though it has room.
    ThinPoolFailed,
    /// A thin pool will hold writes back when it is full.
    ThinPoolQueuesWhenFull,
    /// LVM does not come to the end of a command.
    LvmHangs,
    /// No object of the cluster knows a volume or snapshot. Found by the controller, not by an agent.
    Orphaned,
}

/// How bad something is for a volume's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// It can be used, and less may go wrong than should.
    Degraded,
    /// It cannot be read or written as it should be.
    Inaccessible,
}

/// A trouble that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What it is and what to do, in a sentence.
    pub sentence: String,
    /// Since when it is known, in seconds since 1970.
    pub since_unix: i64,
}

/// All that is wrong on a node.
pub type Troubles = BTreeMap<(Subject, Reason), Trouble>;

impl Reason {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::VolumeDegraded,
        Self::VolumeResyncing,
        Self::VolumeInaccessible,
        Self::FilesystemReadOnly,
        Self::SnapshotLost,
        Self::SnapshotCannotGrow,
        Self::BackendNotReady,
        Self::BackendSetupFailed,
        Self::PhysicalVolumeMissing,
        Self::ThinPoolDegraded,
        Self::ThinPoolCannotGrow,
        Self::ThinPoolAlmostFull,
        Self::ThinPoolFull,
        Self::ThinPoolFailed,
        Self::ThinPoolQueuesWhenFull,
        Self::LvmHangs,
        Self::Orphaned,
    ];

    /// The reason of the event when it begins.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.words().0
    }

    /// The reason of the event when it is over.
    #[must_use]
    pub const fn mended(self) -> &'static str {
        self.words().1
    }

    /// What the event says when it is over.
    #[must_use]
    pub const fn mended_sentence(self) -> &'static str {
        self.words().2
    }

    const fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::VolumeDegraded => {
                ("VolumeDegraded", "VolumeRepaired", "the volume has all its legs again")
            }
            Self::VolumeResyncing => {
                ("VolumeResyncing", "VolumeInSync", "all legs of the volume are in step")
            }
            Self::VolumeInaccessible => {
                ("VolumeInaccessible", "VolumeAccessible", "the volume's disks are there again")
            }
            Self::FilesystemReadOnly => {
                ("FilesystemReadOnly", "FilesystemWritable", "the filesystem takes writes again")
            }
            Self::SnapshotLost => {
                ("SnapshotLost", "SnapshotLostRemoved", "no snapshot of the volume is lost")
            }
            Self::SnapshotCannotGrow => {
                ("SnapshotCannotGrow", "SnapshotHasRoom", "the volume's snapshots have room")
            }
            Self::BackendNotReady => {
                ("BackendNotReady", "BackendReady", "the backend takes volumes again")
            }
            Self::BackendSetupFailed => {
                ("BackendSetupFailed", "BackendSetUp", "the backend is as it is configured")
            }
            Self::PhysicalVolumeMissing => (
                "PhysicalVolumeMissing",
                "PhysicalVolumesComplete",
                "all disks of the volume group are there",
            ),
            Self::ThinPoolDegraded => {
                ("ThinPoolDegraded", "ThinPoolRepaired", "the thin pool has all its legs again")
            }
            Self::ThinPoolCannotGrow => {
                ("ThinPoolCannotGrow", "ThinPoolCanGrow", "the thin pool need not grow, or has")
            }
            Self::ThinPoolAlmostFull => {
                ("ThinPoolAlmostFull", "ThinPoolHasRoom", "the thin pool takes volumes again")
            }
            Self::ThinPoolFull => {
                ("ThinPoolFull", "ThinPoolTakesWrites", "the thin pool takes writes again")
            }
            Self::ThinPoolFailed => {
                ("ThinPoolFailed", "ThinPoolRecovered", "the thin pool takes writes again")
            }
            Self::ThinPoolQueuesWhenFull => (
                "ThinPoolQueuesWhenFull",
                "ThinPoolFailsWhenFull",
                "the thin pool will fail writes when it is full, and hang nobody",
            ),
            Self::LvmHangs => ("LvmHangs", "LvmAnswers", "LVM is not known to hang any more"),
            Self::Orphaned => (
                "OrphanFound",
                "OrphanGone",
                "it is gone, or an object of the cluster knows it again",
            ),
        }
    }

    /// By the reason of its event.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// Whether somebody should do something about it.
    #[must_use]
    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::VolumeResyncing)
    }

    /// What it means to the user of a volume that it concerns, with the reason as CSI names it.
    /// `None`: nothing.
    #[must_use]
    pub const fn health(self) -> Option<(Grade, &'static str)> {
        Some(match self {
            // Three of them as KEP-1432 has them for LVM.
            Self::VolumeDegraded | Self::ThinPoolDegraded => (Grade::Degraded, "PartialActivation"),
            Self::ThinPoolFull => (Grade::Inaccessible, "ThinPoolOutOfDataSpace"),
            Self::VolumeInaccessible | Self::PhysicalVolumeMissing => {
                (Grade::Inaccessible, "PhysicalVolumeMissing")
            }
            Self::FilesystemReadOnly | Self::ThinPoolFailed => (Grade::Inaccessible, self.as_str()),
            Self::ThinPoolCannotGrow | Self::ThinPoolAlmostFull | Self::ThinPoolQueuesWhenFull => {
                (Grade::Degraded, self.as_str())
            }
            Self::VolumeResyncing
            | Self::SnapshotLost
            | Self::SnapshotCannotGrow
            | Self::BackendNotReady
            | Self::BackendSetupFailed
            | Self::LvmHangs
            | Self::Orphaned => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one behind it: who adds a reason has to put it here, and so into [`Reason::ALL`].
    const fn next(reason: Reason) -> Option<Reason> {
        Some(match reason {
            Reason::VolumeDegraded => Reason::VolumeResyncing,
            Reason::VolumeResyncing => Reason::VolumeInaccessible,
            Reason::VolumeInaccessible => Reason::FilesystemReadOnly,
            Reason::FilesystemReadOnly => Reason::SnapshotLost,
            Reason::SnapshotLost => Reason::SnapshotCannotGrow,
            Reason::SnapshotCannotGrow => Reason::BackendNotReady,
            Reason::BackendNotReady => Reason::BackendSetupFailed,
            Reason::BackendSetupFailed => Reason::PhysicalVolumeMissing,
            Reason::PhysicalVolumeMissing => Reason::ThinPoolDegraded,
            Reason::ThinPoolDegraded => Reason::ThinPoolCannotGrow,
            Reason::ThinPoolCannotGrow => Reason::ThinPoolAlmostFull,
            Reason::ThinPoolAlmostFull => Reason::ThinPoolFull,
            Reason::ThinPoolFull => Reason::ThinPoolFailed,
            Reason::ThinPoolFailed => Reason::ThinPoolQueuesWhenFull,
            Reason::ThinPoolQueuesWhenFull => Reason::LvmHangs,
            Reason::LvmHangs => Reason::Orphaned,
            Reason::Orphaned => return None,
        })
    }

    /// What is not among all is not read from the wire, and told to nobody.
    #[test]
    fn all_are_all() {
        let all = std::iter::successors(Some(Reason::VolumeDegraded), |reason| next(*reason));
        assert_eq!(all.collect::<Vec<_>>(), Reason::ALL);
    }

    #[test]
    fn reasons_are_words_that_differ() {
        let words = Reason::ALL.iter().flat_map(|r| [r.as_str(), r.mended()]);
        let mut words: Vec<_> = words.collect();
        // What Kubernetes takes as a reason.
        assert!(words.iter().all(|w| w.len() <= 128 && w.bytes().all(|c| c.is_ascii_alphabetic())));
        let all = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all);
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(reason));
        }
    }
}
