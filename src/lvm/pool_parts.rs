//! What a thin pool is made of, as LVM writes it on its disks: the hidden LVs of its data and metadata, and
//! what the pool is still to be told.

use std::collections::{BTreeMap, BTreeSet};

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
        queued: false,
    })
}

/// The thin LVs that LVM is making: it writes a message to the pool into the metadata, sends it, and
/// takes it out again. One that is still there was perhaps never sent.
pub(super) fn queued_in_pools(section: &Section) -> BTreeSet<&str> {
    let pools = section.sections.iter().flat_map(|(_, lv)| segments(lv));
    let messages = pools
        .filter(|segment| kind_of(segment) == "thin-pool")
        .flat_map(|pool| &pool.sections)
        .filter(|(name, _)| name.starts_with("message"));
    messages.filter_map(|(_, message)| message.value("create")?.as_text()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::metadata::parse;

    const VG0: &str = include_str!("../../tests/recordings/lvm-2.03.16/several.vg0.metadata");

    #[test]
    fn a_thin_lv_whose_making_was_cut_is_still_queued_in_its_pool() {
        let queued = |text: &str| -> Vec<String> {
            let vg = parse(text, &BTreeMap::new()).unwrap();
            vg.lvs.values().filter(|lv| lv.queued).map(|lv| lv.name.to_string()).collect()
        };
        assert!(queued(VG0).is_empty());
        // As LVM 2.03.16 left it when it was killed.
        let message = "metadata = \"pool0_tmeta\"\nmessage1 {\ncreate = \"snap-1\"\n}\nmessage2 {\ndelete = 7\n}\n";
        let cut = VG0.replacen("metadata = \"pool0_tmeta\"\n", message, 1);
        assert_eq!(queued(&cut), ["snap-1"]);
        let vg = parse(&cut, &BTreeMap::new()).unwrap();
        assert!(vg.lvs.values().any(|lv| lv.is_cut_thin() && lv.is_unfinished()));
    }
}
