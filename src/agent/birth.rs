//! Thick volumes whose birth was cut: LVM writes a new LV into the VG's metadata before it clears the
//! signatures that its extents have from whoever had them before. One that was cut there is empty,
//! and looks as if it were not; it is made again before anybody gets it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Agent;
use super::store::Vg;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::filesystem::{Probe, probe, probe_result};
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Pending, Usage};
use crate::names::{LvName, LvmUuid};
use crate::plan::Plan;

/// The thick LVs that LVM has made wholly since the agent started.
#[derive(Debug, Default)]
pub(super) struct Births(Mutex<BTreeSet<(LvmUuid, LvName)>>);

impl Births {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(LvmUuid, LvName)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whatever bore the name is not what will bear it.
    pub(super) fn begin(&self, vg: &Vg, step: &Change) {
        if let Some(lv) = step.lv().filter(|_| is_about_names(step)) {
            self.lock().remove(&(vg.uuid.clone(), lv.clone()));
        }
    }

    pub(super) fn end(&self, vg: &Vg, step: &Change, ran: &Result<()>) {
        if let (Change::CreateThick { lv, .. }, Ok(())) = (step, ran) {
            self.lock().insert((vg.uuid.clone(), lv.clone()));
        }
    }

    fn is_whole(&self, vg: &Vg, lv: &LvName) -> bool {
        self.lock().contains(&(vg.uuid.clone(), lv.clone()))
    }
}

const fn is_about_names(step: &Change) -> bool {
    matches!(step, Change::CreateThick { .. } | Change::Remove { .. } | Change::Rename { .. })
}

impl<H: Host> Agent<H> {
    /// Removes a volume that nobody ever had when it shows what its extents held before: whether it
    /// was removed.
    pub(super) async fn remove_if_cut(
        &self,
        vg: &Vg,
        state: &VgState,
        lv: &LvName,
    ) -> Result<bool> {
        let Some(found) = state.lvs.get(lv).filter(|lv| may_be_cut(lv)) else { return Ok(false) };
        if self.0.births.is_whole(vg, lv) {
            return Ok(false);
        }
        let device = self.activate(vg, lv).await?;
        let ran = self.0.store.host.run(&probe(&device.node)).await;
        let done =
            ran.map_err(|e| Error::unavailable(format!("cannot look at {lv}")).because(e))?;
        let own = found.uuid.filesystem_uuid();
        let what = match probe_result(&done) {
            // Or formatted, and cut before that was noted.
            Ok(Probe::Found(_)) if self.filesystem_of(found, &device).await? == Some(own) => {
                return Ok(false);
            }
            // The same of one that was encrypted.
            Ok(Probe::Found(what)) if what.contains(&found.uuid.luks_uuid().to_string()) => {
                return Ok(false);
            }
            Ok(Probe::Nothing) => return Ok(false),
            Ok(Probe::Found(what)) => what,
            Err(why) => return Err(Error::unavailable(format!("cannot look at {lv}: {why}"))),
        };
        tracing::warn!(vg = %state.name, %lv, what, "making a volume again: LVM was cut when it made it, and its extents show what they held before");
        let uuid = found.uuid.clone();
        self.must_be_idle(state, lv).await?;
        self.carry_out(vg, |state, _| {
            Ok(match state.lvs.get(lv).filter(|lv| lv.uuid == uuid && may_be_cut(lv)) {
                Some(_) => Plan::Steps(vec![Change::Remove { lv: lv.clone(), uuid: uuid.clone() }]),
                None => Plan::Done,
            })
        })
        .await
        .map(|_| true)
    }

    async fn filesystem_of(
        &self,
        lv: &Lv,
        device: &crate::host::dm::DmDevice,
    ) -> Result<Option<uuid::Uuid>> {
        Ok(self.superblock(lv, device).await?.map(|superblock| superblock.uuid))
    }
}

/// A device is zeroed as a whole before its first use unless it is encrypted, and a pool zeroes all that
/// it gives out.
fn may_be_cut(lv: &Lv) -> bool {
    lv.is_volume()
        && lv.tags.pending == Some(Pending::Fresh)
        && (matches!(lv.tags.usage, Some(Usage::Filesystem(_))) || lv.tags.luks)
        && lv.thick().is_some()
}
