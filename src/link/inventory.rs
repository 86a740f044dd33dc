//! What a node has, as events: those that tell of a change, and an inventory that follows them. What a
//! node may have at most is decided here.

use std::sync::Arc;

use cinderblock_proto::agent::v1 as pb;

use super::wire::{bad, parse_handle, parse_name, parse_snapshot, parse_volume, snapshot, volume};
use super::{failure, troubles, unfinished};
use crate::config::BACKENDS_MAX;
use crate::domain::{
    BackendCapacity, BackendState, BackendStatus, Inventory, PoolCapacity, Snapshot, Volume,
};
use crate::error::{Error, Result};
use crate::names::{BackendName, Handle, LvmUuid, VgName};
use crate::plan::capacity::POOL_METADATA_GUARD_BP;
use crate::units::{Bytes, ExtentSize};

/// What a node may have, as the controller keeps it. LVM's metadata takes as many records at the very
/// most, and they come to some 40 MiB.
const HELD_MAX: usize = 32_768;
/// Volume groups of a node, its runs of free extents, and the PVs that have any. More runs than that are
/// left out: then less is offered.
const GROUPS_MAX: usize = 1_024;
const RUNS_MAX: usize = 32_768;
const PVS_MAX: usize = 1_024;
/// Volumes that are being made at the same time. More are not told.
const MAKING_MAX: usize = 1_024;
/// Records in one event. A record has about 300 bytes, and at the most 700; a message may have 4 MiB.
const RECORDS_MAX: usize = 5_000;

fn backend(name: &BackendName, status: &BackendStatus) -> pb::Backend {
    use pb::backend::{State, Why};
    let why = |sentence: &String| Why { sentence: sentence.clone() };
    let state = match &status.state {
        BackendState::Ready { vg, capacity } => State::Ready(ready(vg, capacity)),
        BackendState::Unusable(sentence) => State::Unusable(why(sentence)),
        BackendState::Unknown(sentence) => State::Unknown(why(sentence)),
    };
    pb::Backend {
        name: name.to_string(),
        volume_group: status.volume_group.to_string(),
        state: Some(state),
    }
}

fn ready(vg: &LvmUuid, capacity: &BackendCapacity) -> pb::Ready {
    let runs = |runs: &Vec<u64>| pb::ready::Runs { extents: runs.clone() };
    pb::Ready {
        volume_group_uuid: vg.to_string(),
        extent_size_bytes: capacity.extent_size.bytes().get(),
        volume_group_bytes: capacity.vg_size.get(),
        reserve_bytes: capacity.reserve.get(),
        free: capacity.free_runs.iter().map(runs).collect(),
        pool: capacity.pool.map(|pool| pb::Pool {
            size_bytes: pool.size.get(),
            promised_bytes: pool.promised.get(),
            overprovision_percent: pool.overprovision_percent,
            data_used_bp: pool.data_used_bp,
            metadata_used_bp: pool.metadata_used_bp,
            metadata_guard_bp: pool.metadata_guard_bp,
            healthy: pool.healthy,
            queues: pool.queues,
            stuck: pool.stuck,
        }),
    }
}

fn parse_backend(backend: pb::Backend) -> Result<(BackendName, BackendStatus)> {
    use pb::backend::State;
    let name = BackendName::parse(&backend.name).map_err(|e| bad("backend", &e))?;
    let volume_group = VgName::parse(&backend.volume_group).map_err(|e| bad("volume group", &e))?;
    let state = match backend.state {
        Some(State::Ready(ready)) => parse_ready(ready)?,
        Some(State::Unusable(why)) => BackendState::Unusable(failure::bounded(&why.sentence)),
        Some(State::Unknown(why)) => BackendState::Unknown(failure::bounded(&why.sentence)),
        None => BackendState::Unknown("the node's agent says something unknown of it".to_owned()),
    };
    Ok((name, BackendStatus { volume_group, state }))
}

