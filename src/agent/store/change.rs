//! One change of a VG by LVM: how it ended, and what is told while it does not.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Turn, Vg};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::host::runner::{Completed, Exit, RunError};
use crate::lvm::change::{Change, Target};
use crate::lvm::command;
use crate::lvm::report::errors_in_log;
use crate::names::VgName;

/// A change that LVM has not ended after this is told as a trouble. Most take a second; to zero the
/// metadata of a large pool takes tens.
const HANGS: Duration = Duration::from_mins(1);

impl<H: Host> Turn<'_, H> {
    /// Carries out one change.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when it may have happened, otherwise it failed; what the VG holds
    /// is for [`Turn::refresh`] to tell.
    pub(in crate::agent) async fn run(&mut self, change: &Change) -> Result<()> {
        self.mend().await;
        self.must_not_tell_pool(change)?;
        let ran = self.command(change).await;
        if ran.is_err() {
            self.vg.set_cut(true);
            self.mend().await;
        }
        ran
    }

    pub(super) async fn command(&self, change: &Change) -> Result<()> {
        let state = self.vg.state();
        let target = Target {
            vg: state.name.clone(),
            uuid: state.uuid.clone(),
            extent_size: state.extent_size,
            devices: state.devices(),
        };
        let call = command::change(&target, change);
        let label = call.label();
        let started = Instant::now();
        let running = self.store.host.run(&call);
        let done = self.wait_for(&label, running).await.map_err(|e| lost(&label, e))?;
        let lv = change.lv().map_or("", |lv| lv.as_str());
        let elapsed = started.elapsed();
        if done.success() {
            tracing::info!(vg = %state.name, lv, command = label, ?elapsed, "LVM changed the volume group");
            return Ok(());
        }
        tracing::warn!(vg = %state.name, lv, command = %call, complaint = failure(&label, &done), "LVM refused a change");
        let said = failure(&format!("{label} {}/{lv}", state.name), &done);
        Err(match done.exit {
            // Whoever killed it may let it live the next time.
            Exit::Signal(_) => Error::unavailable(said),
            Exit::Code(_) => refusal(&state.name, said),
        })
    }

    /// Waits for a command however long it takes. When that is long, it is told of the VG meanwhile.
    pub(super) async fn wait_for<T>(&self, label: &str, running: impl Future<Output = T>) -> T {
        tokio::pin!(running);
        if let Ok(done) = tokio::time::timeout(HANGS, &mut running).await {
            return done;
        }
        let sentence = format!(
            "{label} in volume group {} takes more than {} s: a disk may hang, look at dmesg; do not kill it, and all else in the volume group waits for it",
            self.vg.name(),
            HANGS.as_secs()
        );
        tracing::error!(sentence, "LVM hangs");
        let _told = Hanging::new(self.vg, &self.store.changes, sentence);
        running.await
    }
}

/// Tells that LVM hangs, until it is dropped.
struct Hanging<'a> {
    vg: &'a Vg,
    changes: &'a watch::Sender<u64>,
}

impl<'a> Hanging<'a> {
    fn new(vg: &'a Vg, changes: &'a watch::Sender<u64>, sentence: String) -> Self {
        let told = Self { vg, changes };
        told.tell(Some(sentence));
        told
    }

    fn tell(&self, sentence: Option<String>) {
        *self.vg.hanging.write().unwrap_or_else(PoisonError::into_inner) = sentence;
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// What LVM's own words mean for whoever asked for a change that it did not make. It speaks no other language than this here.
fn refusal(vg: &VgName, said: String) -> Error {
    // LVM looks before it writes anything (lvm2's `lib/format_text/format-text.c`, `_vg_write_raw`).
    if said.contains("exceeds maximum metadata size")
        || said.contains("too large for circular buffer")
    {
        return Error::no_space(format!(
            "the metadata area of volume group {vg} is full, so it takes nothing new, however much room it has: delete volumes or snapshots, or give it a larger area (docs/operations.md): {said}"
        ));
    }
    // thin_check is given a name, and udev may still take away the one that this device had before it was activated anew.
    if said.contains("Check of pool ") {
        return Error::unavailable(format!(
            "the metadata of a thin pool of volume group {vg} could not be checked before it is activated; it is tried again, and when that does not help, the pool is damaged and has to be repaired (docs/operations.md): {said}"
        ));
    }
    Error::host(said)
}

pub(super) fn failure(label: &str, done: &Completed) -> String {
    let said = errors_in_log(&done.stdout);
    if said.is_empty() {
        format!("{label}: {}", done.complaint())
    } else {
        format!("{label}: {said}")
    }
}

pub(super) fn lost(label: &str, error: RunError) -> Error {
    let kind = match error {
        RunError::Start(..) => ErrorKind::Host,
        RunError::Timeout(..) | RunError::Lost(..) => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{label} did not come to an end")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lvms_words_decide_what_comes_next() {
        let vg = VgName::parse("vg0").unwrap();
        let kind = |said: &str| refusal(&vg, format!("lvm lvcreate vg0/a: {said}")).kind();
        let large = "VG vg0 33554432 metadata on /dev/sda (1048064 bytes) too large for circular buffer (1048064 bytes).";
        assert_eq!(kind(large), ErrorKind::NoSpace);
        let unchecked = "Check of pool vg0/pool0 failed (status:1). Manual repair required!";
        assert_eq!(kind(unchecked), ErrorKind::Unavailable);
        assert_eq!(kind("Volume group \"vg0\" has insufficient free space"), ErrorKind::Host);
    }
}
