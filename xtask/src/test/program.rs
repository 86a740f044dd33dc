//! One test program: listing its tests, running it and following its output. Which programs there are is decided elsewhere.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cinderblock_lab::cargo;
use cinderblock_lab::driver::{FROM, Other};
use cinderblock_lab::libtest::{self, Counts, Ended, Report};
use cinderblock_lab::long;
use clap::Args;

/// A program without a word for so long hangs; the longest test takes a third of it.
const SILENCE: Duration = Duration::from_mins(20);

/// How often a silent program is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How often a slow ring says that it is alive.
const HEARTBEAT: Duration = Duration::from_mins(1);

/// A program with the command line of Rust's test harness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its name in messages.
    pub(crate) name: String,
    /// Where it runs: the folder of its package, as under cargo.
    pub(crate) folder: PathBuf,
    /// The program and the words before the harness's own.
    pub(crate) words: Vec<OsString>,
    /// What its long tests are told.
    pub(crate) long: Long,
}

/// What tests are told that go on for as long as they are told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Long {
    /// How long tests go on that can, those with `faults` or `scale` in their names: 90s, 30m, 2h
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// The seed of random tests, to repeat a run
    #[arg(long)]
    seed: Option<u64>,
    /// A commit: tests with `upgrade` in their names go down to its driver and up again
    #[arg(long, value_name = "COMMIT")]
    from: Option<String>,
}

impl Long {
    /// Builds what a test is not to be blamed for waiting for.
    pub(crate) fn prepare(&self) -> Result<()> {
        let Some(commit) = &self.from else { return Ok(()) };
        Other::at(commit)?.program().map(drop)
    }

    fn silence(&self) -> Duration {
        SILENCE + self.time.unwrap_or_default()
    }

    fn env(&self) -> impl Iterator<Item = (&'static str, String)> {
        let time = self.time.map(|time| (long::TIME, time.as_secs().to_string()));
        let seed = self.seed.map(|seed| (long::SEED, seed.to_string()));
        let from = self.from.clone().map(|from| (FROM, from));
        [time, seed, from].into_iter().flatten()
    }
}

fn duration(text: &str) -> Result<Duration> {
    let wrong = "a time is a number with s, m or h behind it, as in 30m";
    let unit = text.chars().last().context(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => bail!(wrong),
    };
    let number: u64 = text.trim_end_matches(unit).parse().context(wrong)?;
    Ok(Duration::from_secs(number * seconds))
}

/// How the tests of a program, or of a ring, ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How many.
    pub(crate) counts: Counts,
    /// The names of those that failed.
    pub(crate) failed: Vec<String>,
}

impl Outcome {
    /// One more failure.
    pub(crate) fn fail(&mut self, name: String) {
        self.counts.failed += 1;
        self.failed.push(name);
    }

    /// Takes in another.
    pub(crate) fn add(&mut self, other: Self) {
        self.counts += other.counts;
        self.failed.extend(other.failed);
    }
}

impl Program {
    fn command(&self, words: &[&str]) -> Result<Command> {
        let (program, own) = self.words.split_first().context("a program without a name")?;
        let mut command = Command::new(program);
        command
            .args(own)
            .args(words)
            .current_dir(&self.folder)
            // The conformance ring is about the simulation, whatever the shell says.
            .env_remove("CINDERBLOCK_ENDPOINT")
            .envs(self.long.env())
            .stdin(Stdio::null());
        cargo::detach(&mut command);
        Ok(command)
    }

