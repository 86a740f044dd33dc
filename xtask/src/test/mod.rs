//! `cargo xtask test`: builds all test programs once, runs them ring by ring, and adds up. What is tested is in the rings.

mod filter;
mod program;
mod rings;
mod sanity;

use std::ffi::OsString;
use std::num::NonZero;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use cinderblock_lab::cargo::{self, Artifact, Target};
use cinderblock_lab::sanity::Kind;
use cinderblock_lab::{kernel, packages, tools};
use clap::Args;

use program::{Long, Outcome, Program};
use rings::{Needs, RINGS, Ring};

/// Run the tests: all, one ring, one group, or those with a text in their names
///
/// The rings: unit, service, conformance, model (these need nothing), lvm, sanity, lab (these boot VMs
/// and need root), kubernetes (a whole cluster in VMs). The ring lab-cluster runs only by its name. The groups are faults and scale.
/// docs/testing.md tells what each proves.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A ring's or a group's name, or else a part of tests' names
    #[arg(value_name = "RING|GROUP|FILTER")]
    what: Option<String>,
    #[command(flatten)]
    long: Long,
}

/// A ring that is to run.
struct Job {
    ring: &'static Ring,
    programs: Vec<Program>,
    kinds: Vec<Kind>,
}

impl Job {
    fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.kinds.is_empty()
    }
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let targets = cargo::targets()?;
    let strays = rings::strays(&targets);
    ensure!(
        strays.is_empty(),
        "no ring runs {}: add it in xtask/src/test/rings.rs",
        strays.join(", ")
    );
    let ring = arguments.what.as_deref().and_then(Ring::named);
    let filter = arguments.what.as_deref().filter(|_| ring.is_none());
    let filter = filter.map(filter::words);
    let filter = filter.as_deref();
    let rings: Vec<_> = match ring {
        Some(ring) if !ring.exists(&targets) => bail!("the ring {ring} has no tests yet"),
        Some(ring) => vec![ring],
        None => RINGS.iter().filter(|it| !it.on_demand && it.exists(&targets)).collect(),
    };
    if filter.is_none() {
        prepare(&rings)?;
    }
    let mut jobs = jobs(&rings, &targets, filter)?;
    if let Some(filter) = filter {
        select(&mut jobs, filter)?;
        prepare(&jobs.iter().map(|job| job.ring).collect::<Vec<_>>())?;
    }
    for program in jobs.iter_mut().flat_map(|job| &mut job.programs) {
        program.long = arguments.long.clone();
    }
    arguments.long.prepare()?;
    let mut done = Vec::new();
    for job in &jobs {
        done.push(run_ring(job, filter));
    }
    Ok(sum_up(&jobs, &done, start))
}

/// Checks for what the rings need and installs what is missing.
fn prepare(rings: &[&Ring]) -> Result<()> {
    let vms: Vec<_> =
        rings.iter().filter(|it| it.needs != Needs::Nothing).map(|it| it.name).collect();
    if vms.is_empty() {
        return Ok(());
    }
    let without: Vec<_> =
        RINGS.iter().filter(|it| it.needs == Needs::Nothing).map(|it| it.name).collect();
    ensure!(
        rustix::process::geteuid().is_root(),
        "the tests in {} boot VMs, which takes root: run this with sudo, or give the name of a ring \
         that needs no VM: {}",
        vms.join(", "),
        without.join(", ")
    );
    packages::ensure()?;
    kernel::ensure()?;
    if rings.iter().any(|it| it.needs == Needs::Kubernetes) {
        tools::ensure()?;
    }
    Ok(())
}

