//! The backends of this node: which it has, whether their VGs and pools are as configured, and what
//! they can promise. What is missing is made when the configuration says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Agent;
use super::pools::Pools;
use super::store::Vg;
use crate::config::{Backend, ThinPool, WIPE_RATE_DEFAULT};
use crate::domain::{BackendState, BackendStatus};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::lvm::state::{LvLayout, VgState};
use crate::names::BackendName;
use crate::plan::{self, Plan, Rules, capacity};
use crate::units::Bytes;

/// How often it is tried again to set up a backend that could not be: nothing else would tell that
/// its disks have come or were cleared.
const RETRY_EVERY: Duration = Duration::from_mins(1);

/// What is known of backends and pools beside what the VGs hold.
#[derive(Debug, Default)]
pub(super) struct Setup {
    /// How setting up each backend ended when it was last tried: why it could not be.
    outcomes: Mutex<BTreeMap<BackendName, Result<(), String>>>,
    /// What is known of the pools.
    pub(super) pools: Pools,
    /// When the backends were last set up.
    tried: Mutex<Option<Instant>>,
}

/// Where a backend's VG stands.
enum Found {
    One(Arc<Vg>),
    /// LVM was asked, and there is none.
    None,
    Unusable(String),
    Unknown(String),
}

impl<H: Host> Agent<H> {
    /// The backends that this node has.
    fn backends(&self) -> Vec<Backend> {
        let config = Arc::clone(&self.0.config.borrow());
        let labels = self.0.labels.borrow().clone();
        let selected = |backend: &&Backend| match &labels {
            Some(labels) => backend.selects(labels),
            None => backend.node_selector.is_empty(),
        };
        config.backends().filter(selected).cloned().collect()
    }

    fn find(&self, backend: &Backend) -> Found {
        let name = &backend.volume_group;
        let Some(scanned) = self.0.store.scanned() else {
            return Found::Unknown("LVM has given no report yet".to_owned());
        };
        let mut vgs: Vec<Arc<Vg>> =
            self.0.store.all().into_iter().filter(|vg| vg.name() == *name).collect();
        if vgs.len() > 1 {
            let uuids: Vec<_> = vgs.iter().map(|vg| vg.uuid.as_str().to_owned()).collect();
            return Found::Unusable(format!(
                "two volume groups are called {name}: rename one of them with vgrename {}",
                uuids.join(" or ")
            ));
        }
        match (vgs.pop(), scanned.incomplete.get(name.as_str())) {
            (Some(vg), None) => Found::One(vg),
            (_, Some(why)) => {
                Found::Unknown(format!("LVM could not report volume group {name}: {why}"))
            }
            (None, None) => Found::None,
        }
    }

    /// The VG in which a class makes its volumes.
    pub(super) fn vg_of_backend(&self, name: Option<&BackendName>) -> Result<Arc<Vg>> {
        let config = Arc::clone(&self.0.config.borrow());
        let backend = config.backend(name)?;
        if !self.backends().contains(backend) {
            return Err(Error::no_space(format!(
                "this node does not have backend {}: its labels are not those of the backend's node selector",
                backend.name
            )));
        }
        match self.state_of(backend).state {
            BackendState::Ready { vg, .. } => self.0.store.vg(&vg),
            BackendState::Unusable(why) => Err(Error::no_space(format!(
                "backend {} cannot be used on this node: {why}",
                backend.name
            ))),
            BackendState::Unknown(why) => Err(Error::unavailable(format!(
                "nothing is known of backend {} on this node now: {why}",
                backend.name
            ))),
        }
    }

    /// The states of all backends of this node.
    pub(super) fn backend_states(&self) -> BTreeMap<BackendName, BackendStatus> {
        self.backends().iter().map(|b| (b.name.clone(), self.state_of(b))).collect()
    }

    /// Why a backend could not be set up, when it was last tried.
    pub(super) fn setup_failure(&self, backend: &BackendName) -> Option<String> {
        self.setup_outcome(backend)?.err()
    }

    /// `None`: it was not tried yet.
    fn setup_outcome(&self, backend: &BackendName) -> Option<Result<(), String>> {
        let outcomes = self.0.setup.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.get(backend).cloned()
    }

    fn state_of(&self, backend: &Backend) -> BackendStatus {
        let outcome = self.setup_outcome(&backend.name);
        let state = match (self.find(backend), outcome) {
            (Found::Unknown(why), _) => BackendState::Unknown(why),
            (Found::Unusable(why), _) | (Found::None, Some(Err(why))) => {
                BackendState::Unusable(why)
            }
            (Found::None, None) => BackendState::Unknown("it is still being set up".to_owned()),
            // It was there, or was made, when this was last tried: to make it would be the wrong advice.
            (Found::None, Some(Ok(()))) if !backend.create_from.is_empty() => {
                BackendState::Unusable(format!(
                    "volume group {} is not seen any more: its disks are missing, or cannot be read: look at pvs and dmesg",
                    backend.volume_group
                ))
            }
            (Found::None, Some(Ok(()))) => BackendState::Unusable(format!(
                "volume group {} does not exist on this node: make it with vgcreate, or list its disks under devices or nodeDevices with create: true",
                backend.volume_group
            )),
            (Found::One(vg), outcome) => {
                self.state_of_vg(backend, &vg, outcome.and_then(Result::err))
            }
        };
        BackendStatus { volume_group: backend.volume_group.clone(), state }
    }

