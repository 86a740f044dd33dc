//! CSI calls from the host to a driver in a VM, each with a deadline. What the answers should be is not known here.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cinderblock_proto::csi::v1::controller_client::ControllerClient;
use cinderblock_proto::csi::v1::node_client::NodeClient;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status};

use super::class::{Access, Class, range};
use super::switch::Power;
use crate::netns::NetNs;

/// The messages of CSI.
pub use cinderblock_proto::csi::v1 as pb;

/// For a connection, on a machine that stalls; where nobody listens it is refused at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// For a call; what makes a filesystem takes some seconds in a VM.
const CALL_TIMEOUT: Duration = Duration::from_mins(2);

/// A client of a driver's CSI services. Calls block; clones share the connection, which is made anew
/// when it breaks.
#[derive(Clone)]
pub struct Csi {
    runtime: Arc<Runtime>,
    channel: Channel,
    timeout: Duration,
    secrets: BTreeMap<String, String>,
    power: Power,
}

impl fmt::Debug for Csi {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Csi").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

fn publish_request(
    volume: &str,
    access: Access,
    staging: &Path,
    target: &Path,
) -> pb::NodePublishVolumeRequest {
    pb::NodePublishVolumeRequest {
        volume_id: volume.to_owned(),
        staging_target_path: text(staging),
        target_path: text(target),
        volume_capability: Some(access.capability()),
        ..pb::NodePublishVolumeRequest::default()
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Whether a failed call has to be repeated: it may still be going on, or was cut. After any other
/// code nothing was left behind.
#[must_use]
pub fn is_open(status: &Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    transport
        || matches!(
            status.code(),
            Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled
        )
}

impl Csi {
    /// A client of what answers on this port in a lab's namespace; it connects when it is used.
    pub(super) fn through(net: &NetNs, address: Ipv4Addr, port: u16) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting a thread for CSI calls")?;
        let net = net.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let net = net.clone();
            async move {
                let connect = move || net.connect(address, port, CONNECT_TIMEOUT);
                let connected = tokio::task::spawn_blocking(connect).await?;
                let stream = connected.map_err(|error| io::Error::other(format!("{error:#}")))?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                TcpStream::from_std(stream).map(TokioIo::new)
            }
        });
        let channel = {
            let _inside = runtime.enter();
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
        };
        let (timeout, secrets) = (CALL_TIMEOUT, BTreeMap::new());
        Ok(Self { runtime: Arc::new(runtime), channel, timeout, secrets, power: Power::default() })
    }

    /// Another time that a call may take, two minutes by default.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whose calls end when this power is off.
    #[must_use]
    pub fn with_power(mut self, power: &Power) -> Self {
        self.power = power.clone();
        self
    }

    /// With what a Secret of the class says, for the calls that take it.
    #[must_use]
    pub fn with_secrets(mut self, entries: &[(&str, &str)]) -> Self {
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        self.secrets = entries.iter().map(text).collect();
        self
    }

