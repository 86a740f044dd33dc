//! Serves the CSI services on a listener.

use std::time::Duration;

use cinderblock_proto::csi::v1 as csi;
use csi::controller_server::ControllerServer;
use csi::identity_server::IdentityServer;
use csi::node_server::NodeServer;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::{ControllerService, IdentityService, NodeService, Readiness};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::net;

/// Calls of one connection at a time. The provisioner has 100 workers; more wait.
const CALLS_PER_CONNECTION_MAX: usize = 512;
/// Connections at a time. A sidecar has one or two, the kubelet makes one for each call.
const CONNECTIONS_MAX: usize = 1_024;
/// A connection on which nothing comes back within these is ended.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is served: Identity always, the others where the process has them.
#[derive(Debug)]
pub struct Services<R, H> {
    /// Identity.
    pub identity: IdentityService<R>,
    /// Controller.
    pub controller: Option<ControllerService>,
    /// Node.
    pub node: Option<NodeService<H>>,
}

/// Serves until `stop`; calls that run then are answered.
///
/// # Errors
/// When the listener fails.
pub async fn serve<R: Readiness, H: Host>(
    listener: UnixListener,
    services: Services<R, H>,
    stop: CancellationToken,
) -> Result<()> {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .add_service(IdentityServer::new(services.identity))
        .add_optional_service(services.controller.map(ControllerServer::new))
        .add_optional_service(services.node.map(NodeServer::new))
        .serve_with_incoming_shutdown(
            net::clients(listener, CONNECTIONS_MAX),
            stop.cancelled_owned(),
        )
        .await
        .map_err(|e| Error::host("the CSI socket failed").because(e))
}
