//! CSI Node: each method checks its request, asks the agent and turns the answer.

use cinderblock_proto::csi::v1 as csi;
use csi::node_server::Node;
use csi::node_service_capability as cap;
use csi::volume_usage::Unit;
use tonic::{Request, Response, Status};

use super::observe::Observer;
use super::{health, request, response};
use crate::agent::{Agent, Statistics};
use crate::domain::Secrets;
use crate::error::Error;
use crate::host::{Host, Usage};
use crate::names::{Handle, NodeName};

const CAPABILITIES: [cap::rpc::Type; 6] = [
    cap::rpc::Type::StageUnstageVolume,
    cap::rpc::Type::GetVolumeStats,
    cap::rpc::Type::ExpandVolume,
    cap::rpc::Type::SingleNodeMultiWriter,
    // Of CSI 1.13; whoever is older does not ask.
    cap::rpc::Type::GetVolumeHealth,
    cap::rpc::Type::GetStorageHealth,
];

/// The Node service.
#[derive(Debug)]
pub struct NodeService<H> {
    agent: Agent<H>,
    node: NodeName,
    topology_key: String,
    observer: Observer,
}

impl<H: Host> NodeService<H> {
    /// The service of a node's agent.
    #[must_use]
    pub const fn new(
        agent: Agent<H>,
        node: NodeName,
        topology_key: String,
        observer: Observer,
    ) -> Self {
        Self { agent, node, topology_key, observer }
    }
}

fn usage(unit: Unit, usage: Usage) -> csi::VolumeUsage {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    csi::VolumeUsage {
        available: number(usage.available),
        total: number(usage.total),
        used: number(usage.used),
        unit: unit.into(),
    }
}

fn statistics(statistics: Statistics) -> csi::NodeGetVolumeStatsResponse {
    let usage = match statistics {
        Statistics::Filesystem(fs) => {
            vec![usage(Unit::Bytes, fs.bytes), usage(Unit::Inodes, fs.inodes)]
        }
        // What a device's user has written where is not ours to know.
        Statistics::Block(size) => {
            vec![usage(Unit::Bytes, Usage { total: size.get(), ..Usage::default() })]
        }
    };
    csi::NodeGetVolumeStatsResponse { usage }
}

#[tonic::async_trait]
impl<H: Host> Node for NodeService<H> {
    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: cap::rpc::Type| csi::NodeServiceCapability {
            r#type: Some(cap::Type::Rpc(cap::Rpc { r#type: kind.into() })),
        };
        let answer = csi::NodeGetCapabilitiesResponse {
            capabilities: CAPABILITIES.map(capability).to_vec(),
        };
        self.observer.call("/csi.v1.Node/NodeGetCapabilities", "", async { Ok(answer) }).await
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let answer = csi::NodeGetInfoResponse {
            node_id: self.node.to_string(),
            max_volumes_per_node: 0,
            accessible_topology: Some(response::topology(&self.node, &self.topology_key)),
        };
        self.observer.call("/csi.v1.Node/NodeGetInfo", "", async { Ok(answer) }).await
    }

    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let mut request = request.into_inner();
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let work = async {
            self.agent.stage(request::stage(&request, secrets)?).await?;
            Ok(csi::NodeStageVolumeResponse {})
        };
        self.observer.call("/csi.v1.Node/NodeStageVolume", &request.volume_id, work).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let volume = request::handle_to_remove("volume_id", &request.volume_id)?;
            let path = request::path("staging_target_path", &request.staging_target_path)?;
            self.agent.unstage(volume, path).await?;
            Ok(csi::NodeUnstageVolumeResponse {})
        };
        self.observer.call("/csi.v1.Node/NodeUnstageVolume", &request.volume_id, work).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            self.agent.publish_volume(request::publish(&request)?).await?;
            Ok(csi::NodePublishVolumeResponse {})
        };
        self.observer.call("/csi.v1.Node/NodePublishVolume", &request.volume_id, work).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            if request.volume_id.is_empty() {
                return Err(Error::invalid("volume_id is missing"));
            }
            let target = request::path("target_path", &request.target_path)?;
            self.agent.unpublish_volume(target).await?;
            Ok(csi::NodeUnpublishVolumeResponse {})
        };
        self.observer.call("/csi.v1.Node/NodeUnpublishVolume", &request.volume_id, work).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let (volume, path) = request::volume_at(&request.volume_id, &request.volume_path)?;
            self.agent.statistics(volume, path).await.map(statistics)
        };
        self.observer.call("/csi.v1.Node/NodeGetVolumeStats", &request.volume_id, work).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let mut request = request.into_inner();
        let secrets = Secrets::new(std::mem::take(&mut request.secrets));
        let work = async {
            let (volume, path): (Handle, _) =
                request::volume_at(&request.volume_id, &request.volume_path)?;
            let range = request::range(request.capacity_range.as_ref())?;
            let size = self.agent.expand_published(volume, path, range, secrets).await?;
            Ok(csi::NodeExpandVolumeResponse { capacity_bytes: size.to_i64() })
        };
        self.observer.call("/csi.v1.Node/NodeExpandVolume", &request.volume_id, work).await
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let (volume, paths) = request::health(&request)?;
            let found = self.agent.volume_health(&volume, &paths).await?;
            let volume_health = Some(health::of_volume(&volume, found));
            Ok(csi::NodeGetVolumeHealthResponse { volume_health })
        };
        self.observer.call("/csi.v1.Node/NodeGetVolumeHealth", &request.volume_id, work).await
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        let work = async {
            let backend_health = health::of_storage(self.agent.storage_health());
            Ok(csi::NodeGetStorageHealthResponse { backend_health })
        };
        self.observer.call("/csi.v1.Node/NodeGetStorageHealth", "", work).await
    }
}
