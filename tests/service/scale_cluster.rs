//! What five thousand nodes and a hundred thousand volumes are for the Kubernetes API, and what hundreds
//! of nodes over real TLS are for one controller. Requests are counted and judged; times are told.

use std::sync::Arc;
use std::time::Duration;

use cinderblock::config::Config;
use cinderblock::controller::{Controller, Notice, Orphans, Registry, Tells};
use cinderblock::domain::{Answer, OrphansSeen};
use cinderblock::kube::{Objects, TokenReviews};
use cinderblock::link::Authenticator;
use cinderblock::metrics::Metrics;
use cinderblock::names::NodeName;
use cinderblock_proto::agent::v1 as pb;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::door::Door;
use crate::fake_api::{Asked, api, page};
use crate::peers::FakeNode;
use crate::scale::{FakeAgent, NODES, Phase, VOLUMES_PER_NODE, figure, memory};
use crate::support::CONFIG;
use crate::versions::{inventory, made};

/// Objects of a page, as `kube::objects` asks for them.
const PAGE: usize = 500;
/// Nodes over TLS.
const DIALLING: usize = 300;
/// What is greeted at a time: less than an address may have of connections that are not known yet.
const AT_A_TIME: usize = 32;

/// Tokens are those of nodes, as `node:NAME`.
fn review((method, path, body): &Asked) -> (u16, Value) {
    assert_eq!((method.as_str(), path.as_str()), ("POST", REVIEWS));
    let token = body["spec"]["token"].as_str().unwrap();
    let node = token.strip_prefix("node:").unwrap();
    let status = json!({
        "authenticated": true,
        "audiences": ["cinderblock"],
        "user": {
            "username": "system:serviceaccount:ns:node",
            "extra": {
                "authentication.kubernetes.io/node-name": [node],
                "authentication.kubernetes.io/pod-name": ["x"],
            },
        },
    });
    let kind = "TokenReview";
    let version = "authentication.k8s.io/v1";
    (201, json!({"apiVersion": version, "kind": kind, "spec": {}, "status": status}))
}

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// How often an API was asked that, as an operator reads it.
fn counted(metrics: &Metrics, verb: &str, resource: &str) -> usize {
    let start = format!(
        "cinderblock_kubernetes_requests_total{{verb=\"{verb}\",resource=\"{resource}\"}} "
    );
    let text = metrics.text();
    let line = text.lines().find_map(|line| line.strip_prefix(start.as_str()));
    line.map_or(0, |count| count.parse().unwrap())
}

/// Tells nobody: nothing is to be told here.
#[derive(Debug)]
struct Nobody;

impl Tells for Nobody {
    fn tell<'a>(&'a self, notice: &'a Notice) -> Answer<'a, ()> {
        panic!("{notice:?}")
    }
}

#[tokio::test]
async fn five_thousand_greetings_are_as_many_token_reviews() {
    let metrics = Metrics::new("lvm.example");
    let (api, seen) = api(&metrics, review);
    let reviews: Arc<dyn Authenticator> = Arc::new(TokenReviews::new(api, "ns", "node"));
    let phase = Phase::begin();
    let mut greetings = JoinSet::new();
    for n in 0..NODES {
        let reviews = Arc::clone(&reviews);
        greetings.spawn(async move {
            let peer = reviews.authenticate(&format!("node:node-{n:05}")).await.unwrap();
            assert_eq!(peer.node.as_str(), format!("node-{n:05}"));
        });
    }
    greetings.join_all().await;
    assert_eq!(seen.all().len(), NODES, "one for each, and nothing else");
    assert_eq!(counted(&metrics, "create", "tokenreviews"), NODES);
    figure(&format!("{NODES} nodes greet: {NODES} TokenReviews in {}", phase.end()));
}

/// A page of the `PersistentVolumes` of all nodes.
fn volumes(path: &str) -> (u16, Value) {
    let query = path.split_once('?').unwrap().1;
    let of =
        |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    assert_eq!(of("limit"), Some("500"), "{path}");
    let from: usize = of("continue").map_or(0, |next| next.parse().unwrap());
    let all = NODES * VOLUMES_PER_NODE;
    let to = all.min(from + PAGE);
    let volume = |n: usize| {
        let (node, volume) = (n / VOLUMES_PER_NODE, n % VOLUMES_PER_NODE);
        let handle = format!("{node:06}-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov/pvc-{node}-{volume}");
        json!({
            "metadata": {"name": format!("pvc-{node}-{volume}")},
            "spec": {"csi": {"driver": "lvm.example", "volumeHandle": handle}},
        })
    };
    let items: Vec<_> = (from..to).map(volume).collect();
    let next = if to < all { to.to_string() } else { String::new() };
    page("PersistentVolumeList", &next, &items.into())
}

