//! Volumes as the CO makes, lists and removes them.

use cinderblock_proto::csi::v1 as pb;
use tonic::Code;

use crate::driver::{Driver, GIB, KEY, Kind, MIB, code};

#[tokio::test]
async fn who_we_are() {
    let d = Driver::shared().await;
    let mut i = d.identity.clone();
    let info = i.get_plugin_info(pb::GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "lvm.cinderblock.dev");
    assert!(!info.vendor_version.is_empty());
    let probe = i.probe(pb::ProbeRequest {}).await.unwrap().into_inner();
    assert_eq!(probe.ready, Some(true));
    let node = d.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await.unwrap().into_inner();
    let segments = node.accessible_topology.unwrap().segments;
    assert_eq!(segments.get(KEY), Some(&node.node_id));
}

#[tokio::test]
async fn made_twice_is_made_once() {
    let d = Driver::shared().await;
    for kind in Kind::ALL {
        let name = format!("twice-{}-{}", kind.provisioning, kind.fs);
        let first = d.volume(&name, &kind).await;
        assert_eq!(first.capacity_bytes, GIB);
        assert_eq!(first.accessible_topology.len(), 1);
        assert_eq!(d.volume(&name, &kind).await, first);
        for _ in 0..2 {
            d.delete(&first.volume_id).await.unwrap();
        }
    }
}

#[tokio::test]
async fn another_of_the_same_name_is_a_conflict() {
    let d = Driver::shared().await;
    let made = d.volume("same", &Kind::EXT4).await;
    let conflicts = [
        d.request("same", &Kind::EXT4, 2 * GIB),
        d.request("same", &Kind::THICK, GIB),
        d.request("same", &Kind::BLOCK, GIB),
        pb::CreateVolumeRequest {
            volume_content_source: Some(from_volume(&made.volume_id)),
            ..d.request("same", &Kind::EXT4, GIB)
        },
    ];
    for request in conflicts {
        assert_eq!(code(d.create(request).await), Code::AlreadyExists);
    }
    d.delete(&made.volume_id).await.unwrap();
}

pub fn from_volume(id: &str) -> pb::VolumeContentSource {
    use pb::volume_content_source::{Type, VolumeSource};
    pb::VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.into() })) }
}