    fn state_of_vg(&self, backend: &Backend, vg: &Vg, failure: Option<String>) -> BackendState {
        let state = vg.state();
        if state.exported || !state.system_id.is_empty() {
            return BackendState::Unusable(format!(
                "volume group {} is exported or belongs to another host: vgimport or vgchange --systemid",
                state.name
            ));
        }
        if state.is_partial() {
            return BackendState::Unknown(format!(
                "volume group {} misses a disk: bring it back",
                state.name
            ));
        }
        // The pool decides; a failure that was mended meanwhile no longer counts.
        let pool = backend.thin_pool.as_ref().map(|pool| pool_is_usable(&state, pool));
        match (pool, failure) {
            (Some(Err(why)), failure) => {
                BackendState::Unusable(failure.unwrap_or_else(|| why.chain()))
            }
            (None | Some(Ok(())), _) => BackendState::Ready {
                vg: state.uuid.clone(),
                capacity: capacity::of(&state, &self.known_rules(backend, &state)),
            },
        }
    }

    /// What a planner has to keep to in a VG, with the pool's fill of this moment.
    pub(super) async fn rules(&self, state: &VgState) -> Result<Rules> {
        let Some(backend) = self.backends().into_iter().find(|b| b.volume_group == state.name)
        else {
            return Ok(Rules::default());
        };
        if let Some(pool) = &backend.thin_pool {
            self.look_at_pool(state, &pool.name).await?;
        }
        Ok(self.known_rules(&backend, state))
    }

    /// The same, with what is known of the pool already.
    pub(super) fn known_rules(&self, backend: &Backend, state: &VgState) -> Rules {
        let usable = |pool: &&ThinPool| pool_is_usable(state, pool).is_ok();
        let pool = backend.thin_pool.as_ref().filter(usable);
        let pool = pool.map(|pool| self.pool_rules(state, pool));
        Rules { pool, reserve: backend.reserve.of(state.size()) }
    }

    /// How much of deleted volumes may be zeroed in a VG in a second.
    pub(super) fn wipe_rate(&self, state: &VgState) -> Bytes {
        let backends = self.backends();
        let backend = backends.iter().find(|b| b.volume_group == state.name);
        backend.map_or(WIPE_RATE_DEFAULT, |b| b.wipe_rate)
    }

    /// How much may be copied in a VG in a second, for one volume. `None`: as much as the disks do.
    pub(super) fn copy_rate(&self, state: &VgState) -> Option<Bytes> {
        let backends = self.backends();
        backends.iter().find(|b| b.volume_group == state.name).and_then(|b| b.copy_rate)
    }

    /// The backends whose VG is there, each with it.
    pub(super) fn backends_with_vg(&self) -> Vec<(Backend, Arc<Vg>)> {
        let found = |backend: Backend| match self.find(&backend) {
            Found::One(vg) => Some((backend, vg)),
            Found::None | Found::Unusable(_) | Found::Unknown(_) => None,
        };
        self.backends().into_iter().filter_map(found).collect()
    }

    /// Whether some backend has no VG or could not be set up as configured, and it is time to try
    /// again: something outside may have mended it.
    pub(super) fn backends_need_attention(&self) -> bool {
        let tried = *self.0.setup.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if tried.is_some_and(|at| at.elapsed() < RETRY_EVERY) {
            return false;
        }
        let outcomes = self.0.setup.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = outcomes.values().any(Result::is_err);
        drop(outcomes);
        let not_ready = |s: &BackendStatus| !matches!(s.state, BackendState::Ready { .. });
        failed || self.backend_states().values().any(not_ready)
    }

    /// Makes what the configuration says has to be made.
    pub(super) async fn set_up_backends(&self) {
        *self.0.setup.tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        for backend in self.backends() {
            if self.0.stop.is_cancelled() {
                return;
            }
            let outcome = self.set_up(&backend).await.map_err(|error| error.chain());
            let mut outcomes = self.0.setup.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            let before = outcomes.insert(backend.name.clone(), outcome.clone());
            drop(outcomes);
            if let Err(why) = &outcome
                && before != Some(outcome.clone())
            {
                tracing::error!(backend = %backend.name, why, "the backend cannot be set up");
            }
        }
        self.publish();
    }

    async fn set_up(&self, backend: &Backend) -> Result<()> {
        if let Found::None | Found::Unknown(_) = self.find(backend) {
            self.0.store.scan().await?;
        }
        if let (Found::None, false) = (self.find(backend), backend.create_from.is_empty()) {
            self.make_vg(backend).await?;
        }
        let Found::One(vg) = self.find(backend) else { return Ok(()) };
        self.extend_vg(backend, &vg).await?;
        let Some(pool) = &backend.thin_pool else { return Ok(()) };
        let reserve = |state: &VgState| backend.reserve.of(state.size());
        self.carry_out(&vg, |state, _| plan::pool::plan(state, pool, reserve(state))).await?;
        self.wake_pool(&vg, &pool.name).await
    }
}

/// Whether a pool is there and safe to use.
fn pool_is_usable(state: &VgState, pool: &ThinPool) -> Result<()> {
    let reserve = Bytes::ZERO;
    match plan::pool::plan(state, pool, reserve)? {
        Plan::Done => Ok(()),
        Plan::Steps(_) | Plan::Rest(_) | Plan::Zero(_) | Plan::Copy(_) => {
            let is_pool = matches!(
                state.lvs.get(&pool.name).map(|lv| &lv.layout),
                Some(LvLayout::ThinPool { .. })
            );
            // All that is left to do is to name it as ours.
            if is_pool {
                return Ok(());
            }
            Err(Error::unavailable(format!("thin pool {}/{} is being made", state.name, pool.name)))
        }
    }
}
