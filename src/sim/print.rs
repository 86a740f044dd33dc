//! What LVM writes: its report as JSON, and a PV's label, metadata area and text as bytes.

use std::fmt::Write;

use serde_json::{Value, json};

use super::pool_parts::hidden;
use super::world::{Holds, SimVg, World};
use crate::lvm::label::crc;
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::names::LvmUuid;

const AREA_AT: u64 = 4096;
const AREA_SIZE: u64 = 256 << 10;
const SECTOR: usize = 512;

/// The answer to `fullreport`.
pub(super) fn report(world: &World) -> String {
    let mut parts: Vec<Value> = world.vgs.values().map(part).collect();
    let in_vg = |uuid: &LvmUuid| world.vgs.values().any(|vg| vg.state.pvs.contains_key(uuid));
    let orphans: Vec<Value> = world
        .disks
        .iter()
        .filter_map(|(node, disk)| match &disk.holds {
            Holds::Pv(uuid) if !in_vg(uuid) => Some(json!({
                "pv_uuid": uuid.as_str(), "pv_name": node, "pv_pe_count": "0",
                "pv_missing": "", "pv_allocatable": "",
            })),
            _ => None,
        })
        .collect();
    if !orphans.is_empty() {
        parts.push(json!({ "pv": orphans }));
    }
    let status = |vg: &SimVg| {
        json!({
            "log_type": "status", "log_object_type": "vg",
            "log_object_name": vg.state.name.as_str(), "log_object_id": vg.state.uuid.as_str(),
            "log_message": "success", "log_ret_code": "1",
        })
    };
    let log: Vec<Value> = world.vgs.values().map(status).collect();
    json!({ "report": parts, "log": log }).to_string()
}

fn part(vg: &SimVg) -> Value {
    let state = &vg.state;
    let row = json!({
        "vg_name": state.name.as_str(), "vg_uuid": state.uuid.as_str(),
        "vg_seqno": state.seqno.to_string(),
        "vg_extent_size": state.extent_size.bytes().get().to_string(),
        "vg_tags": state.tags.join(","), "vg_exported": if state.exported { "exported" } else { "" },
        "vg_systemid": state.system_id,
    });
    let pvs: Vec<Value> = state
        .pvs
        .iter()
        .map(|(uuid, pv)| {
            let name = pv.device.as_ref().map_or("[unknown]".into(), |d| d.to_string_lossy());
            json!({
                "pv_uuid": uuid.as_str(), "pv_name": name,
                "pv_pe_count": pv.extents.get().to_string(),
                "pv_missing": if pv.device.is_some() { "" } else { "missing" },
                "pv_allocatable": if pv.allocatable { "allocatable" } else { "" },
            })
        })
        .collect();
    let mut pvsegs = Vec::new();
    let mut pvseg = |pv: &LvmUuid, start: u64, len: u64, lv: &str| {
        pvsegs.push(json!({
            "pv_uuid": pv.as_str(), "pvseg_start": start.to_string(),
            "pvseg_size": len.to_string(), "lv_uuid": lv,
        }));
    };
    for (uuid, pv) in &state.pvs {
        for (start, len) in &pv.free {
            pvseg(uuid, *start, *len, "");
        }
    }
    for lv in state.lvs.values() {
        for area in &lv.areas {
            pvseg(&area.pv, area.start, area.len, lv.uuid.as_str());
        }
    }
    let mut lvs: Vec<Value> = state.lvs.values().map(lv_row).collect();
    let hidden = hidden(vg);
    for it in &hidden {
        let mut row = it.lv.map_or_else(|| json!({}), lv_row);
        row["lv_uuid"] = json!(it.uuid.as_str());
        row["lv_name"] = json!(format!("[{}]", it.name));
        row["lv_role"] = json!(it.role);
        if it.shown {
            row["lv_name"] = json!(it.name);
        }
        row["lv_parent"] = json!(it.parent);
        lvs.push(row);
        for area in &it.areas {
            pvseg(&area.pv, area.start, area.len, it.uuid.as_str());
        }
    }
    let parts = hidden.iter().filter_map(|it| it.lv);
    let segs: Vec<Value> = state.lvs.values().chain(parts).map(seg_row).collect();
    json!({ "vg": [row], "pv": pvs, "lv": lvs, "pvseg": pvsegs, "seg": segs })
}

