//! /metrics, /healthz and /readyz over HTTP. Answered from memory: a probe never waits for a disk,
//! nor for anybody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::net::{self, Guests};

/// Connections at a time, in all and from one address: the kubelet's probes and a Prometheus or two
/// have one each. What is over this is closed, so that who floods the port from one address leaves the
/// probes their places.
const CONNECTIONS_MAX: usize = 256;
const CONNECTIONS_OF_ONE_MAX: usize = 32;
/// A request that is not there in whole, and an answer that is not read in whole, after these is given up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Whether the process can take work. Never waits.
pub type IsReady = Arc<dyn Fn() -> bool + Send + Sync>;

#[derive(Clone)]
struct Served {
    metrics: Metrics,
    is_ready: IsReady,
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    is_ready: IsReady,
    stop: CancellationToken,
) -> Result<()> {
    let failed =
        |e: std::io::Error| Error::host(format!("cannot serve HTTP on {address}")).because(e);
    let listener = net::tcp(address).await.map_err(failed)?;
    serve_on(listener, metrics, is_ready, stop).await;
    Ok(())
}

/// Serves on a listener until `stop`; requests that are there then are answered.
pub async fn serve_on(
    listener: TcpListener,
    metrics: Metrics,
    is_ready: IsReady,
    stop: CancellationToken,
) {
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .with_state(Served { metrics, is_ready });
    let (guests, tasks) =
        (Guests::new(CONNECTIONS_MAX, CONNECTIONS_OF_ONE_MAX), TaskTracker::new());
    while let Some((stream, from, place)) = guests.next(&listener, &stop).await {
        let answered = answer(stream, router.clone());
        tasks.spawn(async move {
            if tokio::time::timeout(CONNECTION_TIMEOUT, answered).await.is_err() {
                tracing::debug!(%from, "gave up a slow connection");
            }
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

/// One request, and its answer.
async fn answer(stream: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended badly");
    }
}

async fn metrics_text(State(served): State<Served>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], served.metrics.text())
}

async fn readiness(State(served): State<Served>) -> impl IntoResponse {
    if (served.is_ready)() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
