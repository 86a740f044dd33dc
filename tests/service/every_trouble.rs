//! Each thing that can be wrong, from the disk to whoever looks: the inventory or the volume's health
//! says it, a metric counts it, an event on the right object tells when it begins, and all of that is
//! over when it is.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cinderblock::config::Config;
use cinderblock::controller::{Controller, Orphans, Registry, tell_of_troubles};
use cinderblock::domain::{
    CowSize, CreateSnapshot, CreateVolume, Grade, Provisioning, Reason, Subject, VolumeAgent,
};
use cinderblock::kube::{Events, Objects};
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::tag::{FsType, Usage};
use cinderblock::metrics::Metrics;
use cinderblock::names::{BackendName, CsiName, Handle, LvName, NodeName};
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fake_api::{Seen, api, not_found, page};
use crate::pool_parts::RAID1 as RAID_POOL;
use crate::support::{CONFIG, Node, VG, mounted, staging, thick, volume};

const DRIVER: &str = "lvm.example";
const EXT4: FsType = FsType::Ext4;
const DISK: &str = "/dev/disk/by-id/disk1";
const GRACE: Duration = Duration::from_mins(4);

/// Where people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// An event on the volume's claim.
    Claim,
    /// An event on the node, about its backend.
    Backend,
    /// An event on the node, about a volume that no claim has, and a metric of the controller.
    Orphan,
    /// Only to who asks how the volume is: the kubelet, which tells it itself.
    Asked,
}

/// Where it is seen, the event's type, the event's reason when it is over, and the health of the
/// volume.
type Facts = (Shown, &'static str, &'static str, Option<(Grade, &'static str)>);

/// What an operator is promised of each (docs/operations.md).
fn facts(reason: Reason) -> Facts {
    use Grade::{Degraded, Inaccessible};
    use Shown::{Asked, Backend, Claim, Orphan};
    let degraded = |word| Some((Degraded, word));
    let inaccessible = |word| Some((Inaccessible, word));
    match reason {
        Reason::VolumeDegraded => {
            (Claim, "Warning", "VolumeRepaired", degraded("PartialActivation"))
        }
        Reason::VolumeResyncing => (Claim, "Normal", "VolumeInSync", None),
        Reason::VolumeInaccessible => {
            (Claim, "Warning", "VolumeAccessible", inaccessible("PhysicalVolumeMissing"))
        }
        Reason::FilesystemReadOnly => (Asked, "", "", inaccessible("FilesystemReadOnly")),
        Reason::SnapshotLost => (Claim, "Warning", "SnapshotLostRemoved", None),
        Reason::SnapshotCannotGrow => (Claim, "Warning", "SnapshotHasRoom", None),
        Reason::BackendNotReady => (Backend, "Warning", "BackendReady", None),
        Reason::BackendSetupFailed => (Backend, "Warning", "BackendSetUp", None),
        Reason::PhysicalVolumeMissing => {
            let health = inaccessible("PhysicalVolumeMissing");
            (Backend, "Warning", "PhysicalVolumesComplete", health)
        }
        Reason::ThinPoolDegraded => {
            (Backend, "Warning", "ThinPoolRepaired", degraded("PartialActivation"))
        }
        Reason::ThinPoolCannotGrow => {
            (Backend, "Warning", "ThinPoolCanGrow", degraded("ThinPoolCannotGrow"))
        }
        Reason::ThinPoolAlmostFull => {
            (Backend, "Warning", "ThinPoolHasRoom", degraded("ThinPoolAlmostFull"))
        }
        Reason::ThinPoolFull => {
            (Backend, "Warning", "ThinPoolTakesWrites", inaccessible("ThinPoolOutOfDataSpace"))
        }
        Reason::ThinPoolFailed => {
            (Backend, "Warning", "ThinPoolRecovered", inaccessible("ThinPoolFailed"))
        }
        Reason::ThinPoolQueuesWhenFull => {
            (Backend, "Warning", "ThinPoolFailsWhenFull", degraded("ThinPoolQueuesWhenFull"))
        }
        Reason::LvmHangs => (Backend, "Warning", "LvmAnswers", None),
        Reason::Orphaned => (Orphan, "Warning", "OrphanGone", None),
    }
}

/// A node where nothing is wrong yet, and the volume that something will be wrong with.
async fn well(reason: Reason) -> (Node, CreateVolume) {
    let mut mirrored = thick("pvc-1");
    mirrored.class.layout =
        ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
    let of = |provisioning, gib| volume("pvc-1", provisioning, Usage::Filesystem(EXT4), gib);
    let plain = async || Node::ready_without_a_pool().await;
    match reason {
        Reason::VolumeDegraded | Reason::VolumeResyncing => (plain().await, mirrored),
        // On both disks.
        Reason::VolumeInaccessible | Reason::PhysicalVolumeMissing => {
            (plain().await, of(Provisioning::Thick, 30))
        }
        Reason::SnapshotLost | Reason::SnapshotCannotGrow => {
            (plain().await, of(Provisioning::Thick, 3))
        }
        Reason::BackendSetupFailed => {
            let disks = World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]);
            let one = CONFIG.replace(", /dev/disk/by-id/disk1", "");
            let node = Node::start(&SimHost::new(disks), &one);
            node.wait_ready().await;
            (node, thick("pvc-1"))
        }
        Reason::ThinPoolDegraded => {
            let node =
                Node::start(&SimHost::new(World::with_disks(&[Bytes::gib(20); 3])), RAID_POOL);
            node.wait_ready().await;
            (node, of(Provisioning::Thin, 1))
        }
        // More than the pool has, which would grow.
        Reason::ThinPoolCannotGrow
        | Reason::ThinPoolAlmostFull
        | Reason::ThinPoolFull
        | Reason::ThinPoolFailed
        | Reason::ThinPoolQueuesWhenFull => (Node::ready().await, of(Provisioning::Thin, 30)),
        Reason::FilesystemReadOnly
        | Reason::BackendNotReady
        | Reason::LvmHangs
        | Reason::Orphaned => (Node::ready().await, thick("pvc-1")),
    }
}

