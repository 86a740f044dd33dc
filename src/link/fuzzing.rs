//! The messages of a peer, as fuzzers send them ([`crate::fuzzing`]).

use cinderblock_proto::agent::v1 as pb;
use prost::Message;

use super::{failure, hello, inventory, wire};
use crate::domain::Inventory;

/// Bytes in the place of a greeting.
pub(crate) fn greeting(mut bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let Ok(runtime) = runtime else { return };
    let got = runtime.block_on(hello::receive::<pb::Hello>(&mut bytes));
    if let Ok(got) = got {
        let mut wire = Vec::new();
        runtime.block_on(hello::send(&mut wire, &got)).unwrap_or_default();
        let again = runtime.block_on(hello::receive::<pb::Hello>(&mut wire.as_slice())).ok();
        assert_eq!(again, Some(got));
    }
}

pub(crate) fn failure(bytes: &[u8]) {
    let Ok(told) = pb::Failure::decode(bytes) else { return };
    let error = failure::error(&told);
    let again = failure::error(&failure::failure(&error));
    assert_eq!((again.kind(), again.to_string()), (error.kind(), error.to_string()));
}

/// Events one after the other, each with its length before it. Who hears a node's inventory from
/// somebody who has heard it has the same.
pub(crate) fn inventory(bytes: &[u8]) {
    let mut rest = bytes;
    let mut inventory = Inventory::default();
    while let Ok(event) = pb::InventoryEvent::decode_length_delimited(&mut rest) {
        if inventory::apply(&mut inventory, event).is_err() {
            return;
        }
    }
    let mut copy = Inventory::default();
    for event in inventory::events(None, &inventory) {
        let refused = inventory::apply(&mut copy, event).err();
        assert_eq!(refused.map(|e| e.chain()), None);
    }
    assert_eq!(copy, inventory);
}

/// A request of a controller. The first byte says which.
pub(crate) fn request(bytes: &[u8]) {
    let (which, rest) = bytes.split_first().unwrap_or((&0, &[]));
    if which % 2 == 0 {
        let request = pb::CreateVolumeRequest::decode(rest).unwrap_or_default();
        let Ok(request) = wire::parse_create_volume(request) else { return };
        let again = wire::parse_create_volume(wire::create_volume(&request)).ok();
        assert_eq!(again, Some(request));
    } else {
        let request = pb::CreateSnapshotRequest::decode(rest).unwrap_or_default();
        let Ok(request) = wire::parse_create_snapshot(&request) else { return };
        let again = wire::parse_create_snapshot(&wire::create_snapshot(&request)).ok();
        assert_eq!(again, Some(request));
    }
}
