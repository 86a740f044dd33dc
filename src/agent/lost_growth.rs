//! Extents that a thick block volume was about to get by an expansion that was cut. They hold nothing of
//! anybody's. When the call is not repeated, which would use or remove them, the agent removes them by
//! itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Agent;
use super::store::Vg;
use crate::error::Result;
use crate::host::Host;
use crate::lvm::state::{Lv, VgState};
use crate::names::{LvName, LvmUuid};
use crate::plan;

/// How long nobody may have worked on the volume. The resizer repeats a call within five minutes.
const LEFT_AFTER: Duration = Duration::from_mins(10);

/// Since when nobody is seen to work on what expansions have left, by the VG and the LV.
#[derive(Debug, Default)]
pub(super) struct LostGrowths(Mutex<BTreeMap<(LvmUuid, LvmUuid), Instant>>);

impl<H: Host> Agent<H> {
    /// Removes what expansions of a VG's volumes have left. What fails is tried again.
    pub(super) async fn remove_lost_growths(&self, vg: &Arc<Vg>) {
        for (volume, uuid) in self.lost_growths(&vg.state()) {
            if let Err(error) = Box::pin(self.remove_lost_growth(vg, &volume, &uuid)).await {
                tracing::warn!(vg = %vg.name(), %volume, error = error.chain(), "cannot remove what an expansion has left; trying again");
            }
        }
    }

    /// The names of the volumes, and what has been left of their expansions for long enough.
    fn lost_growths(&self, state: &VgState) -> Vec<(LvName, LvmUuid)> {
        let mut since = self.0.lost_growths.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<_> = state.lvs.values().filter_map(|lv| Some((of(lv)?, lv))).collect();
        since.retain(|(vg, uuid), _| *vg != state.uuid || left.iter().any(|it| it.1.uuid == *uuid));
        let mut due = Vec::new();
        for (volume, growth) in left {
            let begun = since.entry((state.uuid.clone(), growth.uuid.clone()));
            let begun = begun.or_insert_with(Instant::now);
            // To zero it takes as long as it takes, with the volume's guard held.
            if self.0.guards.lv(&state.uuid, &volume).is_err() {
                *begun = Instant::now();
            } else if begun.elapsed() >= LEFT_AFTER {
                due.push((volume, growth.uuid.clone()));
            }
        }
        due
    }

    async fn remove_lost_growth(&self, vg: &Vg, volume: &LvName, uuid: &LvmUuid) -> Result<()> {
        // Whoever expands the volume has it.
        let _guard = self.0.guards.lv(&vg.uuid, volume)?;
        let state = vg.state();
        let name = volume.growth();
        if state.lvs.get(&name).is_none_or(|lv| lv.uuid != *uuid) {
            return Ok(());
        }
        tracing::warn!(vg = %state.name, lv = %name, "removing what an expansion has left that was cut and not repeated");
        self.must_be_idle(&state, &name).await?;
        self.carry_out(vg, |state, _| Ok(plan::expand::give_up(state, volume, uuid))).await?;
        self.publish();
        Ok(())
    }
}

/// The name of the volume that an LV of ours was to make larger.
fn of(lv: &Lv) -> Option<LvName> {
    lv.is_growth().then(|| lv.name.without_growth()).flatten()
}
