//! The handle of one node: boot, power cut, shutdown, calls into the guest. All state is in files, so handles are free to copy.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::launch::{INIT, end_strays, launch};
use super::spawned::Spawned;
use super::spec::NodeSpec;
use super::state::{Run, read_json, remove, write_json};
use super::{disks, plug, spec};
use crate::bootfile::{self, BootFile};
use crate::console::{self, Progress};
use crate::exec::{self, Connection, Exec};
use crate::netns::{self, NetNs};
use crate::protocol::{Reply, Request};
use crate::{fnv1a, say};

/// A boot takes a few seconds; this is for machines that are loaded.
pub(crate) const BOOT_TIMEOUT: Duration = Duration::from_mins(2);

/// How long a request may take that needs no program to run.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(20);

/// Lines of the console in an error message.
const TAIL: usize = 25;

/// One node of a lab.
#[derive(Debug, Clone)]
pub struct Node {
    lab_dir: PathBuf,
    net: NetNs,
    guest: PathBuf,
    spec: NodeSpec,
}

/// Whether a node's VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// It runs; the process id is that of the parent of the VM's kernel.
    Running {
        /// Process id on the host.
        pid: i32,
    },
    /// It was never booted, was shut down, or its power was cut.
    Off,
    /// It ended by itself: the console log says why.
    Died,
}

/// One line about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// What it is made of.
    pub spec: NodeSpec,
    /// Its address in the lab's namespace.
    pub address: Ipv4Addr,
    /// Whether it runs.
    pub state: NodeState,
    /// Its console log.
    pub console: PathBuf,
}

impl Node {
    pub(crate) fn new(lab_dir: &Path, net: &NetNs, guest: &Path, spec: NodeSpec) -> Self {
        let (lab_dir, guest) = (lab_dir.to_owned(), guest.to_owned());
        Self { lab_dir, net: net.clone(), guest, spec }
    }

    /// The folder of all nodes in a lab's directory.
    pub(crate) fn parent(lab_dir: &Path) -> PathBuf {
        lab_dir.join("nodes")
    }

    /// Takes up a node by its state files; none when the lab has no such node.
    pub(crate) fn load(lab_dir: &Path, net: &NetNs, name: &str) -> Result<Option<Self>> {
        let folder = Self::parent(lab_dir).join(name);
        let spec = read_json(&folder.join("node.json"))?;
        Ok(spec.map(|spec| Self::new(lab_dir, net, &folder.join(INIT), spec)))
    }