    fn wait<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let late = || {
            let after = self.timeout.as_secs_f32();
            Err(Status::deadline_exceeded(format!("no answer within {after} s")))
        };
        self.runtime.block_on(async {
            tokio::select! {
                answer = call => answer.map(Response::into_inner),
                () = tokio::time::sleep(self.timeout) => late(),
                () = self.power.failure() => Err(Status::unavailable("the machine has no power")),
            }
        })
    }

    /// Any call of the Controller service.
    ///
    /// # Errors
    /// The driver's status, or that of a connection that broke or an answer that did not come.
    pub fn controller<T>(
        &self,
        call: impl AsyncFnOnce(ControllerClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        self.wait(call(ControllerClient::new(self.channel.clone())))
    }

    /// Any call of the Node service.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn node<T>(
        &self,
        call: impl AsyncFnOnce(NodeClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        self.wait(call(NodeClient::new(self.channel.clone())))
    }

    /// `CreateVolume`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn create(&self, request: &pb::CreateVolumeRequest) -> Result<pb::Volume, Status> {
        let request = request.clone();
        let answer = self.controller(async |mut it| it.create_volume(request).await)?;
        answer.volume.ok_or_else(|| Status::internal("the answer has no volume"))
    }

    /// `DeleteVolume`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn delete(&self, volume: &str) -> Result<(), Status> {
        let volume_id = volume.to_owned();
        let request = pb::DeleteVolumeRequest { volume_id, ..Default::default() };
        self.controller(async |mut it| it.delete_volume(request).await).map(drop)
    }

    /// `CreateSnapshot`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn snapshot(&self, name: &str, volume: &str) -> Result<pb::Snapshot, Status> {
        self.snapshot_with(name, volume, &[])
    }

    /// The same with parameters of a `VolumeSnapshotClass`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn snapshot_with(
        &self,
        name: &str,
        volume: &str,
        parameters: &[(&str, &str)],
    ) -> Result<pb::Snapshot, Status> {
        let own = |text: &&str| (*text).to_owned();
        let request = pb::CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: volume.to_owned(),
            parameters: parameters.iter().map(|(k, v)| (own(k), own(v))).collect(),
            ..pb::CreateSnapshotRequest::default()
        };
        let answer = self.controller(async |mut it| it.create_snapshot(request).await)?;
        answer.snapshot.ok_or_else(|| Status::internal("the answer has no snapshot"))
    }

    /// `DeleteSnapshot`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn delete_snapshot(&self, snapshot: &str) -> Result<(), Status> {
        let snapshot_id = snapshot.to_owned();
        let request = pb::DeleteSnapshotRequest { snapshot_id, ..Default::default() };
        self.controller(async |mut it| it.delete_snapshot(request).await).map(drop)
    }

    /// `ControllerExpandVolume`; the size then, in bytes.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn expand(&self, volume: &str, bytes: u64) -> Result<u64, Status> {
        let request = pb::ControllerExpandVolumeRequest {
            volume_id: volume.to_owned(),
            capacity_range: Some(range(bytes)),
            ..pb::ControllerExpandVolumeRequest::default()
        };
        let answer = self.controller(async |mut it| it.controller_expand_volume(request).await)?;
        Ok(u64::try_from(answer.capacity_bytes).unwrap_or_default())
    }

    /// `ListVolumes`, all pages in one.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn volumes(&self) -> Result<Vec<pb::Volume>, Status> {
        let request = pb::ListVolumesRequest::default();
        let answer = self.controller(async |mut it| it.list_volumes(request).await)?;
        Ok(answer.entries.into_iter().filter_map(|entry| entry.volume).collect())
    }

    /// `ListSnapshots`, all pages in one.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn snapshots(&self) -> Result<Vec<pb::Snapshot>, Status> {
        let request = pb::ListSnapshotsRequest::default();
        let answer = self.controller(async |mut it| it.list_snapshots(request).await)?;
        Ok(answer.entries.into_iter().filter_map(|entry| entry.snapshot).collect())
    }

    /// `GetCapacity` for a class; bytes.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn capacity(&self, class: &Class) -> Result<u64, Status> {
        Ok(u64::try_from(self.get_capacity(class)?.available_capacity).unwrap_or_default())
    }

    /// The largest volume that `GetCapacity` offers to a class; bytes.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn largest(&self, class: &Class) -> Result<u64, Status> {
        let largest = self.get_capacity(class)?.maximum_volume_size.unwrap_or_default();
        Ok(u64::try_from(largest).unwrap_or_default())
    }

    fn get_capacity(&self, class: &Class) -> Result<pb::GetCapacityResponse, Status> {
        let request = pb::GetCapacityRequest {
            volume_capabilities: vec![class.access.capability()],
            parameters: class.parameters(),
            ..pb::GetCapacityRequest::default()
        };
        self.controller(async |mut it| it.get_capacity(request).await)
    }

    /// `NodeStageVolume`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn stage(&self, volume: &str, access: Access, staging: &Path) -> Result<(), Status> {
        let request = pb::NodeStageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: text(staging),
            volume_capability: Some(access.capability()),
            secrets: self.secrets.clone(),
            ..pb::NodeStageVolumeRequest::default()
        };
        self.node(async |mut it| it.node_stage_volume(request).await).map(drop)
    }

    /// `NodeUnstageVolume`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn unstage(&self, volume: &str, staging: &Path) -> Result<(), Status> {
        let request = pb::NodeUnstageVolumeRequest {
            volume_id: volume.to_owned(),
            staging_target_path: text(staging),
        };
        self.node(async |mut it| it.node_unstage_volume(request).await).map(drop)
    }

    /// `NodePublishVolume`, to be read and written.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn publish(
        &self,
        volume: &str,
        access: Access,
        staging: &Path,
        target: &Path,
    ) -> Result<(), Status> {
        let request = publish_request(volume, access, staging, target);
        self.node(async |mut it| it.node_publish_volume(request).await).map(drop)
    }

    /// `NodePublishVolume`, to be read only.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn publish_read_only(
        &self,
        volume: &str,
        access: Access,
        staging: &Path,
        target: &Path,
    ) -> Result<(), Status> {
        let request = publish_request(volume, access, staging, target);
        let request = pb::NodePublishVolumeRequest { readonly: true, ..request };
        self.node(async |mut it| it.node_publish_volume(request).await).map(drop)
    }

    /// `NodeUnpublishVolume`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn unpublish(&self, volume: &str, target: &Path) -> Result<(), Status> {
        let request = pb::NodeUnpublishVolumeRequest {
            volume_id: volume.to_owned(),
            target_path: text(target),
        };
        self.node(async |mut it| it.node_unpublish_volume(request).await).map(drop)
    }

    /// `NodeGetVolumeStats`.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn stats(&self, volume: &str, path: &Path) -> Result<Vec<pb::VolumeUsage>, Status> {
        let request = pb::NodeGetVolumeStatsRequest {
            volume_id: volume.to_owned(),
            volume_path: text(path),
            ..pb::NodeGetVolumeStatsRequest::default()
        };
        let answer = self.node(async |mut it| it.node_get_volume_stats(request).await)?;
        Ok(answer.usage)
    }

    /// `NodeGetVolumeHealth`: the reasons why the volume is not well.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn health(&self, volume: &str) -> Result<Vec<String>, Status> {
        let request = pb::NodeGetVolumeHealthRequest {
            volume_id: volume.to_owned(),
            ..pb::NodeGetVolumeHealthRequest::default()
        };
        let answer = self.node(async |mut it| it.node_get_volume_health(request).await)?;
        let entries = answer.volume_health.unwrap_or_default().health_statuses;
        Ok(entries.into_iter().map(|entry| entry.reason).collect())
    }

    /// `NodeExpandVolume`; the size then, in bytes.
    ///
    /// # Errors
    /// As [`Csi::controller`].
    pub fn expand_on_node(&self, volume: &str, path: &Path) -> Result<u64, Status> {
        let request = pb::NodeExpandVolumeRequest {
            volume_id: volume.to_owned(),
            volume_path: text(path),
            secrets: self.secrets.clone(),
            ..pb::NodeExpandVolumeRequest::default()
        };
        let answer = self.node(async |mut it| it.node_expand_volume(request).await)?;
        Ok(u64::try_from(answer.capacity_bytes).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_call_is_open_and_a_refused_one_is_not() {
        for code in [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded] {
            assert!(is_open(&Status::new(code, "")), "{code:?}");
        }
        for code in [Code::Internal, Code::ResourceExhausted, Code::NotFound] {
            assert!(!is_open(&Status::new(code, "")), "{code:?}");
        }
        assert!(is_open(&Status::from_error(Box::new(io::Error::other("broken pipe")))));
    }
}
