//! Every field that has to be there, and every value that cannot be: INVALID_ARGUMENT, with the
//! field named, before anything happens.

use cinderblock_proto::csi::v1 as pb;
use tonic::{Code, Status};

use crate::driver::{Driver, GIB, Kind};

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, field: &str) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains(field), "{:?} does not name {field}", status.message());
}

#[tokio::test]
async fn create_volume() {
    let d = Driver::shared().await;
    let good = || d.request("v", &Kind::EXT4, GIB);
    let cases: Vec<(&str, Box<dyn Fn(&mut pb::CreateVolumeRequest)>)> = vec![
        ("name", Box::new(|r| r.name.clear())),
        ("name", Box::new(|r| r.name = "x".repeat(129))),
        ("name", Box::new(|r| r.name = "a\nb".to_owned())),
        ("volume_capabilities", Box::new(|r| r.volume_capabilities.clear())),
        ("access_type", Box::new(|r| r.volume_capabilities[0].access_type = None)),
        ("access_mode", Box::new(|r| r.volume_capabilities[0].access_mode = None)),
        (
            "access_mode",
            Box::new(|r| {
                let mode = pb::volume_capability::access_mode::Mode::MultiNodeMultiWriter;
                r.volume_capabilities[0].access_mode =
                    Some(pb::volume_capability::AccessMode { mode: mode.into() });
            }),
        ),
        (
            "fs_type",
            Box::new(|r| {
                let mut kind = Kind::EXT4;
                kind.fs = "zfs";
                r.volume_capabilities = vec![kind.capability()];
            }),
        ),
        (
            "required_bytes",
            Box::new(|r| {
                r.capacity_range = Some(pb::CapacityRange { required_bytes: -1, limit_bytes: 0 });
            }),
        ),
        (
            "limit_bytes",
            Box::new(|r| {
                r.capacity_range = Some(pb::CapacityRange { required_bytes: 2, limit_bytes: 1 });
            }),
        ),
        ("\"colour\"", Box::new(|r| drop(r.parameters.insert("colour".into(), "red".into())))),
        (
            "no backend slow",
            Box::new(|r| drop(r.parameters.insert("backend".into(), "slow".into()))),
        ),
        (
            "provisioning",
            Box::new(|r| {
                r.parameters.insert("provisioning".into(), "sparse".into());
            }),
        ),
        (
            "volume_content_source",
            Box::new(|r| {
                r.volume_content_source = Some(pb::VolumeContentSource::default());
            }),
        ),
        (
            "topology",
            Box::new(|r| {
                let topology = pb::Topology { segments: [("zone".into(), "a".into())].into() };
                r.accessibility_requirements =
                    Some(pb::TopologyRequirement { requisite: vec![topology], preferred: vec![] });
            }),
        ),
        ("mutable", Box::new(|r| drop(r.mutable_parameters.insert("iops".into(), "1".into())))),
    ];
    for (field, change) in cases {
        let mut request = good();
        change(&mut request);
        refused(d.create(request).await, field);
    }
}

#[tokio::test]
async fn other_controller_calls() {
    let d = Driver::shared().await;
    let mut c = d.controller.clone();
    refused(d.delete("").await, "volume_id");
    refused(d.delete_snapshot("").await, "snapshot_id");
    refused(d.snapshot("s", "").await, "source_volume_id");
    refused(c.create_snapshot(pb::CreateSnapshotRequest::default()).await, "name");
    refused(d.expand("", GIB).await, "volume_id");
    let none = pb::ControllerExpandVolumeRequest { volume_id: "x".into(), ..Default::default() };
    refused(c.controller_expand_volume(none).await, "capacity_range");
    refused(c.controller_get_volume(pb::ControllerGetVolumeRequest::default()).await, "volume_id");
    refused(c.get_snapshot(pb::GetSnapshotRequest::default()).await, "snapshot_id");
    refused(
        c.validate_volume_capabilities(pb::ValidateVolumeCapabilitiesRequest::default()).await,
        "volume_id",
    );
    let negative = pb::ListVolumesRequest { max_entries: -1, ..Default::default() };
    refused(c.list_volumes(negative).await, "max_entries");
    let negative = pb::ListSnapshotsRequest { max_entries: -1, ..Default::default() };
    refused(c.list_snapshots(negative).await, "max_entries");
    for token in ["x", "a/b", "../..", "0"] {
        let odd = pb::ListVolumesRequest { max_entries: 0, starting_token: token.into() };
        assert_eq!(c.list_volumes(odd).await.unwrap_err().code(), Code::Aborted);
    }
}

