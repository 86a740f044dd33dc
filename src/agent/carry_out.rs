//! Carries out a plan: plan, step, look, until the plan says that nothing is left. What failed is
//! judged by what the VG holds afterwards, not by LVM's words.

use std::sync::Arc;

use super::Agent;
use super::blocking::blocking;
use super::store::{Turn, Vg};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::host::block::ZERO_PIECE;
use crate::host::dm::DmDevice;
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::Pending;
use crate::names::LvName;
use crate::plan::{Plan, Rules};

/// Times that a plan is made again. The longest takes four; more means that LVM does not do what
/// it says.
const ROUNDS_MAX: usize = 8;

impl<H: Host> Agent<H> {
    /// Makes a VG what a plan wants it to be. What it holds then.
    ///
    /// # Errors
    /// What the plan refuses; [`ErrorKind::Unavailable`] when something may be left behind, and
    /// [`ErrorKind::Host`] when a step failed and nothing was.
    pub(super) async fn carry_out(
        &self,
        vg: &Vg,
        plan: impl Fn(&VgState, &Rules) -> Result<Plan> + Send + Sync,
    ) -> Result<Arc<VgState>> {
        let (mut progress, mut last) = (false, None);
        // Kept to the end: whoever let go of it after a step would wait for all others' steps to hear
        // that its own is done.
        let mut turn = self.0.store.turn(vg).await?;
        for _ in 0..ROUNDS_MAX {
            let state = turn.refresh().await.map_err(|e| in_doubt(e, progress))?;
            let rules = self.rules(&state).await.map_err(|e| in_doubt(e, progress))?;
            let steps = match plan(&state, &rules).map_err(|e| in_doubt(e, progress))? {
                Plan::Done | Plan::Copy(_) => {
                    turn.flush(&state).await?;
                    return Ok(state);
                }
                Plan::Steps(steps) => steps,
                Plan::Rest(steps) => {
                    progress = true;
                    steps
                }
                Plan::Zero(lv) => {
                    drop(turn);
                    progress = true;
                    self.zero_and_settle(vg, &lv).await.map_err(|e| in_doubt(e, progress))?;
                    turn = self.0.store.turn(vg).await.map_err(|e| in_doubt(e, progress))?;
                    continue;
                }
            };
            for step in &steps {
                let in_step = self.must_be_in_step(&state, step).await;
                in_step.map_err(|e| in_doubt(e, progress))?;
            }
            last = steps.last().and_then(Change::lv).cloned().or(last);
            for step in &steps {
                self.0.births.begin(vg, step);
                let ran = turn.run(step).await;
                self.0.births.end(vg, step, &ran);
                if let Err(error) = ran {
                    let judged = self.judge(&mut turn, error, step, &steps, &plan).await;
                    return judged.map_err(|e| in_doubt(e, progress));
                }
            }
            progress = true;
        }
        let last = last.map_or_else(String::new, |lv| {
            format!(
                ": the last one was about {lv}; somebody may have it open (lsof, dmsetup ls --tree)"
            )
        });
        Err(Error::unavailable(format!(
            "volume group {} is still not as asked after {ROUNDS_MAX} rounds, though LVM reports success{last}",
            vg.name()
        )))
    }

    /// A step failed: what is true now?
    async fn judge(
        &self,
        turn: &mut Turn<'_, H>,
        error: Error,
        step: &Change,
        steps: &[Change],
        plan: &(impl Fn(&VgState, &Rules) -> Result<Plan> + Send + Sync),
    ) -> Result<Arc<VgState>> {
        let state = turn.refresh().await.map_err(|e| {
            Error::unavailable("a change failed, and its outcome cannot be seen now").because(e)
        })?;
        let rules = self.rules(&state).await?;
        match plan(&state, &rules)? {
            // It happened all the same.
            Plan::Done | Plan::Copy(_) => {
                turn.flush(&state).await?;
                Ok(state)
            }
            Plan::Steps(left) if left == *steps => {
                if let (Change::Remove { lv, .. }, ErrorKind::Host) = (step, error.kind()) {
                    self.must_be_idle(&state, lv).await?;
                }
                Err(error)
            }
            Plan::Steps(_) | Plan::Rest(_) | Plan::Zero(_) => Err(in_doubt(error, true)),
        }
    }

