//! /metrics, /healthz and /readyz over HTTP. Answered from memory: a probe never waits for a disk,
//! nor for anybody else.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::net;

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
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .with_state(Served { metrics, is_ready });
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(failed)
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
