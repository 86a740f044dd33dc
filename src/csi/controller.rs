//! CSI Controller: each method checks its request, asks the controller and turns the answer.

use std::sync::Arc;

use cinderblock_proto::csi::v1 as csi;
use csi::controller_server::Controller as Service;
use csi::controller_service_capability as cap;
use csi::volume_capability::AccessType as WireAccess;
use tonic::{Request, Response, Status};

use super::observe::Observer;
use super::{request, response};
use crate::controller::Controller;
use crate::domain::VolumeClass;
use crate::error::{Error, ErrorKind, Result};
use crate::names::Handle;

/// What this driver can do (CSI spec, `ControllerServiceCapability`). `PUBLISH_UNPUBLISH_VOLUME` and
/// what goes with it are for volumes that reach other nodes.
const CAPABILITIES: [cap::rpc::Type; 10] = [
    cap::rpc::Type::CreateDeleteVolume,
    cap::rpc::Type::ListVolumes,
    cap::rpc::Type::GetCapacity,
    cap::rpc::Type::CreateDeleteSnapshot,
    cap::rpc::Type::ListSnapshots,
    cap::rpc::Type::CloneVolume,
    cap::rpc::Type::ExpandVolume,
    cap::rpc::Type::GetVolume,
    cap::rpc::Type::SingleNodeMultiWriter,
    cap::rpc::Type::GetSnapshot,
];

/// The Controller service.
#[derive(Debug)]
pub struct ControllerService {
    controller: Arc<Controller>,
    topology_key: String,
    observer: Observer,
}

impl ControllerService {
    /// The service over a controller. Nodes are named by `topology_key`.
    #[must_use]
    pub const fn new(
        controller: Arc<Controller>,
        topology_key: String,
        observer: Observer,
    ) -> Self {
        Self { controller, topology_key, observer }
    }

    fn validate(
        &self,
        request: &csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse> {
        if request.volume_id.is_empty() || request.volume_capabilities.is_empty() {
            let field =
                if request.volume_id.is_empty() { "volume_id" } else { "volume_capabilities" };
            return Err(Error::invalid(format!("{field} is missing")));
        }
        self.controller.volume(&request::handle("volume_id", &request.volume_id)?)?;
        let checks = [
            request::capabilities(&request.volume_capabilities).map(drop),
            VolumeClass::parse(&request.parameters).map(drop),
            match request.mutable_parameters.keys().next() {
                Some(key) => Err(Error::invalid(format!("mutable parameter {key:?} is not known"))),
                None => Ok(()),
            },
            match request.volume_context.keys().next() {
                Some(key) => Err(Error::invalid(format!("volume context {key:?} is not known"))),
                None => Ok(()),
            },
        ];
        // "Not confirmed" is an answer, not an error (CSI spec).
        if let Some(error) = checks.into_iter().find_map(Result::err) {
            let message = error.chain();
            return Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message });
        }
        let confirmed = csi::validate_volume_capabilities_response::Confirmed {
            volume_context: request.volume_context.clone(),
            volume_capabilities: request.volume_capabilities.clone(),
            parameters: request.parameters.clone(),
            mutable_parameters: request.mutable_parameters.clone(),
        };
        let message = String::new();
        Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message })
    }

    fn list_snapshots(
        &self,
        request: &csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse> {
        let (after, most) = request::page(request.max_entries, &request.starting_token)?;
        let entry = |snapshot| csi::list_snapshots_response::Entry { snapshot: Some(snapshot) };
        if !request.snapshot_id.is_empty() {
            let found = match Handle::parse(&request.snapshot_id) {
                Ok(handle) => self.controller.snapshot(&handle),
                // An id that names nothing of ours is an empty list, not an error.
                Err(_) => return Ok(csi::ListSnapshotsResponse::default()),
            };
            let entries = match found {
                Ok((_, snapshot)) => vec![entry(response::snapshot(&snapshot))],
                Err(e) if e.kind() == ErrorKind::NotFound => vec![],
                Err(e) => return Err(e),
            };
            return Ok(csi::ListSnapshotsResponse { entries, next_token: String::new() });
        }
        let source = match request.source_volume_id.as_str() {
            "" => None,
            text => match Handle::parse(text) {
                Ok(handle) => Some(handle),
                Err(_) => return Ok(csi::ListSnapshotsResponse::default()),
            },
        };
        let page = self.controller.snapshots(after.as_ref(), most, source.as_ref())?;
        Ok(csi::ListSnapshotsResponse {
            entries: page.entries.iter().map(|(_, s)| entry(response::snapshot(s))).collect(),
            next_token: page.next.map(|handle| handle.to_string()).unwrap_or_default(),
        })
    }

    fn capacity(&self, request: &csi::GetCapacityRequest) -> Result<csi::GetCapacityResponse> {
        if !request.volume_capabilities.is_empty() {
            request::capabilities(&request.volume_capabilities)?;
        }
        let node = request
            .accessible_topology
            .as_ref()
            .map(|t| request::topology_node("accessible_topology", t, &self.topology_key))
            .transpose()?;
        let class = (!request.parameters.is_empty())
            .then(|| VolumeClass::parse(&request.parameters))
            .transpose()?;
        let capacity = self.controller.capacity(class.as_ref(), node.as_ref())?;
        Ok(csi::GetCapacityResponse {
            available_capacity: capacity.available.to_i64(),
            maximum_volume_size: Some(capacity.largest.to_i64()),
            minimum_volume_size: Some(capacity.smallest.to_i64()),
        })
    }
}

