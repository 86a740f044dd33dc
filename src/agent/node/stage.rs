//! Staging: the device is active, the filesystem is there, mounted once on the node and as large as
//! its device.

use std::path::{Path, PathBuf};

use super::super::Agent;
use super::super::store::Vg;
use super::{Stage, is_of};
use crate::domain::AccessType;
use crate::error::{Error, Result};
use crate::host::dm::DmDevice;
use crate::host::mount::MountCall;
use crate::host::{Host, PathKind};
use crate::lvm::state::{Lv, LvLayout};
use crate::lvm::tag::{FsType, Pending, Usage};
use crate::names::Handle;

impl<H: Host> Agent<H> {
    /// Makes a volume ready.
    ///
    /// # Errors
    /// When it is not there, cannot be mounted, or something else is mounted at the path.
    pub async fn stage(&self, request: Stage) -> Result<()> {
        let agent = self.clone();
        self.detached(async move { agent.do_stage(request).await }).await
    }

    /// Unmounts a volume and closes it if it is encrypted, also one that is not there any more. What
    /// is not mounted is done.
    ///
    /// # Errors
    /// When it is in use.
    pub async fn unstage(&self, volume: Option<Handle>, path: PathBuf) -> Result<()> {
        let agent = self.clone();
        self.detached(async move {
            let _volume = volume.as_ref().map(|v| agent.0.guards.lv(&v.vg, &v.lv)).transpose()?;
            let _path = agent.0.guards.path(&path)?;
            agent.unmount_all(&path).await?;
            match volume {
                Some(volume) => agent.close_mapping(&volume).await,
                None => Ok(()),
            }
        })
        .await
    }

    async fn do_stage(&self, request: Stage) -> Result<()> {
        let _volume = self.0.guards.lv(&request.volume.vg, &request.volume.lv)?;
        let _path = self.0.guards.path(&request.path)?;
        let (vg, lv) = self.find_volume(&request.volume).await?;
        if lv.is_unfinished() {
            return Err(Error::unavailable(format!("volume {} is still being made", lv.name)));
        }
        let mut device = self.activate(&vg, &lv.name).await?;
        if lv.tags.luks {
            device = self.open_crypt(&vg, &lv, &device, &request.secrets).await?;
        }
        match request.capability.access {
            AccessType::Block => self.stage_block(&vg, &lv).await,
            AccessType::Mount { fs, options } => {
                self.stage_filesystem(&vg, &lv, &device, fs, options, &request.path).await
            }
        }
    }

    /// A new block volume shows nothing of what its extents held before.
    async fn stage_block(&self, vg: &Vg, lv: &Lv) -> Result<()> {
        may_be_a_device(lv)?;
        match (lv.tags.pending, &lv.layout) {
            (None, _) => Ok(()),
            // The pool zeroes what it gives out, which is checked before it is used.
            (Some(pending), LvLayout::Thin { .. }) => self.settle(vg, &lv.name, pending).await,
            // What others wrote is noise under its key.
            (Some(pending), _) if lv.tags.luks => self.settle(vg, &lv.name, pending).await,
            (Some(Pending::Fresh), _) => {
                tracing::info!(volume = %lv.name, size = %lv.size, "zeroing a new block volume");
                self.zero_and_settle(vg, &lv.name).await
            }
            (Some(pending @ (Pending::Restored | Pending::Copying)), _) => {
                self.settle(vg, &lv.name, pending).await
            }
        }
    }

    async fn stage_filesystem(
        &self,
        vg: &Vg,
        lv: &Lv,
        device: &DmDevice,
        fs: FsType,
        options: Vec<String>,
        path: &Path,
    ) -> Result<()> {
        if self.staged(lv, device, path).await? {
            let at_path = self.expect_mounted(lv, fs, path).await?;
            return self.grow_if_smaller(lv, device, at_path, &options, path).await;
        }
        if self.path_kind(path).await? == PathKind::Absent {
            let made = path.to_owned();
            self.at_path("make the directory", path, move |host| host.make_directory(&made))
                .await?;
        }
        self.prepare_filesystem(vg, lv, device, fs, path).await?;
        let (node, target) = (device.node.clone(), path.to_owned());
        let call = MountCall::Device { device: node, target, fs, options: options.clone() };
        self.at_path("mount the volume at", path, move |host| host.mount(&call)).await?;
        self.grow_if_smaller(lv, device, fs, &options, path).await
    }

    /// Whether the volume is mounted there, ready for use.
    async fn staged(&self, lv: &Lv, device: &DmDevice, path: &Path) -> Result<bool> {
        let mounts = self.mounts().await?;
        let Some(mount) = mounts.at(path) else { return Ok(false) };
        if !is_of(mount, device) {
            return Err(Error::failed_precondition(format!(
                "{} is mounted at {} already, not volume {}: unmount it",
                mount.source.display(),
                path.display(),
                lv.name
            )));
        }
        if lv.tags.pending.is_some() {
            // Mounted for a moment to replay its log, and cut there: nobody has it yet.
            self.unmount_all(path).await?;
            return Ok(false);
        }
        Ok(true)
    }

    async fn expect_mounted(&self, lv: &Lv, fs: FsType, path: &Path) -> Result<FsType> {
        let mounts = self.mounts().await?;
        let found = mounts.at(path).map(|m| m.fs_type.clone()).unwrap_or_default();
        if found == fs.as_str() {
            return Ok(fs);
        }
        Err(Error::already_exists(format!(
            "volume {} is staged at {} as {found}, not as {fs}",
            lv.name,
            path.display()
        )))
    }

    /// A volume that was made larger than its source, or while it was not mounted.
    async fn grow_if_smaller(
        &self,
        lv: &Lv,
        device: &DmDevice,
        fs: FsType,
        options: &[String],
        path: &Path,
    ) -> Result<()> {
        if options.iter().any(|option| option == "ro") {
            return Ok(());
        }
        let whole_blocks = device.size.get().saturating_sub(device.size.get() % 4096);
        match self.superblock(lv, device).await? {
            Some(sb) if sb.size.get() < whole_blocks => self.grow(lv, device, fs, path).await,
            _ => Ok(()),
        }
    }
}

/// Refuses to show a filesystem's volume as a device: what its disks held before was never zeroed,
/// only hidden by the filesystem.
pub(super) fn may_be_a_device(lv: &Lv) -> Result<()> {
    match lv.tags.usage {
        Some(Usage::Filesystem(fs)) if lv.hides_old_data() => {
            Err(Error::failed_precondition(format!(
                "volume {} was made for {fs}, and as a device would show what its disks held before: use volumeMode Filesystem",
                lv.name
            )))
        }
        _ => Ok(()),
    }
}
