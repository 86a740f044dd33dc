//! csi-sanity as a ring: one run per kind of volume, each of its cases counted as a test. The runs themselves are in the lab.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use cinderblock_lab::sanity::{self, Kind};

use super::program::Outcome;
use super::seconds;

/// The kinds of volumes that have cases with this text in their names; all without a filter. No group has any.
pub(super) fn kinds(filter: Option<&[&str]>) -> Result<Vec<Kind>> {
    let Some(words) = filter else { return Ok(Kind::ALL.to_vec()) };
    let [word] = words else { return Ok(Vec::new()) };
    // The path of a Rust test; csi-sanity need not be built to know that.
    if word.contains("::") || word.contains('_') {
        return Ok(Vec::new());
    }
    let flags = flags(filter);
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        if sanity::count(kind, &flags)? > 0 {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// Runs these kinds side by side: each has a VM of its own, and a VM has one CPU.
pub(super) fn run(kinds: &[Kind], filter: Option<&[&str]>) -> Outcome {
    let flags = flags(filter);
    thread::scope(|scope| {
        let start = |kind: &Kind| {
            let (kind, flags) = (*kind, &flags);
            (kind, scope.spawn(move || timed(kind, flags)))
        };
        let started: Vec<_> = kinds.iter().map(start).collect();
        let mut outcome = Outcome::default();
        for (kind, thread) in started {
            let Ok((ran, took)) = thread.join() else {
                outcome.fail(format!("csi-sanity on {} volumes: a panic", kind.name()));
                continue;
            };
            match ran {
                Ok(run) => outcome.add(judge(kind, &run, took)),
                Err(error) => {
                    println!("{error:#}");
                    let name = kind.name();
                    outcome.fail(format!("csi-sanity on {name} volumes did not come to its end"));
                }
            }
        }
        outcome
    })
}

fn timed(kind: Kind, flags: &[String]) -> (Result<sanity::Run>, Duration) {
    let start = Instant::now();
    (sanity::run(kind, flags, false), start.elapsed())
}

fn judge(kind: Kind, run: &sanity::Run, took: Duration) -> Outcome {
    show(kind, run, took);
    let failed = run.report.failed.iter().map(|case| format!("{}: {case}", kind.name()));
    Outcome { counts: run.report.counts(), failed: failed.collect() }
}

fn show(kind: Kind, run: &sanity::Run, took: Duration) {
    let report = &run.report;
    if !report.failed.is_empty() {
        println!("--- output of csi-sanity, {} ---", kind.name());
        println!("{}", run.output);
        println!("--- end of the output of csi-sanity, {} ---", kind.name());
    }
    let name = kind.name();
    let took = seconds(took);
    println!("  {name}: {} passed, {} failed, {took}", report.passed, report.failed.len());
    let left_out = report.to_string();
    if !left_out.is_empty() {
        println!("  {name}: {left_out}");
    }
}

/// csi-sanity's own flags for a filter: it takes regular expressions.
fn flags(filter: Option<&[&str]>) -> Vec<String> {
    let words = filter.unwrap_or_default().iter();
    words.map(|text| format!("-ginkgo.focus={}", literally(text))).collect()
}

/// A regular expression that matches this text alone.
fn literally(text: &str) -> String {
    let special = |it: &char| r"\.+*?()|[]{}^$".contains(*it);
    text.chars().flat_map(|it| special(&it).then_some('\\').into_iter().chain([it])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_taken_literally() {
        assert_eq!(flags(Some(&["Volume [a.b]"])), [r"-ginkgo.focus=Volume \[a\.b\]"]);
        assert_eq!(flags(None), Vec::<String>::new());
        assert_eq!(kinds(Some(&["plan::create"])).unwrap(), []);
        assert_eq!(kinds(None).unwrap(), Kind::ALL);
    }
}
