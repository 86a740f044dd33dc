//! The agent of a node: the only one that runs LVM there, keeps the picture of what its VGs hold,
//! makes volumes ready and mounts them. It knows neither CSI messages nor Kubernetes.
//!
//! A change goes like this: a guard on the volume, a turn at the VG, a fresh look at what the VG
//! holds, a plan, the plan's steps, and a fresh look again until the plan says that nothing is
//! left. All of it runs in a task of its own: a caller that goes away changes nothing.

mod backends;
mod birth;
mod blocking;
mod carry_out;
mod copy;
mod cow;
mod crypt;
mod device;
mod disks;
mod erase;
mod guards;
mod inventory;
mod lost_copy;
mod lost_growth;
mod make_vg;
mod making;
mod node;
mod pools;
mod raid;
mod repair;
mod store;
mod troubles;
mod volumes;
mod wipe;

#[cfg(any(test, feature = "testing"))]
pub(crate) use node::wrap;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::domain::Inventory;
use crate::error::{Error, Result};
use crate::host::Host;
use guards::Guards;
use store::Store;

pub use copy::CopyTotals;
pub use cow::ThickSnapshots;
pub use node::{Publish, Stage, Statistics};
pub use raid::RaidVolumes;

/// The agent. Cheap to clone: all clones are one.
#[derive(Debug)]
pub struct Agent<H>(Arc<Inner<H>>);

#[derive(Debug)]
struct Inner<H> {
    store: Store<H>,
    guards: Guards,
    config: watch::Receiver<Arc<Config>>,
    /// The node's labels, where they are known.
    labels: watch::Receiver<Option<Labels>>,
    /// What is known of each backend beside its VG.
    setup: backends::Setup,
    wiping: wipe::Wiping,
    births: birth::Births,
    copies: copy::Copies,
    lost_copies: lost_copy::LostCopies,
    lost_growths: lost_growth::LostGrowths,
    making: making::Making,
    cows: cow::Cows,
    inventory: watch::Sender<Arc<Inventory>>,
    /// How the RAID volumes were when last looked at.
    raid: watch::Sender<Arc<RaidVolumes>>,
    since: troubles::Since,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Labels of a node.
pub type Labels = BTreeMap<String, String>;

impl<H> Clone for Agent<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H: Host> Agent<H> {
    /// An agent that knows nothing yet: [`Agent::run`] brings it to life.
    #[must_use]
    pub fn new(
        host: H,
        config: watch::Receiver<Arc<Config>>,
        labels: watch::Receiver<Option<Labels>>,
    ) -> Self {
        Self(Arc::new(Inner {
            store: Store::new(Arc::new(host)),
            guards: Guards::default(),
            config,
            labels,
            setup: backends::Setup::default(),
            wiping: wipe::Wiping::default(),
            births: birth::Births::default(),
            copies: copy::Copies::default(),
            lost_copies: lost_copy::LostCopies::default(),
            lost_growths: lost_growth::LostGrowths::default(),
            making: making::Making::default(),
            cows: cow::Cows::default(),
            inventory: watch::Sender::new(Arc::new(Inventory::default())),
            raid: watch::Sender::new(Arc::default()),
            since: troubles::Since::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Looks at the disks, sets up the backends, keeps the inventory true, copies what is to be copied
    /// and wipes what was deleted until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        // Apart: a disk that hangs must not keep the pools on other disks from growing.
        let (inventory, pools) = (Box::pin(self.keep_inventory()), Box::pin(self.keep_pools()));
        let more = async { tokio::join!(self.keep_thick_snapshots(), self.keep_copying()) };
        let work = async { tokio::join!(inventory, pools, self.keep_wiping(), more) };
        stop.run_until_cancelled(work).await;
    }

    /// Refuses new calls, and waits until all that was begun has come to its end.
    pub async fn finish(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if !self.0.tasks.is_empty() {
            tracing::info!(calls = self.0.tasks.len(), "waiting for what was begun");
        }
        self.0.tasks.wait().await;
    }

    /// The inventory, and every change of it. Revision 0 means that nothing is known yet.
    #[must_use]
    pub fn inventory(&self) -> watch::Receiver<Arc<Inventory>> {
        self.0.inventory.subscribe()
    }

    /// The host that it works on.
    #[must_use]
    pub fn host(&self) -> &Arc<H> {
        &self.0.store.host
    }

    /// Runs something to its end whether or not anybody waits for it.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.0.stop.is_cancelled() {
            return Err(Error::unavailable("the agent is ending; try again"));
        }
        let task = self.0.tasks.spawn(work);
        task.await.unwrap_or_else(|e| Err(Error::host("a call of the agent died").because(e)))
    }

    /// Does something that may change a VG to its end, also when the agent ends meanwhile.
    async fn to_its_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        if !self.0.stop.is_cancelled()
            && let Err(error) = self.0.tasks.spawn(work).await
        {
            tracing::error!(%error, "a task of the agent died");
        }
    }

    fn known(&self) -> Result<()> {
        if self.0.store.scanned().is_some() {
            return Ok(());
        }
        Err(Error::unavailable("LVM has given no report since the agent started; try again"))
    }
}
