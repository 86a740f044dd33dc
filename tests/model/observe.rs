//! What can be seen from outside: lists, mounts, and what volumes hold.

use std::collections::{BTreeMap, BTreeSet};

use cinderblock::names::{Handle, LvName, VgName, dm_name};
use cinderblock::sim::World;
use cinderblock_proto::csi::v1 as pb;

use crate::client::{Client, mib, place_path, snapshot_lv, staging_path, volume_lv};
use crate::machine::VG;
use crate::script::{Access, From, PLACES, SNAPSHOTS, VOLUMES};
use crate::state::{Bytes, Pending, Place, State};

/// What is seen. Sizes are in MiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    volumes: BTreeMap<u8, (u64, From)>,
    snapshots: BTreeMap<u8, (u8, u64)>,
    /// Those that have an LV, whether or not they are listed.
    volume_lvs: BTreeSet<u8>,
    snapshot_lvs: BTreeSet<u8>,
    staged: BTreeMap<u8, u8>,
    places: BTreeMap<u8, Place>,
    /// What volumes and snapshots hold: what was written, and which filesystem.
    volume_bytes: BTreeMap<u8, (String, Option<String>)>,
    snapshot_bytes: BTreeMap<u8, (String, Option<String>)>,
    /// Thick block volumes that show what others have written.
    showing: Vec<u8>,
}

/// Which volume a device is of: its own, or the decrypted one.
pub fn volume_at(client: &Client, device: &str) -> Option<u8> {
    let name = device.rsplit('/').next().unwrap_or_default();
    let vg = VgName::parse(VG).ok()?;
    (0..VOLUMES).find(|v| {
        let lv = volume_lv(*v);
        let handle = Handle { vg: client.vg.clone(), lv: lv.clone() };
        dm_name(&vg, &lv).is_ok_and(|own| own == name) || handle.crypt_name() == name
    })
}

/// Where volumes are mounted or bound: each with the volume, whether as a device, and read-only.
fn mounts(client: &Client, world: &World) -> BTreeMap<String, Place> {
    let mut found = BTreeMap::new();
    for mount in world.mounted() {
        let source = mount.source.to_string_lossy().into_owned();
        let v = volume_at(client, &source).unwrap_or(u8::MAX);
        let block = !source.starts_with("/dev");
        let place = Place { v, block, read_only: mount.read_only };
        let target = mount.target.to_string_lossy().into_owned();
        // Two at one place are a mistake that the model never makes.
        let place = if found.contains_key(&target) { Place { v: u8::MAX, ..place } } else { place };
        found.insert(target, place);
    }
    found
}

/// The volume that can be written to at a place.
pub fn writable_at(client: &Client, at: u8) -> Option<u8> {
    let mounts = mounts(client, &client.host.world());
    mounts.get(&place_path(at)).filter(|place| !place.read_only).map(|place| place.v)
}

fn bytes(world: &World, lv: &LvName) -> (String, Option<String>) {
    let content = world.content(VG, lv.as_str()).cloned().unwrap_or_default();
    (content.data, content.superblock.map(|it| it.fs.to_string()))
}

/// Looks, taking lists by pages of so many.
pub async fn look(client: &Client, page: i32) -> Result<Seen, String> {
    let mut seen = Seen::default();
    for volume in volumes(client, page).await? {
        let v = client.volume_of(&volume.volume_id);
        let from = client.source(volume.content_source.as_ref());
        let (Some(v), Some(from)) = (v, from) else {
            return Err(format!("a volume is listed that nobody made: {volume:?}"));
        };
        let again = seen.volumes.insert(v, (mib(volume.capacity_bytes), from));
        if again.is_some() {
            return Err(format!("a volume is listed twice: {volume:?}"));
        }
    }
    for snapshot in snapshots(client, page).await? {
        let s = client.snapshot_of(&snapshot.snapshot_id);
        let of = client.volume_of(&snapshot.source_volume_id);
        let (Some(s), Some(of), true) = (s, of, snapshot.ready_to_use) else {
            return Err(format!("a snapshot is listed that nobody took: {snapshot:?}"));
        };
        if seen.snapshots.insert(s, (of, mib(snapshot.size_bytes))).is_some() {
            return Err(format!("a snapshot is listed twice: {snapshot:?}"));
        }
    }
    let world = client.host.world();
    for (target, place) in mounts(client, &world) {
        if let Some(at) = (0..PLACES).find(|at| place_path(*at) == target) {
            seen.places.insert(at, place);
        } else if let Some(v) = (0..VOLUMES).find(|v| staging_path(*v) == target) {
            seen.staged.insert(v, place.v);
        } else {
            return Err(format!("something is mounted at {target}"));
        }
    }
    let there = |lv: &LvName| world.vg(VG).is_some_and(|vg| vg.lvs.contains_key(lv));
    seen.volume_lvs = (0..VOLUMES).filter(|v| there(&volume_lv(*v))).collect();
    seen.snapshot_lvs = (0..SNAPSHOTS).filter(|s| there(&snapshot_lv(*s))).collect();
    for v in 0..VOLUMES {
        let lv = volume_lv(v);
        seen.volume_bytes.insert(v, bytes(&world, &lv));
        if world.shows_old_data(VG, lv.as_str()) {
            seen.showing.push(v);
        }
    }
    for s in 0..SNAPSHOTS {
        seen.snapshot_bytes.insert(s, bytes(&world, &snapshot_lv(s)));
    }
    Ok(seen)
}

