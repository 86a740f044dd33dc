//! Destroying the keys of an encrypted volume or snapshot before it is removed: what is left on the
//! disks is noise for whoever finds it, at once and without overwriting it.

use std::io::ErrorKind as Io;

use super::Agent;
use super::blocking::blocking;
use super::store::Vg;
use crate::error::{Error, Result};
use crate::host::{Host, luks};
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Kind, Pending, Wipe};
use crate::names::LvName;
use crate::plan::{self, Plan};

impl<H: Host> Agent<H> {
    /// Destroys the keys of what is about to be removed, if a fresh look says that it will be.
    pub(super) async fn erase_before_removal(
        &self,
        vg: &Vg,
        lv: &LvName,
        kind: Kind,
    ) -> Result<()> {
        if !vg.state().lvs.get(lv).is_some_and(|lv| lv.tags.luks) {
            return Ok(());
        }
        let state = self.0.store.turn(vg).await?.refresh().await?;
        match (plan::remove::plan(&state, lv, kind)?, state.lvs.get(lv)) {
            (Plan::Done, _) | (_, None) => Ok(()),
            // A thick snapshot shows its volume's header, which is needed until the last of them goes.
            (_, Some(found))
                if found.cow_origin().is_some() || state.cow_snapshots(lv).next().is_some() =>
            {
                Ok(())
            }
            (_, Some(found)) => self.erase_keys(vg, &state, found).await,
        }
    }

    /// Overwrites the header of an encrypted LV and the copy of it. For one that is about to be
    /// removed, and that nobody uses.
    pub(super) async fn erase_keys(&self, vg: &Vg, state: &VgState, lv: &Lv) -> Result<()> {
        // What was never given to anybody has nothing under its keys.
        if !lv.tags.luks || lv.tags.pending == Some(Pending::Fresh) || lv.is_cut_raid() {
            return Ok(());
        }
        if !lv.writable {
            self.make_writable_again(vg, lv).await?;
        }
        let device = self.activate(vg, &lv.name).await?;
        tracing::info!(vg = %state.name, lv = %lv.name, "destroying the keys of an encrypted volume");
        for at in [0, luks::COPY_AT] {
            let node = device.node.clone();
            let len = luks::HEADER.get();
            let cleared = blocking(&self.0.store.host, move |host| {
                host.clear_device(&node, Wipe::Zero, at, len)
            });
            match cleared.await? {
                Ok(()) => {}
                // Deleting is the way out of a full pool, and must not need room in it.
                Err(e) if e.kind() == Io::StorageFull && lv.pool().is_some() => {
                    tracing::warn!(vg = %state.name, lv = %lv.name, "the thin pool is full: the keys that this volume shares with snapshots are removed with it and not overwritten");
                }
                Err(e) => {
                    let sentence = format!(
                        "cannot destroy the keys of {}/{}, so it was not removed: if its disk is broken, remove it with lvremove",
                        state.name, lv.name
                    );
                    return Err(Error::unavailable(sentence).because(e));
                }
            }
        }
        Ok(())
    }

    /// A snapshot is read-only.
    async fn make_writable_again(&self, vg: &Vg, lv: &Lv) -> Result<()> {
        let change = Change::MakeWritable { lv: lv.name.clone(), uuid: lv.uuid.clone() };
        self.carry_out(vg, |state, _| {
            let read_only = |now: &&Lv| now.uuid == lv.uuid && !now.writable;
            Ok(match state.lvs.get(&lv.name).filter(read_only) {
                Some(_) => Plan::Steps(vec![change.clone()]),
                None => Plan::Done,
            })
        })
        .await
        .map(drop)
    }
}
