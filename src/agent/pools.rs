//! Thin pools kept alive: how full they are, as the kernel tells; growing them in time; and saying
//! so when that is not possible.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Agent;
use super::blocking::{On, within};
use super::store::Vg;
use super::troubles::{of_parts, of_pool};
use crate::config::{Autogrow, Backend, ThinPool};
use crate::domain::Reason;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::host::dm::PoolStatus;
use crate::lvm::change::Change;
use crate::lvm::state::{LvLayout, VgState};
use crate::lvm::tag::Kind;
use crate::names::{LvName, LvmUuid, dm_name};
use crate::plan::capacity::{FULL_BP, METADATA_FULL_BP, POOL_METADATA_GUARD_BP, metadata_guard};
use crate::plan::pool_growth::{self, Condition};
use crate::plan::{Growth, Plan, PoolRules, Rules};
use crate::units::Bytes;

/// How often pools are looked at for how full they are, by one ioctl a pool. A fast disk fills the
/// last fifth of a small pool within a few of these.
const WATCH_EVERY: Duration = Duration::from_secs(2);
const KERNEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Pools' fill is published in steps of this, in hundredths of a percent: not at every write.
const FILL_STEP_BP: u64 = 10;
/// A growth that LVM refused is tried again after this.
const GROW_AGAIN: Duration = Duration::from_mins(1);
/// A growth whose end is not known is tried again with the next look, until so many in a row ended so: then it counts
/// as refused, and is told.
const CUTS_IN_A_ROW: u32 = 3;
/// A block of a pool's metadata, fixed in the kernel.
const METADATA_BLOCK: u64 = 4096;

/// What is known of all pools beside what the VGs hold.
#[derive(Debug, Default)]
pub(super) struct Pools(Mutex<BTreeMap<(LvmUuid, LvName), Seen>>);

/// What is known of a pool.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// What the kernel said last.
    status: Option<PoolStatus>,
    /// Whether it is being looked at by the clock now.
    looking: bool,
    /// What a planner had to know of it when it was looked at last.
    rules: Option<Rules>,
    /// Whether it is being grown now.
    growing: bool,
    /// Why it cannot grow, though it should.
    stuck: Option<String>,
    /// When LVM refused to make it larger.
    refused: Option<Instant>,
    /// How many growths in a row ended without that anybody knows how.
    cuts: u32,
    /// What the log says of it.
    told: Condition,
    /// Why it could not be looked at.
    blind: Option<String>,
}

impl Pools {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(LvmUuid, LvName), Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, state: &VgState, pool: &LvName) -> Seen {
        self.lock().get(&(state.uuid.clone(), pool.clone())).cloned().unwrap_or_default()
    }

    fn change<T>(&self, state: &VgState, pool: &LvName, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(self.lock().entry((state.uuid.clone(), pool.clone())).or_default())
    }
}

impl<H: Host> Agent<H> {
    /// What a planner has to know of a pool that is there.
    pub(super) fn pool_rules(&self, state: &VgState, pool: &ThinPool) -> PoolRules {
        let seen = self.0.setup.pools.get(state, &pool.name);
        // A pool that is not active has not been written to since it was last looked at.
        let status = seen.status;
        PoolRules {
            lv: pool.name.clone(),
            overprovision_percent: pool.overprovision_percent,
            data_used_bp: status.map_or(0, |s| used_bp(s.data)),
            metadata_used_bp: status.map_or(0, |s| used_bp(s.metadata)),
            metadata_guard_bp: status
                .map_or(POOL_METADATA_GUARD_BP, |s| metadata_guard(metadata_size(&s))),
            healthy: status.is_none_or(|s| s.writable && !s.needs_check),
            queues: status.is_some_and(|s| s.queues),
            stuck: seen.stuck.is_some(),
            growth: status.and_then(|s| growth(state, pool, &s)),
        }
    }

    /// Keeps the pools from running full, for ever.
    pub(super) async fn keep_pools(&self) {
        let mut tick = tokio::time::interval(WATCH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for (backend, vg) in self.backends_with_vg() {
                let Some(pool) = backend.thin_pool.as_ref().map(|pool| pool.name.clone()) else {
                    continue;
                };
                let is_free = |seen: &mut Seen| !std::mem::replace(&mut seen.looking, true);
                if self.0.setup.pools.change(&vg.state(), &pool, is_free) {
                    // Apart: its disk may hang, and those of the others must not wait for it.
                    let agent = self.clone();
                    tokio::spawn(async move { agent.watch_pool(&backend, &vg, &pool).await });
                }
            }
        }
    }

