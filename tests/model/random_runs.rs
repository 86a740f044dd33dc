//! Random runs, from seeds.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::run::{Figures, play};
use crate::script::Script;
use crate::shrink::shrink;

/// Runs of the short form, and rounds of each.
const CASES: u64 = 12;
const ROUNDS: usize = 40;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Tells a figure as `cargo xtask test` shows them: at once, and past the test harness.
fn figure(text: &str) {
    drop(writeln!(std::io::stderr(), "figure: {text}"));
}

/// Each run has a seed of its own, from `CINDERBLOCK_SEED` on; `CINDERBLOCK_CASES` runs, or as many as
/// `CINDERBLOCK_FOR` has seconds for.
#[test]
fn random_clients_and_faults_meet_what_the_model_says() {
    let time = number("CINDERBLOCK_FOR").map(Duration::from_secs);
    // What is part of every run of all tests is always the same.
    let other = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let first =
        number("CINDERBLOCK_SEED").unwrap_or_else(|| if time.is_some() { other() } else { 1 });
    let all = if time.is_some() { u64::MAX } else { CASES };
    let cases = number("CINDERBLOCK_CASES").unwrap_or(all);
    figure(&format!("random clients have CINDERBLOCK_SEED={first}"));
    let started = Instant::now();
    let (mut sum, mut runs) = (Figures::default(), 0);
    for seed in first..first.saturating_add(cases) {
        if time.is_some_and(|limit| started.elapsed() >= limit) {
            break;
        }
        let script = Script::random(seed, ROUNDS);
        match play(&script) {
            Ok(figures) => sum.add(&figures),
            Err(why) => {
                let (short, why) = shrink(script, why, |script| play(script).err());
                panic!(
                    "seed {seed} fails: CINDERBLOCK_SEED={seed} CINDERBLOCK_CASES=1 repeats it. Short:\n{}\n{why}",
                    short.as_rust()
                );
            }
        }
        runs += 1;
    }
    let Figures { rounds, calls, faults, deaths, contents, answers, .. } = sum;
    figure(&format!(
        "{runs} random runs: {rounds} rounds, {calls} calls, {faults} faults, {deaths} deaths of the process, \
         {contents} contents compared, in {:?}",
        started.elapsed()
    ));
    println!("{answers:?}");
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    for seed in [3, 4, 5] {
        let script = Script::random(seed, 20);
        let [one, two] = [play(&script), play(&script)];
        assert_eq!(one, two, "seed {seed}");
    }
}
