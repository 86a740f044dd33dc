//! `cargo xtask fuzz`: LLVM's fuzzer on the parsers of src/fuzzing.rs. Takes a nightly compiler; what it
//! finds is for a person.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use cinderblock_lab::cargo;
use clap::Args;

const CARGO_FUZZ: &str = "0.13.2";
/// A crash for the fuzzer as well: more memory than a parser may ever take, and more time.
const LIMITS: [&str; 2] = ["-rss_limit_mb=1500", "-timeout=10"];
/// What is kept is small: the corpus is in the repository.
const KEPT_BYTES_MAX: &str = "-max_len=4096";

/// Fuzz the parsers of what comes from outside; needs a nightly compiler
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A target, as fuzz/corpus has them; without it all, one after the other
    target: Option<String>,
    /// How long, for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Take what reached something new into fuzz/corpus
    #[arg(long)]
    keep: bool,
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = cargo::workspace();
    let all = targets(&root)?;
    let targets = match &arguments.target {
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target {name}: there are {}", all.join(", ")),
        None => all,
    };
    let program = build(&root)?;
    let mut failed = Vec::new();
    for target in targets {
        if !fuzz(&root, &program, &target, arguments.seconds)? {
            failed.push(target);
        } else if arguments.keep {
            keep(&root, &program, &target)?;
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("found something in {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Their names are those of the corpus's folders: a test of src/fuzzing.rs sees to it.
fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/corpus");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The fuzzer with all targets in it.
fn build(root: &Path) -> Result<PathBuf> {
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output();
    ensure!(
        nightly.is_ok_and(|done| done.status.success()),
        "fuzzing takes a nightly compiler, and there is none: run `rustup toolchain install nightly`"
    );
    let tools = root.join("target/tools");
    let cargo_fuzz = tools.join("bin/cargo-fuzz");
    let version = Command::new(&cargo_fuzz).args(["fuzz", "--version"]).output();
    let expected = format!("cargo-fuzz {CARGO_FUZZ}");
    if !version.is_ok_and(|done| String::from_utf8_lossy(&done.stdout).trim() == expected) {
        let install = ["install", "--locked", "--root"];
        let mut command = cargo::command()?;
        succeed(command.args(install).arg(&tools).arg(format!("cargo-fuzz@{CARGO_FUZZ}")))?;
    }
    // What is fuzzed are the crates that the driver is built of.
    fs::copy(root.join("Cargo.lock"), root.join("fuzz/Cargo.lock")).context("fuzz/Cargo.lock")?;
    let mut command = Command::new("rustup");
    cargo::detach(&mut command);
    let folder = root.join("target/fuzz");
    command.current_dir(root).env_remove("CARGO").args(["run", "nightly"]).arg(&cargo_fuzz);
    succeed(command.args(["fuzz", "build", "parsers", "--target-dir"]).arg(&folder))?;
    // cargo-fuzz names the machine, also when it is this one.
    let machine = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    Ok(folder.join(machine).join("release/parsers"))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| command.get_program().display().to_string())?;
    ensure!(status.success(), "{command:?} failed: its errors are above");
    Ok(())
}

/// A call of the fuzzer for a target, with its log.
fn fuzzer(root: &Path, program: &Path, target: &str) -> Result<(Command, PathBuf)> {
    let found = root.join("target/fuzz/found");
    fs::create_dir_all(found.join(target))?;
    let log = found.join(format!("{target}.log"));
    let mut command = Command::new(program);
    command
        .current_dir(root)
        .env("CINDERBLOCK_FUZZ", target)
        .env("ASAN_OPTIONS", "detect_odr_violation=0")
        .args(LIMITS)
        .arg(format!("-artifact_prefix={}/{target}-", found.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?);
    Ok((command, log))
}

/// Whether nothing was found. What is new goes to a folder under target.
fn fuzz(root: &Path, program: &Path, target: &str, seconds: u32) -> Result<bool> {
    let (mut command, log) = fuzzer(root, program, target)?;
    let new = root.join("target/fuzz/found").join(target);
    let limits = [format!("-max_total_time={seconds}"), "-print_final_stats=1".to_owned()];
    command.args(limits).arg(new).arg(root.join("fuzz/corpus").join(target));
    let ended = command.status().with_context(|| program.display().to_string())?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let runs = runs.map_or("an unknown number of", str::trim);
    if ended.success() {
        println!("{target}: {runs} runs, nothing found");
        return Ok(true);
    }
    println!("{target}: {runs} runs, and then:");
    let wanted = |line: &&str| {
        line.contains("panicked at")
            || line.contains("ERROR:")
            || line.contains("Test unit written")
    };
    for line in said.lines().filter(wanted) {
        println!("  {line}");
    }
    println!("  all of it: {}", log.display());
    Ok(false)
}

fn keep(root: &Path, program: &Path, target: &str) -> Result<()> {
    let (mut command, log) = fuzzer(root, program, target)?;
    let new = root.join("target/fuzz/found").join(target);
    command.args(["-merge=1", KEPT_BYTES_MAX]);
    command.arg(root.join("fuzz/corpus").join(target)).arg(new);
    let ended = command.status().with_context(|| program.display().to_string())?;
    ensure!(ended.success(), "cannot keep what was found for {target}: {}", log.display());
    Ok(())
}
