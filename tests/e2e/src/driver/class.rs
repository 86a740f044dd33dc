//! What a volume is made as, and from: classes and sources, as CSI says them. Nothing is called here.

use std::collections::BTreeMap;

use super::pb;

/// What a volume is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// Parameter `backend`.
    pub backend: &'static str,
    /// Parameter `provisioning`: `thin` or `thick`.
    pub provisioning: &'static str,
    /// How it is used.
    pub access: Access,
    /// Other parameters.
    pub more: &'static [(&'static str, &'static str)],
}

/// How a volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// With this filesystem.
    Filesystem(&'static str),
    /// As a device.
    Block,
}

impl Access {
    /// As CSI says it; for one node, and any number of pods on it.
    #[must_use]
    pub fn capability(self) -> pb::VolumeCapability {
        use pb::volume_capability::access_mode::Mode;
        use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
        let access = match self {
            Self::Block => AccessType::Block(BlockVolume {}),
            Self::Filesystem(fs) => {
                AccessType::Mount(MountVolume { fs_type: fs.to_owned(), ..MountVolume::default() })
            }
        };
        pb::VolumeCapability {
            access_type: Some(access),
            access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
        }
    }
}

impl Class {
    /// The parameters, as a `StorageClass` has them.
    #[must_use]
    pub fn parameters(&self) -> BTreeMap<String, String> {
        [("backend", self.backend), ("provisioning", self.provisioning)]
            .iter()
            .chain(self.more)
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// The request for a volume of at least this many bytes.
    #[must_use]
    pub fn request(&self, name: &str, bytes: u64) -> pb::CreateVolumeRequest {
        pb::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(range(bytes)),
            volume_capabilities: vec![self.access.capability()],
            parameters: self.parameters(),
            ..pb::CreateVolumeRequest::default()
        }
    }

    /// The same with the content of something that is there.
    #[must_use]
    pub fn request_from(
        &self,
        name: &str,
        bytes: u64,
        from: Source<'_>,
    ) -> pb::CreateVolumeRequest {
        let volume_content_source = Some(from.content_source());
        pb::CreateVolumeRequest { volume_content_source, ..self.request(name, bytes) }
    }
}

/// What a volume is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// The snapshot with this id: it is restored.
    Snapshot(&'a str),
    /// The volume with this id: it is cloned.
    Volume(&'a str),
}

impl Source<'_> {
    /// As CSI says it.
    #[must_use]
    pub fn content_source(self) -> pb::VolumeContentSource {
        use pb::volume_content_source::{SnapshotSource, Type, VolumeSource};
        let from = match self {
            Self::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() }),
            Self::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_owned() }),
        };
        pb::VolumeContentSource { r#type: Some(from) }
    }
}

/// At least this many bytes.
pub(super) fn range(bytes: u64) -> pb::CapacityRange {
    let required_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    pb::CapacityRange { required_bytes, limit_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_what_is_wanted() {
        let class = Class { backend: "b", provisioning: "thick", access: Access::Block, more: &[] };
        let request = class.request("pvc-1", 5);
        assert_eq!(request.capacity_range.unwrap().required_bytes, 5);
        assert_eq!(request.parameters["provisioning"], "thick");
        assert_eq!(request.volume_capabilities.len(), 1);
    }
}