#[tokio::test]
async fn node_calls() {
    let d = Driver::shared().await;
    let mut n = d.node.clone();
    let stage = d.stage_request("x", &Kind::EXT4);
    refused(
        n.node_stage_volume(pb::NodeStageVolumeRequest {
            volume_id: String::new(),
            ..stage.clone()
        })
        .await,
        "volume_id",
    );
    for path in ["", "relative", "/a/../b"] {
        let staging_target_path = path.to_owned();
        let request = pb::NodeStageVolumeRequest { staging_target_path, ..stage.clone() };
        refused(n.node_stage_volume(request).await, "staging_target_path");
    }
    refused(
        n.node_stage_volume(pb::NodeStageVolumeRequest { volume_capability: None, ..stage }).await,
        "volume_capability",
    );
    let publish = d.publish_request("x", &Kind::EXT4, "t");
    refused(
        n.node_publish_volume(pb::NodePublishVolumeRequest {
            volume_id: String::new(),
            ..publish.clone()
        })
        .await,
        "volume_id",
    );
    refused(
        n.node_publish_volume(pb::NodePublishVolumeRequest {
            target_path: String::new(),
            ..publish.clone()
        })
        .await,
        "target_path",
    );
    refused(
        n.node_publish_volume(pb::NodePublishVolumeRequest { volume_capability: None, ..publish })
            .await,
        "volume_capability",
    );
    refused(n.node_unstage_volume(pb::NodeUnstageVolumeRequest::default()).await, "volume_id");
    let no_path = pb::NodeUnstageVolumeRequest { volume_id: "x".into(), ..Default::default() };
    refused(n.node_unstage_volume(no_path).await, "staging_target_path");
    refused(n.node_unpublish_volume(pb::NodeUnpublishVolumeRequest::default()).await, "volume_id");
    let no_path = pb::NodeUnpublishVolumeRequest { volume_id: "x".into(), ..Default::default() };
    refused(n.node_unpublish_volume(no_path).await, "target_path");
    refused(n.node_get_volume_stats(pb::NodeGetVolumeStatsRequest::default()).await, "volume_id");
    let no_path = pb::NodeGetVolumeStatsRequest { volume_id: "x".into(), ..Default::default() };
    refused(n.node_get_volume_stats(no_path).await, "volume_path");
    refused(n.node_expand_volume(pb::NodeExpandVolumeRequest::default()).await, "volume_id");
}

#[tokio::test]
async fn ids_that_name_nothing() {
    let d = Driver::shared().await;
    let mut n = d.node.clone();
    let made = d.volume("real", &Kind::EXT4).await.volume_id;
    let (vg, _) = made.split_once('/').unwrap();
    for id in ["fake", "a/b", &"x".repeat(200), &format!("{vg}/pvc-none"), "../../etc/passwd"] {
        d.delete(id).await.unwrap();
        d.delete_snapshot(id).await.unwrap();
        for code in [
            crate::driver::code(d.expand(id, GIB).await),
            crate::driver::code(d.snapshot("s", id).await),
            crate::driver::code(d.stage(id, &Kind::EXT4).await),
            crate::driver::code(d.publish(id, &Kind::EXT4, "t").await),
        ] {
            assert_eq!(code, Code::NotFound, "{id}");
        }
        let stats = pb::NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: "some/path".to_owned(),
            ..Default::default()
        };
        assert_eq!(crate::driver::code(n.node_get_volume_stats(stats).await), Code::NotFound);
        d.unpublish(id, "t").await.unwrap();
        d.unstage(id).await.unwrap();
    }
    // A volume group that nobody sees says nothing about what it holds.
    let unseen = "AAAAAA-bbbb-cccc-dddd-eeee-ffff-gggggg/pvc-1";
    assert_eq!(crate::driver::code(d.delete(unseen).await), Code::Unavailable);
    assert_eq!(crate::driver::code(d.stage(unseen, &Kind::EXT4).await), Code::Unavailable);
    d.delete(&made).await.unwrap();
}