fn lv_row(lv: &Lv) -> Value {
    let store = match &lv.layout {
        LvLayout::Cow { store, .. } => *store,
        _ => lv.size,
    };
    let cow = lv.cow_origin().is_some();
    let (pool, origin) = match &lv.layout {
        LvLayout::Thin { pool, origin, .. } => {
            (pool.as_str(), origin.as_ref().map_or("", |o| o.as_str()))
        }
        LvLayout::Cow { origin, .. } => ("", origin.as_str()),
        _ => ("", ""),
    };
    json!({
        "lv_uuid": lv.uuid.as_str(), "lv_name": lv.name.as_str(),
        "lv_size": store.get().to_string(), "origin_size": lv.size.get().to_string(), "lv_tags": lv.tags.print().join(","),
        "lv_time": lv.created_unix.to_string(),
        "lv_attr": if lv.writable { "-wi-a-----" } else { "-ri-------" },
        "lv_role": if cow { "public,snapshot,thicksnapshot" } else { "public" }, "pool_lv": pool, "origin": origin,
    })
}

fn seg_row(lv: &Lv) -> Value {
    let mut row = json!({
        "lv_uuid": lv.uuid.as_str(), "seg_start_pe": "0", "segtype": "linear", "stripes": "1",
        "stripe_size": "0", "chunk_size": "0", "zero": "", "thin_id": "",
    });
    match &lv.layout {
        LvLayout::Linear | LvLayout::Other(_) => {}
        LvLayout::UnfinishedRaid(kind) => row["segtype"] = json!(kind),
        LvLayout::Cow { chunk_size, .. } => {
            row["chunk_size"] = json!(chunk_size.get().to_string());
        }
        LvLayout::Raid(layout) => {
            if let ThickLayout::Raid { level, legs, stripe_size } = layout {
                row["segtype"] = json!(level.as_str());
                row["stripes"] = json!(legs.to_string());
                row["stripe_size"] = json!(stripe_size.get().to_string());
            }
        }
        LvLayout::Striped { stripes, stripe_size } => {
            row["segtype"] = json!("striped");
            row["stripes"] = json!(stripes.to_string());
            row["stripe_size"] = json!(stripe_size.get().to_string());
        }
        LvLayout::ThinPool { zero, chunk_size } => {
            row["segtype"] = json!("thin-pool");
            row["zero"] = json!(if *zero { "zero" } else { "" });
            row["chunk_size"] = json!(chunk_size.get().to_string());
        }
        LvLayout::Thin { device_id, .. } => {
            row["segtype"] = json!("thin");
            row["thin_id"] = json!(device_id.to_string());
        }
    }
    row
}

/// The first bytes of a PV: label, metadata area, and the text of its VG if it is in one.
pub(super) fn pv_image(world: &World, pv: &LvmUuid) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(AREA_AT.saturating_add(AREA_SIZE)).unwrap_or_default()];
    put(&mut image, SECTOR, &label(pv));
    let vg = world.vgs.values().find(|vg| vg.state.pvs.contains_key(pv));
    let text = vg.map(|vg| metadata(&vg.state, vg)).unwrap_or_default();
    let mut header = vec![0_u8; SECTOR];
    put(&mut header, 4, b" LVM2 x[5A%r0N*>");
    put(&mut header, 20, &1_u32.to_le_bytes());
    put(&mut header, 24, &AREA_AT.to_le_bytes());
    put(&mut header, 32, &AREA_SIZE.to_le_bytes());
    if let Some(vg) = vg {
        // Each commit moves the text on in the ring, sometimes over its end.
        let ring = AREA_SIZE.saturating_sub(512);
        let at = vg.state.seqno.wrapping_mul(36_864).checked_rem(ring).unwrap_or_default() & !511;
        let offset = at.saturating_add(512);
        let size = u64::try_from(text.len()).unwrap_or_default();
        put(&mut header, 40, &offset.to_le_bytes());
        put(&mut header, 48, &size.to_le_bytes());
        put(&mut header, 56, &crc(text.as_bytes()).to_le_bytes());
        let base = usize::try_from(AREA_AT).unwrap_or_default();
        let from = usize::try_from(offset).unwrap_or_default();
        let room = usize::try_from(AREA_SIZE).unwrap_or_default().saturating_sub(from);
        let (head, tail) = text.as_bytes().split_at(room.min(text.len()));
        put(&mut image, base.saturating_add(from), head);
        put(&mut image, base.saturating_add(SECTOR), tail);
    }
    let checksum = crc(header.get(4..).unwrap_or_default());
    put(&mut header, 0, &checksum.to_le_bytes());
    put(&mut image, usize::try_from(AREA_AT).unwrap_or_default(), &header);
    image
}

