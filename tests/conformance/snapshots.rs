//! Snapshots, restores and clones.

use std::time::Duration;

use cinderblock_proto::csi::v1 as pb;
use tonic::Code;

use crate::controller::from_volume;
use crate::driver::{Driver, GIB, Kind, code};

fn from_snapshot(id: &str) -> pb::VolumeContentSource {
    use pb::volume_content_source::{SnapshotSource, Type};
    pb::VolumeContentSource {
        r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })),
    }
}

const THIN: [Kind; 4] = [Kind::EXT4, Kind::XFS, Kind::BTRFS, Kind::BLOCK];

#[tokio::test]
async fn content_goes_where_it_should() {
    let d = Driver::shared().await;
    for kind in THIN {
        let name = |n: &str| format!("{n}-{}", kind.fs);
        let source = d.volume(&name("source"), &kind).await.volume_id;
        d.attach(&source, &kind, "source").await;
        d.write("source", "first");
        // Mounted and in use.
        let snapshot = d.snapshot(&name("snap"), &source).await.unwrap();
        assert!(snapshot.ready_to_use && snapshot.source_volume_id == source);
        assert_eq!(snapshot.size_bytes, GIB);
        assert!(snapshot.creation_time.unwrap().seconds > 0);
        d.write("source", "other");
        assert_eq!(d.snapshot(&name("snap"), &source).await.unwrap(), snapshot);
        let made = |n: &str, from, size| pb::CreateVolumeRequest {
            volume_content_source: Some(from),
            ..d.request(&name(n), &kind, size)
        };
        let restored = made("restored", from_snapshot(&snapshot.snapshot_id), 2 * GIB);
        let restored = d.create(restored).await.unwrap();
        assert_eq!(restored.content_source, Some(from_snapshot(&snapshot.snapshot_id)));
        assert_eq!(restored.capacity_bytes, 2 * GIB);
        let cloned = d.create(made("cloned", from_volume(&source), GIB)).await.unwrap();
        assert_eq!(cloned.content_source, Some(from_volume(&source)));
        // All at once on one node.
        d.attach(&restored.volume_id, &kind, "restored").await;
        d.attach(&cloned.volume_id, &kind, "cloned").await;
        assert_eq!(d.read("restored", "first"), "first");
        assert_eq!(d.read("cloned", "other"), "other");
        assert_eq!(d.read("source", "other"), "other");
        if !kind.fs.is_empty() {
            let stats = pb::NodeGetVolumeStatsRequest {
                volume_id: restored.volume_id.clone(),
                volume_path: d.path("restored"),
                ..Default::default()
            };
            let usage =
                d.node.clone().node_get_volume_stats(stats).await.unwrap().into_inner().usage;
            assert!(usage[0].total > 3 * GIB / 2, "grown to its device: {usage:?}");
        }
        // Each writes for itself.
        d.write("cloned", "third");
        assert_eq!(d.read("source", "other"), "other");
        // The sources first.
        d.detach(&source, "source").await;
        d.delete(&source).await.unwrap();
        d.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
        assert_eq!(d.read("restored", "first"), "first");
        for (id, at) in [(&restored.volume_id, "restored"), (&cloned.volume_id, "cloned")] {
            d.detach(id, at).await;
            d.delete(id).await.unwrap();
        }
    }
}

#[tokio::test]
async fn conflicts_and_absence() {
    let d = Driver::shared().await;
    let a = d.volume("a", &Kind::EXT4).await.volume_id;
    let b = d.volume("b", &Kind::EXT4).await.volume_id;
    let snapshot = d.snapshot("s", &a).await.unwrap();
    assert_eq!(code(d.snapshot("s", &b).await), Code::AlreadyExists);
    // An id of the wrong kind destroys nothing.
    assert_eq!(code(d.delete(&snapshot.snapshot_id).await), Code::FailedPrecondition);
    assert_eq!(code(d.delete_snapshot(&a).await), Code::FailedPrecondition);
    let mut request = d.request("c", &Kind::EXT4, GIB);
    request.volume_content_source = Some(from_snapshot(&a));
    assert_eq!(code(d.create(request.clone()).await), Code::NotFound);
    request.volume_content_source = Some(from_snapshot(&snapshot.snapshot_id));
    request.capacity_range = Some(pb::CapacityRange { required_bytes: 0, limit_bytes: GIB / 2 });
    assert_eq!(code(d.create(request).await), Code::OutOfRange);
    for _ in 0..2 {
        d.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
        d.delete(&a).await.unwrap();
        d.delete(&b).await.unwrap();
    }
}

