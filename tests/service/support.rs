//! An agent on a simulated host, and short words for what tests ask of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cinderblock::agent::{Agent, Labels, Publish, Stage};
use cinderblock::config::Config;
use cinderblock::domain::{
    AccessMode, AccessType, BackendState, Capability, CapacityRange, ContentSource, CowSize,
    CreateSnapshot, CreateVolume, Provisioning, Secrets, Snapshot, Volume, VolumeAgent,
    VolumeClass,
};
use cinderblock::error::{Error, Result};
use cinderblock::lvm::layout::ThickLayout;
use cinderblock::lvm::tag::{FsType, Usage, Wipe};
use cinderblock::names::{BackendName, CsiName, Handle};
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const VG: &str = "vg0";
pub const CONFIG: &str = "
backends:
  - name: fast
    volumeGroup: vg0
    create: true
    devices: [/dev/disk/by-id/disk0, /dev/disk/by-id/disk1]
    thinPool: { size: 50%, overprovision: 4 }
    reserve: 0%
";

/// Two volume groups, each on a disk of its own.
pub const TWO_VGS: &str = "
backends:
  - { name: a, volumeGroup: vg0, create: true, devices: [/dev/disk/by-id/disk0], reserve: 0% }
  - { name: b, volumeGroup: vg1, create: true, devices: [/dev/disk/by-id/disk1], reserve: 0% }
";

