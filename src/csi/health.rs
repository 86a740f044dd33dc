//! What is wrong, as CSI says it: each word once, with all that is to be said about it. Pure.

use std::collections::BTreeMap;

use cinderblock_proto::csi::v1 as csi;
use csi::node_get_storage_health_response::StorageBackendHealth;
use csi::volume_health::VolumeHealthEntry;

use crate::domain::{Grade, Reason};
use crate::names::Handle;

/// What the kubelet takes of a node's storage, and of one sentence (KEP-1432).
const ENTRIES_MAX: usize = 16;
const MESSAGE_MAX: usize = 1_024;

fn joined(messages: &[String]) -> String {
    messages.join("; ").chars().take(MESSAGE_MAX).collect()
}

/// The health of a volume. What is no trouble to its user is left out.
pub(super) fn of_volume(volume: &Handle, found: Vec<(Reason, String)>) -> csi::VolumeHealth {
    let mut entries = BTreeMap::<_, Vec<String>>::new();
    for (reason, sentence) in found {
        if let Some(key) = reason.health() {
            entries.entry(key).or_default().push(sentence);
        }
    }
    let entry = |((grade, reason), messages): ((Grade, &str), Vec<String>)| {
        let status = match grade {
            Grade::Degraded => csi::VolumeHealthErrorType::Degraded,
            Grade::Inaccessible => csi::VolumeHealthErrorType::Inaccessible,
        };
        VolumeHealthEntry {
            status: status.into(),
            reason: reason.to_owned(),
            message: joined(&messages),
        }
    };
    let health_statuses = entries.into_iter().take(ENTRIES_MAX).map(entry).collect();
    csi::VolumeHealth { volume_id: volume.to_string(), health_statuses }
}

/// The health of a node's backends. Never "unreachable", which would be said of all its volumes.
pub(super) fn of_storage(found: Vec<(Reason, String)>) -> Vec<StorageBackendHealth> {
    let mut entries = BTreeMap::<Reason, Vec<String>>::new();
    for (reason, sentence) in found.into_iter().filter(|(reason, _)| reason.is_warning()) {
        entries.entry(reason).or_default().push(sentence);
    }
    let entry = |(reason, messages): (Reason, Vec<String>)| StorageBackendHealth {
        status: csi::StorageHealthErrorType::StorageDegraded.into(),
        reason: reason.as_str().to_owned(),
        message: joined(&messages),
        volume_capability: None,
    };
    entries.into_iter().take(ENTRIES_MAX).map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::LvmUuid;

    #[test]
    fn each_word_is_said_once() {
        let volume = Handle::parse(&format!("{}/pvc-1", LvmUuid::derived("vg"))).unwrap();
        let found = vec![
            (Reason::VolumeInaccessible, "a".to_owned()),
            (Reason::PhysicalVolumeMissing, "b".repeat(2_000)),
            (Reason::VolumeDegraded, "c".to_owned()),
            (Reason::VolumeResyncing, "d".to_owned()),
        ];
        let health = of_volume(&volume, found.clone());
        assert_eq!(health.volume_id, volume.to_string());
        let said: Vec<_> =
            health.health_statuses.iter().map(|e| (e.status(), e.reason.as_str())).collect();
        let degraded = (csi::VolumeHealthErrorType::Degraded, "PartialActivation");
        let inaccessible = (csi::VolumeHealthErrorType::Inaccessible, "PhysicalVolumeMissing");
        assert_eq!(said, [degraded, inaccessible]);
        assert_eq!(health.health_statuses[1].message.len(), MESSAGE_MAX);
        let storage = of_storage(found);
        assert_eq!(storage.len(), 3);
        assert_eq!(storage[2].reason, "PhysicalVolumeMissing");
    }
}
