//! The controller's side of the protocol: an agent behind a connection.

use std::sync::Arc;
use std::time::Duration;

use cinderblock_proto::agent::v1 as pb;
use hyper_util::rt::TokioIo;
use pb::node_agent_client::NodeAgentClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use super::features::Features;
use super::{KEEPALIVE_EVERY, KEEPALIVE_TIMEOUT, failure, inventory, wire};
use crate::agent::Labels;
use crate::controller::Session;
use crate::domain::{
    Answer, CapacityRange, CreateSnapshot, CreateVolume, Inventory, Snapshot, Told, Volume,
    VolumeAgent,
};
use crate::error::{Error, Result};
use crate::names::{Handle, NodeName};
use crate::units::Bytes;

/// The longest that a call to a node may take. Sidecars give up after a minute; LVM on a bad day
/// takes longer, and its answer is still worth having.
const CALL_TIMEOUT: Duration = Duration::from_mins(10);
/// The longest that a node may take to say who it is: it reads a file.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(10);

/// An agent behind a connection.
#[derive(Clone, Debug)]
pub(super) struct RemoteAgent {
    node: NodeName,
    client: NodeAgentClient<Channel>,
    features: Features,
}

impl RemoteAgent {
    /// Speaks over a stream that the node has dialled.
    pub(super) async fn new(
        node: NodeName,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        features: Features,
    ) -> Result<Self> {
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| std::io::Error::other("the node has to dial again")) }
        });
        let channel = Endpoint::from_static("http://node")
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|e| Error::unavailable(format!("node {node} does not serve")).because(e))?;
        Ok(Self { node, client: NodeAgentClient::new(channel), features })
    }

    fn request<T>(message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    /// An answer's headers may come in time and its body never: a call has its end here as well.
    async fn ask<T>(
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the answer does not come to its end")),
        }
    }

    /// The connection broke, or the node did not answer: what it does may still happen.
    fn broken(&self, status: &Status) -> Error {
        Error::unavailable(format!(
            "node {} gave no answer ({}: {}); it may still be working on it",
            self.node,
            status.code(),
            failure::bounded(status.message())
        ))
    }

    fn empty<T>(&self) -> Result<T> {
        Err(Error::unavailable(format!("node {} gave an empty answer", self.node)))
    }

    /// Keeps a session's inventory as the node tells it, until the connection ends.
    pub(super) async fn follow(&self, session: &Session) -> Error {
        let watch = self.client.clone().watch_inventory(pb::WatchInventoryRequest {}).await;
        let mut stream = match watch {
            Ok(stream) => stream.into_inner(),
            Err(status) => return self.broken(&status),
        };
        let mut inventory = Inventory::default();
        loop {
            match stream.message().await {
                Ok(Some(event)) => {
                    let more = event.more;
                    if let Err(error) = inventory::apply(&mut inventory, event) {
                        return error;
                    }
                    if !more {
                        session.update(&Arc::new(inventory.clone()));
                    }
                }
                Ok(None) => return Error::unavailable("the node ended the connection"),
                Err(status) => return self.broken(&status),
            }
        }
    }

    /// The token that the node has now.
    pub(super) async fn identify(&self) -> Result<String> {
        let mut client = self.client.clone();
        let call = client.identify(Request::new(pb::IdentifyRequest {}));
        match tokio::time::timeout(IDENTIFY_TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().token),
            Ok(Err(status)) => Err(self.broken(&status)),
            Err(_) => Err(Error::unavailable(format!("node {} does not say who it is", self.node))),
        }
    }

    /// Tells the node its labels.
    pub(super) async fn update_labels(&self, labels: Labels) -> Result<()> {
        let request = Self::request(pb::Labels { labels });
        let answer = Self::ask(self.client.clone().update_labels(request)).await;
        answer.map(drop).map_err(|s| self.broken(&s))
    }

    fn done(&self, answer: Result<pb::DoneResponse, Status>) -> Result<Told<()>> {
        let answer = answer.map_err(|s| self.broken(&s))?;
        match answer.failure {
            None => Ok(Told { value: (), revision: answer.revision }),
            Some(failure) => Err(failure::error(&failure)),
        }
    }
}

impl VolumeAgent for RemoteAgent {
    fn create_volume(&self, request: CreateVolume) -> Answer<'_, Told<Volume>> {
        use pb::create_volume_response::Result as Outcome;
        Box::pin(async move {
            self.features.volume(&self.node, &request)?;
            let request = Self::request(wire::create_volume(&request));
            let answer = Self::ask(self.client.clone().create_volume(request)).await;
            let answer = answer.map_err(|s| self.broken(&s))?;
            match answer.result {
                Some(Outcome::Volume(volume)) => {
                    Ok(Told { value: wire::parse_volume(volume)?, revision: answer.revision })
                }
                Some(Outcome::Failure(failure)) => Err(failure::error(&failure)),
                None => self.empty(),
            }
        })
    }

    fn delete_volume(&self, volume: Handle) -> Answer<'_, Told<()>> {
        Box::pin(async move {
            let request = Self::request(pb::DeleteVolumeRequest { handle: volume.to_string() });
            self.done(Self::ask(self.client.clone().delete_volume(request)).await)
        })
    }

    fn expand_volume(&self, volume: Handle, range: CapacityRange) -> Answer<'_, Told<Bytes>> {
        use pb::expand_volume_response::Result as Outcome;
        Box::pin(async move {
            let request = Self::request(pb::ExpandVolumeRequest {
                handle: volume.to_string(),
                range: Some(wire::range(range)),
            });
            let answer = Self::ask(self.client.clone().expand_volume(request)).await;
            let answer = answer.map_err(|s| self.broken(&s))?;
            match answer.result {
                Some(Outcome::SizeBytes(n)) => {
                    Ok(Told { value: Bytes::new(n), revision: answer.revision })
                }
                Some(Outcome::Failure(failure)) => Err(failure::error(&failure)),
                None => self.empty(),
            }
        })
    }

    fn create_snapshot(&self, request: CreateSnapshot) -> Answer<'_, Told<Snapshot>> {
        use pb::create_snapshot_response::Result as Outcome;
        Box::pin(async move {
            self.features.snapshot(&self.node, &request)?;
            let request = Self::request(wire::create_snapshot(&request));
            let answer = Self::ask(self.client.clone().create_snapshot(request)).await;
            let answer = answer.map_err(|s| self.broken(&s))?;
            match answer.result {
                Some(Outcome::Snapshot(snapshot)) => {
                    Ok(Told { value: wire::parse_snapshot(&snapshot)?, revision: answer.revision })
                }
                Some(Outcome::Failure(failure)) => Err(failure::error(&failure)),
                None => self.empty(),
            }
        })
    }

    fn delete_snapshot(&self, snapshot: Handle) -> Answer<'_, Told<()>> {
        Box::pin(async move {
            let request = Self::request(pb::DeleteSnapshotRequest { handle: snapshot.to_string() });
            self.done(Self::ask(self.client.clone().delete_snapshot(request)).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_ends_is_given_up() {
        let never = std::future::pending::<Result<tonic::Response<()>, Status>>();
        let given_up = RemoteAgent::ask(never).await.unwrap_err();
        assert_eq!(given_up.code(), tonic::Code::DeadlineExceeded);
    }
}
