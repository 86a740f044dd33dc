//! A lost disk is replaced, because a person says that it does not come back: listed disks are added,
//! RAID gets new legs, and the lost disk is forgotten when nothing is on it any more. Nobody's data is given up.

use super::Agent;
use super::make_vg::Missing;
use super::store::{Turn, Vg};
use crate::config::Backend;
use crate::domain::Repaired;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::lvm::tag::OWNED;
use crate::names::{BackendName, LvName};
use crate::plan::missing::{Mend, is_ours, lost_legs, next, raid_lvs};

impl<H: Host> Agent<H> {
    /// Repairs the VGs of this node's backends, or of this one: what was done, and what cannot be. Safe to cut
    /// and to repeat; volumes may be in use.
    ///
    /// # Errors
    /// When nothing is known of the VGs, or the node has no such backend.
    pub async fn repair(&self, backend: Option<BackendName>) -> Result<Vec<Repaired>> {
        self.known()?;
        let agent = self.clone();
        self.detached(async move { agent.repair_backends(backend.as_ref()).await }).await
    }

    async fn repair_backends(&self, only: Option<&BackendName>) -> Result<Vec<Repaired>> {
        let mut found = self.backends_with_vg();
        found.retain(|(backend, _)| only.is_none_or(|name| backend.name == *name));
        if let (Some(name), true) = (only, found.is_empty()) {
            return Err(Error::invalid(format!(
                "this node has no backend {name} with a volume group"
            )));
        }
        let mut done = Vec::new();
        for (backend, vg) in found {
            if vg.state().is_partial() {
                self.add_listed_disks(&backend, &vg, &mut done).await;
            }
            self.repair_vg(&vg, &mut done).await?;
            self.take_legs_back(&vg, &mut done).await?;
        }
        self.publish_again();
        Ok(done)
    }

    /// The lost disk itself is mostly still listed: what cannot be added is told, and is no failure.
    async fn add_listed_disks(&self, backend: &Backend, vg: &Vg, done: &mut Vec<Repaired>) {
        if !vg.state().tags.iter().any(|tag| tag == OWNED) {
            return;
        }
        for path in &backend.create_from {
            let what = path.display().to_string();
            match self.add_disk(backend, vg, path, Missing::GivenUp).await {
                Ok(false) => {}
                Ok(true) => {
                    let said = format!("added to volume group {}", backend.volume_group);
                    done.push(Repaired { what, said, failed: false });
                }
                Err(error) => {
                    let said = format!("not added: {}", error.chain());
                    done.push(Repaired { what, said, failed: false });
                }
            }
        }
    }

    async fn repair_vg(&self, vg: &Vg, done: &mut Vec<Repaired>) -> Result<()> {
        let mut turn = self.0.store.turn(vg).await?;
        let mut refused: Vec<LvName> = Vec::new();
        loop {
            let state = turn.refresh_though_partial().await?;
            let mend = next(&state, &refused);
            let (what, ran, well) = match &mend {
                Mend::Done => return turn.flush(&state).await,
                Mend::Kept(lvs) => {
                    done.extend(lvs.iter().map(|lv| kept(&state, lv)));
                    return Ok(());
                }
                Mend::ReplaceLegs(lv) => (
                    format!("{}/{lv}", state.name),
                    self.replace_legs(&mut turn, &state, lv).await,
                    "has new legs for those that were lost; they are being brought in step",
                ),
                Mend::Forget => (
                    format!("volume group {}", state.name),
                    forget_missing(&mut turn, &state).await,
                    "is complete: the missing disks are forgotten",
                ),
            };
            // What the VG holds tells how it went.
            let failed = next(&*turn.refresh_though_partial().await?, &refused) == mend;
            let said = match ran {
                _ if !failed => well.to_owned(),
                Ok(()) => "not repaired: LVM reports success, and nothing has changed".to_owned(),
                Err(error) => format!("not repaired: {}", error.chain()),
            };
            tracing::info!(what, said, "a repair that was asked for");
            done.push(Repaired { what, said, failed });
            if failed {
                let Mend::ReplaceLegs(lv) = mend else { return Ok(()) };
                refused.push(lv);
            }
        }
    }

    /// Only what is active gets other legs.
    async fn replace_legs(
        &self,
        turn: &mut Turn<'_, H>,
        state: &VgState,
        lv: &LvName,
    ) -> Result<()> {
        if let Some((seen, raid)) = raid_lvs(state).find(|(_, raid)| raid.name == *lv)
            && self.raid_status(state, raid).await?.is_none()
        {
            turn.run(&Change::ActivateDegraded { lv: seen.name.clone() }).await?;
        }
        turn.run(&Change::ReplaceLegs { lv: lv.clone() }).await
    }

    /// Legs that the kernel has given up, and whose disks are there: they may have been away for a while.
    async fn take_legs_back(&self, vg: &Vg, done: &mut Vec<Repaired>) -> Result<()> {
        let mut turn = self.0.store.turn(vg).await?;
        let state = turn.refresh_though_partial().await?;
        for (seen, raid) in raid_lvs(&state).filter(|(_, raid)| lost_legs(&state, raid) == 0) {
            if !self.has_failed(&state, raid).await? {
                continue;
            }
            let ran = turn.run(&Change::Refresh { lv: seen.name.clone() }).await;
            let failed = self.has_failed(&state, raid).await?;
            let said = match ran {
                _ if !failed => {
                    "has the legs again that had failed; they are being brought in step".to_owned()
                }
                Ok(()) => {
                    "has legs that fail still: if their disk is bad, take it out, and repeat this"
                        .to_owned()
                }
                Err(error) => {
                    format!("has legs that failed, and cannot take them back: {}", error.chain())
                }
            };
            tracing::info!(vg = %state.name, lv = %raid.name, said, "a repair that was asked for");
            done.push(Repaired { what: format!("{}/{}", state.name, raid.name), said, failed });
        }
        Ok(())
    }

    async fn has_failed(&self, state: &VgState, raid: &Lv) -> Result<bool> {
        Ok(self.raid_status(state, raid).await?.is_some_and(|status| status.failed > 0))
    }
}

async fn forget_missing<H: Host>(turn: &mut Turn<'_, H>, state: &VgState) -> Result<()> {
    let has_pool = state.lvs.values().any(|lv| matches!(lv.layout, LvLayout::ThinPool { .. }));
    // Nobody sees the spare of pools: whether it is in the way shows when the disk is to be forgotten.
    if has_pool && let Err(error) = turn.run(&Change::RemoveLostSpare).await {
        tracing::warn!(vg = %state.name, error = error.chain(), "the spare for pools' metadata is not removed");
    }
    turn.run(&Change::ForgetMissing).await
}

fn kept(state: &VgState, lv: &LvName) -> Repaired {
    let vg = &state.name;
    if !state.lvs.get(lv).is_some_and(|lv| is_ours(state, lv)) {
        let said = "has something on a missing disk, and is not the driver's: repair or remove it yourself, and repeat this";
        return Repaired { what: format!("{vg}/{lv}"), said: said.to_owned(), failed: true };
    }
    let said = format!(
        "is lost with a missing disk, of which nobody has a copy: bring the disk back (vgextend --restoremissing {vg} DISK then, \
         as LVM has noted it as missing), or give up all that is lost with vgreduce --removemissing --force {vg}"
    );
    Repaired { what: format!("{vg}/{lv}"), said, failed: true }
}
