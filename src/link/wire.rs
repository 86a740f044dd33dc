//! Domain types as messages, and back. What comes from the other side is checked like any input.

use cinderblock_proto::agent::v1 as pb;
use pb::create_volume_request::Layout;

use crate::domain::{
    CapacityRange, ContentSource, CowSize, CreateSnapshot, CreateVolume, Provisioning, Snapshot,
    Volume, VolumeClass,
};
use crate::error::{Error, Result};
use crate::lvm::layout::{RaidLevel, ThickLayout};
use crate::lvm::tag::{Claim, Usage, Wipe};
use crate::names::{BackendName, CsiName, Handle, NameError};
use crate::units::Bytes;

/// The longest name of an object, and more than that of a namespace (Kubernetes).
const CLAIM_NAME_MAX: usize = 253;
pub(super) fn bad(what: &str, error: &NameError) -> Error {
    Error::invalid(format!("the peer sent a {what} that is none: {error}"))
}

pub(super) fn parse_handle(text: &str) -> Result<Handle> {
    Handle::parse(text).map_err(|e| bad("handle", &e))
}

pub(super) fn parse_name(text: &str) -> Result<CsiName> {
    CsiName::parse(text).map_err(|e| bad("name", &e))
}

fn provisioning(p: Option<Provisioning>) -> pb::Provisioning {
    match p {
        None => pb::Provisioning::Unspecified,
        Some(Provisioning::Thin) => pb::Provisioning::Thin,
        Some(Provisioning::Thick) => pb::Provisioning::Thick,
    }
}

fn parse_provisioning(p: pb::Provisioning) -> Option<Provisioning> {
    match p {
        pb::Provisioning::Unspecified => None,
        pb::Provisioning::Thin => Some(Provisioning::Thin),
        pb::Provisioning::Thick => Some(Provisioning::Thick),
    }
}

fn source(source: &ContentSource) -> pb::Source {
    let id = source.handle().to_string();
    pb::Source {
        source: Some(match source {
            ContentSource::Volume(_) => pb::source::Source::Volume(id),
            ContentSource::Snapshot(_) => pb::source::Source::Snapshot(id),
        }),
    }
}

fn parse_source(source: Option<pb::Source>) -> Result<Option<ContentSource>> {
    match source.and_then(|s| s.source) {
        None => Ok(None),
        Some(pb::source::Source::Volume(id)) => Ok(Some(ContentSource::Volume(parse_handle(&id)?))),
        Some(pb::source::Source::Snapshot(id)) => {
            Ok(Some(ContentSource::Snapshot(parse_handle(&id)?)))
        }
    }
}

pub(super) fn range(range: CapacityRange) -> pb::CapacityRange {
    pb::CapacityRange {
        required_bytes: range.required.unwrap_or_default().get(),
        limit_bytes: range.limit.unwrap_or_default().get(),
    }
}

pub(super) fn parse_range(range: Option<pb::CapacityRange>) -> CapacityRange {
    let range = range.unwrap_or_default();
    let size = |n: u64| (n > 0).then(|| Bytes::new(n));
    CapacityRange { required: size(range.required_bytes), limit: size(range.limit_bytes) }
}

pub(super) fn create_volume(request: &CreateVolume) -> pb::CreateVolumeRequest {
    let layout = match request.class.layout {
        ThickLayout::Linear => None,
        ThickLayout::Striped { stripes, stripe_size } => {
            Some(Layout::Striped(pb::create_volume_request::Striped {
                stripes,
                stripe_size_bytes: stripe_size.get(),
            }))
        }
        ThickLayout::Raid { level, legs, stripe_size } => {
            Some(Layout::Raid(pb::create_volume_request::Raid {
                level: level.as_str().to_owned(),
                legs,
                stripe_size_bytes: stripe_size.get(),
            }))
        }
    };
    pb::CreateVolumeRequest {
        name: request.name.to_string(),
        range: Some(range(request.range)),
        backend: request.class.backend.as_ref().map(ToString::to_string).unwrap_or_default(),
        provisioning: provisioning(request.class.provisioning).into(),
        layout,
        wipe: request.class.wipe.map(|w| w.to_string()).unwrap_or_default(),
        usage: usage(request),
        source: request.source.as_ref().map(source),
        claim: request.claim.clone().map(claim),
    }
}

