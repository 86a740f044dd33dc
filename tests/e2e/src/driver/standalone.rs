//! `cinderblock standalone` in a node VM: its files, its process, its log. It knows no volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::csi::Csi;
use super::http;
use crate::console;
use crate::protocol::ProcessState;
use crate::vm::{Node, Spawned, remove};

/// The driver's socket in the VM.
pub const SOCKET: &str = "/run/cinderblock/csi.sock";

/// On the node's address: /metrics and /readyz.
const HTTP_PORT: u16 = 9808;
/// On the node's address: the way from the host to the socket.
const CSI_PORT: u16 = 9809;

/// The first report of LVM on a loaded host takes seconds, and what has to be made for backends is waited for a minute.
const READY_TIMEOUT: Duration = Duration::from_mins(3);
/// A driver that is told to end lets calls come to their end.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
/// A thread that reads or writes a disk dies when that is done, and a loaded host lets it wait.
const KILL_TIMEOUT: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(100);
/// A repair is one LVM process for each LV.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(3);

/// Lines of the log in an error message.
const TAIL: usize = 40;

/// A driver in a VM. Dropping it ends nothing: the VM's end does.
///
/// Its files are in the lab's directory, where host and VM see the same: the program, under a name
/// that changes with it, and the configuration in `driver/`; the log, to which every start appends,
/// beside the console's in `log/`.
#[derive(Debug)]
pub struct Standalone {
    node: Node,
    folder: PathBuf,
    program: Mutex<PathBuf>,
    log_filter: String,
    running: Mutex<Option<Spawned>>,
}

