//! Volumes as the kubelet stages, publishes, measures and grows them.

use cinderblock_proto::csi::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::driver::{Driver, GIB, Kind, code};

#[tokio::test]
async fn the_whole_way_each_call_twice() {
    let d = Driver::shared().await;
    for kind in Kind::ALL {
        let id = d.volume(&format!("way-{}-{}", kind.provisioning, kind.fs), &kind).await.volume_id;
        for _ in 0..2 {
            d.stage(&id, &kind).await.unwrap();
        }
        for _ in 0..2 {
            d.publish(&id, &kind, "pod").await.unwrap();
        }
        d.write("pod", "kept");
        // Another pod, and then another mount: the data is still there.
        d.publish(&id, &kind, "pod2").await.unwrap();
        assert_eq!(d.read("pod2", "kept"), "kept");
        assert_eq!(code(d.delete(&id).await), Code::FailedPrecondition);
        for _ in 0..2 {
            d.unpublish(&id, "pod2").await.unwrap();
            d.unpublish(&id, "pod").await.unwrap();
        }
        for _ in 0..2 {
            d.unstage(&id).await.unwrap();
        }
        d.attach(&id, &kind, "again").await;
        assert_eq!(d.read("again", "kept"), "kept");
        d.detach(&id, "again").await;
        d.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn statistics() {
    let d = Driver::shared().await;
    for kind in [Kind::EXT4, Kind::BLOCK] {
        let id = d.volume(&format!("stats-{}", kind.fs), &kind).await.volume_id;
        d.attach(&id, &kind, "pod").await;
        let ask = |path: &str| {
            let volume_path = d.path(path);
            let request = pb::NodeGetVolumeStatsRequest {
                volume_id: id.clone(),
                volume_path,
                ..Default::default()
            };
            let mut node = d.node.clone();
            async move { node.node_get_volume_stats(request).await.map(tonic::Response::into_inner) }
        };
        let usage = ask("pod").await.unwrap().usage;
        assert!(usage[0].total > GIB / 2 && usage[0].total <= GIB, "{usage:?}");
        assert_eq!(usage.len(), if kind.fs.is_empty() { 1 } else { 2 });
        assert_eq!(code(ask("elsewhere").await), Code::NotFound);
        d.detach(&id, "pod").await;
        assert_eq!(code(ask("pod").await), Code::NotFound);
        d.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn expanded_while_in_use() {
    let d = Driver::shared().await;
    for kind in Kind::ALL {
        let id =
            d.volume(&format!("grow-{}-{}", kind.provisioning, kind.fs), &kind).await.volume_id;
        d.attach(&id, &kind, "pod").await;
        d.write("pod", "kept");
        for _ in 0..2 {
            assert_eq!(d.expand(&id, 2 * GIB).await.unwrap(), 2 * GIB);
            let request = pb::NodeExpandVolumeRequest {
                volume_id: id.clone(),
                volume_path: d.path("pod"),
                ..Default::default()
            };
            let grown = d.node.clone().node_expand_volume(request).await.unwrap().into_inner();
            assert_eq!(grown.capacity_bytes, 2 * GIB);
        }
        let request = pb::NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: d.path("pod"),
            ..Default::default()
        };
        let usage = d.node.clone().node_get_volume_stats(request).await.unwrap().into_inner().usage;
        assert!(usage[0].total > 3 * GIB / 2, "{kind:?}: {usage:?}");
        assert_eq!(d.read("pod", "kept"), "kept");
        // Never smaller.
        assert_eq!(d.expand(&id, GIB).await.unwrap(), 2 * GIB);
        d.detach(&id, "pod").await;
        d.delete(&id).await.unwrap();
    }
}

/// Grown while nothing was mounted: the filesystem follows when it is staged.
#[tokio::test]
async fn expanded_while_not_in_use() {
    let d = Driver::shared().await;
    for kind in [Kind::EXT4, Kind::XFS, Kind::BTRFS, Kind::THICK] {
        let id = d.volume(&format!("off-{}-{}", kind.provisioning, kind.fs), &kind).await.volume_id;
        d.attach(&id, &kind, "pod").await;
        d.write("pod", "kept");
        d.detach(&id, "pod").await;
        d.expand(&id, 2 * GIB).await.unwrap();
        d.attach(&id, &kind, "pod").await;
        let request = pb::NodeGetVolumeStatsRequest {
            volume_id: id.clone(),
            volume_path: d.path("pod"),
            ..Default::default()
        };
        let usage = d.node.clone().node_get_volume_stats(request).await.unwrap().into_inner().usage;
        assert!(usage[0].total > 3 * GIB / 2, "{kind:?}: {usage:?}");
        assert_eq!(d.read("pod", "kept"), "kept");
        d.detach(&id, "pod").await;
        d.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn publishing_by_the_rules() {
    let d = Driver::shared().await;
    let id = d.volume("rules", &Kind::EXT4).await.volume_id;
    // Not staged.
    assert_eq!(code(d.publish(&id, &Kind::EXT4, "a").await), Code::FailedPrecondition);
    d.stage(&id, &Kind::EXT4).await.unwrap();
    d.publish(&id, &Kind::EXT4, "a").await.unwrap();
    let mut read_only = d.publish_request(&id, &Kind::EXT4, "a");
    read_only.readonly = true;
    let mut n = d.node.clone();
    assert_eq!(code(n.node_publish_volume(read_only.clone()).await), Code::AlreadyExists);
    read_only.target_path = d.path("b");
    for _ in 0..2 {
        n.node_publish_volume(read_only.clone()).await.unwrap();
    }
    let single = Kind { mode: Mode::SingleNodeSingleWriter, ..Kind::EXT4 };
    assert_eq!(code(d.publish(&id, &single, "c").await), Code::FailedPrecondition);
    let kind = Kind { fs: "xfs", ..Kind::EXT4 };
    assert_eq!(code(d.stage(&id, &kind).await), Code::AlreadyExists);
    d.unpublish(&id, "a").await.unwrap();
    d.unpublish(&id, "b").await.unwrap();
    d.unstage(&id).await.unwrap();
    d.delete(&id).await.unwrap();
}

/// Two volumes never share a place.
#[tokio::test]
async fn a_place_that_is_taken() {
    let d = Driver::shared().await;
    let a = d.volume("a", &Kind::EXT4).await.volume_id;
    let b = d.volume("b", &Kind::EXT4).await.volume_id;
    d.attach(&a, &Kind::EXT4, "pod").await;
    let mut request = d.stage_request(&b, &Kind::EXT4);
    request.staging_target_path = d.staging(&a);
    let status = d.node.clone().node_stage_volume(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    d.stage(&b, &Kind::EXT4).await.unwrap();
    assert_eq!(code(d.publish(&b, &Kind::EXT4, "pod").await), Code::FailedPrecondition);
    d.detach(&a, "pod").await;
    d.unstage(&b).await.unwrap();
    d.delete(&a).await.unwrap();
    d.delete(&b).await.unwrap();
}

/// Making a large filesystem takes its time; others do not wait for it.
#[tokio::test]
async fn calls_on_one_volume_do_not_wait_for_another() {
    let d = std::sync::Arc::new(Driver::shared().await);
    let mut ids = Vec::new();
    for i in 0..4 {
        ids.push(d.volume(&format!("side-{i}"), &Kind::EXT4).await.volume_id);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for id in ids.clone() {
        let d = std::sync::Arc::clone(&d);
        tasks.spawn(async move {
            d.stage(&id, &Kind::EXT4).await.unwrap();
            // The same call again while others work on theirs.
            d.stage(&id, &Kind::EXT4).await.unwrap();
        });
    }
    tasks.join_all().await;
    for id in &ids {
        d.unstage(id).await.unwrap();
        d.delete(id).await.unwrap();
    }
}
