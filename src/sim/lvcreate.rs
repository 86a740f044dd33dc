//! `lvcreate`: the LV that LVM makes of its argument list, and the extents that this one may get and
//! does get. What becomes of an LV later stands in `lvm`.

use super::cow;
use super::cut;
use super::lvm::{Outcome, Parsed, commit, refuse, set_active, take_legs};
use super::world::{Content, SimVg, World};
use crate::lvm::layout::{RaidLevel, ThickLayout};
use crate::lvm::state::{Area, Lv, LvLayout};
use crate::lvm::tag::Tags;
use crate::names::LvName;
use crate::units::{Bytes, Extents};

pub(super) fn lvcreate(world: &mut World, parsed: &Parsed<'_>) -> Outcome {
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

/// What `lvcreate` takes from the PVs for a thick LV.
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
    if stripes > 1 {
        lv.layout = LvLayout::Striped {
            stripes: u32::try_from(stripes).unwrap_or_default(),
            stripe_size: Bytes::new(parsed.number("--stripesize").unwrap_or_default()),
        };
    }
    lv.areas = areas;
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
pub(super) fn ranges(vg: &SimVg, parsed: &Parsed<'_>) -> Option<Vec<Area>> {
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
