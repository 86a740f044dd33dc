//! How the RAID volumes of this node are: asked of the kernel, told in metrics and, when it changes,
//! in the log. Changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Agent;
use super::blocking::within;
use super::device::KERNEL_TIMEOUT;
use super::store::Vg;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::raid_status::RaidStatus;
use crate::lvm::layout::ThickLayout;
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
            let state = vg.state();
            let Some(found) = state.lvs.get(lv) else { return Ok(()) };
            if !matches!(found.layout, LvLayout::Raid(_)) {
                return Ok(());
            }
            let Some(status) = self.raid_status(&state, found).await? else { return Ok(()) };
            if status.behind == 0 && status.action == "idle" {
                return Ok(());
            }
            if start.elapsed() >= IN_STEP_WITHIN {
                let percent = status.in_step.0.saturating_mul(100).checked_div(status.in_step.1);
                return Err(Error::unavailable(format!(
                    "the legs of RAID volume {lv} are being brought in step ({}%), and its thick snapshots can be neither taken nor removed meanwhile",
                    percent.unwrap_or_default()
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
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
        let status = within(&self.0.store.host, KERNEL_TIMEOUT, &what, move |host| {
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

/// Whether an LV can be used though disks of its VG are missing: so few of its legs are on them that
/// the others have all of its data. A thin volume can when its pool can, all of it.
pub(super) fn survives(state: &VgState, lv: &Lv) -> bool {
    match &lv.layout {
        LvLayout::Raid(layout @ ThickLayout::Raid { .. }) => {
            lost_legs(state, lv) <= layout.spare_legs()
        }
        LvLayout::ThinPool { .. } => {
            !lv.parts.is_empty() && lv.parts.iter().all(|part| survives(state, part))
        }
        LvLayout::Thin { pool, .. } => {
            state.lvs.get(pool).is_some_and(|pool| survives(state, pool))
        }
        LvLayout::Raid(_)
        | LvLayout::Linear
        | LvLayout::Striped { .. }
        | LvLayout::UnfinishedRaid(_)
        | LvLayout::Cow { .. }
        | LvLayout::Other(_) => false,
    }
}

/// Whether all data of an LV is on disks that are there.
pub(super) fn is_whole(state: &VgState, lv: &Lv) -> bool {
    let here = |pv| state.pvs.get(pv).is_some_and(|pv| pv.device.is_some());
    match &lv.layout {
        LvLayout::Raid(_) => survives(state, lv),
        LvLayout::ThinPool { .. } => lv.parts.iter().all(|part| is_whole(state, part)),
        LvLayout::Thin { pool, .. } => {
            state.lvs.get(pool).is_some_and(|pool| is_whole(state, pool))
        }
        LvLayout::Linear
        | LvLayout::Striped { .. }
        | LvLayout::UnfinishedRaid(_)
        | LvLayout::Cow { .. }
        | LvLayout::Other(_) => lv.areas.iter().all(|area| here(&area.pv)),
    }
}

/// The thick snapshots of an LV that are lost with a missing disk, and without which LVM does not
/// activate it: what they keep is on that disk.
pub(super) fn lost_snapshots<'a>(state: &'a VgState, lv: &'a Lv) -> impl Iterator<Item = &'a Lv> {
    state.cow_snapshots(&lv.name).filter(|snapshot| is_lost_with_disk(state, snapshot))
}

/// Whether what a thick snapshot keeps is on a disk that is missing.
pub(super) fn is_lost_with_disk(state: &VgState, lv: &Lv) -> bool {
    let here = |pv| state.pvs.get(pv).is_some_and(|pv| pv.device.is_some());
    lv.cow_origin().is_some() && lv.areas.iter().any(|area| !here(&area.pv))
}

/// How many legs of a RAID LV are on disks that are missing.
pub(super) fn lost_legs(state: &VgState, lv: &Lv) -> u32 {
    let LvLayout::Raid(layout) = &lv.layout else { return 0 };
    // A leg that lies on no disk is lost as well, and so is one that is not known.
    let here = |leg: &&Vec<_>| {
        !leg.is_empty()
            && leg.iter().all(|pv| state.pvs.get(pv).is_some_and(|pv| pv.device.is_some()))
    };
    let found = u32::try_from(lv.legs.iter().filter(here).count()).unwrap_or_default();
    layout.legs().saturating_sub(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::layout::RaidLevel;
    use crate::names::LvmUuid;
    use crate::plan::fixture::{add, lv_name, vg};
    use crate::units::Bytes;

    #[test]
    fn a_volume_survives_as_many_disks_as_its_layout_says() {
        for (level, legs, spare) in
            [(RaidLevel::Raid1, 3, 2), (RaidLevel::Raid5, 3, 1), (RaidLevel::Raid6, 5, 2)]
        {
            let mut state = vg(&[&[10], &[10], &[10], &[10], &[10], &[10]]);
            let layout = ThickLayout::Raid { level, legs, stripe_size: Bytes::ZERO };
            add(&mut state, "pvc-1", Bytes::gib(1), LvLayout::Raid(layout), &["cinderblock=1"]);
            let pv = |n: u32| LvmUuid::derived(&format!("pv{n}"));
            let lv = state.lvs.get_mut(&lv_name("pvc-1")).unwrap();
            lv.legs = (0..legs).map(|n| vec![pv(n)]).collect();
            let lv = lv.clone();
            for unknown in [vec![], vec![vec![]; lv.legs.len()]] {
                assert!(!survives(&state, &Lv { legs: unknown, ..lv.clone() }), "{level:?}");
            }
            let mut lose = |n| state.pvs.get_mut(&pv(n)).unwrap().device = None;
            // One that it has no leg on.
            lose(5);
            for n in 0..spare {
                lose(n);
            }
            assert!(survives(&state, &lv), "{level:?}");
            state.pvs.get_mut(&pv(spare)).unwrap().device = None;
            assert!(!survives(&state, &lv), "{level:?}");
        }
    }

    /// The spare of a pool does not count: it is for repairs.
    #[test]
    fn a_thin_volume_survives_with_all_of_its_pool() {
        let mut state = vg(&[&[10], &[10], &[10]]);
        let thin = crate::plan::fixture::thin(None);
        let pool = LvLayout::ThinPool { zero: true, chunk_size: Bytes::kib(64) };
        add(&mut state, "pool0", Bytes::gib(1), pool, &[]);
        add(&mut state, "pvc-1", Bytes::gib(1), thin, &["cinderblock=1"]);
        let pv = |n: u32| LvmUuid::derived(&format!("pv{n}"));
        let (level, stripe_size) = (RaidLevel::Raid1, Bytes::ZERO);
        let parts = &mut state.lvs.get_mut(&lv_name("pool0")).unwrap().parts;
        for (part, on) in parts.iter_mut().zip([[0, 1], [1, 2]]) {
            part.layout = LvLayout::Raid(ThickLayout::Raid { level, legs: 2, stripe_size });
            part.legs = on.map(|n| vec![pv(n)]).to_vec();
        }
        state.pvs.get_mut(&pv(0)).unwrap().device = None;
        let of = |state: &VgState, name| {
            let lv = &state.lvs[&lv_name(name)];
            (survives(state, lv), is_whole(state, lv))
        };
        assert_eq!((of(&state, "pool0"), of(&state, "pvc-1")), ((true, true), (true, true)));
        state.pvs.get_mut(&pv(2)).unwrap().device = None;
        assert_eq!(of(&state, "pvc-1"), (true, true));
        state.pvs.get_mut(&pv(1)).unwrap().device = None;
        assert_eq!(of(&state, "pvc-1"), (false, false));
        // Half of it on plain extents is not for LVM to make up.
        state.pvs.get_mut(&pv(1)).unwrap().device = Some("/dev/pv1".into());
        let parts = &mut state.lvs.get_mut(&lv_name("pool0")).unwrap().parts;
        (parts[1].layout, parts[1].legs) = (LvLayout::Linear, vec![]);
        assert_eq!(of(&state, "pvc-1"), (false, true));
    }

    #[test]
    fn what_is_not_raid_does_not() {
        let mut state = vg(&[&[10]]);
        add(&mut state, "pvc-1", Bytes::gib(1), LvLayout::Linear, &["cinderblock=1"]);
        assert!(!survives(&state, &state.lvs[&lv_name("pvc-1")]));
    }
}
