//! Nodes that lie and peers that are none, over real connections: what is believed, and what bounds
//! them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use cinderblock::domain::{CowSize, CreateSnapshot, Parameters, Topology};
use cinderblock::error::ErrorKind;
use cinderblock::names::{CsiName, Handle, LvmUuid, NodeName};
use cinderblock_proto::agent::v1 as pb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::door::{Dialling, Door};
use crate::peers::{FakeNode, dial, greet, hello};
use crate::support::{is_quick, thin};

/// An inventory with these volume groups and volumes.
fn having(revision: u64, vgs: &[&str], volumes: &[&Handle]) -> pb::InventoryEvent {
    let names = vgs.iter().map(|vg| ((*vg).to_owned(), "vg0".to_owned())).collect();
    let volume = |handle: &&Handle| pb::Volume {
        handle: handle.to_string(),
        name: handle.lv.to_string(),
        ..pb::Volume::default()
    };
    pb::InventoryEvent {
        revision,
        anew: true,
        backends: Some(pb::Backends::default()),
        volume_groups: Some(pb::VolumeGroups { names }),
        volumes: volumes.iter().map(volume).collect(),
        ..pb::InventoryEvent::default()
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("in vain: {what}");
}

fn only(node: &str) -> Topology {
    let node = NodeName::parse(node).unwrap();
    Topology { requisite: vec![node.clone()], preferred: vec![node] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_only_for_its_own_volume_groups() {
    let door = Door::open().await;
    let none = Parameters::default();
    let honest = Dialling::start(door.address.port(), "node:n1", &door.authority).await;
    door.wait(1).await;
    let create = |name: &'static str, node: &'static str| {
        door.controller.create_volume(thin(name), only(node), &none)
    };
    let (_, volume) = create("pvc-1", "n1").await.unwrap();
    let (own, there) = (LvmUuid::derived("liar"), volume.handle.vg.clone());

    // It tells of volumes of a volume group that it does not even say it has.
    let liar = FakeNode::telling(having(1, &[own.as_str()], &[&volume.handle]));
    let _serving = liar.connect(&door, "n2").await;
    door.wait(2).await;
    let node_of = || door.controller.volume(&volume.handle).map(|(node, _)| node.to_string());
    assert_eq!(node_of().unwrap(), "n1");
    assert_eq!(door.controller.volumes(None, None).unwrap().entries.len(), 1);

    // It says that it has the other's volume group: then nobody is believed, and nobody is asked.
    liar.tell(having(2, &[own.as_str(), there.as_str()], &[&volume.handle]));
    until("the dispute", || node_of().is_err()).await;
    for error in [
        node_of().unwrap_err(),
        door.controller.delete_volume(volume.handle.clone()).await.unwrap_err(),
        create("pvc-1", "n1").await.unwrap_err(),
        create("pvc-2", "n1").await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("n1 and n2") && text.contains(there.as_str()), "{text}");
    }
    assert_eq!(door.registry.disputed(), 1);
    assert_eq!(liar.removed.lock().unwrap().as_slice(), [] as [&str; 0]);

    // It takes that back: the other's are as they were, without another word of it.
    liar.tell(having(3, &[own.as_str()], &[]));
    until("peace", || door.registry.disputed() == 0).await;
    assert_eq!(node_of().unwrap(), "n1");
    assert_eq!(create("pvc-1", "n1").await.unwrap().1, volume);
    create("pvc-2", "n1").await.unwrap();
    door.controller.delete_volume(volume.handle.clone()).await.unwrap();
    assert_eq!(node_of().unwrap_err().kind(), ErrorKind::NotFound);
    drop(honest);
}

/// While its node is away as well: what it last said counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_group_is_not_taken_over_while_its_node_is_away() {
    let door = Door::open().await;
    let honest = Dialling::start(door.address.port(), "node:n1", &door.authority).await;
    door.wait(1).await;
    let none = Parameters::default();
    let (_, volume) = door.controller.create_volume(thin("a"), only("n1"), &none).await.unwrap();
    honest.stop.cancel();
    door.wait(0).await;
    let liar = FakeNode::telling(having(1, &[volume.handle.vg.as_str()], &[]));
    let _serving = liar.connect(&door, "n2").await;
    door.wait(1).await;
    let error = door.controller.delete_volume(volume.handle).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("n1 (not connected now) and n2"), "{error}");
    assert_eq!(liar.removed.lock().unwrap().as_slice(), [] as [&str; 0]);
}

