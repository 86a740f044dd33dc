//! The rules: what a call may be answered when nothing goes wrong and nobody interferes. Written from
//! the documentation, not from the driver.

use tonic::Code;

use crate::class::Class;
use crate::outcome::{Answer, Outcome};
use crate::script::{Access, From, Key, Op};
use crate::state::{Bytes, Half, Pending, Place, Snapshot, State, Volume};

/// What a volume has when nobody says.
const DEFAULT_MIB: u64 = 1024;
const EXTENT_MIB: u64 = 4;

/// All that may be answered to an operation. `data` is what is written, if that is what it does.
pub fn outcomes(state: &State, op: &Op, data: &str) -> Vec<Outcome> {
    match *op {
        Op::Create { v, class, mib, limit, from } => create(state, v, class, (mib, limit), from),
        Op::Delete { v } => delete(state, v),
        Op::Snapshot { s, v } => snapshot(state, s, v),
        Op::DeleteSnapshot { s } => delete_snapshot(state, s),
        Op::Expand { v, mib, limit } => expand(state, v, mib, limit),
        Op::Stage { v, access, key } => stage(state, v, access, key),
        Op::Unstage { v } => unstage(state, v),
        Op::Publish { v, access, at, read_only } => publish(state, v, access, at, read_only),
        Op::Unpublish { at, .. } => {
            let mut next = state.clone();
            next.places.remove(&at);
            next.dirty.remove(&at);
            vec![Outcome::new(Answer::Done, next)]
        }
        Op::NodeExpand { v, at, mib } => node_expand(state, v, at, mib),
        Op::Write { at } => write(state, at, data),
        Op::DeleteWrongKind { v, s } => {
            let there = if wrong_kind_is_snapshot(v) {
                state.snapshots.contains_key(&s)
            } else {
                state.volumes.contains_key(&v)
            };
            if there { refuse(state, Code::FailedPrecondition) } else { done(state.clone()) }
        }
        Op::Restart => done(state.clone()),
        Op::Reboot => {
            let mut next = state.clone();
            next.reboot();
            done(next)
        }
    }
}

/// Of [`Op::DeleteWrongKind`]: whether the snapshot's id is taken for a volume's, or the other way
/// round.
pub const fn wrong_kind_is_snapshot(v: u8) -> bool {
    v.is_multiple_of(2)
}

fn refuse(state: &State, code: Code) -> Vec<Outcome> {
    vec![Outcome::refused(&[code], state.clone())]
}

fn done(next: State) -> Vec<Outcome> {
    vec![Outcome::new(Answer::Done, next)]
}

/// The least that a new filesystem needs.
const fn minimum(access: Access) -> u64 {
    match access {
        Access::Block => 0,
        Access::Ext4 => 8,
        Access::Xfs => 300,
        Access::Btrfs => 128,
    }
}

/// Where a new volume's content comes from.
struct Source<'a> {
    class: &'static Class,
    size: u64,
    hides: bool,
    bytes: &'a Bytes,
}

fn source(state: &State, from: From) -> Option<Source<'_>> {
    match from {
        From::Nothing => None,
        From::OfSnapshot(s) => {
            let it = state.snapshots.get(&s).filter(|it| !it.split)?;
            Some(Source { class: it.class(), size: it.size, hides: it.hides(), bytes: &it.bytes })
        }
        From::OfVolume(v) => {
            let it = state.volumes.get(&v).filter(|it| it.half.is_none())?;
            Some(Source { class: it.class(), size: it.size, hides: it.hides(), bytes: &it.bytes })
        }
    }
}

