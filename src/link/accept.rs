//! The controller's door: takes connections of nodes, asks who they are, and keeps one session for
//! each. Nobody waits for anybody: every connection has a task and deadlines of its own.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cinderblock_proto::agent::v1::{Hello, Labels as WireLabels, Welcome};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::client::RemoteAgent;
use super::{GREETING_TIMEOUT, PROTOCOL, hello};
use crate::agent::Labels;
use crate::controller::Registry;
use crate::error::{Error, Result};
use crate::names::NodeName;

/// Connections whose peer is not known yet. Thousands of nodes dial at once when a controller
/// starts; what is over this is closed and dials again.
const STRANGERS_MAX: usize = 512;
/// A pause when the system gives no connection (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// A node, as its token proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The node that the token's pod runs on.
    pub node: NodeName,
    /// The pod, for the log.
    pub pod: String,
}

/// Tells whose a token is.
pub trait Authenticator: Debug + Send + Sync {
    /// The node of a token.
    fn authenticate<'a>(&'a self, token: &'a str) -> Later<'a, Peer>;
}

/// Tells the labels of nodes, where backends select by them.
pub trait NodeLabels: Debug + Send + Sync {
    /// The labels of a node now, and every change of them.
    fn labels<'a>(&'a self, node: &'a NodeName) -> Later<'a, watch::Receiver<Option<Labels>>>;
}

/// What the door needs.
#[derive(Clone)]
pub struct Accept {
    /// Where nodes are kept.
    pub registry: Arc<Registry>,
    /// Name of the driver: nodes of another are refused.
    pub driver_name: String,
    /// TLS with our certificate.
    pub tls: TlsAcceptor,
    /// Who tells whose a token is.
    pub authenticator: Arc<dyn Authenticator>,
    /// Who tells labels. `None` where no backend selects by them.
    pub labels: Option<Arc<dyn NodeLabels>>,
}

impl Debug for Accept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accept").field("driver_name", &self.driver_name).finish_non_exhaustive()
    }
}

impl Accept {
    /// Takes connections until `stop`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn run(self, address: SocketAddr, stop: CancellationToken) -> Result<()> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| Error::host(format!("cannot listen for nodes on {address}")).because(e))?;
        tracing::info!(%address, "waiting for nodes");
        self.run_on(listener, stop).await;
        Ok(())
    }

    /// Takes connections of a listener until `stop`.
    pub async fn run_on(self, listener: TcpListener, stop: CancellationToken) {
        let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
                tracing::debug!(%from, "closed: {STRANGERS_MAX} peers are being greeted");
                continue;
            };
            let (door, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                let greeting = tokio::time::timeout(GREETING_TIMEOUT, door.greet(stream)).await;
                drop(permit);
                match greeting {
                    Ok(Ok((peer, agent, labels))) => {
                        stop.run_until_cancelled(door.keep(peer, agent, labels)).await;
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(%from, error = error.chain(), "refused a peer");
                    }
                    Err(_) => {
                        tracing::warn!(%from, "gave up a peer that did not finish its greeting");
                    }
                }
            });
        }
    }

    async fn greet(
        &self,
        stream: TcpStream,
    ) -> Result<(Peer, RemoteAgent, Option<watch::Receiver<Option<Labels>>>)> {
        stream
            .set_nodelay(true)
            .map_err(|e| Error::host("cannot set up a connection").because(e))?;
        let mut stream = self
            .tls
            .accept(stream)
            .await
            .map_err(|e| Error::unavailable("no TLS with the peer").because(e))?;
        let hello: Hello = hello::receive(&mut stream).await?;
        let welcomed = self.judge(&hello).await;
        let (peer, labels) = match welcomed {
            Ok(welcomed) => welcomed,
            Err(error) => {
                let refusal = error.to_string();
                let refusal = Welcome { protocol: PROTOCOL, refusal, labels: None };
                hello::send(&mut stream, &refusal).await?;
                return Err(error);
            }
        };
        let now = labels.as_ref().and_then(|l| l.borrow().clone());
        let welcome = Welcome {
            protocol: PROTOCOL,
            refusal: String::new(),
            labels: now.map(|labels| WireLabels { labels }),
        };
        hello::send(&mut stream, &welcome).await?;
        let agent = RemoteAgent::new(peer.node.clone(), stream).await?;
        Ok((peer, agent, labels))
    }

    async fn judge(
        &self,
        hello: &Hello,
    ) -> Result<(Peer, Option<watch::Receiver<Option<Labels>>>)> {
        if hello.protocol != PROTOCOL {
            return Err(Error::invalid(format!(
                "the agent speaks version {} of the protocol, this controller version {PROTOCOL}: update one of them",
                hello.protocol
            )));
        }
        if hello.driver_name != self.driver_name {
            return Err(Error::invalid(format!(
                "the agent is of driver {:?}, this controller of {:?}: check --controller",
                hello.driver_name, self.driver_name
            )));
        }
        let peer = self.authenticator.authenticate(&hello.token).await?;
        tracing::debug!(node = %peer.node, version = hello.version, "greeted");
        let labels = match &self.labels {
            Some(labels) => Some(labels.labels(&peer.node).await?),
            None => None,
        };
        Ok((peer, labels))
    }

    async fn keep(
        &self,
        peer: Peer,
        agent: RemoteAgent,
        labels: Option<watch::Receiver<Option<Labels>>>,
    ) {
        let session = self.registry.connect(peer.node.clone(), Arc::new(agent.clone()));
        tracing::info!(node = %peer.node, pod = peer.pod, "the node is connected");
        let error = tokio::select! {
            error = agent.follow(&session) => error,
            error = tell_labels(&agent, labels) => error,
        };
        tracing::warn!(node = %peer.node, pod = peer.pod, error = error.chain(), "the node is not connected any more");
    }
}

async fn tell_labels(
    agent: &RemoteAgent,
    labels: Option<watch::Receiver<Option<Labels>>>,
) -> Error {
    let Some(mut labels) = labels else { return std::future::pending().await };
    while labels.changed().await.is_ok() {
        let now = labels.borrow_and_update().clone();
        if let Some(Err(error)) = match now {
            Some(now) => Some(agent.update_labels(now).await),
            None => None,
        } {
            return error;
        }
    }
    std::future::pending().await
}
