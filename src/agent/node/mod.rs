//! Volumes as users meet them: made ready and mounted once on the node (stage), given to pods
//! (publish), measured and grown. Nothing here waits for a VG's queue unless LVM has to be run, and
//! LVM is run to drop the tag of a new volume, and to activate one that the host has not: after a
//! reboot.
//!
//! What is mounted is asked of the kernel each time; nothing is remembered, so that a restart
//! changes nothing. Unmounting needs neither LVM nor the volume.

mod crypt;
mod filesystem;
mod health;
mod measure;
mod publish;
mod stage;
pub(crate) mod wrap;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Agent;
use super::blocking::{On, within};
use super::store::Vg;
use crate::domain::{Capability, Secrets};
use crate::error::{Error, Result};
use crate::host::dm::DmDevice;
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::{FilesystemUsage, Host, PathKind};
use crate::lvm::state::Lv;
use crate::names::Handle;
use crate::units::Bytes;

/// How long a mount, an unmount or a look at a path may take before its caller is told to try
/// again. The kernel's call goes on.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(100);
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Mounts over each other at one place, which only mistakes make.
const STACKED_MAX: usize = 8;

/// Make a volume ready on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Which volume.
    pub volume: Handle,
    /// Where it is mounted; not used for a block volume.
    pub path: PathBuf,
    /// As what.
    pub capability: Capability,
    /// What opens it, if it is encrypted.
    pub secrets: Secrets,
}

/// Give a staged volume to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Which volume.
    pub volume: Handle,
    /// Where it was staged.
    pub staging: PathBuf,
    /// Where the pod gets it: made if it is not there.
    pub target: PathBuf,
    /// As what.
    pub capability: Capability,
    /// Whether the pod may only read.
    pub read_only: bool,
}

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// With a filesystem.
    Filesystem(FilesystemUsage),
    /// As a device: its size.
    Block(Bytes),
}

impl<H: Host> Agent<H> {
    /// A volume by its id. Looks at the disks again before it says that there is none.
    async fn find_volume(&self, handle: &Handle) -> Result<(Arc<Vg>, Lv)> {
        self.known()?;
        let vg = self.0.store.vg(&handle.vg)?;
        if let Some(lv) = vg.state().lvs.get(&handle.lv).filter(|lv| lv.is_volume()) {
            let lv = lv.clone();
            return Ok((vg, lv));
        }
        let state = self.0.store.turn(&vg).await?.refresh().await?;
        let lv = state.lvs.get(&handle.lv).filter(|lv| lv.is_volume()).ok_or_else(|| {
            Error::not_found(format!(
                "there is no volume {} in volume group {}",
                handle.lv, state.name
            ))
        })?;
        Ok((vg, lv.clone()))
    }

    pub(super) async fn mounts(&self) -> Result<MountTable> {
        within(
            &self.0.store,
            On::Kernel("mounts"),
            LOOK_TIMEOUT,
            "the table of mounts",
            Host::mounts,
        )
        .await?
        .map_err(|e| Error::host("cannot read the table of mounts").because(e))
    }

    async fn path_kind(&self, path: &Path) -> Result<PathKind> {
        let asked = path.to_owned();
        within(
            &self.0.store,
            On::Path(path),
            LOOK_TIMEOUT,
            &path.display().to_string(),
            move |host| host.path_kind(&asked),
        )
        .await?
        .map_err(|e| Error::host(format!("cannot look at {}", path.display())).because(e))
    }

    /// Does something with a path that is quick unless a disk hangs.
    async fn at_path(
        &self,
        what: &str,
        path: &Path,
        work: impl FnOnce(&H) -> std::io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let doing = format!("{what} {}", path.display());
        within(&self.0.store, On::Path(path), MOUNT_TIMEOUT, &doing, work)
            .await?
            .map_err(|e| Error::host(format!("cannot {doing}")).because(e))
    }

    /// Unmounts all that is mounted at a path, one over the other.
    async fn unmount_all(&self, path: &Path) -> Result<()> {
        for _ in 0..STACKED_MAX {
            let mounts = self.mounts().await?;
            let Some(mount) = mounts.at(path) else { return Ok(()) };
            if !["ext4", "xfs", "btrfs", "devtmpfs", "tmpfs"].contains(&mount.fs_type.as_str()) {
                return Err(Error::failed_precondition(format!(
                    "a filesystem of type {} is mounted at {}, which no volume of this driver has: unmount it",
                    mount.fs_type,
                    path.display()
                )));
            }
            let target = path.to_owned();
            self.at_path("unmount", path, move |host| host.unmount(&target)).await?;
        }
        Err(Error::host(format!(
            "more than {STACKED_MAX} mounts are stacked at {}",
            path.display()
        )))
    }
}

/// Whether a mount shows the filesystem of that device. Btrfs has a device number of its own, so
/// its source counts as well.
fn is_of(mount: &Mount, device: &DmDevice) -> bool {
    let by_number = PathBuf::from(format!("/dev/dm-{}", device.number.1));
    mount.device == device.number
        || (mount.fs_type == "btrfs" && (mount.source == device.node || mount.source == by_number))
}
