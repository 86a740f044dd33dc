//! Makes a script that fails shorter as long as it still fails.

use crate::script::Script;

/// Runs that are tried at the most.
const TRIES: usize = 600;

/// A short script that fails, and why it does. `fails`: why a script does, if it does.
pub fn shrink(
    script: Script,
    why: String,
    fails: impl FnMut(&Script) -> Option<String>,
) -> (Script, String) {
    let mut search = Search { best: (script, why), tries: 0, fails };
    loop {
        let before = search.best.0.clone();
        search.drop_rounds();
        search.drop_calls();
        search.drop_troubles();
        if search.best.0 == before || search.tries >= TRIES {
            return search.best;
        }
    }
}

/// The shortest one so far.
struct Search<F> {
    best: (Script, String),
    tries: usize,
    fails: F,
}

impl<F: FnMut(&Script) -> Option<String>> Search<F> {
    fn attempt(&mut self, candidate: Script) -> bool {
        self.tries += 1;
        if self.tries > TRIES {
            return false;
        }
        let Some(why) = (self.fails)(&candidate) else { return false };
        self.best = (candidate, why);
        true
    }

    /// Rounds go by halves, then by smaller parts, then one by one.
    fn drop_rounds(&mut self) {
        let mut part = self.best.0.rounds.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            while at < self.best.0.rounds.len() {
                let mut candidate = self.best.0.clone();
                let end = (at + part).min(candidate.rounds.len());
                candidate.rounds.drain(at..end);
                if !self.attempt(candidate) {
                    at += part;
                }
            }
            part /= 2;
        }
    }

    fn drop_calls(&mut self) {
        for round in 0..self.best.0.rounds.len() {
            let mut call = 0;
            while self.best.0.rounds[round].calls.len() > 1
                && call < self.best.0.rounds[round].calls.len()
            {
                let mut candidate = self.best.0.clone();
                candidate.rounds[round].calls.remove(call);
                if !self.attempt(candidate) {
                    call += 1;
                }
            }
        }
    }

    fn drop_troubles(&mut self) {
        for round in 0..self.best.0.rounds.len() {
            if self.best.0.rounds[round].fault.is_some() {
                let mut candidate = self.best.0.clone();
                candidate.rounds[round].fault = None;
                self.attempt(candidate);
            }
            for call in 0..self.best.0.rounds[round].calls.len() {
                if self.best.0.rounds[round].calls[call].cancel.is_some() {
                    let mut candidate = self.best.0.clone();
                    candidate.rounds[round].calls[call].cancel = None;
                    self.attempt(candidate);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cinderblock::sim::{Fault, Mode};

    use super::*;
    use crate::script::{Access, Call, Op};

    fn has(script: &Script, wanted: impl Fn(Op) -> bool) -> bool {
        script.rounds.iter().flat_map(|round| &round.calls).any(|call| wanted(call.op))
    }

    /// What fails when some volume is published at place 1 and another one is deleted at any time: two
    /// rounds of one call each, or one round of two, and nothing beside them.
    #[test]
    fn a_long_script_shrinks_to_what_fails() {
        let publishes = |op| matches!(op, Op::Publish { at: 1, .. });
        let deletes = |op| matches!(op, Op::Delete { .. });
        let fails = |script: &Script| {
            (has(script, publishes) && has(script, deletes)).then(|| "it fails".to_owned())
        };
        let mut shrunk = 0;
        for seed in 1..40 {
            let script = Script::random(seed, 40);
            let Some(why) = fails(&script) else { continue };
            let mut runs = 0;
            let counted = |script: &Script| {
                runs += 1;
                fails(script)
            };
            let (short, why) = shrink(script, why, counted);
            let calls: Vec<_> = short.rounds.iter().flat_map(|round| &round.calls).collect();
            assert_eq!(calls.len(), 2, "seed {seed}: {}", short.as_rust());
            assert!(short.rounds.iter().all(|round| !round.calls.is_empty()), "seed {seed}");
            assert!(fails(&short).is_some() && why == "it fails", "seed {seed}");
            assert!(short.rounds.iter().all(|round| round.fault.is_none()), "seed {seed}");
            assert!(calls.iter().all(|call| call.cancel.is_none()), "seed {seed}");
            assert!(runs <= TRIES, "seed {seed}: {runs} runs");
            shrunk += 1;
        }
        assert!(shrunk >= 5, "{shrunk} scripts fail");
    }

    /// A fault, a caller who goes away and a call at the same time stay where it takes them, and where
    /// they were.
    #[test]
    fn what_it_takes_stays() {
        let mut script = Script::random(7, 30);
        let cut = Some(Fault { at: 3, mode: Mode::Lose });
        let access = Access::Ext4;
        let stage = Op::Publish { v: 2, access, at: 3, read_only: true };
        let calls = vec![
            Call { op: Op::Unstage { v: 4 }, cancel: None },
            Call { op: stage, cancel: Some(17) },
            Call { op: Op::Expand { v: 1, mib: 4, limit: 0 }, cancel: Some(3) },
        ];
        let round = crate::script::Round { calls, fault: cut };
        script.rounds[20] = round;
        let fails = |script: &Script| {
            let it = |call: &Call| call.op == stage && call.cancel == Some(17);
            let other = |call: &Call| matches!(call.op, Op::Expand { v: 1, mib: 4, limit: 0 });
            let in_it = |round: &crate::script::Round| {
                round.fault == cut && round.calls.iter().any(it) && round.calls.iter().any(other)
            };
            script.rounds.iter().any(in_it).then(|| format!("{} rounds", script.rounds.len()))
        };
        let why = fails(&script).unwrap();
        let pace = script.pace;
        let (short, why) = shrink(script, why, fails);
        assert_eq!((short.pace, short.rounds.len(), why.as_str()), (pace, 1, "1 rounds"));
        assert_eq!(short.rounds[0].fault, cut);
        let expand = Call { op: Op::Expand { v: 1, mib: 4, limit: 0 }, cancel: None };
        assert_eq!(short.rounds[0].calls, [Call { op: stage, cancel: Some(17) }, expand]);
    }

    /// One that cannot be made shorter is tried for a while, and given back as it was.
    #[test]
    fn a_script_that_needs_all_of_it_is_given_back() {
        let script = Script::random(3, 25);
        let all = script.clone();
        let mut runs = 0;
        let only_all = |other: &Script| {
            runs += 1;
            (*other == all).then(|| "all of it".to_owned())
        };
        let (same, why) = shrink(script, "all of it".to_owned(), only_all);
        assert_eq!((same, why.as_str()), (all.clone(), "all of it"));
        assert!(runs > 25 && runs <= TRIES, "{runs}");
    }
}
