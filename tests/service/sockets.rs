//! The sockets that somebody may reach who should not, or who is broken: what bounds them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cinderblock::admin;
use cinderblock::config::Config;
use cinderblock::controller::{Controller, Orphans, Registry};
use cinderblock::csi;
use cinderblock::kube::Objects;
use cinderblock::kubelet::Registrar;
use cinderblock::metrics::Metrics;
use cinderblock::names::{LvmUuid, NodeName};
use cinderblock::net;
use cinderblock::operator::{serve, serve_repair};
use cinderblock::run::standalone::services;
use cinderblock_proto::agent::v1 as agent;
use cinderblock_proto::csi::v1 as pb;
use cinderblock_proto::operator::v1 as operator;
use cinderblock_proto::pluginregistration as registration;
use hyper_util::rt::TokioIo;
use operator::node_operator_client::NodeOperatorClient;
use operator::operator_client::OperatorClient;
use pb::identity_client::IdentityClient;
use pb::node_client::NodeClient;
use registration::registration_client::RegistrationClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::door::{Dialling, Door};
use crate::fake_api::{api, not_found};
use crate::hostile::from;
use crate::peers::controller_of;
use crate::support::{CONFIG, Node, is_quick};

/// The port for metrics and probes.
async fn port() -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let metrics = Metrics::new("lvm.example");
    tokio::spawn(admin::serve_on(listener, metrics, Arc::new(|| true), stop.clone()));
    (address, stop.drop_guard())
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What comes back until the other side has had enough.
async fn end(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer));
    drop(ended.await.expect("the connection ends"));
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_for_probes_answers_and_bounds_who_asks() {
    let (address, _end) = port().await;
    assert!(get(address, "/healthz").await.ends_with("ok\n"));
    assert!(get(address, "/readyz").await.contains("200 OK"));
    assert!(get(address, "/metrics").await.contains("# EOF"));
    assert!(get(address, "/nothing").await.contains("404"));

    let send = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        drop(stream.write_all(bytes).await);
        stream
    };
    // No HTTP, a head without an end, too many headers: refused at once.
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1_000));
    for bad in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let refused = async |_| {
            let answer = end(send(bad).await).await;
            assert!(!answer.windows(6).any(|w| w == b"200 OK"));
        };
        assert!(is_quick(Duration::from_secs(4), refused).await);
    }
    // Nothing at all, a byte now and then, a body that does not come: each has its end.
    let silent = end(send(b"").await);
    let promised = end(send(b"GET /healthz HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n").await);
    let slow = async {
        let mut stream = send(b"GET /healthz HTTP/1.1\r\n").await;
        for n in 0.. {
            let written = stream.write_all(b"X").await;
            let mut byte = [0];
            let pause = Duration::from_millis(500);
            let read = tokio::time::timeout(pause, stream.read(&mut byte)).await;
            if written.is_err() || matches!(read, Ok(Ok(0) | Err(_))) {
                return;
            }
            assert!(n < 60, "a slow request goes on");
        }
    };
    tokio::join!(silent, promised, slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_the_port_leaves_the_probes_their_places() {
    let (address, _end) = port().await;
    let mut peers = Vec::new();
    for _ in 0..1_000 {
        peers.extend(from(Ipv4Addr::new(127, 0, 0, 2), address).await);
    }
    assert!(peers.len() > 900);
    let probe = async |_| assert!(get(address, "/healthz").await.ends_with("ok\n"));
    assert!(is_quick(Duration::from_secs(2), probe).await);
    drop(peers);
}

/// The sockets in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Csi,
    Registration,
    Operator,
    Repair,
}

impl Socket {
    const ALL: [Self; 4] = [Self::Csi, Self::Registration, Self::Operator, Self::Repair];

    /// More connections than there is use for.
    const fn many(self) -> usize {
        match self {
            Self::Csi => 1_100,
            Self::Registration | Self::Operator | Self::Repair => 40,
        }
    }

    /// What is asked of it at any time.
    async fn probe(self, channel: &Channel) -> Result<(), Status> {
        let channel = channel.clone();
        match self {
            Self::Csi => IdentityClient::new(channel).probe(pb::ProbeRequest {}).await.map(drop),
            Self::Registration => {
                let info = registration::InfoRequest {};
                RegistrationClient::new(channel).get_info(info).await.map(drop)
            }
            Self::Operator => {
                let list = operator::ListOrphansRequest {};
                OperatorClient::new(channel).list_orphans(list).await.map(drop)
            }
            Self::Repair => {
                let repair = operator::RepairRequest::default();
                NodeOperatorClient::new(channel).repair(repair).await.map(drop)
            }
        }
    }

