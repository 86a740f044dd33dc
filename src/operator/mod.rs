//! What a person asks of a controller or of a node's agent by the command line, and the only place that
//! names these messages. They go over a Unix socket that only the process's own user can open: who may
//! execute commands in its pod, and nobody over the network.

mod ask;
mod repair;
mod serve;

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Status};

use crate::error::{Error, Result};
use crate::net;

pub use ask::{Ask, ask};
pub use repair::{AskRepair, ask_repair, serve_repair};
pub use serve::serve;

/// Orphans of one list. A row has 700 bytes at the most, and a message 4 MiB.
const ROWS_MAX: usize = 5_000;
/// Orphans that one call removes.
const HANDLES_MAX: usize = 100;
/// The longest that a call takes: LVM on a bad day, a hundred times, takes longer, and goes on.
const CALL_TIMEOUT: Duration = Duration::from_mins(10);
/// Connections at a time, and calls of each: people are few.
const CONNECTIONS_MAX: usize = 8;
const CALLS_MAX: usize = 4;
/// A connection on which nothing comes back within these is ended.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The longest refusal. It goes in a header, and may repeat a value of the request.
const REFUSAL_MAX: usize = 1_024;

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.push_str(&text.to_string());
    out.push('\n');
}

fn invalid(why: &impl Display) -> Status {
    let sentence: String = why.to_string().chars().take(REFUSAL_MAX).collect();
    Status::invalid_argument(sentence)
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .concurrency_limit_per_connection(CALLS_MAX)
}

/// Serves until `stop`.
async fn serve_on(served: Router, listener: UnixListener, stop: CancellationToken) -> Result<()> {
    served
        .serve_with_incoming_shutdown(
            net::clients(listener, CONNECTIONS_MAX),
            stop.cancelled_owned(),
        )
        .await
        .map_err(|e| Error::host("the operator's socket failed").because(e))
}
