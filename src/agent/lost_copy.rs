//! Copies that can never be complete, because their source went before it was copied from. Nobody ever
//! had them, and nobody ever will. When the call that began one is not repeated, which would remove it,
//! the agent removes it by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Agent;
use super::store::Vg;
use crate::error::Result;
use crate::host::Host;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::Kind;
use crate::names::{LvName, LvmUuid};
use crate::plan;

/// How long the source has to be gone. Somebody may only have renamed it, and will see the mistake.
const LOST_AFTER: Duration = Duration::from_mins(10);

/// Since when copies are seen to be lost, by the VG and the LV.
#[derive(Debug, Default)]
pub(super) struct LostCopies(Mutex<BTreeMap<(LvmUuid, LvmUuid), Instant>>);

impl LostCopies {
    /// Those of a VG that have been lost for long enough.
    fn due(&self, state: &VgState) -> Vec<(LvName, LvmUuid)> {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lost: Vec<_> = state.lvs.values().filter(|lv| is_lost(state, lv)).collect();
        since.retain(|(vg, uuid), _| *vg != state.uuid || lost.iter().any(|lv| lv.uuid == *uuid));
        let mut is_due = |lv: &&Lv| {
            let key = (state.uuid.clone(), lv.uuid.clone());
            since.entry(key).or_insert_with(Instant::now).elapsed() >= LOST_AFTER
        };
        let due = lost.iter().copied().filter(|lv| is_due(lv));
        due.map(|lv| (lv.name.clone(), lv.uuid.clone())).collect()
    }
}

fn is_lost(state: &VgState, lv: &Lv) -> bool {
    lv.is_volume() && plan::copy::is_lost(state, lv)
}

impl<H: Host> Agent<H> {
    /// Removes the copies of a VG that can never be complete. What fails is tried again.
    pub(super) async fn remove_lost_copies(&self, vg: &Arc<Vg>) {
        for (lv, uuid) in self.0.lost_copies.due(&vg.state()) {
            if let Err(error) = Box::pin(self.remove_lost_copy(vg, &lv, &uuid)).await {
                tracing::warn!(vg = %vg.name(), %lv, error = error.chain(), "cannot remove a copy whose source is gone; trying again");
            }
        }
    }

    async fn remove_lost_copy(&self, vg: &Vg, lv: &LvName, uuid: &LvmUuid) -> Result<()> {
        // With it nobody can go on copying: what is lost now stays so.
        let _guard = self.0.guards.lv(&vg.uuid, lv)?;
        let state = vg.state();
        let Some(found) = state.lvs.get(lv).filter(|lv| lv.uuid == *uuid && is_lost(&state, lv))
        else {
            return Ok(());
        };
        tracing::warn!(vg = %state.name, %lv, source = ?found.tags.source, "removing a volume that was never complete: what it was to be copied from is gone");
        self.close_if_idle(&state, &state.handle(lv)).await?;
        self.must_be_idle(&state, lv).await?;
        // Should its source come back all the same, it is copied from its start: its header may be gone.
        self.carry_out(vg, |state, _| Ok(plan::copy::forget(state, uuid))).await?;
        self.erase_before_removal(vg, lv, Kind::Volume).await?;
        self.carry_out(vg, |state, _| plan::copy::give_up(state, uuid)).await?;
        self.publish();
        Ok(())
    }
}
