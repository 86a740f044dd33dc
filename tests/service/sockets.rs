//! The sockets that somebody may reach who should not, or who is broken: what bounds them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cinderblock::admin;
use cinderblock::config::Config;
use cinderblock::csi;
use cinderblock::metrics::Metrics;
use cinderblock::names::NodeName;
use cinderblock::net;
use cinderblock::run::standalone::services;
use cinderblock_proto::csi::v1 as pb;
use hyper_util::rt::TokioIo;
use pb::identity_client::IdentityClient;
use pb::node_client::NodeClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::hostile::from;
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

/// A driver on a CSI socket.
struct Driver {
    socket: PathBuf,
    _node: Node,
    _dir: tempfile::TempDir,
    _end: DropGuard,
}

async fn driver() -> Driver {
    let node = Node::ready().await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("csi.sock");
    let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap()));
    let name = NodeName::parse("n1").unwrap();
    let metrics = Metrics::new("lvm.example");
    let services = services("lvm.example", &node.agent, &name, config.subscribe(), &metrics);
    let stop = CancellationToken::new();
    tokio::spawn(csi::serve(net::unix(&socket).unwrap(), services, stop.clone()));
    Driver { socket, _node: node, _dir: dir, _end: stop.drop_guard() }
}

async fn channel(socket: &std::path::Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://csi").connect_with_connector(connector).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_csi_socket_bounds_who_calls() {
    let driver = driver().await;
    let good = channel(&driver.socket).await.unwrap();
    let probe = async || {
        let mut client = IdentityClient::new(good.clone());
        client.probe(pb::ProbeRequest {}).await.map(drop)
    };
    probe().await.unwrap();

    // A message that is too large, and one that is none.
    let mut node = NodeClient::new(good.clone());
    let large = pb::NodePublishVolumeRequest {
        volume_context: [("x".to_owned(), "y".repeat(5 << 20))].into(),
        ..pb::NodePublishVolumeRequest::default()
    };
    let refused = node.node_publish_volume(large).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
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

    // Rubbish is refused at once, silence and what never begins after a while.
    let rubbish = async |_| {
        let mut rubbish = UnixStream::connect(&driver.socket).await.unwrap();
        rubbish.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        drop(rubbish.read_to_end(&mut Vec::new()).await);
    };
    assert!(is_quick(Duration::from_secs(5), rubbish).await);
    let ended = async |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&driver.socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        drop(stream.read_to_end(&mut Vec::new()).await);
    };
    let ended = async { tokio::join!(ended(b""), ended(b"PRI * HTTP/2.0\r\n")) };
    assert!(tokio::time::timeout(Duration::from_secs(30), ended).await.is_ok());

    // More connections than there is use for: the last are closed, and who is there is served.
    let mut crowd = Vec::new();
    for _ in 0..1_100 {
        // The system's queue of those who wait is short.
        let mut connected = UnixStream::connect(&driver.socket).await;
        while connected.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            connected = UnixStream::connect(&driver.socket).await;
        }
        crowd.push(connected.unwrap());
    }
    let mut last = crowd.pop().unwrap();
    let mut byte = [0];
    let closed = tokio::time::timeout(Duration::from_secs(5), last.read(&mut byte)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "{closed:?}");
    probe().await.unwrap();
    drop(crowd);
    // The driver sees their ends when it comes to them.
    let again = async {
        while channel(&driver.socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.unwrap();
}