    /// A message with so large a text in it.
    async fn tell(self, channel: &Channel, bytes: usize) -> Result<(), Status> {
        let (channel, text) = (channel.clone(), "x".repeat(bytes));
        match self {
            Self::Csi => {
                let large = pb::NodePublishVolumeRequest {
                    volume_context: [("x".to_owned(), text)].into(),
                    ..pb::NodePublishVolumeRequest::default()
                };
                NodeClient::new(channel).node_publish_volume(large).await.map(drop)
            }
            Self::Registration => {
                let large =
                    registration::RegistrationStatus { plugin_registered: true, error: text };
                RegistrationClient::new(channel).notify_registration_status(large).await.map(drop)
            }
            Self::Operator => {
                let large = operator::RemoveOrphansRequest { handles: vec![text] };
                OperatorClient::new(channel).remove_orphans(large).await.map(drop)
            }
            Self::Repair => {
                let large = operator::RepairRequest { backend: text };
                NodeOperatorClient::new(channel).repair(large).await.map(drop)
            }
        }
    }
}

/// A driver with all its sockets.
struct Driver {
    dir: tempfile::TempDir,
    _node: Node,
    _end: DropGuard,
}

impl Driver {
    async fn start() -> Self {
        let node = Node::ready().await;
        let dir = tempfile::tempdir().unwrap();
        let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap()));
        let name = NodeName::parse("n1").unwrap();
        let metrics = Metrics::new("lvm.example");
        let services = services("lvm.example", &node.agent, &name, config.subscribe(), &metrics);
        let registrar = Registrar {
            directory: dir.path().to_owned(),
            driver_name: "lvm.example".to_owned(),
            endpoint: dir.path().join("csi.sock"),
        };
        let registry = Arc::new(Registry::default());
        let controller = Controller::new(Arc::clone(&registry), config.subscribe(), None, false);
        let objects = Box::new(Objects::new(api(&metrics, |_| not_found()).0));
        let orphans = Orphans::new(registry, Arc::new(controller), objects, Duration::ZERO);
        let stop = CancellationToken::new();
        let agent = node.agent.clone();
        let driver = Self { dir, _node: node, _end: stop.clone().drop_guard() };
        let listen = |socket| net::unix(&driver.path(socket)).unwrap();
        tokio::spawn(csi::serve(listen(Socket::Csi), services, stop.clone()));
        tokio::spawn(registrar.run(stop.clone()));
        tokio::spawn(serve(listen(Socket::Operator), Arc::new(orphans), stop.clone()));
        tokio::spawn(serve_repair(listen(Socket::Repair), agent, stop));
        while !driver.path(Socket::Registration).exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        driver
    }

    fn path(&self, socket: Socket) -> PathBuf {
        self.dir.path().join(match socket {
            Socket::Csi => "csi.sock",
            Socket::Registration => "lvm.example@reg.sock",
            Socket::Operator => "operator.sock",
            Socket::Repair => "repair.sock",
        })
    }

    async fn connect(&self, socket: Socket) -> UnixStream {
        // The system's queue of those who wait is short.
        loop {
            match UnixStream::connect(self.path(socket)).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    async fn channel(&self, socket: Socket) -> Result<Channel, tonic::transport::Error> {
        let path = self.path(socket);
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://csi").connect_with_connector(connector).await
    }
}

async fn bounds_who_calls(driver: &Driver, socket: Socket) {
    let good = driver.channel(socket).await.unwrap();
    socket.probe(&good).await.unwrap();

    // A message that is too large. One that is not goes on to whoever says what is wrong with it.
    let refused = socket.tell(&good, 5 << 20).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{socket:?}: {refused}");
    if let Err(other) = socket.tell(&good, 3 << 20).await {
        assert_eq!(other.code(), Code::InvalidArgument, "{socket:?}: {other}");
        assert!(other.message().len() < 5_000, "{socket:?}: {}", other.message().len());
    }
    socket.probe(&good).await.unwrap();

    // Rubbish is refused at once, silence and what never begins after a while.
    let rubbish = async |_| {
        let mut rubbish = driver.connect(socket).await;
        rubbish.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        drop(rubbish.read_to_end(&mut Vec::new()).await);
    };
    assert!(is_quick(Duration::from_secs(5), rubbish).await, "{socket:?}");
    let ended = async |bytes: &[u8]| {
        let mut stream = driver.connect(socket).await;
        stream.write_all(bytes).await.unwrap();
        drop(stream.read_to_end(&mut Vec::new()).await);
    };
    let ended = async { tokio::join!(ended(b""), ended(b"PRI * HTTP/2.0\r\n")) };
    assert!(tokio::time::timeout(Duration::from_secs(60), ended).await.is_ok(), "{socket:?}");

    // More connections than there is use for: the last are closed, and who is there is served.
    let mut crowd = Vec::new();
    for _ in 0..socket.many() {
        crowd.push(driver.connect(socket).await);
    }
    let mut last = crowd.pop().unwrap();
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), last.read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{socket:?}: {closed:?}");
    socket.probe(&good).await.unwrap();
    drop(crowd);
    // The driver sees their ends when it comes to them.
    let again = async {
        while driver.channel(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_socket_bounds_who_calls() {
    let driver = Driver::start().await;
    let [csi, registration, operator, repair] =
        Socket::ALL.map(|socket| bounds_who_calls(&driver, socket));
    tokio::join!(csi, registration, operator, repair);
}

/// Who speaks HTTP/2 and then says nothing any more, not even that he is there.
#[tokio::test(start_paused = true)]
async fn no_socket_keeps_who_has_fallen_silent() {
    let driver = Driver::start().await;
    for socket in Socket::ALL {
        let mut stream = driver.connect(socket).await;
        // The preface, and settings that say nothing.
        let begun = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        stream.write_all(&begun).await.unwrap();
        let start = tokio::time::Instant::now();
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        let ended = tokio::time::timeout(Duration::from_mins(10), ended).await;
        assert!(ended.is_ok(), "{socket:?} keeps it");
        assert!(said.len() > 9, "{socket:?} has begun: {said:?}");
        assert!(start.elapsed() > Duration::from_secs(30), "{socket:?} waits a while");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_calls_say_is_bounded() {
    let driver = Driver::start().await;
    let mut node = NodeClient::new(driver.channel(Socket::Csi).await.unwrap());
    let many = pb::NodePublishVolumeRequest {
        volume_id: "x".repeat(3 << 20),
        ..pb::NodePublishVolumeRequest::default()
    };
    let refused = node.node_publish_volume(many).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let health = pb::NodeGetVolumeHealthRequest {
        volume_id: "ü".repeat(1 << 20),
        ..pb::NodeGetVolumeHealthRequest::default()
    };
    let refused = node.node_get_volume_health(health).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().len() < 5_000, "{}", refused.message().len());

    // As many orphans as may be removed at once, and one more: none is looked at.
    let mut client = OperatorClient::new(driver.channel(Socket::Operator).await.unwrap());
    let mut remove = async |count: usize| {
        let handle = format!("{}/pvc-1", LvmUuid::derived("vg"));
        let request = operator::RemoveOrphansRequest { handles: vec![handle; count] };
        client.remove_orphans(request).await
    };
    let refused = remove(101).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("no more than 100"), "{refused}");
    assert_eq!(remove(100).await.unwrap().into_inner().outcomes.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_sends_too_much_is_refused_and_the_agent_goes_on() {
    let door = Door::open().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dialling = Dialling::start(port, "node:n1", &door.authority).await;
    let mut agent = controller_of(&listener, &door).await;
    let request = |name: String| agent::CreateVolumeRequest {
        name,
        range: Some(agent::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        backend: "fast".to_owned(),
        provisioning: agent::Provisioning::Thin.into(),
        usage: "ext4".to_owned(),
        ..agent::CreateVolumeRequest::default()
    };
    let refused = agent.create_volume(request("x".repeat(5 << 20))).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    let labels = agent::Labels { labels: [("x".to_owned(), "y".repeat(5 << 20))].into() };
    let refused = agent.update_labels(labels).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    // On the same connection.
    let made = agent.create_volume(request("pvc-1".to_owned())).await.unwrap().into_inner();
    let made = made.result.unwrap();
    assert!(matches!(made, agent::create_volume_response::Result::Volume(_)), "{made:?}");
    assert_eq!(dialling.node.agent.inventory().borrow().volumes.len(), 1);
}
