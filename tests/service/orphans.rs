//! What no object of the cluster knows: found after a while, told once, and removed only when a person
//! names it and it is proved once more.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cinderblock::config::Config;
use cinderblock::controller::{
    Cluster, Controller, Mention, Notice, Orphans, Registry, See, Tells,
};
use cinderblock::domain::{Answer, OrphansSeen, VolumeAgent, What};
use cinderblock::error::{Error, ErrorKind, Result};
use cinderblock::lvm::tag::{Claim, FsType};
use cinderblock::metrics::Metrics;
use cinderblock::names::{CsiName, Handle, NodeName};
use cinderblock::operator::{Ask, ask, serve};
use cinderblock::units::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::copies::slow;
use crate::support::{CONFIG, Node, VG, as_thick, cloned, mounted, thin};

const GRACE: Duration = Duration::from_secs(3_600);
const EVERY: Duration = Duration::from_secs(600);

/// What a cluster knows.
#[derive(Debug, Default)]
struct Objects {
    handles: BTreeSet<String>,
    /// Contents that have no snapshot yet: their volumes.
    snapshots_of: BTreeSet<String>,
    claims: BTreeSet<String>,
    without_snapshots: bool,
    away: bool,
    /// How often it was asked.
    lists: u32,
    /// What it knows from that list on.
    later: Option<(u32, Handle)>,
}

#[derive(Clone, Debug, Default)]
struct Api(Arc<Mutex<Objects>>);

impl Api {
    fn set(&self, change: impl FnOnce(&mut Objects)) {
        change(&mut self.0.lock().unwrap());
    }

    fn add(&self, handle: &Handle) {
        self.0.lock().unwrap().handles.insert(handle.to_string());
    }

    fn claims(&self, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.set(|objects| objects.claims = names);
    }

    fn see(&self, see: See<'_>, with_snapshots: bool) -> Result<bool> {
        let mut objects = self.0.lock().unwrap();
        objects.lists += 1;
        let lists = objects.lists;
        if let Some((_, handle)) = objects.later.take_if(|(from, _)| lists >= *from) {
            objects.handles.insert(handle.to_string());
        }
        // Half of it comes, and then nothing.
        objects.handles.iter().for_each(|handle| see(Mention::Handle(handle)));
        if objects.away {
            return Err(Error::unavailable("the API is away"));
        }
        if with_snapshots {
            objects.snapshots_of.iter().for_each(|volume| see(Mention::SnapshotOf(volume)));
        }
        Ok(!objects.without_snapshots)
    }
}

impl Cluster for Api {
    fn volumes<'a>(&'a self, see: See<'a>) -> Answer<'a, ()> {
        Box::pin(async move { self.see(see, false).map(drop) })
    }

    fn snapshots<'a>(&'a self, see: See<'a>) -> Answer<'a, bool> {
        Box::pin(async move { self.see(see, true) })
    }

    fn is_claimed<'a>(&'a self, claim: &'a Claim, _: &'a CsiName) -> Answer<'a, bool> {
        let objects = self.0.lock().unwrap();
        let found = objects.claims.contains(&format!("{}/{}", claim.namespace, claim.name));
        Box::pin(async move { Ok(found) })
    }
}

#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<Notice>>>);

impl Tells for Told {
    fn tell<'a>(
        &'a self,
        notice: &'a Notice,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        self.0.lock().unwrap().push(notice.clone());
        Box::pin(async { Ok(()) })
    }
}

/// A node, a controller that it is connected to, and a cluster that knows nothing.
struct Scene {
    node: Node,
    registry: Arc<Registry>,
    orphans: Arc<Orphans>,
    api: Api,
    told: Told,
    connected: CancellationToken,
    #[expect(dead_code, reason = "ends the looks with the scene")]
    end: tokio_util::sync::DropGuard,
}

fn name(node: &str) -> NodeName {
    NodeName::parse(node).unwrap()
}

fn connect(registry: &Arc<Registry>, as_node: &str, node: &Node) -> CancellationToken {
    let agent: Arc<dyn VolumeAgent> = Arc::new(node.agent.clone());
    let session = registry.connect(name(as_node), agent);
    let mut inventory = node.agent.inventory();
    let until = CancellationToken::new();
    let ends = until.clone();
    tokio::spawn(ends.run_until_cancelled_owned(async move {
        loop {
            let now = Arc::clone(&inventory.borrow_and_update());
            session.update(&now);
            inventory.changed().await.unwrap();
        }
    }));
    until
}