    /// How many tests have names with one of these parts.
    pub(crate) fn count(&self, filter: &[&str]) -> Result<usize> {
        let output = self
            .command(&[&["--list"], filter].concat())?
            .output()
            .with_context(|| format!("starting {}", self.name))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} does not list its tests: {complaint}", self.name);
        Ok(libtest::names(&String::from_utf8_lossy(&output.stdout)).len())
    }

    /// Runs its tests, or those with names with one of these parts. When one fails all output is shown.
    /// With `live` each test is shown when it ends. `at_once` is how many tests may run side by
    /// side, if that is not for the program to say.
    pub(crate) fn run(
        &self,
        filter: Option<&[&str]>,
        live: bool,
        at_once: Option<usize>,
    ) -> Result<Outcome> {
        let words: Vec<_> =
            ["--color=never"].iter().chain(filter.unwrap_or_default()).copied().collect();
        let threads = at_once.map(|number| format!("--test-threads={number}"));
        let mut child = self
            .command(&words)?
            .args(threads)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        let mut follower = Follower::new(live, self.long.silence());
        let lines = lines(&mut child);
        let status = follower.follow(&mut child, &lines)?;
        let outcome = follower.judge(&self.name, status);
        if outcome.counts.failed > 0 {
            println!("--- output of {} ---", self.name);
            follower.output.iter().for_each(|line| println!("{line}"));
            println!("--- end of the output of {} ---", self.name);
        }
        Ok(outcome)
    }
}

/// Where a line came from.
enum Line {
    Stdout(String),
    Stderr(String),
}

/// Both streams in the order in which their lines come.
fn lines(child: &mut Child) -> Receiver<Line> {
    let (sender, receiver) = channel();
    if let Some(stdout) = child.stdout.take() {
        read(stdout, sender.clone(), Line::Stdout);
    }
    if let Some(stderr) = child.stderr.take() {
        read(stderr, sender, Line::Stderr);
    }
    receiver
}

/// In a thread that nobody waits for: something that outlives the child may hold the pipe open.
fn read(pipe: impl Read + Send + 'static, sender: Sender<Line>, kind: fn(String) -> Line) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while pipe.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&bytes);
            if sender.send(kind(text.trim_end().to_owned())).is_err() {
                return;
            }
            bytes.clear();
        }
    });
}

struct Follower {
    live: bool,
    silence: Duration,
    start: Instant,
    /// What is shown after a failure: everything but the lines of tests that passed.
    output: Vec<String>,
    report: Report,
    passed: usize,
    failed: Vec<String>,
    hung: bool,
}

impl Follower {
    fn new(live: bool, silence: Duration) -> Self {
        Self {
            live,
            silence,
            start: Instant::now(),
            output: Vec::new(),
            report: Report::default(),
            passed: 0,
            failed: Vec::new(),
            hung: false,
        }
    }

