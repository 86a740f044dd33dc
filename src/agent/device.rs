//! The device of an LV: whether it is active, as what, and who uses it. LVM is run only to activate
//! what the host did not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Agent;
use super::blocking::{On, within};
use super::carry_out::own_lv;
use super::store::{Turn, Vg, partial};
use crate::error::{Error, Result};
use crate::host::dm::DmDevice;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::{Host, PathKind};
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::lvm::tag::Kind;
use crate::names::{LvName, dm_name};
use crate::plan::missing::{lost_snapshots, survives};
use crate::plan::unfinished_raid;

/// How long the kernel may take to say what it knows.
pub(super) const KERNEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever only looks at a device has closed it again after this many looks of ours.
const LOOKS_MAX: u32 = 30;
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const MOUNTED: &str = "mounted at";

impl<H: Host> Agent<H> {
    /// The active device of an LV, by device-mapper's own name and uuid. `None` when it is not
    /// active.
    pub(super) async fn device(&self, state: &VgState, lv: &Lv) -> Result<Option<DmDevice>> {
        let name = dm_name(&state.name, &lv.name).map_err(|e| Error::invalid(e.to_string()))?;
        let what = format!("device {name}");
        let found =
            within(&self.0.store, On::Vg(&state.uuid), KERNEL_TIMEOUT, &what, move |host| {
                host.device(&name)
            })
            .await?
            .map_err(|e| Error::host(format!("cannot look up {what}")).because(e))?;
        let Some(device) = found else { return Ok(None) };
        let uuid = format!("LVM-{}{}", state.uuid.compact(), lv.uuid.compact());
        if device.uuid != uuid {
            return Err(Error::failed_precondition(format!(
                "{what} is not volume {} of volume group {}: its uuid is {}, not {uuid}; two volume groups may have one name",
                lv.name, state.name, device.uuid
            )));
        }
        Ok(Some(device))
    }

    /// The device of an LV, made active if it is not.
    pub(super) async fn activate(&self, vg: &Vg, lv: &LvName) -> Result<DmDevice> {
        let state = vg.state();
        if let Some(device) = self.device(&state, own_lv(&state, lv)?).await? {
            return Ok(device);
        }
        let mut turn = self.0.store.turn(vg).await?;
        // To activate RAID takes no more disks than its data does.
        let state = match vg.state() {
            known if own_lv(&known, lv).is_ok_and(|lv| survives(&known, lv)) => {
                turn.refresh_though_partial().await?
            }
            _ => turn.refresh().await?,
        };
        let found = own_lv(&state, lv)?;
        if let LvLayout::UnfinishedRaid(_) = found.layout {
            return Err(unfinished_raid(&state, found));
        }
        if state.is_partial() && !survives(&state, found) {
            return Err(partial(&state));
        }
        remove_lost_images(&mut turn, &state, found).await?;
        let lv = lv.clone();
        // LVM takes a thin volume on a pool that lacks legs for one that lacks extents.
        let lacks_legs = state.is_partial() && found.pool().is_some();
        let change =
            if lacks_legs { Change::ActivateDegraded { lv } } else { Change::Activate { lv } };
        turn.run(&change).await?;
        // LVM says "success" when it skips an LV: only the device itself proves it.
        self.device(&state, found).await?.ok_or_else(|| {
            Error::host(format!(
                "{}/{} is not active, though LVM reports success",
                state.name, found.name
            ))
        })
    }

    /// Makes sure that nobody uses an LV.
    pub(super) async fn must_be_idle(&self, state: &VgState, lv: &LvName) -> Result<()> {
        let mut looks = LOOKS_MAX;
        let mut users = self.who_uses(state, lv).await?;
        while goes_on(&users, &mut looks).await {
            users = self.who_uses(state, lv).await?;
        }
        if users.is_empty() {
            return Ok(());
        }
        let users = users.join(", ");
        Err(Error::failed_precondition(format!("{lv} is in use: {users}")))
    }

