//! Messages of CSI and of the agent protocol. The first byte says which.

use cinderblock_proto::csi::v1 as csi;
use prost::Message;

use crate::csi::request;
use crate::domain::{Secrets, VolumeClass};
use crate::link::fuzzing as link;

const KEY: &str = "topology.lvm.cinderblock.dev/node";

fn decode<M: Message + Default>(bytes: &[u8]) -> M {
    M::decode(bytes).unwrap_or_default()
}

pub(super) fn csi_request(bytes: &[u8]) {
    let (which, rest) = bytes.split_first().unwrap_or((&0, &[]));
    match which % 10 {
        0 => drop(request::create_volume(&decode(rest), KEY)),
        1 => drop(request::create_snapshot(&decode(rest))),
        2 => drop(request::expand_volume(&decode(rest))),
        3 => drop(request::stage(&decode(rest), Secrets::default())),
        4 => drop(request::publish(&decode(rest))),
        5 => drop(request::health(&decode(rest))),
        6 => {
            let list = decode::<csi::ListVolumesRequest>(rest);
            drop(request::page(list.max_entries, &list.starting_token));
        }
        7 => {
            let asked = decode::<csi::ValidateVolumeCapabilitiesRequest>(rest);
            drop(request::capabilities(&asked.volume_capabilities));
            drop(VolumeClass::parse(&asked.parameters));
        }
        8 => {
            let asked = decode::<csi::NodeGetVolumeStatsRequest>(rest);
            drop(request::volume_at(&asked.volume_id, &asked.volume_path));
            drop(request::handle_to_remove("volume_id", &asked.volume_id));
        }
        _ => {
            let asked = decode::<csi::GetCapacityRequest>(rest);
            drop(VolumeClass::parse(&asked.parameters));
            let topology = asked.accessible_topology.unwrap_or_default();
            drop(request::topology_node("accessible_topology", &topology, KEY));
        }
    }
}

pub(super) fn link_greeting(bytes: &[u8]) {
    link::greeting(bytes);
}

pub(super) fn link_failure(bytes: &[u8]) {
    link::failure(bytes);
}

pub(super) fn link_inventory(bytes: &[u8]) {
    link::inventory(bytes);
}

pub(super) fn link_request(bytes: &[u8]) {
    link::request(bytes);
}
