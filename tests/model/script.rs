//! What the client does: a script of rounds, all of it made from a seed before the first call, so that
//! any part of it can be left out.

use std::collections::{BTreeMap, BTreeSet};

use cinderblock::sim::{Fault, Mode, Random};

use crate::class::{CLASSES, Class};

/// Volumes, snapshots and places that a pod has a volume at; few, so that calls meet.
pub const VOLUMES: u8 = 5;
pub const SNAPSHOTS: u8 = 4;
pub const PLACES: u8 = 4;

/// What a volume is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    Block,
    Ext4,
    Xfs,
    Btrfs,
}

/// What a new volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum From {
    Nothing,
    OfSnapshot(u8),
    OfVolume(u8),
}

/// A Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Missing,
    Master,
    Phrase,
    /// A passphrase, and the master key that it replaces.
    PhraseForMaster,
}

/// One call, or something that happens. Volumes, snapshots and places go by small numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Create {
        v: u8,
        class: u8,
        mib: u64,
        limit: u64,
        from: From,
    },
    Delete {
        v: u8,
    },
    Snapshot {
        s: u8,
        v: u8,
    },
    DeleteSnapshot {
        s: u8,
    },
    Expand {
        v: u8,
        mib: u64,
        limit: u64,
    },
    Stage {
        v: u8,
        access: Access,
        key: Key,
    },
    Unstage {
        v: u8,
    },
    Publish {
        v: u8,
        access: Access,
        at: u8,
        read_only: bool,
    },
    Unpublish {
        v: u8,
        at: u8,
    },
    NodeExpand {
        v: u8,
        at: Option<u8>,
        mib: u64,
    },
    /// A pod writes to what it has there.
    Write {
        at: u8,
    },
    /// The id of a snapshot is taken for that of a volume, and the other way round.
    DeleteWrongKind {
        v: u8,
        s: u8,
    },
    /// The driver ends and starts again.
    Restart,
    /// So does the machine.
    Reboot,
}

/// A call, and after how many milliseconds its caller goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub op: Op,
    pub cancel: Option<u64>,
}

/// Calls at the same time, and what goes wrong meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    pub calls: Vec<Call>,
    pub fault: Option<Fault>,
}

/// The whole run: its rounds, and the number that says how long everything takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub pace: u64,
    pub rounds: Vec<Round>,
}

impl Script {
    /// The script of a seed.
    pub fn random(seed: u64, rounds: usize) -> Self {
        let mut random = Random::new(seed);
        let homes = (0..VOLUMES).map(|_| random.below(CLASSES.len() as u64 - 1) as u8).collect();
        let mut author = Author {
            random,
            homes,
            made: BTreeMap::new(),
            taken: BTreeSet::new(),
            staged: BTreeSet::new(),
            published: BTreeSet::new(),
        };
        let rounds = (0..rounds).map(|_| author.round()).collect();
        Self { pace: seed, rounds }
    }

    /// As Rust, for `regressions.rs`.
    pub fn as_rust(&self) -> String {
        let mut text = format!("replay({}, vec![\n", self.pace);
        for round in &self.rounds {
            let calls: Vec<_> = round.calls.iter().map(|call| format!("{call:?}")).collect();
            text += &format!(
                "    Round {{ calls: vec![{}], fault: {:?} }},\n",
                calls.join(", "),
                round.fault
            );
        }
        text + "]);"
    }
}

/// It remembers what it asked for, and goes by that more often than not: calls that only meet nothing
/// would be most otherwise.
struct Author {
    random: Random,
    /// What each volume mostly is.
    homes: Vec<u8>,
    /// Volumes, each with its class.
    made: BTreeMap<u8, u8>,
    taken: BTreeSet<u8>,
    staged: BTreeSet<u8>,
    published: BTreeSet<(u8, u8)>,
}

impl Author {
    fn round(&mut self) -> Round {
        // A beginning that the rest can work with.
        if self.made.len() < 2 {
            let op = self.create();
            return Round { calls: vec![Call { op, cancel: None }], fault: None };
        }
        let random = &mut self.random;
        let concurrent = random.chance(40);
        let count = if concurrent { 2 + random.below(3) } else { 1 };
        let fault = random.chance(50).then(|| Fault {
            at: [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 6][random.below(12) as usize],
            mode: Mode::ALL[random.below(6) as usize],
        });
        let calls: Vec<_> = (0..count).map(|_| self.call(concurrent)).collect();
        // What happens to the whole machine happens alone.
        let alone = calls.iter().find(|call| matches!(call.op, Op::Restart | Op::Reboot)).copied();
        match alone {
            Some(call) => Round { calls: vec![Call { cancel: None, ..call }], fault: None },
            None => Round { calls, fault },
        }
    }

    fn call(&mut self, concurrent: bool) -> Call {
        let op = self.op();
        let random = &mut self.random;
        let cancel = random.chance(if concurrent { 15 } else { 6 }).then(|| random.below(300));
        Call { op, cancel }
    }

