//! Whether there is an order of calls in which all their answers are right. Calls at the same time may
//! have had their effects in any order.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Code;

use crate::doubt;
use crate::outcome::Answer;
use crate::rules::outcomes;
use crate::script::{Call, From, Op};
use crate::state::{Half, State};

/// A call with its answer, and what was written by it.
#[derive(Clone, Debug)]
pub struct Told {
    pub call: Call,
    pub data: String,
    pub answer: Answer,
}

/// Under which circumstances calls were made.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Others were at work.
    pub company: bool,
    /// A fault may have struck, or a caller went away.
    pub trouble: bool,
}

/// All states that there may be after these calls. None: no order explains the answers.
pub fn explain(
    states: &BTreeSet<State>,
    told: &[Told],
    circumstances: Circumstances,
) -> BTreeSet<State> {
    let all = (1_usize << told.len()) - 1;
    let mut after: BTreeMap<usize, BTreeSet<State>> = BTreeMap::new();
    after.insert(0, states.clone());
    for done in 0..all {
        let Some(states) = after.get(&done).cloned() else { continue };
        for (i, one) in told.iter().enumerate().filter(|(i, _)| done & (1 << i) == 0) {
            let next = after.entry(done | (1 << i)).or_default();
            for state in &states {
                next.extend(follow(state, one, told, circumstances));
            }
        }
    }
    after.remove(&all).unwrap_or_default()
}

/// What there may be after a call that had this answer.
fn follow(state: &State, one: &Told, told: &[Told], circumstances: Circumstances) -> Vec<State> {
    let Circumstances { company, trouble } = circumstances;
    let op = &one.call.op;
    let all = outcomes(state, op, &one.data);
    let mut next: Vec<State> =
        all.into_iter().filter(|it| it.fits(&one.answer)).map(|it| it.next).collect();
    let code = match &one.answer {
        Answer::Lost => return doubt::after(state, op, &one.data),
        Answer::Refused { code, .. } => *code,
        _ => return next,
    };
    let copying = || state.volumes.values().any(|it| it.half == Some(Half::Copying));
    match (code, op) {
        // Nothing was begun.
        (Code::Aborted, _) if company || trouble || copying() => next.push(state.clone()),
        (Code::Unavailable, _) if company || trouble => {
            next.extend(doubt::after(state, op, &one.data));
        }
        // What the CO forgets has left nothing behind.
        (Code::Internal, Op::Create { .. } | Op::Snapshot { .. } | Op::Expand { .. })
            if trouble =>
        {
            next.push(state.clone());
        }
        (Code::Internal, Op::Delete { .. } | Op::DeleteSnapshot { .. }) if trouble => {
            next.extend(doubt::cut(state, op, &one.data));
            next.push(state.clone());
        }
        (Code::Internal, _) if trouble => next.extend(doubt::after(state, op, &one.data)),
        (Code::FailedPrecondition, Op::Unstage { .. }) if trouble => {
            next.extend(doubt::after(state, op, &one.data));
        }
        // Its decrypted device could not be closed.
        (Code::FailedPrecondition, Op::Delete { v })
            if trouble && state.volumes.get(v).is_some_and(|it| it.class().is_luks()) =>
        {
            next.push(state.clone());
        }
        // It is being copied from.
        (Code::FailedPrecondition, Op::DeleteSnapshot { s }) if company => {
            let read = told.iter().any(|it| {
                matches!(it.call.op, Op::Create { from: From::OfSnapshot(of), .. } if of == *s)
            });
            if read {
                next.push(state.clone());
            }
        }
        _ => {}
    }
    next
}