/// Whether the filesystem has to be grown by the node after the device has grown.
fn needs_node_expansion(request: &csi::ControllerExpandVolumeRequest) -> bool {
    let access = request.volume_capability.as_ref().and_then(|c| c.access_type.as_ref());
    !matches!(access, Some(WireAccess::Block(_)))
}

#[tonic::async_trait]
impl Service for ControllerService {
    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |kind: cap::rpc::Type| csi::ControllerServiceCapability {
            r#type: Some(cap::Type::Rpc(cap::Rpc { r#type: kind.into() })),
        };
        let answer = csi::ControllerGetCapabilitiesResponse {
            capabilities: CAPABILITIES.map(capability).to_vec(),
        };
        let method = "/csi.v1.Controller/ControllerGetCapabilities";
        self.observer.call(method, "", async { Ok(answer) }).await
    }

    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let new = request::create_volume(&request, &self.topology_key)?;
            let made = self.controller.create_volume(new.request, new.topology, &new.parameters);
            let (node, volume) = made.await?;
            let volume = response::volume(&volume, &node, &self.topology_key);
            Ok(csi::CreateVolumeResponse { volume: Some(volume) })
        };
        self.observer.call("/csi.v1.Controller/CreateVolume", &request.name, work).await
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        let work = async {
            if let Some(handle) = request::handle_to_remove("volume_id", &id)? {
                self.controller.delete_volume(handle).await?;
            }
            Ok(csi::DeleteVolumeResponse {})
        };
        self.observer.call("/csi.v1.Controller/DeleteVolume", &id, work).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let method = "/csi.v1.Controller/ValidateVolumeCapabilities";
        self.observer.call(method, &request.volume_id, async { self.validate(&request) }).await
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let (after, most) = request::page(request.max_entries, &request.starting_token)?;
            let page = self.controller.volumes(after.as_ref(), most)?;
            let entry =
                |volume| csi::list_volumes_response::Entry { volume: Some(volume), status: None };
            let entries =
                page.entries.iter().map(|(n, v)| entry(response::volume(v, n, &self.topology_key)));
            let next_token = page.next.map(|handle| handle.to_string()).unwrap_or_default();
            Ok(csi::ListVolumesResponse { entries: entries.collect(), next_token })
        };
        self.observer.call("/csi.v1.Controller/ListVolumes", "", work).await
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        let request = request.into_inner();
        let work = async { self.capacity(&request) };
        self.observer.call("/csi.v1.Controller/GetCapacity", "", work).await
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let new = request::create_snapshot(&request)?;
            let (_, snapshot) = self.controller.create_snapshot(new).await?;
            Ok(csi::CreateSnapshotResponse { snapshot: Some(response::snapshot(&snapshot)) })
        };
        self.observer.call("/csi.v1.Controller/CreateSnapshot", &request.name, work).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        let work = async {
            if let Some(handle) = request::handle_to_remove("snapshot_id", &id)? {
                self.controller.delete_snapshot(handle).await?;
            }
            Ok(csi::DeleteSnapshotResponse {})
        };
        self.observer.call("/csi.v1.Controller/DeleteSnapshot", &id, work).await
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let work = async { self.list_snapshots(&request) };
        self.observer.call("/csi.v1.Controller/ListSnapshots", "", work).await
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        let work = async {
            let (_, snapshot) = self.controller.snapshot(&request::handle("snapshot_id", &id)?)?;
            Ok(csi::GetSnapshotResponse { snapshot: Some(response::snapshot(&snapshot)) })
        };
        self.observer.call("/csi.v1.Controller/GetSnapshot", &id, work).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let (handle, range) = request::expand_volume(&request)?;
            let size = self.controller.expand_volume(handle.clone(), range).await?;
            // What decrypts it grows where it is used.
            let encrypted = self.controller.volume(&handle).is_ok_and(|(_, v)| v.encrypted);
            Ok(csi::ControllerExpandVolumeResponse {
                capacity_bytes: size.to_i64(),
                node_expansion_required: encrypted || needs_node_expansion(&request),
            })
        };
        let method = "/csi.v1.Controller/ControllerExpandVolume";
        self.observer.call(method, &request.volume_id, work).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        let work = async {
            let (node, volume) = self.controller.volume(&request::handle("volume_id", &id)?)?;
            let volume = response::volume(&volume, &node, &self.topology_key);
            Ok(csi::ControllerGetVolumeResponse { volume: Some(volume), status: None })
        };
        self.observer.call("/csi.v1.Controller/ControllerGetVolume", &id, work).await
    }

    async fn controller_publish_volume(
        &self,
        _: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        Err(not_offered("PUBLISH_UNPUBLISH_VOLUME"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        Err(not_offered("PUBLISH_UNPUBLISH_VOLUME"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        Err(not_offered("MODIFY_VOLUME"))
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        Err(not_offered("LIST_VOLUME_HEALTH"))
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        Err(not_offered("GET_VOLUME_HEALTH"))
    }
}

fn not_offered(capability: &str) -> Status {
    Status::unimplemented(format!("this driver does not offer {capability}"))
}
