//! A volume's filesystem before it is mounted: made once, given a UUID of its own, checked, grown.
//!
//! A device is formatted only if all of this holds: the volume bears the tag `cb.fresh`, which is
//! dropped before anybody gets the device; and a low-level probe finds nothing on it - or the
//! half-made filesystem of an earlier try, known by its UUID, and without a file: a tag may be wrong,
//! as when LVM's metadata was restored from a backup. Whatever else cannot be mounted is for a person
//! to look at.

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::super::Agent;
use super::super::blocking::{On, within};
use super::super::store::Vg;
use super::MOUNT_TIMEOUT;
use super::stage::may_be_a_device;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::dm::DmDevice;
use crate::host::filesystem::{
    Probe, check, check_result, grow, is_busy, is_gone, make, new_xfs_log, probe, probe_result,
    repair_xfs, replay_before_set_uuid, set_uuid,
};
use crate::host::invocation::Invocation;
use crate::host::mount::MountCall;
use crate::host::runner::{Completed, RunError};
use crate::host::superblock::{
    self, BTRFS_COPIES_AT, BTRFS_SUPERBLOCK_BYTES, HEAD_BYTES, Superblock, btrfs_with_uuid,
    is_btrfs_copy,
};
use crate::host::xfs_log;
use crate::lvm::state::Lv;
use crate::lvm::tag::{FsType, Pending};

pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// How much at the end of a device is read to see that it can be read.
const TAIL_BYTES: u64 = 64 << 10;

impl<H: Host> Agent<H> {
    /// Makes a volume's filesystem ready to be mounted. `replay` is a place to mount it for a
    /// moment, should its log have to be replayed.
    pub(super) async fn prepare_filesystem(
        &self,
        vg: &Vg,
        lv: &Lv,
        device: &DmDevice,
        fs: FsType,
        replay: &Path,
    ) -> Result<Superblock> {
        match lv.tags.pending {
            Some(Pending::Fresh) => {
                self.must_be_fresh(vg, lv, device).await?;
                self.format(vg, lv, device, fs).await?;
                self.settle(vg, &lv.name, Pending::Fresh).await?;
            }
            Some(Pending::Restored) => {
                self.must_be_let_go(lv, device).await?;
                self.own_uuid(lv, device, fs, replay).await?;
                self.settle(vg, &lv.name, Pending::Restored).await?;
            }
            // Staging refuses it before it comes here.
            Some(Pending::Copying) => {
                let sentence = format!("volume {} is still being copied", lv.name);
                return Err(Error::unavailable(sentence));
            }
            None => {
                self.expect(lv, device, fs).await?;
                self.check(lv, device, fs).await?;
            }
        }
        self.expect(lv, device, fs).await
    }

    async fn format(&self, vg: &Vg, lv: &Lv, device: &DmDevice, fs: FsType) -> Result<()> {
        let uuid = lv.uuid.filesystem_uuid();
        self.must_be_blank(lv, device, Some(uuid)).await?;
        self.must_have_no_files(lv, device).await?;
        let before = self.superblock(lv, device).await?;
        // mkfs.btrfs refuses a UUID that a device has, also if it is this one. It writes the superblock last, so what
        // is there is whole, and it was mounted just now.
        if fs == FsType::Btrfs && before.is_some_and(|sb| sb.uuid == uuid && sb.fs == fs) {
            tracing::info!(volume = %lv.name, %fs, "an earlier try has formatted it");
            return Ok(());
        }
        if may_be_a_device(lv).is_ok() && lv.pool().is_none() && !lv.tags.luks {
            // Asked for as a device as well: as one it shows what the filesystem does not hide.
            tracing::info!(volume = %lv.name, size = %lv.size, "zeroing a new volume that may be used as a device");
            self.zero_all(vg, &lv.name).await?;
        }
        tracing::info!(volume = %lv.name, %fs, size = %device.size, "formatting");
        self.change(lv, "format", &make(fs, &device.node, uuid)).await?;
        let made = self.superblock(lv, device).await?;
        if made.is_none_or(|sb| sb.uuid != uuid || sb.fs != fs) {
            return Err(Error::damaged(format!(
                "volume {} was formatted with {fs}, but reads back as {made:?}",
                lv.name
            )));
        }
        Ok(())
    }

