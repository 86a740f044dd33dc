//! Makes a backend's VG of the disks that its configuration lists, each proved blank first, and
//! adds disks that are listed later. Safe to cut anywhere: a PV of ours that is in no VG yet is
//! recognised by its identifier.

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::Agent;
use super::blocking::{On, within};
use super::store::Vg;
use crate::config::Backend;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::block::Disk;
use crate::host::filesystem::{Probe, probe, probe_result};
use crate::lvm::change::Change;
use crate::lvm::command;
use crate::lvm::label::{LABEL_BYTES, PvLabel};
use crate::lvm::tag::OWNED;
use crate::names::LvmUuid;
use crate::units::Bytes;

/// Room for LVM's own metadata (64 MiB a PV) and something to give.
const DISK_MIN: Bytes = Bytes::mib(256);
/// How much at both ends of a disk is read to see that it can be read at all.
const READ_TEST: u64 = 1 << 20;
const DISK_TIMEOUT: Duration = Duration::from_secs(30);

/// What a listed disk is.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing is on it and nobody has it.
    Blank(PathBuf),
    /// We made it a PV for this VG and were cut before it became part of it.
    HalfMade(PathBuf),
}

/// What a person has said of disks that the VG misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing: a blank disk may stand where one belongs, and nothing is added.
    MayComeBack,
    /// They do not come back.
    GivenUp,
}

impl Found {
    fn node(&self) -> &Path {
        match self {
            Self::Blank(node) | Self::HalfMade(node) => node,
        }
    }
}

impl<H: Host> Agent<H> {
    /// Makes the VG.
    pub(super) async fn make_vg(&self, backend: &Backend) -> Result<()> {
        // All disks are looked at before any is touched.
        let mut found: Vec<(&PathBuf, Found)> = Vec::new();
        for path in &backend.create_from {
            let disk = self.look_at_disk(backend, path).await?;
            if found.iter().any(|(_, other)| other.node() == disk.node()) {
                return Err(Error::failed_precondition(format!(
                    "devices: {} is {}, which is listed by another name already; nothing was touched",
                    path.display(),
                    disk.node().display()
                )));
            }
            found.push((path, disk));
        }
        let mut nodes = Vec::new();
        for (path, found) in found {
            nodes.push(self.make_pv(backend, path, found).await?);
        }
        self.remove_dead_links(backend).await?;
        tracing::info!(backend = %backend.name, vg = %backend.volume_group, disks = nodes.len(), "making the volume group");
        self.0.store.run(&command::create_vg(&backend.volume_group, &nodes)).await?;
        self.0.store.scan().await
    }

    /// When the host's LVM removes a VG it leaves its links in /dev to udev, which knows nothing of
    /// ours; and LVM makes no VG whose folder is there.
    async fn remove_dead_links(&self, backend: &Backend) -> Result<()> {
        let folder = Path::new("/dev").join(backend.volume_group.as_str());
        let what = folder.display().to_string();
        within(&self.0.store, On::Path(&folder.clone()), DISK_TIMEOUT, &what, move |host| {
            host.remove_dead_links(&folder)
        })
        .await?
        .map_err(|e| Error::host(format!("cannot clear {what} of dead links")).because(e))
    }

    /// Adds disks that were listed after a VG of ours was made.
    pub(super) async fn extend_vg(&self, backend: &Backend, vg: &Vg) -> Result<()> {
        if !vg.state().tags.iter().any(|tag| tag == OWNED) {
            return Ok(());
        }
        // Refused while a disk is missing: a blank one may stand where it belongs.
        self.0.store.turn(vg).await?.refresh().await?;
        for path in &backend.create_from {
            self.add_disk(backend, vg, path, Missing::MayComeBack).await?;
        }
        Ok(())
    }

    /// Adds a listed disk to a VG, unless it is part of it. Whether it was added.
    pub(super) async fn add_disk(
        &self,
        backend: &Backend,
        vg: &Vg,
        path: &Path,
        missing: Missing,
    ) -> Result<bool> {
        let disk = self.disk(path).await?;
        let state = vg.state();
        for device in state.devices() {
            if self.disk(&device).await?.node == disk.node {
                return Ok(false);
            }
        }
        let found = self.look_at_disk(backend, path).await?;
        let device = self.make_pv(backend, path, found).await?;
        tracing::info!(backend = %backend.name, vg = %state.name, disk = %path.display(), "adding a disk to the volume group");
        let mut turn = self.0.store.turn(vg).await?;
        // Once more: one may have gone since.
        match missing {
            Missing::MayComeBack => turn.refresh().await?,
            Missing::GivenUp => turn.refresh_though_partial().await?,
        };
        turn.run(&Change::ExtendVg { device }).await?;
        // Its disks name one that is not known yet, so that LVM is asked.
        turn.refresh_though_partial().await.map(|_| true)
    }

