//! The power of a machine, as who calls a driver on it sees it. Nothing is switched here.

use std::sync::Arc;

use tokio::sync::watch;

/// Tells clients that the machine they call has no power any more: who is gone answers nothing, and closes no connection either.
#[derive(Clone, Debug)]
pub struct Power(Arc<watch::Sender<bool>>);

impl Default for Power {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(true)))
    }
}

impl Power {
    /// Ends all calls that wait for an answer, now and from now on.
    pub fn off(&self) {
        self.0.send_replace(false);
    }

    /// Comes back when it is off.
    pub(super) async fn failure(&self) {
        // The sender lives as long as this.
        drop(self.0.subscribe().wait_for(|on| !on).await);
    }
}
