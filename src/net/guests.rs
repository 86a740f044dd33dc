//! Taking connections, and how many may be open at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::ACCEPT_PAUSE;

/// Places for connections: so many in all, and so many from one address.
#[derive(Debug)]
pub struct Guests {
    all: usize,
    of_one: usize,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A place that is taken, until this is dropped.
#[derive(Debug)]
pub struct Guest {
    guests: Arc<Guests>,
    from: IpAddr,
}

impl Guests {
    /// That many places.
    #[must_use]
    pub fn new(all: usize, of_one: usize) -> Arc<Self> {
        Arc::new(Self { all, of_one, now: Mutex::default() })
    }

    /// A place for a connection. `None` when all are taken, or all that one address may have.
    #[must_use]
    pub fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Guest> {
        // The same peer, whichever way the kernel writes it down.
        let from = from.to_canonical();
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = now.by_address.get(&from).copied().unwrap_or_default();
        if now.all >= self.all || of_one >= self.of_one {
            return None;
        }
        now.all = now.all.saturating_add(1);
        now.by_address.insert(from, of_one.saturating_add(1));
        Some(Guest { guests: Arc::clone(self), from })
    }

    /// The next connection for which there is a place; those for which there is none are closed.
    /// `None` once it is time to stop.
    pub async fn next(
        self: &Arc<Self>,
        listener: &TcpListener,
        stop: &CancellationToken,
    ) -> Option<(TcpStream, SocketAddr, Guest)> {
        loop {
            match stop.run_until_cancelled(listener.accept()).await? {
                Ok((stream, from)) => {
                    if let Some(place) = self.admit(from.ip()) {
                        return Some((stream, from, place));
                    }
                    tracing::debug!(%from, "closed: too many connections");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut now = self.guests.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.all = now.all.saturating_sub(1);
        let left = now.by_address.get(&self.from).copied().unwrap_or_default().saturating_sub(1);
        if left == 0 {
            now.by_address.remove(&self.from);
        } else {
            now.by_address.insert(self.from, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_and_given_back() {
        let guests = Guests::new(3, 2);
        let [one, mapped, two, three]: [IpAddr; 4] =
            ["10.0.0.1", "::ffff:10.0.0.1", "::2", "::3"].map(|text| text.parse().unwrap());
        let first = guests.admit(one).unwrap();
        let second = guests.admit(mapped).unwrap();
        assert!(guests.admit(one).is_none(), "one address has all it may have");
        let third = guests.admit(two).unwrap();
        assert!(guests.admit(three).is_none(), "all places are taken");
        drop((first, second, third));
        assert_eq!(guests.now.lock().unwrap().by_address, BTreeMap::new());
        let again: Vec<_> = [one, two, three].map(|from| guests.admit(from).unwrap()).into();
        assert_eq!(again.len(), 3);
    }
}
