//! What there may be when nobody can say what became of a call: it was not begun, it is done, or it
//! was cut on its way. And what goes on by itself.

use std::collections::BTreeSet;

use crate::rules::{open, outcomes};
use crate::script::{From, Op};
use crate::state::{Half, Pending, State, Volume};

/// All that there may be after a call of which nothing is known.
pub fn after(state: &State, op: &Op, data: &str) -> Vec<State> {
    let mut all = vec![state.clone()];
    all.extend(outcomes(state, op, data).into_iter().map(|outcome| outcome.next));
    all.extend(cut(state, op, data));
    all
}

/// What a call may leave that was cut.
pub fn cut(state: &State, op: &Op, data: &str) -> Vec<State> {
    let mut next = state.clone();
    match *op {
        Op::Create { v, from, .. } if from != From::Nothing => {
            if state.volumes.contains_key(&v) {
                return vec![];
            }
            let mut all = Vec::new();
            for made in outcomes(state, op, data) {
                for half in [Half::Copying, Half::Cut] {
                    let mut next = made.next.clone();
                    if let Some(volume) = next.volumes.get_mut(&v) {
                        volume.half = Some(half);
                        all.push(next);
                    }
                }
            }
            all
        }
        Op::Stage { v, access, key } => {
            let Some(volume) = state.volumes.get(&v).filter(|it| it.half.is_none()) else {
                return vec![];
            };
            let Ok(opened) = open(volume, key) else { return vec![] };
            let with = |volume: Volume| {
                let mut next = state.clone();
                next.volumes.insert(v, volume);
                next
            };
            let mut all = vec![with(opened.clone())];
            for made in outcomes(state, op, data) {
                // Ready, and not mounted.
                let mut ready = made.next.volumes[&v].clone();
                ready.staged = volume.staged;
                all.push(with(ready.clone()));
                ready.open = volume.open;
                all.push(with(ready));
            }
            // Open, and not ready.
            let mut keys = opened;
            keys.open = volume.open;
            all.push(with(keys));
            let _ = access;
            all
        }
        Op::Delete { v } => match next.volumes.get_mut(&v) {
            Some(volume) => {
                volume.open = false;
                let idle = next.clone();
                if let Some(volume) = next.volumes.get_mut(&v) {
                    volume.bytes.ruined |= volume.class().is_luks();
                }
                vec![idle, next]
            }
            None => vec![],
        },
        Op::DeleteSnapshot { s } => {
            let Some(snapshot) = state.snapshots.get(&s) else { return vec![] };
            let class = snapshot.class();
            let mut changed = snapshot.clone();
            changed.bytes.ruined |= class.is_luks();
            let mut all = vec![changed.clone()];
            if class.is_wiped() && !class.is_thin() {
                changed.split = true;
                all.push(changed);
            }
            let with = |snapshot| {
                let mut next = state.clone();
                next.snapshots.insert(s, snapshot);
                next
            };
            all.into_iter().map(with).collect()
        }
        Op::Unstage { v } => match next.volumes.get_mut(&v) {
            Some(volume) => {
                volume.staged = None;
                vec![next]
            }
            None => vec![],
        },
        Op::Publish { at, .. } => {
            next.dirty.insert(at);
            vec![next]
        }
        Op::Unpublish { at, .. } => {
            next.places.remove(&at);
            next.dirty.insert(at);
            vec![next]
        }
        _ => vec![],
    }
}

/// What may have come about by itself.
pub fn later(states: BTreeSet<State>) -> BTreeSet<State> {
    let mut all = BTreeSet::new();
    let mut left: Vec<State> = states.into_iter().collect();
    while let Some(state) = left.pop() {
        for (v, volume) in &state.volumes {
            if volume.half != Some(Half::Copying) {
                continue;
            }
            let mut done = state.clone();
            if let Some(volume) = done.volumes.get_mut(v) {
                volume.half = None;
            }
            left.push(done);
            let source_is_there = match volume.from {
                From::Nothing => true,
                From::OfSnapshot(s) => state.snapshots.get(&s).is_some_and(|it| !it.split),
                From::OfVolume(v) => state.volumes.contains_key(&v),
            };
            if !source_is_there {
                // It can never be complete, and is removed.
                let mut removed = state.clone();
                removed.volumes.remove(v);
                left.push(removed);
            }
            // It is copied from what its source holds when that is begun.
            if let From::OfVolume(source) = volume.from
                && let Some(source) = state.volumes.get(&source)
                && source.bytes.pending != Pending::Fresh
                && source.bytes.data != volume.bytes.data
            {
                let mut other = state.clone();
                if let Some(volume) = other.volumes.get_mut(v) {
                    volume.bytes.data.clone_from(&source.bytes.data);
                }
                if !all.contains(&other) {
                    left.push(other);
                }
            }
        }
        all.insert(state);
    }
    all
}