impl Standalone {
    /// Puts the program (see [`super::program`]) and the configuration of its backends (YAML) where
    /// the VM sees them, and begins a new log.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn new(node: &Node, program: &Path, backends: &str) -> Result<Self> {
        let folder = node.lab_dir().join("driver");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let driver = Self {
            node: node.clone(),
            program: Mutex::new(place(program, &folder)?),
            folder,
            log_filter: "info,cinderblock=debug".to_owned(),
            running: Mutex::default(),
        };
        driver.configure(backends)?;
        remove(&driver.log())?;
        Ok(driver)
    }

    /// Takes another build of the driver from its next start on.
    ///
    /// # Errors
    /// It cannot be copied to where the VM sees it.
    pub fn replace(&self, program: &Path) -> Result<()> {
        let placed = place(program, &self.folder)?;
        *self.program.lock().unwrap_or_else(PoisonError::into_inner) = placed;
        Ok(())
    }

    fn program(&self) -> String {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        program.display().to_string()
    }

    /// Another log filter than `info,cinderblock=debug`.
    #[must_use]
    pub fn log_filter(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log_filter);
        self
    }

    /// Writes another configuration; a driver that runs reads it within seconds.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, backends: &str) -> Result<()> {
        let file = self.config();
        fs::write(&file, backends).with_context(|| format!("writing {}", file.display()))
    }

    fn config(&self) -> PathBuf {
        self.folder.join(format!("{}.yaml", self.node.name()))
    }

    /// Its log, the same in host and VM.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.node.console().with_extension("driver")
    }

    /// All of its log as text.
    #[must_use]
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        console::tail(&self.log(), lines)
    }

    /// Its VM.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// It runs already, ends by itself, or is not ready in time; the message has the end of its
    /// log.
    pub fn start(&self) -> Result<()> {
        ensure!(!self.is_running(), "the driver on {} runs already", self.node.name());
        self.open_way()?;
        let text = |path: &Path| path.display().to_string();
        let socket = format!("unix://{SOCKET}");
        let http = format!("{}:{HTTP_PORT}", self.node.address());
        let spawned = self
            .node
            .exec([
                // As its image says.
                "env",
                "MALLOC_ARENA_MAX=1",
                "MALLOC_TRIM_THRESHOLD_=131072",
                &self.program(),
                "standalone",
                "--node-name",
                self.node.name(),
                "--config",
                &text(&self.config()),
                "--csi-endpoint",
                &socket,
                "--http-address",
                &http,
                "--log",
                &self.log_filter,
            ])
            .spawn(&self.log())?;
        *self.running() = Some(spawned);
        self.wait_until(READY_TIMEOUT, "ready", || Ok(self.is_ready()))
    }

    /// Whether it says that it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        http::get(&self.node, HTTP_PORT, "/readyz").is_ok_and(|it| it.status == 200)
    }

    /// Starts the watchdog beside it, which goes on until the VM ends: what kills the driver leaves it alone.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn watchdog(&self) -> Result<()> {
        let log = self.log().with_extension("watchdog");
        let words = [&self.program(), "watchdog", "--log", "debug"];
        self.node.exec(words).spawn(&log).map(drop)
    }

    /// The host reaches a Unix socket in a VM through a TCP port: one relay per boot, one process
    /// of it per connection, so that a driver's end is seen at once as that of its connections.
    fn open_way(&self) -> Result<()> {
        let way = format!("TCP-LISTEN:{CSI_PORT},bind={},reuseaddr,fork", self.node.address());
        let to = format!("UNIX-CONNECT:{SOCKET}");
        let pid_file = "/run/csi-relay.pid";
        // Asks first: it may be there since an earlier start in this boot.
        let script = "test -e $1 && kill -0 $(cat $1) && exit 0; mkdir -p $(dirname $4)
             socat $2 $3 </dev/null >/dev/null 2>&1 & echo $! > $1";
        let words = ["sh", "-c", script, "sh", pid_file, &way, &to, SOCKET];
        self.node.exec(words).text().map(drop).context("opening a way to the driver's socket")
    }

    /// Waits for `what`, which is so when `look` says so.
    ///
    /// # Errors
    /// The driver ends, `look` fails, or the time passes; the message has the end of its log.
    pub fn wait_until(
        &self,
        timeout: Duration,
        what: &str,
        mut look: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        while !look()? {
            let waited = start.elapsed();
            if !self.is_running() {
                bail!("the driver ended before it was {what}; {}", self.log_end());
            }
            if waited > timeout {
                bail!("the driver is not {what} after {} s; {}", waited.as_secs(), self.log_end());
            }
            sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until a backend takes volumes.
    ///
    /// # Errors
    /// As [`Standalone::wait_until`].
    pub fn wait_for_backend(&self, backend: &str, timeout: Duration) -> Result<()> {
        let what = format!("able to use backend {backend}");
        self.wait_until(timeout, &what, || {
            Ok(self.metric(&format!("cinderblock_backend_ready{{backend=\"{backend}\""))?
                == Some(1.0))
        })
    }

    /// The number in the first line of its metrics that begins so.
    ///
    /// # Errors
    /// It gives no answer.
    pub fn metric(&self, begins: &str) -> Result<Option<f64>> {
        let text = self.metrics()?;
        let line = text.lines().find(|line| line.starts_with(begins));
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()))
    }

    /// Its metrics as text.
    ///
    /// # Errors
    /// It gives no answer.
    pub fn metrics(&self) -> Result<String> {
        let ask = || http::get(&self.node, HTTP_PORT, "/metrics");
        // A machine that stalls gives no answer for once.
        Ok(ask().or_else(|_| ask())?.body)
    }

    /// A client of its socket. After a boot of the VM take a new one.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn csi(&self) -> Result<Csi> {
        Csi::through(self.node.net(), self.node.address(), CSI_PORT)
    }

    /// Runs the driver's program beside it, as a person would, to ask it something: what it writes.
    ///
    /// # Errors
    /// It fails; the message has what it wrote to stderr.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let program = self.program();
        let line = std::iter::once(program.as_str()).chain(words.iter().copied());
        self.node.exec(line).timeout(ANSWER_TIMEOUT).text()
    }

    /// Its process id in the VM, while it is known to run.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.running().as_ref().map(|spawned| spawned.pid)
    }

    /// Whether it runs now.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let spawned = self.running().clone();
        let is_running = |it: Spawned| {
            // A machine that stalls gives no answer for once.
            it.state().or_else(|_| it.state()).is_ok_and(|state| state == ProcessState::Running)
        };
        spawned.is_some_and(is_running)
    }

    /// Kills it with SIGKILL. What it has started goes on.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn kill(&self) -> Result<()> {
        self.end(9, KILL_TIMEOUT)
    }

    /// Kills it, and everything that it has started, with SIGKILL, as the end of a container does.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn kill_all(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        // First stopped, so that it starts nothing between the kills. Each program that it has
        // started leads a group of its own.
        let script = "kill -STOP $1
             for status in $(grep -l \"^PPid:[[:space:]]*$1\\$\" /proc/[0-9]*/status 2>/dev/null); do
                 child=${status#/proc/}; kill -9 -${child%/status} 2>/dev/null
             done
             kill -9 $1; true";
        self.node.exec(["sh", "-c", script, "sh", &pid.to_string()]).text()?;
        self.end(9, KILL_TIMEOUT)
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// The VM does not answer, or the driver does not end in time.
    pub fn stop(&self) -> Result<()> {
        self.end(15, STOP_TIMEOUT)
    }

    /// Forgets the process: the VM that had it was cut or booted anew.
    pub fn forget(&self) {
        *self.running() = None;
    }

    fn end(&self, signal: i32, timeout: Duration) -> Result<()> {
        let Some(spawned) = self.running().clone() else { return Ok(()) };
        spawned.signal(signal)?;
        let state = spawned.wait(timeout)?;
        ensure!(
            state != ProcessState::Running,
            "the driver goes on {} s after signal {signal}; {}",
            timeout.as_secs(),
            self.log_end()
        );
        self.forget();
        Ok(())
    }

    fn log_end(&self) -> String {
        format!("the end of {}:\n{}", self.log().display(), self.log_tail(TAIL))
    }

    fn running(&self) -> MutexGuard<'_, Option<Spawned>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies a program into a folder, under a name of its own for each build: a VM may go on seeing
/// what was at a path before.
fn place(program: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = || -> std::io::Result<PathBuf> {
        let data = program.metadata()?;
        let built = data.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let placed = folder.join(format!("{name}-{:x}", built.as_nanos()));
        if placed.metadata().map(|it| it.len()).ok() != Some(data.len()) {
            let partial = folder.join(".partial");
            fs::copy(program, &partial)?;
            fs::rename(&partial, &placed)?;
        }
        Ok(placed)
    };
    copy().with_context(|| format!("copying {} to {}", program.display(), folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_has_another_name() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("p");
        fs::write(&program, "one").unwrap();
        let first = place(&program, folder.path()).unwrap();
        assert_eq!(place(&program, folder.path()).unwrap(), first);
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        fs::File::options().write(true).open(&program).unwrap().set_modified(later).unwrap();
        let second = place(&program, folder.path()).unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read(second).unwrap(), b"one");
        let error = place(Path::new("/no/such"), folder.path()).unwrap_err().to_string();
        assert!(error.contains("/no/such"), "{error}");
    }
}