pub(super) fn claim(claim: Claim) -> pb::Claim {
    pb::Claim { namespace: claim.namespace, name: claim.name }
}

pub(super) fn parse_claim(claim: pb::Claim) -> Claim {
    Claim { namespace: claim.namespace, name: claim.name }
}

/// The claim that a node tells of. It is for people: one that can be none is left out.
pub(super) fn told_claim(claim: Option<pb::Claim>) -> Option<Claim> {
    let fits =
        |c: &pb::Claim| c.namespace.len() <= CLAIM_NAME_MAX && c.name.len() <= CLAIM_NAME_MAX;
    claim.filter(fits).map(parse_claim)
}

/// Before the use, and no field of its own: an agent too old to know it refuses the volume.
const LUKS: &str = "luks+";

fn usage(request: &CreateVolume) -> String {
    let encrypted = if request.class.luks { LUKS } else { "" };
    format!("{encrypted}{}", request.usage)
}

pub(super) fn parse_create_volume(request: pb::CreateVolumeRequest) -> Result<CreateVolume> {
    let provisioning = parse_provisioning(request.provisioning());
    let backend = (!request.backend.is_empty())
        .then(|| BackendName::parse(&request.backend).map_err(|e| bad("backend", &e)))
        .transpose()?;
    let layout = match request.layout {
        None => ThickLayout::Linear,
        Some(Layout::Striped(s)) => ThickLayout::Striped {
            stripes: s.stripes,
            stripe_size: Bytes::new(s.stripe_size_bytes),
        },
        Some(Layout::Raid(raid)) => ThickLayout::Raid {
            level: RaidLevel::parse(&raid.level).ok_or_else(|| {
                Error::invalid(format!("the peer asks for the unknown layout {:?}", raid.level))
            })?,
            legs: raid.legs,
            stripe_size: Bytes::new(raid.stripe_size_bytes),
        },
    };
    let wipe = match request.wipe.as_str() {
        "" => None,
        // A way to wipe that this agent does not know must not become none.
        text => Some(Wipe::parse(text).ok_or_else(|| {
            Error::invalid(format!("this node cannot wipe by {text:?}: bring it up to date"))
        })?),
    };
    let (luks, usage) = match request.usage.strip_prefix(LUKS) {
        Some(usage) => (true, usage),
        None => (false, request.usage.as_str()),
    };
    Ok(CreateVolume {
        name: parse_name(&request.name)?,
        range: parse_range(request.range),
        class: VolumeClass { backend, provisioning, layout, wipe, luks },
        usage: Usage::parse(usage).ok_or_else(|| {
            Error::invalid(format!("the peer asks for the unknown use {:?}", request.usage))
        })?,
        source: parse_source(request.source)?,
        claim: request.claim.map(parse_claim),
    })
}

pub(super) fn create_snapshot(request: &CreateSnapshot) -> pb::CreateSnapshotRequest {
    pb::CreateSnapshotRequest {
        name: request.name.to_string(),
        source: request.source.to_string(),
        cow_size_percent: u32::from(request.cow_size.get()),
    }
}

pub(super) fn parse_create_snapshot(request: &pb::CreateSnapshotRequest) -> Result<CreateSnapshot> {
    // An older controller does not say, and means all.
    let percent = u8::try_from(request.cow_size_percent).ok();
    Ok(CreateSnapshot {
        name: parse_name(&request.name)?,
        source: parse_handle(&request.source)?,
        cow_size: percent.and_then(CowSize::percent).unwrap_or(CowSize::FULL),
    })
}

