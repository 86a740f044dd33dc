//! Volumes and snapshots: made, removed, made larger. Every one of these can be repeated, also
//! after it was cut.

use std::sync::Arc;

use super::Agent;
use super::inventory::{snapshot_of, volume_of};
use super::store::Vg;
use crate::domain::{
    Answer, CapacityRange, ContentSource, CreateSnapshot, CreateVolume, Snapshot, Told, Volume,
    VolumeAgent,
};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::Kind;
use crate::names::{Handle, LvName};
use crate::plan::missing::is_lost_with_disk;
use crate::plan::{self, Plan};
use crate::units::Bytes;

impl<H: Host> VolumeAgent for Agent<H> {
    fn create_volume(&self, request: CreateVolume) -> Answer<'_, Told<Volume>> {
        let agent = self.clone();
        Box::pin(self.detached(async move { agent.create(request).await }))
    }

    fn delete_volume(&self, volume: Handle) -> Answer<'_, Told<()>> {
        let agent = self.clone();
        Box::pin(self.detached(async move { agent.remove(volume, Kind::Volume).await }))
    }

    fn expand_volume(&self, volume: Handle, range: CapacityRange) -> Answer<'_, Told<Bytes>> {
        let agent = self.clone();
        Box::pin(self.detached(async move { agent.expand(volume, range).await }))
    }

    fn create_snapshot(&self, request: CreateSnapshot) -> Answer<'_, Told<Snapshot>> {
        let agent = self.clone();
        Box::pin(self.detached(async move { agent.snapshot(request).await }))
    }

    fn delete_snapshot(&self, snapshot: Handle) -> Answer<'_, Told<()>> {
        let agent = self.clone();
        Box::pin(self.detached(async move { agent.remove(snapshot, Kind::Snapshot).await }))
    }
}

impl<H: Host> Agent<H> {
    async fn create(&self, request: CreateVolume) -> Result<Told<Volume>> {
        self.known()?;
        let vg = self.vg_of_backend(request.class.backend.as_ref())?;
        let lv = LvName::for_volume(&request.name);
        let making = self.making(&request.name);
        let state = self.make_whole(&vg, &lv, &request).await?;
        drop(making);
        self.told(&state, &lv, volume_of)
    }

    /// Makes a volume, and waits until it is copied where it is a copy.
    async fn make_whole(
        &self,
        vg: &Arc<Vg>,
        lv: &LvName,
        request: &CreateVolume,
    ) -> Result<Arc<VgState>> {
        loop {
            let (state, pending) = match self.make(vg, lv, request).await {
                Ok(state) => (state, None),
                // It may be the copy that works on it.
                Err(error) if error.kind() == ErrorKind::Pending => (vg.state(), Some(error)),
                Err(error) => return Err(error),
            };
            let copying = state.lvs.get(lv).filter(|lv| self.is_being_copied(&state, lv));
            let Some(copying) = copying else {
                return pending.map_or(Ok(state), Err);
            };
            // Nothing is held meanwhile: it may take hours.
            self.wait_for_copy(vg, copying).await?;
        }
    }

    async fn make(&self, vg: &Vg, lv: &LvName, request: &CreateVolume) -> Result<Arc<VgState>> {
        let _guard = self.0.guards.lv(&vg.uuid, lv)?;
        // Its source must not be formatted, grown or removed meanwhile.
        let source = request.source.as_ref().map(ContentSource::handle);
        let source = source.filter(|source| source.lv != *lv);
        let _source =
            source.map(|source| self.0.guards.source(&vg.uuid, &source.lv)).transpose()?;
        if let Some(source) = source.filter(|_| !vg.state().lvs.contains_key(lv)) {
            self.must_not_be_lost(vg, source).await?;
        }
        let make = || self.carry_out(vg, |state, rules| plan::create::plan(state, rules, request));
        let state = make().await?;
        if self.remove_if_cut(vg, &state, lv).await? { make().await } else { Ok(state) }
    }

    async fn snapshot(&self, request: CreateSnapshot) -> Result<Told<Snapshot>> {
        self.known()?;
        let vg = self.0.store.vg(&request.source.vg)?;
        let lv = LvName::for_snapshot(&request.name);
        let _guard = self.0.guards.lv(&vg.uuid, &lv)?;
        let _source = self.0.guards.source(&vg.uuid, &request.source.lv)?;
        self.wait_in_step(&vg, &request.source.lv).await?;
        let state = self
            .carry_out(&vg, |state, rules| plan::snapshot::plan(state, rules, &request))
            .await?;
        self.told(&state, &lv, snapshot_of)
    }