fn label(pv: &LvmUuid) -> Vec<u8> {
    let mut sector = vec![0_u8; SECTOR];
    put(&mut sector, 0, b"LABELONE");
    put(&mut sector, 8, &1_u64.to_le_bytes());
    put(&mut sector, 20, &32_u32.to_le_bytes());
    put(&mut sector, 24, b"LVM2 001");
    put(&mut sector, 32, pv.compact().as_bytes());
    // One data area, and one metadata area behind the zero that ends the list.
    put(&mut sector, 72, &(65_u64 << 20).to_le_bytes());
    put(&mut sector, 104, &AREA_AT.to_le_bytes());
    put(&mut sector, 112, &AREA_SIZE.to_le_bytes());
    let checksum = crc(sector.get(20..).unwrap_or_default());
    put(&mut sector, 16, &checksum.to_le_bytes());
    sector
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = into.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        room.copy_from_slice(bytes);
    }
}

fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = items.into_iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

fn metadata(state: &VgState, vg: &SimVg) -> String {
    let mut out = String::new();
    let names: Vec<(&LvmUuid, String)> =
        state.pvs.keys().enumerate().map(|(i, uuid)| (uuid, format!("pv{i}"))).collect();
    let pv_name = |uuid: &LvmUuid| {
        names.iter().find(|(u, _)| *u == uuid).map(|(_, n)| n.clone()).unwrap_or_default()
    };
    let mut text = || -> std::fmt::Result {
        writeln!(out, "{} {{\nid = \"{}\"\nseqno = {}", state.name, state.uuid, state.seqno)?;
        writeln!(out, "status = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []")?;
        writeln!(out, "tags = {}", list(state.tags.iter().map(String::as_str)))?;
        writeln!(out, "extent_size = {}", state.extent_size.bytes().get() / 512)?;
        writeln!(out, "physical_volumes {{")?;
        for (uuid, pv) in &state.pvs {
            writeln!(out, "{} {{\nid = \"{uuid}\"\nstatus = [\"ALLOCATABLE\"]", pv_name(uuid))?;
            writeln!(out, "flags = []\npe_count = {}\n}}", pv.extents.get())?;
        }
        writeln!(out, "}}\nlogical_volumes {{")?;
        for (i, lv) in state.lvs.values().enumerate() {
            lv_text(&mut out, state, lv, true, &pv_name)?;
            cow_text(&mut out, state.extent_size, lv, i)?;
        }
        for it in hidden(vg) {
            if let Some(part) = it.lv {
                lv_text(&mut out, state, part, false, &pv_name)?;
                continue;
            }
            let (name, uuid) = (&it.name, &it.uuid);
            let shown = if it.shown { ", \"VISIBLE\"" } else { "" };
            writeln!(out, "{name} {{\nid = \"{uuid}\"\nstatus = [\"READ\", \"WRITE\"{shown}]")?;
            for (i, area) in it.areas.iter().enumerate() {
                linear_text(&mut out, i, area.len, &pv_name(&area.pv), area.start)?;
            }
            writeln!(out, "}}")?;
        }
        writeln!(out, "}}\n}}\n# Generated by LVM2\ncontents = \"Text Format Volume Group\"")?;
        write!(out, "version = 1\n\0")
    };
    if text().is_err() {
        return String::new();
    }
    out
}

fn linear_text(out: &mut String, i: usize, len: u64, pv: &str, start: u64) -> std::fmt::Result {
    writeln!(
        out,
        "segment{} {{\nstart_extent = 0\nextent_count = {len}\ntype = \"striped\"",
        i.saturating_add(1)
    )?;
    writeln!(out, "stripe_count = 1\nstripes = [\"{pv}\", {start}]\n}}")
}

fn raid_text(out: &mut String, open: &str, lv: &Lv, layout: &ThickLayout) -> std::fmt::Result {
    let ThickLayout::Raid { level, legs, stripe_size } = layout else { return Ok(()) };
    writeln!(out, "{open}\ntype = \"{}\"\ndevice_count = {legs}", level.as_str())?;
    if !stripe_size.is_zero() {
        writeln!(out, "stripe_size = {}", stripe_size.get() / 512)?;
    }
    raids_text(out, lv)
}

fn raids_text(out: &mut String, lv: &Lv) -> std::fmt::Result {
    let raids: Vec<String> = (0..lv.legs.len())
        .flat_map(|i| [format!("{}_rmeta_{i}", lv.name), format!("{}_rimage_{i}", lv.name)])
        .collect();
    writeln!(out, "raids = {}\n}}", list(raids.iter().map(String::as_str)))
}

