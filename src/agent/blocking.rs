//! Calls of the host that may hang go to threads made for that, and are waited for only so long. One that
//! is given up keeps its thread, of which there are not many: what hangs gets no more of them than some.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::store::Store;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::dm::DmDevice;
use crate::names::{LvName, LvmUuid};

/// Calls about a VG as a whole at the same time. They take milliseconds.
const OF_A_VG: usize = 16;

/// What a call hangs by when it hangs.
#[derive(Clone, Copy, Debug)]
pub(super) enum On<'a> {
    /// What the kernel says of a VG's devices.
    Vg(&'a LvmUuid),
    /// What it says of this one of them, which is asked by the clock.
    Lv(&'a LvmUuid, &'a LvName),
    /// What is on a device.
    Device(&'a DmDevice),
    /// A disk, a mount, or a place for one.
    Path(&'a Path),
    /// The kernel itself.
    Kernel(&'a str),
}

/// Who waits for a thread, or has one.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<BTreeMap<String, Arc<Place>>>);

#[derive(Debug)]
struct Place {
    free: Arc<Semaphore>,
    size: usize,
    /// Calls that were given up and go on.
    hanging: Mutex<usize>,
}

/// A thread's hold on its place, until the call has come to its end.
struct Running {
    place: Arc<Place>,
    ended: Arc<AtomicBool>,
    _permit: OwnedSemaphorePermit,
}

/// Whoever waits for a call. When it is dropped before the call has ended, that hangs.
struct Waiting {
    place: Arc<Place>,
    ended: Arc<AtomicBool>,
}

impl Places {
    fn of(&self, on: On<'_>) -> Arc<Place> {
        let (key, size) = match on {
            On::Vg(vg) => (format!("vg {vg}"), OF_A_VG),
            On::Kernel(what) => (format!("kernel {what}"), OF_A_VG),
            On::Lv(vg, lv) => (format!("lv {vg}/{lv}"), 1),
            On::Device(device) => (format!("device {}", device.name), 1),
            On::Path(path) => (format!("path {}", path.display()), 1),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Only those are kept that somebody has.
        all.retain(|_, place| Arc::strong_count(place) > 1);
        Arc::clone(all.entry(key).or_insert_with(|| Arc::new(Place::new(size))))
    }
}

impl Place {
    fn new(size: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(size)), size, hanging: Mutex::default() }
    }

    fn count(&self, change: impl FnOnce(usize) -> usize) -> usize {
        let mut hanging = self.hanging.lock().unwrap_or_else(PoisonError::into_inner);
        *hanging = change(*hanging);
        *hanging
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.place.count(|hanging| {
            if self.ended.swap(true, Ordering::Relaxed) {
                hanging.saturating_sub(1)
            } else {
                hanging
            }
        });
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.place.count(|hanging| {
            if self.ended.swap(true, Ordering::Relaxed) {
                hanging
            } else {
                hanging.saturating_add(1)
            }
        });
    }
}

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

/// The same, given up after a time. The thread goes on as long as the kernel holds it; while as many go
/// on as may, further ones fail at once.
///
/// # Errors
/// When it took too long, or others hang already, or the thread died.
pub(super) async fn within<H: Host, T: Send + 'static>(
    store: &Store<H>,
    on: On<'_>,
    limit: Duration,
    what: &str,
    work: impl FnOnce(&H) -> T + Send + 'static,
) -> Result<T> {
    let place = store.places.of(on);
    let hanging = place.count(|hanging| hanging);
    if hanging >= place.size {
        return Err(Error::unavailable(format!(
            "{what} was not looked at: {hanging} calls about it have given no answer so far, its disk may hang"
        )));
    }
    let call = async {
        let permit = Arc::clone(&place.free).acquire_owned().await;
        let permit = permit.map_err(|e| Error::unavailable("the agent is ending").because(e))?;
        let ended = Arc::<AtomicBool>::default();
        let _waiting = Waiting { place: Arc::clone(&place), ended: Arc::clone(&ended) };
        let running = Running { place: Arc::clone(&place), ended, _permit: permit };
        // Whoever is not waited for any more ends with its answer.
        let (done, running) = blocking(&store.host, move |host| (work(host), running)).await?;
        drop(running);
        Ok(done)
    };
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        Err(Error::unavailable(format!(
            "{what} gave no answer within {limit:?}: its disk may hang"
        )))
    })
}
