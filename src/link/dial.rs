//! The node's side of the connection: finds all controllers, dials each, proves who it is, serves,
//! and dials again when a connection ends.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cinderblock_proto::agent::v1::{Hello, Welcome};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{GREETING_TIMEOUT, PROTOCOL, features, hello, serve};
use crate::agent::{Agent, Labels};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::tls;

/// How often it is looked up which controllers there are.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// A node that lost its connection dials again after this, and after twice as long each time, up
/// to the most. A controller that starts relies on the most (`controller::service`).
const AGAIN_MIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What dialling needs.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Host and port of the controllers: a name with an address for each.
    pub controller: String,
    /// File with the node's token, which the kubelet renews.
    pub token_file: PathBuf,
    /// File with the certificates of those who may sign the controllers', renewed in place.
    pub ca_file: PathBuf,
    /// Name of the driver.
    pub driver_name: String,
}

/// The node's end of all connections.
#[derive(Debug)]
struct Dialler<H> {
    dial: Dial,
    agent: Agent<H>,
    labels: Arc<watch::Sender<Option<Labels>>>,
    stop: CancellationToken,
}

/// Keeps a connection to every controller until `stop`; then the calls that came over them are
/// answered first.
pub async fn run<H: Host>(
    dial: Dial,
    agent: Agent<H>,
    labels: Arc<watch::Sender<Option<Labels>>>,
    stop: CancellationToken,
) {
    let dialler = Arc::new(Dialler { dial, agent, labels, stop: stop.clone() });
    let mut connections = BTreeMap::<SocketAddr, JoinHandle<()>>::new();
    let mut said = String::new();
    loop {
        match dialler.look_up().await {
            Ok(found) => {
                said.clear();
                connections.retain(|_, task| !task.is_finished());
                for address in found {
                    connections.entry(address).or_insert_with(|| {
                        let dialler = Arc::clone(&dialler);
                        tokio::spawn(async move { dialler.keep(address).await })
                    });
                }
            }
            Err(error) => {
                let why = error.to_string();
                if why != said {
                    tracing::warn!(controller = dialler.dial.controller, %error, "cannot find the controllers; trying again");
                    said = why;
                }
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOOK_UP_EVERY)).await.is_none() {
            break;
        }
    }
    for (_, task) in connections {
        drop(task.await);
    }
}

impl<H: Host> Dialler<H> {
    async fn look_up(&self) -> std::io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host(&self.dial.controller).await?.collect())
    }

    /// Keeps a connection to one controller for as long as its address is listed.
    async fn keep(&self, address: SocketAddr) {
        let mut wait = AGAIN_MIN;
        let mut said = String::new();
        loop {
            let started = tokio::time::Instant::now();
            let ended = Box::pin(self.connect(address)).await;
            if self.stop.is_cancelled() {
                return;
            }
            if started.elapsed() > AGAIN_MAX {
                (wait, said) = (AGAIN_MIN, String::new());
            }
            let why = ended.err().map_or_else(|| "the connection ended".to_owned(), |e| e.chain());
            if why != said {
                tracing::warn!(controller = %address, why, "not connected to the controller; dialling again");
                said = why;
            }
            let pause = tokio::time::sleep(jittered(wait));
            if self.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
            wait = wait.saturating_mul(2).min(AGAIN_MAX);
            if self.look_up().await.is_ok_and(|all| !all.contains(&address)) {
                tracing::info!(controller = %address, "the controller is not listed any more");
                return;
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<()> {
        let connected = self.stop.run_until_cancelled(self.open(address)).await;
        let Some(connected) = connected else { return Ok(()) };
        let (stream, welcome) = connected?;
        if let Some(told) = welcome.labels {
            self.labels.send_replace(Some(told.labels));
        }
        tracing::info!(controller = %address, "connected to the controller");
        let (labels, stop) = (Arc::clone(&self.labels), self.stop.clone());
        let token_file = self.dial.token_file.clone();
        serve::serve(stream, self.agent.clone(), labels, token_file, stop).await
    }

    async fn open(&self, address: SocketAddr) -> Result<(TlsStream<TcpStream>, Welcome)> {
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|_| Error::unavailable("no connection within 5 seconds"))?
            .map_err(|e| Error::unavailable("no connection").because(e))?;
        stream
            .set_nodelay(true)
            .map_err(|e| Error::host("cannot set up the connection").because(e))?;
        tokio::time::timeout(GREETING_TIMEOUT, greet(&self.dial, stream))
            .await
            .map_err(|_| Error::unavailable("the controller does not answer the greeting"))?
    }
}

/// Between half and all of it: nodes that lost one controller together do not come back together.
fn jittered(wait: Duration) -> Duration {
    let (random, _) = Uuid::new_v4().as_u64_pair();
    let part = u32::try_from(random & 0xff).unwrap_or_default();
    let half = wait.checked_div(2).unwrap_or(wait);
    half.saturating_add(half.saturating_mul(part).checked_div(0xff).unwrap_or_default())
}

async fn greet(dial: &Dial, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Welcome)> {
    let host = dial.controller.rsplit_once(':').map_or(dial.controller.as_str(), |(host, _)| host);
    let name = ServerName::try_from(host.to_owned()).map_err(|e| {
        Error::invalid(format!("--controller: {host:?} is not a host name")).because(e)
    })?;
    let config = tls::client_config(&dial.ca_file)?;
    let mut stream =
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| {
            Error::unavailable("the controller's certificate or TLS is refused").because(e)
        })?;
    // Only now: who has no certificate that we trust never sees the token.
    let greeting = Hello {
        protocol: PROTOCOL,
        token: serve::token(&dial.token_file).await?,
        driver_name: dial.driver_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features: features::OURS.map(str::to_owned).to_vec(),
    };
    hello::send(&mut stream, &greeting).await?;
    let welcome: Welcome = hello::receive(&mut stream).await?;
    if !welcome.refusal.is_empty() {
        return Err(Error::invalid(format!(
            "the controller refuses this node: {}",
            welcome.refusal
        )));
    }
    Ok((stream, welcome))
}
