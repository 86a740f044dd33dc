//! Controller and node over a real connection: what comes over it, who is refused, and what is left
//! when it breaks at a bad moment.

use std::collections::BTreeMap;
use std::time::Duration;

use cinderblock::domain::{
    BackendState, CapacityRange, CowSize, CreateSnapshot, Parameters, Topology,
};
use cinderblock::error::ErrorKind;
use cinderblock::names::{CsiName, NodeName};
use cinderblock::tls::Authority;
use cinderblock::units::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::door::{Dialling, Door, now, trust};
use crate::hostile::connects_at_once;
use crate::support::{CONFIG, Node, thin};
use crate::wire::{Wire, wire};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_over_the_connection() {
    let door = Door::open().await;
    let dialling = Dialling::start(door.address.port(), "node:n1", &door.authority).await;
    door.wait(1).await;

    let create = |request| async {
        door.controller.create_volume(request, Topology::default(), &Parameters::default()).await
    };
    let (node, volume) = create(thin("pvc-1")).await.unwrap();
    assert_eq!((node.as_str(), volume.size), ("n1", Bytes::gib(1)));
    // The answer came when the inventory showed it, and a second call finds it there.
    assert_eq!(door.controller.volume(&volume.handle).unwrap().1.as_ref(), &volume);
    assert_eq!(create(thin("pvc-1")).await.unwrap().1, volume);
    let range = CapacityRange { required: Some(Bytes::gib(2)), limit: None };
    let size = door.controller.expand_volume(volume.handle.clone(), range).await.unwrap();
    assert_eq!(size, Bytes::gib(2));
    let name = CsiName::parse("snapshot-1").unwrap();
    let request = CreateSnapshot { name, source: volume.handle.clone(), cow_size: CowSize::FULL };
    let (_, snapshot) = door.controller.create_snapshot(request).await.unwrap();
    assert_eq!(snapshot.size, Bytes::gib(2));
    door.controller.delete_snapshot(snapshot.handle).await.unwrap();
    door.controller.delete_volume(volume.handle.clone()).await.unwrap();
    assert_eq!(door.controller.volume(&volume.handle).unwrap_err().kind(), ErrorKind::NotFound);

    // Refusals keep their kind and their sentence.
    let mut large = thin("pvc-2");
    large.range.required = Some(Bytes::gib(9 << 10));
    let error = create(large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("n1"), "{error}");

    dialling.stop.cancel();
    dialling.task.await.unwrap();
    door.wait(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_known_is_not_connected() {
    let door = Door::open().await;
    let dialling = Dialling::start(door.address.port(), "stolen", &door.authority).await;
    while door.tokens.0.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(door.registry.nodes(), vec![]);
    // A token that the kubelet has renewed is read for the next attempt.
    std::fs::write(dialling.dir.path().join("token"), "node:n1\n").unwrap();
    door.wait(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_not_trusted_never_sees_the_token() {
    let door = Door::open().await;
    let other = Authority::new(now()).unwrap();
    let dialling = Dialling::start(door.address.port(), "node:n1", &other).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(door.tokens.0.lock().unwrap().as_slice(), [] as [&str; 0]);
    // Whom to trust is read anew for each attempt; so is the controller's certificate.
    trust(&dialling.dir.path().join("ca.crt"), &door.authority);
    door.wait(1).await;
    let next = Authority::new(now()).unwrap();
    let (chain, key) = next.sign("localhost", now()).unwrap();
    door.identity.set(&chain, &key).unwrap();
    let late = Dialling::start(door.address.port(), "node:n2", &next).await;
    door.wait(2).await;
    drop((dialling, late));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_name_is_refused() {
    let door = Door::open().await;
    let (chain, key) = door.authority.sign("elsewhere.example", now()).unwrap();
    door.identity.set(&chain, &key).unwrap();
    let _dialling = Dialling::start(door.address.port(), "node:n1", &door.authority).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(door.tokens.0.lock().unwrap().as_slice(), [] as [&str; 0]);
}

/// Though it is of the authority that the node trusts, and for the right name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_out_of_its_time_is_refused() {
    const DAY: i64 = 86_400;
    let door = Door::open().await;
    for (n, made) in [now() - 30 * DAY, now() + 2 * DAY].into_iter().enumerate() {
        let certify = |made| {
            let (chain, key) = door.authority.sign("localhost", made).unwrap();
            door.identity.set(&chain, &key).unwrap();
        };
        certify(made);
        let token = format!("node:n{n}");
        let dialling = Dialling::start(door.address.port(), &token, &door.authority).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!door.tokens.0.lock().unwrap().contains(&token), "the token was sent");
        // It was dialling all the while, and takes the one that is good.
        certify(now());
        door.wait(1).await;
        assert!(door.tokens.0.lock().unwrap().contains(&token));
        drop(dialling.end().await);
        door.wait(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_noisy_peers_delay_nobody() {
    let door = Door::open().await;
    let mut peers = Vec::new();
    for i in 0..100 {
        let mut peer = TcpStream::connect(door.address).await.unwrap();
        if i % 2 == 0 {
            peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        }
        peers.push(peer);
    }
    assert!(connects_at_once(&door).await);
    drop(peers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_lost_leaves_one_volume() {
    let door = Door::open().await;
    let (port, state) = wire(door.address).await;
    let dialling = Dialling::start(port, "node:n1", &door.authority).await;
    door.wait(1).await;
    let topology = Topology::default;
    let none = Parameters::default();

    state.send_replace(Wire::Mute);
    let call = door.controller.create_volume(thin("pvc-1"), topology(), &none);
    let cut = async {
        let mut inventory = dialling.node.agent.inventory();
        inventory.wait_for(|now| !now.volumes.is_empty()).await.unwrap();
        state.send_replace(Wire::Cut);
    };
    let (answer, ()) = tokio::join!(call, cut);
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    door.wait(0).await;

    // Nothing is known of the node now, above all not that something is absent.
    let again = door.controller.create_volume(thin("pvc-1"), topology(), &none).await;
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Unavailable);
    let volume = dialling.node.agent.inventory().borrow().volumes.keys().next().unwrap().clone();
    let unknown = door.controller.volume(&volume).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unavailable);
    let deleted = door.controller.delete_volume(volume.clone()).await;
    assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Unavailable);

    state.send_replace(Wire::Whole);
    door.wait(1).await;
    let (_, made) = door.controller.create_volume(thin("pvc-1"), topology(), &none).await.unwrap();
    assert_eq!(made.handle, volume);
    assert_eq!(door.controller.volumes(None, None).unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_given_up() {
    let door = Door::open().await;
    let (port, state) = wire(door.address).await;
    let dialling = Dialling::start(port, "node:n1", &door.authority).await;
    door.wait(1).await;
    state.send_replace(Wire::Frozen);
    door.wait(0).await;
    // The node gives up too, and comes back on a new connection.
    state.send_replace(Wire::Cut);
    state.send_replace(Wire::Whole);
    door.wait(1).await;
    drop(dialling);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_reach_the_node_and_change_there() {
    let door = Door::open().await;
    let labelled = |value: &str| Some(BTreeMap::from([("disk".to_owned(), value.to_owned())]));
    let config = CONFIG.replace("    reserve: 0%", "    reserve: 0%\n    nodes: { disk: nvme }");
    let host = Node::ready().await.end().await;
    let labels = watch::Sender::new(None);
    let node = Node::start_with(&host, &config, labels.subscribe());
    let agent = node.agent.clone();
    let dialling = Dialling::with(node, door.address.port(), "node:n1", &door.authority, labels);
    let mut inventory = agent.inventory();
    let mut wait = async |ready: bool| {
        let reached = inventory.wait_for(|now| {
            now.revision > 0
                && ready
                    == now.backends.values().any(|b| matches!(b.state, BackendState::Ready { .. }))
        });
        let waited = tokio::time::timeout(Duration::from_secs(30), reached).await;
        assert!(waited.is_ok(), "{:?}", agent.inventory().borrow().backends);
    };
    door.wait(1).await;
    door.labels.0.send_replace(labelled("hdd"));
    wait(false).await;
    door.labels.0.send_replace(labelled("nvme"));
    wait(true).await;
    door.labels.0.send_replace(labelled("hdd"));
    wait(false).await;
    drop(dialling);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_that_are_connected_share_the_work() {
    let door = Door::open().await;
    let one = Dialling::start(door.address.port(), "node:n1", &door.authority).await;
    let two = Dialling::start(door.address.port(), "node:n2", &door.authority).await;
    door.wait(2).await;
    // The same volume group by name, and by identifier each its own.
    let on = |node: &str| Topology {
        requisite: vec![NodeName::parse(node).unwrap()],
        preferred: vec![NodeName::parse(node).unwrap()],
    };
    let none = Parameters::default();
    let (n1, a) = door.controller.create_volume(thin("a"), on("n1"), &none).await.unwrap();
    let (n2, b) = door.controller.create_volume(thin("b"), on("n2"), &none).await.unwrap();
    assert_eq!((n1.as_str(), n2.as_str()), ("n1", "n2"));
    assert_eq!(one.node.agent.inventory().borrow().volumes.len(), 1);
    two.stop.cancel();
    two.task.await.unwrap();
    door.wait(1).await;
    assert_eq!(
        door.controller.delete_volume(b.handle).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    door.controller.delete_volume(a.handle).await.unwrap();
}
