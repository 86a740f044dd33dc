//! The other side of a connection, played by a test: a node that says what it is told to say, and the
//! greeting as it goes over the wire.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use cinderblock::tls::{client_config, server_config};
use cinderblock_proto::agent::v1 as pb;
use hyper_util::rt::TokioIo;
use pb::node_agent_client::NodeAgentClient;
use pb::node_agent_server::{NodeAgent, NodeAgentServer};
use prost::Message;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};

use crate::door::{Door, trust};

type Events = Pin<Box<dyn Stream<Item = Result<pb::InventoryEvent, Status>> + Send>>;

/// A node that says what it is told to say.
#[derive(Clone)]
pub(crate) struct FakeNode {
    pub(crate) events: watch::Sender<Vec<pb::InventoryEvent>>,
    /// What it answers to whoever asks for a volume or a snapshot.
    pub(crate) volume: Arc<Mutex<pb::Volume>>,
    pub(crate) snapshot: Arc<Mutex<pb::Snapshot>>,
    /// What it was asked to make and to remove.
    pub(crate) created: Arc<Mutex<Vec<pb::CreateVolumeRequest>>>,
    pub(crate) removed: Arc<Mutex<Vec<String>>>,
}

#[tonic::async_trait]
impl NodeAgent for FakeNode {
    type WatchInventoryStream = Events;

    async fn watch_inventory(
        &self,
        _: Request<pb::WatchInventoryRequest>,
    ) -> Result<Response<Events>, Status> {
        let (mut told, (sender, receiver)) = (self.events.subscribe(), mpsc::channel(1));
        tokio::spawn(async move {
            loop {
                let events = told.borrow_and_update().clone();
                for event in events {
                    if sender.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                if told.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn identify(
        &self,
        _: Request<pb::IdentifyRequest>,
    ) -> Result<Response<pb::IdentifyResponse>, Status> {
        Err(Status::unimplemented("an agent of earlier days"))
    }

    async fn update_labels(
        &self,
        _: Request<pb::Labels>,
    ) -> Result<Response<pb::UpdateLabelsResponse>, Status> {
        Ok(Response::new(pb::UpdateLabelsResponse {}))
    }

    async fn create_volume(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeResponse>, Status> {
        self.created.lock().unwrap().push(request.into_inner());
        let volume = self.volume.lock().unwrap().clone();
        let result = Some(pb::create_volume_response::Result::Volume(volume));
        Ok(Response::new(pb::CreateVolumeResponse { result, revision: 1 }))
    }

    async fn delete_volume(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DoneResponse>, Status> {
        self.removed.lock().unwrap().push(request.into_inner().handle);
        Ok(Response::new(pb::DoneResponse { failure: None, revision: 1 }))
    }

    async fn expand_volume(
        &self,
        _: Request<pb::ExpandVolumeRequest>,
    ) -> Result<Response<pb::ExpandVolumeResponse>, Status> {
        Err(Status::internal("x".repeat(8_000)))
    }

    async fn create_snapshot(
        &self,
        _: Request<pb::CreateSnapshotRequest>,
    ) -> Result<Response<pb::CreateSnapshotResponse>, Status> {
        let snapshot = self.snapshot.lock().unwrap().clone();
        let result = Some(pb::create_snapshot_response::Result::Snapshot(snapshot));
        Ok(Response::new(pb::CreateSnapshotResponse { result, revision: 1 }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<pb::DeleteSnapshotRequest>,
    ) -> Result<Response<pb::DoneResponse>, Status> {
        self.removed.lock().unwrap().push(request.into_inner().handle);
        Ok(Response::new(pb::DoneResponse { failure: None, revision: 1 }))
    }
}

impl FakeNode {
    pub(crate) fn telling(event: pb::InventoryEvent) -> Self {
        Self {
            events: watch::Sender::new(vec![event]),
            volume: Arc::default(),
            snapshot: Arc::default(),
            created: Arc::default(),
            removed: Arc::default(),
        }
    }

    pub(crate) fn tell(&self, event: pb::InventoryEvent) {
        self.events.send_replace(vec![event]);
    }

    /// Connects as this node, and serves. Until when the connection lasts.
    pub(crate) async fn connect(&self, door: &Door, node: &str) -> JoinHandle<()> {
        let stream = greet(door, &hello(&format!("node:{node}"))).await;
        self.serve(stream)
    }

    /// Serves whom it has greeted. Until when the connection lasts.
    pub(crate) fn serve(&self, mut stream: TlsStream<TcpStream>) -> JoinHandle<()> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(ours));
        let served = tonic::transport::Server::builder()
            .add_service(NodeAgentServer::new(self.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(served);
        tokio::spawn(async move {
            drop(tokio::io::copy_bidirectional(&mut stream, &mut theirs).await);
        })
    }
}

/// TLS with the door.
pub(crate) async fn dial(door: &Door) -> TlsStream<TcpStream> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.crt");
    trust(&file, &door.authority);
    let stream = TcpStream::connect(door.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(client_config(&file).unwrap()));
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
}

pub(crate) async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl Message) {
    let body = message.encode_to_vec();
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream.flush().await.unwrap();
}

pub(crate) async fn receive<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> M {
    let len = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.unwrap();
    M::decode(body.as_slice()).unwrap()
}

/// A greeting with this token.
pub(crate) fn hello(token: &str) -> pb::Hello {
    pb::Hello {
        protocol: 1,
        token: token.to_owned(),
        driver_name: "lvm.example".to_owned(),
        ..pb::Hello::default()
    }
}

/// TLS with the door, and a greeting that it takes.
pub(crate) async fn greet(door: &Door, hello: &pb::Hello) -> TlsStream<TcpStream> {
    let mut stream = dial(door).await;
    send(&mut stream, hello).await;
    let welcome: pb::Welcome = receive(&mut stream).await;
    assert_eq!((welcome.protocol, welcome.refusal.as_str()), (1, ""));
    stream
}

/// A controller of the test's own, with the door's certificate, that welcomes the node which dials here.
pub(crate) async fn controller_of(listener: &TcpListener, door: &Door) -> NodeAgentClient<Channel> {
    let (stream, _) = listener.accept().await.unwrap();
    let config = server_config(door.identity.clone()).unwrap();
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
    let hello: pb::Hello = receive(&mut stream).await;
    assert_eq!((hello.protocol, hello.token.as_str()), (1, "node:n1"));
    send(&mut stream, &pb::Welcome { protocol: 1, ..pb::Welcome::default() }).await;
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take();
        async move { stream.ok_or_else(|| std::io::Error::other("once")) }
    });
    let channel = Endpoint::from_static("http://node").connect_with_connector(connector).await;
    NodeAgentClient::new(channel.unwrap())
}