#[tokio::test]
async fn a_look_for_orphans_reads_each_page_once() {
    let metrics = Metrics::new("lvm.example");
    let (api, seen) = api(&metrics, |(method, path, _)| {
        assert_eq!(method, "GET");
        match path.split('?').next().unwrap() {
            "/api/v1/persistentvolumes" => volumes(path),
            "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents" => {
                page("VolumeSnapshotContentList", "", &json!([]))
            }
            other => panic!("asked for {other}"),
        }
    });
    let registry = Arc::new(Registry::default());
    let agents: Vec<_> = (0..NODES).map(FakeAgent::new).collect();
    for (n, agent) in agents.iter().enumerate() {
        agent.connect(&registry, &NodeName::parse(&format!("node-{n:05}")).unwrap());
    }
    let config = watch::Sender::new(Arc::new(Config::parse(CONFIG).unwrap()));
    let controller = Controller::new(Arc::clone(&registry), config.subscribe(), None, false);
    let objects = Box::new(Objects::new(api));
    let orphans = Orphans::new(registry, Arc::new(controller), objects, Duration::ZERO);
    let orphans = Arc::new(orphans);
    let (phase, before) = (Phase::begin(), memory());
    let stop = CancellationToken::new();
    // The first look is at once, the next one not in this test.
    let run = Arc::clone(&orphans).run(Duration::from_hours(1), Box::new(Nobody), stop.clone());
    let run = tokio::spawn(run);
    let seen_by = |it: &OrphansSeen| (it.orphans.len(), it.waiting);
    let wait = async {
        while orphans.seen().looked.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(5), wait).await.unwrap();
    let took = phase.end();
    assert_eq!(seen_by(&orphans.seen()), (0, 0), "all are known");
    stop.cancel();
    run.await.unwrap();
    let pages = NODES * VOLUMES_PER_NODE / PAGE;
    assert_eq!(counted(&metrics, "list", "persistentvolumes"), pages);
    assert_eq!(counted(&metrics, "list", "volumesnapshotcontents"), 1);
    assert_eq!(seen.all().len(), pages + 1, "nothing for a node or a volume");
    figure(&format!(
        "a look for orphans among {} PersistentVolumes: {} requests in {took}, {} MiB more",
        NODES * VOLUMES_PER_NODE,
        pages + 1,
        memory().saturating_sub(before)
    ));
}

/// What a node of its own volume group tells.
fn telling(number: usize) -> pb::InventoryEvent {
    let vg = format!("{number:06}-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov");
    let mut event = inventory();
    let backend = &mut event.backends.as_mut().unwrap().backends[0];
    let Some(pb::backend::State::Ready(ready)) = &mut backend.state else { panic!("{backend:?}") };
    ready.volume_group_uuid.clone_from(&vg);
    event.volume_groups.as_mut().unwrap().names = [(vg.clone(), "vg0".to_owned())].into();
    let volume = |n: usize| {
        let volume = made(&format!("pvc-{number}-{n}"));
        pb::Volume { handle: format!("{vg}/pvc-{number}-{n}"), ..volume }
    };
    event.volumes = (0..VOLUMES_PER_NODE).map(volume).collect();
    event
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_controller_hears_hundreds_of_nodes_over_tls() {
    let metrics = Metrics::new("lvm.example");
    let (api, seen) = api(&metrics, review);
    let door = Door::open_knowing(Arc::new(TokenReviews::new(api, "ns", "node"))).await;
    let (phase, before) = (Phase::begin(), memory());
    let mut serving = Vec::new();
    for first in (0..DIALLING).step_by(AT_A_TIME) {
        let connecting = (first..DIALLING.min(first + AT_A_TIME)).map(|n| {
            let (door, node) = (&door, FakeNode::telling(telling(n)));
            async move { node.connect(door, &format!("node-{n:05}")).await.abort_handle() }
        });
        serving.extend(futures_util::future::join_all(connecting).await);
    }
    let greeted = phase.end();
    let all = DIALLING * VOLUMES_PER_NODE;
    let wait = async {
        while door.controller.volumes(None, None).unwrap().entries.len() < all.min(5_000)
            || door.registry.connected() < DIALLING
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(3), wait).await.unwrap();
    let told = door.registry.nodes();
    let volumes: usize = told.iter().map(|(_, inventory, _)| inventory.volumes.len()).sum();
    assert_eq!((told.len(), volumes), (DIALLING, all));
    assert!(told.iter().all(|(_, inventory, connected)| *connected && inventory.vgs.len() == 1));
    assert_eq!(seen.all().len(), DIALLING, "one TokenReview for each, and nothing else");
    assert_eq!(counted(&metrics, "create", "tokenreviews"), DIALLING);
    figure(&format!(
        "{DIALLING} nodes with {all} volumes over TLS: greeted in {greeted}, all told in {}, {} MiB more, both ends",
        phase.end(),
        memory().saturating_sub(before)
    ));
    for task in serving {
        task.abort();
    }
    door.wait(0).await;
}
