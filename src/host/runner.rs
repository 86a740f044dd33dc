//! Runs programs: absolute paths checked at start, a cleared environment, no input but what the call
//! names, bounded output.
//! The only place of the driver that starts a process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};
use tokio::sync::Semaphore;

use super::invocation::{Effect, Input, Invocation, Program};
use crate::error::{Error, Result};
use crate::metrics::ProgramMetrics;

/// Where programs are looked for. Never `PATH`: the environment is not ours to trust.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// The most that is kept of one stream. A report of 30,000 LVs has about 40 MiB.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// Programs other than LVM that run at the same time.
const RUNNING_MAX: usize = 16;
/// Of these, those that derive a key from a passphrase: Argon2 takes 64 MiB of the pod's memory for each, and who is
/// over its limit is killed with all that runs beside it.
const DERIVING_MAX: usize = 3;
/// A change that takes longer is reported, and again after each such time.
const SLOW: Duration = Duration::from_secs(30);

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A program that ran to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to its standard output, at most 64 MiB.
    pub stdout: String,
    /// What it wrote to its standard error, at most 64 MiB.
    pub stderr: String,
}

/// Why nothing can be said about a call.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It was not started: nothing happened.
    #[error("cannot start {0}")]
    Start(String, #[source] std::io::Error),
    /// It was a read and took too long.
    #[error("{0} was given up after {1:?}")]
    Timeout(String, Duration),
    /// It ran, and its end or its output was lost: whatever it does may have happened.
    #[error("the outcome of {0} was lost")]
    Lost(String, #[source] std::io::Error),
}

impl Completed {
    /// Whether it ended with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// What it said went wrong, in one line, for the end of a sentence.
    #[must_use]
    pub fn complaint(&self) -> String {
        let how = match self.exit {
            Exit::Code(code) => format!("exit code {code}"),
            Exit::Signal(signal) => format!("killed by signal {signal}"),
        };
        let said: Vec<&str> =
            self.stderr.lines().map(str::trim).filter(|line| !line.is_empty()).take(8).collect();
        if said.is_empty() { how } else { format!("{how}: {}", said.join("; ")) }
    }
}

/// Runs programs of this host.
#[derive(Debug)]
pub struct Runner {
    paths: BTreeMap<Program, PathBuf>,
    environment: Vec<(&'static str, String)>,
    running: Semaphore,
    deriving: Semaphore,
    metrics: ProgramMetrics,
}

impl Runner {
    /// Finds all programs. `lvm_dir` is an empty directory of ours that LVM takes for its
    /// `/etc/lvm`.
    ///
    /// # Errors
    /// When a program is missing, with the package that has it.
    pub fn new(lvm_dir: &Path, metrics: ProgramMetrics) -> Result<Self> {
        let mut paths = BTreeMap::new();
        for program in Program::ALL {
            let found = DIRECTORIES
                .iter()
                .map(|dir| Path::new(dir).join(program.file_name()))
                .find(|path| path.is_file())
                .ok_or_else(|| {
                    Error::host(format!(
                        "{} is not in {}: install {} in the image or on the host",
                        program.file_name(),
                        DIRECTORIES.join(", "),
                        program.package()
                    ))
                })?;
            paths.insert(program, found);
        }
        let environment = vec![
            ("LC_ALL", "C".to_owned()),
            // mkfs.xfs, xfs_admin and others start their helpers by name.
            ("PATH", DIRECTORIES.join(":")),
            ("LVM_SYSTEM_DIR", lvm_dir.to_string_lossy().into_owned()),
            ("LVM_SUPPRESS_FD_WARNINGS", "1".to_owned()),
        ];
        let (running, deriving) = (Semaphore::new(RUNNING_MAX), Semaphore::new(DERIVING_MAX));
        Ok(Self { paths, environment, running, deriving, metrics })
    }

    /// Runs a call to its end. A change is waited for however long it takes.
    ///
    /// # Errors
    /// When it could not be started, or nothing can be said about its end.
    pub async fn run(&self, call: &Invocation) -> Result<Completed, RunError> {
        let started = Instant::now();
        let result = self.run_to_end(call).await;
        let outcome = match &result {
            Ok(done) if done.success() => "ok",
            Ok(_) => "failed",
            Err(RunError::Start(..)) => "not started",
            Err(RunError::Timeout(..)) => "given up",
            Err(RunError::Lost(..)) => "lost",
        };
        self.metrics.observe(call.label(), outcome, started.elapsed());
        result
    }

    async fn run_to_end(&self, call: &Invocation) -> Result<Completed, RunError> {
        let label = call.label();
        let lost = |e| RunError::Lost(label.clone(), e);
        let closed = || RunError::Start(label.clone(), std::io::Error::other("shutting down"));
        let derives = call.program == Program::Cryptsetup && matches!(call.input, Input::Secret(_));
        let _memory =
            if derives { Some(self.deriving.acquire().await.map_err(|_| closed())?) } else { None };
        // LVM has its own queues: one of a VG does not wait for a mkfs in another.
        let _turn = if call.program == Program::Lvm {
            None
        } else {
            Some(self.running.acquire().await.map_err(|_| closed())?)
        };
        let started = Instant::now();
        tracing::debug!(command = %call, "starting");
        let stdin = match call.effect {
            Effect::Change => stdin(&call.input).await,
            // Opening hangs where the device does.
            Effect::Read(limit) => tokio::time::timeout(limit, stdin(&call.input))
                .await
                .map_err(|_| RunError::Timeout(label.clone(), limit))?,
        };
        let mut child = stdin
            .and_then(|stdin| self.start(call, stdin))
            .map_err(|e| RunError::Start(label.clone(), e))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let result = match call.effect {
            Effect::Change => watch(&label, finish(&mut child, &call.input)).await.map_err(lost)?,
            Effect::Read(limit) => {
                let reading = finish(&mut child, &call.input);
                let Ok(done) = tokio::time::timeout(limit, reading).await else {
                    // The whole group: a helper that hangs would keep the pipes open.
                    if let Some(Err(error)) = group.map(|g| kill_process_group(g, Signal::KILL)) {
                        tracing::warn!(command = label, %error, "cannot kill it");
                    }
                    return Err(RunError::Timeout(label, limit));
                };
                done.map_err(lost)?
            }
        };
        let elapsed = started.elapsed();
        tracing::debug!(command = label, exit = ?result.exit, ?elapsed, "finished");
        Ok(result)
    }

    fn start(&self, call: &Invocation, stdin: Stdio) -> std::io::Result<Child> {
        let path = self.paths.get(&call.program);
        let path = path.map_or_else(|| Path::new(call.program.file_name()), PathBuf::as_path);
        #[allow(clippy::disallowed_methods, reason = "this is the one place")]
        let mut command = tokio::process::Command::new(path);
        command
            .args(&call.args)
            .env_clear()
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .current_dir("/")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(false);
        if call.program == Program::Cryptsetup {
            // As LVM's udev_sync=0: in a container, udev has nobody to tell.
            command.env("DM_DISABLE_UDEV", "1");
        }
        command.spawn()
    }
}

async fn stdin(input: &Input) -> std::io::Result<Stdio> {
    Ok(match input {
        Input::Nothing => Stdio::null(),
        Input::Secret(_) => Stdio::piped(),
        Input::File(path) => tokio::fs::File::open(path).await?.into_std().await.into(),
    })
}

/// Waits however long it takes, and says so when it takes long.
async fn watch<T>(label: &str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let started = Instant::now();
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(SLOW) => {
                let elapsed = started.elapsed();
                tracing::warn!(command = label, ?elapsed, "still running; it is never killed");
            }
        }
    }
}