    async fn expand(&self, volume: Handle, range: CapacityRange) -> Result<Told<Bytes>> {
        let (vg, _guard) = self.open(&volume)?;
        let state = self
            .carry_out(&vg, |state, rules| {
                let lv = state.lvs.get(&volume.lv).filter(|lv| lv.is_volume());
                let lv = lv.ok_or_else(|| {
                    Error::not_found(format!(
                        "there is no volume {} in volume group {}",
                        volume.lv, state.name
                    ))
                })?;
                if lv.is_unfinished() {
                    let sentence = format!("volume {} is still being made", lv.name);
                    return Err(Error::unavailable(sentence));
                }
                plan::expand::plan(state, rules, lv, &range)
            })
            .await?;
        self.told(&state, &volume.lv, |_, lv| Some(lv.payload()))
    }

    async fn remove(&self, handle: Handle, kind: Kind) -> Result<Told<()>> {
        let (vg, _guard) = self.open(&handle)?;
        if let Some(lv) = vg.state().lvs.get(&handle.lv) {
            self.stop_copy(&lv.uuid).await;
        }
        let state = vg.state();
        let lost = state.lvs.get(&handle.lv).is_some_and(|lv| is_lost_with_disk(&state, lv));
        if lost && kind == Kind::Snapshot {
            return self.remove_lost(&vg, &handle).await;
        }
        // With a volume that is being copied goes the image that it is copied from.
        for snapshot in [&handle.lv, &handle.lv.image()] {
            if let Some(origin) = state.lvs.get(snapshot).and_then(Lv::cow_origin) {
                self.wait_in_step(&vg, origin).await?;
            }
        }
        // LVM refuses to remove what is open, too; asked before, we can say who it is.
        if !matches!(plan::remove::plan(&state, &handle.lv, kind), Ok(Plan::Done) | Err(_)) {
            self.close_if_idle(&state, &handle).await?;
            self.must_be_idle(&state, &handle.lv).await?;
            self.erase_before_removal(&vg, &handle.lv, kind).await?;
        }
        self.carry_out(&vg, |state, _| plan::remove::plan(state, &handle.lv, kind)).await?;
        Ok(Told { value: (), revision: self.publish() })
    }

    /// Removes a thick snapshot that is lost with a missing disk. Nothing else of such a VG changes.
    async fn remove_lost(&self, vg: &Vg, handle: &Handle) -> Result<Told<()>> {
        let mut turn = self.0.store.turn(vg).await?;
        let mut state = turn.refresh_though_partial().await?;
        if let Plan::Steps(_) = plan::remove::plan(&state, &handle.lv, Kind::Snapshot)?
            && let Some(lv) = state.lvs.get(&handle.lv).filter(|lv| is_lost_with_disk(&state, lv))
        {
            let change = Change::Remove { lv: lv.name.clone(), uuid: lv.uuid.clone() };
            self.must_be_in_step(&state, &change).await?;
            let ran = turn.run(&change).await;
            state = turn.refresh_though_partial().await?;
            // Only its own disks could say that it is gone, and those that are there do.
            if state.lvs.contains_key(&handle.lv) {
                ran?;
                let sentence = format!("snapshot {} is still there", handle.lv);
                return Err(Error::unavailable(sentence));
            }
        }
        turn.flush(&state).await?;
        drop(turn);
        Ok(Told { value: (), revision: self.publish() })
    }

    fn open(&self, handle: &Handle) -> Result<(Arc<Vg>, super::guards::Guard)> {
        self.known()?;
        let vg = self.0.store.vg(&handle.vg)?;
        let guard = self.0.guards.lv(&vg.uuid, &handle.lv)?;
        Ok((vg, guard))
    }

    fn told<T>(
        &self,
        state: &VgState,
        lv: &LvName,
        read: impl Fn(&VgState, &Lv) -> Option<T>,
    ) -> Result<Told<T>> {
        let value = state.lvs.get(lv).and_then(|lv| read(state, lv)).ok_or_else(|| {
            Error::unavailable(format!("{}/{lv} was made, and cannot be read back", state.name))
        })?;
        Ok(Told { value, revision: self.publish() })
    }
}
