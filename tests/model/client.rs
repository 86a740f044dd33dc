//! Turns operations into calls over the socket, and what comes back into answers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cinderblock::names::{CsiName, Handle, LvName, LvmUuid};
use cinderblock::sim::SimHost;
use cinderblock_proto::csi::v1 as pb;
use pb::controller_client::ControllerClient;
use pb::node_client::NodeClient;
use pb::volume_capability::access_mode::Mode;
use pb::volume_content_source::{SnapshotSource, Type, VolumeSource};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::class::Class;
use crate::outcome::Answer;
use crate::rules::wrong_kind_is_snapshot;
use crate::script::{Access, Call, From, Key, Op, SNAPSHOTS, VOLUMES};

const MIB: i64 = 1 << 20;
const MASTER: &str = "4gBpy3bX0bZ9uTnGfQ6a3uG0r9pQz1J0h2k5m8n1s4o=";
/// No call may take longer.
const CALL_MAX: Duration = Duration::from_mins(10);

/// Calls the driver.
#[derive(Clone, Debug)]
pub struct Client {
    pub host: SimHost,
    pub vg: LvmUuid,
    pub controller: ControllerClient<Channel>,
    pub node: NodeClient<Channel>,
}

/// The CSI name of a volume; one of them is none that LVM takes.
pub fn volume_name(v: u8) -> String {
    if v + 1 == VOLUMES { "data for all".to_owned() } else { format!("pvc-{v}") }
}

pub fn snapshot_name(s: u8) -> String {
    if s + 1 == SNAPSHOTS { "every night".to_owned() } else { format!("snapshot-{s}") }
}

pub fn volume_lv(v: u8) -> LvName {
    LvName::for_volume(&CsiName::parse(&volume_name(v)).unwrap())
}

pub fn snapshot_lv(s: u8) -> LvName {
    LvName::for_snapshot(&CsiName::parse(&snapshot_name(s)).unwrap())
}

pub fn staging_path(v: u8) -> String {
    format!("/stage/{v}")
}

pub fn place_path(at: u8) -> String {
    format!("/pods/{at}")
}

fn capability(access: Access) -> pb::VolumeCapability {
    use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    let fs = match access {
        Access::Block => None,
        Access::Ext4 => Some("ext4"),
        Access::Xfs => Some("xfs"),
        Access::Btrfs => Some("btrfs"),
    };
    let access = match fs {
        None => AccessType::Block(BlockVolume {}),
        Some(fs) => AccessType::Mount(MountVolume { fs_type: fs.to_owned(), ..Default::default() }),
    };
    pb::VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeMultiWriter.into() }),
    }
}