pub(super) fn volume(volume: &Volume) -> pb::Volume {
    pb::Volume {
        handle: volume.handle.to_string(),
        name: volume.name.to_string(),
        size_bytes: volume.size.get(),
        source: volume.source.as_ref().map(source),
        provisioning: provisioning(Some(volume.provisioning)).into(),
        encrypted: volume.encrypted,
        created_unix: volume.created_unix,
        claim: volume.claim.clone().map(claim),
    }
}

pub(super) fn parse_volume(volume: pb::Volume) -> Result<Volume> {
    Ok(Volume {
        handle: parse_handle(&volume.handle)?,
        name: parse_name(&volume.name)?,
        size: Bytes::new(volume.size_bytes),
        provisioning: parse_provisioning(volume.provisioning()).unwrap_or(Provisioning::Thick),
        source: parse_source(volume.source)?,
        encrypted: volume.encrypted,
        created_unix: volume.created_unix,
        claim: told_claim(volume.claim),
    })
}

pub(super) fn snapshot(snapshot: &Snapshot) -> pb::Snapshot {
    pb::Snapshot {
        handle: snapshot.handle.to_string(),
        name: snapshot.name.to_string(),
        source: snapshot.source.to_string(),
        size_bytes: snapshot.size.get(),
        created_unix: snapshot.created_unix,
        lost: !snapshot.ready,
    }
}

pub(super) fn parse_snapshot(snapshot: &pb::Snapshot) -> Result<Snapshot> {
    Ok(Snapshot {
        handle: parse_handle(&snapshot.handle)?,
        name: parse_name(&snapshot.name)?,
        source: parse_handle(&snapshot.source)?,
        size: Bytes::new(snapshot.size_bytes),
        created_unix: snapshot.created_unix,
        ready: !snapshot.lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::tag::FsType;
    use crate::names::LvmUuid;

    fn handle(n: u32) -> Handle {
        Handle::parse(&format!("{}/pvc-{n}", LvmUuid::derived("vg"))).unwrap()
    }

    #[test]
    fn a_claim_that_can_be_none_is_left_out() {
        let told = |len: usize| {
            let claim = pb::Claim { namespace: "a".to_owned(), name: "b".repeat(len) };
            told_claim(Some(claim)).is_some()
        };
        assert!(told(253) && !told(254));
    }

    #[test]
    fn requests_survive_the_way() {
        let request = CreateVolume {
            name: CsiName::parse("pvc-1").unwrap(),
            range: CapacityRange { required: Some(Bytes::gib(1)), limit: None },
            class: VolumeClass {
                backend: Some(BackendName::parse("fast").unwrap()),
                provisioning: Some(Provisioning::Thick),
                layout: ThickLayout::Striped { stripes: 3, stripe_size: Bytes::kib(64) },
                wipe: Some(Wipe::Zero),
                luks: false,
            },
            usage: Usage::Filesystem(FsType::Btrfs),
            source: Some(ContentSource::Volume(handle(1))),
            claim: Some(Claim { namespace: "a".to_owned(), name: "b".to_owned() }),
        };
        assert_eq!(parse_create_volume(create_volume(&request)).unwrap(), request);
        let mut mirrored = request.clone();
        mirrored.class.layout =
            ThickLayout::Raid { level: RaidLevel::Raid5, legs: 4, stripe_size: Bytes::kib(64) };
        assert_eq!(parse_create_volume(create_volume(&mirrored)).unwrap(), mirrored);
        let mut encrypted = request.clone();
        encrypted.class.luks = true;
        assert_eq!(parse_create_volume(create_volume(&encrypted)).unwrap(), encrypted);
        assert_eq!(create_volume(&encrypted).usage, "luks+btrfs");
        let mut odd = create_volume(&request);
        odd.usage = "ntfs".to_owned();
        assert!(parse_create_volume(odd).is_err());
        let mut odd = create_volume(&request);
        odd.wipe = "shred".to_owned();
        assert!(parse_create_volume(odd).is_err());
        let mut odd = create_volume(&request);
        odd.source = Some(pb::Source { source: Some(pb::source::Source::Volume("x".to_owned())) });
        assert!(parse_create_volume(odd).is_err());
    }
}