    /// Takes in what comes until the child ends; ends it when it hangs.
    fn follow(&mut self, child: &mut Child, lines: &Receiver<Line>) -> Result<ExitStatus> {
        let (mut heard, mut said) = (Instant::now(), Instant::now());
        loop {
            match lines.recv_timeout(LOOK) {
                Ok(line) => {
                    heard = Instant::now();
                    if self.take(line) {
                        said = heard;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return child.wait().context("waiting for a test program");
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(status) = child.try_wait().context("waiting for a test program")? {
                        return Ok(status);
                    }
                    if heard.elapsed() > self.silence && !self.hung {
                        self.hung = true;
                        child.kill().context("ending a test program that hangs")?;
                    }
                }
            }
            if self.live && said.elapsed() > HEARTBEAT {
                said = Instant::now();
                self.show(&format!("{} of {} tests ended", self.report.ended, self.report.planned));
            }
        }
    }

    /// True when it was worth a line on the terminal.
    fn take(&mut self, line: Line) -> bool {
        let line = match line {
            Line::Stdout(line) => line,
            Line::Stderr(line) => {
                let figure = line.strip_prefix(long::FIGURE);
                if let Some(figure) = figure {
                    self.show(figure);
                }
                let said = figure.is_some();
                self.output.push(line);
                return said;
            }
        };
        let Some((name, ended)) = self.report.take(&line) else {
            self.output.push(line);
            return false;
        };
        let name = name.to_owned();
        let word = match ended {
            Ended::Passed => {
                self.passed += 1;
                "ok"
            }
            Ended::Failed => {
                self.failed.push(name.clone());
                self.output.push(line);
                "FAILED"
            }
            Ended::Ignored => {
                self.output.push(line);
                "skipped"
            }
        };
        if self.live {
            self.show(&format!("{word:<7} {name}"));
        }
        self.live
    }

    fn show(&self, what: &str) {
        println!("  [{:>4} s] {what}", self.start.elapsed().as_secs());
    }

    /// The counts of its last line, if all else agrees with them; otherwise the program itself is
    /// one more failure.
    fn judge(&mut self, name: &str, status: ExitStatus) -> Outcome {
        let Some(counts) = self.report.counts else {
            let counts = Counts { passed: self.passed, failed: self.failed.len(), skipped: 0 };
            let why = if self.hung {
                format!("said nothing for {} minutes and was ended", self.silence.as_secs() / 60)
            } else {
                format!("ended ({status}) without a result")
            };
            return self.failure(counts, format!("{name} {why}"));
        };
        if counts.total() != self.report.planned {
            let planned = self.report.planned;
            let why = format!("{name} was to run {planned} tests, but {} ended", counts.total());
            return self.failure(counts, why);
        }
        if counts.failed == 0 && !status.success() {
            return self.failure(counts, format!("{name}: no test failed, but it ended: {status}"));
        }
        // Where tests write past the harness, a name may not stand where it should.
        let unnamed = counts.failed.saturating_sub(self.failed.len());
        let more = (unnamed > 0).then(|| format!("{unnamed} more in {name}: see its output above"));
        let failed = std::mem::take(&mut self.failed).into_iter().chain(more).collect();
        Outcome { counts, failed }
    }

    fn failure(&mut self, counts: Counts, why: String) -> Outcome {
        let mut outcome = Outcome { counts, failed: std::mem::take(&mut self.failed) };
        outcome.fail(why);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Outcome {
        let words = ["sh", "-c", script].map(OsString::from).to_vec();
        let program =
            Program { name: "it".to_owned(), folder: "/".into(), words, long: Long::default() };
        program.run(None, false, None).unwrap()
    }

    const RESULT: &str = "0 ignored; 0 measured; 0 filtered out; finished in 0s";

    #[test]
    fn a_good_run() {
        let script = format!(
            "echo running 2 tests; echo 'test a ... ok'; echo 'test b ... ok'; \
             echo 'test result: ok. 2 passed; 0 failed; {RESULT}'"
        );
        let outcome = sh(&script);
        assert_eq!(outcome.counts, Counts { passed: 2, failed: 0, skipped: 0 });
        assert_eq!(sh(&format!("{script}; exit 3")).counts.failed, 1);
        // A child that goes on and holds the pipe.
        let start = Instant::now();
        assert_eq!(sh(&format!("sleep 30 & {script}")), outcome);
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_failure_has_its_name() {
        let outcome = sh(&format!(
            "echo running 2 tests; echo 'test a ... ok'; echo 'test b ... FAILED'; \
             echo 'test result: FAILED. 1 passed; 1 failed; {RESULT}'; exit 101"
        ));
        assert_eq!(outcome.counts, Counts { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(outcome.failed, ["b"]);
        let outcome = sh(&format!(
            "echo running 1 test; echo 'test b ... something FAILED'; \
             echo 'test result: FAILED. 0 passed; 1 failed; {RESULT}'; exit 101"
        ));
        assert_eq!(outcome.failed, ["1 more in it: see its output above"]);
    }

    #[test]
    fn a_death_is_a_failure() {
        let outcome = sh("echo running 9 tests; echo 'test a ... ok'; kill -9 $$");
        assert_eq!(outcome.counts, Counts { passed: 1, failed: 1, skipped: 0 });
        assert!(outcome.failed[0].contains("without a result"), "{outcome:?}");
        assert_eq!(sh("exit 0").counts.failed, 1);
    }

    #[test]
    fn tests_that_never_ended_are_a_failure() {
        let outcome = sh(&format!(
            "echo running 2 tests; echo 'test a ... ok'; \
             echo 'test result: ok. 1 passed; 0 failed; {RESULT}'"
        ));
        assert_eq!(outcome.counts, Counts { passed: 1, failed: 1, skipped: 0 });
    }

    #[test]
    fn our_own_tests_are_counted() {
        let own = std::env::current_exe().unwrap();
        let words = vec![own.into_os_string()];
        let own =
            Program { name: "own".to_owned(), folder: "/".into(), words, long: Long::default() };
        assert_eq!(own.count(&["our_own_tests_are_counted"]).unwrap(), 1);
        assert_eq!(own.count(&["no test has such a name"]).unwrap(), 0);
    }
}