impl Scene {
    async fn new() -> Self {
        Self::of(Node::ready().await)
    }

    fn of(node: Node) -> Self {
        let registry = Arc::new(Registry::default());
        let connected = connect(&registry, "n1", &node);
        let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap()));
        let config = config.subscribe();
        let controller = Arc::new(Controller::new(Arc::clone(&registry), config, None, false));
        let (api, told) = (Api::default(), Told::default());
        let orphans = Orphans::new(Arc::clone(&registry), controller, Box::new(api.clone()), GRACE);
        let orphans = Arc::new(orphans);
        let end = CancellationToken::new();
        let run = Arc::clone(&orphans).run(EVERY, Box::new(told.clone()), end.clone());
        tokio::spawn(run);
        let end = end.drop_guard();
        Self { node, registry, orphans, api, told, connected, end }
    }

    /// A volume of a claim.
    async fn volume(&self, name: &str) -> Handle {
        let claim = Some(Claim { namespace: "db".to_owned(), name: name.to_owned() });
        let mut request = thin(name);
        request.claim = claim;
        self.node.create(request).await.unwrap().handle
    }

    fn seen(&self) -> OrphansSeen {
        self.orphans.seen()
    }

    fn handles(&self) -> Vec<Handle> {
        self.seen().orphans.into_iter().map(|orphan| orphan.handle).collect()
    }

    fn known(&self, handle: &Handle) {
        self.api.add(handle);
    }

    fn forgotten(&self, handle: &Handle) {
        self.api.set(|objects| objects.handles.retain(|known| *known != handle.to_string()));
    }

    async fn remove(&self, handle: &Handle) -> Result<()> {
        self.orphans.remove(std::slice::from_ref(handle)).await?.pop().unwrap().map(drop)
    }

    fn there(&self, handle: &Handle) -> bool {
        self.node.host.world().vg(VG).unwrap().lvs.contains_key(&handle.lv)
    }
}

async fn minutes(count: u64) {
    tokio::time::sleep(Duration::from_secs(count * 60)).await;
}