    /// What it is made of.
    #[must_use]
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Its name, also its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its address in the lab's namespace.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        netns::node_address(self.spec.index)
    }

    /// The lab's network namespace.
    #[must_use]
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// The lab's directory, where host and guest see the same.
    #[must_use]
    pub fn lab_dir(&self) -> &Path {
        &self.lab_dir
    }

    /// The console log of the newest boot; that of the boot before has `.1` added.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.lab_dir.join("log").join(format!("{}.console", self.spec.name))
    }

    /// The folder of its disks and state files on the host.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        Self::parent(&self.lab_dir).join(&self.spec.name)
    }

    /// The file of data disk `number` (from 1) on the host.
    #[must_use]
    pub fn disk_file(&self, number: usize) -> PathBuf {
        disks::data_file(&self.folder(), number)
    }

    /// Whether its VM runs.
    ///
    /// # Errors
    /// A state file is damaged.
    pub fn state(&self) -> Result<NodeState> {
        Ok(match self.run_file()? {
            Some(run) if run.process.is_alive() => NodeState::Running { pid: run.process.pid },
            Some(_) => NodeState::Died,
            None => NodeState::Off,
        })
    }

    /// One line about it.
    ///
    /// # Errors
    /// A state file is damaged.
    pub fn status(&self) -> Result<NodeStatus> {
        let (spec, address) = (self.spec.clone(), self.address());
        Ok(NodeStatus { spec, address, state: self.state()?, console: self.console() })
    }

    /// Writes the node's files without booting it.
    pub(crate) fn define(&self) -> Result<()> {
        self.spec.validate()?;
        spec::check_path(&self.folder())?;
        let folder = self.folder();
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        write_json(&folder.join("node.json"), &self.spec)
    }

    /// Boots the VM, with the disks as they are, and waits until it takes calls. Disks that are
    /// not there yet are made.
    ///
    /// # Errors
    /// It runs already, cannot be started, or does not come up; the message has the step that
    /// failed and the end of the console log.
    pub fn boot(&self) -> Result<()> {
        let start = Instant::now();
        self.start()?;
        self.wait(BOOT_TIMEOUT)?;
        say(&format!("{}: up after {:.1} s", self.name(), start.elapsed().as_secs_f32()));
        Ok(())
    }

    fn start(&self) -> Result<()> {
        let name = self.name();
        let _lock = self.lock()?;
        if let NodeState::Running { pid } = self.state()? {
            bail!("node {name} runs already (process {pid}): cut its power or shut it down first");
        }
        say(&format!("{name}: booting, console log {}", self.console().display()));
        self.net.up(&[self.spec.index])?;
        let folder = self.folder();
        end_strays(&folder, &self.net)?;
        let disks = disks::ensure(&self.spec, &folder)?;
        let token = self.write_boot_files(&folder)?;
        let console = self.console();
        drop(fs::rename(&console, console.with_extension("console.1")));
        let Some(process) = launch(&self.spec, &folder, &disks, &self.net, &console)? else {
            return Err(self.boot_error("its process ended at once"));
        };
        write_json(&folder.join("run.json"), &Run { process, token })
    }

    /// The init program gets a new file for each boot: a guest must never see it change.
    fn write_boot_files(&self, folder: &Path) -> Result<String> {
        let token = fs::read_to_string("/proc/sys/kernel/random/uuid").context("making a token")?;
        let token = token.trim().to_owned();
        let mut shares = vec![self.lab_dir.clone()];
        shares.extend(self.spec.shares.clone());
        let half = |name: &str| fnv1a(name.as_bytes());
        let boot = BootFile {
            node: self.spec.name.clone(),
            token: token.clone(),
            address: self.address(),
            prefix: netns::PREFIX,
            gateway: netns::HOST,
            machine_id: format!("{:016x}{:016x}", half(self.net.name()), half(self.name())),
            shares,
        };
        write_json(&folder.join(bootfile::NAME), &boot)?;
        let init = folder.join(INIT);
        if self.guest != init {
            remove(&init)?;
            fs::copy(&self.guest, &init).with_context(|| {
                format!("copying {} to {}", self.guest.display(), init.display())
            })?;
        }
        let log = self.lab_dir.join("log");
        fs::create_dir_all(&log).with_context(|| format!("creating {}", log.display()))?;
        Ok(token)
    }

    /// Waits until the VM takes calls.
    ///
    /// # Errors
    /// The VM is off, ends, or is late; the message has the step that failed and the end of the
    /// console log.
    pub fn wait(&self, timeout: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let progress = console::progress(&self.console());
            if progress == Progress::Ready && self.ping().is_ok() {
                return Ok(());
            }
            // Asked after the console, so that a failure's last words are not missed.
            let run = self.run_file()?.filter(|run| run.process.is_alive());
            let failed = matches!(progress, Progress::Failed(_));
            if let Some(run) = run.as_ref().filter(|_| failed) {
                // It powers off by itself.
                let _ = run.process.wait_gone(Duration::from_secs(5));
            }
            if failed || run.is_none() {
                return Err(self.boot_error("its VM ended"));
            }
            if start.elapsed() > timeout {
                let late = format!("it is not ready after {} s", timeout.as_secs());
                return Err(self.boot_error(&late));
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn ping(&self) -> Result<()> {
        let ready = Reply::Ready { node: self.spec.name.clone() };
        let reply = self.ask(Request::Ping, Duration::from_secs(3))?;
        if reply == ready { Ok(()) } else { Err(exec::unexpected(reply)) }
    }

    fn boot_error(&self, what: &str) -> anyhow::Error {
        let console = self.console();
        let where_to = match console::progress(&console) {
            Progress::Failed(why) => format!("failed at {why}"),
            Progress::At(Some(step)) => format!("the last step that began is: {step}"),
            Progress::At(None) => "the guest's init did not begin".to_owned(),
            Progress::Ready => "its boot had finished".to_owned(),
        };
        anyhow::anyhow!(
            "node {} did not come up: {what}; {where_to}; the end of {}:\n{}",
            self.name(),
            console.display(),
            console::tail(&console, TAIL)
        )
    }

    /// Ends the VM as a power cut would: all of it, at once, with nothing written any more. Fine
    /// when it does not run.
    ///
    /// # Errors
    /// A state file is damaged, or the VM survives SIGKILL.
    pub fn power_cut(&self) -> Result<()> {
        if !self.folder().is_dir() {
            return Ok(());
        }
        let _lock = self.lock()?;
        if let Some(run) = self.run_file()?.filter(|run| run.process.is_alive()) {
            say(&format!("{}: power cut", self.name()));
            // The child is init of the VM's process namespace: the kernel ends all of it at once
            // and lets the parent go on, and end, when nothing is left.
            for child in run.process.children() {
                child.kill()?;
            }
            if !run.process.wait_gone(Duration::from_secs(5)) {
                run.process.kill()?;
            }
            ensure!(
                run.process.wait_gone(Duration::from_mins(1)),
                "node {}: process {} survives SIGKILL: look at its state with `ps -o stat,wchan -p {}`",
                self.name(),
                run.process.pid,
                run.process.pid
            );
        }
        end_strays(&self.folder(), &self.net)?;
        remove(&self.folder().join("run.json"))
    }

    /// Puts the file of one more data disk, which has the number behind the last one, into the VM while it
    /// runs. The next boot is without it.
    ///
    /// # Errors
    /// The VM does not run, or refuses it.
    pub fn plug(&self) -> Result<()> {
        self.running()?;
        let more = self.spec.clone().disk(0);
        let disk = disks::of(&more, &self.folder()).pop().context("no disk")?;
        plug::plug(&self.folder(), self.name(), &disk)
    }

    /// A power cut, then a boot with the same disks.
    ///
    /// # Errors
    /// As [`Node::power_cut`] and [`Node::boot`].
    pub fn reboot(&self) -> Result<()> {
        self.power_cut()?;
        self.boot()
    }

    /// Powers the VM off in order: programs get SIGTERM and a few seconds, disks are written.
    ///
    /// # Errors
    /// It does not run, does not answer, or is not off in time (it may then be off later).
    pub fn shutdown(&self, timeout: Duration) -> Result<()> {
        let run = self.running()?;
        say(&format!("{}: shutting down", self.name()));
        let grace_ms = u64::try_from(timeout.as_millis() / 2).unwrap_or(u64::MAX).min(10_000);
        self.ask(Request::Shutdown { grace_ms }, ASK_TIMEOUT)?;
        ensure!(
            run.process.wait_gone(timeout),
            "node {} is not off {} s after it was told to shut down; the end of its console log:\n{}",
            self.name(),
            timeout.as_secs(),
            console::tail(&self.console(), TAIL)
        );
        let _lock = self.lock()?;
        remove(&self.folder().join("run.json"))
    }

    /// A program to run in the guest; nothing happens before one of the builder's last methods.
    pub fn exec<A: AsRef<str>>(&self, argv: impl IntoIterator<Item = A>) -> Exec<'_> {
        Exec::new(self, argv.into_iter().map(|word| word.as_ref().to_owned()).collect())
    }

    /// The handle of a process that was spawned in this boot.
    #[must_use]
    pub fn spawned(&self, pid: i32) -> Spawned {
        Spawned::new(self, pid)
    }

    /// One request that needs one answer.
    pub(crate) fn ask(&self, request: Request, timeout: Duration) -> Result<Reply> {
        exec::ask(self.connect(request, timeout)?, timeout)
            .with_context(|| format!("node {}", self.name()))
    }

    pub(crate) fn connect(&self, request: Request, timeout: Duration) -> Result<Connection> {
        let run = self.running()?;
        let timeout = timeout.min(Duration::from_secs(30));
        Connection::open(&self.net, self.address(), run, request, timeout).with_context(|| {
            format!("node {} takes no call (console log {})", self.name(), self.console().display())
        })
    }

    /// The secret of the boot that runs now: no other boot has the same.
    pub(crate) fn boot_token(&self) -> Result<String> {
        Ok(self.running()?.token)
    }

    fn running(&self) -> Result<Run> {
        let name = self.name();
        let run = self.run_file()?.with_context(|| format!("node {name} is off"))?;
        ensure!(
            run.process.is_alive(),
            "the VM of node {name} has died; the end of {}:\n{}",
            self.console().display(),
            console::tail(&self.console(), TAIL)
        );
        Ok(run)
    }

    fn run_file(&self) -> Result<Option<Run>> {
        read_json(&self.folder().join("run.json"))
    }

    /// Held while a VM starts or ends, so that two processes never do both.
    fn lock(&self) -> Result<File> {
        let file = self.folder().join("lock");
        let open = || -> std::io::Result<File> {
            let lock = File::create(&file)?;
            lock.lock()?;
            Ok(lock)
        };
        open().with_context(|| format!("locking {}", file.display()))
    }
}
