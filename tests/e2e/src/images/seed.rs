//! A containerd root that has all of the lab's images already, made on the host, where that takes a second: nodes copy it at their first boot.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ring::digest::{SHA256, digest};
use rustix::process::{Pid, Signal, kill_process};

use super::Archive;
use crate::tools::Tools;
use crate::{console, hex, programs, say};

/// Raised when a seed is made in another way, so that old ones are not used.
const FORMAT: u32 = 1;

/// containerd's start takes a second; this is for machines that are loaded.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Makes the seed of these images unless it is there.
pub(super) fn ensure_seed(tools: &Tools, archives: &[Archive]) -> Result<PathBuf> {
    let parts: Vec<_> = archives.iter().map(|it| &it.image).collect();
    let key = format!("{FORMAT} {parts:?}");
    let key = hex(&digest(&SHA256, key.as_bytes()).as_ref()[..6]);
    let seed = tools.images().join(format!("seed-{key}"));
    if !seed.exists() {
        let _lock = tools.lock()?;
        if !seed.exists() {
            say("loading the images into a containerd root for new nodes");
            make(tools, archives, &seed).context("making a containerd root with images")?;
        }
    }
    Ok(seed)
}

fn make(tools: &Tools, archives: &[Archive], seed: &Path) -> Result<()> {
    let work = seed.with_extension("partial");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    }
    let root = work.join("root");
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    let socket = work.join("socket");
    let config = work.join("config.toml");
    fs::write(&config, text(&work)).with_context(|| format!("writing {}", config.display()))?;
    let mut containerd = Containerd::start(tools, &config, &work.join("log"))?;
    let imported = containerd.wait_for(&socket).and_then(|()| import(tools, archives, &socket));
    containerd.stop()?;
    imported?;
    // Nothing else in the root is worth keeping.
    for entry in fs::read_dir(&root)?.flatten() {
        let name = entry.file_name();
        if !["content", "metadata"].iter().any(|part| name.to_string_lossy().contains(part)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    fs::rename(&root, seed).with_context(|| format!("creating {}", seed.display()))?;
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))
}

/// Content and metadata only: nothing here is unpacked or run.
fn text(work: &Path) -> String {
    let work = work.display();
    format!(
        r#"version = 3
root = "{work}/root"
state = "{work}/state"
temp = "{work}/temp"
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.overlayfs",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{work}/socket"

[ttrpc]
address = "{work}/socket.ttrpc"
"#
    )
}

fn import(tools: &Tools, archives: &[Archive], socket: &Path) -> Result<()> {
    let ctr = tools.program("ctr").display().to_string();
    for archive in archives {
        let (socket, file) = (socket.display().to_string(), archive.file.display().to_string());
        let words = ["--address", &socket, "--namespace", "k8s.io", "images", "import"];
        let words: Vec<_> = words.into_iter().chain(["--local", "--no-unpack", &file]).collect();
        programs::run(&ctr, &words, "")?;
    }
    Ok(())
}

/// A containerd that ends with this value.
struct Containerd {
    child: Child,
    log: PathBuf,
}

impl Containerd {
    fn start(tools: &Tools, config: &Path, log: &Path) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let child = Command::new(tools.program("containerd"))
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting containerd")?;
        Ok(Self { child, log: log.to_owned() })
    }

    fn wait_for(&mut self, socket: &Path) -> Result<()> {
        let start = Instant::now();
        while !socket.exists() {
            let ended = self.child.try_wait().context("waiting for containerd")?;
            ensure!(
                ended.is_none() && start.elapsed() < TIMEOUT,
                "containerd takes no calls; the end of its log:\n{}",
                console::tail(&self.log, 20)
            );
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// In order, so that its database is whole.
    fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.context("a process id out of range")?;
        // Fine when it has ended.
        let _ = kill_process(pid, Signal::TERM);
        let start = Instant::now();
        while self.child.try_wait().context("waiting for containerd")?.is_none() {
            ensure!(start.elapsed() < TIMEOUT, "containerd does not end");
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
