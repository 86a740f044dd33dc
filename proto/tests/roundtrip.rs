//! Messages against bytes that were encoded by hand from the specification, fields in the order of
//! their numbers: the bytes are read as the message, and the message is written as the bytes.
#![cfg(test)]

use std::fmt::Debug;

use cinderblock_proto::csi::v1::{
    CapacityRange, CreateVolumeRequest, GetCapacityResponse, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, ProbeResponse, Snapshot, Topology, TopologyRequirement,
    VolumeCapability, VolumeContentSource, VolumeUsage,
    volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume, access_mode::Mode},
    volume_content_source::{SnapshotSource, Type as Source},
    volume_usage::Unit,
};
use cinderblock_proto::pluginregistration::PluginInfo;
use prost::Message;
use prost_types::Timestamp;

fn map<const N: usize>(pairs: [(&str, &str); N]) -> std::collections::BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[track_caller]
fn assert_same<M: Message + Default + PartialEq + Debug>(message: &M, parts: &[&[u8]]) {
    let bytes = parts.concat();
    assert_eq!(M::decode(bytes.as_slice()).as_ref(), Ok(message));
    assert_eq!(message.encode_to_vec(), bytes);
}

fn mode(mode: Mode) -> AccessMode {
    AccessMode { mode: mode.into() }
}

#[test]
fn create_volume_request_with_all_fields() {
    let place = Topology { segments: map([("node", "n1")]) };
    let request = CreateVolumeRequest {
        name: "pvc-1".to_owned(),
        capacity_range: Some(CapacityRange { required_bytes: 1024, limit_bytes: 2048 }),
        volume_capabilities: vec![
            VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume {
                    fs_type: "xfs".to_owned(),
                    mount_flags: vec!["noatime".to_owned()],
                    volume_mount_group: "7".to_owned(),
                })),
                access_mode: Some(mode(Mode::SingleNodeMultiWriter)),
            },
            VolumeCapability {
                access_type: Some(AccessType::Block(BlockVolume {})),
                access_mode: Some(mode(Mode::SingleNodeWriter)),
            },
        ],
        parameters: map([("wipe", "zero"), ("backend", "b1")]),
        secrets: map([("k", "v")]),
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(Source::Snapshot(SnapshotSource { snapshot_id: "vg/s".to_owned() })),
        }),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![place.clone()],
            preferred: vec![place],
        }),
        mutable_parameters: map([("iops", "100")]),
    };
    assert_same(
        &request,
        &[
            b"\x0a\x05pvc-1",
            b"\x12\x06\x08\x80\x08\x10\x80\x10",
            b"\x1a\x17\x12\x11\x0a\x03xfs\x12\x07noatime\x1a\x017\x1a\x02\x08\x07",
            b"\x1a\x06\x0a\x00\x1a\x02\x08\x01",
            // Map entries are written in the order of their keys.
            b"\x22\x0d\x0a\x07backend\x12\x02b1",
            b"\x22\x0c\x0a\x04wipe\x12\x04zero",
            b"\x2a\x06\x0a\x01k\x12\x01v",
            b"\x32\x08\x0a\x06\x0a\x04vg/s",
            b"\x3a\x1c\x0a\x0c\x0a\x0a\x0a\x04node\x12\x02n1\x12\x0c\x0a\x0a\x0a\x04node\x12\x02n1",
            b"\x42\x0b\x0a\x04iops\x12\x03100",
        ],
    );
}

#[test]
fn node_publish_volume_request_with_all_fields() {
    let request = NodePublishVolumeRequest {
        volume_id: "vg/lv".to_owned(),
        publish_context: map([("a", "b")]),
        staging_target_path: "/s".to_owned(),
        target_path: "/t".to_owned(),
        volume_capability: Some(VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            access_mode: None,
        }),
        readonly: true,
        secrets: map([("k", "v")]),
        volume_context: map([("c", "d")]),
    };
    assert_same(
        &request,
        &[
            b"\x0a\x05vg/lv",
            b"\x12\x06\x0a\x01a\x12\x01b",
            b"\x1a\x02/s",
            b"\x22\x02/t",
            b"\x2a\x02\x0a\x00",
            b"\x30\x01",
            b"\x3a\x06\x0a\x01k\x12\x01v",
            b"\x42\x06\x0a\x01c\x12\x01d",
        ],
    );
}

#[test]
fn snapshot_with_its_moment() {
    let snapshot = Snapshot {
        size_bytes: 1 << 30,
        snapshot_id: "vg/s".to_owned(),
        source_volume_id: "vg/lv".to_owned(),
        creation_time: Some(Timestamp { seconds: 300, nanos: 5 }),
        ready_to_use: true,
        group_snapshot_id: String::new(),
        accessible_topology: vec![Topology { segments: map([("node", "n1")]) }],
    };
    assert_same(
        &snapshot,
        &[
            b"\x08\x80\x80\x80\x80\x04",
            b"\x12\x04vg/s",
            b"\x1a\x05vg/lv",
            b"\x22\x05\x08\xac\x02\x10\x05",
            b"\x28\x01",
            b"\x3a\x0c\x0a\x0a\x0a\x04node\x12\x02n1",
        ],
    );
}

#[test]
fn a_wrapped_zero_differs_from_nothing() {
    let capacity = GetCapacityResponse {
        available_capacity: 10,
        maximum_volume_size: Some(5),
        minimum_volume_size: Some(0),
    };
    assert_same(&capacity, &[b"\x08\x0a", b"\x12\x02\x08\x05", b"\x1a\x00"]);
    assert_same(&ProbeResponse { ready: Some(true) }, &[b"\x0a\x02\x08\x01"]);
    assert_same(&ProbeResponse { ready: Some(false) }, &[b"\x0a\x00"]);
    assert_same(&ProbeResponse { ready: None }, &[]);
}

#[test]
fn plugin_info_with_all_fields() {
    let info = PluginInfo {
        r#type: "CSIPlugin".to_owned(),
        name: "d".to_owned(),
        endpoint: "/csi.sock".to_owned(),
        supported_versions: vec!["1.0.0".to_owned()],
    };
    let parts: [&[u8]; 4] =
        [b"\x0a\x09CSIPlugin", b"\x12\x01d", b"\x1a\x09/csi.sock", b"\x22\x051.0.0"];
    assert_same(&info, &parts);
}

#[test]
fn what_is_not_known_is_no_error() {
    // Field 2 is withdrawn; an older peer may still send it.
    let stats =
        NodeGetVolumeStatsResponse::decode(&b"\x0a\x04\x10\x64\x20\x02\x12\x02\x08\x01"[..]);
    let usage = VolumeUsage { total: 100, unit: Unit::Inodes.into(), ..VolumeUsage::default() };
    assert_eq!(stats, Ok(NodeGetVolumeStatsResponse { usage: vec![usage] }));

    // An access mode of a later release keeps its number.
    let later = AccessMode::decode(&b"\x08\x63"[..]).unwrap();
    assert_eq!(later, AccessMode { mode: 99 });
    Mode::try_from(later.mode).unwrap_err();
}