    fn op(&mut self) -> Op {
        match self.random.below(100) {
            0..16 => self.create(),
            16..21 => {
                let v = self.one_of(Self::idle);
                if self.idle().contains(&v) {
                    self.made.remove(&v);
                }
                Op::Delete { v }
            }
            21..30 => {
                let (s, v) = (self.below(SNAPSHOTS), self.one_of(Self::there));
                if self.made.contains_key(&v) {
                    self.taken.insert(s);
                }
                Op::Snapshot { s, v }
            }
            30..33 => {
                let s = self.below(SNAPSHOTS);
                self.taken.remove(&s);
                Op::DeleteSnapshot { s }
            }
            33..40 => {
                let v = self.one_of(Self::there);
                Op::Expand { v, mib: self.size(), limit: self.limit() }
            }
            40..56 => {
                let v = self.one_of(Self::there);
                if self.made.contains_key(&v) {
                    self.staged.insert(v);
                }
                Op::Stage { v, access: self.access(v), key: self.key() }
            }
            56..60 => {
                let v = self.one_of(|it| it.staged.clone());
                self.staged.remove(&v);
                Op::Unstage { v }
            }
            60..75 => {
                let (v, at) = (self.one_of(|it| it.staged.clone()), self.below(PLACES));
                if self.staged.contains(&v) {
                    self.published.insert((v, at));
                }
                Op::Publish { v, access: self.access(v), at, read_only: self.random.chance(15) }
            }
            75..79 => {
                let (v, at) = self.place();
                self.published.remove(&(v, at));
                Op::Unpublish { v, at }
            }
            79..86 => {
                let (v, at) = self.place();
                let mib = if self.random.chance(50) { 0 } else { self.size() };
                Op::NodeExpand { v, at: self.random.chance(50).then_some(at), mib }
            }
            86..97 => Op::Write { at: self.place().1 },
            97 => Op::DeleteWrongKind { v: self.below(VOLUMES), s: self.below(SNAPSHOTS) },
            98 if self.random.chance(50) => Op::Restart,
            _ if self.random.chance(50) => self.create(),
            _ => {
                self.staged.clear();
                self.published.clear();
                Op::Reboot
            }
        }
    }

    fn create(&mut self) -> Op {
        let v = if self.random.chance(60) {
            self.one_of(|it| (0..VOLUMES).filter(|v| !it.made.contains_key(v)).collect())
        } else {
            self.below(VOLUMES)
        };
        let (class, mib, limit, from) = (self.class(v), self.size(), self.limit(), self.from());
        let there = match from {
            From::Nothing => true,
            From::OfSnapshot(s) => self.taken.contains(&s),
            From::OfVolume(v) => self.made.contains_key(&v),
        };
        if there && mib < 10_000 && limit == 0 && Class::of(class).is_known() {
            self.made.entry(v).or_insert(class);
        }
        Op::Create { v, class, mib, limit, from }
    }

    fn below(&mut self, end: u8) -> u8 {
        self.random.below(u64::from(end)) as u8
    }

    /// A volume, mostly one of these.
    fn one_of(&mut self, some: impl Fn(&Self) -> BTreeSet<u8>) -> u8 {
        let some: Vec<u8> = some(self).into_iter().collect();
        if some.is_empty() || self.random.chance(20) {
            return self.below(VOLUMES);
        }
        some[self.random.below(some.len() as u64) as usize]
    }

    fn there(&self) -> BTreeSet<u8> {
        self.made.keys().copied().collect()
    }

    fn idle(&self) -> BTreeSet<u8> {
        let in_use = |v: &u8| {
            self.staged.contains(v) || self.published.iter().any(|(published, _)| published == v)
        };
        self.made.keys().copied().filter(|v| !in_use(v)).collect()
    }

    /// Mostly one where a volume is.
    fn place(&mut self) -> (u8, u8) {
        let some: Vec<(u8, u8)> = self.published.iter().copied().collect();
        if some.is_empty() || self.random.chance(20) {
            return (self.below(VOLUMES), self.below(PLACES));
        }
        some[self.random.below(some.len() as u64) as usize]
    }

    fn class(&mut self, v: u8) -> u8 {
        if self.random.chance(88) {
            return self.homes[usize::from(v)];
        }
        self.random.below(CLASSES.len() as u64) as u8
    }

    fn access(&mut self, v: u8) -> Access {
        if self.random.chance(90) {
            let home = self.homes[usize::from(v)];
            return Class::of(self.made.get(&v).copied().unwrap_or(home)).access;
        }
        [Access::Block, Access::Ext4, Access::Xfs, Access::Btrfs][self.random.below(4) as usize]
    }

    fn size(&mut self) -> u64 {
        [0, 5, 64, 192, 320, 320, 512, 1024, 1025, 2048, 5000, 100_000]
            [self.random.below(12) as usize]
    }

    fn limit(&mut self) -> u64 {
        if self.random.chance(85) { 0 } else { [4, 320, 1024, 2048][self.random.below(4) as usize] }
    }

    fn from(&mut self) -> From {
        let s = usize::from(self.below(SNAPSHOTS));
        match self.random.below(100) {
            0..45 => From::Nothing,
            _ if self.made.is_empty() => From::Nothing,
            45..75 => match self.taken.iter().copied().nth(s) {
                Some(s) => From::OfSnapshot(s),
                None if self.random.chance(20) => From::OfSnapshot(self.below(SNAPSHOTS)),
                None => From::Nothing,
            },
            _ => From::OfVolume(self.one_of(Self::there)),
        }
    }

    fn key(&mut self) -> Key {
        match self.random.below(100) {
            0..80 => Key::Master,
            80..90 => Key::Phrase,
            90..97 => Key::PhraseForMaster,
            _ => Key::Missing,
        }
    }
}