fn parse_ready(ready: pb::Ready) -> Result<BackendState> {
    let vg = LvmUuid::parse(&ready.volume_group_uuid).map_err(|e| bad("volume group", &e))?;
    let extent_size = ExtentSize::new(ready.extent_size_bytes)
        .ok_or_else(|| Error::invalid("the peer sent an extent size of 0"))?;
    let pool = ready.pool.map(|pool| PoolCapacity {
        size: Bytes::new(pool.size_bytes),
        promised: Bytes::new(pool.promised_bytes),
        overprovision_percent: pool.overprovision_percent,
        data_used_bp: pool.data_used_bp,
        metadata_used_bp: pool.metadata_used_bp,
        // An older agent does not say.
        metadata_guard_bp: match pool.metadata_guard_bp {
            0 => POOL_METADATA_GUARD_BP,
            said => said,
        },
        healthy: pool.healthy,
        queues: pool.queues,
        stuck: pool.stuck,
    });
    let capacity = BackendCapacity {
        extent_size,
        vg_size: Bytes::new(ready.volume_group_bytes),
        reserve: Bytes::new(ready.reserve_bytes),
        free_runs: free_runs(ready.free),
        pool,
    };
    Ok(BackendState::Ready { vg, capacity })
}

fn free_runs(told: Vec<pb::ready::Runs>) -> Vec<Vec<u64>> {
    let mut left = RUNS_MAX;
    let mut some = |mut runs: pb::ready::Runs| {
        runs.extents.truncate(left);
        runs.extents.shrink_to_fit();
        left = left.saturating_sub(runs.extents.len());
        runs.extents
    };
    told.into_iter().take(PVS_MAX).map(&mut some).collect()
}

fn few(count: usize, most: usize, what: &str) -> Result<()> {
    if count > most {
        return Err(Error::invalid(format!("the peer tells of {count} {what}, more than {most}")));
    }
    Ok(())
}

/// The events that make `new` of `old`. `None` as `old`: of nothing.
pub(super) fn events(old: Option<&Inventory>, new: &Inventory) -> Vec<pb::InventoryEvent> {
    let nothing = Inventory::default();
    let before = old.unwrap_or(&nothing);
    let mut first = pb::InventoryEvent { anew: old.is_none(), ..pb::InventoryEvent::default() };
    if old.is_none() || before.backends != new.backends {
        let backends = new.backends.iter().map(|(name, status)| backend(name, status)).collect();
        first.backends = Some(pb::Backends { backends });
    }
    if old.is_none() || before.vgs != new.vgs {
        let names =
            new.vgs.iter().map(|(uuid, name)| (uuid.to_string(), name.to_string())).collect();
        first.volume_groups = Some(pb::VolumeGroups { names });
    }
    if old.is_none() || before.troubles != new.troubles {
        first.troubles = Some(troubles::print(&new.troubles));
    }
    if old.is_none() || before.unfinished != new.unfinished {
        first.unfinished = Some(unfinished::print(&new.unfinished));
    }
    if old.is_none() || before.making != new.making {
        let names = new.making.iter().take(MAKING_MAX).map(ToString::to_string).collect();
        first.making = Some(pb::Making { names });
    }
    let gone = |handle: &&Handle| !new.volumes.contains_key(*handle);
    first.volumes_gone = before.volumes.keys().filter(gone).map(ToString::to_string).collect();
    let gone = |handle: &&Handle| !new.snapshots.contains_key(*handle);
    first.snapshots_gone = before.snapshots.keys().filter(gone).map(ToString::to_string).collect();
    let changed =
        |(handle, record): &(&Handle, &Arc<Volume>)| before.volumes.get(*handle) != Some(*record);
    let volumes: Vec<_> = new.volumes.iter().filter(changed).map(|(_, v)| volume(v)).collect();
    let changed = |(handle, record): &(&Handle, &Arc<Snapshot>)| {
        before.snapshots.get(*handle) != Some(*record)
    };
    let snapshots: Vec<_> =
        new.snapshots.iter().filter(changed).map(|(_, s)| snapshot(s)).collect();
    let mut events = vec![first];
    for chunk in volumes.chunks(RECORDS_MAX) {
        events
            .push(pb::InventoryEvent { volumes: chunk.to_vec(), ..pb::InventoryEvent::default() });
    }
    for chunk in snapshots.chunks(RECORDS_MAX) {
        events.push(pb::InventoryEvent {
            snapshots: chunk.to_vec(),
            ..pb::InventoryEvent::default()
        });
    }
    let last = events.len().saturating_sub(1);
    for (i, event) in events.iter_mut().enumerate() {
        event.revision = new.revision;
        event.more = i < last;
    }
    events
}

