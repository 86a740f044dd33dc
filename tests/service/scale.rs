//! One controller, five thousand nodes and a hundred thousand volumes: all of them are there after a
//! restart, and what a call costs does not grow with them where it is about one node. Times are told,
//! not judged.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderblock::config::Config;
use cinderblock::controller::{Controller, Registry, Session};
use cinderblock::domain::{
    Answer, BackendCapacity, BackendState, BackendStatus, CapacityRange, CreateSnapshot,
    CreateVolume, Inventory, Parameters, PoolCapacity, Provisioning, Snapshot, Told, Topology,
    Volume, VolumeAgent,
};
use cinderblock::error::{Error, ErrorKind};
use cinderblock::names::{BackendName, CsiName, Handle, LvName, LvmUuid, NodeName, VgName};
use cinderblock::units::{Bytes, ExtentSize};
use tokio::sync::watch;

use crate::support::{CONFIG, thin};

pub(crate) const NODES: usize = 5_000;
pub(crate) const VOLUMES_PER_NODE: usize = 20;
const PAGE: usize = 5_000;

/// A node that makes every volume at once.
#[derive(Debug)]
pub(crate) struct FakeAgent {
    vg: LvmUuid,
    pub(crate) inventory: Mutex<Inventory>,
    session: Mutex<Option<Session>>,
}

impl FakeAgent {
    pub(crate) fn new(number: usize) -> Arc<Self> {
        let vg = LvmUuid::parse(&format!("{number:06}-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov")).unwrap();
        let vg_name = VgName::parse("vg0").unwrap();
        let pool = PoolCapacity {
            size: Bytes::gib(100),
            promised: Bytes::gib(20),
            overprovision_percent: 400,
            data_used_bp: 100,
            metadata_used_bp: 100,
            metadata_guard_bp: 8_500,
            healthy: true,
            queues: false,
            stuck: false,
        };
        let capacity = BackendCapacity {
            extent_size: ExtentSize::new(4 << 20).unwrap(),
            vg_size: Bytes::gib(200),
            reserve: Bytes::ZERO,
            free_runs: vec![vec![25_000]],
            pool: Some(pool),
        };
        let state = BackendState::Ready { vg: vg.clone(), capacity };
        let mut inventory = Inventory { revision: 1, ..Inventory::default() };
        let backend = BackendStatus { volume_group: vg_name.clone(), state };
        inventory.backends.insert(BackendName::parse("fast").unwrap(), backend);
        inventory.vgs.insert(vg.clone(), vg_name);
        let agent = Self { vg, inventory: Mutex::new(inventory), session: Mutex::default() };
        for n in 0..VOLUMES_PER_NODE {
            agent.add(&CsiName::parse(&format!("pvc-{number}-{n}")).unwrap());
        }
        Arc::new(agent)
    }

    fn add(&self, name: &CsiName) -> Told<Volume> {
        let lv = LvName::parse(name.as_str()).unwrap();
        let volume = Volume {
            handle: Handle { vg: self.vg.clone(), lv },
            name: name.clone(),
            size: Bytes::gib(1),
            source: None,
            provisioning: Provisioning::Thin,
            encrypted: false,
            created_unix: 0,
            claim: None,
        };
        let mut inventory = self.inventory.lock().unwrap();
        inventory.volumes.insert(volume.handle.clone(), Arc::new(volume.clone()));
        inventory.revision += 1;
        if let Some(session) = self.session.lock().unwrap().as_ref() {
            session.update(&Arc::new(inventory.clone()));
        }
        Told { value: volume, revision: inventory.revision }
    }

    pub(crate) fn connect(self: &Arc<Self>, registry: &Arc<Registry>, node: &NodeName) {
        let session = registry.connect(node.clone(), Arc::clone(self) as Arc<dyn VolumeAgent>);
        session.update(&Arc::new(self.inventory.lock().unwrap().clone()));
        *self.session.lock().unwrap() = Some(session);
    }
}

fn no<T>() -> Answer<'static, T> {
    Box::pin(async { Err(Error::unimplemented("not in this test")) })
}

impl VolumeAgent for FakeAgent {
    fn create_volume(&self, request: CreateVolume) -> Answer<'_, Told<Volume>> {
        Box::pin(async move { Ok(self.add(&request.name)) })
    }

    fn delete_volume(&self, _: Handle) -> Answer<'_, Told<()>> {
        no()
    }

    fn expand_volume(&self, _: Handle, _: CapacityRange) -> Answer<'_, Told<Bytes>> {
        no()
    }

    fn create_snapshot(&self, _: CreateSnapshot) -> Answer<'_, Told<Snapshot>> {
        no()
    }

    fn delete_snapshot(&self, _: Handle) -> Answer<'_, Told<()>> {
        no()
    }
}

/// Past the harness, which keeps what tests print.
pub(crate) fn figure(text: &str) {
    drop(writeln!(std::io::stderr(), "figure: {text}"));
}

/// Resident memory of this process, in MiB.
pub(crate) fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// What a phase takes: time, and CPU time of this whole process.
pub(crate) struct Phase(Instant, Duration);

impl Phase {
    pub(crate) fn begin() -> Self {
        Self(Instant::now(), cpu())
    }

    pub(crate) fn end(&self) -> String {
        format!("{:.1?} (CPU {:.1?})", self.0.elapsed(), cpu().saturating_sub(self.1))
    }
}

/// utime and stime of this process (proc_pid_stat(5)); Linux counts in hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name, in parentheses, may have spaces.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn on(node: &NodeName) -> Topology {
    Topology { requisite: vec![node.clone()], preferred: vec![node.clone()] }
}