#[tokio::test(start_paused = true)]
async fn what_no_object_knows_for_a_while_is_an_orphan() {
    let scene = Scene::new().await;
    let (lost, kept) = (scene.volume("pvc-lost").await, scene.volume("pvc-kept").await);
    let snapshot = scene.node.snapshot("snapshot-1", &kept).await.unwrap().handle;
    scene.known(&kept);
    minutes(55).await;
    assert_eq!((scene.handles(), scene.seen().waiting), (vec![], 2), "it may be on its way");
    minutes(20).await;
    assert_eq!(scene.handles(), [lost.clone(), snapshot.clone()]);
    let found = scene.seen().orphans.remove(0);
    assert_eq!((found.node, found.what, found.size), (name("n1"), What::Volume, Bytes::gib(1)));
    assert_eq!(found.claim.unwrap().name, "pvc-lost");
    assert!(!found.unfinished && found.created_unix > 0);
    // Long after: told once, and what is wrong is nothing of the volume's health.
    minutes(600).await;
    let told: Vec<_> = scene.told.0.lock().unwrap().clone();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].sentence.contains("no PersistentVolume knows this volume of 1 GiB"),
        "{told:?}"
    );
    assert!(told[0].sentence.contains("made for claim db/pvc-lost"), "{told:?}");
    assert!(told[1].sentence.contains("no VolumeSnapshotContent knows this snapshot"), "{told:?}");
    // Given an object by hand, it is none any more.
    scene.known(&lost);
    minutes(10).await;
    assert_eq!(scene.handles(), [snapshot]);
    assert!(scene.told.0.lock().unwrap()[2].over);
    // And it takes the whole while again.
    scene.forgotten(&lost);
    minutes(55).await;
    assert_eq!(scene.handles().len(), 1);
    minutes(20).await;
    assert_eq!(scene.handles().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_complete_list_nothing_is_concluded() {
    let scene = Scene::new().await;
    let volume = scene.volume("pvc-1").await;
    scene.known(&volume);
    minutes(11).await;
    scene.api.set(|objects| objects.away = true);
    scene.forgotten(&volume);
    minutes(600).await;
    let seen = scene.seen();
    assert_eq!((seen.orphans.len(), seen.waiting), (0, 0));
    assert!(
        seen.failure.unwrap().contains("away")
            && seen.looked.unwrap() > Duration::from_secs(30_000)
    );
    // It counts from when it was first seen to be absent, not from when the API went.
    scene.api.set(|objects| objects.away = false);
    minutes(55).await;
    assert_eq!((scene.handles(), scene.seen().failure), (vec![], None));
    minutes(20).await;
    assert_eq!(scene.handles(), std::slice::from_ref(&volume));
    // Nothing is removed on what was known once.
    scene.api.set(|objects| objects.away = true);
    let error = scene.remove(&volume).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(scene.there(&volume));
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_not_judged_where_the_cluster_has_none() {
    let scene = Scene::new().await;
    let volume = scene.volume("pvc-1").await;
    let snapshot = scene.node.snapshot("snapshot-1", &volume).await.unwrap().handle;
    scene.api.set(|objects| objects.without_snapshots = true);
    minutes(75).await;
    assert_eq!((scene.handles(), scene.seen().snapshots), (vec![volume.clone()], false));
    let error = scene.remove(&snapshot).await.unwrap_err();
    assert!(error.to_string().contains("no snapshot API"), "{error}");
    // One whose content has no id yet is on its way.
    scene.api.set(|objects| {
        objects.without_snapshots = false;
        objects.snapshots_of.insert(volume.to_string());
    });
    minutes(150).await;
    assert_eq!(scene.handles(), [volume]);
    scene.api.set(|objects| objects.snapshots_of.clear());
    minutes(75).await;
    assert!(scene.handles().contains(&snapshot));
    scene.remove(&snapshot).await.unwrap();
    assert!(!scene.there(&snapshot));
}

/// A copy of hours is nobody's orphan as long as its claim waits for it.
#[tokio::test(start_paused = true)]
async fn what_is_being_made_belongs_to_its_claim() {
    let scene = Scene::of(slow().await);
    let source = scene.volume("pvc-source").await;
    scene.known(&source);
    scene.node.expand(&source, Bytes::gib(10)).await.unwrap();
    scene.node.write(&source, mounted(FsType::Ext4), "data").await;
    let mut request = as_thick(cloned("pvc-copy", &source));
    request.range.required = Some(Bytes::gib(10));
    request.claim = Some(Claim { namespace: "db".to_owned(), name: "copy".to_owned() });
    scene.node.create(request).await.unwrap_err();
    scene.api.claims(&["db/copy"]);
    minutes(90).await;
    assert_eq!((scene.handles(), scene.seen().waiting), (vec![], 0));
    scene.api.claims(&[]);
    minutes(75).await;
    let seen = scene.seen().orphans;
    assert_eq!(seen.len(), 1);
    assert!(seen[0].unfinished && seen[0].name.as_str() == "pvc-copy", "{seen:?}");
    let copy = seen[0].handle.clone();
    scene.remove(&copy).await.unwrap();
    minutes(5).await;
    assert!(!scene.there(&copy) && scene.there(&source));
    assert_eq!(scene.node.agent.copies().running, 0);
}

#[tokio::test(start_paused = true)]
async fn only_an_orphan_that_is_named_is_removed() {
    let scene = Scene::new().await;
    let (lost, other) = (scene.volume("pvc-lost").await, scene.volume("pvc-other").await);
    scene.node.stage(&lost, mounted(FsType::Ext4)).await.unwrap();
    let young = |error: Error| error.to_string().contains("has to be so for 3600s");
    assert!(young(scene.remove(&lost).await.unwrap_err()));
    minutes(75).await;
    assert_eq!(scene.handles(), [lost.clone(), other.clone()]);
    let refused = async |scene: &Scene, why: &str| {
        let error = scene.remove(&lost).await.unwrap_err();
        assert!(error.chain().contains(why), "{error}");
        assert!(scene.there(&lost));
    };
    // Somebody has given it an object since it was last looked.
    scene.known(&lost);
    refused(&scene, "an object of the cluster knows it").await;
    scene.forgotten(&lost);
    refused(&scene, "has to be so for").await;
    minutes(75).await;
    scene.api.claims(&["db/pvc-lost"]);
    refused(&scene, "the claim db/pvc-lost").await;
    scene.api.claims(&[]);
    refused(&scene, "mounted").await;
    scene.node.unstage(&lost).await.unwrap();
    // Another node sees the same disks.
    let second = connect(&scene.registry, "n2", &scene.node);
    minutes(1).await;
    assert_eq!(scene.handles(), [], "nobody is believed");
    refused(&scene, "more than one node says that it has volume group").await;
    drop((scene, second));

    let scene = Scene::new().await;
    let (lost, other) = (scene.volume("pvc-lost").await, scene.volume("pvc-other").await);
    minutes(75).await;
    scene.remove(&lost).await.unwrap();
    assert!(!scene.there(&lost) && scene.there(&other));
    assert_eq!(scene.handles(), [other]);
    let error = scene.remove(&lost).await.unwrap_err();
    assert!(error.to_string().contains("no node that is connected has it"), "{error}");
}

/// While the one before it is removed, which may take minutes.
#[tokio::test(start_paused = true)]
async fn one_that_gets_an_object_meanwhile_stays() {
    let scene = Scene::new().await;
    let (lost, kept) = (scene.volume("pvc-1").await, scene.volume("pvc-2").await);
    minutes(75).await;
    let handles = [lost.clone(), kept.clone()];
    assert_eq!(scene.handles(), handles);
    // The two lists of the first look do not have it.
    scene.api.set(|objects| objects.later = Some((objects.lists + 3, kept.clone())));
    let removed = scene.orphans.remove(&handles).await.unwrap();
    assert!(!scene.there(&lost) && scene.there(&kept), "{removed:?}");
    let error = removed[1].as_ref().unwrap_err().to_string();
    assert!(removed[0].is_ok() && error.contains("an object of the cluster knows it"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_has_no_orphans_for_now() {
    let scene = Scene::new().await;
    let lost = scene.volume("pvc-lost").await;
    minutes(75).await;
    assert_eq!(scene.handles(), std::slice::from_ref(&lost));
    scene.connected.cancel();
    minutes(1).await;
    assert_eq!((scene.handles(), scene.seen().away), (vec![], vec![name("n1")]));
    let lists = scene.api.0.lock().unwrap().lists;
    minutes(60).await;
    assert_eq!(scene.api.0.lock().unwrap().lists, lists, "nothing is there to ask for");
    let error = scene.remove(&lost).await.unwrap_err();
    assert!(
        error.to_string().contains("has to be so for") || error.to_string().contains("no node")
    );
    let _connected = connect(&scene.registry, "n1", &scene.node);
    minutes(15).await;
    assert_eq!(scene.handles(), [lost]);
    assert_eq!(scene.told.0.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn metrics_and_the_command_line_show_them() {
    let scene = Scene::new().await;
    let lost = scene.volume("pvc-lost").await;
    let metrics = Metrics::new("lvm.example");
    let orphans = Arc::clone(&scene.orphans);
    metrics.show_orphans(move || orphans.seen());
    assert!(!metrics.text().contains("cinderblock_orphans{"));
    minutes(75).await;
    let labels = "node=\"n1\",volume_group=\"vg0\",kind=\"volume\"";
    for line in [
        format!("cinderblock_orphans{{{labels}}} 1.0"),
        format!("cinderblock_orphan_bytes{{{labels}}} 1073741824.0"),
        "cinderblock_orphans_looked_seconds_ago 3".to_owned(),
    ] {
        assert!(metrics.text().contains(&line), "{line} not in {}", metrics.text());
    }

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("operator.sock");
    let command = async |remove: Vec<Handle>| {
        ask(Ask { socket: socket.clone(), remove }, 86_400 * 365 * 80).await
    };
    let error = command(vec![]).await.unwrap_err();
    assert!(error.to_string().contains("run this in a controller's pod"), "{error}");
    let listener = cinderblock::net::unix(&socket).unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(listener, Arc::clone(&scene.orphans), stop.clone()));
    let listed = command(vec![]).await.unwrap();
    assert!(listed.contains(&lost.to_string()) && listed.contains("db/pvc-lost"), "{listed}");
    scene.known(&lost);
    let error = command(vec![lost.clone()]).await.unwrap_err();
    assert!(error.to_string().contains("an object of the cluster knows it"), "{error}");
    scene.forgotten(&lost);
    minutes(85).await;
    assert_eq!(command(vec![lost.clone()]).await.unwrap(), format!("removed {lost}\n"));
    assert!(!scene.there(&lost));
    let listed = command(vec![]).await.unwrap();
    assert!(listed.starts_with("0 orphans, looked"), "{listed}");
    stop.cancel();
    served.await.unwrap().unwrap();
}
