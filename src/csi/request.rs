//! Requests, checked field by field before anything else happens. Every error names the field, and
//! says what was expected. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cinderblock_proto::csi::v1 as csi;
use csi::volume_capability::AccessType as WireAccess;
use csi::volume_capability::access_mode::Mode;
use csi::volume_content_source::Type as WireSource;

use crate::agent::{Publish, Stage};
use crate::domain::{
    AccessMode, AccessType, Capability, CapacityRange, ContentSource, CowSize, CreateSnapshot,
    CreateVolume, Parameters, Secrets, Topology, VolumeClass, claim,
};
use crate::error::{Error, ErrorKind, Result};
use crate::lvm::tag::{FsType, Usage};
use crate::names::{CsiName, Handle, NodeName};
use crate::units::Bytes;

/// Mount options of one volume, together (CSI spec, "Size Limits": 4 KiB).
const MOUNT_OPTIONS_BYTES_MAX: usize = 4096;
/// The longest path that the kernel takes.
const PATH_BYTES_MAX: usize = 4096;

/// A request for a volume, with where it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// What to make.
    pub request: CreateVolume,
    /// Where it may be.
    pub topology: Topology,
    /// The class's parameters, as they came.
    pub parameters: Parameters,
}

fn missing(field: &str) -> Error {
    Error::invalid(format!("{field} is missing"))
}

/// The id of a volume or snapshot that has to be there. One that we never gave out names nothing.
///
/// # Errors
/// `Invalid` when it is missing, `NotFound` when it cannot be one of ours.
pub fn handle(field: &str, text: &str) -> Result<Handle> {
    if text.is_empty() {
        return Err(missing(field));
    }
    Handle::parse(text)
        .map_err(|e| Error::not_found(format!("{field}: {e}, so it names nothing of this driver")))
}

