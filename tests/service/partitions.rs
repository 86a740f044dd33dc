//! Connections that flap and are slow, two controllers at once, a node that is replaced: what was
//! asked for happens once, and what is not seen is not said to be gone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cinderblock::domain::{
    CapacityRange, ContentSource, CowSize, CreateSnapshot, CreateVolume, Parameters, Topology,
};
use cinderblock::error::{ErrorKind, Result};
use cinderblock::names::{CsiName, Handle, NodeName};
use cinderblock::units::Bytes;
use futures_util::future::join_all;

use crate::door::{Dialling, Door};
use crate::support::{CONFIG, Node, restored, thin};
use crate::wire::{Wire, wire};

/// Repeats a call as the sidecars do: until it is answered for good.
async fn insist<T>(repeated: &AtomicUsize, mut call: impl AsyncFnMut() -> Result<T>) -> T {
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Pending) => {
                repeated.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn create(door: &Door, request: &CreateVolume) -> Result<Handle> {
    let (request, none) = (request.clone(), Parameters::default());
    let made = door.controller.create_volume(request, Topology::default(), &none).await?;
    Ok(made.1.handle)
}

fn snapshot_of(volume: &Handle) -> CreateSnapshot {
    let name = CsiName::parse(&format!("snapshot-{}", volume.lv)).unwrap();
    CreateSnapshot { name, source: volume.clone(), cow_size: CowSize::FULL }
}

/// A volume that grows, and one that is made from its snapshot; of both, the first stays.
async fn life(door: &Door, name: &str, repeated: &AtomicUsize) {
    let volume = insist(repeated, async || create(door, &thin(name)).await).await;
    let range = CapacityRange { required: Some(Bytes::gib(2)), limit: None };
    let grown =
        insist(repeated, async || door.controller.expand_volume(volume.clone(), range).await).await;
    assert_eq!(grown, Bytes::gib(2));
    let request = snapshot_of(&volume);
    let taken =
        insist(repeated, async || door.controller.create_snapshot(request.clone()).await).await;
    let snapshot = taken.1.handle;
    let request = restored(&format!("{name}-copy"), &snapshot, 2);
    let copy = insist(repeated, async || create(door, &request).await).await;
    insist(repeated, async || door.controller.delete_snapshot(snapshot.clone()).await).await;
    insist(repeated, async || door.controller.delete_volume(copy.clone()).await).await;
}

/// The names of all volumes of a node, and how many snapshots it has.
fn on(node: &Node) -> (BTreeSet<String>, usize) {
    let inventory = node.agent.inventory().borrow().clone();
    let names = inventory.volumes.values().map(|volume| volume.name.to_string());
    (names.collect(), inventory.snapshots.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_over_a_connection_that_flaps_happens_once() {
    const TIMES: [(Wire, u64); 7] = [
        (Wire::Whole, 200),
        (Wire::Mute, 60),
        (Wire::Cut, 100),
        (Wire::Whole, 580),
        (Wire::Slow, 150),
        (Wire::Frozen, 60),
        (Wire::Cut, 100),
    ];
    let door = Door::open().await;
    let (port, state) = wire(door.address).await;
    let dialling = Dialling::start(port, "node:n1", &door.authority).await;
    door.wait(1).await;
    // Slow enough for calls to be cut on their way.
    dialling.node.host.pace(7);
    let flaps = async {
        for (what, millis) in TIMES {
            state.send_replace(what);
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        state.send_replace(Wire::Whole);
    };
    let names: Vec<_> = (0..12).map(|n| format!("pvc-{n}")).collect();
    let repeated = AtomicUsize::new(0);
    let lives = join_all(names.iter().map(|name| life(&door, name, &repeated)));
    tokio::join!(flaps, lives);
    let repeated = repeated.into_inner();
    assert!(repeated > names.len(), "only {repeated} calls were cut");
    let (found, snapshots) = on(&dialling.node);
    assert_eq!((found, snapshots), (names.into_iter().collect(), 0));
    door.wait(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_that_are_asked_at_once_make_one_volume() {
    let doors = [Door::open().await, Door::open().await];
    let [one, two] = &doors;
    let first = Dialling::start(one.address.port(), "node:n1", &one.authority).await;
    let _second = first.dial_too(two, "node:n1");
    one.wait(1).await;
    two.wait(1).await;
    let names: Vec<_> = (0..10).map(|n| format!("pvc-{n}")).collect();
    let repeated = &AtomicUsize::new(0);
    let ask = async |door, name: &String| {
        insist(repeated, async || create(door, &thin(name)).await).await
    };
    let made = join_all(names.iter().map(|name| async {
        let (a, b) = tokio::join!(ask(one, name), ask(two, name));
        assert_eq!(a, b, "two volumes for one name");
        a
    }))
    .await;
    assert_eq!(on(&first.node).0, names.into_iter().collect());
    // One expands what the other deletes: it has it all, or it is gone.
    let range = CapacityRange { required: Some(Bytes::gib(2)), limit: None };
    join_all(made.iter().map(|volume| async {
        let expand = one.controller.expand_volume(volume.clone(), range);
        let delete = insist(repeated, async || two.controller.delete_volume(volume.clone()).await);
        let (expanded, ()) = tokio::join!(expand, delete);
        let Err(error) = expanded else { return };
        let kinds = [ErrorKind::NotFound, ErrorKind::Unavailable, ErrorKind::Pending];
        assert!(kinds.contains(&error.kind()), "{error:?}");
    }))
    .await;
    for (door, volume) in doors.iter().zip(&made) {
        insist(repeated, async || door.controller.delete_volume(volume.clone()).await).await;
    }
    assert_eq!(on(&first.node), (BTreeSet::new(), 0));
}

/// The controller that a call came to is gone, and with it that it knew whom it had asked; the next one would
/// choose the other node, which has more room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_was_asked_to_make_is_not_made_on_another_by_the_next_controller() {
    let doors = [Door::open().await, Door::open().await];
    let [one, two] = &doors;
    let mut nodes = Vec::new();
    for token in ["node:n1", "node:n2"] {
        let node = Dialling::start(one.address.port(), token, &one.authority).await;
        let too = node.dial_too(two, token);
        nodes.push((node, too));
    }
    one.wait(2).await;
    two.wait(2).await;
    let name = |name: &str| NodeName::parse(name).unwrap();
    let only = Topology { requisite: vec![name("n1")], preferred: Vec::new() };
    let on_first = |request| {
        let none = Parameters::default();
        let only = only.clone();
        async move { one.controller.create_volume(request, only, &none).await }
    };
    on_first(thin("pvc-0")).await.unwrap();
    two.wait_for("pvc-0").await;

    let host = &nodes[0].0.node.host;
    host.stall(Some("lvcreate"));
    let cut = on_first(thin("pvc-1"));
    let told = two.wait_for("pvc-1");
    tokio::select! {
        _ = cut => panic!("it was made though LVM hangs"),
        () = told => {}
    }
    let repeated = AtomicUsize::new(0);
    let again = insist(&repeated, async || create(two, &thin("pvc-1")).await);
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        host.stall(None);
    };
    let (made, ()) = tokio::join!(again, release);
    assert_eq!(two.controller.volume(&made).unwrap().0, name("n1"));
    assert_eq!(on(&nodes[1].0.node).0, BTreeSet::new());
    assert_eq!(on(&nodes[0].0.node).0, ["pvc-0", "pvc-1"].map(str::to_owned).into());
    let making = |node: &Dialling| node.node.agent.inventory().borrow().making.clone();
    assert!(making(&nodes[0].0).is_empty());
    // With nothing in the making, the roomier node is the one.
    let next = create(two, &thin("pvc-2")).await.unwrap();
    assert_eq!(two.controller.volume(&next).unwrap().0, name("n2"));
}

/// A machine that breaks is replaced by one of the same name, and its disks turn up later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_replaced_with_empty_disks_has_not_lost_its_volumes() {
    let door = Door::open().await;
    let port = door.address.port();
    let broken = Dialling::start(port, "node:n1", &door.authority).await;
    door.wait(1).await;
    let volume = create(&door, &thin("pvc-1")).await.unwrap();
    let taken = door.controller.create_snapshot(snapshot_of(&volume)).await.unwrap();
    let snapshot = taken.1.handle;
    let disks = broken.end().await.end().await;
    door.wait(0).await;

    let empty = Node::ready_as("another machine").await;
    let replaced = Dialling::of(empty, port, "node:n1", &door.authority);
    door.wait(1).await;
    let range = CapacityRange { required: Some(Bytes::gib(2)), limit: None };
    let restore = restored("pvc-copy", &snapshot, 1);
    assert!(matches!(restore.source, Some(ContentSource::Snapshot(_))));
    for error in [
        door.controller.volume(&volume).map(drop).unwrap_err(),
        door.controller.delete_volume(volume.clone()).await.unwrap_err(),
        door.controller.expand_volume(volume.clone(), range).await.map(drop).unwrap_err(),
        door.controller.delete_snapshot(snapshot.clone()).await.unwrap_err(),
        create(&door, &restore).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    let other = create(&door, &thin("pvc-2")).await.unwrap();
    assert_ne!(other.vg, volume.vg);
    drop(replaced.end().await);
    door.wait(0).await;

    let node = Node::start(&disks, CONFIG);
    node.wait_ready().await;
    let back = Dialling::of(node, port, "node:n1", &door.authority);
    door.wait(1).await;
    assert_eq!(door.controller.volume(&volume).unwrap().1.size, Bytes::gib(1));
    create(&door, &restore).await.unwrap();
    let unknown = door.controller.delete_volume(other).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unavailable, "{unknown:?}");
    drop(back);
}

/// A broken machine's disks are put into another one. Its volumes are believed to be there as soon as the
/// first says that it has them no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_move_to_another_node_are_found_there() {
    let door = Door::open().await;
    let port = door.address.port();
    let first = Dialling::start(port, "node:n1", &door.authority).await;
    door.wait(1).await;
    let volume = create(&door, &thin("pvc-1")).await.unwrap();
    let snapshot = door.controller.create_snapshot(snapshot_of(&volume)).await.unwrap().1.handle;
    let disks = first.end().await.end().await;
    door.wait(0).await;

    let node = Node::start(&disks, CONFIG);
    node.wait_ready().await;
    let moved = Dialling::of(node, port, "node:n2", &door.authority);
    door.wait(1).await;
    // The first may be back at any moment, with the same disks: a node that lies looks like that.
    let error = door.controller.delete_volume(volume.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.chain().contains("more than one node says"), "{error:?}");

    let empty = Node::ready_as("with other disks").await;
    let back = Dialling::of(empty, port, "node:n1", &door.authority);
    door.wait(2).await;
    let (node, found) = door.controller.volume(&volume).unwrap();
    assert_eq!((node.as_str(), found.size), ("n2", Bytes::gib(1)));
    create(&door, &restored("pvc-copy", &snapshot, 1)).await.unwrap();
    door.controller.delete_snapshot(snapshot).await.unwrap();
    door.controller.delete_volume(volume).await.unwrap();
    assert_eq!(on(&moved.node).0, BTreeSet::from(["pvc-copy".to_owned()]));
    drop(back);
}
