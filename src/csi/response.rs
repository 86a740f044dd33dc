//! Answers as CSI messages. Pure.

use cinderblock_proto::csi::v1 as csi;
use csi::volume_content_source as wire;

use crate::domain::{ContentSource, Snapshot, Volume};
use crate::names::NodeName;

/// A node's topology.
pub(super) fn topology(node: &NodeName, key: &str) -> csi::Topology {
    csi::Topology { segments: [(key.to_owned(), node.to_string())].into() }
}

pub(super) fn volume(volume: &Volume, node: &NodeName, key: &str) -> csi::Volume {
    csi::Volume {
        capacity_bytes: volume.size.to_i64(),
        volume_id: volume.handle.to_string(),
        volume_context: [].into(),
        content_source: volume.source.as_ref().map(source),
        accessible_topology: vec![topology(node, key)],
    }
}

fn source(source: &ContentSource) -> csi::VolumeContentSource {
    let id = source.handle().to_string();
    csi::VolumeContentSource {
        r#type: Some(match source {
            ContentSource::Snapshot(_) => {
                wire::Type::Snapshot(wire::SnapshotSource { snapshot_id: id })
            }
            ContentSource::Volume(_) => wire::Type::Volume(wire::VolumeSource { volume_id: id }),
        }),
    }
}

/// A snapshot. Its topology is alpha in CSI 1.13 and only for a CO that asked for the capability.
pub(super) fn snapshot(snapshot: &Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: snapshot.size.to_i64(),
        snapshot_id: snapshot.handle.to_string(),
        source_volume_id: snapshot.source.to_string(),
        creation_time: Some(prost_types::Timestamp { seconds: snapshot.created_unix, nanos: 0 }),
        ready_to_use: snapshot.ready,
        group_snapshot_id: String::new(),
        accessible_topology: vec![],
    }
}
