//! LVM: takes the argument lists that `lvm::command` makes, changes the world as LVM would, and
//! answers as LVM does. What it does not understand it refuses, as LVM would.

use std::collections::BTreeMap;

use super::cow;
use super::cut;
use super::lvcreate::{lvcreate, ranges};
use super::missing;
use super::pool_parts;
use super::print;
use super::world::{Holds, SimVg, World};
use crate::host::runner::{Completed, Exit};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Area, Lv, LvLayout};
use crate::lvm::tag::Tags;
use crate::names::{LvName, LvmUuid, VgName, dm_name};
use crate::units::{Bytes, Extents};

/// Options that stand alone; all others have a value.
const FLAGS: [&str; 9] = [
    "--removemissing",
    "--repair",
    "--refresh",
    "--splitsnapshot",
    "--yes",
    "--snapshot",
    "--ignoreactivationskip",
    "--nosuffix",
    "--norestorefile",
];

/// An argument list, taken apart.
pub(super) struct Parsed<'a> {
    options: BTreeMap<&'a str, Vec<&'a str>>,
    pub(super) names: Vec<&'a str>,
}

impl<'a> Parsed<'a> {
    fn new(args: &'a [String]) -> Self {
        let (mut options, mut names) = (BTreeMap::<&str, Vec<&str>>::new(), Vec::new());
        let mut args = args.iter().map(String::as_str);
        while let Some(arg) = args.next() {
            if !arg.starts_with('-') {
                names.push(arg);
            } else if FLAGS.contains(&arg) {
                options.entry(arg).or_default().push("");
            } else {
                options.entry(arg).or_default().push(args.next().unwrap_or_default());
            }
        }
        Self { options, names }
    }

    pub(super) fn get(&self, option: &str) -> Option<&'a str> {
        self.options.get(option)?.first().copied()
    }

    pub(super) fn all(&self, option: &str) -> Vec<String> {
        self.options.get(option).into_iter().flatten().map(|v| (*v).to_owned()).collect()
    }

    pub(super) fn number(&self, option: &str) -> Option<u64> {
        self.get(option)?.trim_end_matches('b').parse().ok()
    }

    /// The VG, and the LV when the name has one.
    pub(super) fn target(&self) -> (&'a str, Option<&'a str>) {
        let name = self.names.first().copied().unwrap_or_default();
        name.split_once('/').map_or((name, None), |(vg, lv)| (vg, Some(lv)))
    }
}

/// Whether a command only reads.
pub(super) fn is_read(args: &[String]) -> bool {
    matches!(args.first().map(String::as_str), Some("fullreport" | "version"))
}

/// Runs a command.
pub(super) fn run(world: &mut World, args: &[String]) -> Completed {
    let command = args.first().map_or("", String::as_str);
    let parsed = Parsed::new(args.get(1..).unwrap_or_default());
    let outcome = match command {
        "version" => return done(0, "  LVM version:     2.03.16(2) (2022-05-18)\n", ""),
        "fullreport" => return done(0, &print::report(world), ""),
        "pvcreate" => pvcreate(world, &parsed),
        "vgcreate" => vgcreate(world, &parsed),
        "vgextend" => vgextend(world, &parsed),
        "vgreduce" => missing::vgreduce(world, &parsed),
        "lvcreate" => lvcreate(world, &parsed),
        "lvextend" => lvextend(world, &parsed),
        "lvremove" => lvremove(world, &parsed),
        "lvchange" => lvchange(world, &parsed),
        "lvrename" => lvrename(world, &parsed),
        "lvconvert" => lvconvert(world, &parsed),
        other => Err((3, format!("No such command '{other}'."))),
    };
    match outcome {
        Ok(()) => done(0, "{\"log\": []}", ""),
        Err((code, why)) if parsed.get("--select").is_some() || code == 3 => done(code, "", &why),
        Err((code, why)) => {
            let why = why.replace('"', "\\\"");
            let log =
                format!("{{\"log\": [{{\"log_type\":\"error\", \"log_message\":\"{why}\"}}]}}");
            done(code, &log, "")
        }
    }
}

