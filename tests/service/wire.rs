//! A wire between a node and a controller that can be slow, lose what goes over it, or be cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a message takes on a slow wire.
const DELAY: Duration = Duration::from_millis(40);

/// What lies between a node and a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Whole,
    /// What goes over it takes its time.
    Slow,
    /// Answers of the node are lost.
    Mute,
    /// Nothing comes through, and nobody is told.
    Frozen,
    Cut,
}

/// A wire to an address; its port.
pub(crate) async fn wire(to: SocketAddr) -> (u16, watch::Sender<Wire>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let state = watch::Sender::new(Wire::Whole);
    let watched = state.subscribe();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            if *watched.borrow() == Wire::Cut {
                continue;
            }
            let far = TcpStream::connect(to).await.unwrap();
            let (near, far) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near.0, far.1, watched.clone(), Wire::Mute));
            tokio::spawn(carry(far.0, near.1, watched.clone(), Wire::Frozen));
        }
    });
    (port, state)
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<Wire>,
    stopped_by: Wire,
) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let now = *state.borrow_and_update();
        if now == Wire::Cut {
            return;
        }
        let flows = matches!(now, Wire::Whole | Wire::Slow)
            || (now == Wire::Mute && stopped_by != Wire::Mute);
        tokio::select! {
            // What was cut before it came does not come through.
            biased;
            changed = state.changed() => if changed.is_err() { return },
            read = from.read(&mut bytes), if flows => match read {
                Ok(n) if n > 0 => {
                    if now == Wire::Slow {
                        tokio::time::sleep(DELAY).await;
                    }
                    if to.write_all(bytes.get(..n).unwrap()).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
