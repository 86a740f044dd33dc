//! An LVM command that is killed in the midst of a change: the metadata has it, the kernel has half of
//! it. As LVM 2.03.16 leaves it, command by command.

use super::lvm::{self, Outcome, refuse};
use super::world::World;
use crate::host::dm_status::Layer;
use crate::host::dm_undo::Halves;
use crate::lvm::state::{Lv, LvLayout};
use crate::names::{LvName, LvmUuid, dm_name};

/// Begins a command, and is killed in its midst.
pub(super) fn run(world: &mut World, args: &[String]) {
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
                (Some(old), _) if old.size < lv.size => held.push(name(&lv.name)),
                _ => {}
            }
        }
    }
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