fn secrets(key: Key) -> BTreeMap<String, String> {
    let entries: &[(&str, &str)] = match key {
        Key::Missing => &[],
        Key::Master => &[("masterKey", MASTER)],
        Key::Phrase => &[("passphrase", "open sesame")],
        Key::PhraseForMaster => &[("passphrase", "open sesame"), ("previousMasterKey", MASTER)],
    };
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn range(mib: u64, limit: u64) -> Option<pb::CapacityRange> {
    let bytes = |mib: u64| mib as i64 * MIB;
    Some(pb::CapacityRange { required_bytes: bytes(mib), limit_bytes: bytes(limit) })
}

/// A size in MiB; one that is not whole is none that the model knows.
pub fn mib(bytes: i64) -> u64 {
    if bytes % MIB == 0 { (bytes / MIB) as u64 } else { u64::MAX }
}

impl Client {
    fn handle(&self, lv: LvName) -> String {
        Handle { vg: self.vg.clone(), lv }.to_string()
    }

    pub fn volume_id(&self, v: u8) -> String {
        self.handle(volume_lv(v))
    }

    pub fn snapshot_id(&self, s: u8) -> String {
        self.handle(snapshot_lv(s))
    }

    /// Which volume has that id.
    pub fn volume_of(&self, id: &str) -> Option<u8> {
        (0..VOLUMES).find(|v| self.volume_id(*v) == id)
    }

    pub fn snapshot_of(&self, id: &str) -> Option<u8> {
        (0..SNAPSHOTS).find(|s| self.snapshot_id(*s) == id)
    }

    /// What a source means.
    pub fn source(&self, source: Option<&pb::VolumeContentSource>) -> Option<From> {
        match source.and_then(|it| it.r#type.as_ref()) {
            None => Some(From::Nothing),
            Some(Type::Snapshot(it)) => self.snapshot_of(&it.snapshot_id).map(From::OfSnapshot),
            Some(Type::Volume(it)) => self.volume_of(&it.volume_id).map(From::OfVolume),
        }
    }

    /// Makes a call. `data` is what a pod writes.
    pub async fn call(self, call: Call, data: String) -> Answer {
        let gone = async {
            match call.cancel {
                Some(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                None => std::future::pending().await,
            }
        };
        let answer = tokio::time::timeout(CALL_MAX, self.perform(&call.op, &data));
        let answer = tokio::select! {
            biased;
            () = self.host.death() => Answer::Lost,
            answer = answer => answer.unwrap_or_else(|_| {
                refused(&Status::unknown("there was no answer within ten minutes"))
            }),
            () = gone => Answer::Lost,
        };
        // Nobody hears what a process says that is dead.
        if self.host.is_dead() { Answer::Lost } else { answer }
    }

    async fn perform(&self, op: &Op, data: &str) -> Answer {
        let done = match *op {
            Op::Create { v, class, mib, limit, from } => {
                return self.create(v, class, range(mib, limit), from).await;
            }
            Op::Snapshot { s, v } => return self.snapshot(s, v).await,
            Op::Expand { v, mib, limit } => return self.expand(v, range(mib, limit)).await,
            Op::NodeExpand { v, at, mib } => return self.node_expand(v, at, mib).await,
            Op::Write { at } => return self.write(at, data),
            Op::Delete { v } => self.delete(self.volume_id(v)).await,
            Op::DeleteSnapshot { s } => self.delete_snapshot(self.snapshot_id(s)).await,
            Op::DeleteWrongKind { v, s } if wrong_kind_is_snapshot(v) => {
                self.delete(self.snapshot_id(s)).await
            }
            Op::DeleteWrongKind { v, .. } => self.delete_snapshot(self.volume_id(v)).await,
            Op::Stage { v, access, key } => {
                let request = pb::NodeStageVolumeRequest {
                    volume_id: self.volume_id(v),
                    staging_target_path: staging_path(v),
                    volume_capability: Some(capability(access)),
                    secrets: secrets(key),
                    ..Default::default()
                };
                self.node.clone().node_stage_volume(request).await.map(drop)
            }
            Op::Unstage { v } => {
                let (volume_id, staging_target_path) = (self.volume_id(v), staging_path(v));
                let request = pb::NodeUnstageVolumeRequest { volume_id, staging_target_path };
                self.node.clone().node_unstage_volume(request).await.map(drop)
            }
            Op::Publish { v, access, at, read_only } => {
                let request = pb::NodePublishVolumeRequest {
                    volume_id: self.volume_id(v),
                    staging_target_path: staging_path(v),
                    target_path: place_path(at),
                    volume_capability: Some(capability(access)),
                    readonly: read_only,
                    ..Default::default()
                };
                self.node.clone().node_publish_volume(request).await.map(drop)
            }
            Op::Unpublish { v, at } => {
                let (volume_id, target_path) = (self.volume_id(v), place_path(at));
                let request = pb::NodeUnpublishVolumeRequest { volume_id, target_path };
                self.node.clone().node_unpublish_volume(request).await.map(drop)
            }
            Op::Restart | Op::Reboot => Ok(()),
        };
        done.map_or_else(|status| refused(&status), |()| Answer::Done)
    }

    async fn create(
        &self,
        v: u8,
        class: u8,
        range: Option<pb::CapacityRange>,
        from: From,
    ) -> Answer {
        let class = Class::of(class);
        let source = match from {
            From::Nothing => None,
            From::OfSnapshot(s) => {
                Some(Type::Snapshot(SnapshotSource { snapshot_id: self.snapshot_id(s) }))
            }
            From::OfVolume(v) => Some(Type::Volume(VolumeSource { volume_id: self.volume_id(v) })),
        };
        let request = pb::CreateVolumeRequest {
            name: volume_name(v),
            capacity_range: range,
            volume_capabilities: vec![capability(class.access)],
            parameters: parameters(class),
            volume_content_source: source.map(|it| pb::VolumeContentSource { r#type: Some(it) }),
            ..Default::default()
        };
        let answer = match self.controller.clone().create_volume(request).await {
            Ok(answer) => answer.into_inner().volume.unwrap_or_default(),
            Err(status) => return refused(&status),
        };
        let size = mib(answer.capacity_bytes);
        match self.source(answer.content_source.as_ref()) {
            Some(from) if answer.volume_id == self.volume_id(v) => Answer::Made { size, from },
            _ => refused(&Status::unknown(format!("this is another volume: {answer:?}"))),
        }
    }

    async fn snapshot(&self, s: u8, v: u8) -> Answer {
        let (name, source_volume_id) = (snapshot_name(s), self.volume_id(v));
        let request = pb::CreateSnapshotRequest { name, source_volume_id, ..Default::default() };
        let answer = match self.controller.clone().create_snapshot(request).await {
            Ok(answer) => answer.into_inner().snapshot.unwrap_or_default(),
            Err(status) => return refused(&status),
        };
        let right = answer.snapshot_id == self.snapshot_id(s) && answer.ready_to_use;
        match self.volume_of(&answer.source_volume_id) {
            Some(of) if right => Answer::Taken { of, size: mib(answer.size_bytes) },
            _ => refused(&Status::unknown(format!("this is another snapshot: {answer:?}"))),
        }
    }

    async fn expand(&self, v: u8, capacity_range: Option<pb::CapacityRange>) -> Answer {
        let volume_id = self.volume_id(v);
        let request =
            pb::ControllerExpandVolumeRequest { volume_id, capacity_range, ..Default::default() };
        match self.controller.clone().controller_expand_volume(request).await {
            Ok(answer) => Answer::Has { size: mib(answer.into_inner().capacity_bytes) },
            Err(status) => refused(&status),
        }
    }

    async fn node_expand(&self, v: u8, at: Option<u8>, wanted: u64) -> Answer {
        let request = pb::NodeExpandVolumeRequest {
            volume_id: self.volume_id(v),
            volume_path: at.map_or_else(|| staging_path(v), place_path),
            capacity_range: range(wanted, 0),
            ..Default::default()
        };
        match self.node.clone().node_expand_volume(request).await {
            Ok(answer) => Answer::Has { size: mib(answer.into_inner().capacity_bytes) },
            Err(status) => refused(&status),
        }
    }

    pub async fn delete(&self, volume_id: String) -> Result<(), Status> {
        let request = pb::DeleteVolumeRequest { volume_id, ..Default::default() };
        self.controller.clone().delete_volume(request).await.map(drop)
    }

    pub async fn delete_snapshot(&self, snapshot_id: String) -> Result<(), Status> {
        let request = pb::DeleteSnapshotRequest { snapshot_id, ..Default::default() };
        self.controller.clone().delete_snapshot(request).await.map(drop)
    }

    /// What a pod writes to what it has.
    fn write(&self, at: u8, data: &str) -> Answer {
        let path = place_path(at);
        let Some(v) = crate::observe::writable_at(self, at) else { return Answer::NotThere };
        self.host.world().write(Path::new(&path), data);
        Answer::Wrote { v }
    }

    /// What is offered to a class: in all, and for one volume at most.
    pub async fn capacity(&self, class: &Class) -> Result<(u64, u64), Status> {
        let request =
            pb::GetCapacityRequest { parameters: parameters(class), ..Default::default() };
        let answer = self.controller.clone().get_capacity(request).await?.into_inner();
        let size = |bytes: i64| u64::try_from(bytes).map(|bytes| bytes >> 20);
        let negative = |_| Status::unknown(format!("the capacity is negative: {answer:?}"));
        let available = size(answer.available_capacity).map_err(negative)?;
        let largest = size(answer.maximum_volume_size.unwrap_or_default()).map_err(negative)?;
        Ok((available, largest))
    }
}

fn parameters(class: &Class) -> BTreeMap<String, String> {
    let own = class.parameters.iter().chain(&[("backend", "fast")]);
    own.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn refused(status: &Status) -> Answer {
    // What the model never expects is no answer of the driver's own.
    let code = if status.code() == Code::Cancelled { Code::Unknown } else { status.code() };
    Answer::Refused { code, why: status.message().to_owned() }
}
