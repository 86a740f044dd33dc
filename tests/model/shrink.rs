//! Makes a script that fails shorter as long as it still fails.

use crate::run::play;
use crate::script::Script;

/// Runs that are tried at the most.
const TRIES: usize = 600;

/// A short script that fails, and why it does.
pub fn shrink(script: Script, why: String) -> (Script, String) {
    let mut best = (script, why);
    let mut tries = 0;
    loop {
        let before = best.0.clone();
        drop_rounds(&mut best, &mut tries);
        drop_calls(&mut best, &mut tries);
        drop_troubles(&mut best, &mut tries);
        if best.0 == before || tries >= TRIES {
            return best;
        }
    }
}

fn attempt(best: &mut (Script, String), candidate: Script, tries: &mut usize) -> bool {
    *tries += 1;
    if *tries > TRIES {
        return false;
    }
    let Err(why) = play(&candidate) else { return false };
    *best = (candidate, why);
    true
}

/// Rounds go by halves, then by smaller parts, then one by one.
fn drop_rounds(best: &mut (Script, String), tries: &mut usize) {
    let mut part = best.0.rounds.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < best.0.rounds.len() {
            let mut candidate = best.0.clone();
            let end = (at + part).min(candidate.rounds.len());
            candidate.rounds.drain(at..end);
            if !attempt(best, candidate, tries) {
                at += part;
            }
        }
        part /= 2;
    }
}

fn drop_calls(best: &mut (Script, String), tries: &mut usize) {
    for round in 0..best.0.rounds.len() {
        let mut call = 0;
        while best.0.rounds[round].calls.len() > 1 && call < best.0.rounds[round].calls.len() {
            let mut candidate = best.0.clone();
            candidate.rounds[round].calls.remove(call);
            if !attempt(best, candidate, tries) {
                call += 1;
            }
        }
    }
}

fn drop_troubles(best: &mut (Script, String), tries: &mut usize) {
    for round in 0..best.0.rounds.len() {
        if best.0.rounds[round].fault.is_some() {
            let mut candidate = best.0.clone();
            candidate.rounds[round].fault = None;
            attempt(best, candidate, tries);
        }
        for call in 0..best.0.rounds[round].calls.len() {
            if best.0.rounds[round].calls[call].cancel.is_some() {
                let mut candidate = best.0.clone();
                candidate.rounds[round].calls[call].cancel = None;
                attempt(best, candidate, tries);
            }
        }
    }
}