fn create(state: &State, v: u8, class: u8, range: (u64, u64), from: From) -> Vec<Outcome> {
    let (mib, limit) = range;
    let class_number = class;
    let class = Class::of(class_number);
    if !class.is_known() || (limit > 0 && mib > limit) {
        return refuse(state, Code::InvalidArgument);
    }
    let source = source(state, from);
    let lacks_source = from != From::Nothing && source.is_none();
    if let Some(found) = state.volumes.get(&v) {
        let fits = mib <= found.size && (limit == 0 || found.size <= limit);
        let same = Class::of(found.class).parameters == class.parameters
            && found.class().access == class.access
            && found.from == from;
        return match (same && fits, found.half) {
            (false, _) => refuse(state, Code::AlreadyExists),
            (true, half) => again(state, v, half, lacks_source),
        };
    }
    let half = match from {
        From::Nothing => false,
        From::OfVolume(v) => state.volumes.contains_key(&v),
        From::OfSnapshot(s) => state.snapshots.contains_key(&s),
    };
    if lacks_source && half {
        // It is still being made, or its deletion was begun.
        return refuse(state, Code::Unavailable);
    }
    if lacks_source {
        return refuse(state, Code::NotFound);
    }
    let mut codes = Vec::new();
    let least = source.as_ref().map_or_else(|| minimum(class.access), |it| it.size);
    let wanted = match (mib, limit) {
        (0, 0) => DEFAULT_MIB,
        (0, limit) => DEFAULT_MIB.min(limit),
        (mib, _) => mib,
    };
    let unit = EXTENT_MIB * class.stripes();
    let size = (wanted.max(least) + class.header()).next_multiple_of(unit) - class.header();
    if limit > 0 && size > limit {
        codes.push(Code::OutOfRange);
    }
    if let Some(source) = &source
        && (source.class.is_luks() != class.is_luks()
            || class.access == Access::Block && source.hides)
    {
        codes.push(Code::InvalidArgument);
    }
    if !codes.is_empty() {
        return vec![Outcome::refused(&codes, state.clone())];
    }
    let mut next = state.clone();
    next.volumes.insert(v, new(class_number, size, from, source));
    vec![
        Outcome::new(Answer::Made { size, from }, next),
        Outcome::refused(&[Code::ResourceExhausted], state.clone()),
    ]
}

/// The same request once more.
fn again(state: &State, v: u8, half: Option<Half>, lacks_source: bool) -> Vec<Outcome> {
    let found = &state.volumes[&v];
    let mut next = state.clone();
    if let Some(volume) = next.volumes.get_mut(&v) {
        volume.half = None;
    }
    let answer = Answer::Made { size: found.size, from: found.from };
    let mut all = vec![Outcome::new(answer, next)];
    if half == Some(Half::Copying) {
        all.push(Outcome::refused(&[Code::Unavailable], state.clone()));
        if lacks_source {
            // It went before it was copied.
            let mut next = state.clone();
            next.volumes.remove(&v);
            all.push(Outcome::refused(&[Code::NotFound, Code::Unavailable], next));
        }
    }
    all
}

fn new(class: u8, size: u64, from: From, source: Option<Source<'_>>) -> Volume {
    let blank = Bytes {
        data: String::new(),
        fs: None,
        opens: None,
        pending: Pending::Fresh,
        hides: false,
        ruined: false,
    };
    let bytes = match source {
        None => blank,
        Some(source) if source.bytes.pending == Pending::Fresh => {
            Bytes { hides: Class::of(class).is_thin() && source.hides, ..blank }
        }
        Some(source) => Bytes {
            pending: Pending::Restored,
            hides: Class::of(class).is_thin() && source.hides,
            ..source.bytes.clone()
        },
    };
    Volume { class, size, from, half: None, bytes, staged: None, open: false, active: true }
}

fn delete(state: &State, v: u8) -> Vec<Outcome> {
    if state.is_in_use(v) {
        return refuse(state, Code::FailedPrecondition);
    }
    let mut next = state.clone();
    next.volumes.remove(&v);
    for snapshot in next.snapshots.values_mut().filter(|it| it.of == v) {
        snapshot.orphan = true;
    }
    done(next)
}

fn snapshot(state: &State, s: u8, v: u8) -> Vec<Outcome> {
    if let Some(found) = state.snapshots.get(&s) {
        if found.of != v {
            return refuse(state, Code::AlreadyExists);
        }
        if found.split {
            let mut without = state.clone();
            without.snapshots.remove(&s);
            let mut all = snapshot(&without, s, v);
            // It is removed before anything else is said.
            all.push(Outcome::refused(&[Code::Unavailable], without));
            return all;
        }
        return vec![Outcome::new(Answer::Taken { of: v, size: found.size }, state.clone())];
    }
    let Some(volume) = state.volumes.get(&v) else { return refuse(state, Code::NotFound) };
    if volume.half.is_some() {
        return refuse(state, Code::Unavailable);
    }
    let (size, class) = (volume.size, volume.class);
    let bytes = volume.bytes.clone();
    let mut next = state.clone();
    next.snapshots.insert(s, Snapshot { of: v, orphan: false, split: false, class, size, bytes });
    vec![
        Outcome::new(Answer::Taken { of: v, size }, next),
        Outcome::refused(&[Code::ResourceExhausted], state.clone()),
    ]
}