    /// That nothing is on a device but, perhaps, what we began to make: the filesystem of that UUID.
    pub(super) async fn must_be_blank(
        &self,
        lv: &Lv,
        device: &DmDevice,
        own: Option<Uuid>,
    ) -> Result<()> {
        let before = self.superblock(lv, device).await?;
        self.read_tail(lv, device).await?;
        let done = self.run_on(lv, &probe(&device.node)).await?;
        match probe_result(&done) {
            Ok(Probe::Nothing) => Ok(()),
            // Made by us, wholly or in part, and never given to anybody.
            Ok(Probe::Found(_)) if before.is_some_and(|sb| Some(sb.uuid) == own) => Ok(()),
            Ok(Probe::Found(what)) => Err(Error::damaged(format!(
                "volume {} should be blank, but its device holds {what}: nothing was changed. If it may be formatted, clear it with \
                     wipefs -a {}; if not, drop its tag cb.fresh with lvchange --deltag",
                lv.name,
                device.node.display()
            ))),
            Err(why) => Err(Error::host(format!(
                "volume {}: blkid does not tell whether {} is blank, so nothing was formatted: {why}",
                lv.name,
                device.node.display()
            ))),
        }
    }

    /// That the filesystem which is there, if any, is as an earlier try left it. Whatever was synced
    /// shows: its log is replayed.
    async fn must_have_no_files(&self, lv: &Lv, device: &DmDevice) -> Result<()> {
        let head = self.first_bytes(lv, device).await?;
        let Some(found) = superblock::parse(&head) else { return Ok(()) };
        let node = device.node.clone();
        let looking = format!("looking for files of volume {}", lv.name);
        let has_files =
            within(&self.0.store, On::Device(device), MOUNT_TIMEOUT, &looking, move |host| {
                host.has_files(&node, found.fs)
            });
        match has_files.await? {
            Ok(Some(false)) => Ok(()),
            // Our mkfs was cut.
            Ok(None) if superblock::was_never_used(&head) => Ok(()),
            Ok(None) => Err(Error::damaged(format!(
                "volume {} bears the tag cb.fresh, as if it had never been used, but has a {} filesystem that cannot be mounted and may have been used: \
                 nothing was formatted. Look at dmesg. If its content is of no use, clear it with wipefs -a {}; if it is, drop the tag with lvchange --deltag cb.fresh and repair the filesystem",
                lv.name, found.fs, device.node.display()
            ))),
            Ok(Some(true)) => Err(Error::damaged(format!(
                "volume {} bears the tag cb.fresh, as if it had never been used, but its {} filesystem has files: nothing was formatted. \
                 If they are to stay, drop the tag with lvchange --deltag cb.fresh",
                lv.name, found.fs
            ))),
            // Also while the mkfs of an agent before this one is still at it.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                Err(Error::unavailable(format!("{looking}: its device is in use")).because(error))
            }
            Err(error) => Err(Error::host(format!(
                "failed {looking}, which bears the tag cb.fresh: nothing was formatted. Look at dmesg; if it was never used, clear it with wipefs -a {}",
                device.node.display()
            ))
            .because(error)),
        }
    }

    /// A restored or cloned volume begins with its source's UUID; two of one UUID on a node cannot
    /// be told apart, and XFS and Btrfs refuse to mount the second.
    async fn own_uuid(&self, lv: &Lv, device: &DmDevice, fs: FsType, replay: &Path) -> Result<()> {
        let uuid = lv.uuid.filesystem_uuid();
        let logs = replay_before_set_uuid(fs);
        let mut found = self.expect(lv, device, fs).await?;
        let log_was_cut = logs && self.xfs_log_was_cut(lv, device, uuid).await?;
        if log_was_cut {
            tracing::info!(volume = %lv.name, "its clean log was cut while it got its own UUID: making a new one");
            self.change(lv, "make a new log for", &new_xfs_log(&device.node)).await?;
            found = self.expect(lv, device, fs).await?;
        } else if logs && xfs_log::needs_repair(&self.first_bytes(lv, device).await?) {
            // Its source was mounted, which the kernel refuses with that mark: an xfs_repair of ours was cut.
            // Where the log says anything, this one changes nothing.
            tracing::info!(volume = %lv.name, "an xfs_repair was cut while it got its own UUID: repairing it again");
            self.change(lv, "repair", &repair_xfs(&device.node)).await?;
        }
        if found.uuid == uuid {
            if logs && !log_was_cut {
                // The copies of the superblock may still be of the other.
                self.replay_log(device, fs, replay).await?;
                self.change(lv, "mend", &repair_xfs(&device.node)).await?;
            }
            return Ok(());
        }
        self.check(lv, device, fs).await?;
        if logs {
            self.replay_log(device, fs, replay).await?;
        }
        match set_uuid(fs, &device.node, uuid) {
            Some(call) => self.change(lv, "give its own UUID to", &call).await?,
            None => self.write_btrfs_uuid(lv, device, uuid).await?,
        }
        let now = self.expect(lv, device, fs).await?;
        if now.uuid != uuid {
            return Err(Error::damaged(format!(
                "volume {} was given the UUID {uuid}, but reads back as {}",
                lv.name, now.uuid
            )));
        }
        Ok(())
    }

    async fn replay_log(&self, device: &DmDevice, fs: FsType, at: &Path) -> Result<()> {
        let (device, target) = (device.node.clone(), at.to_owned());
        let options = vec!["nouuid".to_owned()];
        let call = MountCall::Device { device, target, fs, options };
        self.at_path("replay the log of a restored volume at", at, move |host| host.mount(&call))
            .await?;
        self.unmount_all(at).await
    }

    /// Whether an earlier try came as far as the log, which was clean then, and not to its end.
    async fn xfs_log_was_cut(&self, lv: &Lv, device: &DmDevice, own: Uuid) -> Result<bool> {
        let head = self.first_bytes(lv, device).await?;
        let (Some(now), Some(at)) = (superblock::parse(&head), xfs_log::begins_at(&head)) else {
            return Ok(false);
        };
        let log = self.read(lv, device, at, xfs_log::LOG_HEAD_BYTES).await?;
        Ok(xfs_log::was_cut(&log, now.uuid, own))
    }

    /// Writes the UUID into the superblock and its copies, the first one last: until then nothing
    /// has happened.
    async fn write_btrfs_uuid(&self, lv: &Lv, device: &DmDevice, uuid: Uuid) -> Result<()> {
        let (node, size) = (device.node.clone(), device.size.get());
        let what = format!("volume {}", lv.name);
        within(&self.0.store, On::Device(device), WRITE_TIMEOUT, &what.clone(), move |host| {
            for at in BTRFS_COPIES_AT.into_iter().rev() {
                if at.saturating_add(BTRFS_SUPERBLOCK_BYTES) > size {
                    continue;
                }
                let copy = host.read_device(&node, at, BTRFS_SUPERBLOCK_BYTES)?;
                if is_btrfs_copy(&copy, at) {
                    let now = btrfs_with_uuid(&copy, uuid).map_err(std::io::Error::other)?;
                    host.write_device(&node, at, &now)?;
                }
            }
            Ok(())
        })
        .await?
        .map_err(|e: std::io::Error| {
            Error::host(format!("cannot write the superblock of {what}")).because(e)
        })
    }

    async fn check(&self, lv: &Lv, device: &DmDevice, fs: FsType) -> Result<()> {
        let mounted = self.mounts().await?.iter().any(|mount| super::is_of(mount, device));
        let Some(call) = check(fs, &device.node).filter(|_| !mounted) else { return Ok(()) };
        self.must_be_let_go(lv, device).await?;
        let done = self.run_on(lv, &call).await?;
        if is_busy(&done) || is_gone(&done) {
            return Err(failed("check", lv, &call, &done));
        }
        check_result(&done).map_err(|why| {
            Error::damaged(format!(
                "the {fs} filesystem of volume {} is damaged beyond what is safe to mend by itself, so it is not mounted: look with \
                 e2fsck {} on this node ({why})",
                lv.name,
                device.node.display()
            ))
        })
    }

    /// The filesystem that must be there.
    async fn expect(&self, lv: &Lv, device: &DmDevice, fs: FsType) -> Result<Superblock> {
        let Some(found) = self.superblock(lv, device).await? else {
            return Err(Error::damaged(format!(
                "volume {} holds no filesystem that this driver knows, and it is not a new volume, so it was not formatted: look with \
                 blkid -p {} on this node",
                lv.name,
                device.node.display()
            )));
        };
        if found.fs == fs {
            return Ok(found);
        }
        Err(Error::failed_precondition(format!(
            "volume {} holds {}, but is to be mounted as {fs}: set the fsType of its StorageClass or PersistentVolume to {}",
            lv.name, found.fs, found.fs
        )))
    }

    /// Grows a mounted filesystem that is smaller than its device.
    pub(super) async fn grow(
        &self,
        lv: &Lv,
        device: &DmDevice,
        fs: FsType,
        at: &Path,
    ) -> Result<()> {
        tracing::info!(volume = %lv.name, %fs, size = %device.size, "growing the filesystem");
        self.change(lv, "grow", &grow(fs, &device.node, at)).await
    }

    pub(in crate::agent) async fn superblock(
        &self,
        lv: &Lv,
        device: &DmDevice,
    ) -> Result<Option<Superblock>> {
        Ok(superblock::parse(&self.first_bytes(lv, device).await?))
    }

    async fn first_bytes(&self, lv: &Lv, device: &DmDevice) -> Result<Vec<u8>> {
        self.read(lv, device, 0, HEAD_BYTES).await
    }

    async fn read(&self, lv: &Lv, device: &DmDevice, at: u64, len: u64) -> Result<Vec<u8>> {
        let node = device.node.clone();
        within(
            &self.0.store,
            On::Device(device),
            READ_TIMEOUT,
            &format!("volume {}", lv.name),
            move |host| host.read_device(&node, at, len),
        )
        .await?
        .map_err(|e| {
            let what = format!("cannot read volume {} ({})", lv.name, device.node.display());
            // A udev that is late takes the name of a device that was closed away from the one that bears it now.
            if e.kind() == std::io::ErrorKind::NotFound {
                return Error::unavailable(format!(
                    "{what}, which has no node for a moment; try again"
                ))
                .because(e);
            }
            Error::host(what).because(e)
        })
    }

    /// A device that cannot be read looks blank to a probe.
    async fn read_tail(&self, lv: &Lv, device: &DmDevice) -> Result<()> {
        let from = device.size.get().saturating_sub(TAIL_BYTES);
        self.read(lv, device, from, TAIL_BYTES).await.map(drop)
    }

    async fn run_on(&self, lv: &Lv, call: &Invocation) -> Result<Completed> {
        let what = format!("volume {}: {}", lv.name, call.label());
        self.0.store.host.run(call).await.map_err(|e| match &e {
            RunError::Start(_, why) if why.kind() == std::io::ErrorKind::NotFound => {
                Error::unavailable(format!("{what} found no device node; try again")).because(e)
            }
            RunError::Start(..) | RunError::Timeout(..) | RunError::Lost(..) => {
                Error::host(format!("{what} did not come to an end")).because(e)
            }
        })
    }

    pub(super) async fn change(&self, lv: &Lv, what: &str, call: &Invocation) -> Result<()> {
        let done = self.run_on(lv, call).await?;
        if done.success() {
            return Ok(());
        }
        Err(failed(what, lv, call, &done))
    }
}

/// What a program's failure means. One that another was quicker than (of an agent that was killed before
/// its program had the device) is to be tried again, and so is one whose device has no name for a moment.
fn failed(what: &str, lv: &Lv, call: &Invocation, done: &Completed) -> Error {
    let why = format!("cannot {what} volume {}: {}: {}", lv.name, call.label(), done.complaint());
    if is_busy(done) || is_gone(done) { Error::unavailable(why) } else { Error::host(why) }
}
