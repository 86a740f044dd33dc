//! The controller's door: takes connections of nodes, asks who they are, and keeps one session for
//! each. Nobody waits for anybody: every connection has a task and deadlines of its own.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cinderblock_proto::agent::v1::{Hello, Labels as WireLabels, Welcome};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::client::RemoteAgent;
use super::features::Features;
use super::{GREETING_TIMEOUT, PROTOCOL, hello};
use crate::agent::Labels;
use crate::controller::Registry;
use crate::error::{Error, ErrorKind, Result};
use crate::names::NodeName;
use crate::net::{self, Guests};

/// Connections whose peer is not known yet. Thousands of nodes dial at once when a controller
/// starts; what is over this is closed and dials again.
const STRANGERS_MAX: usize = 512;
/// Of these from one address: nobody takes all places alone. Nodes behind one address dial again.
const STRANGERS_OF_ONE_MAX: usize = 64;
/// How often a connected node has to show a token that is good: so long at most does a connection
/// outlive what it was made with. Tokens last an hour, and the kubelet renews them.
pub const IDENTIFY_EVERY: Duration = Duration::from_mins(10);
/// As much as is repeated of the name and the version that a peer gives itself.
const REPEATED_MAX: usize = 63;

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
    /// The labels of a node, and every change of them. `None` while they are not known.
    fn labels(&self, node: &NodeName) -> watch::Receiver<Option<Labels>>;
}

/// A node that has proved who it is.
#[derive(Debug)]
struct Greeted {
    peer: Peer,
    agent: RemoteAgent,
    labels: watch::Receiver<Option<Labels>>,
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
    /// Who tells labels.
    pub labels: Arc<dyn NodeLabels>,
    /// How often a node that is connected has to prove who it is.
    pub identify_every: Duration,
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
        let listener = net::tcp(address)
            .await
            .map_err(|e| Error::host(format!("cannot listen for nodes on {address}")).because(e))?;
        tracing::info!(%address, "waiting for nodes");
        self.run_on(listener, stop).await;
        Ok(())
    }

    /// Takes connections of a listener until `stop`.
    pub async fn run_on(self, listener: TcpListener, stop: CancellationToken) {
        let strangers = Guests::new(STRANGERS_MAX, STRANGERS_OF_ONE_MAX);
        while let Some((stream, from, place)) = strangers.next(&listener, &stop).await {
            let (door, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                let greeting = tokio::time::timeout(GREETING_TIMEOUT, door.greet(stream)).await;
                drop(place);
                match greeting {
                    Ok(Ok(greeted)) => {
                        stop.run_until_cancelled(door.keep(greeted)).await;
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

    async fn greet(&self, stream: TcpStream) -> Result<Greeted> {
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
                let refusal = error.chain();
                let refusal = Welcome { protocol: PROTOCOL, refusal, labels: None };
                hello::send(&mut stream, &refusal).await?;
                return Err(error);
            }
        };
        let now = labels.borrow().clone();
        let welcome = Welcome {
            protocol: PROTOCOL,
            refusal: String::new(),
            labels: now.map(|labels| WireLabels { labels }),
        };
        hello::send(&mut stream, &welcome).await?;
        let version = hello.version.chars().take(REPEATED_MAX).collect();
        let features = Features::new(hello.features, version);
        let agent = RemoteAgent::new(peer.node.clone(), stream, features).await?;
        Ok(Greeted { peer, agent, labels })
    }

    async fn judge(&self, hello: &Hello) -> Result<(Peer, watch::Receiver<Option<Labels>>)> {
        if hello.protocol != PROTOCOL {
            return Err(Error::invalid(format!(
                "the agent speaks version {} of the protocol, this controller version {PROTOCOL}: update one of them",
                hello.protocol
            )));
        }
        if hello.driver_name != self.driver_name {
            let theirs: String = hello.driver_name.chars().take(REPEATED_MAX).collect();
            return Err(Error::invalid(format!(
                "the agent is of driver {theirs:?}, this controller of {:?}: check --controller",
                self.driver_name
            )));
        }
        let peer = self.authenticator.authenticate(&hello.token).await?;
        tracing::debug!(node = %peer.node, version = hello.version, "greeted");
        let labels = self.labels.labels(&peer.node);
        Ok((peer, labels))
    }

    async fn keep(&self, greeted: Greeted) {
        let Greeted { peer, agent, labels } = greeted;
        let session = self.registry.connect(peer.node.clone(), Arc::new(agent.clone()));
        tracing::info!(node = %peer.node, pod = peer.pod, "the node is connected");
        let error = tokio::select! {
            error = agent.follow(&session) => error,
            error = tell_labels(&agent, labels) => error,
            error = self.keep_asking(&peer, &agent) => error,
            error = session.replaced() => error,
        };
        tracing::warn!(node = %peer.node, pod = peer.pod, error = error.chain(), "the node is not connected any more");
    }

    /// Asks again and again who the node is. Ends when it is not who it was any more: its pod was
    /// deleted, or it has no token but an old one.
    async fn keep_asking(&self, peer: &Peer, agent: &RemoteAgent) -> Error {
        loop {
            tokio::time::sleep(self.identify_every).await;
            let token = match agent.identify().await {
                Ok(token) => token,
                Err(error) => return error,
            };
            match self.authenticator.authenticate(&token).await {
                Ok(now) if now.node == peer.node => {}
                Ok(now) => {
                    return Error::invalid(format!("its token is now of node {}", now.node));
                }
                // Who cannot be asked refuses nobody.
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(node = %peer.node, error = error.chain(), "cannot ask whether the node's token is still good; asking later");
                }
                Err(error) => return error,
            }
        }
    }
}

async fn tell_labels(agent: &RemoteAgent, mut labels: watch::Receiver<Option<Labels>>) -> Error {
    while labels.changed().await.is_ok() {
        let now = labels.borrow_and_update().clone();
        let Some(now) = now else { continue };
        if let Err(error) = agent.update_labels(now).await {
            return error;
        }
    }
    std::future::pending().await
}
