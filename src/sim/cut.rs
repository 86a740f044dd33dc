//! A program that is killed in the midst of a change. LVM: the metadata has it, the kernel has half of
//! it, as LVM 2.03.16 leaves it, command by command. cryptsetup: the device is suspended.

use super::lvm::{self, Outcome, refuse};
use super::programs;
use super::world::World;
use crate::host::dm_status::Layer;
use crate::host::dm_undo::Halves;
use crate::host::invocation::{Invocation, Program};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, LvLayout};
use crate::lvm::tag::Tags;
use crate::names::{CRYPT_PREFIX, LvName, LvmUuid, dm_name};

/// Whether a call can be killed in its midst; all others happen wholly or not at all.
pub(super) fn has_midst(call: &Invocation) -> bool {
    match call.program {
        Program::Lvm | Program::XfsAdmin => true,
        Program::Cryptsetup => call.args.first().is_some_and(|action| action == "resize"),
        _ => false,
    }
}

/// Begins a call, and is killed in its midst.
pub(super) fn run(world: &mut World, call: &Invocation) {
    match call.program {
        Program::Lvm => run_lvm(world, &call.args),
        // The new table is loaded, and the device suspended.
        Program::Cryptsetup => world.held.extend(call.args.last().cloned()),
        _ => programs::cut_log(world, call),
    }
}

fn run_lvm(world: &mut World, args: &[String]) {
    let before = world.clone();
    lvm::run(world, args);
    let mut held = Vec::new();
    for (uuid, vg) in &mut world.vgs {
        let old: Vec<&Lv> =
            before.vgs.get(uuid).into_iter().flat_map(|vg| vg.state.lvs.values()).collect();
        let vg_name = vg.state.name.clone();
        let name = |lv: &LvName| dm_name(&vg_name, lv).unwrap_or_default();
        for lv in vg.state.lvs.values_mut() {
            match (old.iter().find(|old| old.uuid == lv.uuid), &lv.layout) {
                (None, LvLayout::Thin { pool, device_id, origin }) => {
                    lv.queued = true;
                    world.active.remove(&name(&lv.name));
                    world.half_made.insert((name(pool), *device_id));
                    held.extend(origin.as_ref().map(name));
                }
                (None, LvLayout::Cow { origin, .. }) => held.push(name(origin)),
                // The legs' metadata is shown, to be cleared.
                (None, LvLayout::Raid(ThickLayout::Raid { level, .. })) => {
                    lv.layout = LvLayout::UnfinishedRaid(level.as_str().to_owned());
                    world.active.remove(&name(&lv.name));
                }
                (Some(old), _) if old.size < lv.size => held.push(name(&lv.name)),
                _ => {}
            }
        }
    }
    world.leave_unfinished_spare(&before);
    held.retain(|name| world.active.contains_key(name));
    world.held.extend(held);
}

/// What LVM finds in a pool before it makes or removes a thin LV there.
pub(super) fn check_pool(world: &World, vg: &str, lv: &Lv) -> Outcome {
    let (Some(pool), Some(vg)) = (lv.pool(), world.vg(vg)) else { return Ok(()) };
    let pool = dm_name(&vg.name, pool).unwrap_or_default();
    match world.half_made.iter().find(|(of, _)| *of == pool) {
        Some((_, number)) => {
            refuse(format!("Thin pool {pool} already contain thin device with device_id {number}."))
        }
        None => Ok(()),
    }
}

impl World {
    /// Lets what is held of an LV go on.
    pub(super) fn release_held(&mut self, vg: &str, lv: &LvName) {
        if let Some(name) = self.vg(vg).and_then(|vg| dm_name(&vg.name, lv).ok()) {
            self.held.remove(&name);
        }
    }

    /// LVM writes the pool that it has made with what is to become its spare, and only then the spare.
    fn leave_unfinished_spare(&mut self, before: &Self) {
        let uuid = LvmUuid::derived("unfinished spare");
        for (id, vg) in &mut self.vgs {
            let Some(old) = before.vgs.get(id) else { continue };
            let new = vg.pools.keys().find(|pool| !old.pools.contains_key(*pool)).cloned();
            let pool = new.and_then(|pool| vg.state.lvs.get(&pool));
            let (Some(pool), Ok(name)) = (pool, LvName::parse("lvol0")) else { continue };
            let (Some(metadata), Some(areas)) = (pool.parts.get(1), vg.hidden.remove(&pool.name))
            else {
                continue;
            };
            let created_unix = pool.created_unix;
            let spare = Lv {
                name: name.clone(),
                uuid: uuid.clone(),
                areas,
                created_unix,
                layout: LvLayout::Linear,
                tags: Tags::default(),
                legs: vec![],
                ..metadata.clone()
            };
            vg.state.lvs.insert(name, spare);
        }
    }

    /// Lets the decrypted devices go on that are held.
    pub(super) fn resume_mappings(&mut self) -> Vec<String> {
        self.held.extract_if(.., |name| name.starts_with(CRYPT_PREFIX)).collect()
    }

    /// The active devices of a VG.
    pub(super) fn layers(&self, vg: &LvmUuid) -> Vec<Layer> {
        let Some(vg) = self.vgs.get(vg) else { return vec![] };
        let layer = |lv: &Lv| {
            let name = dm_name(&vg.state.name, &lv.name).ok()?;
            let suspended = self.held.contains(&name);
            let active = self.active.contains_key(&name);
            active.then(|| Layer { name, lv: lv.uuid.compact(), suspended })
        };
        vg.state.lvs.values().filter_map(layer).collect()
    }

    /// Whether any of it is there.
    pub(super) fn has_half(&self, halves: &Halves) -> bool {
        halves.thin.iter().any(|thin| self.half_made.contains(thin))
    }

    /// Takes it back.
    pub(super) fn take_back(&mut self, halves: &Halves) {
        self.half_made.retain(|thin| !halves.thin.contains(thin));
    }
}