async fn volumes(client: &Client, page: i32) -> Result<Vec<pb::Volume>, String> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListVolumesRequest { max_entries: page, starting_token: token };
        let answer = client.controller.clone().list_volumes(request).await;
        let answer = answer.map_err(|e| format!("volumes are not listed: {e}"))?.into_inner();
        if page > 0 && answer.entries.len() > page as usize {
            return Err(format!("a page of {page} volumes has {}", answer.entries.len()));
        }
        all.extend(answer.entries.into_iter().filter_map(|entry| entry.volume));
        token = answer.next_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

async fn snapshots(client: &Client, page: i32) -> Result<Vec<pb::Snapshot>, String> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListSnapshotsRequest {
            max_entries: page,
            starting_token: token,
            ..Default::default()
        };
        let answer = client.controller.clone().list_snapshots(request).await;
        let answer = answer.map_err(|e| format!("snapshots are not listed: {e}"))?.into_inner();
        if page > 0 && answer.entries.len() > page as usize {
            return Err(format!("a page of {page} snapshots has {}", answer.entries.len()));
        }
        all.extend(answer.entries.into_iter().filter_map(|entry| entry.snapshot));
        token = answer.next_token;
        if token.is_empty() {
            return Ok(all);
        }
    }
}

fn holds(expected: &Bytes, seen: &(String, Option<String>)) -> bool {
    let fs = match expected.fs {
        None | Some(Access::Block) => None,
        Some(Access::Ext4) => Some("ext4"),
        Some(Access::Xfs) => Some("xfs"),
        Some(Access::Btrfs) => Some("btrfs"),
    };
    // A volume that was never used may have been formatted in part.
    let fs_fits = expected.pending == Pending::Fresh || seen.1.as_deref() == fs;
    expected.ruined || expected.data == seen.0 && fs_fits
}

impl Seen {
    /// What is other than this state of the model says. `None`: nothing.
    pub fn differs(&self, state: &State) -> Option<String> {
        let volumes: BTreeMap<u8, (u64, From)> = state
            .volumes
            .iter()
            .filter(|(_, it)| it.half.is_none())
            .map(|(v, it)| (*v, (it.size, it.from)))
            .collect();
        if volumes != self.volumes {
            return Some(format!("volumes {:?}, not {volumes:?}", self.volumes));
        }
        let snapshots: BTreeMap<u8, (u8, u64)> = state
            .snapshots
            .iter()
            .filter(|(_, it)| !it.split)
            .map(|(s, it)| (*s, (it.of, it.size)))
            .collect();
        if snapshots != self.snapshots {
            return Some(format!("snapshots {:?}, not {snapshots:?}", self.snapshots));
        }
        let known: BTreeSet<u8> = state.volumes.keys().copied().collect();
        if known != self.volume_lvs {
            return Some(format!("volumes with an LV {:?}, not {known:?}", self.volume_lvs));
        }
        let known: BTreeSet<u8> = state.snapshots.keys().copied().collect();
        if known != self.snapshot_lvs {
            return Some(format!("snapshots with an LV {:?}, not {known:?}", self.snapshot_lvs));
        }
        let staged = state.volumes.iter().filter(|(_, it)| it.staged.is_some());
        let staged: BTreeMap<u8, u8> = staged.map(|(v, _)| (*v, *v)).collect();
        if staged != self.staged {
            return Some(format!("staged are {:?}, not {staged:?}", self.staged));
        }
        if state.places != self.places {
            return Some(format!("published is {:?}, not {:?}", self.places, state.places));
        }
        for (v, volume) in state.volumes.iter().filter(|(_, it)| it.half.is_none()) {
            let seen = &self.volume_bytes[v];
            if !holds(&volume.bytes, seen) {
                return Some(format!("volume {v} holds {seen:?}, not {:?}", volume.bytes));
            }
            // Nothing was ever written to it.
            let blank = volume.from == From::Nothing && volume.bytes.data.is_empty();
            let used = volume.bytes.pending == Pending::Nothing && volume.bytes.fs.is_none();
            if blank && used && volume.class().shows() && self.showing.contains(v) {
                return Some(format!("volume {v} shows what others have written"));
            }
        }
        for (s, snapshot) in state.snapshots.iter().filter(|(_, it)| !it.split) {
            let seen = &self.snapshot_bytes[s];
            if !holds(&snapshot.bytes, seen) {
                return Some(format!("snapshot {s} holds {seen:?}, not {:?}", snapshot.bytes));
            }
        }
        None
    }

    /// How many volumes and snapshots have been compared by what they hold.
    pub fn compared(&self) -> u64 {
        (self.volumes.len() + self.snapshots.len()) as u64
    }
}
