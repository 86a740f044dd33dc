//! A controller's door and nodes that dial it, over a real connection on this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cinderblock::agent::Labels;
use cinderblock::config::Config;
use cinderblock::controller::{Controller, Registry};
use cinderblock::error::{Error, Result};
use cinderblock::link::{self, Accept, Authenticator, Dial, NodeLabels, Peer};
use cinderblock::names::{CsiName, NodeName};
use cinderblock::tls::{Authority, Identity, server_config};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{CONFIG, Node};

/// Takes tokens of the form `node:NAME`, and cannot tell of one.
#[derive(Debug, Default)]
pub(crate) struct Tokens(pub(crate) Mutex<Vec<String>>);

impl Authenticator for Tokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Peer>> + Send + 'a>> {
        self.0.lock().unwrap().push(token.to_owned());
        let peer = token.strip_prefix("node:").and_then(|name| NodeName::parse(name).ok());
        let peer = peer.map(|node| Peer { node, pod: "pod".to_owned() });
        let none = match token {
            "nobody answers" => Error::unavailable("the API server is away"),
            _ => Error::invalid("not a token"),
        };
        Box::pin(async move { peer.ok_or(none) })
    }
}

#[derive(Debug)]
pub(crate) struct SameLabels(pub(crate) watch::Sender<Option<Labels>>);

impl NodeLabels for SameLabels {
    fn labels(&self, _: &NodeName) -> watch::Receiver<Option<Labels>> {
        self.0.subscribe()
    }
}

/// A controller's door.
pub(crate) struct Door {
    pub(crate) registry: Arc<Registry>,
    pub(crate) controller: Controller,
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    pub(crate) identity: Identity,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) labels: Arc<SameLabels>,
    _end: DropGuard,
}

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

impl Door {
    pub(crate) async fn open() -> Self {
        Self::open_asking(link::IDENTIFY_EVERY).await
    }

    /// One that asks its nodes so often who they are.
    pub(crate) async fn open_asking(identify_every: Duration) -> Self {
        Self::open_as(identify_every, None).await
    }

    /// One that asks somebody else whose a token is.
    pub(crate) async fn open_knowing(authenticator: Arc<dyn Authenticator>) -> Self {
        Self::open_as(link::IDENTIFY_EVERY, Some(authenticator)).await
    }

    async fn open_as(identify_every: Duration, knows: Option<Arc<dyn Authenticator>>) -> Self {
        let authority = Authority::new(now()).unwrap();
        let identity = Identity::default();
        let (chain, key) = authority.sign("localhost", now()).unwrap();
        identity.set(&chain, &key).unwrap();
        let (registry, tokens) = (Arc::new(Registry::default()), Arc::new(Tokens::default()));
        let labels = Arc::new(SameLabels(watch::Sender::new(None)));
        let authenticator = knows.unwrap_or_else(|| Arc::clone(&tokens) as Arc<dyn Authenticator>);
        let accept = Accept {
            registry: Arc::clone(&registry),
            driver_name: "lvm.example".to_owned(),
            tls: TlsAcceptor::from(Arc::new(server_config(identity.clone()).unwrap())),
            authenticator,
            labels: Arc::clone(&labels) as Arc<dyn NodeLabels>,
            identify_every,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(accept.run_on(listener, stop.clone()));
        let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap()));
        let controller = Controller::new(Arc::clone(&registry), config.subscribe(), None, false);
        let end = stop.drop_guard();
        Self { registry, controller, address, authority, identity, tokens, labels, _end: end }
    }

    /// Waits until it knows a volume of that name.
    pub(crate) async fn wait_for(&self, name: &str) {
        let name = CsiName::parse(name).unwrap();
        let wait = async {
            while self.registry.node_with_volume(&name).unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "{name} is not known");
    }

    pub(crate) async fn wait(&self, connected: usize) {
        let wait = async {
            while self.registry.connected() != connected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "{} nodes are connected", self.registry.connected());
    }
}

/// A node that dials.
pub(crate) struct Dialling {
    pub(crate) node: Node,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) stop: CancellationToken,
    /// Ends when the node has hung up.
    pub(crate) task: tokio::task::JoinHandle<()>,
}

impl Dialling {
    pub(crate) async fn start(port: u16, token: &str, trusts: &Authority) -> Self {
        Self::of(Node::ready_as(token).await, port, token, trusts)
    }

    /// The same of a node that is there.
    pub(crate) fn of(node: Node, port: u16, token: &str, trusts: &Authority) -> Self {
        Self::with(node, port, token, trusts, watch::Sender::new(None))
    }

    /// Hangs up: the node.
    pub(crate) async fn end(self) -> Node {
        self.stop.cancel();
        self.task.await.unwrap();
        self.node
    }

    /// Dials another controller as well, for as long as what is returned lives.
    pub(crate) fn dial_too(&self, door: &Door, token: &str) -> (tempfile::TempDir, DropGuard) {
        let dir = tempfile::tempdir().unwrap();
        let dial = dial(&dir, door.address.port(), token, &door.authority);
        let stop = CancellationToken::new();
        let labels = Arc::new(watch::Sender::new(None));
        tokio::spawn(link::dial(dial, self.node.agent.clone(), labels, stop.clone()));
        (dir, stop.drop_guard())
    }

    /// The same of a node that knows these labels.
    pub(crate) fn with(
        node: Node,
        port: u16,
        token: &str,
        trusts: &Authority,
        labels: watch::Sender<Option<Labels>>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dial = dial(&dir, port, token, trusts);
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(link::dial(dial, node.agent.clone(), Arc::new(labels), stop.clone()));
        Self { node, dir, stop, task }
    }
}

/// What a node needs for a controller, with files in this folder.
fn dial(dir: &tempfile::TempDir, port: u16, token: &str, trusts: &Authority) -> Dial {
    let (token_file, ca_file) = (dir.path().join("token"), dir.path().join("ca.crt"));
    std::fs::write(&token_file, token).unwrap();
    trust(&ca_file, trusts);
    Dial {
        controller: format!("localhost:{port}"),
        token_file,
        ca_file,
        driver_name: "lvm.example".to_owned(),
    }
}

/// Writes what the kubelet would write of the `ConfigMap`.
pub(crate) fn trust(file: &Path, authority: &Authority) {
    std::fs::write(file, authority.certificate()).unwrap();
}