    /// Makes sure that nobody has an unmounted device that a program is to work on. The program of an
    /// agent that was killed goes on without it, and not each of them (`tune2fs`) asks the kernel for
    /// the device for itself alone.
    pub(super) async fn must_be_let_go(&self, lv: &Lv, device: &DmDevice) -> Result<()> {
        let mut looks = LOOKS_MAX;
        let mut users = self.users_of(device.clone()).await?;
        while goes_on(&users, &mut looks).await {
            users = self.users_of(device.clone()).await?;
        }
        if users.is_empty() {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "volume {} is not worked on while somebody has its device {}: {}. It is tried again; a program of a driver that was killed comes to its end by itself",
            lv.name,
            device.node.display(),
            users.join(", ")
        )))
    }

    /// A mount of the device's node anywhere: a block volume that is published.
    pub(super) async fn bound_node(
        &self,
        mounts: &MountTable,
        device: &DmDevice,
    ) -> Result<Option<Mount>> {
        let (mounts, device) = (mounts.clone(), device.clone());
        let what = format!("device {}", device.name);
        within(&self.0.store, On::Device(&device.clone()), KERNEL_TIMEOUT, &what, move |host| {
            bound_node(host, &mounts, &device)
        })
        .await?
        .map_err(|e| Error::host(format!("cannot look up where {what} is published")).because(e))
    }

    /// Who uses an LV: mounts, and whoever else has its device open. Empty when nobody does.
    async fn who_uses(&self, state: &VgState, lv: &LvName) -> Result<Vec<String>> {
        let Some(found) = state.lvs.get(lv) else { return Ok(vec![]) };
        let Some(device) = self.device(state, found).await? else { return Ok(vec![]) };
        if found.tags.luks
            && let Some(mapping) = self.mapping(state, found).await?
        {
            let mut users = self.users_of(mapping.clone()).await?;
            if users.is_empty() {
                users.push(format!("opened as {}: NodeUnstageVolume closes it", mapping.name));
            }
            return Ok(users);
        }
        self.users_of(device).await
    }

    /// Who uses a device.
    pub(super) async fn users_of(&self, device: DmDevice) -> Result<Vec<String>> {
        let what = format!("device {}", device.name);
        within(&self.0.store, On::Device(&device.clone()), KERNEL_TIMEOUT, &what, move |host| {
            let mounts = host.mounts()?;
            if let Some(bound) = bound_node(host, &mounts, &device)? {
                return Ok(vec![format!("{MOUNTED} {} as a device", bound.target.display())]);
            }
            let mut users: Vec<String> = mounts
                .iter()
                .filter(|m| m.device == device.number || m.source == device.node)
                .map(|m| format!("{MOUNTED} {}", m.target.display()))
                .collect();
            let open = host.device_status(&device.name)?.map_or(0, |s| s.open_count);
            if users.is_empty() && open > 0 {
                users.push(format!("opened {open} times (a pod, another device, or a process)"));
            }
            Ok(users)
        })
        .await?
        .map_err(|e: std::io::Error| {
            Error::host(format!("cannot look up who uses {what}")).because(e)
        })
    }
}

/// Whether those who use a device may be gone in a moment, as udev and others that only look at it are:
/// then that moment is waited for. The end of a mount is not.
async fn goes_on(users: &[String], looks: &mut u32) -> bool {
    *looks = looks.saturating_sub(1);
    if *looks == 0 || users.is_empty() || users.iter().any(|user| user.starts_with(MOUNTED)) {
        return false;
    }
    tokio::time::sleep(LOOK_AGAIN).await;
    true
}

/// LVM activates no LV without all its thick snapshots. An image that a copy was made from is nothing
/// that anybody would miss: the copy begins again. A snapshot is for its owner to give up.
async fn remove_lost_images<H: Host>(
    turn: &mut Turn<'_, H>,
    state: &VgState,
    lv: &Lv,
) -> Result<()> {
    let names: Vec<_> = lost_snapshots(state, lv)
        .filter(|lv| lv.tags.kind != Some(Kind::Image) || !lv.tags.is_ours())
        .map(|lv| lv.name.as_str())
        .collect();
    if !names.is_empty() {
        return Err(Error::failed_precondition(format!(
            "volume {0} has all its data on the disks that are there, but what its snapshots {1} keep is on one that is missing, and LVM activates none without the other: \
             bring the disk back, or delete these VolumeSnapshots",
            lv.name,
            names.join(", ")
        )));
    }
    for image in lost_snapshots(state, lv) {
        tracing::warn!(vg = %state.name, lv = %image.name, "what a volume is being copied from is lost with a disk: the copy begins again");
        turn.run(&Change::Remove { lv: image.name.clone(), uuid: image.uuid.clone() }).await?;
    }
    Ok(())
}

/// A mount whose root has the name of the device's node, and at which that very device is.
fn bound_node<H: Host>(
    host: &H,
    mounts: &MountTable,
    device: &DmDevice,
) -> std::io::Result<Option<Mount>> {
    let by_number = PathBuf::from(format!("dm-{}", device.number.1));
    let names = [device.node.file_name(), by_number.file_name()];
    for mount in mounts.iter().filter(|m| m.root != Path::new("/")) {
        let fits = names.contains(&mount.root.file_name());
        if fits && host.path_kind(&mount.target)? == PathKind::BlockDevice(device.number) {
            return Ok(Some(mount.clone()));
        }
    }
    Ok(None)
}
