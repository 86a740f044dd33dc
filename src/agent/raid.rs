//! How the RAID volumes of this node are: asked of the kernel, told in metrics and, when it changes,
//! in the log. Changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Agent;
use super::blocking::{On, within};
use super::device::KERNEL_TIMEOUT;
use super::store::Vg;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::raid_status::RaidStatus;
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::names::{Handle, LvName, dm_name};

/// How long a call waits for legs to be in step; the sidecars wait a minute.
const IN_STEP_WITHIN: Duration = Duration::from_secs(40);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The active RAID volumes of a node.
pub type RaidVolumes = BTreeMap<Handle, RaidStatus>;

impl<H: Host> Agent<H> {
    /// How the RAID volumes are, and every change of it.
    #[must_use]
    pub fn raid(&self) -> watch::Receiver<Arc<RaidVolumes>> {
        self.0.raid.subscribe()
    }

    /// Asks the kernel about every RAID volume: an ioctl each.
    pub(super) async fn watch_raid(&self) {
        let mut now = RaidVolumes::new();
        for vg in self.0.store.all() {
            let state = vg.state();
            let volumes = state.lvs.values().filter(|lv| lv.is_volume());
            let pools = state.lvs.values().flat_map(|lv| &lv.parts);
            let on_raid = |lv: &&Lv| matches!(lv.layout, LvLayout::Raid(_));
            for lv in volumes.chain(pools).filter(on_raid) {
                match self.raid_status(&state, lv).await {
                    Ok(Some(status)) => drop(now.insert(state.handle(&lv.name), status)),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(vg = %state.name, lv = %lv.name, error = error.chain(), "cannot look at the RAID volume");
                    }
                }
            }
        }
        let before = Arc::clone(&self.0.raid.borrow());
        for (volume, status) in &now {
            tell(volume, before.get(volume), status);
        }
        self.0.raid.send_if_modified(|old| {
            let changed = **old != now;
            if changed {
                *old = Arc::new(now);
            }
            changed
        });
    }

    /// Waits until all legs of a RAID LV are in step, before its thick snapshots change: for that LVM
    /// moves the legs from one device to another, and the kernel may wait for ever for a resync that
    /// it has stopped with the first one (seen with 6.1). Anything else is in step.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Unavailable`] when they are not within the time that a caller has.
    pub(super) async fn wait_in_step(&self, vg: &Vg, lv: &LvName) -> Result<()> {
        let start = Instant::now();
        loop {
            let Some(status) = self.out_of_step(&vg.state(), lv).await? else { return Ok(()) };
            if start.elapsed() >= IN_STEP_WITHIN {
                return Err(not_in_step(lv, &status));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The same of an LV whose thick snapshots a change is about to change, asked once: whoever waited
    /// did so before its turn, and by the name that the LV had then.
    pub(super) async fn must_be_in_step(&self, state: &VgState, change: &Change) -> Result<()> {
        let origin = if let Change::Remove { lv, .. } | Change::SplitSnapshot { lv } = change {
            state.lvs.get(lv).and_then(Lv::cow_origin)
        } else if let Change::SnapshotThick { origin, .. } = change {
            Some(origin)
        } else {
            None
        };
        let Some(origin) = origin else { return Ok(()) };
        match self.out_of_step(state, origin).await? {
            Some(status) => Err(not_in_step(origin, &status)),
            None => Ok(()),
        }
    }

    /// How the legs of an LV are, when it is active RAID and they are not in step.
    async fn out_of_step(&self, state: &VgState, lv: &LvName) -> Result<Option<RaidStatus>> {
        let found = state.lvs.get(lv).filter(|lv| matches!(lv.layout, LvLayout::Raid(_)));
        let Some(found) = found else { return Ok(None) };
        let status = self.raid_status(state, found).await?;
        Ok(status.filter(|status| status.behind > 0 || status.action != "idle"))
    }

    /// `None` when it is not active.
    pub(super) async fn raid_status(&self, state: &VgState, lv: &Lv) -> Result<Option<RaidStatus>> {
        // A part of a pool has a device whose uuid says more than the part's; its name is LVM's own.
        let name = if lv.is_volume() {
            self.device(state, lv).await?.map(|device| device.name)
        } else {
            dm_name(&state.name, &lv.name).ok()
        };
        let Some(name) = name else { return Ok(None) };
        let what = format!("device {name}");
        let status =
            within(&self.0.store, On::Vg(&state.uuid), KERNEL_TIMEOUT, &what, move |host| {
                let status = host.device_status(&name)?;
                // With thick snapshots, its LV is a layer above the legs.
                let is_layer = |(kind, _): &(String, String)| kind == "snapshot-origin";
                if status.as_ref().is_some_and(|s| s.targets.iter().any(is_layer)) {
                    return host.device_status(&format!("{name}-real"));
                }
                Ok(status)
            })
            .await?
            .map_err(|e: std::io::Error| {
                Error::host(format!("cannot ask the kernel about {what}")).because(e)
            })?;
        Ok(status.and_then(|s| s.targets.first().and_then(|(_, line)| RaidStatus::parse(line))))
    }
}

fn not_in_step(lv: &LvName, status: &RaidStatus) -> Error {
    let percent = status.in_step.0.saturating_mul(100).checked_div(status.in_step.1);
    Error::unavailable(format!(
        "the legs of RAID volume {lv} are being brought in step ({}%), and its thick snapshots can be neither taken nor removed meanwhile",
        percent.unwrap_or_default()
    ))
}

fn tell(volume: &Handle, before: Option<&RaidStatus>, now: &RaidStatus) {
    let (failed, legs) = (now.failed, now.legs);
    let before = before.map_or((0, 0), |before| (before.failed, before.behind));
    if failed > before.0 {
        tracing::error!(%volume, failed, legs, "RAID volume has lost legs: replace the disk, then repair the volume");
    } else if failed < before.0 {
        tracing::info!(%volume, failed, legs, "RAID volume has legs again");
    }
    if now.behind > 0 && before.1 == 0 {
        tracing::info!(%volume, action = now.action, "RAID volume is being brought in step; it can be used meanwhile");
    } else if now.behind == 0 && before.1 > 0 {
        tracing::info!(%volume, "RAID volume is in step");
    }
}