fn delete_snapshot(state: &State, s: u8) -> Vec<Outcome> {
    let mut next = state.clone();
    next.snapshots.remove(&s);
    let mut all = done(next);
    let copying = |it: &Volume| it.half == Some(Half::Copying) && it.from == From::OfSnapshot(s);
    if state.volumes.values().any(copying) {
        all.extend(refuse(state, Code::FailedPrecondition));
    }
    all
}

fn expand(state: &State, v: u8, mib: u64, limit: u64) -> Vec<Outcome> {
    if limit > 0 && mib > limit {
        return refuse(state, Code::InvalidArgument);
    }
    let Some(volume) = state.volumes.get(&v) else { return refuse(state, Code::NotFound) };
    if volume.half.is_some() {
        return refuse(state, Code::Unavailable);
    }
    let class = volume.class();
    let unit = EXTENT_MIB * class.stripes();
    let size = ((mib + class.header()).next_multiple_of(unit) - class.header()).max(volume.size);
    let mut codes = Vec::new();
    if limit > 0 && size > limit {
        codes.push(Code::OutOfRange);
    }
    if size > volume.size && state.has_thick_snapshots(v) {
        codes.push(Code::FailedPrecondition);
    }
    if !codes.is_empty() {
        return vec![Outcome::refused(&codes, state.clone())];
    }
    let mut next = state.clone();
    if let Some(volume) = next.volumes.get_mut(&v) {
        volume.size = size;
    }
    let mut all = vec![Outcome::new(Answer::Has { size }, next)];
    if size > volume.size {
        // There is no room.
        all.extend(refuse(state, Code::OutOfRange));
    }
    all
}

/// The key that a Secret gives a volume, and the one that it replaces.
pub const fn keys(key: Key) -> (Key, Option<Key>) {
    match key {
        Key::PhraseForMaster => (Key::Phrase, Some(Key::Master)),
        other => (other, None),
    }
}

/// Opens an encrypted volume. What there is then, or why not.
pub fn open(volume: &Volume, key: Key) -> Result<Volume, Code> {
    let mut next = volume.clone();
    next.active = true;
    if !volume.class().is_luks() {
        return Ok(next);
    }
    if volume.open && volume.bytes.pending == Pending::Nothing {
        return Ok(next);
    }
    if key == Key::Missing {
        return Err(Code::InvalidArgument);
    }
    let (own, previous) = keys(key);
    let opens = volume.bytes.opens;
    let fits = opens == Some(own) || previous.is_some() && opens == previous;
    if volume.bytes.pending != Pending::Fresh && !fits {
        return Err(Code::FailedPrecondition);
    }
    next.open = true;
    next.bytes.opens = Some(own);
    Ok(next)
}

/// Whether an earlier try, which was cut, may have encrypted the volume for another key, and proved that.
fn was_proved(volume: &Volume, key: Key) -> bool {
    let (own, previous) = keys(key);
    let other = |opens: Key| opens != own && Some(opens) != previous;
    volume.class().is_luks()
        && volume.bytes.pending == Pending::Fresh
        && volume.bytes.opens.is_some_and(other)
}