/// A node, the controller that it is connected to, and a cluster that has a claim for the volume.
struct Scene {
    node: Option<Node>,
    volume: Handle,
    registry: Arc<Registry>,
    orphans: Arc<Orphans>,
    /// What the cluster's `PersistentVolume` stands for.
    known: Arc<Mutex<Option<Handle>>>,
    seen: Seen,
    connected: DropGuard,
    /// As it was before a disk was lost.
    before: Option<World>,
    _end: DropGuard,
}

fn cluster(asked: &(String, String, Value), known: Option<&Handle>) -> (u16, Value) {
    let (method, path, body) = asked;
    let object = |handle: &Handle| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": "pvc-1", "uid": "u-pv"},
            "spec": {
                "csi": {"driver": DRIVER, "volumeHandle": handle.to_string()},
                "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "db", "name": "data"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "node", "operator": "In", "values": ["n1"]},
                ]}]}},
            },
            "status": {"phase": "Bound"},
        })
    };
    let path = path.split('?').next().unwrap();
    match (method.as_str(), path, known) {
        ("POST", _, _) => (201, body.clone()),
        ("GET", "/api/v1/persistentvolumes", _) => {
            let items: Vec<_> = known.map(object).into_iter().collect();
            page("PersistentVolumeList", "", &items.into())
        }
        ("GET", "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents", _) => {
            page("VolumeSnapshotContentList", "", &json!([]))
        }
        ("GET", "/api/v1/persistentvolumes/pvc-1", Some(handle)) => (200, object(handle)),
        _ => not_found(),
    }
}

fn connect(registry: &Arc<Registry>, node: &Node) -> DropGuard {
    let agent: Arc<dyn VolumeAgent> = Arc::new(node.agent.clone());
    let session = registry.connect(NodeName::parse("n1").unwrap(), agent);
    let mut inventory = node.agent.inventory();
    let until = CancellationToken::new();
    tokio::spawn(until.clone().run_until_cancelled_owned(async move {
        loop {
            let now = Arc::clone(&inventory.borrow_and_update());
            session.update(&now);
            if inventory.changed().await.is_err() {
                return;
            }
        }
    }));
    until.drop_guard()
}