/// Puts an event into an inventory.
pub(super) fn apply(inventory: &mut Inventory, event: pb::InventoryEvent) -> Result<()> {
    if event.anew {
        *inventory = Inventory::default();
    }
    if let Some(backends) = event.backends {
        few(backends.backends.len(), BACKENDS_MAX, "backends")?;
        inventory.backends =
            backends.backends.into_iter().map(parse_backend).collect::<Result<_>>()?;
    }
    if let Some(groups) = event.volume_groups {
        few(groups.names.len(), GROUPS_MAX, "volume groups")?;
        let parse = |(uuid, name): (String, String)| {
            let uuid = LvmUuid::parse(&uuid).map_err(|e| bad("volume group", &e))?;
            Ok((uuid, VgName::parse(&name).map_err(|e| bad("volume group", &e))?))
        };
        inventory.vgs = groups.names.into_iter().map(parse).collect::<Result<_>>()?;
    }
    if let Some(troubles) = event.troubles {
        inventory.troubles = troubles::parse(troubles)?;
    }
    if let Some(unfinished) = event.unfinished {
        inventory.unfinished = unfinished::parse(unfinished)?;
    }
    if let Some(making) = event.making {
        let names = making.names.iter().take(MAKING_MAX);
        inventory.making = names.map(|name| parse_name(name)).collect::<Result<_>>()?;
    }
    for id in &event.volumes_gone {
        inventory.volumes.remove(&parse_handle(id)?);
    }
    for id in &event.snapshots_gone {
        inventory.snapshots.remove(&parse_handle(id)?);
    }
    for volume in event.volumes {
        let volume = parse_volume(volume)?;
        inventory.volumes.insert(volume.handle.clone(), Arc::new(volume));
    }
    for snapshot in &event.snapshots {
        let snapshot = parse_snapshot(snapshot)?;
        inventory.snapshots.insert(snapshot.handle.clone(), Arc::new(snapshot));
    }
    let held = inventory.volumes.len().saturating_add(inventory.snapshots.len());
    few(held, HELD_MAX, "volumes and snapshots")?;
    inventory.revision = event.revision;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ContentSource, Provisioning};
    use crate::lvm::tag::Claim;
    use crate::names::CsiName;
    use proptest::prelude::*;

    fn handle(n: u32) -> Handle {
        Handle::parse(&format!("{}/pvc-{n}", LvmUuid::derived("vg"))).unwrap()
    }

    fn inventory(revision: u64, volumes: &[(u32, u64)], snapshots: &[u32], free: u64) -> Inventory {
        let vg = LvmUuid::derived("vg");
        let capacity = BackendCapacity {
            extent_size: ExtentSize::new(4 << 20).unwrap(),
            vg_size: Bytes::gib(10),
            reserve: Bytes::mib(5),
            free_runs: vec![vec![free, 3], vec![]],
            pool: Some(PoolCapacity {
                size: Bytes::gib(5),
                promised: Bytes::gib(1),
                overprovision_percent: 200,
                data_used_bp: 17,
                metadata_used_bp: 4,
                metadata_guard_bp: 7_500,
                healthy: true,
                queues: true,
                stuck: true,
            }),
        };
        let name = VgName::parse("vg0").unwrap();
        let status = |state| BackendStatus { volume_group: name.clone(), state };
        let backend = |text| BackendName::parse(text).unwrap();
        Inventory {
            revision,
            backends: [
                (backend("a"), status(BackendState::Ready { vg: vg.clone(), capacity })),
                (backend("b"), status(BackendState::Unusable("why".to_owned()))),
                (backend("c"), status(BackendState::Unknown("why not".to_owned()))),
            ]
            .into(),
            vgs: [(vg, name.clone())].into(),
            volumes: volumes
                .iter()
                .map(|(n, gib)| {
                    let volume = Volume {
                        handle: handle(*n),
                        name: CsiName::parse(&format!("vol {n}")).unwrap(),
                        size: Bytes::gib(*gib),
                        source: n.is_multiple_of(2).then(|| ContentSource::Snapshot(handle(n + 1))),
                        provisioning: Provisioning::Thin,
                        encrypted: n.is_multiple_of(2),
                        created_unix: i64::from(*n),
                        claim: n
                            .is_multiple_of(2)
                            .then(|| Claim { namespace: "a".to_owned(), name: format!("b{n}") }),
                    };
                    (handle(*n), Arc::new(volume))
                })
                .collect(),
            snapshots: snapshots
                .iter()
                .map(|n| {
                    let snapshot = Snapshot {
                        handle: handle(*n),
                        name: CsiName::parse(&format!("snap {n}")).unwrap(),
                        source: handle(n + 1),
                        size: Bytes::gib(1),
                        created_unix: i64::from(*n),
                        ready: n.is_multiple_of(2),
                    };
                    (handle(*n), Arc::new(snapshot))
                })
                .collect(),
            unfinished: unfinished::tests::some(free),
            making: (0..free).map(|n| CsiName::parse(&format!("new {n}")).unwrap()).collect(),
            troubles: troubles::tests::some(free),
        }
    }

    fn follow(into: &mut Inventory, events: Vec<pb::InventoryEvent>) {
        let last = events.len() - 1;
        for (i, event) in events.into_iter().enumerate() {
            assert_eq!(event.more, i < last);
            apply(into, event).unwrap();
        }
    }

    proptest! {
        /// Whatever the inventory was and is: who follows the events has it.
        #[test]
        fn events_carry_every_change(
            a in proptest::collection::btree_map(0..20u32, 1..9u64, 0..12),
            b in proptest::collection::btree_map(0..20u32, 1..9u64, 0..12),
            s in proptest::collection::btree_set(20..40u32, 0..8),
            t in proptest::collection::btree_set(20..40u32, 0..8),
            free in 0..9u64,
        ) {
            let list = |m: std::collections::BTreeMap<u32, u64>| m.into_iter().collect::<Vec<_>>();
            let (s, t): (Vec<_>, Vec<_>) = (s.into_iter().collect(), t.into_iter().collect());
            let old = inventory(1, &list(a), &s, 5);
            let new = inventory(2, &list(b), &t, free);
            let mut copy = inventory(9, &[(1, 1)], &[], 1);
            follow(&mut copy, events(None, &old));
            prop_assert_eq!(&copy, &old);
            follow(&mut copy, events(Some(&old), &new));
            prop_assert_eq!(&copy, &new);
            prop_assert_eq!(events(Some(&new), &new).len(), 1);
        }
    }

    #[test]
    fn runs_over_the_bound_are_left_out() {
        let runs = |n| pb::ready::Runs { extents: vec![1; n] };
        let kept = free_runs(vec![runs(10), runs(RUNS_MAX), runs(10)]);
        assert_eq!(kept.iter().map(Vec::len).sum::<usize>(), RUNS_MAX);
        assert_eq!(free_runs(vec![runs(1); PVS_MAX + 1]).len(), PVS_MAX);
        assert_eq!(free_runs(vec![runs(2), runs(0)]), [vec![1, 1], vec![]]);
    }
}