/// A claim would keep such an id for ever, and its deletion would be that of another's volume.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_is_not_the_nodes_own_is_not_taken_from_it() {
    let door = Door::open().await;
    let none = Parameters::default();
    let honest = Dialling::start(door.address.port(), "node:n1", &door.authority).await;
    door.wait(1).await;
    let (_, volume) = door.controller.create_volume(thin("a"), only("n1"), &none).await.unwrap();
    let own = LvmUuid::derived("liar");
    let mine = |lv: &str| Handle::parse(&format!("{own}/{lv}")).unwrap();
    let mut event = having(1, &[own.as_str()], &[&mine("b")]);
    event.backends = Some(pb::Backends {
        backends: vec![pb::Backend {
            name: "fast".to_owned(),
            volume_group: "vg0".to_owned(),
            state: Some(pb::backend::State::Ready(pb::Ready {
                volume_group_uuid: own.to_string(),
                extent_size_bytes: 4 << 20,
                volume_group_bytes: 1 << 40,
                free: vec![pb::ready::Runs { extents: vec![1 << 18] }],
                ..pb::Ready::default()
            })),
        }],
    });
    let liar = FakeNode::telling(event);
    let _serving = liar.connect(&door, "n2").await;
    door.wait(2).await;
    let answer = |handle: &Handle, name: &str| pb::Volume {
        handle: handle.to_string(),
        name: name.to_owned(),
        size_bytes: 1 << 30,
        ..pb::Volume::default()
    };
    let elsewhere = Handle::parse(&format!("{}/new", volume.handle.vg)).unwrap();
    let unseen =
        Handle::parse(&format!("{}/new", LvmUuid::derived("of a node that is away"))).unwrap();
    for wrong in [
        answer(&volume.handle, "new"),
        answer(&volume.handle, "a"),
        answer(&elsewhere, "new"),
        answer(&unseen, "new"),
        answer(&mine("another"), "new"),
        answer(&mine("new"), "other"),
    ] {
        *liar.volume.lock().unwrap() = wrong.clone();
        let made = door.controller.create_volume(thin("new"), only("n2"), &none).await;
        assert_eq!(made.unwrap_err().kind(), ErrorKind::Unavailable, "{wrong:?}");
    }
    *liar.volume.lock().unwrap() = answer(&mine("new"), "new");
    let made = door.controller.create_volume(thin("new"), only("n2"), &none).await.unwrap();
    assert_eq!(made.0.as_str(), "n2");

    let snapshot = |handle: &str, source: &Handle| pb::Snapshot {
        handle: handle.to_owned(),
        name: "snapshot-1".to_owned(),
        source: source.to_string(),
        ..pb::Snapshot::default()
    };
    let take = || {
        let name = CsiName::parse("snapshot-1").unwrap();
        let request = CreateSnapshot { name, source: mine("b"), cow_size: CowSize::FULL };
        door.controller.create_snapshot(request)
    };
    for wrong in [
        snapshot(&format!("{}/snap-1", volume.handle.vg), &mine("b")),
        snapshot(&format!("{own}/snap-2"), &mine("b")),
        snapshot(&format!("{own}/snap-1"), &mine("c")),
    ] {
        *liar.snapshot.lock().unwrap() = wrong.clone();
        assert_eq!(take().await.unwrap_err().kind(), ErrorKind::Unavailable, "{wrong:?}");
    }
    *liar.snapshot.lock().unwrap() = snapshot(&format!("{own}/snap-1"), &mine("b"));
    take().await.unwrap();

    // What a peer says at length is cut.
    let range = thin("a").range;
    let error = door.controller.expand_volume(mine("b"), range).await.unwrap_err();
    assert!(error.to_string().len() < 5_000, "{}", error.to_string().len());
    drop(honest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_tells_has_its_bounds() {
    let door = Door::open().await;
    let own = LvmUuid::derived("liar");
    let many = |count: usize, of: usize| {
        let volume = |n: usize| pb::Volume {
            handle: format!("{own}/v{}", n + of),
            name: "x".to_owned(),
            ..pb::Volume::default()
        };
        pb::InventoryEvent {
            revision: 1,
            more: true,
            volumes: (0..count).map(volume).collect(),
            ..pb::InventoryEvent::default()
        }
    };
    let groups = |count: usize| {
        let names =
            (0..count).map(|n| (LvmUuid::derived(&n.to_string()).to_string(), "v".to_owned()));
        pb::InventoryEvent {
            volume_groups: Some(pb::VolumeGroups { names: names.collect() }),
            ..having(1, &[], &[])
        }
    };
    // One volume after the other without an end; more than a message may hold; too many groups;
    // and names that are none.
    let without_end: Vec<_> = (0..9).map(|n| many(4_000, n * 4_000)).collect();
    let mut nameless = having(1, &[own.as_str()], &[]);
    nameless.volumes.push(pb::Volume { handle: "../../etc".to_owned(), ..pb::Volume::default() });
    let cases = [without_end, vec![many(100_000, 0)], vec![groups(1_025)], vec![nameless]];
    for (n, events) in cases.into_iter().enumerate() {
        let liar = FakeNode::telling(having(1, &[own.as_str()], &[]));
        liar.events.send_replace(events);
        let serving = liar.connect(&door, "n2").await;
        let ended = tokio::time::timeout(Duration::from_secs(30), serving).await;
        assert!(ended.is_ok(), "case {n} goes on");
        assert_eq!(door.registry.connected(), 0, "case {n}");
    }
    // The same within bounds.
    let liar = FakeNode::telling(groups(1_024));
    let serving = liar.connect(&door, "n2").await;
    door.wait(1).await;
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_has_few_connections() {
    let door = Door::open().await;
    let own = LvmUuid::derived("liar");
    let liar = FakeNode::telling(having(1, &[own.as_str()], &[]));
    let mut serving = Vec::new();
    for n in 1..=6 {
        serving.push(liar.connect(&door, "n2").await);
        // Welcome comes before the place among the node's connections, which is by age.
        until("it has its place", || liar.events.receiver_count() >= n).await;
    }
    until("two connections too many", || serving.iter().filter(|s| s.is_finished()).count() == 2)
        .await;
    assert!(serving.iter().take(2).all(tokio::task::JoinHandle::is_finished));
    door.wait(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_does_not_outlive_its_token() {
    let door = Door::open_asking(Duration::from_millis(200)).await;
    let dialling = Dialling::start(door.address.port(), "node:n1", &door.authority).await;
    let file = dialling.dir.path().join("token");
    door.wait(1).await;
    // All of it at once, as the kubelet does it.
    let renew = |token: &str| {
        let next = dialling.dir.path().join("next");
        std::fs::write(&next, token).unwrap();
        std::fs::rename(&next, &file).unwrap();
    };
    let asked = |token: &str| door.tokens.0.lock().unwrap().iter().filter(|t| *t == token).count();
    // The same token, and one that the kubelet has renewed, on one connection; and while nobody can
    // tell whose a token is.
    until("it was asked again", || asked("node:n1") > 2).await;
    renew("nobody answers\n");
    until("it was asked in vain", || asked("nobody answers") > 2).await;
    assert_eq!(door.registry.connected(), 1);
    // The pod was deleted, or all that is left is an old token.
    renew("expired");
    door.wait(0).await;
    assert!(asked("expired") > 0);
    // A good one again; and then one of another node, as which it has to connect anew.
    renew("node:n1");
    door.wait(1).await;
    renew("node:n2");
    until("it is another node", || {
        let nodes = door.registry.nodes();
        let on =
            |name: &str| nodes.iter().any(|(n, _, connected)| n.as_str() == name && *connected);
        on("n2") && !on("n1")
    })
    .await;
    // Who cannot say who it is, is not kept.
    let liar = FakeNode::telling(having(1, &[], &[]));
    let serving = liar.connect(&door, "n3").await;
    assert!(tokio::time::timeout(Duration::from_secs(30), serving).await.is_ok());
}

/// Sends bytes, one now and then, and says when the other side has had enough.
async fn trickle(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), bytes: &[u8]) {
    let mut answer = [0; 4096];
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        let pause = Duration::from_millis(700);
        let read = tokio::time::timeout(pause, stream.read(&mut answer)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greetings_that_come_to_nothing_are_given_up() {
    let door = Door::open().await;
    let tcp = async || TcpStream::connect(door.address).await.unwrap();
    let given_up = async {
        // Half of TLS, and then nothing; or a byte now and then.
        let mut half = tcp().await;
        half.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).await.unwrap();
        let mut slow = tcp().await;
        let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0; 64]].concat();
        // All of TLS, and then the same.
        let mut silent = dial(&door).await;
        let mut hesitant = dial(&door).await;
        let (mut a, mut b) = ([0; 16], [0; 16]);
        tokio::join!(
            async { drop(half.read(&mut a).await) },
            trickle(&mut slow, &hello),
            async { drop(silent.read(&mut b).await) },
            trickle(&mut hesitant, &[0, 0, 4, 0, 10]),
        )
    };
    let waited = tokio::time::timeout(Duration::from_secs(40), given_up).await;
    assert!(waited.is_ok());
    // What is too long, is no message or no HTTP/2 is refused at once.
    let refused = async |_| {
        for rubbish in [&[0xff; 8][..], &[0, 0, 0, 2, 0xff, 0xff], b"GET / HTTP/1.1\r\n\r\n"] {
            let mut peer = dial(&door).await;
            peer.write_all(rubbish).await.unwrap();
            let mut rest = Vec::new();
            drop(peer.read_to_end(&mut rest).await);
        }
        let mut known = greet(&door, &hello("node:n2")).await;
        known.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        drop(known.read_to_end(&mut Vec::new()).await);
    };
    assert!(is_quick(Duration::from_secs(8), refused).await);
    assert_eq!(door.registry.connected(), 0);
    assert!(door.tokens.0.lock().unwrap().iter().all(|token| token == "node:n2"));
}

/// Connects from an address of its own, in 127.0.0.0/8.
pub(crate) async fn from(address: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((IpAddr::V4(address), 0)))?;
    socket.connect(to).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_from_elsewhere_keep_no_node_out() {
    let door = Door::open().await;
    let mut peers = Vec::new();
    for _ in 0..1_000 {
        // The system's queue may be full for a moment.
        if let Ok(peer) = from(Ipv4Addr::new(127, 0, 0, 2), door.address).await {
            peers.push(peer);
        }
    }
    assert!(peers.len() > 900);
    assert!(connects_at_once(&door).await);
    drop(peers);
}

/// Whether a node gets in without waiting for others.
pub(crate) async fn connects_at_once(door: &Door) -> bool {
    let mut nodes = Vec::new();
    let connect = async |n| {
        nodes.push(
            Dialling::start(door.address.port(), &format!("node:n{n}"), &door.authority).await,
        );
        door.wait(n).await;
    };
    is_quick(Duration::from_secs(5), connect).await
}