    async fn make_pv(&self, backend: &Backend, path: &Path, found: Found) -> Result<PathBuf> {
        match found {
            Found::HalfMade(node) => Ok(node),
            Found::Blank(node) => {
                let uuid = LvmUuid::sealed(Uuid::new_v4(), &purpose(backend, path));
                tracing::info!(backend = %backend.name, disk = %path.display(), node = %node.display(), "making the disk a physical volume");
                self.0.store.run(&command::create_pv(&node, &uuid)).await?;
                Ok(node)
            }
        }
    }

    async fn disk(&self, path: &Path) -> Result<Disk> {
        let what = format!("disk {}", path.display());
        let asked = path.to_owned();
        within(&self.0.store, On::Path(path), DISK_TIMEOUT, &what, move |host| host.disk(&asked))
            .await?
            .map_err(|e| Error::failed_precondition(format!("{what} cannot be used")).because(e))
    }

    /// Proves that a disk is blank and nobody's, or half-made by us.
    async fn look_at_disk(&self, backend: &Backend, path: &Path) -> Result<Found> {
        let disk = self.disk(path).await?;
        let refuse = |why: String| {
            Err(Error::failed_precondition(format!(
                "disk {} ({}) is not blank, so nothing was touched: {why}",
                path.display(),
                disk.node.display()
            )))
        };
        if !disk.partitions.is_empty() {
            return refuse(format!("it has partitions ({})", disk.partitions.join(", ")));
        }
        if !disk.holders.is_empty() {
            return refuse(format!("{} is made of it", disk.holders.join(", ")));
        }
        if disk.claimed {
            return refuse("it is mounted, used for swap or otherwise in use".to_owned());
        }
        let orphans = self.0.store.scanned().map(|s| s.orphans).unwrap_or_default();
        for (uuid, device) in orphans {
            let same = self.disk(&device).await.is_ok_and(|other| other.node == disk.node);
            // The report may be of before something else was put on the disk.
            if same
                && uuid.is_sealed_for(&purpose(backend, path))
                && self.label(path, &disk).await? == Some(uuid)
            {
                return Ok(Found::HalfMade(disk.node));
            }
        }
        if disk.size < DISK_MIN {
            return refuse(format!("it has only {}, less than {DISK_MIN}", disk.size));
        }
        self.read_both_ends(path, &disk).await?;
        let call = probe(&disk.node);
        let done = self.0.store.host.run(&call).await.map_err(|e| {
            Error::unavailable(format!("disk {} cannot be probed", path.display())).because(e)
        })?;
        match probe_result(&done) {
            Ok(Probe::Nothing) => Ok(Found::Blank(disk.node)),
            Ok(Probe::Found(what)) => refuse(format!(
                "it holds {what}; if that may go, clear it with wipefs -a {}",
                path.display()
            )),
            Err(why) => refuse(format!("what it holds cannot be told ({why})")),
        }
    }

    /// Which physical volume a disk says that it is. `None`: none.
    async fn label(&self, path: &Path, disk: &Disk) -> Result<Option<LvmUuid>> {
        let (node, what) = (disk.node.clone(), format!("disk {}", path.display()));
        within(&self.0.store, On::Path(path), DISK_TIMEOUT, &what, move |host| {
            host.read_device(&node, 0, LABEL_BYTES)
        })
        .await?
        .map(|head| PvLabel::parse(&head).ok().map(|label| label.pv))
        .map_err(|e| Error::failed_precondition(format!("{what} cannot be read")).because(e))
    }

    /// A disk that cannot be read looks blank to a probe.
    async fn read_both_ends(&self, path: &Path, disk: &Disk) -> Result<()> {
        let end = disk.size.get().saturating_sub(READ_TEST);
        // Whole blocks of whatever size the disk has.
        let (node, end) = (disk.node.clone(), end.saturating_sub(end % 4096));
        let what = format!("disk {}", path.display());
        within(&self.0.store, On::Path(path), DISK_TIMEOUT, &what, move |host| {
            host.read_device(&node, 0, READ_TEST)?;
            host.read_device(&node, end, READ_TEST).map(drop)
        })
        .await?
        .map_err(|e| Error::failed_precondition(format!("{what} cannot be read")).because(e))
    }
}

fn purpose(backend: &Backend, path: &Path) -> String {
    format!("{}:{}", backend.volume_group, path.display())
}