impl Scene {
    async fn new(reason: Reason) -> Self {
        let (node, request) = well(reason).await;
        let volume = node.create(request).await.unwrap().handle;
        let registry = Arc::new(Registry::default());
        let connected = connect(&registry, &node);
        let known = Arc::new(Mutex::new(Some(volume.clone())));
        let told = Arc::clone(&known);
        let metrics = Metrics::new(DRIVER);
        let (api, seen) = api(&metrics, move |asked| cluster(asked, told.lock().unwrap().as_ref()));
        let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap()));
        let controller = Controller::new(Arc::clone(&registry), config.subscribe(), None, false);
        let objects = Box::new(Objects::new(api.clone()));
        let orphans = Orphans::new(Arc::clone(&registry), Arc::new(controller), objects, GRACE);
        let orphans = Arc::new(orphans);
        let end = CancellationToken::new();
        let events = || Box::new(Events::new(api.clone(), DRIVER.to_owned()));
        tokio::spawn(tell_of_troubles(Arc::clone(&registry), events(), end.clone()));
        let look = Arc::clone(&orphans).run(Duration::from_mins(1), events(), end.clone());
        tokio::spawn(look);
        let (node, before) = (Some(node), None);
        let end = end.drop_guard();
        Self { node, volume, registry, orphans, known, seen, connected, before, _end: end }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.node().host.world()
    }

    /// Another agent on the same host: LVM tells it what the disks alone do not.
    async fn restart(&mut self) {
        let node = self.node.take().unwrap().reincarnate_in_any_state().await;
        self.connected = connect(&self.registry, &node);
        self.node = Some(node);
    }

    /// Somebody takes all that the VG has left.
    async fn fill_vg(&self) -> Handle {
        let mut all = thick("pvc-all");
        let free = self.world().vg(VG).unwrap().free_extents().get() * 4;
        all.range.required = Some(Bytes::mib(free));
        self.node().create(all).await.unwrap().handle
    }

    fn fill_pool(&self, percent: u64) {
        let pool = LvName::parse("pool0").unwrap();
        let size = self.world().vg(VG).unwrap().lvs[&pool].size;
        self.world().pool(VG, "pool0").data_used = size.percent_floor(percent);
    }

    async fn small_snapshot(&self) -> Handle {
        let name = CsiName::parse("snapshot-0").unwrap();
        let cow_size = CowSize::percent(10).unwrap();
        let request = CreateSnapshot { name, source: self.volume.clone(), cow_size };
        self.node().agent.create_snapshot(request).await.unwrap().value.handle
    }

    fn configure(&self, text: &str) {
        self.node().config.send_replace(Arc::new(Config::parse(text).unwrap()));
    }

    /// Makes it happen.
    async fn begin(&mut self, reason: Reason) {
        match reason {
            Reason::VolumeDegraded => self.world().set_raid(VG, "pvc-1", "AD", "idle"),
            Reason::VolumeResyncing => self.world().set_raid(VG, "pvc-1", "aa", "resync"),
            Reason::VolumeInaccessible | Reason::PhysicalVolumeMissing => {
                let before = self.world().clone();
                self.before = Some(before);
                self.world().lose_disk(Path::new(DISK));
                self.restart().await;
            }
            Reason::FilesystemReadOnly => {
                self.node().stage(&self.volume, mounted(EXT4)).await.unwrap();
                self.world().stop_filesystem(&staging(&self.volume));
            }
            Reason::SnapshotLost => {
                self.small_snapshot().await;
                self.world().fill_snapshot(VG, "snap-0", Bytes::gib(1));
            }
            Reason::SnapshotCannotGrow => {
                self.small_snapshot().await;
                self.fill_vg().await;
                self.world().fill_snapshot(VG, "snap-0", Bytes::mib(400));
            }
            Reason::BackendNotReady => self.configure(&CONFIG.replace("size: 50%", "name: other")),
            Reason::BackendSetupFailed => {
                self.world().put_on_disk(Path::new(DISK), "xfs");
                self.configure(CONFIG);
            }
            Reason::ThinPoolDegraded => self.world().set_raid(VG, "pool0_tdata", "AD", "idle"),
            Reason::ThinPoolCannotGrow => {
                self.fill_vg().await;
                self.fill_pool(85);
            }
            Reason::ThinPoolAlmostFull => {
                self.fill_vg().await;
                self.fill_pool(96);
            }
            Reason::ThinPoolFull => {
                self.fill_vg().await;
                self.fill_pool(100);
            }
            Reason::ThinPoolFailed => self.world().pool(VG, "pool0").failed = true,
            Reason::ThinPoolQueuesWhenFull => self.world().pool(VG, "pool0").queues = true,
            Reason::LvmHangs => {
                self.node().host.stall(Some(VG));
                let agent = self.node().agent.clone();
                tokio::spawn(async move { agent.create_volume(thick("pvc-late")).await });
            }
            Reason::Orphaned => *self.known.lock().unwrap() = None,
        }
    }

    /// Mends it.
    async fn end(&mut self, reason: Reason) {
        match reason {
            Reason::VolumeDegraded | Reason::VolumeResyncing => {
                self.world().set_raid(VG, "pvc-1", "AA", "idle");
            }
            Reason::VolumeInaccessible | Reason::PhysicalVolumeMissing => {
                let before = self.before.take().unwrap();
                *self.world() = before;
            }
            Reason::FilesystemReadOnly => {
                self.node().unstage(&self.volume).await.unwrap();
                self.node().stage(&self.volume, mounted(EXT4)).await.unwrap();
            }
            Reason::SnapshotLost | Reason::SnapshotCannotGrow => {
                let lv = LvName::parse("snap-0").unwrap();
                let snapshot = Handle { lv, ..self.volume.clone() };
                self.node().agent.delete_snapshot(snapshot).await.unwrap();
            }
            Reason::BackendNotReady => self.configure(CONFIG),
            Reason::BackendSetupFailed => self.world().clear_disk(Path::new(DISK)),
            Reason::ThinPoolDegraded => self.world().set_raid(VG, "pool0_tdata", "AA", "idle"),
            Reason::ThinPoolCannotGrow | Reason::ThinPoolAlmostFull | Reason::ThinPoolFull => {
                self.fill_pool(10);
            }
            Reason::ThinPoolFailed => self.world().pool(VG, "pool0").failed = false,
            Reason::ThinPoolQueuesWhenFull => self.world().pool(VG, "pool0").queues = false,
            Reason::LvmHangs => self.node().host.stall(None),
            Reason::Orphaned => *self.known.lock().unwrap() = Some(self.volume.clone()),
        }
    }

    fn subject(&self, shown: Shown) -> Subject {
        match shown {
            Shown::Claim | Shown::Asked | Shown::Orphan => Subject::Volume(self.volume.clone()),
            Shown::Backend => Subject::Backend(BackendName::parse("fast").unwrap()),
        }
    }

    /// Whether it is told now, by the inventory and by all that an operator reads.
    async fn is_told(&self, reason: Reason) -> bool {
        let shown = facts(reason).0;
        let agent = &self.node().agent;
        let metrics = Metrics::new(DRIVER);
        metrics.show_inventory(agent.inventory());
        let orphans = Arc::clone(&self.orphans);
        metrics.show_orphans(move || orphans.seen());
        let (line, by_inventory) = match shown {
            Shown::Claim | Shown::Backend => {
                let key = (self.subject(shown), reason);
                let inventory = agent.inventory();
                let there = inventory.borrow().troubles.contains_key(&key);
                (format!("cinderblock_troubles{{reason=\"{}\"}} 1\n", reason.as_str()), there)
            }
            Shown::Orphan => {
                let labels = "node=\"n1\",volume_group=\"vg0\",kind=\"volume\"";
                let is_it = |it: &cinderblock::domain::Orphan| it.handle == self.volume;
                let there = self.orphans.seen().orphans.iter().any(is_it);
                (format!("cinderblock_orphans{{{labels}}} 1"), there)
            }
            Shown::Asked => {
                let paths = [staging(&self.volume)];
                let found = agent.volume_health(&self.volume, &paths).await.unwrap();
                return found.iter().any(|(found, _)| *found == reason);
            }
        };
        let text = metrics.text();
        assert_eq!(text.contains(&line), by_inventory, "{line} is not in, or still in\n{text}");
        if shown == Shown::Backend {
            let told = agent.storage_health().iter().any(|(told, _)| *told == reason);
            assert_eq!(told, by_inventory, "{reason:?} as the storage's health");
        }
        by_inventory
    }

    /// Who asks how the volume is gets the right word as long as it is so, and no word for it then.
    async fn check_health(&self, reason: Reason, lasts: bool) {
        let Some(health) = facts(reason).3 else { return };
        let paths = [staging(&self.volume)];
        let found = self.node().agent.volume_health(&self.volume, &paths).await.unwrap();
        let found: Vec<_> = found.iter().filter_map(|(reason, _)| reason.health()).collect();
        assert_eq!(found.contains(&health), lasts, "{reason:?}: {found:?}");
    }

    async fn wait_until_told(&self, reason: Reason, told: bool) {
        for _ in 0..120 {
            if self.is_told(reason).await == told {
                return;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        panic!("{reason:?} is {}", if told { "never told" } else { "told for ever" });
    }

    /// The events with that reason, and nothing of them until there is one.
    async fn events(&self, reason: &str) -> Vec<Value> {
        for _ in 0..120 {
            let of = |event: &Value| event["reason"] == reason;
            let found: Vec<_> = self.seen.events().into_iter().filter(of).collect();
            if !found.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        vec![]
    }
}

async fn told_counted_and_over(reason: Reason) {
    let (shown, kind, over, health) = facts(reason);
    assert_eq!(reason.health(), health, "{reason:?}");
    let mut scene = Scene::new(reason).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    let quiet = scene.seen.events();
    assert!(!scene.is_told(reason).await && quiet.is_empty(), "{reason:?}: {quiet:?}");
    scene.begin(reason).await;
    scene.wait_until_told(reason, true).await;
    scene.check_health(reason, true).await;
    let regarding = match shown {
        Shown::Claim => json!({"kind": "PersistentVolumeClaim", "name": "data"}),
        Shown::Backend | Shown::Orphan => json!({"kind": "Node", "name": "n1"}),
        Shown::Asked => {
            tokio::time::sleep(Duration::from_mins(2)).await;
            scene.end(reason).await;
            scene.wait_until_told(reason, false).await;
            scene.check_health(reason, false).await;
            assert_eq!(scene.seen.events(), [] as [Value; 0]);
            return;
        }
    };
    let is_it = |event: &Value| {
        let of = &event["regarding"];
        assert_eq!(json!({"kind": of["kind"], "name": of["name"]}), regarding, "{event}");
        let about = match scene.subject(shown) {
            // Who sees the claim knows the volume.
            Subject::Volume(_) if shown == Shown::Claim => "node n1: ".to_owned(),
            Subject::Volume(handle) => format!("logical volume {handle}: "),
            Subject::Backend(name) => format!("backend {name}: "),
        };
        assert!(event["note"].as_str().unwrap().starts_with(&about), "{event}");
    };
    let began = scene.events(reason.as_str()).await;
    assert_eq!(began.len(), 1, "{reason:?}: {began:?}");
    is_it(&began[0]);
    assert_eq!(began[0]["type"], kind, "{reason:?}");
    // However long it lasts.
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert!(scene.is_told(reason).await, "{reason:?} while it lasts");
    assert_eq!(scene.events(reason.as_str()).await.len(), 1, "{reason:?}");
    scene.end(reason).await;
    scene.wait_until_told(reason, false).await;
    scene.check_health(reason, false).await;
    let ended = scene.events(over).await;
    assert_eq!(ended.len(), 1, "{reason:?}: {ended:?}");
    let of = &ended[0]["regarding"];
    let wanted = match shown {
        // A claim knows its volume again.
        Shown::Orphan | Shown::Backend => json!({"kind": "Node", "name": "n1"}),
        Shown::Claim | Shown::Asked => json!({"kind": "PersistentVolumeClaim", "name": "data"}),
    };
    assert_eq!(json!({"kind": of["kind"], "name": of["name"]}), wanted, "{reason:?}");
    assert_eq!(ended[0]["type"], "Normal", "{reason:?}");
    assert_eq!(
        scene.node().agent.inventory().borrow().troubles.len(),
        0,
        "{reason:?}: nothing else"
    );
}

#[tokio::test(start_paused = true)]
async fn every_trouble_is_told_counted_and_over() {
    for reason in Reason::ALL {
        Box::pin(told_counted_and_over(reason)).await;
    }
}
