//! Publishing: what was staged is given to a pod by a bind mount, and taken back.

use std::path::{Path, PathBuf};

use super::super::Agent;
use super::stage::may_be_a_device;
use super::{Publish, is_of};
use crate::domain::{AccessMode, AccessType};
use crate::error::{Error, Result};
use crate::host::dm::DmDevice;
use crate::host::mount::MountCall;
use crate::host::mountinfo::Mount;
use crate::host::{Host, PathKind};
use crate::lvm::state::Lv;

impl<H: Host> Agent<H> {
    /// Gives a volume to a pod.
    ///
    /// # Errors
    /// When it is not staged, or published already in a way that does not go with this one.
    pub async fn publish_volume(&self, request: Publish) -> Result<()> {
        let agent = self.clone();
        self.detached(async move { agent.do_publish(request).await }).await
    }

    /// Takes a volume back from a pod. What is not there is done.
    ///
    /// # Errors
    /// When it is in use, or something else is at the path.
    pub async fn unpublish_volume(&self, target: PathBuf) -> Result<()> {
        let agent = self.clone();
        self.detached(async move {
            let _path = agent.0.guards.path(&target)?;
            agent.unmount_all(&target).await?;
            let path = target.clone();
            agent.at_path("remove", &target, move |host| host.remove(&path)).await
        })
        .await
    }

    async fn do_publish(&self, request: Publish) -> Result<()> {
        let _volume = self.0.guards.lv(&request.volume.vg, &request.volume.lv)?;
        let _path = self.0.guards.path(&request.target)?;
        let (vg, lv) = self.find_volume(&request.volume).await?;
        let device =
            self.user_device(&vg.state(), &lv).await?.ok_or_else(|| not_staged(&lv, &request))?;
        let read_only = request.read_only || request.capability.mode == AccessMode::SingleReader;
        match &request.capability.access {
            AccessType::Block => {
                may_be_a_device(&lv)?;
                self.publish_block(&lv, &device, &request, read_only).await
            }
            AccessType::Mount { options, .. } => {
                self.publish_filesystem(&lv, &device, &request, options, read_only).await
            }
        }
    }

    async fn publish_filesystem(
        &self,
        lv: &Lv,
        device: &DmDevice,
        request: &Publish,
        options: &[String],
        read_only: bool,
    ) -> Result<()> {
        let mounts = self.mounts().await?;
        let staged = mounts.at(&request.staging).filter(|mount| is_of(mount, device));
        let staged = staged.ok_or_else(|| not_staged(lv, request))?.device;
        if let Some(mount) = mounts.at(&request.target) {
            if mount.device != staged {
                return Err(occupied(lv, &request.target, mount));
            }
            return same_again(lv, request, mount, read_only);
        }
        let elsewhere = |m: &&Mount| m.device == staged && m.target != request.staging;
        alone(lv, request, mounts.iter().find(elsewhere).cloned())?;
        let target = request.target.clone();
        match self.path_kind(&target).await? {
            PathKind::Directory => {}
            PathKind::Absent => {
                let path = target.clone();
                self.at_path("make the directory", &target, move |host| host.make_directory(&path))
                    .await?;
            }
            kind @ (PathKind::File | PathKind::BlockDevice(_) | PathKind::Other) => {
                return Err(in_the_way(lv, &target, kind, "directory"));
            }
        }
        self.bind(request.staging.clone(), &target, options, read_only).await
    }

    async fn publish_block(
        &self,
        lv: &Lv,
        device: &DmDevice,
        request: &Publish,
        read_only: bool,
    ) -> Result<()> {
        if lv.tags.pending.is_some() {
            return Err(not_staged(lv, request));
        }
        let mounts = self.mounts().await?;
        let target = request.target.clone();
        if let Some(mount) = mounts.at(&target) {
            if self.number_at(&target).await? != Some(device.number) {
                return Err(occupied(lv, &target, mount));
            }
            return same_again(lv, request, mount, read_only);
        }
        alone(lv, request, self.bound_node(&mounts, device).await?)?;
        match self.path_kind(&target).await? {
            PathKind::Absent | PathKind::File => {}
            kind @ (PathKind::Directory | PathKind::BlockDevice(_) | PathKind::Other) => {
                return Err(in_the_way(lv, &target, kind, "device"));
            }
        }
        let path = target.clone();
        self.at_path("make the file", &target, move |host| host.make_file(&path)).await?;
        self.bind(device.node.clone(), &target, &[], read_only).await
    }

    async fn bind(
        &self,
        source: PathBuf,
        target: &Path,
        options: &[String],
        read_only: bool,
    ) -> Result<()> {
        let mut options = options.to_vec();
        if read_only {
            options.push("ro".to_owned());
        }
        let call = MountCall::Bind { source, target: target.to_owned(), options };
        self.at_path("mount the volume at", target, move |host| host.mount(&call)).await
    }

    /// The number of the block device at a path.
    async fn number_at(&self, path: &Path) -> Result<Option<(u32, u32)>> {
        Ok(match self.path_kind(path).await? {
            PathKind::BlockDevice(number) => Some(number),
            PathKind::Absent | PathKind::Directory | PathKind::File | PathKind::Other => None,
        })
    }
}

fn not_staged(lv: &Lv, request: &Publish) -> Error {
    Error::failed_precondition(format!(
        "volume {} is not staged at {}: NodeStageVolume comes first",
        lv.name,
        request.staging.display()
    ))
}

fn in_the_way(lv: &Lv, target: &Path, kind: PathKind, what: &str) -> Error {
    Error::failed_precondition(format!(
        "{} is a {kind:?}, where the {what} of volume {} should be",
        target.display(),
        lv.name
    ))
}

fn occupied(lv: &Lv, target: &Path, mount: &Mount) -> Error {
    Error::failed_precondition(format!(
        "{} is mounted at {} already, not volume {}: unmount it",
        mount.source.display(),
        target.display(),
        lv.name
    ))
}

fn same_again(lv: &Lv, request: &Publish, mount: &Mount, read_only: bool) -> Result<()> {
    if mount.read_only == read_only {
        return Ok(());
    }
    let word = |ro| if ro { "read-only" } else { "for writing" };
    Err(Error::already_exists(format!(
        "volume {} is published at {} {}, not {}",
        lv.name,
        request.target.display(),
        word(mount.read_only),
        word(read_only)
    )))
}

/// A volume for one user is in one place only (CSI spec, `NodePublishVolume`).
fn alone(lv: &Lv, request: &Publish, elsewhere: Option<Mount>) -> Result<()> {
    match (request.capability.mode, elsewhere) {
        (AccessMode::MultiWriter, _) | (_, None) => Ok(()),
        (AccessMode::SingleWriter | AccessMode::SingleReader, Some(mount)) => {
            Err(Error::failed_precondition(format!(
                "volume {} is published at {} already, and its access mode allows one place only",
                lv.name,
                mount.target.display()
            )))
        }
    }
}
