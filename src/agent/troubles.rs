//! What is wrong on this node, gathered for the inventory from what is known already: nothing is
//! asked of LVM or the kernel here.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Agent;
use super::raid::RaidVolumes;
use super::store::partial;
use crate::domain::{BackendState, Inventory, PoolCapacity, Reason, Subject, Trouble, Troubles};
use crate::host::Host;
use crate::host::raid_status::RaidStatus;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::plan::missing::{is_whole, lost_legs};

/// Since when each trouble is known, in seconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Since(Mutex<BTreeMap<(Subject, Reason), i64>>);

impl Since {
    /// Troubles with the time from which each of them lasts. What is not among them is forgotten.
    fn stamp(&self, found: BTreeMap<(Subject, Reason), String>, now: i64) -> Troubles {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|key, _| found.contains_key(key));
        let stamped = found.into_iter().map(|(key, sentence)| {
            let since_unix = *known.entry(key.clone()).or_insert(now);
            (key, Trouble { sentence, since_unix })
        });
        stamped.collect()
    }
}

impl<H: Host> Agent<H> {
    /// All that is wrong with what is in an inventory.
    pub(super) fn troubles(&self, inventory: &Inventory) -> Troubles {
        let mut found = BTreeMap::new();
        let raid = std::sync::Arc::clone(&self.0.raid.borrow());
        for vg in self.0.store.all() {
            let state = vg.state();
            for lv in state.lvs.values().filter(|lv| lv.is_volume()) {
                let handle = state.handle(&lv.name);
                let status = raid.get(&handle);
                if !inventory.volumes.contains_key(&handle) {
                    continue;
                }
                for (reason, sentence) in of_volume(&state, lv, status) {
                    found.insert((Subject::Volume(handle.clone()), reason), sentence);
                }
            }
        }
        for (volume, reason, sentence) in self.snapshot_troubles() {
            if inventory.volumes.contains_key(&volume) {
                found.insert((Subject::Volume(volume), reason), sentence);
            }
        }
        for (name, status) in &inventory.backends {
            let why = match &status.state {
                BackendState::Unusable(why) | BackendState::Unknown(why) => {
                    Some((Reason::BackendNotReady, why.clone()))
                }
                BackendState::Ready { .. } => {
                    self.setup_failure(name).map(|why| (Reason::BackendSetupFailed, why))
                }
            };
            if let Some((reason, why)) = why {
                found.insert((Subject::Backend(name.clone()), reason), why);
            }
        }
        for (backend, vg) in self.backends_with_vg() {
            let state = vg.state();
            let mut tell = |reason, sentence| {
                found.insert((Subject::Backend(backend.name.clone()), reason), sentence);
            };
            if state.is_partial() {
                tell(Reason::PhysicalVolumeMissing, partial(&state).to_string());
            }
            if let Some(sentence) = vg.hanging() {
                tell(Reason::LvmHangs, sentence);
            }
            for (reason, sentence) in self.pool_troubles(&backend, &state) {
                tell(reason, sentence);
            }
        }
        // One disk that is missing makes a backend not ready; the disk is what is told of.
        let partial: Vec<Subject> = found
            .keys()
            .filter(|(_, reason)| *reason == Reason::PhysicalVolumeMissing)
            .map(|(subject, _)| subject.clone())
            .collect();
        found.retain(|(subject, reason), _| {
            let follows = matches!(reason, Reason::BackendNotReady | Reason::BackendSetupFailed);
            !(follows && partial.contains(subject))
        });
        // Before 1970 nobody has a disk of ours.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.0.since.stamp(found, i64::try_from(now).unwrap_or(i64::MAX))
    }
}

/// What is wrong with a volume, apart from its pool.
pub(super) fn of_volume(
    state: &VgState,
    lv: &Lv,
    status: Option<&RaidStatus>,
) -> Vec<(Reason, String)> {
    let missing = state.is_partial();
    if missing && !is_whole(state, lv) {
        return vec![(Reason::VolumeInaccessible, partial(state).to_string())];
    }
    let LvLayout::Raid(_) = &lv.layout else { return vec![] };
    let gone = if missing { lost_legs(state, lv) } else { 0 };
    of_raid(status, gone)
}

/// What is wrong with the RAID that a thin pool lies on.
pub(super) fn of_parts(state: &VgState, pool: &Lv, raid: &RaidVolumes) -> Vec<(Reason, String)> {
    let mut said = Vec::new();
    for part in &pool.parts {
        let gone = if state.is_partial() { lost_legs(state, part) } else { 0 };
        let name = format!("{}/{}", state.name, part.name);
        let status = raid.get(&state.handle(&part.name));
        for (reason, sentence) in of_raid(status, gone) {
            if reason == Reason::VolumeDegraded {
                said.push(format!("{name}: {sentence}"));
            }
        }
    }
    if said.is_empty() { vec![] } else { vec![(Reason::ThinPoolDegraded, said.join("; "))] }
}

/// What is wrong with an LV on RAID, from what the kernel says of it and from the number of its legs
/// whose disks are missing.
pub(super) fn of_raid(status: Option<&RaidStatus>, gone: u32) -> Vec<(Reason, String)> {
    let failed = status.map_or(0, |s| s.failed).max(gone);
    let behind = status.map_or(0, |s| s.behind);
    if failed > 0 {
        let of = status.map_or(String::new(), |s| format!(" of its {}", s.legs));
        let sentence = format!(
            "{failed}{of} legs are lost; its data is there: replace the disk, then run cinderblock repair in the node's pod"
        );
        return vec![(Reason::VolumeDegraded, sentence)];
    }
    match status {
        // A leg that is new has nothing yet; until it has, it is as good as lost.
        Some(status) if behind > 0 && status.action == "recover" => {
            let sentence = format!(
                "{behind} of its {} legs are being rebuilt; its data is there",
                status.legs
            );
            vec![(Reason::VolumeDegraded, sentence)]
        }
        Some(_) if behind > 0 => {
            let sentence = "its legs are being brought in step; it can be used meanwhile";
            vec![(Reason::VolumeResyncing, sentence.to_owned())]
        }
        Some(_) | None => vec![],
    }
}