/// The id of a volume or snapshot that is to be removed: `None` names nothing, and so is gone.
///
/// # Errors
/// When it is missing.
pub fn handle_to_remove(field: &str, text: &str) -> Result<Option<Handle>> {
    match handle(field, text) {
        Ok(handle) => Ok(Some(handle)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// # Errors
/// When it is missing, or not an absolute path.
pub fn path(field: &str, text: &str) -> Result<PathBuf> {
    if text.is_empty() {
        return Err(missing(field));
    }
    let path = PathBuf::from(text);
    let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    if !path.is_absolute() || !plain || text.len() > PATH_BYTES_MAX || text.contains('\0') {
        return Err(Error::invalid(format!(
            "{field}: {text:?} is not an absolute path without '..'"
        )));
    }
    Ok(path)
}

/// Bytes at least and at most; zero stands for "any" (CSI spec, `CapacityRange`).
///
/// # Errors
/// When a size is negative, or the limit is below what is required.
pub fn range(range: Option<&csi::CapacityRange>) -> Result<CapacityRange> {
    let Some(range) = range else { return Ok(CapacityRange::default()) };
    let size = |field: &str, n: i64| {
        let size = Bytes::from_i64(n)
            .ok_or_else(|| Error::invalid(format!("capacity_range.{field} is negative: {n}")))?;
        Ok::<_, Error>((!size.is_zero()).then_some(size))
    };
    let range = CapacityRange {
        required: size("required_bytes", range.required_bytes)?,
        limit: size("limit_bytes", range.limit_bytes)?,
    };
    match (range.required, range.limit) {
        (Some(required), Some(limit)) if limit < required => Err(Error::invalid(format!(
            "capacity_range.limit_bytes, {limit}, is less than required_bytes, {required}"
        ))),
        _ => Ok(range),
    }
}

/// # Errors
/// When it is missing, incomplete, or needs what a volume on one node's disks cannot give.
pub fn capability(field: &str, capability: Option<&csi::VolumeCapability>) -> Result<Capability> {
    let capability = capability.ok_or_else(|| missing(field))?;
    let bad = |what: String| Error::invalid(format!("{field}.{what}"));
    let mode =
        capability.access_mode.as_ref().ok_or_else(|| bad("access_mode is missing".to_owned()))?;
    let mode = match Mode::try_from(mode.mode) {
        Ok(Mode::SingleNodeWriter | Mode::SingleNodeSingleWriter) => AccessMode::SingleWriter,
        Ok(Mode::SingleNodeReaderOnly) => AccessMode::SingleReader,
        Ok(Mode::SingleNodeMultiWriter) => AccessMode::MultiWriter,
        Ok(
            mode @ (Mode::MultiNodeReaderOnly
            | Mode::MultiNodeSingleWriter
            | Mode::MultiNodeMultiWriter),
        ) => {
            return Err(bad(format!(
                "access_mode: {} needs several nodes, and a volume of this driver is on one: use ReadWriteOnce or ReadWriteOncePod",
                mode.as_str_name()
            )));
        }
        Ok(Mode::Unknown) | Err(_) => {
            return Err(bad(format!("access_mode: {} is not known", mode.mode)));
        }
    };
    let access = match capability.access_type.as_ref() {
        None => return Err(bad("access_type is missing: neither block nor mount".to_owned())),
        Some(WireAccess::Block(_)) => AccessType::Block,
        Some(WireAccess::Mount(mount)) => {
            let fs = match mount.fs_type.as_str() {
                "" => FsType::Ext4,
                name => FsType::parse(name).ok_or_else(|| {
                    let known: Vec<_> = FsType::ALL.iter().map(|fs| fs.as_str()).collect();
                    bad(format!("mount.fs_type: {name:?} is not offered: use {}", known.join(", ")))
                })?,
            };
            if !mount.volume_mount_group.is_empty() {
                return Err(
                    bad("mount.volume_mount_group: is not offered; use fsGroup".to_owned()),
                );
            }
            if mount.mount_flags.iter().map(String::len).sum::<usize>() > MOUNT_OPTIONS_BYTES_MAX {
                return Err(bad(format!(
                    "mount.mount_flags: more than {MOUNT_OPTIONS_BYTES_MAX} bytes"
                )));
            }
            AccessType::Mount { fs, options: mount.mount_flags.clone() }
        }
    };
    Ok(Capability { access, mode })
}

/// All capabilities of a volume. What it is used for when they differ: as a device, if any is one.
///
/// # Errors
/// When there are none, or one cannot be had.
pub fn capabilities(list: &[csi::VolumeCapability]) -> Result<Vec<Capability>> {
    if list.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    let each = |(i, c): (usize, &csi::VolumeCapability)| {
        capability(&format!("volume_capabilities[{i}]"), Some(c))
    };
    list.iter().enumerate().map(each).collect()
}

fn usage(capabilities: &[Capability]) -> Result<Usage> {
    let mut usages: Vec<Usage> = capabilities.iter().map(|c| c.access.usage()).collect();
    usages.sort_unstable();
    usages.dedup();
    match usages.as_slice() {
        [Usage::Block, ..] => Ok(Usage::Block),
        [only] => Ok(*only),
        _ => Err(Error::invalid("volume_capabilities: a volume cannot have several filesystems")),
    }
}

fn no_mutable(parameters: &BTreeMap<String, String>) -> Result<()> {
    match parameters.keys().next() {
        None => Ok(()),
        Some(key) => Err(Error::invalid(format!(
            "mutable parameter {key:?}: this driver has none yet; remove the VolumeAttributesClass"
        ))),
    }
}

/// The node that a topology names by our key.
///
/// # Errors
/// When it does not name one.
pub fn topology_node(field: &str, topology: &csi::Topology, key: &str) -> Result<NodeName> {
    let value = topology.segments.get(key).ok_or_else(|| {
        Error::invalid(format!(
            "{field}: the topology segment {key:?}, by which this driver names nodes, is missing"
        ))
    })?;
    NodeName::parse(value).map_err(|e| Error::invalid(format!("{field}: {e}")))
}

fn topology(requirement: Option<&csi::TopologyRequirement>, key: &str) -> Result<Topology> {
    let Some(requirement) = requirement else { return Ok(Topology::default()) };
    let nodes = |field: &str, list: &[csi::Topology]| -> Result<Vec<NodeName>> {
        let field = format!("accessibility_requirements.{field}");
        list.iter().map(|topology| topology_node(&field, topology, key)).collect()
    };
    Ok(Topology {
        requisite: nodes("requisite", &requirement.requisite)?,
        preferred: nodes("preferred", &requirement.preferred)?,
    })
}

fn source(source: Option<&csi::VolumeContentSource>) -> Result<Option<ContentSource>> {
    let Some(source) = source else { return Ok(None) };
    match source.r#type.as_ref() {
        None => Err(missing("volume_content_source.type")),
        Some(WireSource::Snapshot(s)) => {
            let field = "volume_content_source.snapshot.snapshot_id";
            Ok(Some(ContentSource::Snapshot(handle(field, &s.snapshot_id)?)))
        }
        Some(WireSource::Volume(v)) => {
            let field = "volume_content_source.volume.volume_id";
            Ok(Some(ContentSource::Volume(handle(field, &v.volume_id)?)))
        }
    }
}

/// # Errors
/// The first field that is wrong.
pub fn create_volume(request: &csi::CreateVolumeRequest, topology_key: &str) -> Result<NewVolume> {
    let name = CsiName::parse(&request.name).map_err(|e| Error::invalid(format!("name {e}")))?;
    let capabilities = capabilities(&request.volume_capabilities)?;
    no_mutable(&request.mutable_parameters)?;
    Ok(NewVolume {
        request: CreateVolume {
            name,
            range: range(request.capacity_range.as_ref())?,
            class: VolumeClass::parse(&request.parameters)?,
            usage: usage(&capabilities)?,
            source: source(request.volume_content_source.as_ref())?,
            claim: claim(&request.parameters),
        },
        topology: topology(request.accessibility_requirements.as_ref(), topology_key)?,
        parameters: request.parameters.clone(),
    })
}

/// # Errors
/// The first field that is wrong.
pub fn create_snapshot(request: &csi::CreateSnapshotRequest) -> Result<CreateSnapshot> {
    let name = CsiName::parse(&request.name).map_err(|e| Error::invalid(format!("name {e}")))?;
    let source = handle("source_volume_id", &request.source_volume_id)?;
    let ours = |(key, _): &(&String, &String)| !key.starts_with("csi.storage.k8s.io/");
    let mut cow_size = CowSize::FULL;
    for (key, value) in request.parameters.iter().filter(ours) {
        if key != "cowSize" {
            return Err(Error::invalid(format!(
                "unknown parameter {key:?}: a VolumeSnapshotClass of this driver may have cowSize"
            )));
        }
        let percent = value.strip_suffix('%').and_then(|n| n.parse().ok());
        cow_size = percent.and_then(CowSize::percent).ok_or_else(|| {
            Error::invalid(format!(
                "parameter cowSize: {value:?} is not a percentage from 1% to 100%"
            ))
        })?;
    }
    Ok(CreateSnapshot { name, source, cow_size })
}

/// The volume and its new size.
///
/// # Errors
/// The first field that is wrong.
pub fn expand_volume(
    request: &csi::ControllerExpandVolumeRequest,
) -> Result<(Handle, CapacityRange)> {
    if request.volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    if request.capacity_range.is_none() {
        return Err(missing("capacity_range"));
    }
    let range = range(request.capacity_range.as_ref())?;
    Ok((handle("volume_id", &request.volume_id)?, range))
}

/// Where a list begins, and how many entries it may have. `None` is "as many as you like".
///
/// # Errors
/// When the number is negative, or the token is not one of ours.
pub fn page(max_entries: i32, starting_token: &str) -> Result<(Option<Handle>, Option<usize>)> {
    let most = usize::try_from(max_entries)
        .map_err(|_| Error::invalid(format!("max_entries is negative: {max_entries}")))?;
    let after = match starting_token {
        "" => None,
        token => Some(Handle::parse(token).map_err(|e| {
            let sentence = format!("starting_token {token:?} is not one that this driver gave out");
            Error::new(ErrorKind::BadToken, sentence).because(e)
        })?),
    };
    Ok((after, (most > 0).then_some(most)))
}

/// # Errors
/// The first field that is wrong.
pub fn stage(request: &csi::NodeStageVolumeRequest, secrets: Secrets) -> Result<Stage> {
    if request.volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let path = path("staging_target_path", &request.staging_target_path)?;
    let capability = capability("volume_capability", request.volume_capability.as_ref())?;
    let volume = handle("volume_id", &request.volume_id)?;
    Ok(Stage { volume, path, capability, secrets })
}

/// # Errors
/// The first field that is wrong.
pub fn publish(request: &csi::NodePublishVolumeRequest) -> Result<Publish> {
    if request.volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    let target = path("target_path", &request.target_path)?;
    let capability = capability("volume_capability", request.volume_capability.as_ref())?;
    if request.staging_target_path.is_empty() {
        return Err(Error::failed_precondition(
            "staging_target_path is missing: NodeStageVolume comes first",
        ));
    }
    Ok(Publish {
        volume: handle("volume_id", &request.volume_id)?,
        staging: path("staging_target_path", &request.staging_target_path)?,
        target,
        capability,
        read_only: request.readonly,
    })
}

/// A volume and a path at which it has to be. Any path may be asked about.
///
/// # Errors
/// `Invalid` when one is missing, `NotFound` when it cannot be a volume of ours.
pub fn volume_at(volume_id: &str, volume_path: &str) -> Result<(Handle, PathBuf)> {
    if volume_id.is_empty() {
        return Err(missing("volume_id"));
    }
    if volume_path.is_empty() {
        return Err(missing("volume_path"));
    }
    Ok((handle("volume_id", volume_id)?, PathBuf::from(volume_path)))
}

/// A volume whose health is asked for, and where it may be mounted. A path that is none is left out:
/// nothing is mounted there.
///
/// # Errors
/// When the volume's id is missing or none of ours.
pub fn health(request: &csi::NodeGetVolumeHealthRequest) -> Result<(Handle, Vec<PathBuf>)> {
    let volume = handle("volume_id", &request.volume_id)?;
    let paths = [&request.staging_target_path, &request.volume_publish_path];
    Ok((volume, paths.into_iter().filter_map(|text| path("path", text).ok()).collect()))
}
