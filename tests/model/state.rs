//! The model: what there is, as far as a client can know it. Sizes are in MiB.

use std::collections::{BTreeMap, BTreeSet};

use crate::class::Class;
use crate::script::{Access, From, Key};

/// What was not yet done to a new volume before its first use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pending {
    Fresh,
    Restored,
    Nothing,
}

/// How far a volume is that is being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// Its content is being copied, whoever asks for it.
    Copying,
    /// Somebody has to ask for it again.
    Cut,
}

/// What is in a volume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes {
    pub data: String,
    pub fs: Option<Access>,
    /// What opens it, if it is encrypted and was ever used.
    pub opens: Option<Key>,
    pub pending: Pending,
    /// Thin, with the free blocks of a thick filesystem.
    pub hides: bool,
    /// A deletion was begun: nothing is known of what it holds.
    pub ruined: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Volume {
    pub class: u8,
    pub size: u64,
    pub from: From,
    pub half: Option<Half>,
    pub bytes: Bytes,
    /// What is mounted at its staging path.
    pub staged: Option<Access>,
    /// Whether its decrypted device is there.
    pub open: bool,
    /// Whether its device is there for sure.
    pub active: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Snapshot {
    pub of: u8,
    /// The volume that it was taken of is gone, also when there is another one of its name.
    pub orphan: bool,
    /// Its deletion was cut after it ceased to be one: it is listed no more, and has its name still.
    pub split: bool,
    pub class: u8,
    pub size: u64,
    pub bytes: Bytes,
}

/// What a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub v: u8,
    pub block: bool,
    pub read_only: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    pub volumes: BTreeMap<u8, Volume>,
    pub snapshots: BTreeMap<u8, Snapshot>,
    pub places: BTreeMap<u8, Place>,
    /// Places where a call that was cut may have left a directory or a file.
    pub dirty: BTreeSet<u8>,
}

impl Volume {
    pub fn class(&self) -> &'static Class {
        Class::of(self.class)
    }

    pub fn hides(&self) -> bool {
        self.bytes.hides || self.class().hides()
    }
}

impl Snapshot {
    pub fn class(&self) -> &'static Class {
        Class::of(self.class)
    }

    pub fn hides(&self) -> bool {
        self.bytes.hides || self.class().hides()
    }
}

impl State {
    pub fn is_in_use(&self, v: u8) -> bool {
        self.is_published(v) || self.volumes.get(&v).is_some_and(|it| it.staged.is_some())
    }

    pub fn is_published(&self, v: u8) -> bool {
        self.places.values().any(|place| place.v == v)
    }

    /// Whether it has snapshots that cannot be read without it.
    pub fn has_thick_snapshots(&self, v: u8) -> bool {
        let thick = |it: &Snapshot| it.of == v && !it.orphan && !it.split && !it.class().is_thin();
        self.snapshots.values().any(thick)
    }

    /// The machine starts anew.
    pub fn reboot(&mut self) {
        self.dirty.extend(self.places.keys());
        self.places.clear();
        for volume in self.volumes.values_mut() {
            volume.staged = None;
            volume.open = false;
            volume.active = false;
        }
    }
}