fn stage(state: &State, v: u8, access: Access, key: Key) -> Vec<Outcome> {
    let Some(volume) = state.volumes.get(&v) else { return refuse(state, Code::NotFound) };
    if volume.half.is_some() {
        return refuse(state, Code::Unavailable);
    }
    if volume.bytes.ruined {
        return ruined(state);
    }
    let with = |volume: Volume| {
        let mut next = state.clone();
        next.volumes.insert(v, volume);
        next
    };
    let mut now = match open(volume, key) {
        Ok(now) => now,
        Err(code) => return refuse(state, code),
    };
    if was_proved(volume, key) {
        let mut outcomes = refuse(state, Code::FailedPrecondition);
        let mut blank = state.clone();
        if let Some(volume) = blank.volumes.get_mut(&v) {
            volume.bytes.opens = None;
        }
        outcomes.extend(stage(&blank, v, access, key));
        return outcomes;
    }
    let refused = |code, now: &Volume| vec![Outcome::refused(&[code], with(now.clone()))];
    if access == Access::Block {
        if now.hides() {
            return refused(Code::FailedPrecondition, &now);
        }
        now.bytes.pending = Pending::Nothing;
        return done(with(now));
    }
    match (now.staged, now.bytes.pending, now.bytes.fs) {
        (Some(mounted), ..) if mounted == access => {}
        (Some(_), ..) => return refused(Code::AlreadyExists, &now),
        (None, Pending::Fresh, _) if now.size < minimum(access) => {
            return refused(Code::Internal, &now);
        }
        (None, Pending::Fresh, _) => now.bytes.fs = Some(access),
        (None, _, None) => return refused(Code::Internal, &now),
        (None, _, Some(fs)) if fs != access => return refused(Code::FailedPrecondition, &now),
        (None, ..) => {}
    }
    now.bytes.pending = Pending::Nothing;
    now.staged = Some(access);
    done(with(now))
}

/// What holds nobody knows what may be refused in every way, and is not to be shown.
fn ruined(state: &State) -> Vec<Outcome> {
    let codes = [Code::Internal, Code::FailedPrecondition, Code::InvalidArgument];
    vec![Outcome::refused(&codes, state.clone())]
}

fn unstage(state: &State, v: u8) -> Vec<Outcome> {
    let mut next = state.clone();
    let published = state.is_published(v);
    if let Some(volume) = next.volumes.get_mut(&v) {
        volume.staged = None;
        if volume.open && published {
            return vec![Outcome::refused(&[Code::FailedPrecondition], next)];
        }
        volume.open = false;
    }
    done(next)
}

fn publish(state: &State, v: u8, access: Access, at: u8, read_only: bool) -> Vec<Outcome> {
    let Some(volume) = state.volumes.get(&v) else { return refuse(state, Code::NotFound) };
    let block = access == Access::Block;
    let luks = volume.class().is_luks();
    let not_ready = if block {
        volume.half.is_some()
            || volume.hides()
            || volume.bytes.pending != Pending::Nothing
            || luks && !volume.open
    } else {
        volume.staged.is_none()
    };
    let other = |place: &Place| place.v != v || place.block != block;
    let found = state.places.get(&at);
    if not_ready || found.is_some_and(other) {
        return refuse(state, Code::FailedPrecondition);
    }
    let maybe_not = state.dirty.contains(&at) || block && !volume.active && !luks;
    if let Some(place) = found {
        if place.read_only != read_only {
            return refuse(state, Code::AlreadyExists);
        }
        return done(state.clone());
    }
    let mut next = state.clone();
    next.places.insert(at, Place { v, block, read_only });
    let mut all = done(next);
    if maybe_not {
        all.extend(refuse(state, Code::FailedPrecondition));
    }
    all
}

fn node_expand(state: &State, v: u8, at: Option<u8>, mib: u64) -> Vec<Outcome> {
    let Some(volume) = state.volumes.get(&v) else { return refuse(state, Code::NotFound) };
    let there = match at {
        Some(at) => state.places.get(&at).is_some_and(|place| place.v == v),
        None => volume.staged.is_some(),
    };
    let mut codes = Vec::new();
    if !there {
        codes.push(Code::NotFound);
    }
    if volume.size < mib {
        codes.push(Code::OutOfRange);
    }
    if codes.is_empty() {
        return vec![Outcome::new(Answer::Has { size: volume.size }, state.clone())];
    }
    vec![Outcome::refused(&codes, state.clone())]
}

fn write(state: &State, at: u8, data: &str) -> Vec<Outcome> {
    let place = state.places.get(&at).filter(|place| !place.read_only);
    let Some(place) = place else {
        return vec![Outcome::new(Answer::NotThere, state.clone())];
    };
    let mut next = state.clone();
    if let Some(volume) = next.volumes.get_mut(&place.v) {
        data.clone_into(&mut volume.bytes.data);
    }
    vec![Outcome::new(Answer::Wrote { v: place.v }, next)]
}