/// The LV that joins a thick snapshot to its origin.
fn cow_text(
    out: &mut String,
    extent: crate::units::ExtentSize,
    lv: &Lv,
    number: usize,
) -> std::fmt::Result {
    let LvLayout::Cow { origin, chunk_size, .. } = &lv.layout else { return Ok(()) };
    let uuid = LvmUuid::derived(&format!("{} snapshot", lv.uuid));
    writeln!(out, "snapshot{number} {{\nid = \"{uuid}\"\nstatus = [\"READ\", \"VISIBLE\"]")?;
    let count = extent.extents_ceil(lv.size).get();
    writeln!(out, "segment1 {{\nstart_extent = 0\nextent_count = {count}\ntype = \"snapshot\"")?;
    writeln!(out, "chunk_size = {}\norigin = \"{origin}\"", chunk_size.get() / 512)?;
    writeln!(out, "cow_store = \"{}\"\n}}\n}}", lv.name)
}

fn lv_text(
    out: &mut String,
    state: &VgState,
    lv: &Lv,
    visible: bool,
    pv_name: &dyn Fn(&LvmUuid) -> String,
) -> std::fmt::Result {
    let status = match (lv.writable, visible) {
        (true, true) => "\"READ\", \"WRITE\", \"VISIBLE\"",
        (true, false) => "\"READ\", \"WRITE\"",
        (false, _) => "\"READ\", \"VISIBLE\"",
    };
    writeln!(out, "{} {{\nid = \"{}\"\nstatus = [{status}]\nflags = []", lv.name, lv.uuid)?;
    let tags = lv.tags.print();
    writeln!(out, "tags = {}", list(tags.iter().map(String::as_str)))?;
    writeln!(out, "creation_time = {}", lv.created_unix)?;
    let count = state.extent_size.extents_ceil(lv.size).get();
    let open = format!("segment1 {{\nstart_extent = 0\nextent_count = {count}");
    match &lv.layout {
        LvLayout::Raid(layout) => raid_text(out, &open, lv, layout)?,
        LvLayout::UnfinishedRaid(kind) => {
            writeln!(out, "{open}\ntype = \"{kind}\"\ndevice_count = {}", lv.legs.len())?;
            raids_text(out, lv)?;
        }
        LvLayout::Linear | LvLayout::Cow { .. } | LvLayout::Other(_) => {
            for (i, area) in lv.areas.iter().enumerate() {
                linear_text(out, i, area.len, &pv_name(&area.pv), area.start)?;
            }
        }
        LvLayout::Striped { stripes, stripe_size } => {
            // One segment for each group of areas of one length.
            let width = usize::try_from(*stripes).unwrap_or(1);
            let mut areas = lv.areas.clone();
            areas.sort_by_key(|a| (a.len, a.start));
            for (i, group) in areas.chunks(width).enumerate() {
                let len = group.iter().map(|a| a.len).sum::<u64>();
                let places: Vec<String> =
                    group.iter().map(|a| format!("\"{}\", {}", pv_name(&a.pv), a.start)).collect();
                writeln!(
                    out,
                    "segment{} {{\nstart_extent = 0\nextent_count = {len}",
                    i.saturating_add(1)
                )?;
                writeln!(out, "type = \"striped\"\nstripe_count = {stripes}")?;
                writeln!(
                    out,
                    "stripe_size = {}\nstripes = [{}]\n}}",
                    stripe_size.get() / 512,
                    places.join(", ")
                )?;
            }
        }
        LvLayout::ThinPool { zero, chunk_size } => {
            writeln!(
                out,
                "{open}\ntype = \"thin-pool\"\nmetadata = \"{0}_tmeta\"\npool = \"{0}_tdata\"",
                lv.name
            )?;
            writeln!(out, "transaction_id = 1\nchunk_size = {}", chunk_size.get() / 512)?;
            writeln!(out, "zero_new_blocks = {}", u8::from(*zero))?;
            let queued = |thin: &&Lv| thin.queued && thin.pool() == Some(&lv.name);
            for (i, thin) in state.lvs.values().filter(queued).enumerate() {
                writeln!(out, "message{i} {{\ncreate = \"{}\"\n}}", thin.name)?;
            }
            writeln!(out, "}}")?;
        }
        LvLayout::Thin { pool, device_id, origin } => {
            writeln!(
                out,
                "{open}\ntype = \"thin\"\nthin_pool = \"{pool}\"\ndevice_id = {device_id}"
            )?;
            if let Some(origin) = origin {
                writeln!(out, "origin = \"{origin}\"")?;
            }
            writeln!(out, "}}")?;
        }
    }
    writeln!(out, "}}")
}