/// What cannot share blocks is copied, from every kind to every other.
#[tokio::test]
async fn copies_between_thin_and_thick() {
    let d = Driver::alone().await;
    for (of, to) in [
        (Kind::THICK, Kind::THICK),
        (Kind::THICK_BLOCK, Kind::BLOCK),
        (Kind::BLOCK, Kind::THICK_BLOCK),
    ] {
        let source = d.volume("source", &of).await.volume_id;
        let snapshot = d.snapshot("s", &source).await.unwrap();
        assert!(snapshot.ready_to_use && snapshot.size_bytes == GIB);
        assert_eq!(d.snapshot("s", &source).await.unwrap(), snapshot);
        let mut copies = Vec::new();
        for (name, from) in
            [("r", from_snapshot(&snapshot.snapshot_id)), ("c", from_volume(&source))]
        {
            let mut request = d.request(name, &to, GIB);
            request.volume_content_source = Some(from.clone());
            // A copy that takes long goes on by itself, as on a slow disk.
            let mut tries = 0;
            let made = loop {
                tries += 1;
                match d.create(request.clone()).await {
                    Err(it)
                        if tries < 120
                            && [Code::Unavailable, Code::Aborted].contains(&it.code()) =>
                    {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    made => break made.unwrap(),
                }
            };
            assert_eq!(made.content_source, Some(from));
            assert_eq!(d.create(request).await.unwrap(), made);
            copies.push(made.volume_id);
        }
        // The source first; a snapshot or a copy does not need it.
        d.delete(&source).await.unwrap();
        d.delete_snapshot(&snapshot.snapshot_id).await.unwrap();
        for copy in copies {
            d.delete(&copy).await.unwrap();
        }
    }
}

#[tokio::test]
async fn lists_and_filters() {
    let d = Driver::alone().await;
    let mut c = d.controller.clone();
    let a = d.volume("a", &Kind::BLOCK).await.volume_id;
    let b = d.volume("b", &Kind::BLOCK).await.volume_id;
    let mut made = Vec::new();
    for (i, source) in [&a, &a, &b].into_iter().enumerate() {
        made.push(d.snapshot(&format!("s{i}"), source).await.unwrap().snapshot_id);
    }
    let mut list = async |request: pb::ListSnapshotsRequest| {
        let answer = c.list_snapshots(request).await.unwrap().into_inner();
        let mut ids: Vec<String> =
            answer.entries.into_iter().map(|e| e.snapshot.unwrap().snapshot_id).collect();
        ids.sort();
        (ids, answer.next_token)
    };
    let request = pb::ListSnapshotsRequest::default;
    assert_eq!(list(request()).await.0.len(), 3);
    let of_a = pb::ListSnapshotsRequest { source_volume_id: a.clone(), ..request() };
    assert_eq!(list(of_a).await.0.len(), 2);
    let one = pb::ListSnapshotsRequest { snapshot_id: made[2].clone(), ..request() };
    assert_eq!(list(one).await.0, [made[2].clone()]);
    for (snapshot_id, source_volume_id) in [("none", ""), ("", "none"), (a.as_str(), "")] {
        let none = pb::ListSnapshotsRequest {
            snapshot_id: snapshot_id.into(),
            source_volume_id: source_volume_id.into(),
            ..request()
        };
        assert_eq!(list(none).await.0.len(), 0);
    }
    let first = pb::ListSnapshotsRequest { max_entries: 2, ..request() };
    let (page, token) = list(first).await;
    assert_eq!((page.len(), token.is_empty()), (2, false));
    let rest = pb::ListSnapshotsRequest { starting_token: token, ..request() };
    assert_eq!(list(rest).await.0.len(), 1);
    let get = pb::GetSnapshotRequest { snapshot_id: made[0].clone(), ..Default::default() };
    let got = d.controller.clone().get_snapshot(get).await.unwrap().into_inner();
    assert_eq!(got.snapshot.unwrap().source_volume_id, a);
    for id in &made {
        d.delete_snapshot(id).await.unwrap();
    }
    for id in [&a, &b] {
        d.delete(id).await.unwrap();
    }
}
