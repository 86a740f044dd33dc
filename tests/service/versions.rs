//! Controllers and agents of neighbouring versions: what the first version of the agent protocol says
//! is understood for ever, and what an older agent would drop without a word is not asked of it.

use cinderblock::domain::{Parameters, Topology};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::tag::Wipe;
use cinderblock::names::Handle;
use cinderblock::units::Bytes;
use cinderblock_proto::agent::v1 as pb;
use prost::Message;
use tokio::net::TcpListener;

use crate::door::{Dialling, Door};
use crate::peers::{FakeNode, controller_of, greet};
use crate::support::{encrypted, thick, thin, wiped};

const VG: &str = "9xijuU-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov";

/// The greeting of the first version.
fn hello() -> pb::Hello {
    pb::Hello {
        protocol: 1,
        token: "node:n1".to_owned(),
        driver_name: "lvm.example".to_owned(),
        version: "0.1.0".to_owned(),
        ..pb::Hello::default()
    }
}

/// What the first version told of a node with a thin pool and a volume.
pub(crate) fn inventory() -> pb::InventoryEvent {
    let pool = pb::Pool {
        size_bytes: 8 << 30,
        promised_bytes: 1 << 30,
        overprovision_percent: 400,
        data_used_bp: 125,
        metadata_used_bp: 1023,
        healthy: true,
        ..pb::Pool::default()
    };
    let ready = pb::Ready {
        volume_group_uuid: VG.to_owned(),
        extent_size_bytes: 4 << 20,
        volume_group_bytes: 16 << 30,
        reserve_bytes: 0,
        free: vec![pb::ready::Runs { extents: vec![2000] }],
        pool: Some(pool),
    };
    let backend = pb::Backend {
        name: "fast".to_owned(),
        volume_group: "vg0".to_owned(),
        state: Some(pb::backend::State::Ready(ready)),
    };
    let mut names = pb::VolumeGroups::default();
    names.names.insert(VG.to_owned(), "vg0".to_owned());
    pb::InventoryEvent {
        revision: 7,
        anew: true,
        backends: Some(pb::Backends { backends: vec![backend] }),
        volume_groups: Some(names),
        volumes: vec![made("pvc-old")],
        ..pb::InventoryEvent::default()
    }
}

pub(crate) fn made(name: &str) -> pb::Volume {
    pb::Volume {
        handle: format!("{VG}/{name}"),
        name: name.to_owned(),
        size_bytes: 1 << 30,
        provisioning: pb::Provisioning::Thin.into(),
        ..pb::Volume::default()
    }
}

/// What the first version asked for a volume.
fn create(name: &str) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest {
        name: name.to_owned(),
        range: Some(pb::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        backend: "fast".to_owned(),
        provisioning: pb::Provisioning::Thin.into(),
        usage: "ext4".to_owned(),
        ..pb::CreateVolumeRequest::default()
    }
}

