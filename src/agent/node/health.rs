//! What is wrong with a volume, as its user should know it. No LVM process: the kernel is asked, and
//! what the VG holds is known.

use std::path::PathBuf;

use super::super::Agent;
use super::super::troubles::of_volume;
use super::is_of;
use crate::domain::{Reason, Subject};
use crate::error::Result;
use crate::host::Host;
use crate::host::dm::DmDevice;
use crate::host::mountinfo::Mount;
use crate::host::raid_status::RaidStatus;
use crate::lvm::state::LvLayout;
use crate::names::Handle;

impl<H: Host> Agent<H> {
    /// What is wrong with a volume, looking also at where it is mounted, if that is said.
    ///
    /// # Errors
    /// When the volume is not there, or the kernel does not answer.
    pub async fn volume_health(
        &self,
        volume: &Handle,
        paths: &[PathBuf],
    ) -> Result<Vec<(Reason, String)>> {
        let (vg, lv) = self.find_volume(volume).await?;
        let state = vg.state();
        let mut found = Vec::new();
        if let LvLayout::Raid(_) = lv.layout {
            let status = self.raid_status(&state, &lv).await?;
            let in_step = status.as_ref().and_then(RaidStatus::percent_in_step);
            for (reason, sentence) in of_volume(&state, &lv, status.as_ref()) {
                let said = match in_step {
                    Some(percent) => format!("{sentence} ({percent}% are in step)"),
                    None => sentence,
                };
                found.push((reason, said));
            }
        } else {
            found.extend(of_volume(&state, &lv, None));
        }
        if let Some(pool) = lv.pool() {
            let backends = self.backends_with_vg();
            let of =
                |b: &crate::config::Backend| b.thin_pool.as_ref().map(|p| &p.name) == Some(pool);
            if let Some((backend, _)) =
                backends.iter().find(|(b, other)| other.uuid == vg.uuid && of(b))
            {
                self.look_at_pool(&state, pool).await?;
                found.extend(self.pool_troubles(backend, &state));
            }
        }
        if let Some(device) = self.user_device(&state, &lv).await? {
            let mounts = self.mounts().await?;
            let mut at = paths.iter().filter_map(|path| mounts.at(path));
            if let Some(mount) = at.find(|mount| has_stopped(mount, &device)) {
                let sentence = format!(
                    "its {} has stopped taking writes after an error: look at the node's kernel log, then delete the pods that use it, so that it is checked and mounted anew",
                    mount.fs_type
                );
                found.push((Reason::FilesystemReadOnly, sentence));
            }
        }
        Ok(found)
    }

    /// What is wrong with the backends of this node.
    #[must_use]
    pub fn storage_health(&self) -> Vec<(Reason, String)> {
        let inventory = std::sync::Arc::clone(&self.inventory().borrow());
        let of_backend = |((subject, reason), trouble): (&(Subject, Reason), &_)| {
            let trouble: &crate::domain::Trouble = trouble;
            match subject {
                Subject::Backend(name) => {
                    Some((*reason, format!("backend {name}: {}", trouble.sentence)))
                }
                Subject::Volume(_) => None,
            }
        };
        inventory.troubles.iter().filter_map(of_backend).collect()
    }
}

/// Whether a filesystem was mounted for writing and takes none: mounted read-only, both the mount and
/// the filesystem would say so. Newer kernels have a word for it.
fn has_stopped(mount: &Mount, device: &DmDevice) -> bool {
    let says = |word: &str| mount.super_options.iter().any(|option| option == word);
    is_of(mount, device)
        && ((!mount.read_only && says("ro")) || says("emergency_ro") || says("shutdown"))
}
