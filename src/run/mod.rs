//! Puts the parts of a process together and runs them until it is told to end. Every option is
//! used here or nowhere.

mod config_file;
mod controller;
mod node;
pub mod standalone;
mod watchdog;

use std::fs::DirBuilder;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, IsReady};
use crate::agent::{Agent, CopyTotals};
use crate::cli::{Cli, Log, Mode, Orphans, Repair};
use crate::csi::Readiness;
use crate::domain::Inventory;
use crate::error::{Error, Result};
use crate::host::{Host, Linux};
use crate::lvm::command;
use crate::metrics::{Metrics, ProgramMetrics};
use crate::operator::{Ask, AskRepair, ask, ask_repair};
use crate::telemetry;

/// The oldest LVM that takes `--devices` and `--setautoactivation`.
const LVM_MIN: (u64, u64, u64) = (2, 3, 12);

/// Runs what the command line says.
///
/// # Errors
/// When it cannot start, or a part of it fails.
pub async fn run(cli: Cli) -> Result<()> {
    match cli.mode {
        Mode::Controller(options) => {
            let stop = start(&options.common.log)?;
            controller::run(options, stop).await
        }
        Mode::Node(options) => {
            let stop = start(&options.common.log)?;
            Box::pin(node::run(options, stop)).await
        }
        Mode::Standalone(options) => {
            let stop = start(&options.common.log)?;
            standalone::run(options, stop).await
        }
        Mode::Watchdog(options) => {
            let stop = start(&options.log)?;
            watchdog::run(&options.run_dir, stop).await
        }
        Mode::Orphans(options) => orphans(&options).await,
        Mode::Repair(options) => repair(&options).await,
    }
}

/// Begins what serves; a signal cancels what is returned.
fn start(log: &Log) -> Result<CancellationToken> {
    let stop = CancellationToken::new();
    telemetry::start(&log.log, log.log_format)?;
    end_on_signal(&stop)?;
    Ok(stop)
}

/// Asks the controller of this pod, and writes its answer for whoever reads it.
async fn orphans(options: &Orphans) -> Result<()> {
    let socket = options.operator.operator_endpoint.clone();
    write(&ask(Ask { socket, remove: options.remove.clone() }, now()).await?)
}

/// The same of the agent of this pod.
async fn repair(options: &Repair) -> Result<()> {
    let socket = options.operator.operator_endpoint.clone();
    write(&ask_repair(AskRepair { socket, backend: options.backend.clone() }).await?)
}

fn write(said: &str) -> Result<()> {
    let written = std::io::stdout().write_all(said.as_bytes());
    written.map_err(|e| Error::host("cannot write the answer").because(e))
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Serves metrics and probes where an address is given; waits for ever where none is.
async fn http(
    address: Option<SocketAddr>,
    metrics: Metrics,
    is_ready: IsReady,
    stop: &CancellationToken,
) -> Result<()> {
    match address {
        Some(address) => admin::serve(address, metrics, is_ready, stop.clone()).await,
        None => std::future::pending().await,
    }
}

/// One figure of copies.
type ReadCopies = fn(CopyTotals) -> u64;

/// Shows what an agent has still to wipe and to copy, and how its RAID and snapshots are.
fn show_agent<H: Host>(metrics: &Metrics, agent: &Agent<H>) {
    let (count, size, undiscarded) = (agent.clone(), agent.clone(), agent.clone());
    metrics.show(
        "cinderblock_trash_volumes",
        "Deleted volumes and snapshots that are still to be wiped",
        move || count.trash().0,
    );
    metrics.show("cinderblock_trash_bytes", "Their sizes", move || size.trash().1.get());
    metrics.show(
        "cinderblock_undiscarded_volumes",
        "Deleted volumes that were removed since the start though their disks took no discard",
        move || undiscarded.undiscarded(),
    );
    let copies: [(_, _, ReadCopies); 4] = [
        ("cinderblock_copies", "Volumes that are being copied, or wait for it", |c| c.running),
        ("cinderblock_copied_read_bytes", "Read from sources since the start", |c| c.read),
        ("cinderblock_copied_written_bytes", "Written to copies since the start", |c| c.written),
        ("cinderblock_copied_zeroed_bytes", "Zeroed on copies since the start", |c| c.zeroed),
    ];
    for (name, help, read) in copies {
        let agent = agent.clone();
        metrics.show(name, help, move || read(agent.copies()));
    }
    metrics.show_raid(agent.raid());
    metrics.show_thick_snapshots(agent.thick_snapshots());
}

/// Ready when the inventory is there, which an agent's first report makes.
#[derive(Debug)]
pub struct Ready(watch::Receiver<Arc<Inventory>>);

impl Readiness for Ready {
    fn is_ready(&self) -> bool {
        self.0.borrow().revision > 0
    }
}

/// The first SIGTERM or SIGINT lets everything end in order.
fn end_on_signal(stop: &CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e| Error::host("cannot wait for signals").because(e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let stop = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tracing::info!(
            signal = name,
            "ending: new calls are refused, running ones come to their end"
        );
        stop.cancel();
    });
    Ok(())
}

/// The host that this process works on, with all programs found and LVM new enough.
async fn host(run_dir: &Path, programs: ProgramMetrics) -> Result<Linux> {
    let lvm_dir = run_dir.join("lvm");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&lvm_dir)
        .map_err(|e| Error::host(format!("cannot make {}", lvm_dir.display())).because(e))?;
    let host = Linux::new(&lvm_dir, programs)?;
    let done = host
        .run(&command::version())
        .await
        .map_err(|e| Error::host("cannot ask LVM for its version").because(e))?;
    let found = lvm_version(&done.stdout).ok_or_else(|| {
        Error::host(format!("`lvm version` says no version: {}", done.complaint()))
    })?;
    if found < LVM_MIN {
        return Err(Error::host(format!(
            "LVM {}.{:02}.{} is too old: {}.{:02}.{} is the oldest that this driver works with",
            found.0, found.1, found.2, LVM_MIN.0, LVM_MIN.1, LVM_MIN.2
        )));
    }
    tracing::info!(lvm = format!("{}.{:02}.{}", found.0, found.1, found.2), "found LVM");
    Ok(host)
}

fn lvm_version(text: &str) -> Option<(u64, u64, u64)> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("LVM version:"))?;
    let number = line.trim().split(['(', '-', ' ']).next()?;
    let mut parts = number.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_lvm() {
        let text = "  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185\n";
        assert_eq!(lvm_version(text), Some((2, 3, 16)));
        assert_eq!(lvm_version("  LVM version:     2.03.33(2)-git (x)\n"), Some((2, 3, 33)));
        assert_eq!(lvm_version("nothing"), None);
        assert!((2, 2, 188) < LVM_MIN && LVM_MIN < (2, 3, 16));
    }
}
