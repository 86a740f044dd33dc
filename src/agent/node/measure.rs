//! How full a published volume is, and growing its filesystem after its device has grown.

use std::path::{Path, PathBuf};

use super::super::Agent;
use super::super::blocking::{On, within};
use super::{LOOK_TIMEOUT, Statistics, is_of};
use crate::domain::{CapacityRange, Secrets};
use crate::error::{Error, Result};
use crate::host::dm::DmDevice;
use crate::host::{Host, PathKind};
use crate::lvm::state::Lv;
use crate::lvm::tag::FsType;
use crate::names::Handle;
use crate::units::Bytes;

impl<H: Host> Agent<H> {
    /// How full the volume at a path is.
    ///
    /// # Errors
    /// When the volume is not there, or not at that path.
    pub async fn statistics(&self, volume: Handle, path: PathBuf) -> Result<Statistics> {
        let _path = self.0.guards.path(&path)?;
        let (vg, lv) = self.find_volume(&volume).await?;
        let device = self.user_device(&vg.state(), &lv).await?;
        let device = device.ok_or_else(|| not_at(&lv, &path))?;
        let what = path.display().to_string();
        match self.path_kind(&path).await? {
            PathKind::Directory => {
                if !self.mounts().await?.at(&path).is_some_and(|mount| is_of(mount, &device)) {
                    return Err(not_at(&lv, &path));
                }
                within(
                    &self.0.store,
                    On::Path(&path.clone()),
                    LOOK_TIMEOUT,
                    &what.clone(),
                    move |host| host.filesystem_usage(&path),
                )
                .await?
                .map(Statistics::Filesystem)
                .map_err(|e| Error::host(format!("cannot ask how full {what} is")).because(e))
            }
            PathKind::BlockDevice(number) if number == device.number => {
                Ok(Statistics::Block(device.size))
            }
            PathKind::BlockDevice(_) | PathKind::File | PathKind::Other | PathKind::Absent => {
                Err(not_at(&lv, &path))
            }
        }
    }

    /// Grows the filesystem at a path to its device. Answers with the volume's size.
    ///
    /// # Errors
    /// When the volume is not there, not at that path, or smaller than required.
    pub async fn expand_published(
        &self,
        volume: Handle,
        path: PathBuf,
        range: CapacityRange,
        secrets: Secrets,
    ) -> Result<Bytes> {
        let agent = self.clone();
        self.detached(async move { agent.do_expand(volume, path, range, secrets).await }).await
    }

    async fn do_expand(
        &self,
        volume: Handle,
        path: PathBuf,
        range: CapacityRange,
        secrets: Secrets,
    ) -> Result<Bytes> {
        let _volume = self.0.guards.lv(&volume.vg, &volume.lv)?;
        let (vg, lv) = self.find_volume(&volume).await?;
        let device = self.user_device(&vg.state(), &lv).await?;
        let mut device = device.ok_or_else(|| not_at(&lv, &path))?;
        if lv.tags.luks
            && let Some(grown) = self.grow_mapping(&vg, &lv, &device, &secrets).await?
        {
            device = grown;
        }
        if range.required.is_some_and(|required| device.size < required) {
            return Err(Error::out_of_range(format!(
                "the device of volume {} has {}, less than the {} required: ControllerExpandVolume comes first",
                lv.name,
                device.size,
                range.required.unwrap_or_default()
            )));
        }
        match self.path_kind(&path).await? {
            PathKind::Directory => self.grow_at(&lv, &device, &path).await?,
            PathKind::BlockDevice(number) if number == device.number => {}
            PathKind::BlockDevice(_) | PathKind::File | PathKind::Other | PathKind::Absent => {
                return Err(not_at(&lv, &path));
            }
        }
        Ok(device.size)
    }

    async fn grow_at(&self, lv: &Lv, device: &DmDevice, path: &Path) -> Result<()> {
        let mounts = self.mounts().await?;
        let mount = mounts.at(path).filter(|m| is_of(m, device)).ok_or_else(|| not_at(lv, path))?;
        let fs = FsType::parse(&mount.fs_type).ok_or_else(|| {
            Error::failed_precondition(format!(
                "volume {} holds {}, which this driver cannot grow",
                lv.name, mount.fs_type
            ))
        })?;
        if mount.super_options.iter().any(|option| option == "ro") {
            return Err(Error::failed_precondition(format!(
                "volume {} is mounted read-only at {}: its filesystem grows when it is staged for writing",
                lv.name,
                path.display()
            )));
        }
        self.grow(lv, device, fs, path).await
    }
}

fn not_at(lv: &Lv, path: &Path) -> Error {
    Error::not_found(format!("volume {} is not at {}", lv.name, path.display()))
}
