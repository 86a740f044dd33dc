//! A driver to talk to, simulated or real, and short words for the calls.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use cinderblock::agent::Agent;
use cinderblock::config::Config;
use cinderblock::csi;
use cinderblock::metrics::Metrics;
use cinderblock::names::NodeName;
use cinderblock::run::standalone::services;
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;
use cinderblock_proto::csi::v1 as pb;
use hyper_util::rt::TokioIo;
use pb::controller_client::ControllerClient;
use pb::identity_client::IdentityClient;
use pb::node_client::NodeClient;
use pb::volume_capability::access_mode::Mode;
use tokio::net::UnixStream;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

pub const KEY: &str = "topology.lvm.cinderblock.dev/node";
pub const GIB: i64 = 1 << 30;
pub const MIB: i64 = 1 << 20;

/// Cases that look at the driver as a whole run alone; all others side by side.
static ALONE: RwLock<()> = RwLock::const_new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

enum Turn {
    #[allow(dead_code, reason = "held, not read")]
    Shared(RwLockReadGuard<'static, ()>),
    #[allow(dead_code, reason = "held, not read")]
    Alone(RwLockWriteGuard<'static, ()>),
}

pub struct Driver {
    pub identity: IdentityClient<Channel>,
    pub controller: ControllerClient<Channel>,
    pub node: NodeClient<Channel>,
    /// Part of every name of this test.
    pub prefix: String,
    dir: tempfile::TempDir,
    sim: Option<SimHost>,
    stop: CancellationToken,
    _turn: Turn,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Driver {
    /// A driver that others may use meanwhile.
    pub async fn shared() -> Self {
        Self::new(Turn::Shared(ALONE.read().await)).await
    }

    /// A driver for this test alone.
    pub async fn alone() -> Self {
        Self::new(Turn::Alone(ALONE.write().await)).await
    }

    async fn new(turn: Turn) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let (socket, sim) = match std::env::var_os("CINDERBLOCK_ENDPOINT") {
            Some(path) => (PathBuf::from(path), None),
            None => {
                let socket = dir.path().join("csi.sock");
                let sim = simulate(&socket, stop.clone());
                (socket, Some(sim))
            }
        };
        let channel = connect(socket).await;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let driver = Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
            prefix: format!("t{number}-{}", std::process::id()),
            dir,
            sim,
            stop,
            _turn: turn,
        };
        driver.wait_ready().await;
        driver
    }

    async fn wait_ready(&self) {
        for _ in 0..600 {
            let request = pb::GetCapacityRequest::default();
            let answer = self.controller.clone().get_capacity(request).await.unwrap().into_inner();
            if answer.available_capacity > 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("the driver has no capacity");
    }

    /// A path of this test.
    pub fn path(&self, name: &str) -> String {
        let path = match &self.sim {
            Some(_) => Path::new("/sim").join(name),
            None => self.dir.path().join(name),
        };
        path.to_str().unwrap().to_owned()
    }

    pub fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub async fn create(&self, request: pb::CreateVolumeRequest) -> Result<pb::Volume, Status> {
        let answer = self.controller.clone().create_volume(request).await?;
        Ok(answer.into_inner().volume.unwrap())
    }

    /// A volume of 1 GiB.
    pub async fn volume(&self, name: &str, kind: &Kind) -> pb::Volume {
        self.create(self.request(name, kind, GIB)).await.unwrap()
    }

    pub fn request(&self, name: &str, kind: &Kind, required: i64) -> pb::CreateVolumeRequest {
        pb::CreateVolumeRequest {
            name: self.name(name),
            capacity_range: Some(pb::CapacityRange { required_bytes: required, limit_bytes: 0 }),
            volume_capabilities: vec![kind.capability()],
            parameters: [
                ("backend".to_owned(), "fast".to_owned()),
                ("provisioning".to_owned(), kind.provisioning.to_owned()),
            ]
            .into(),
            ..pb::CreateVolumeRequest::default()
        }
    }

    pub async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = pb::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.controller.clone().delete_volume(request).await.map(drop)
    }

    pub async fn snapshot(&self, name: &str, source: &str) -> Result<pb::Snapshot, Status> {
        let request = pb::CreateSnapshotRequest {
            name: self.name(name),
            source_volume_id: source.to_owned(),
            ..pb::CreateSnapshotRequest::default()
        };
        let answer = self.controller.clone().create_snapshot(request).await?;
        Ok(answer.into_inner().snapshot.unwrap())
    }

    pub async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request =
            pb::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.controller.clone().delete_snapshot(request).await.map(drop)
    }