fn all_volumes(controller: &Controller) -> (BTreeSet<Handle>, usize) {
    let (mut seen, mut pages, mut after) = (BTreeSet::new(), 0, None);
    loop {
        let page = controller.volumes(after.as_ref(), None).unwrap();
        pages += 1;
        assert!(page.entries.len() <= PAGE);
        for (_, volume) in &page.entries {
            assert!(seen.insert(volume.handle.clone()), "{} twice", volume.handle);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return (seen, pages),
        }
    }
}

/// A node that is away for long loses its volume groups to the one that has them now, and no sooner.
#[tokio::test(start_paused = true)]
async fn disks_that_were_moved_are_found_on_their_new_node() {
    let (registry, config) = (
        Arc::new(Registry::default()),
        watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap())),
    );
    let controller = Controller::new(Arc::clone(&registry), config.subscribe(), None, false);
    let node = |name: &str| NodeName::parse(name).unwrap();
    let (old, new) = (FakeAgent::new(1), FakeAgent::new(1));
    let handle = old.inventory.lock().unwrap().volumes.keys().next().unwrap().clone();
    old.connect(&registry, &node("old"));
    assert_eq!(controller.volume(&handle).unwrap().0, node("old"));
    new.connect(&registry, &node("new"));
    let unknown = |minutes: u64| {
        let refused = controller.volume(&handle).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "after {minutes} minutes");
        assert!(controller.volumes(None, None).unwrap().entries.is_empty());
    };
    unknown(0);
    tokio::time::sleep(Duration::from_mins(60)).await;
    unknown(60);
    drop(old.session.lock().unwrap().take());
    tokio::time::sleep(Duration::from_mins(9)).await;
    unknown(9);
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(controller.volume(&handle).unwrap().0, node("new"));
    assert_eq!(controller.volumes(None, None).unwrap().entries.len(), VOLUMES_PER_NODE);
    let name = CsiName::parse("pvc-1-0").unwrap();
    assert_eq!(registry.node_with_volume(&name).unwrap(), Some(node("new")));
    // It comes back and still says that it has them: two disks with one identifier.
    old.connect(&registry, &node("old"));
    unknown(0);
}

#[tokio::test]
async fn one_controller_keeps_five_thousand_nodes() {
    let agents: Vec<_> = (0..NODES)
        .map(|n| (NodeName::parse(&format!("node-{n:05}")).unwrap(), FakeAgent::new(n)))
        .collect();
    let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap()));
    let parameters = Parameters::default();
    // The second time as after a restart of the controller.
    for what in ["started", "restarted"] {
        let before = memory();
        let registry = Arc::new(Registry::default());
        let controller = Controller::new(Arc::clone(&registry), config.subscribe(), None, false);
        let start = Phase::begin();
        for (node, agent) in &agents {
            agent.connect(&registry, node);
        }
        let connected = start.end();
        assert_eq!(registry.connected(), NODES);
        let had: usize =
            agents.iter().map(|(_, a)| a.inventory.lock().unwrap().volumes.len()).sum();
        let start = Phase::begin();
        let (volumes, pages) = all_volumes(&controller);
        let listed = start.end();
        assert_eq!((volumes.len(), pages), (had, had.div_ceil(PAGE)));

        let (phase, start) = (Phase::begin(), Instant::now());
        for (node, _) in &agents {
            let capacity = controller.capacity(None, Some(node)).unwrap();
            assert!(capacity.available > Bytes::ZERO);
        }
        let capacities = start.elapsed();
        let start = Instant::now();
        let calls = 1_000;
        for n in 0..calls {
            let (node, _) = &agents[n * 7 % NODES];
            let request = thin(&format!("pvc-{what}-{n}"));
            let (made_on, volume) =
                controller.create_volume(request, on(node), &parameters).await.unwrap();
            assert_eq!(made_on, *node);
            assert_eq!(controller.volume(&volume.handle).unwrap().1.size, volume.size);
        }
        let creates = start.elapsed();
        // As for a claim that is bound at once: the node is ours to choose among all.
        let every: Vec<_> = agents.iter().map(|(node, _)| node.clone()).collect();
        let anywhere = Topology { requisite: every.clone(), preferred: every };
        let start = Instant::now();
        let chosen = 20;
        for n in 0..chosen {
            let request = thin(&format!("pvc-{what}-any-{n}"));
            controller.create_volume(request, anywhere.clone(), &parameters).await.unwrap();
        }
        let choices = start.elapsed();
        let mut large = thin(&format!("pvc-{what}-large"));
        large.range.required = Some(Bytes::gib(1 << 20));
        let refused = controller.create_volume(large, anywhere, &parameters).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        assert!(refused.chain().len() < 1_000, "{} bytes", refused.chain().len());
        figure(&format!(
            "controller {what}: {NODES} nodes with {had} volumes in {connected}, {} MiB more; listed in {listed}; \
             capacity {:?}, create on one node {:?}, on any {:?}; all calls in {}",
            memory().saturating_sub(before),
            capacities / u32::try_from(NODES).unwrap(),
            creates / u32::try_from(calls).unwrap(),
            choices / chosen,
            phase.end(),
        ));
        for (_, agent) in &agents {
            drop(agent.session.lock().unwrap().take());
        }
        // What is known of nodes that are gone is not forgotten, and not taken for true either.
        assert_eq!(registry.connected(), 0);
        let gone = controller.volume(volumes.first().unwrap());
        assert_eq!(gone.err().map(|e| e.kind()), None, "it was seen there");
        let unknown = Handle { vg: agents[0].1.vg.clone(), lv: LvName::parse("none").unwrap() };
        assert_eq!(controller.volume(&unknown).unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