    /// Zeroes an LV that nobody else has, and then drops its tag that says so.
    pub(super) async fn zero_and_settle(&self, vg: &Vg, lv: &LvName) -> Result<()> {
        self.zero_all(vg, lv).await?;
        self.settle(vg, lv, Pending::Fresh).await
    }

    /// Zeroes an LV that nobody else has.
    pub(super) async fn zero_all(&self, vg: &Vg, lv: &LvName) -> Result<()> {
        let state = vg.state();
        let device = self.activate(vg, lv).await?;
        self.must_be_fresh(vg, own_lv(&state, lv)?, &device).await?;
        let total = device.size.get();
        let piece = ZERO_PIECE.get();
        let mut offset = 0_u64;
        while offset < total {
            if self.0.stop.is_cancelled() {
                return Err(Error::unavailable(
                    "the agent is ending; zeroing goes on at its next start",
                ));
            }
            let len = piece.min(total.saturating_sub(offset));
            let node = device.node.clone();
            blocking(&self.0.store.host, move |host| host.zero_device(&node, offset, len))
                .await?
                .map_err(|e| {
                Error::host(format!("cannot zero {}/{lv} at byte {offset}", state.name)).because(e)
            })?;
            offset = offset.saturating_add(len);
            tracing::debug!(vg = %state.name, %lv, offset, total, "zeroed");
        }
        Ok(())
    }

    /// That a volume is still to be made ready before its first use, and that nobody has its device: right
    /// before that is overwritten. What is known may be older than the disks.
    pub(super) async fn must_be_fresh(&self, vg: &Vg, lv: &Lv, device: &DmDevice) -> Result<()> {
        let state = self.0.store.turn(vg).await?.refresh().await?;
        let found = own_lv(&state, &lv.name)?;
        if found.uuid != lv.uuid || found.tags.pending != Some(Pending::Fresh) {
            return Err(Error::unavailable(format!(
                "volume {} does not bear the tag {} any more, so nothing was overwritten; try again",
                lv.name,
                Pending::Fresh.tag()
            )));
        }
        self.must_be_let_go(lv, device).await
    }

    /// Drops the tag that says what has to be done before first use: it was done.
    pub(super) async fn settle(&self, vg: &Vg, lv: &LvName, pending: Pending) -> Result<()> {
        let mut turn = self.0.store.turn(vg).await?;
        let state = turn.refresh().await?;
        let found = own_lv(&state, lv)?;
        if found.tags.pending != Some(pending) {
            return turn.flush(&state).await;
        }
        let (lv, uuid) = (found.name.clone(), found.uuid.clone());
        let del = vec![pending.tag().to_owned()];
        let ran = turn.run(&Change::Retag { lv: lv.clone(), uuid, add: vec![], del }).await;
        // Whatever LVM said: only the metadata proves it.
        let state = turn.refresh().await?;
        if own_lv(&state, &lv)?.tags.pending != Some(pending) {
            return turn.flush(&state).await;
        }
        ran?;
        Err(Error::unavailable(format!(
            "{}/{lv} still bears the tag {}, though LVM reports success",
            state.name,
            pending.tag()
        )))
    }
}

/// An error after something was done, or may have been: a final code would make the caller forget
/// what is left.
fn in_doubt(error: Error, progress: bool) -> Error {
    if progress { error.with_kind(ErrorKind::Unavailable) } else { error }
}

/// An LV of ours by its name.
pub(super) fn own_lv<'a>(state: &'a VgState, lv: &LvName) -> Result<&'a Lv> {
    state.lvs.get(lv).filter(|found| found.tags.is_ours()).ok_or_else(|| {
        Error::not_found(format!("there is no volume {lv} in volume group {}", state.name))
    })
}
