//! Connections on a Unix socket: not more than there is use for, and none that never begins.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::{ACCEPT_PAUSE, Guest, Guests};

/// A connection that has not begun to speak HTTP/2 after this is ended.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2's preface, and the head of the frame that has to follow it.
const BEGINNING: usize = 24 + 9;

/// The connections of a listener. Those over `most` at a time are closed at once.
pub fn clients(listener: UnixListener, most: usize) -> impl Stream<Item = io::Result<Client>> {
    let guests = Guests::new(most, most);
    stream::unfold((listener, guests), |(listener, guests)| async move {
        loop {
            let accepted = listener.accept().await;
            // They have no addresses, and one who may use the socket is like another.
            let place = guests.admit(IpAddr::V4(Ipv4Addr::LOCALHOST));
            match (accepted, place) {
                (Ok((stream, _)), Some(place)) => {
                    return Some((Ok(Client::new(stream, place)), (listener, guests)));
                }
                (Ok(_), None) => tracing::warn!("closed a connection: there are too many"),
                (Err(error), _) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Until when it has to begin, and how much of that is still to come.
    beginning: Option<(Pin<Box<Sleep>>, usize)>,
    _place: Guest,
}

impl Client {
    fn new(stream: UnixStream, place: Guest) -> Self {
        let deadline = Box::pin(tokio::time::sleep(BEGIN_TIMEOUT));
        Self { stream, beginning: Some((deadline, BEGINNING)), _place: place }
    }
}

impl Connected for Client {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = &mut *self;
        let Some((deadline, left)) = &mut this.beginning else {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        };
        if deadline.as_mut().poll(cx).is_ready() {
            tracing::warn!("ended a connection that did not begin");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        *left = left.saturating_sub(buf.filled().len().saturating_sub(before));
        if *left == 0 {
            this.beginning = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