/// A running agent.
#[derive(Debug)]
pub struct Node {
    pub agent: Agent<SimHost>,
    pub host: SimHost,
    pub config: watch::Sender<Arc<Config>>,
    /// What it was started with.
    text: String,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Node {
    /// An agent on a host, which it may find in any state.
    pub fn start(host: &SimHost, config: &str) -> Self {
        Self::start_with(host, config, watch::Sender::new(None).subscribe())
    }

    /// The same, where labels are told.
    pub fn start_with(
        host: &SimHost,
        config: &str,
        labels: watch::Receiver<Option<Labels>>,
    ) -> Self {
        let text = config.to_owned();
        let config = watch::Sender::new(Arc::new(Config::parse(config).unwrap()));
        let agent = Agent::new(host.clone(), config.subscribe(), labels);
        let stop = CancellationToken::new();
        let (running, token) = (agent.clone(), stop.clone());
        let task = tokio::spawn(async move { running.run(token).await });
        Self { agent, host: host.clone(), config, text, stop, task }
    }

    /// A host with two blank disks, and an agent that has set up its backend there.
    pub async fn ready() -> Self {
        Self::ready_as("").await
    }

    /// The same in a world of its own.
    pub async fn ready_as(world: &str) -> Self {
        Self::ready_with(world, CONFIG).await
    }

    /// The same without a thin pool, which would take one of the disks that RAID needs.
    pub async fn ready_without_a_pool() -> Self {
        let config: Vec<&str> = CONFIG.lines().filter(|line| !line.contains("thinPool")).collect();
        Self::ready_with("", &config.join("\n")).await
    }

    /// The same on so many disks.
    pub async fn ready_on_disks(count: usize) -> Self {
        let disks: Vec<_> = (0..count).map(|n| format!("/dev/disk/by-id/disk{n}")).collect();
        let config: Vec<&str> = CONFIG.lines().filter(|line| !line.contains("thinPool")).collect();
        let two = "/dev/disk/by-id/disk0, /dev/disk/by-id/disk1";
        let config = config.join("\n").replace(two, &disks.join(", "));
        let host = SimHost::new(World::with_disks(&vec![Bytes::gib(20); count]));
        let node = Self::start(&host, &config);
        node.wait_ready().await;
        node
    }

    async fn ready_with(world: &str, config: &str) -> Self {
        let disks = World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]);
        let host = SimHost::new(disks.named(world));
        let node = Self::start(&host, config);
        node.wait_ready().await;
        node
    }

    pub async fn wait_ready(&self) {
        let mut inventory = self.agent.inventory();
        let ready = inventory.wait_for(|now| {
            now.backends.values().any(|b| matches!(b.state, BackendState::Ready { .. }))
        });
        let waited = tokio::time::timeout(std::time::Duration::from_secs(600), ready).await;
        assert!(waited.is_ok(), "no backend is ready: {:?}", self.agent.inventory().borrow());
    }

    /// What the backend's state says.
    pub async fn trouble(&self) -> String {
        let mut inventory = self.agent.inventory();
        let found = inventory
            .wait_for(|now| {
                now.backends.values().any(|b| matches!(b.state, BackendState::Unusable(_)))
            })
            .await
            .unwrap();
        match &found.backends.values().next().unwrap().state {
            BackendState::Unusable(why) => why.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Ends the agent; the host stays as it is.
    pub async fn end(self) -> SimHost {
        self.stop.cancel();
        self.agent.finish().await;
        self.task.await.unwrap();
        self.host
    }

    /// The agent dies, and another one starts on what it left.
    pub async fn reincarnate(self) -> Self {
        let text = self.text.clone();
        let host = self.end().await;
        host.arm(None);
        let node = Self::start(&host, &text);
        node.wait_ready().await;
        node
    }

    /// The same, where its backend need not be ready.
    pub async fn reincarnate_in_any_state(self) -> Self {
        let text = self.text.clone();
        let host = self.end().await;
        let node = Self::start(&host, &text);
        node.agent.inventory().wait_for(|now| now.revision > 0).await.unwrap();
        node
    }

    pub async fn create(&self, request: CreateVolume) -> Result<Volume> {
        self.agent.create_volume(request).await.map(|told| told.value)
    }

    pub async fn snapshot(&self, name: &str, source: &Handle) -> Result<Snapshot> {
        let name = CsiName::parse(name).unwrap();
        let request = CreateSnapshot { name, source: source.clone(), cow_size: CowSize::FULL };
        self.agent.create_snapshot(request).await.map(|told| told.value)
    }

    pub async fn expand(&self, volume: &Handle, size: Bytes) -> Result<Bytes> {
        let range = CapacityRange { required: Some(size), limit: None };
        self.agent.expand_volume(volume.clone(), range).await.map(|told| told.value)
    }

    pub async fn delete(&self, volume: &Handle) -> Result<()> {
        self.agent.delete_volume(volume.clone()).await.map(drop)
    }

    /// Deletes, and waits until it is wiped.
    pub async fn delete_and_wipe(&self, volume: &Handle) -> Result<()> {
        self.delete(volume).await?;
        self.wait_wiped().await
    }

    /// Waits until nothing is left to wipe.
    pub async fn wait_wiped(&self) -> Result<()> {
        for _ in 0..60 {
            if self.agent.trash().0 == 0 {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        }
        Err(Error::unavailable("it is not wiped"))
    }

    /// With a master key, which volumes that are not encrypted do not mind.
    pub async fn stage(&self, volume: &Handle, access: AccessType) -> Result<()> {
        self.stage_with(volume, access, master()).await
    }

    pub async fn stage_with(
        &self,
        volume: &Handle,
        access: AccessType,
        secrets: Secrets,
    ) -> Result<()> {
        let capability = Capability { access, mode: AccessMode::MultiWriter };
        let path = staging(volume);
        self.agent.stage(Stage { volume: volume.clone(), path, capability, secrets }).await
    }

    /// What the resizer asks of the node.
    pub async fn expand_published(
        &self,
        volume: &Handle,
        size: Bytes,
        secrets: Secrets,
    ) -> Result<Bytes> {
        let range = CapacityRange { required: Some(size), limit: None };
        self.agent.expand_published(volume.clone(), staging(volume), range, secrets).await
    }

    pub async fn publish(&self, volume: &Handle, access: AccessType, target: &str) -> Result<()> {
        self.publish_as(volume, access, target, false).await
    }

    pub async fn publish_as(
        &self,
        volume: &Handle,
        access: AccessType,
        target: &str,
        read_only: bool,
    ) -> Result<()> {
        let capability = Capability { access, mode: AccessMode::MultiWriter };
        let publish = Publish {
            volume: volume.clone(),
            staging: staging(volume),
            target: target.into(),
            capability,
            read_only,
        };
        self.agent.publish_volume(publish).await
    }

    pub async fn unstage(&self, volume: &Handle) -> Result<()> {
        self.agent.unstage(Some(volume.clone()), staging(volume)).await
    }

    pub async fn unpublish(&self, target: &str) -> Result<()> {
        self.agent.unpublish_volume(target.into()).await
    }

    /// Stages and publishes, writes, and takes it all back.
    pub async fn write(&self, volume: &Handle, access: AccessType, data: &str) {
        self.stage(volume, access.clone()).await.unwrap();
        self.publish(volume, access, "/pods/write").await.unwrap();
        self.host.world().write(Path::new("/pods/write"), data);
        self.unpublish("/pods/write").await.unwrap();
        self.unstage(volume).await.unwrap();
    }

    pub async fn read(&self, volume: &Handle, access: AccessType) -> String {
        self.stage(volume, access.clone()).await.unwrap();
        self.publish(volume, access, "/pods/read").await.unwrap();
        let data = self.host.world().read(Path::new("/pods/read")).unwrap();
        self.unpublish("/pods/read").await.unwrap();
        self.unstage(volume).await.unwrap();
        data
    }
}

pub fn staging(volume: &Handle) -> PathBuf {
    PathBuf::from(format!("/staging/{}", volume.lv))
}

pub fn mounted(fs: FsType) -> AccessType {
    AccessType::Mount { fs, options: vec![] }
}

pub fn volume(name: &str, provisioning: Provisioning, usage: Usage, gib: u64) -> CreateVolume {
    CreateVolume {
        name: CsiName::parse(name).unwrap(),
        range: CapacityRange { required: Some(Bytes::gib(gib)), limit: None },
        class: VolumeClass {
            backend: Some(BackendName::parse("fast").unwrap()),
            provisioning: Some(provisioning),
            layout: ThickLayout::Linear,
            wipe: None,
            luks: false,
        },
        usage,
        source: None,
        claim: None,
    }
}

pub fn on_backend(mut request: CreateVolume, backend: &str) -> CreateVolume {
    request.class.backend = Some(BackendName::parse(backend).unwrap());
    request
}

/// A small one, wiped when it is deleted.
pub fn wiped(request: CreateVolume, wipe: Wipe) -> CreateVolume {
    let class = VolumeClass { wipe: Some(wipe), ..request.class };
    let range = CapacityRange { required: Some(Bytes::mib(64)), limit: None };
    CreateVolume { class, range, ..request }
}

/// What a Secret says.
pub fn secret(entries: &[(&str, &str)]) -> Secrets {
    Secrets::new(entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

pub const MASTER_KEY: &str = "4gBpy3bX0bZ9uTnGfQ6a3uG0r9pQz1J0h2k5m8n1s4o=";

pub fn master() -> Secrets {
    secret(&[("masterKey", MASTER_KEY)])
}

pub fn encrypted(mut request: CreateVolume) -> CreateVolume {
    request.class.luks = true;
    request
}

pub fn thin(name: &str) -> CreateVolume {
    volume(name, Provisioning::Thin, Usage::Filesystem(FsType::Ext4), 1)
}

pub fn thick(name: &str) -> CreateVolume {
    volume(name, Provisioning::Thick, Usage::Filesystem(FsType::Ext4), 1)
}

pub fn restored(name: &str, snapshot: &Handle, gib: u64) -> CreateVolume {
    CreateVolume {
        source: Some(ContentSource::Snapshot(snapshot.clone())),
        range: CapacityRange { required: Some(Bytes::gib(gib)), limit: None },
        ..thin(name)
    }
}

/// The same request for a thick volume.
pub fn as_thick(mut request: CreateVolume) -> CreateVolume {
    request.class.provisioning = Some(Provisioning::Thick);
    request
}

pub fn cloned(name: &str, volume: &Handle) -> CreateVolume {
    CreateVolume { source: Some(ContentSource::Volume(volume.clone())), ..thin(name) }
}

/// Does something up to three times, with the number of the attempt from 1 on, and says whether it took less than
/// this once: a machine that stalls makes one attempt slow, waiting for something makes all of them slow.
pub async fn is_quick(limit: std::time::Duration, mut attempt: impl AsyncFnMut(usize)) -> bool {
    for n in 1..=3 {
        let begun = std::time::Instant::now();
        attempt(n).await;
        if begun.elapsed() < limit {
            return true;
        }
    }
    false
}