/// A caller that goes away in the middle, and comes back.
#[tokio::test]
async fn a_cancelled_call_changes_nothing_about_its_outcome() {
    let d = Driver::shared().await;
    for i in 0..5 {
        let name = format!("cancelled-{i}");
        let call = d.create(d.request(&name, &Kind::EXT4, GIB));
        let after = std::time::Duration::from_millis(i * 40);
        drop(tokio::time::timeout(after, call).await);
        let made = loop {
            match d.create(d.request(&name, &Kind::EXT4, GIB)).await {
                Ok(made) => break made,
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        drop(tokio::time::timeout(after, d.delete(&made.volume_id)).await);
        while let Err(status) = d.delete(&made.volume_id).await {
            assert_eq!(status.code(), Code::Aborted, "{status:?}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn many_at_once() {
    let d = std::sync::Arc::new(Driver::shared().await);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..12 {
        let d = std::sync::Arc::clone(&d);
        tasks.spawn(async move {
            // Three callers for each of four volumes.
            let name = format!("many-{}", i % 4);
            loop {
                match d.create(d.request(&name, &Kind::EXT4, 64 * MIB)).await {
                    Ok(volume) => return volume,
                    Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
    }
    let mut made: Vec<String> = tasks.join_all().await.into_iter().map(|v| v.volume_id).collect();
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 4);
    for id in made {
        d.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn sizes() {
    let d = Driver::shared().await;
    let sized = |name: &str, kind: &Kind, required_bytes, limit_bytes| {
        let mut request = d.request(name, kind, 0);
        request.capacity_range = Some(pb::CapacityRange { required_bytes, limit_bytes });
        d.create(request)
    };
    // Rounded up to whole extents, never beyond the limit.
    let made = sized("odd", &Kind::BLOCK, 5 * MIB, 0).await.unwrap();
    assert_eq!(made.capacity_bytes, 8 * MIB);
    d.delete(&made.volume_id).await.unwrap();
    assert_eq!(code(sized("odd", &Kind::BLOCK, 5 * MIB, 7 * MIB).await), Code::OutOfRange);
    // mkfs.xfs needs 300 MiB.
    let made = sized("small", &Kind::XFS, MIB, 0).await.unwrap();
    assert_eq!(made.capacity_bytes, 300 * MIB);
    d.delete(&made.volume_id).await.unwrap();
    assert_eq!(code(sized("small", &Kind::XFS, MIB, 100 * MIB).await), Code::OutOfRange);
    // Nobody says: 1 GiB.
    let mut request = d.request("default", &Kind::EXT4, 0);
    request.capacity_range = None;
    let made = d.create(request).await.unwrap();
    assert_eq!(made.capacity_bytes, GIB);
    d.delete(&made.volume_id).await.unwrap();
    assert_eq!(code(sized("huge", &Kind::THICK, 1 << 50, 0).await), Code::ResourceExhausted);
    assert_eq!(code(sized("huge", &Kind::EXT4, 1 << 50, 0).await), Code::ResourceExhausted);
}

#[tokio::test]
async fn names_of_any_form() {
    let d = Driver::shared().await;
    let long = "n".repeat(128 - d.name("").len());
    for name in ["Grüße an alle", "a/b", "snapshot-1", "..", &long] {
        let made = d.volume(name, &Kind::BLOCK).await;
        assert!(made.volume_id.len() <= 128);
        assert_eq!(d.volume(name, &Kind::BLOCK).await, made);
        d.delete(&made.volume_id).await.unwrap();
    }
}

#[tokio::test]
async fn lists_are_exact_and_paged() {
    let d = Driver::alone().await;
    let mut c = d.controller.clone();
    let mut made = Vec::new();
    for i in 0..5 {
        made.push(d.volume(&format!("page-{i}"), &Kind::BLOCK).await.volume_id);
    }
    made.sort();
    for page in [0, 1, 2, 5, 6] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListVolumesRequest { max_entries: page, starting_token: token };
            let answer = c.list_volumes(request).await.unwrap().into_inner();
            assert!(page == 0 || answer.entries.len() <= usize::try_from(page).unwrap());
            seen.extend(answer.entries.into_iter().map(|e| e.volume.unwrap().volume_id));
            token = answer.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, made, "pages of {page}");
    }
    // A token outlives the volume it stood for.
    let first = pb::ListVolumesRequest { max_entries: 2, starting_token: String::new() };
    let token = c.list_volumes(first).await.unwrap().into_inner().next_token;
    d.delete(&made[1]).await.unwrap();
    let next = pb::ListVolumesRequest { max_entries: 0, starting_token: token };
    let rest = c.list_volumes(next).await.unwrap().into_inner().entries;
    assert_eq!(rest.len(), 3);
    let get = pb::ControllerGetVolumeRequest { volume_id: made[0].clone() };
    let got = c.controller_get_volume(get).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(got.volume_id, made[0]);
    let get = pb::ControllerGetVolumeRequest { volume_id: made[1].clone() };
    assert_eq!(c.controller_get_volume(get).await.unwrap_err().code(), Code::NotFound);
    for id in &made {
        d.delete(id).await.unwrap();
    }
}

async fn capacity(d: &Driver, provisioning: &str) -> pb::GetCapacityResponse {
    let parameters =
        [("backend".into(), "fast".into()), ("provisioning".into(), provisioning.into())].into();
    let request = pb::GetCapacityRequest { parameters, ..Default::default() };
    d.controller.clone().get_capacity(request).await.unwrap().into_inner()
}

/// What is offered can be made, and one extent more cannot.
#[tokio::test]
async fn capacity_is_exact() {
    let d = Driver::alone().await;
    for kind in [Kind::THICK_BLOCK, Kind::BLOCK] {
        let offered = capacity(&d, kind.provisioning).await;
        let largest = offered.maximum_volume_size.unwrap();
        assert!(largest <= offered.available_capacity && largest > 0);
        assert_eq!(offered.minimum_volume_size, Some(4 * MIB));
        let more = d.create(d.request("most", &kind, largest + 4 * MIB)).await;
        assert_eq!(code(more), Code::ResourceExhausted);
        let made = d.create(d.request("most", &kind, largest)).await.unwrap();
        assert_eq!(made.capacity_bytes, largest);
        let left = capacity(&d, kind.provisioning).await;
        assert_eq!(left.maximum_volume_size, Some(0));
        // It cannot grow, and the request can be lowered again.
        assert_eq!(code(d.expand(&made.volume_id, largest + GIB).await), Code::OutOfRange);
        assert_eq!(d.expand(&made.volume_id, largest).await.unwrap(), largest);
        d.delete(&made.volume_id).await.unwrap();
        assert_eq!(capacity(&d, kind.provisioning).await, offered);
    }
    let elsewhere = pb::Topology { segments: [(KEY.into(), "elsewhere".into())].into() };
    let request =
        pb::GetCapacityRequest { accessible_topology: Some(elsewhere), ..Default::default() };
    let none = d.controller.clone().get_capacity(request).await.unwrap().into_inner();
    assert_eq!(none.available_capacity, 0);
}

#[tokio::test]
async fn a_volume_for_another_node_waits_for_it() {
    let d = Driver::shared().await;
    let mut request = d.request("far", &Kind::EXT4, GIB);
    let far = pb::Topology { segments: [(KEY.into(), "far".into())].into() };
    request.accessibility_requirements =
        Some(pb::TopologyRequirement { requisite: vec![far.clone()], preferred: vec![far] });
    let status = d.create(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("node far"), "{status:?}");
}

#[tokio::test]
async fn capabilities_are_validated() {
    let d = Driver::shared().await;
    let made = d.volume("validate", &Kind::EXT4).await;
    let ask = |kind: Kind| pb::ValidateVolumeCapabilitiesRequest {
        volume_id: made.volume_id.clone(),
        volume_capabilities: vec![kind.capability()],
        ..Default::default()
    };
    let mut c = d.controller.clone();
    let yes = c.validate_volume_capabilities(ask(Kind::XFS)).await.unwrap().into_inner();
    assert_eq!(yes.confirmed.unwrap().volume_capabilities, [Kind::XFS.capability()]);
    let mut odd = Kind::EXT4;
    odd.mode = pb::volume_capability::access_mode::Mode::MultiNodeReaderOnly;
    let no = c.validate_volume_capabilities(ask(odd)).await.unwrap().into_inner();
    assert!(no.confirmed.is_none() && no.message.contains("access_mode"));
    d.delete(&made.volume_id).await.unwrap();
}
