//! What a thin pool is made of, as LVM writes it on its disks: the hidden LVs of its data and metadata.

use std::collections::BTreeMap;

use super::layout::RaidLevel;
use super::metadata::{
    Result, bad, identifier, is_visible, kind_of, layout, legs, raid, raid_subs, segments, unsigned,
};
use super::state::{Area, Lv, LvLayout};
use super::tag::Tags;
use super::text::{Section, Value};
use crate::names::LvName;
use crate::units::{ExtentSize, Extents};

/// The hidden LVs of a pool's data and metadata, if it is one.
pub(super) fn pool_parts(
    section: &Section,
    extent_size: ExtentSize,
    areas: &BTreeMap<&str, Vec<Area>>,
    pool: &Section,
) -> Result<Vec<Lv>> {
    let mut parts = Vec::new();
    if kind_of(pool) != "thin-pool" {
        return Ok(parts);
    }
    for key in ["pool", "metadata"] {
        let name = pool.value(key).and_then(Value::as_text).unwrap_or_default();
        let Some(lv) = section.section(name) else {
            return bad(format!("a thin pool has no {key} {name}"));
        };
        parts.push(pool_part(section, extent_size, areas, name, lv)?);
    }
    Ok(parts)
}

fn pool_part(
    section: &Section,
    extent_size: ExtentSize,
    areas: &BTreeMap<&str, Vec<Area>>,
    name: &str,
    lv: &Section,
) -> Result<Lv> {
    let Some(first) = segments(lv).next() else {
        return bad(format!("LV {name} has no segments"));
    };
    let kind = kind_of(first);
    let layout = match RaidLevel::parse(kind) {
        Some(_) if raid_subs(first).any(|sub| is_visible(section, sub)) => {
            LvLayout::UnfinishedRaid(kind.to_owned())
        }
        Some(level) => raid(level, first)?,
        None => layout(kind, first)?,
    };
    let legs = if matches!(layout, LvLayout::Raid(_)) { legs(first, areas) } else { vec![] };
    let mut extents = Extents::ZERO;
    for segment in segments(lv) {
        extents = extents.saturating_add(Extents::new(unsigned(segment, "extent_count")?));
    }
    Ok(Lv {
        name: LvName::parse(name).or_else(|e| bad(e.to_string()))?,
        uuid: identifier(lv)?,
        size: extent_size.size_of(extents),
        layout,
        tags: Tags::parse(lv.texts("tags")),
        created_unix: lv.value("creation_time").and_then(Value::as_number).unwrap_or(0),
        writable: lv.texts("status").any(|s| s == "WRITE"),
        areas: areas.get(name).cloned().unwrap_or_default(),
        legs,
        parts: vec![],
    })
}
