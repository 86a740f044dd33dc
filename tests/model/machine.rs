//! The machine that all runs on, in memory, and the driver's process there: started, ended, killed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cinderblock::agent::Agent;
use cinderblock::config::Config;
use cinderblock::csi;
use cinderblock::domain::BackendState;
use cinderblock::host::Host;
use cinderblock::lvm::command::{create_pv, create_vg};
use cinderblock::metrics::Metrics;
use cinderblock::names::{LvmUuid, NodeName, VgName};
use cinderblock::run::standalone::services;
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;
use cinderblock_proto::csi::v1 as pb;
use hyper_util::rt::TokioIo;
use pb::controller_client::ControllerClient;
use pb::node_client::NodeClient;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::client::Client;

pub const VG: &str = "vg0";
const DRIVER: &str = "lvm.cinderblock.dev";
const CONFIG: &str = "backends: [{name: fast, volumeGroup: vg0, create: true, reserve: 0%, devices: \
    [/dev/disk/by-id/disk0, /dev/disk/by-id/disk1, /dev/disk/by-id/disk2], \
    thinPool: {size: 30%, overprovision: 4}}]";
/// A process that is told to end, or to begin, has done so within this.
const PATIENCE: Duration = Duration::from_mins(30);

#[derive(Debug)]
pub struct Machine {
    pub host: SimHost,
    pub client: Client,
    dir: tempfile::TempDir,
    process: Process,
    starts: u32,
}

#[derive(Debug)]
struct Process {
    agent: Agent<SimHost>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Machine {
    /// A machine of three disks with a volume group, where the driver has made its pool.
    pub async fn new(pace: u64) -> Result<Self, String> {
        let host = SimHost::new(World::with_disks(&[Bytes::gib(6); 3]));
        let mut disks = Vec::new();
        for disk in ["/dev/sda", "/dev/sdb", "/dev/sdc"] {
            // The driver's own are random, and the places of volumes would be so, too.
            let call = create_pv(Path::new(disk), &LvmUuid::derived(disk));
            host.run(&call).await.map_err(|e| e.to_string())?;
            disks.push(PathBuf::from(disk));
        }
        let name = VgName::parse(VG).map_err(|e| e.to_string())?;
        host.run(&create_vg(&name, &disks)).await.map_err(|e| e.to_string())?;
        host.pace(pace);
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let (process, client) = start(&host, &dir.path().join("csi-0.sock")).await?;
        Ok(Self { host, client, dir, process, starts: 1 })
    }

    /// The process is dead; the next one starts on what it left.
    pub async fn after_death(&mut self) -> Result<(), String> {
        self.host = self.host.next_process();
        self.process.task.abort();
        self.end_and_start().await
    }

    /// The process ends as it should, and the next one starts.
    pub async fn restart(&mut self) -> Result<(), String> {
        self.end_and_start().await?;
        Ok(())
    }

    /// The power fails.
    pub async fn reboot(&mut self) -> Result<(), String> {
        self.host = self.host.next_process();
        self.host.world().reboot();
        self.process.task.abort();
        self.end_and_start().await
    }

    async fn end_and_start(&mut self) -> Result<(), String> {
        self.process.stop.cancel();
        let agent = self.process.agent.clone();
        let ended = tokio::time::timeout(PATIENCE, agent.finish()).await;
        ended.map_err(|_| "the driver's process does not end".to_owned())?;
        let socket = self.dir.path().join(format!("csi-{}.sock", self.starts));
        self.starts += 1;
        (self.process, self.client) = start(&self.host, &socket).await?;
        Ok(())
    }
}

async fn start(host: &SimHost, socket: &Path) -> Result<(Process, Client), String> {
    let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).map_err(|e| e.to_string())?));
    let labels = watch::Sender::new(None);
    let agent = Agent::new(host.clone(), config.subscribe(), labels.subscribe());
    let node = NodeName::parse("n1").map_err(|e| e.to_string())?;
    let services = services(DRIVER, &agent, &node, config.subscribe(), &Metrics::new(DRIVER));
    let listener = cinderblock::net::unix(socket).map_err(|e| e.chain())?;
    let stop = CancellationToken::new();
    let (running, token) = (agent.clone(), stop.clone());
    let task = tokio::spawn(async move {
        let _alive = (config, labels);
        tokio::select! {
            biased;
            () = running.run(token.clone()) => {}
            served = csi::serve(listener, services, token) => served.unwrap(),
        }
    });
    let mut inventory = agent.inventory();
    let ready = inventory.wait_for(|now| {
        now.backends.values().any(|it| matches!(it.state, BackendState::Ready { .. }))
    });
    let waited = tokio::time::timeout(PATIENCE, ready).await.is_ok();
    if !waited {
        return Err(format!("no backend is ready: {:?}", agent.inventory().borrow().backends));
    }
    // Until the controller has it, too.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let channel = connect(socket.to_owned()).await.map_err(|e| e.to_string())?;
    let vg = host.world().vg(VG).map(|vg| vg.uuid.clone()).ok_or("there is no volume group")?;
    let (controller, node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
    let client = Client { host: host.clone(), vg, controller, node };
    Ok((Process { agent, stop, task }, client))
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await
}