fn done(code: i32, stdout: &str, stderr: &str) -> Completed {
    Completed { exit: Exit::Code(code), stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

pub(super) type Outcome = Result<(), (i32, String)>;

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, (i32, String)> {
    Err((5, why.into()))
}

fn pvcreate(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let node = world.disk_node(parsed.names.first().copied().unwrap_or_default().as_ref());
    let uuid = parsed.get("--uuid").and_then(|u| LvmUuid::parse(u).ok());
    let (Some(node), Some(uuid)) = (node, uuid) else { return refuse("no such device") };
    if let Some(disk) = world.disks.get_mut(&node) {
        disk.holds = Holds::Pv(uuid);
    }
    Ok(())
}

fn vgcreate(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let [name, disks @ ..] = parsed.names.as_slice() else { return refuse("no name") };
    if world.vg(name).is_some() {
        return refuse(format!("A volume group called {name} already exists."));
    }
    let Ok(name) = VgName::parse(name) else { return refuse("bad name") };
    let disks: Vec<_> = disks.iter().filter_map(|d| world.disk_node(d.as_ref())).collect();
    world.add_vg(name, &disks, parsed.all("--addtag"));
    Ok(())
}

fn vgextend(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let [name, disk] = parsed.names.as_slice() else { return refuse("no name") };
    let Some(uuid) = world.vg(name).map(|vg| vg.uuid.clone()) else {
        return refuse(format!("Volume group \"{name}\" not found"));
    };
    let Some(node) = world.disk_node(disk.as_ref()) else { return refuse("no such device") };
    world.add_pv(&uuid, &node);
    commit(world, name);
    Ok(())
}

pub(super) fn commit(world: &mut World, vg: &str) {
    if let Some(vg) = world.vg_mut(vg) {
        vg.state.seqno = vg.state.seqno.wrapping_add(1);
    }
}

/// Extents for the legs of RAID, each leg on one PV, with so many of LVM's own.
pub(super) fn take_legs(
    vg: &mut SimVg,
    layout: &ThickLayout,
    count: u64,
    own: u64,
    allowed: &[Area],
) -> Option<Vec<Area>> {
    let each = layout.leg_extents(Extents::new(count)).get().saturating_add(own);
    let legs = u64::from(layout.legs());
    vg.allocate(each.saturating_mul(legs), legs, allowed)
}

pub(super) fn set_active(world: &mut World, vg: &str, lv: &LvName) {
    let Ok(vg) = VgName::parse(vg) else { return };
    let Ok(name) = dm_name(&vg, lv) else { return };
    if !world.active.contains_key(&name) {
        world.numbers = world.numbers.wrapping_add(1);
        let minor = u32::try_from(world.numbers).unwrap_or_default();
        world.active.insert(name, minor);
    }
}

fn lvextend(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let (vg_name, lv) = parsed.target();
    let count = parsed.number("--extents").unwrap_or_default();
    let Some(vg) = world.vg_mut(vg_name) else { return refuse("no such volume group") };
    let Some(lv) = lv.and_then(|lv| vg.state.lvs.get(&LvName::parse(lv).ok()?).cloned()) else {
        return refuse("Logical volume not found");
    };
    if let Some(size) = parsed.number("--poolmetadatasize") {
        let size = vg.state.extent_size.extents_ceil(Bytes::new(size));
        let Some(allowed) = ranges(vg, parsed) else { return Err((3, "bad range".to_owned())) };
        vg.extend_metadata(&lv.name, size, &allowed)?;
        commit(world, vg_name);
        return Ok(());
    }
    let extent = vg.state.extent_size;
    let (state, origin) = (vg.state.clone(), lv.name.clone());
    if state.cow_snapshots(&origin).next().is_some() && cow::is_active(world, &state.name, &origin)
    {
        return refuse(
            "Snapshot origin volumes can be resized only while inactive: try lvchange -an.",
        );
    }
    let Some(vg) = world.vg_mut(vg_name) else { return refuse("no such volume group") };
    let has = if let LvLayout::Cow { store, .. } = lv.layout { store } else { lv.size };
    let have = extent.extents_ceil(has).get();
    let Some(more) = count.checked_sub(have).filter(|more| *more > 0) else {
        return refuse(format!(
            "New size ({count} extents) matches existing size ({have} extents)."
        ));
    };
    let mut areas = lv.areas.clone();
    let Some(allowed) = ranges(vg, parsed) else { return Err((3, "bad range".to_owned())) };
    if let LvLayout::ThinPool { .. } = lv.layout {
        vg.grow_part(&lv.name, 0, more, &allowed)?;
    } else if let LvLayout::Raid(layout) = &lv.layout {
        let Some(new) = take_legs(vg, layout, more, 0, &allowed) else {
            return refuse("Insufficient suitable allocatable extents");
        };
        vg.hidden.entry(lv.name.clone()).or_default().extend(new);
    } else if !matches!(lv.layout, LvLayout::Thin { .. }) {
        let stripes = match lv.layout {
            LvLayout::Striped { stripes, .. } => u64::from(stripes),
            _ => 1,
        };
        let Some(new) = vg.allocate(more, stripes, &allowed) else {
            return refuse("Insufficient free space");
        };
        areas.extend(new);
        areas.sort();
    }
    if let Some(lv) = vg.state.lvs.get_mut(&lv.name) {
        let now = extent.size_of(Extents::new(count));
        match &mut lv.layout {
            LvLayout::Cow { store, .. } => *store = now,
            _ => lv.size = now,
        }
        lv.areas = areas;
    }
    commit(world, vg_name);
    Ok(())
}

/// The LV that `--select` proves, if there is one.
fn selected(world: &World, parsed: &Parsed<'_>) -> Option<Lv> {
    let select = parsed.get("--select")?;
    let (vg_name, _) = parsed.target();
    let vg = world.vg(vg_name)?;
    let lv = vg.lvs.values().find(|lv| select.contains(&format!("lv_uuid=\"{}\"", lv.uuid)))?;
    let tagged = if select.contains("lv_tags=\"\"") {
        lv.tags == Tags::default()
    } else {
        select.contains("lv_tags={\"cinderblock=1\"}") && lv.tags.owned == Some(1)
    };
    let volumes = || vg.lvs.values().any(|it| it.pool() == Some(&lv.name));
    let empty = !select.contains("thin_count=0") || !volumes();
    let proof = tagged && empty && select.contains(&format!("vg_uuid=\"{}\"", vg.uuid));
    proof.then(|| lv.clone())
}

fn lvremove(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let (vg_name, lv) = parsed.target();
    if lv == Some("lvol0_pmspare") {
        return missing::remove_lost_spare(world, vg_name);
    }
    let Some(lv) = selected(world, parsed) else { return Ok(()) };
    let select = parsed.get("--select").unwrap_or_default();
    let snapshots: Vec<Lv> = world
        .vg(vg_name)
        .map(|vg| vg.cow_snapshots(&lv.name).cloned().collect())
        .unwrap_or_default();
    if !snapshots.is_empty() && select.contains("lv_attr!~\"^[oO]\"") {
        return Ok(());
    }
    // All of them go with it.
    for lv in snapshots.into_iter().chain([lv]) {
        remove(world, vg_name, &lv)?;
    }
    commit(world, vg_name);
    Ok(())
}

fn remove(world: &mut World, vg_name: &str, lv: &Lv) -> Outcome {
    let Some(state) = world.vg(vg_name) else { return refuse("no such volume group") };
    let name = dm_name(&state.name, &lv.name).unwrap_or_default();
    let node = std::path::Path::new("/dev/mapper").join(&name);
    let number = world.device(&name).map(|d| d.number);
    if world.mappings.values().any(|m| m.lv == lv.uuid) {
        return refuse(format!("Logical volume {vg_name}/{} in use.", lv.name));
    }
    if world.users(&node) > 0 || world.mounts.iter().any(|m| Some(m.device) == number) {
        return refuse(format!(
            "Logical volume {vg_name}/{} contains a filesystem in use.",
            lv.name
        ));
    }
    cut::check_pool(world, vg_name, lv)?;
    world.active.remove(&name);
    world.held.remove(&name);
    // What was written stays in the extents.
    world.contents.remove(&lv.uuid);
    cow::forget(world, &lv.uuid);
    if let Some(vg) = world.vg_mut(vg_name) {
        vg.release(&lv.areas);
        vg.release_parts(lv);
        vg.state.lvs.remove(&lv.name);
        vg.pools.remove(&lv.name);
        if let Some(hidden) = vg.hidden.remove(&lv.name) {
            vg.release(&hidden);
        }
        for other in vg.state.lvs.values_mut() {
            if let LvLayout::Thin { origin, .. } = &mut other.layout {
                origin.take_if(|o| *o == lv.name);
            }
        }
    }
    Ok(())
}

/// Also of what is in use: LVM has nothing against it.
fn lvrename(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let [vg_name, from, to] = parsed.names.as_slice() else { return refuse("three names") };
    let (Ok(from), Ok(to)) = (LvName::parse(from), LvName::parse_new(to)) else {
        return Err((3, "bad name".to_owned()));
    };
    let Some(vg) = world.vg(vg_name) else { return refuse("no such volume group") };
    if vg.lvs.contains_key(&to) {
        return refuse(format!("Logical Volume \"{to}\" already exists"));
    }
    if !vg.lvs.contains_key(&from) {
        return refuse(format!("Existing logical volume \"{from}\" not found"));
    }
    world.rename(vg_name, &from, &to);
    commit(world, vg_name);
    Ok(())
}

fn lvconvert(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let (vg_name, lv) = parsed.target();
    let Some(lv) = lv.and_then(|lv| LvName::parse(lv).ok()) else { return refuse("no name") };
    if parsed.get("--type") == Some("thin-pool") {
        let metadata = parsed.get("--poolmetadata").and_then(|name| name.split_once('/'));
        let Some(metadata) = metadata.and_then(|(_, name)| LvName::parse(name).ok()) else {
            return Err((3, "no metadata".to_owned()));
        };
        let chunk_size = Bytes::new(parsed.number("--chunksize").unwrap_or_default());
        let zero = parsed.get("--zero") == Some("y");
        pool_parts::convert(world, vg_name, &lv, &metadata, (zero, chunk_size))?;
        commit(world, vg_name);
        return Ok(());
    }
    if parsed.get("--repair").is_some() {
        return missing::replace_legs(world, vg_name, &lv);
    }
    if parsed.get("--splitsnapshot").is_none() {
        return Err((3, "no such conversion".to_owned()));
    }
    cow::split(world, vg_name, &lv)?;
    commit(world, vg_name);
    Ok(())
}

fn lvchange(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let (vg_name, lv) = parsed.target();
    if parsed.get("--refresh").is_some() {
        let Some(lv) = lv.and_then(|lv| LvName::parse(lv).ok()) else { return refuse("no name") };
        world.release_held(vg_name, &lv);
        if let Some(vg) = world.vg_mut(vg_name) {
            // Its disks decide.
            vg.raid.remove(&lv);
        }
        return Ok(());
    }
    if parsed.get("--activate").is_some() {
        let Some(lv) = lv.and_then(|lv| LvName::parse(lv).ok()) else { return refuse("no name") };
        if world.vg(vg_name).is_none_or(|vg| !vg.lvs.contains_key(&lv)) {
            return refuse("Failed to find logical volume");
        }
        if world.vg(vg_name).and_then(|vg| vg.lvs.get(&lv)).is_some_and(|lv| lv.queued) {
            return refuse("device-mapper: reload ioctl on failed: No data available");
        }
        let layout = world.vg(vg_name).and_then(|vg| Some(&vg.lvs.get(&lv)?.layout));
        if let Some(LvLayout::UnfinishedRaid(_)) = layout {
            return refuse("device-mapper: reload ioctl on failed: Invalid argument");
        }
        let partial = parsed.get("--activationmode") == Some("partial");
        let lacks = world.vg_mut(vg_name).is_some_and(|vg| {
            let lv = vg.state.lvs.get(&lv);
            lv.is_some_and(|lv| pool_parts::refuses_to_activate(vg, lv))
        });
        if lacks && !partial {
            return refuse(format!("Refusing activation of partial LV {vg_name}/{lv}."));
        }
        cow::activate_all(world, vg_name, &lv);
        return Ok(());
    }
    if let Some(lv) = lv.and_then(|lv| LvName::parse(lv).ok()) {
        let Some(lv) = world.vg_mut(vg_name).and_then(|vg| vg.state.lvs.get_mut(&lv)) else {
            return refuse("Failed to find logical volume");
        };
        let tags = [lv.tags.print(), parsed.all("--addtag")].concat();
        lv.tags = Tags::parse(tags.iter().map(String::as_str));
        commit(world, vg_name);
        return Ok(());
    }
    let Some(lv) = selected(world, parsed) else { return Ok(()) };
    let (add, del) = (parsed.all("--addtag"), parsed.all("--deltag"));
    if let Some(lv) = world.vg_mut(vg_name).and_then(|vg| vg.state.lvs.get_mut(&lv.name)) {
        lv.writable |= parsed.get("--permission") == Some("rw");
        let mut tags = lv.tags.print();
        tags.retain(|tag| !del.contains(tag));
        tags.extend(add);
        lv.tags = Tags::parse(tags.iter().map(String::as_str));
    }
    commit(world, vg_name);
    Ok(())
}
