//! The node's side of the protocol: the agent as a gRPC service.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use cinderblock_proto::agent::v1 as pb;
use pb::node_agent_server::{NodeAgent, NodeAgentServer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::stream::Watched;
use super::{KEEPALIVE_EVERY, KEEPALIVE_TIMEOUT, failure, inventory, wire};
use crate::agent::{Agent, Labels};
use crate::domain::{Told, VolumeAgent};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::names::Handle;

/// Events on the way to a controller that does not read them.
const EVENTS_MAX: usize = 16;
/// Calls of one controller at a time.
const CALLS_MAX: usize = 1024;

/// Serves an agent on a connection, until the connection or the process ends.
pub(super) async fn serve<H: Host>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    agent: Agent<H>,
    labels: Arc<watch::Sender<Option<Labels>>>,
    token_file: PathBuf,
    stop: CancellationToken,
) -> Result<()> {
    let ended = CancellationToken::new();
    let watched = Watched::new(stream, ended.clone().drop_guard());
    let one = tokio_stream::once(Ok::<_, std::io::Error>(watched));
    // The server must not end when it has accepted its one connection, but when that has ended.
    let incoming = one.chain(tokio_stream::pending());
    let until = stop.clone();
    let end = async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = until.cancelled() => {}
        }
    };
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .concurrency_limit_per_connection(CALLS_MAX)
        .add_service(NodeAgentServer::new(Service { agent, labels, token_file, stop }))
        .serve_with_incoming_shutdown(incoming, end)
        .await
        .map_err(|e| Error::unavailable("the connection to the controller failed").because(e))
}

struct Service<H> {
    agent: Agent<H>,
    labels: Arc<watch::Sender<Option<Labels>>>,
    /// The kubelet renews it there.
    token_file: PathBuf,
    /// Ends the streams, which have no end of their own: a server waits for them.
    stop: CancellationToken,
}

/// The token that the node has now.
pub(super) async fn token(file: &Path) -> Result<String> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text
        .map_err(|e| Error::host(format!("cannot read the token {}", file.display())).because(e))?;
    Ok(text.trim().to_owned())
}

fn handle(text: &str) -> Result<Handle> {
    Handle::parse(text).map_err(|e| Error::not_found(format!("the controller asks for {e}")))
}

fn done(result: Result<Told<()>>) -> Response<pb::DoneResponse> {
    Response::new(match result {
        Ok(told) => pb::DoneResponse { failure: None, revision: told.revision },
        Err(e) => pb::DoneResponse { failure: Some(failure::failure(&e)), revision: 0 },
    })
}

#[tonic::async_trait]
impl<H: Host> NodeAgent for Service<H> {
    type WatchInventoryStream =
        Pin<Box<dyn Stream<Item = Result<pb::InventoryEvent, Status>> + Send>>;

    async fn watch_inventory(
        &self,
        _: Request<pb::WatchInventoryRequest>,
    ) -> Result<Response<Self::WatchInventoryStream>, Status> {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let mut inventory = self.agent.inventory();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let mut told = None;
            loop {
                let now = Arc::clone(&inventory.borrow_and_update());
                if now.revision > 0 {
                    for event in inventory::events(told.as_deref(), &now) {
                        if sender.send(Ok(event)).await.is_err() {
                            return;
                        }
                    }
                    told = Some(now);
                }
                tokio::select! {
                    changed = inventory.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                    () = stop.cancelled() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn identify(
        &self,
        _: Request<pb::IdentifyRequest>,
    ) -> Result<Response<pb::IdentifyResponse>, Status> {
        match token(&self.token_file).await {
            Ok(token) => Ok(Response::new(pb::IdentifyResponse { token })),
            Err(error) => Err(Status::unavailable(error.chain())),
        }
    }

    async fn update_labels(
        &self,
        request: Request<pb::Labels>,
    ) -> Result<Response<pb::UpdateLabelsResponse>, Status> {
        self.labels.send_replace(Some(request.into_inner().labels));
        Ok(Response::new(pb::UpdateLabelsResponse {}))
    }

    async fn create_volume(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeResponse>, Status> {
        use pb::create_volume_response::Result as Outcome;
        let made = match wire::parse_create_volume(request.into_inner()) {
            Ok(request) => self.agent.create_volume(request).await,
            Err(error) => Err(error),
        };
        let (result, revision) = match made {
            Ok(told) => (Outcome::Volume(wire::volume(&told.value)), told.revision),
            Err(error) => (Outcome::Failure(failure::failure(&error)), 0),
        };
        Ok(Response::new(pb::CreateVolumeResponse { result: Some(result), revision }))
    }

    async fn delete_volume(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DoneResponse>, Status> {
        Ok(done(match handle(&request.into_inner().handle) {
            Ok(handle) => self.agent.delete_volume(handle).await,
            Err(error) => Err(error),
        }))
    }

    async fn expand_volume(
        &self,
        request: Request<pb::ExpandVolumeRequest>,
    ) -> Result<Response<pb::ExpandVolumeResponse>, Status> {
        use pb::expand_volume_response::Result as Outcome;
        let request = request.into_inner();
        let expanded = match handle(&request.handle) {
            Ok(handle) => self.agent.expand_volume(handle, wire::parse_range(request.range)).await,
            Err(error) => Err(error),
        };
        let (result, revision) = match expanded {
            Ok(told) => (Outcome::SizeBytes(told.value.get()), told.revision),
            Err(error) => (Outcome::Failure(failure::failure(&error)), 0),
        };
        Ok(Response::new(pb::ExpandVolumeResponse { result: Some(result), revision }))
    }

    async fn create_snapshot(
        &self,
        request: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<pb::CreateSnapshotResponse>, Status> {
        use pb::create_snapshot_response::Result as Outcome;
        let made = match wire::parse_create_snapshot(&request.into_inner()) {
            Ok(request) => self.agent.create_snapshot(request).await,
            Err(error) => Err(error),
        };
        let (result, revision) = match made {
            Ok(told) => (Outcome::Snapshot(wire::snapshot(&told.value)), told.revision),
            Err(error) => (Outcome::Failure(failure::failure(&error)), 0),
        };
        Ok(Response::new(pb::CreateSnapshotResponse { result: Some(result), revision }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::DoneResponse>, Status> {
        Ok(done(match handle(&request.into_inner().handle) {
            Ok(handle) => self.agent.delete_snapshot(handle).await,
            Err(error) => Err(error),
        }))
    }
}
