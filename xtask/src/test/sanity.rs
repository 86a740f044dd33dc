//! csi-sanity as a ring: one run per kind of volume, each of its cases counted as a test. The runs themselves are in the lab.

use std::time::Instant;

use anyhow::Result;
use cinderblock_lab::sanity::{self, Kind};

use super::program::Outcome;
use super::seconds;

/// The kinds of volumes that have cases with this text in their names; all without a filter.
pub(super) fn kinds(filter: Option<&str>) -> Result<Vec<Kind>> {
    let Some(filter) = filter else { return Ok(Kind::ALL.to_vec()) };
    // The path of a Rust test; csi-sanity need not be built to know that.
    if filter.contains("::") || filter.contains('_') {
        return Ok(Vec::new());
    }
    let flags = flags(Some(filter));
    let mut kinds = Vec::new();
    for kind in Kind::ALL {
        if sanity::count(kind, &flags)? > 0 {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// Runs these kinds.
pub(super) fn run(kinds: &[Kind], filter: Option<&str>) -> Outcome {
    let mut outcome = Outcome::default();
    for kind in kinds {
        let start = Instant::now();
        match sanity::run(*kind, &flags(filter), false) {
            Ok(run) => {
                show(*kind, &run, filter, start);
                let names = run.report.failed.iter();
                let failed = names.map(|case| format!("{}: {case}", kind.name())).collect();
                outcome.add(Outcome { counts: run.report.counts(), failed });
            }
            Err(error) => {
                println!("{error:#}");
                outcome
                    .fail(format!("csi-sanity on {} volumes did not come to its end", kind.name()));
            }
        }
    }
    outcome
}

fn show(kind: Kind, run: &sanity::Run, filter: Option<&str>, start: Instant) {
    let report = &run.report;
    if !report.failed.is_empty() {
        println!("--- output of csi-sanity, {} ---", kind.name());
        println!("{}", run.output);
        println!("--- end of the output of csi-sanity, {} ---", kind.name());
    }
    let name = kind.name();
    let took = seconds(start.elapsed());
    println!("  {name}: {} passed, {} failed, {took}", report.passed, report.failed.len());
    let left_out = report.to_string();
    if !left_out.is_empty() {
        println!("  {name}: {left_out}");
    }
    // With a filter the cases that were not asked are those that it leaves out.
    if let (None, Some(why)) = (filter, kind.not_asked()) {
        println!("  {name}: {} cases are not asked: {why}", report.not_asked.len());
    }
}

/// csi-sanity's own flags for a filter: it takes regular expressions.
fn flags(filter: Option<&str>) -> Vec<String> {
    filter.map(|text| format!("-ginkgo.focus={}", literally(text))).into_iter().collect()
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
        assert_eq!(flags(Some("Volume [a.b]")), [r"-ginkgo.focus=Volume \[a\.b\]"]);
        assert_eq!(flags(None), Vec::<String>::new());
        assert_eq!(kinds(Some("plan::create")).unwrap(), []);
        assert_eq!(kinds(None).unwrap(), Kind::ALL);
    }
}
