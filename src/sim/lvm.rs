//! LVM: takes the argument lists that `lvm::command` makes, changes the world as LVM would, and
//! answers as LVM does. What it does not understand it refuses, as LVM would.

use std::collections::BTreeMap;

use super::cow;
use super::cut;
use super::pool::SimPool;
use super::pool_parts;
use super::print;
use super::world::{Content, Holds, SimVg, World};
use crate::host::runner::{Completed, Exit};
use crate::lvm::layout::{RaidLevel, ThickLayout};
use crate::lvm::state::{Area, Lv, LvLayout};
use crate::lvm::tag::Tags;
use crate::names::{LvName, LvmUuid, VgName, dm_name};
use crate::units::{Bytes, Extents};

/// Options that stand alone; all others have a value.
const FLAGS: [&str; 7] = [
    "--refresh",
    "--splitsnapshot",
    "--yes",
    "--snapshot",
    "--ignoreactivationskip",
    "--nosuffix",
    "--norestorefile",
];

/// An argument list, taken apart.
struct Parsed<'a> {
    options: BTreeMap<&'a str, Vec<&'a str>>,
    names: Vec<&'a str>,
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

    fn get(&self, option: &str) -> Option<&'a str> {
        self.options.get(option)?.first().copied()
    }

    fn all(&self, option: &str) -> Vec<String> {
        self.options.get(option).into_iter().flatten().map(|v| (*v).to_owned()).collect()
    }

    fn number(&self, option: &str) -> Option<u64> {
        self.get(option)?.trim_end_matches('b').parse().ok()
    }

    /// The VG, and the LV when the name has one.
    fn target(&self) -> (&'a str, Option<&'a str>) {
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

fn commit(world: &mut World, vg: &str) {
    if let Some(vg) = world.vg_mut(vg) {
        vg.state.seqno = vg.state.seqno.wrapping_add(1);
    }
}

fn lvcreate(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let (vg_name, origin) = parsed.target();
    let Some(name) = parsed.get("--name").and_then(|n| LvName::parse_new(n).ok()) else {
        return Err((3, "no name".to_owned()));
    };
    let uuid = world.new_uuid();
    world.numbers = world.numbers.wrapping_add(1);
    let created_unix = i64::try_from(world.numbers).unwrap_or_default();
    let origin_lv =
        origin.and_then(|o| world.vg(vg_name)?.lvs.get(&LvName::parse(o).ok()?).cloned());
    let origin_active = origin_lv.as_ref().is_some_and(|lv| {
        world.vg(vg_name).is_some_and(|vg| cow::is_active(world, &vg.name, &lv.name))
    });
    let Some(vg) = world.vg_mut(vg_name) else {
        return refuse(format!("Volume group \"{vg_name}\" not found"));
    };
    if vg.state.lvs.contains_key(&name) {
        return refuse(format!(
            "Logical Volume \"{name}\" already exists in volume group \"{vg_name}\""
        ));
    }
    let mut lv = Lv {
        name: name.clone(),
        uuid: uuid.clone(),
        size: Bytes::ZERO,
        layout: LvLayout::Linear,
        tags: Tags::parse(parsed.all("--addtag").iter().map(String::as_str)),
        created_unix,
        writable: parsed.get("--permission") != Some("r"),
        areas: vec![],
        legs: vec![],
        parts: vec![],
        queued: false,
    };
    let mut content = Content::default();
    let mut activate = true;
    if parsed.get("--snapshot").is_some() {
        let Some(origin) = origin_lv else { return refuse("Failed to find origin") };
        let LvLayout::Thin { pool, .. } = &origin.layout else { return refuse("not thin") };
        let origin_name = Some(origin.name.clone());
        lv.layout = LvLayout::Thin {
            pool: pool.clone(),
            device_id: vg.next_device_id,
            origin: origin_name,
        };
        vg.next_device_id = vg.next_device_id.wrapping_add(1);
        lv.size = origin.size;
        activate = parsed.get("--setactivationskip") == Some("n");
        content = world.contents.get(&origin.uuid).cloned().unwrap_or_default();
    } else if parsed.get("--type") == Some("snapshot") {
        let count = parsed.number("--extents").unwrap_or_default();
        let chunk = Bytes::new(parsed.number("--chunksize").unwrap_or_default());
        activate = cow::create(vg, origin_active, origin_lv.as_ref(), (count, chunk), &mut lv)?;
        let origin = origin_lv.map(|origin| origin.uuid);
        content = origin.and_then(|uuid| world.contents.get(&uuid).cloned()).unwrap_or_default();
    } else if parsed.get("--type") == Some("thin") {
        let Some(pool) = parsed.get("--thinpool").and_then(|p| LvName::parse(p).ok()) else {
            return Err((3, "no pool".to_owned()));
        };
        if !matches!(vg.state.lvs.get(&pool).map(|p| &p.layout), Some(LvLayout::ThinPool { .. })) {
            return refuse(format!("Pool {pool} not found in Volume group {vg_name}."));
        }
        lv.layout = LvLayout::Thin { pool, device_id: vg.next_device_id, origin: None };
        vg.next_device_id = vg.next_device_id.wrapping_add(1);
        lv.size = Bytes::new(parsed.number("--virtualsize").unwrap_or_default());
    } else {
        thick(vg, parsed, &mut lv)?;
    }
    cut::check_pool(world, vg_name, &lv)?;
    if let Some(vg) = world.vg_mut(vg_name) {
        vg.state.lvs.insert(name.clone(), lv);
    }
    world.contents.insert(uuid, content);
    commit(world, vg_name);
    if activate {
        set_active(world, vg_name, &name);
    }
    Ok(())
}

/// What `lvcreate` takes from the PVs for a thick LV or a pool.
fn thick(vg: &mut SimVg, parsed: &Parsed<'_>, lv: &mut Lv) -> Outcome {
    let (extent, name) = (vg.state.extent_size, lv.name.clone());
    let count = parsed.number("--extents").unwrap_or_default();
    let Some(allowed) = ranges(vg, parsed) else { return Err((3, "bad range".to_owned())) };
    lv.size = extent.size_of(Extents::new(count));
    if let Some(layout) = raid(parsed) {
        // LVM's own extent lies in front of each leg's data.
        let Some(areas) = take_legs(vg, &layout, count, 1, &allowed) else {
            return refuse("Insufficient suitable allocatable extents");
        };
        lv.layout = LvLayout::Raid(layout);
        lv.legs = areas.iter().map(|area| vec![area.pv.clone()]).collect();
        lv.legs.sort();
        lv.legs.dedup();
        vg.hidden.insert(name, areas);
        return Ok(());
    }
    let stripes = parsed.number("--stripes").unwrap_or(1);
    let free = vg.state.free_extents().get();
    let Some(areas) = vg.allocate(count, stripes, &allowed) else {
        return refuse(format!(
            "Volume group \"{}\" has insufficient free space ({free} extents): {count} required.",
            vg.state.name
        ));
    };
    if parsed.get("--type") != Some("thin-pool") {
        if stripes > 1 {
            lv.layout = LvLayout::Striped {
                stripes: u32::try_from(stripes).unwrap_or_default(),
                stripe_size: Bytes::new(parsed.number("--stripesize").unwrap_or_default()),
            };
        }
        lv.areas = areas;
        return Ok(());
    }
    lv.layout = LvLayout::ThinPool {
        zero: parsed.get("--zero") == Some("y"),
        chunk_size: Bytes::new(parsed.number("--chunksize").unwrap_or_default()),
    };
    let metadata =
        extent.extents_ceil(Bytes::new(parsed.number("--poolmetadatasize").unwrap_or_default()));
    let before = vg.state.pvs.clone();
    let kept = vg.allocate(metadata.get(), 1, &[]);
    let spare = vg.allocate(metadata.get(), 1, &[]);
    let (Some(kept), Some(spare)) = (kept, spare) else {
        vg.state.pvs = before;
        vg.release(&areas);
        return refuse("insufficient free space for metadata");
    };
    lv.parts = pool_parts::plain(lv, areas, (extent.size_of(metadata), kept));
    vg.hidden.insert(name.clone(), spare);
    let pool = SimPool { metadata, metadata_used: Bytes::kib(40), ..SimPool::default() };
    vg.pools.insert(name, pool);
    Ok(())
}

fn raid(parsed: &Parsed<'_>) -> Option<ThickLayout> {
    let level = parsed.get("--type").and_then(RaidLevel::parse)?;
    let data = match level {
        RaidLevel::Raid1 => parsed.number("--mirrors")?.saturating_add(1),
        RaidLevel::Raid5 | RaidLevel::Raid6 | RaidLevel::Raid10 => parsed.number("--stripes")?,
    };
    Some(ThickLayout::Raid {
        level,
        legs: level.legs(u32::try_from(data).ok()?),
        stripe_size: Bytes::new(parsed.number("--stripesize").unwrap_or_default()),
    })
}

/// The extents that a command names after the LV or VG. `None` when they make no sense.
fn ranges(vg: &SimVg, parsed: &Parsed<'_>) -> Option<Vec<Area>> {
    let range = |text: &&str| {
        let (device, (from, to)) =
            text.split_once(':').and_then(|(d, r)| Some((d, r.split_once('-')?)))?;
        let mut pvs = vg.state.pvs.iter();
        let (pv, _) = pvs.find(|(_, pv)| pv.device.as_deref() == Some(device.as_ref()))?;
        let (start, last) = (from.parse::<u64>().ok()?, to.parse::<u64>().ok()?);
        let len = last.saturating_sub(start).saturating_add(1);
        Some(Area { pv: pv.clone(), start, len })
    };
    parsed.names.get(1..).unwrap_or_default().iter().map(range).collect()
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
    let proof = select.contains(&format!("vg_uuid=\"{}\"", vg.uuid))
        && select.contains("lv_tags={\"cinderblock=1\"}")
        && lv.tags.owned == Some(1);
    proof.then(|| lv.clone())
}

fn lvremove(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
    let (vg_name, _) = parsed.target();
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
    if world.mounts.iter().any(|m| m.source == node || Some(m.device) == number) {
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