    /// Looks how full a backend's pool is, begins to grow it if it needs that, and says what is wrong.
    async fn watch_pool(&self, backend: &Backend, vg: &Arc<Vg>, pool: &LvName) {
        let looked = self.look_at_pool(&vg.state(), pool).await;
        let state = vg.state();
        let blind = looked.err().map(|error| error.chain());
        let before = self
            .0
            .setup
            .pools
            .change(&state, pool, |seen| std::mem::replace(&mut seen.blind, blind.clone()));
        // What else is said of a disk that hangs differs from time to time.
        if let (Some(error), None) = (&blind, &before) {
            tracing::warn!(vg = %state.name, %pool, error, "cannot look at the thin pool");
        }
        self.grow_in_time(backend, vg, pool);
        self.tell(backend, &state, pool);
        let rules = Some(self.known_rules(backend, &state));
        let changed = self.0.setup.pools.change(&state, pool, |seen| {
            seen.looking = false;
            std::mem::replace(&mut seen.rules, rules.clone()) != rules
        });
        if changed {
            self.publish_again();
        }
    }

    /// Begins to grow a pool that needs it. Nobody waits for it.
    fn grow_in_time(&self, backend: &Backend, vg: &Arc<Vg>, pool: &LvName) {
        let state = vg.state();
        let plan = pool_growth::plan(&state, &self.known_rules(backend, &state));
        let begin = self.0.setup.pools.change(&state, pool, |seen| {
            let soon = seen.refused.is_some_and(|at| at.elapsed() < GROW_AGAIN);
            match plan {
                Ok(Plan::Done) => (seen.stuck, seen.refused, seen.cuts) = (None, None, 0),
                Err(error) => seen.stuck = Some(error.chain()),
                Ok(_) if seen.growing || soon || self.0.stop.is_cancelled() => {}
                Ok(_) => {
                    seen.growing = true;
                    return true;
                }
            }
            false
        });
        if begin {
            let (agent, vg, pool) = (self.clone(), Arc::clone(vg), pool.clone());
            self.0.tasks.spawn(async move { agent.grow_pool(&vg, &pool).await });
        }
    }

    async fn grow_pool(&self, vg: &Vg, pool: &LvName) {
        let before = vg.state();
        let grown = self
            .carry_out(vg, |state, rules| match pool_growth::plan(state, rules) {
                // As large as it can be. The next look says that it should be larger.
                Err(error) if error.kind() == ErrorKind::NoSpace => Ok(Plan::Done),
                plan => plan,
            })
            .await;
        let size = |state: &VgState| state.lvs.get(pool).map_or(Bytes::ZERO, |lv| lv.size);
        let (failed, cut) = match grown {
            Ok(after) => {
                tracing::info!(vg = %after.name, %pool, from = %size(&before), to = %size(&after), "the thin pool has grown");
                (None, false)
            }
            Err(error) => {
                let (why, cut) = (error.chain(), error.kind() == ErrorKind::Unavailable);
                if cut {
                    tracing::warn!(vg = %before.name, %pool, error = why, "growing the thin pool was cut; it is tried again");
                }
                (Some(why), cut)
            }
        };
        self.0.setup.pools.change(&before, pool, |seen| {
            seen.growing = false;
            seen.cuts = if cut { seen.cuts.saturating_add(1) } else { 0 };
            seen.stuck = failed.filter(|_| !cut || seen.cuts >= CUTS_IN_A_ROW);
            seen.refused = seen.stuck.is_some().then(Instant::now);
        });
        self.publish_again();
    }

    /// The first inventory is published when all backends are set up, not before.
    pub(super) fn publish_again(&self) {
        if self.0.inventory.borrow().revision > 0 {
            self.publish();
        }
    }

    /// Says in the log what is wrong with a pool, once.
    fn tell(&self, backend: &Backend, state: &VgState, pool: &LvName) {
        let rules = self.known_rules(backend, state).pool;
        let Some(capacity) = rules.and_then(|rules| rules.capacity(state)) else { return };
        let condition = capacity.condition();
        let (before, stuck) = self.0.setup.pools.change(state, pool, |seen| {
            (std::mem::replace(&mut seen.told, condition), seen.stuck.clone())
        });
        if before == condition {
            return;
        }
        let vg = &state.name;
        let why = match condition {
            Condition::Good => {
                tracing::info!(%vg, %pool, "the thin pool is well again");
                return;
            }
            Condition::Queues => {
                let why = format!(
                    "when it is full it will hold writes back instead of failing them: lvchange --errorwhenfull y {vg}/{pool}"
                );
                tracing::warn!(%vg, %pool, why, "the thin pool would hang its users");
                return;
            }
            Condition::Stuck => stuck.unwrap_or_default(),
            Condition::Guarded | Condition::NoWrites => capacity.trouble().unwrap_or_default(),
        };
        match condition {
            Condition::Stuck => tracing::warn!(%vg, %pool, why, "the thin pool cannot grow"),
            Condition::NoWrites => {
                tracing::error!(%vg, %pool, why, "the thin pool takes no writes");
            }
            Condition::Good | Condition::Queues | Condition::Guarded => {
                tracing::warn!(%vg, %pool, why, "the thin pool takes nothing new");
            }
        }
    }

