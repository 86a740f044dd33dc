//! Calls of the host that may hang go to threads made for that, and are waited for only so long.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::Host;

/// Runs something that may block, to its end.
///
/// # Errors
/// When the thread died.
pub(super) async fn blocking<H: Host, T: Send + 'static>(
    host: &Arc<H>,
    work: impl FnOnce(&H) -> T + Send + 'static,
) -> Result<T> {
    host.apart(work).await.map_err(|e| Error::host("a thread of the agent died").because(e))
}

/// The same, given up after a time. The thread goes on as long as the kernel holds it.
///
/// # Errors
/// When it took too long, or the thread died.
pub(super) async fn within<H: Host, T: Send + 'static>(
    host: &Arc<H>,
    limit: Duration,
    what: &str,
    work: impl FnOnce(&H) -> T + Send + 'static,
) -> Result<T> {
    tokio::time::timeout(limit, blocking(host, work)).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "{what} gave no answer within {limit:?}: its disk may hang"
        )))
    })
}