/// What is wrong with a thin pool. `stuck` says why it cannot grow.
pub(super) fn of_pool(
    name: &str,
    pool: &PoolCapacity,
    stuck: Option<String>,
) -> Vec<(Reason, String)> {
    let mut found = Vec::new();
    if let Some(why) = stuck {
        found.push((Reason::ThinPoolCannotGrow, format!("thin pool {name} cannot grow: {why}")));
    }
    if pool.queues {
        let why = format!(
            "thin pool {name} will hold writes back when it is full instead of failing them: lvchange --errorwhenfull y {name}"
        );
        found.push((Reason::ThinPoolQueuesWhenFull, why));
    }
    let Some(trouble) = pool.trouble() else { return found };
    let full = pool.is_out_of_room();
    if pool.healthy || full {
        let why = format!("thin pool {name} takes nothing new: {trouble}");
        found.push((Reason::ThinPoolAlmostFull, why));
    }
    if !pool.healthy {
        let reason = if full { Reason::ThinPoolFull } else { Reason::ThinPoolFailed };
        found.push((reason, format!("thin pool {name} takes no writes: {trouble}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::BackendName;
    use crate::units::Bytes;
    use Reason::{
        ThinPoolAlmostFull, ThinPoolCannotGrow, ThinPoolFailed, ThinPoolFull,
        ThinPoolQueuesWhenFull,
    };

    fn status(line: &str) -> RaidStatus {
        RaidStatus::parse(line).unwrap()
    }

    fn reasons(found: &[(Reason, String)]) -> Vec<Reason> {
        found.iter().map(|(reason, _)| *reason).collect()
    }

    #[test]
    fn raid_is_degraded_until_every_leg_has_all() {
        for (line, gone, reason) in [
            ("raid1 2 AA 16/16 idle 0 0 -", 0, None),
            ("raid1 2 AA 16/16 idle 0 0 -", 1, Some(Reason::VolumeDegraded)),
            ("raid1 2 AD 16/16 idle 0 0 -", 0, Some(Reason::VolumeDegraded)),
            ("raid1 2 Aa 4/16 recover 0 0 -", 0, Some(Reason::VolumeDegraded)),
            ("raid1 2 aa 4/16 resync 0 0 -", 0, Some(Reason::VolumeResyncing)),
        ] {
            let found = of_raid(Some(&status(line)), gone);
            assert_eq!(reasons(&found), reason.into_iter().collect::<Vec<_>>(), "{line}");
        }
        assert_eq!(of_raid(None, 0), []);
        let found = of_raid(Some(&status("raid1 2 AD 16/16 idle 0 0 -")), 0);
        let sentence = "1 of its 2 legs are lost; its data is there: replace the disk, then run cinderblock repair in the node's pod";
        assert_eq!(found, [(Reason::VolumeDegraded, sentence.to_owned())]);
        assert_eq!(reasons(&of_raid(None, 1)), [Reason::VolumeDegraded]);
    }

    #[test]
    fn a_pool_that_fills_has_one_trouble_after_the_other() {
        let of_both = |bp, metadata_bp, healthy, queues, stuck: bool| {
            let pool = PoolCapacity {
                size: Bytes::gib(1),
                promised: Bytes::ZERO,
                overprovision_percent: 100,
                data_used_bp: bp,
                metadata_used_bp: metadata_bp,
                metadata_guard_bp: 8_500,
                healthy,
                queues,
                stuck,
            };
            reasons(&of_pool("vg0/pool0", &pool, stuck.then(|| "no room".to_owned())))
        };
        let of = |bp, healthy, queues, stuck| of_both(bp, 0, healthy, queues, stuck);
        assert_eq!(of(5_000, true, false, false), []);
        assert_eq!(of(5_000, true, true, false), [ThinPoolQueuesWhenFull]);
        assert_eq!(of(9_000, true, false, true), [ThinPoolCannotGrow]);
        assert_eq!(of(9_600, true, false, true), [ThinPoolCannotGrow, ThinPoolAlmostFull]);
        assert_eq!(of(10_000, false, false, false), [ThinPoolAlmostFull, ThinPoolFull]);
        assert_eq!(of(0, false, false, false), [ThinPoolFailed]);
        assert_eq!(of_both(5_000, 8_600, true, false, false), [ThinPoolAlmostFull]);
        assert_eq!(of_both(5_000, 10_000, false, false, false), [ThinPoolAlmostFull, ThinPoolFull]);
        assert_eq!(of_both(5_000, 9_000, false, false, false), [ThinPoolFailed]);
    }

    #[test]
    fn a_trouble_keeps_its_time_until_it_is_over() {
        let since = Since::default();
        let key = (Subject::Backend(BackendName::parse("a").unwrap()), ThinPoolFull);
        let found = |text: &str| BTreeMap::from([(key.clone(), text.to_owned())]);
        assert_eq!(since.stamp(found("a"), 5)[&key].since_unix, 5);
        let later = &since.stamp(found("b"), 9)[&key];
        assert_eq!((later.since_unix, later.sentence.as_str()), (5, "b"));
        assert_eq!(since.stamp(BTreeMap::new(), 10), Troubles::new());
        assert_eq!(since.stamp(found("a"), 11)[&key].since_unix, 11);
    }
}