    pub async fn expand(&self, id: &str, required: i64) -> Result<i64, Status> {
        let request = pb::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: Some(pb::CapacityRange { required_bytes: required, limit_bytes: 0 }),
            ..pb::ControllerExpandVolumeRequest::default()
        };
        let answer = self.controller.clone().controller_expand_volume(request).await?;
        Ok(answer.into_inner().capacity_bytes)
    }

    pub fn staging(&self, id: &str) -> String {
        self.path(&format!("staging-{}", id.rsplit('/').next().unwrap_or_default()))
    }

    pub fn stage_request(&self, id: &str, kind: &Kind) -> pb::NodeStageVolumeRequest {
        pb::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: self.staging(id),
            volume_capability: Some(kind.capability()),
            ..pb::NodeStageVolumeRequest::default()
        }
    }

    pub async fn stage(&self, id: &str, kind: &Kind) -> Result<(), Status> {
        self.node.clone().node_stage_volume(self.stage_request(id, kind)).await.map(drop)
    }

    pub async fn unstage(&self, id: &str) -> Result<(), Status> {
        let request = pb::NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: self.staging(id),
        };
        self.node.clone().node_unstage_volume(request).await.map(drop)
    }

    pub fn publish_request(&self, id: &str, kind: &Kind, at: &str) -> pb::NodePublishVolumeRequest {
        pb::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: self.staging(id),
            target_path: self.path(at),
            volume_capability: Some(kind.capability()),
            ..pb::NodePublishVolumeRequest::default()
        }
    }

    pub async fn publish(&self, id: &str, kind: &Kind, at: &str) -> Result<(), Status> {
        let request = self.publish_request(id, kind, at);
        self.node.clone().node_publish_volume(request).await.map(drop)
    }

    pub async fn unpublish(&self, id: &str, at: &str) -> Result<(), Status> {
        let request =
            pb::NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: self.path(at) };
        self.node.clone().node_unpublish_volume(request).await.map(drop)
    }

    pub async fn attach(&self, id: &str, kind: &Kind, at: &str) {
        self.stage(id, kind).await.unwrap();
        self.publish(id, kind, at).await.unwrap();
    }

    pub async fn detach(&self, id: &str, at: &str) {
        self.unpublish(id, at).await.unwrap();
        self.unstage(id).await.unwrap();
    }

    /// Writes to a published volume and makes it durable.
    pub fn write(&self, at: &str, data: &str) {
        let path = self.path(at);
        match &self.sim {
            Some(sim) => sim.world().write(Path::new(&path), data),
            None => {
                let is_dir = fs::metadata(&path).unwrap().is_dir();
                let file = if is_dir { format!("{path}/data") } else { path };
                let mut file = fs::OpenOptions::new()
                    .write(true)
                    .create(is_dir)
                    .truncate(is_dir)
                    .open(file)
                    .unwrap();
                file.write_all(data.as_bytes()).unwrap();
                file.sync_all().unwrap();
            }
        }
    }

    /// What was written to a published volume, as many bytes as `like`.
    pub fn read(&self, at: &str, like: &str) -> String {
        let path = self.path(at);
        match &self.sim {
            Some(sim) => sim.world().read(Path::new(&path)).unwrap(),
            None => {
                let is_dir = fs::metadata(&path).unwrap().is_dir();
                let file = if is_dir { format!("{path}/data") } else { path };
                let mut bytes = vec![0; like.len()];
                std::io::Read::read_exact(&mut fs::File::open(file).unwrap(), &mut bytes).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }
}

fn simulate(socket: &Path, stop: CancellationToken) -> SimHost {
    let config = Config::parse(
        "backends: [{name: fast, volumeGroup: vg0, create: true, reserve: 0%, devices: \
         [/dev/disk/by-id/disk0, /dev/disk/by-id/disk1], thinPool: {size: 50%, overprovision: 4}}]",
    )
    .unwrap();
    let config = watch::Sender::new(std::sync::Arc::new(config));
    let labels = watch::Sender::new(None);
    let host = SimHost::new(World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]));
    let agent = Agent::new(host.clone(), config.subscribe(), labels.subscribe());
    let node = NodeName::parse("n1").unwrap();
    let metrics = Metrics::new("lvm.cinderblock.dev");
    let services = services("lvm.cinderblock.dev", &agent, &node, config.subscribe(), &metrics);
    let listener = cinderblock::net::unix(socket).unwrap();
    tokio::spawn(async move {
        let _alive = (config, labels);
        let run = agent.run(stop.clone());
        let serve = csi::serve(listener, services, stop.clone());
        tokio::select! { () = run => {}, served = serve => served.unwrap() }
    });
    host
}

async fn connect(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// What kind of volume a test is about.
#[derive(Clone, Debug)]
pub struct Kind {
    pub provisioning: &'static str,
    /// The filesystem; empty for a block volume.
    pub fs: &'static str,
    pub mode: Mode,
}

impl Kind {
    pub const fn new(provisioning: &'static str, fs: &'static str) -> Self {
        Self { provisioning, fs, mode: Mode::SingleNodeMultiWriter }
    }

    pub const EXT4: Self = Self::new("thin", "ext4");
    pub const XFS: Self = Self::new("thin", "xfs");
    pub const BTRFS: Self = Self::new("thin", "btrfs");
    pub const BLOCK: Self = Self::new("thin", "");
    pub const THICK: Self = Self::new("thick", "ext4");
    pub const THICK_BLOCK: Self = Self::new("thick", "");

    pub const ALL: [Self; 6] =
        [Self::EXT4, Self::XFS, Self::BTRFS, Self::BLOCK, Self::THICK, Self::THICK_BLOCK];

    pub fn capability(&self) -> pb::VolumeCapability {
        use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
        let access = match self.fs {
            "" => AccessType::Block(BlockVolume {}),
            fs => AccessType::Mount(MountVolume { fs_type: fs.to_owned(), ..Default::default() }),
        };
        pb::VolumeCapability {
            access_type: Some(access),
            access_mode: Some(AccessMode { mode: self.mode.into() }),
        }
    }
}

/// The code of a failure.
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}