    /// What is wrong with a backend's pool, as far as it is known.
    pub(super) fn pool_troubles(
        &self,
        backend: &Backend,
        state: &VgState,
    ) -> Vec<(Reason, String)> {
        let pool = backend.thin_pool.as_ref().and_then(|pool| state.lvs.get(&pool.name));
        let raid = Arc::clone(&self.0.raid.borrow());
        let mut found = pool.map_or(vec![], |pool| of_parts(state, pool, &raid));
        let rules = self.known_rules(backend, state).pool;
        if let Some((rules, capacity)) =
            rules.and_then(|r| Some((r.capacity(state)?, r))).map(|(c, r)| (r, c))
        {
            let stuck = self.0.setup.pools.get(state, &rules.lv).stuck;
            found.extend(of_pool(&format!("{}/{}", state.name, rules.lv), &capacity, stuck));
        }
        found
    }

    /// Looks how full a pool is.
    pub(super) async fn look_at_pool(&self, state: &VgState, pool: &LvName) -> Result<()> {
        if let Some(status) = self.pool_status(state, pool).await? {
            self.0.setup.pools.change(state, pool, |seen| seen.status = Some(status));
        }
        Ok(())
    }

    /// The kernel's figures of a pool. `None` when it is not active.
    pub(super) async fn pool_status(
        &self,
        state: &VgState,
        pool: &LvName,
    ) -> Result<Option<PoolStatus>> {
        let name = dm_name(&state.name, pool).map_err(|e| Error::invalid(e.to_string()))?;
        let what = format!("thin pool {name}");
        let status =
            within(&self.0.store, On::Lv(&state.uuid, pool), KERNEL_TIMEOUT, &what, move |host| {
                // Once a pool has volumes, its LV is a layer above the pool itself.
                for name in [format!("{name}-tpool"), name] {
                    let status = host.device_status(&name)?;
                    let pool =
                        status.and_then(|s| s.targets.into_iter().find(|t| t.0 == "thin-pool"));
                    if let Some((_, line)) = pool {
                        return Ok(PoolStatus::parse(&line));
                    }
                }
                Ok(None)
            });
        status.await?.map_err(|e: std::io::Error| {
            Error::host(format!("cannot ask the kernel about {what}")).because(e)
        })
    }

    /// Activates a pool, so that the kernel tells how full it is.
    pub(super) async fn wake_pool(&self, vg: &Vg, pool: &LvName) -> Result<()> {
        if self.pool_status(&vg.state(), pool).await?.is_none() {
            let mut turn = self.0.store.turn(vg).await?;
            turn.refresh().await?;
            turn.run(&Change::Activate { lv: pool.clone() }).await?;
        }
        self.look_at_pool(&vg.state(), pool).await
    }
}

/// How a pool grows: as configured, or by default when we made it.
fn growth(state: &VgState, pool: &ThinPool, status: &PoolStatus) -> Option<Growth> {
    let lv = state.lvs.get(&pool.name)?;
    let LvLayout::ThinPool { .. } = lv.layout else { return None };
    let ours = lv.tags.is_ours() && lv.tags.kind == Some(Kind::Pool);
    let rule = pool.autogrow.or_else(|| ours.then(Autogrow::default))?;
    // One that is full takes no writes, until it grows. Another one that takes none is for a person.
    let full = |used: (u64, u64), at_bp| used.1 > 0 && used_bp(used) >= at_bp;
    let out_of_room = full(status.data, FULL_BP) || full(status.metadata, METADATA_FULL_BP);
    let alive = status.writable || out_of_room;
    if rule.at_percent >= 100 || status.needs_check || !alive {
        return None;
    }
    Some(Growth { rule, metadata: metadata_size(status) })
}

fn metadata_size(status: &PoolStatus) -> Bytes {
    Bytes::new(status.metadata.1.saturating_mul(METADATA_BLOCK))
}

fn used_bp((used, total): (u64, u64)) -> u64 {
    let bp = used.saturating_mul(10_000).checked_div(total).unwrap_or_default();
    bp.checked_next_multiple_of(FILL_STEP_BP).unwrap_or(bp)
}
