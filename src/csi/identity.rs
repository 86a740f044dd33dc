//! CSI Identity: who we are and what we offer. The same on every instance.

use std::fmt::Debug;

use cinderblock_proto::csi::v1 as csi;
use csi::identity_server::Identity;
use csi::plugin_capability as cap;
use tonic::{Request, Response, Status};

use super::observe::Observer;

/// Whether the service can take calls. Asked of memory: a probe must never wait for a disk.
pub trait Readiness: Debug + Send + Sync + 'static {
    /// Whether it can.
    fn is_ready(&self) -> bool;
}

/// The Identity service.
#[derive(Debug)]
pub struct IdentityService<R> {
    driver_name: String,
    readiness: R,
    observer: Observer,
}

impl<R: Readiness> IdentityService<R> {
    /// The service of a driver of that name.
    #[must_use]
    pub const fn new(driver_name: String, readiness: R, observer: Observer) -> Self {
        Self { driver_name, readiness, observer }
    }
}

#[tonic::async_trait]
impl<R: Readiness> Identity for IdentityService<R> {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let info = csi::GetPluginInfoResponse {
            name: self.driver_name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: [].into(),
        };
        self.observer.call("/csi.v1.Identity/GetPluginInfo", "", async { Ok(info) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let service =
            |kind: cap::service::Type| cap::Type::Service(cap::Service { r#type: kind.into() });
        let online = cap::VolumeExpansion { r#type: cap::volume_expansion::Type::Online.into() };
        let capabilities = [
            service(cap::service::Type::ControllerService),
            service(cap::service::Type::VolumeAccessibilityConstraints),
            cap::Type::VolumeExpansion(online),
        ];
        let capabilities = capabilities.map(|c| csi::PluginCapability { r#type: Some(c) }).to_vec();
        let answer = csi::GetPluginCapabilitiesResponse { capabilities };
        self.observer.call("/csi.v1.Identity/GetPluginCapabilities", "", async { Ok(answer) }).await
    }

    async fn probe(
        &self,
        _: Request<csi::ProbeRequest>,
    ) -> Result<Response<csi::ProbeResponse>, Status> {
        let answer = csi::ProbeResponse { ready: Some(self.readiness.is_ready()) };
        self.observer.call("/csi.v1.Identity/Probe", "", async { Ok(answer) }).await
    }
}