fn hex(message: &impl Message) -> String {
    use std::fmt::Write as _;
    message.encode_to_vec().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// As they were sent then, so that no field gets another number or type.
#[test]
fn the_first_version_is_written_as_ever() {
    let recorded = include_str!("../recordings/agent-protocol-1.hex");
    let line = |name: &str, bytes: String| format!("{name} {bytes}\n");
    let now = [
        line("Hello", hex(&hello())),
        line("Welcome", hex(&pb::Welcome { protocol: 1, ..pb::Welcome::default() })),
        line("InventoryEvent", hex(&inventory())),
        line("CreateVolumeRequest", hex(&create("pvc-1"))),
    ];
    let now = now.concat();
    assert_eq!(now, recorded);
}

/// A message by its name, as it goes over the wire.
type Named = (&'static str, String);

fn requests() -> Vec<Named> {
    let handle = || format!("{VG}/pvc-1");
    let range = Some(pb::CapacityRange { required_bytes: 2 << 30, limit_bytes: 3 << 30 });
    let source = |source| Some(pb::Source { source: Some(source) });
    let of_snapshot = pb::source::Source::Snapshot(format!("{VG}/snap-1"));
    let of_volume = pb::source::Source::Volume(handle());
    let stripes = pb::create_volume_request::Striped { stripes: 2, stripe_size_bytes: 65_536 };
    let raid = pb::create_volume_request::Raid {
        level: "raid5".to_owned(),
        legs: 3,
        stripe_size_bytes: 65_536,
    };
    let thick = |layout| pb::CreateVolumeRequest {
        provisioning: pb::Provisioning::Thick.into(),
        layout: Some(layout),
        wipe: "zero".to_owned(),
        claim: Some(pb::Claim { namespace: "db".to_owned(), name: "data".to_owned() }),
        ..create("pvc-1")
    };
    let from = |from| pb::CreateVolumeRequest { source: source(from), ..create("pvc-1") };
    let snapshot = pb::CreateSnapshotRequest {
        name: "snapshot-1".to_owned(),
        source: handle(),
        cow_size_percent: 10,
    };
    let labels = [("disk".to_owned(), "nvme".to_owned())];
    vec![
        ("CreateVolumeRequest striped", {
            hex(&thick(pb::create_volume_request::Layout::Striped(stripes)))
        }),
        ("CreateVolumeRequest raid", {
            hex(&thick(pb::create_volume_request::Layout::Raid(raid)))
        }),
        ("CreateVolumeRequest of a snapshot", hex(&from(of_snapshot))),
        ("CreateVolumeRequest of a volume", hex(&from(of_volume))),
        ("DeleteVolumeRequest", hex(&pb::DeleteVolumeRequest { handle: handle() })),
        ("ExpandVolumeRequest", hex(&pb::ExpandVolumeRequest { handle: handle(), range })),
        ("CreateSnapshotRequest", hex(&snapshot)),
        ("DeleteSnapshotRequest", hex(&pb::DeleteSnapshotRequest { handle: handle() })),
        ("Labels", hex(&pb::Labels { labels: labels.into() })),
        ("IdentifyResponse", hex(&pb::IdentifyResponse { token: "node:n1".to_owned() })),
    ]
}

fn answers() -> Vec<Named> {
    use pb::failure::Kind;
    let failure = |kind: Kind| pb::Failure { kind: kind.into(), message: "why".to_owned() };
    let no_space = || failure(Kind::NoSpace);
    let snapshot = pb::Snapshot {
        handle: format!("{VG}/snap-1"),
        name: "snapshot-1".to_owned(),
        source: format!("{VG}/pvc-1"),
        size_bytes: 1 << 30,
        created_unix: 1_700_000_000,
        lost: true,
    };
    let volume = pb::Volume {
        encrypted: true,
        created_unix: 1_700_000_000,
        claim: Some(pb::Claim { namespace: "db".to_owned(), name: "data".to_owned() }),
        ..made("pvc-1")
    };
    let created = |result| pb::CreateVolumeResponse { result: Some(result), revision: 7 };
    let expanded = |result| pb::ExpandVolumeResponse { result: Some(result), revision: 7 };
    let taken = |result| pb::CreateSnapshotResponse { result: Some(result), revision: 7 };
    let done = |failure| pb::DoneResponse { failure, revision: 7 };
    let trouble = |subject| pb::Trouble {
        subject: Some(subject),
        reason: "VolumeDegraded".to_owned(),
        sentence: "why".to_owned(),
        since_unix: 1_700_000_000,
    };
    let event = pb::InventoryEvent {
        revision: 8,
        more: true,
        volumes_gone: vec![format!("{VG}/pvc-1")],
        snapshots: vec![snapshot.clone()],
        snapshots_gone: vec![format!("{VG}/snap-2")],
        troubles: Some(pb::Troubles {
            troubles: vec![
                trouble(pb::trouble::Subject::Volume(format!("{VG}/pvc-1"))),
                trouble(pb::trouble::Subject::Backend("fast".to_owned())),
            ],
        }),
        ..pb::InventoryEvent::default()
    };
    let mut all = vec![
        ("CreateVolumeResponse", {
            hex(&created(pb::create_volume_response::Result::Volume(volume)))
        }),
        ("CreateVolumeResponse failed", {
            hex(&created(pb::create_volume_response::Result::Failure(no_space())))
        }),
        ("ExpandVolumeResponse", {
            hex(&expanded(pb::expand_volume_response::Result::SizeBytes(2 << 30)))
        }),
        ("ExpandVolumeResponse failed", {
            hex(&expanded(pb::expand_volume_response::Result::Failure(no_space())))
        }),
        ("CreateSnapshotResponse", {
            hex(&taken(pb::create_snapshot_response::Result::Snapshot(snapshot)))
        }),
        ("CreateSnapshotResponse failed", {
            hex(&taken(pb::create_snapshot_response::Result::Failure(no_space())))
        }),
        ("DoneResponse", hex(&done(None))),
        ("DoneResponse failed", hex(&done(Some(no_space())))),
        ("InventoryEvent of changes", hex(&event)),
    ];
    for (name, kind) in [
        ("Failure unknown", Kind::Unknown),
        ("Failure invalid", Kind::Invalid),
        ("Failure not found", Kind::NotFound),
        ("Failure already exists", Kind::AlreadyExists),
        ("Failure no space", Kind::NoSpace),
        ("Failure out of range", Kind::OutOfRange),
        ("Failure failed precondition", Kind::FailedPrecondition),
        ("Failure pending", Kind::Pending),
        ("Failure unavailable", Kind::Unavailable),
        ("Failure unimplemented", Kind::Unimplemented),
        ("Failure damaged", Kind::Damaged),
        ("Failure host", Kind::Host),
    ] {
        all.push((name, hex(&failure(kind))));
    }
    all
}

/// What came to the first version later, as it was sent then: lines are added to the file, and never
/// changed.
#[test]
fn requests_and_answers_are_written_as_ever() {
    let recorded = include_str!("../recordings/agent-protocol-1-calls.hex");
    let mut lines = recorded.lines();
    for (name, bytes) in requests().into_iter().chain(answers()) {
        assert_eq!(lines.next(), Some(format!("{name}: {bytes}").as_str()));
    }
    assert_eq!(lines.next(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_agent_is_not_asked_for_what_it_would_drop() {
    let door = Door::open().await;
    // An agent of the first version.
    let agent = FakeNode::telling(inventory());
    *agent.volume.lock().unwrap() = made("pvc-1");
    let _serving = agent.serve(greet(&door, &hello()).await);
    door.wait(1).await;

    let create = async |request| {
        door.controller.create_volume(request, Topology::default(), &Parameters::default()).await
    };
    let mut mirrored = thick("pvc-1");
    mirrored.class.layout =
        ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
    for (request, feature) in [
        (wiped(thin("pvc-1"), Wipe::Zero), "wipe"),
        (encrypted(thin("pvc-1")), "encryption"),
        (mirrored, "raid"),
    ] {
        let refused = create(request).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{feature}: {refused:?}");
    }
    assert_eq!(agent.created.lock().unwrap().len(), 0, "it was asked");
    // What it has always known it makes as ever, and what it has told is understood.
    let (_, volume) = create(thin("pvc-1")).await.unwrap();
    assert_eq!((volume.size, volume.encrypted), (Bytes::gib(1), false));
    let old = Handle::parse(&format!("{VG}/pvc-old")).unwrap();
    assert_eq!(door.controller.volume(&old).unwrap().1.size, Bytes::gib(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_controller_is_served() {
    let door = Door::open().await;
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dialling = Dialling::start(port, "node:n1", &door.authority).await;
    let mut client = controller_of(&listener, &door).await;
    let answer = client.create_volume(create("pvc-1")).await.unwrap().into_inner();
    let Some(pb::create_volume_response::Result::Volume(volume)) = answer.result else {
        panic!("{answer:?}");
    };
    assert_eq!((volume.name.as_str(), volume.size_bytes), ("pvc-1", 1 << 30));
    let mut told = client.watch_inventory(pb::WatchInventoryRequest {}).await.unwrap().into_inner();
    let first = told.message().await.unwrap().unwrap();
    assert!(first.anew && first.backends.is_some());
    drop(dialling);
}