async fn finish(child: &mut Child, input: &Input) -> std::io::Result<Completed> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let fed = feed(child.stdin.take(), input);
    let (stdout, stderr, status, ()) =
        tokio::join!(drain(stdout), drain(stderr), child.wait(), fed);
    let status = status?;
    let exit = match (status.code(), std::os::unix::process::ExitStatusExt::signal(&status)) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    };
    Ok(Completed { exit, stdout: stdout?, stderr: stderr? })
}

/// Writes all of it and closes. A program that wants none of it says by its end what it thinks.
async fn feed(stdin: Option<ChildStdin>, input: &Input) {
    if let (Some(mut stdin), Input::Secret(secret)) = (stdin, input)
        && let Err(error) = stdin.write_all(secret.expose()).await
    {
        tracing::debug!(%error, "a program did not take all of its input");
    }
}

/// Reads a stream to its end and keeps its beginning: a program must never block on a full pipe.
async fn drain(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut stream) = stream else {
        return Ok(String::new());
    };
    let mut kept = Vec::new();
    (&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::invocation::STDIN;
    use crate::metrics::Metrics;
    use crate::secret::Secret;

    /// A runner for which every program is a shell that runs its first argument.
    fn shell() -> Runner {
        Runner {
            paths: Program::ALL.into_iter().map(|p| (p, PathBuf::from("/bin/sh"))).collect(),
            environment: vec![("LC_ALL", "C".to_owned())],
            running: Semaphore::new(8),
            deriving: Semaphore::new(DERIVING_MAX),
            metrics: Metrics::new("test").programs(),
        }
    }

    fn call(script: &str, effect: Effect) -> Invocation {
        let args = vec!["-c".to_owned(), script.to_owned()];
        Invocation { program: Program::Blkid, args, effect, input: Input::Nothing }
    }

    #[tokio::test]
    async fn keeps_streams_and_exit_codes_apart() {
        let done =
            shell().run(&call("echo out; echo err >&2; exit 5", Effect::Change)).await.unwrap();
        assert_eq!(done.exit, Exit::Code(5));
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(done.complaint(), "exit code 5: err");
        let done = shell().run(&call("kill -SEGV $$", Effect::Change)).await.unwrap();
        assert_eq!(done.exit, Exit::Signal(11));
    }

    #[tokio::test]
    async fn hands_down_nothing_but_its_own_environment() {
        let done = shell().run(&call("export -p; cat", Effect::Change)).await.unwrap();
        assert!(done.stdout.contains("LC_ALL") && !done.stdout.contains("HOME"), "{}", done.stdout);
    }

    #[tokio::test]
    async fn a_secret_comes_by_the_standard_input_and_nowhere_else() {
        let mut call = call("cat; tr '\\0' ' ' < /proc/$$/cmdline; export -p", Effect::Change);
        call.input = Input::Secret(Secret::new(b"hunter2".to_vec()));
        let done = shell().run(&call).await.unwrap();
        assert_eq!(done.stdout.matches("hunter2").count(), 1, "{}", done.stdout);
        assert!(!format!("{call} {call:?}").contains("hunter2"));
        // One that reads nothing ends all the same.
        call.args[1] = "exit 3".to_owned();
        call.input = Input::Secret(Secret::new(vec![b'x'; 1 << 20]));
        assert_eq!(shell().run(&call).await.unwrap().exit, Exit::Code(3));
    }

    #[tokio::test]
    async fn few_keys_are_derived_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (begun, go) = (at("begun"), at("go"));
        let script = format!(
            "echo >> {}; while test -d {} && ! test -e {}; do sleep 0.05; done",
            begun.display(),
            dir.path().display(),
            go.display()
        );
        let mut call = call(&script, Effect::Change);
        call.program = Program::Cryptsetup;
        let runner = std::sync::Arc::new(shell());
        let key = || Input::Secret(Secret::new(b"key".to_vec()));
        let spawn = |input: Input| {
            let (runner, mut call) = (std::sync::Arc::clone(&runner), call.clone());
            call.input = input;
            tokio::spawn(async move { runner.run(&call).await.unwrap().exit })
        };
        let count = || std::fs::read_to_string(&begun).unwrap_or_default().lines().count();
        let wait = async |n: usize| {
            while count() < n {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let mut all: Vec<_> = (0..DERIVING_MAX + 2).map(|_| spawn(key())).collect();
        wait(DERIVING_MAX).await;
        // One that derives none waits for none.
        all.push(spawn(Input::Nothing));
        wait(DERIVING_MAX + 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(count(), DERIVING_MAX + 1);
        std::fs::write(&go, "").unwrap();
        for one in all {
            assert_eq!(one.await.unwrap(), Exit::Code(0));
        }
        assert_eq!(count(), DERIVING_MAX + 3);
    }

    #[tokio::test]
    async fn a_file_is_opened_before_the_program_begins_and_stays_that_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("device");
        std::fs::write(&file, "content").unwrap();
        let script = format!("rm {}; cat {STDIN}; tail -c 3", file.display());
        let mut call = call(&script, Effect::Read(Duration::from_mins(1)));
        call.input = Input::File(file);
        let done = shell().run(&call).await.unwrap();
        // Opened anew by its path, so from its beginning each time.
        assert_eq!(done.stdout, "contentent");
        // It is gone now: nothing is run that could say anything of it.
        let error = shell().run(&call).await.unwrap_err();
        let RunError::Start(_, error) = error else { panic!("{error:?}") };
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_read_is_given_up_with_all_its_children() {
        let limit = Duration::from_millis(200);
        let started = Instant::now();
        let error = shell().run(&call("sleep 60 & sleep 60", Effect::Read(limit))).await;
        assert!(matches!(error, Err(RunError::Timeout(_, _))), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_change_outlives_its_caller() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("done");
        let go = dir.path().join("go");
        // It ends with the folder as well, should the test fail.
        let script = format!(
            "while test -d {} && ! test -e {}; do sleep 0.05; done; touch {}",
            dir.path().display(),
            go.display(),
            file.display()
        );
        let call = call(&script, Effect::Change);
        let runner = shell();
        let run = tokio::time::timeout(Duration::from_millis(50), runner.run(&call)).await;
        assert!(run.is_err() && !file.exists());
        std::fs::write(&go, "").unwrap();
        for _ in 0..1_200 {
            if file.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the program was killed with its caller");
    }

    #[tokio::test]
    async fn much_output_does_not_block_the_program() {
        let done = shell().run(&call("head -c 3000000 /dev/zero", Effect::Change)).await.unwrap();
        assert_eq!(done.stdout.len(), 3_000_000);
    }
}