/// Builds the programs of all rings with one call of cargo.
fn jobs(rings: &[&'static Ring], targets: &[Target], filter: Option<&[&str]>) -> Result<Vec<Job>> {
    let selection: Vec<_> = rings.iter().flat_map(|ring| ring.selection(targets)).collect();
    let mut artifacts = Vec::new();
    if !selection.is_empty() {
        println!("building the tests");
        let start = Instant::now();
        let words: Vec<_> = ["test", "--workspace", "--no-run"]
            .into_iter()
            .chain(selection.iter().map(String::as_str))
            .collect();
        artifacts = cargo::build(&words)?;
        artifacts.retain(|it| it.is_test);
        artifacts.sort_by(|a, b| {
            (&a.package, &a.kind, &a.target).cmp(&(&b.package, &b.kind, &b.target))
        });
        println!("built in {}", seconds(start.elapsed()));
    }
    rings.iter().map(|ring| job(ring, &artifacts, filter)).collect()
}

fn job(ring: &'static Ring, artifacts: &[Artifact], filter: Option<&[&str]>) -> Result<Job> {
    let own = artifacts.iter().filter(|it| ring.has(&it.kind, &it.target));
    let mut programs: Vec<_> = own
        .map(|it| Program {
            name: format!("{} ({})", it.target, it.kind),
            folder: it.package.clone(),
            words: vec![it.executable.clone().into_os_string()],
            long: Long::default(),
        })
        .collect();
    if ring.has_documentation() {
        let cargo = cargo::command()?;
        let words = ["test", "--workspace", "--doc", "--"].map(OsString::from);
        programs.push(Program {
            name: "documentation".to_owned(),
            folder: cargo::workspace(),
            words: [cargo.get_program().to_owned()].into_iter().chain(words).collect(),
            long: Long::default(),
        });
    }
    let kinds = if ring.is_sanity() { sanity::kinds(filter)? } else { Vec::new() };
    Ok(Job { ring, programs, kinds })
}

/// Leaves only what has tests with such names.
fn select(jobs: &mut Vec<Job>, filter: &[&str]) -> Result<()> {
    for job in &mut *jobs {
        let mut programs = Vec::new();
        for program in job.programs.drain(..) {
            if program.count(filter)? > 0 {
                programs.push(program);
            }
        }
        job.programs = programs;
    }
    jobs.retain(|job| !job.is_empty());
    Ok(())
}

/// How a ring went.
struct Done {
    outcome: Outcome,
    took: Duration,
}

fn run_ring(job: &Job, filter: Option<&[&str]>) -> Done {
    let ring = job.ring;
    println!("\n{ring}: {}", ring.about);
    let start = Instant::now();
    // A VM has one CPU, and a test sleeps for some of its time: one more than there are cores. More
    // than this would take more memory than docs/testing.md says.
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let at_once = (ring.needs == Needs::Vms).then(|| cores.saturating_add(1).min(4));
    let mut outcome = Outcome::default();
    for program in &job.programs {
        match program.run(filter, ring.needs != Needs::Nothing, at_once) {
            Ok(ran) => outcome.add(ran),
            Err(error) => outcome.fail(format!("{error:#}")),
        }
    }
    if !job.kinds.is_empty() {
        outcome.add(sanity::run(&job.kinds, filter));
    }
    if outcome.counts.total() == 0 {
        outcome.fail(format!("no test of ring {ring} ran"));
    }
    let took = start.elapsed();
    println!("{ring}: {}, {}", outcome.counts, seconds(took));
    Done { outcome, took }
}

/// The table of all rings, what failed, and the last line.
fn sum_up(jobs: &[Job], done: &[Done], start: Instant) -> ExitCode {
    let mut all = Outcome::default();
    println!();
    for (job, done) in jobs.iter().zip(done) {
        let (name, counts) = (job.ring.name, done.outcome.counts);
        println!("{name:<12} {:>8}  {counts}", seconds(done.took));
        for failed in &done.outcome.failed {
            println!("  failed: {failed}");
        }
        all.add(done.outcome.clone());
    }
    if all.counts.total() == 0 {
        let names: Vec<_> = RINGS.iter().map(|ring| ring.name).collect();
        println!("no test has such a name; the rings are {}", names.join(", "));
    }
    println!("all of it took {}", seconds(start.elapsed()));
    println!("{}", all.counts);
    // A run in which nothing ran proves nothing.
    let good = all.counts.failed == 0 && all.counts.passed > 0;
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A time in whole seconds, or in tenths when it is short.
fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} s", time.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use cinderblock_lab::libtest::Counts;

    use super::*;

    #[test]
    fn the_help_names_every_ring() {
        let mut command = Arguments::augment_args(clap::Command::new("test"));
        let help = command.render_long_help().to_string();
        for ring in &RINGS {
            assert!(help.contains(ring.name), "{ring} is not in {help}");
        }
    }

    #[test]
    fn a_ring_that_cannot_run_fails() {
        let ring = &RINGS[0];
        let empty = Job { ring, programs: Vec::new(), kinds: Vec::new() };
        assert_eq!(run_ring(&empty, None).outcome.failed, ["no test of ring unit ran"]);
        let words = vec![OsString::from("/no/such/program")];
        let program =
            Program { name: "it".to_owned(), folder: "/".into(), words, long: Long::default() };
        let job = Job { programs: vec![program], ..empty };
        let outcome = run_ring(&job, None).outcome;
        assert_eq!(outcome.counts, Counts { passed: 0, failed: 1, skipped: 0 });
        assert!(outcome.failed[0].contains("starting it"), "{outcome:?}");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(seconds(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(seconds(Duration::from_millis(71_900)), "71 s");
    }
}
