//! A volume group as LVM writes it on its disks, read into [`VgState`]. This is how the agent sees
//! a change without running LVM; `report` is how LVM itself tells it, and both must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::layout::{RaidLevel, ThickLayout};
use super::pool_parts::{pool_parts, queued_in_pools};
use super::state::{Area, Lv, LvLayout, Pv, VgState};
use super::tag::Tags;
use super::text::{self, Section, Value};
use crate::names::{LvName, LvmUuid, VgName};
use crate::units::{Bytes, ExtentSize, Extents};

const SECTOR: u64 = 512;

/// Why a text is not a VG that we can rely on. LVM's own report decides then.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// It does not follow LVM's grammar.
    #[error(transparent)]
    Text(#[from] text::TextError),
    /// Something is missing or makes no sense.
    #[error("LVM metadata: {0}")]
    Content(String),
}

pub(super) type Result<T> = std::result::Result<T, MetadataError>;

pub(super) fn bad<T>(what: impl Into<String>) -> Result<T> {
    Err(MetadataError::Content(what.into()))
}

/// Reads the metadata of one VG. `devices` says where its PVs are; one that is not in it counts
/// as missing.
///
/// # Errors
/// When the text is damaged, or holds something that cannot be counted right.
pub fn parse(text: &str, devices: &BTreeMap<LvmUuid, PathBuf>) -> Result<VgState> {
    let root = text::parse(text)?;
    if root.value("version").and_then(Value::as_number) != Some(1) {
        return bad("not version 1 of the text format");
    }
    let [(name, vg)] = root.sections.as_slice() else {
        return bad(format!("{} volume groups in one text", root.sections.len()));
    };
    let name = VgName::parse(name).or_else(|e| bad(e.to_string()))?;
    let extent_sectors = unsigned(vg, "extent_size")?;
    let extent_size = ExtentSize::new(extent_sectors.saturating_mul(SECTOR))
        .map_or_else(|| bad("extent_size is 0"), Ok)?;
    let mut disks = Disks::read(vg, devices)?;
    let (mut lvs, mut has_pool_spare) = (BTreeMap::new(), false);
    if let Some(section) = vg.section("logical_volumes") {
        // By its name alone does LVM know it, too (import_vsn1.c).
        has_pool_spare = section.sections.iter().any(|(name, _)| name.ends_with("_pmspare"));
        let mut areas = BTreeMap::new();
        for (name, lv) in &section.sections {
            areas.insert(name.as_str(), disks.mark_used(name, lv)?);
        }
        lvs = visible_lvs(section, extent_size, &areas)?;
    }
    Ok(VgState {
        name,
        uuid: identifier(vg)?,
        seqno: unsigned(vg, "seqno")?,
        extent_size,
        tags: vg.texts("tags").map(str::to_owned).collect(),
        exported: vg.texts("status").any(|s| s == "EXPORTED"),
        system_id: vg.value("system_id").and_then(Value::as_text).unwrap_or_default().to_owned(),
        pvs: disks.into_pvs()?,
        lvs,
        has_pool_spare,
    })
}

pub(super) fn unsigned(section: &Section, key: &str) -> Result<u64> {
    section
        .value(key)
        .and_then(Value::as_number)
        .and_then(|n| u64::try_from(n).ok())
        .map_or_else(|| bad(format!("no number {key}")), Ok)
}

pub(super) fn identifier(section: &Section) -> Result<LvmUuid> {
    let id = section.value("id").and_then(Value::as_text).unwrap_or_default();
    LvmUuid::parse(id).or_else(|e| bad(e.to_string()))
}

/// The PVs while it is found out which of their extents are in use.
#[derive(Debug)]
struct Disks {
    /// By the name that the segments use (`pv0`).
    by_name: BTreeMap<String, Disk>,
}

#[derive(Debug)]
struct Disk {
    uuid: LvmUuid,
    pv: Pv,
    /// Runs of extents in use: first and length.
    used: Vec<(u64, u64)>,
}

impl Disks {
    fn read(vg: &Section, devices: &BTreeMap<LvmUuid, PathBuf>) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        let Some(section) = vg.section("physical_volumes") else {
            return bad("no physical volumes");
        };
        for (name, pv) in &section.sections {
            let uuid = identifier(pv)?;
            let missing = pv.texts("flags").chain(pv.texts("status")).any(|s| s == "MISSING");
            let pv = Pv {
                device: devices.get(&uuid).filter(|_| !missing).cloned(),
                allocatable: pv.texts("status").any(|s| s == "ALLOCATABLE"),
                extents: Extents::new(unsigned(pv, "pe_count")?),
                free: Vec::new(),
            };
            by_name.insert(name.clone(), Disk { uuid, pv, used: Vec::new() });
        }
        Ok(Self { by_name })
    }

    /// Every list of a segment that names PVs says where the segment's extents are.
    fn mark_used(&mut self, lv: &str, section: &Section) -> Result<Vec<Area>> {
        let mut areas = Vec::new();
        for segment in segments(section) {
            let count = unsigned(segment, "extent_count")?;
            for (_, value) in &segment.values {
                let Some(list) = value.as_list() else {
                    continue;
                };
                areas.extend(self.mark_areas(lv, segment, count, list)?);
            }
        }
        areas.sort_unstable();
        Ok(areas)
    }

    fn mark_areas(
        &mut self,
        lv: &str,
        segment: &Section,
        count: u64,
        list: &[Value],
    ) -> Result<Vec<Area>> {
        let areas: Vec<(&str, u64)> = list
            .chunks(2)
            .filter_map(|pair| match pair {
                [Value::Text(pv), Value::Number(start)] => {
                    Some((pv.as_str(), u64::try_from(*start).ok()?))
                }
                _ => None,
            })
            .filter(|(pv, _)| self.by_name.contains_key(*pv))
            .collect();
        if areas.is_empty() {
            return Ok(Vec::new());
        }
        let each = match segment.value("type").and_then(Value::as_text) {
            Some("striped") => {
                let stripes = unsigned(segment, "stripe_count")?;
                count
                    .checked_div(stripes)
                    .map_or_else(|| bad(format!("LV {lv} has no stripes")), Ok)?
            }
            Some("mirror") => count,
            other => {
                return bad(format!("LV {lv}: unknown use of PVs by segment type {other:?}"));
            }
        };
        let mut found = Vec::new();
        for (pv, start) in areas {
            if let Some(disk) = self.by_name.get_mut(pv) {
                disk.used.push((start, each));
                found.push(Area { pv: disk.uuid.clone(), start, len: each });
            }
        }
        Ok(found)
    }

    fn into_pvs(self) -> Result<BTreeMap<LvmUuid, Pv>> {
        let mut pvs = BTreeMap::new();
        for (name, Disk { uuid, mut pv, mut used }) in self.by_name {
            used.sort_unstable();
            let mut next = 0_u64;
            for (start, len) in used {
                match start.checked_sub(next) {
                    None => return bad(format!("{name}: extents used twice at {start}")),
                    Some(0) => {}
                    Some(gap) => pv.free.push((next, gap)),
                }
                next = start.saturating_add(len);
            }
            match pv.extents.get().checked_sub(next) {
                None => return bad(format!("{name}: extents used beyond its end")),
                Some(0) => {}
                Some(gap) => pv.free.push((next, gap)),
            }
            pvs.insert(uuid, pv);
        }
        Ok(pvs)
    }
}

pub(super) fn segments(lv: &Section) -> impl Iterator<Item = &Section> {
    lv.sections.iter().filter(|(name, _)| name.starts_with("segment")).map(|(_, s)| s)
}

pub(super) fn kind_of(segment: &Section) -> &str {
    segment.value("type").and_then(Value::as_text).unwrap_or_default()
}

fn visible_lvs(
    section: &Section,
    extent_size: ExtentSize,
    areas: &BTreeMap<&str, Vec<Area>>,
) -> Result<BTreeMap<LvName, Lv>> {
    // A copy-on-write snapshot is an LV of its own that points to the LV with the changed blocks.
    let cow: BTreeMap<&str, &Section> = section
        .sections
        .iter()
        .flat_map(|(_, lv)| segments(lv))
        .filter(|s| kind_of(s) == "snapshot")
        .filter_map(|s| Some((s.value("cow_store").and_then(Value::as_text)?, s)))
        .collect();
    let parts = raid_parts(section);
    let queued = queued_in_pools(section);
    let mut lvs = BTreeMap::new();
    for (name, lv) in &section.sections {
        let Some(first) = segments(lv).next() else {
            return bad(format!("LV {name} has no segments"));
        };
        let kind = kind_of(first);
        let snapshot = cow.get(name.as_str());
        let visible = snapshot.is_some() || lv.texts("status").any(|s| s == "VISIBLE");
        // A leg's part is a part even while LVM shows it, which it does to clear it.
        if kind == "snapshot" || !visible || parts.contains(name.as_str()) {
            continue;
        }
        let layout = match RaidLevel::parse(kind) {
            _ if snapshot.is_some() => LvLayout::Linear,
            Some(_) if raid_subs(first).any(|sub| is_visible(section, sub)) => {
                LvLayout::UnfinishedRaid(kind.to_owned())
            }
            Some(level) => raid(level, first)?,
            None => layout(kind, first)?,
        };
        let legs = if matches!(layout, LvLayout::Raid(_)) { legs(first, areas) } else { vec![] };
        let pool = pool_parts(section, extent_size, areas, first)?;
        let mut extents = Extents::ZERO;
        for segment in segments(lv) {
            extents = extents.saturating_add(Extents::new(unsigned(segment, "extent_count")?));
        }
        let areas = areas.get(name.as_str()).cloned().unwrap_or_default();
        let mut size = extent_size.size_of(extents);
        let mut layout = layout;
        if let Some(snapshot) = snapshot {
            layout = cow_layout(snapshot, size)?;
            size = extent_size.size_of(Extents::new(unsigned(snapshot, "extent_count")?));
        }
        let queued = queued.contains(name.as_str());
        let name = LvName::parse(name).or_else(|e| bad(e.to_string()))?;
        let state = Lv {
            name: name.clone(),
            uuid: identifier(lv)?,
            size,
            layout,
            tags: Tags::parse(lv.texts("tags")),
            created_unix: lv.value("creation_time").and_then(Value::as_number).unwrap_or(0),
            writable: lv.texts("status").any(|s| s == "WRITE"),
            areas,
            legs,
            parts: pool,
            queued,
        };
        lvs.insert(name, state);
    }
    Ok(lvs)
}

/// By the segment that joins a snapshot to its origin.
fn cow_layout(segment: &Section, store: Bytes) -> Result<LvLayout> {
    let origin = segment.value("origin").and_then(Value::as_text).unwrap_or_default();
    Ok(LvLayout::Cow {
        origin: LvName::parse(origin).or_else(|e| bad(format!("origin: {e}")))?,
        chunk_size: Bytes::new(unsigned(segment, "chunk_size")?.saturating_mul(SECTOR)),
        store,
    })
}

/// The hidden LVs of a RAID segment: metadata and image of each leg, in turn.
pub(super) fn raid_subs(segment: &Section) -> impl Iterator<Item = &str> {
    let list = segment.value("raids").and_then(Value::as_list).unwrap_or_default();
    list.iter().filter_map(Value::as_text)
}

/// The names of all of them.
fn raid_parts(section: &Section) -> BTreeSet<&str> {
    section.sections.iter().flat_map(|(_, lv)| segments(lv)).flat_map(raid_subs).collect()
}

pub(super) fn is_visible(section: &Section, lv: &str) -> bool {
    section.section(lv).is_some_and(|lv| lv.texts("status").any(|s| s == "VISIBLE"))
}

pub(super) fn raid(level: RaidLevel, segment: &Section) -> Result<LvLayout> {
    let Ok(legs) = u32::try_from(unsigned(segment, "device_count")?) else {
        return bad("device_count is too large");
    };
    let stripe =
        segment.value("stripe_size").map_or(Ok(0), |_| unsigned(segment, "stripe_size"))?;
    let stripe_size = Bytes::new(stripe.saturating_mul(SECTOR));
    Ok(LvLayout::Raid(ThickLayout::Raid { level, legs, stripe_size }))
}

/// The PVs of each image.
pub(super) fn legs(segment: &Section, areas: &BTreeMap<&str, Vec<Area>>) -> Vec<Vec<LvmUuid>> {
    let images = raid_subs(segment).skip(1).step_by(2);
    let mut legs: Vec<Vec<LvmUuid>> = images
        .map(|image| {
            let mut pvs: Vec<_> =
                areas.get(image).into_iter().flatten().map(|area| area.pv.clone()).collect();
            pvs.dedup();
            pvs
        })
        .collect();
    legs.sort_unstable();
    legs
}

pub(super) fn layout(kind: &str, segment: &Section) -> Result<LvLayout> {
    let lv = |key: &str| -> Result<LvName> {
        let text = segment.value(key).and_then(Value::as_text).unwrap_or_default();
        LvName::parse(text).or_else(|e| bad(format!("{key}: {e}")))
    };
    Ok(match kind {
        "striped" => match u32::try_from(unsigned(segment, "stripe_count")?) {
            Ok(0 | 1) => LvLayout::Linear,
            Ok(stripes) => LvLayout::Striped {
                stripes,
                stripe_size: Bytes::new(unsigned(segment, "stripe_size")?.saturating_mul(SECTOR)),
            },
            Err(_) => return bad("stripe_count is too large"),
        },
        "thin-pool" => LvLayout::ThinPool {
            zero: segment.value("zero_new_blocks").and_then(Value::as_number) == Some(1),
            chunk_size: Bytes::new(unsigned(segment, "chunk_size")?.saturating_mul(SECTOR)),
        },
        "thin" => LvLayout::Thin {
            pool: lv("thin_pool")?,
            device_id: unsigned(segment, "device_id")?,
            origin: segment.value("origin").map(|_| lv("origin")).transpose()?,
        },
        other => LvLayout::Other(other.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::report;
    use super::*;
    use crate::lvm::tag::Kind;
    use proptest::prelude::*;

    const REPORT: &str = include_str!("../../tests/recordings/lvm-2.03.16/several.json");
    const VG0: &str = include_str!("../../tests/recordings/lvm-2.03.16/several.vg0.metadata");
    const GONE: &str = include_str!("../../tests/recordings/lvm-2.03.16/several.gone.metadata");
    const EXPORTED: &str =
        include_str!("../../tests/recordings/lvm-2.03.16/several.exported.metadata");

    const REST: &str = include_str!("../../tests/recordings/lvm-2.03.16/several.rest.metadata");
    /// Every RAID layout, a pool on RAID, and a raid1 whose lvcreate was killed.
    const RAID: &str = include_str!("../../tests/recordings/lvm-2.03.16/raid.json");
    const RAID_VG0: &str = include_str!("../../tests/recordings/lvm-2.03.16/raid.vg0.metadata");

    /// What LVM reports and what stands on the disks are the same VG, for every kind of LV.
    #[test]
    fn the_disks_and_lvms_report_agree() {
        for (report, name, text) in [
            (REPORT, "vg0", VG0),
            (REPORT, "rest", REST),
            (REPORT, "gone", GONE),
            (REPORT, "exported", EXPORTED),
            (RAID, "vg0", RAID_VG0),
        ] {
            let report = report::parse(report).unwrap();
            let reported = report.vgs.iter().find(|vg| vg.name.as_str() == name).unwrap();
            let devices = reported
                .pvs
                .iter()
                .filter_map(|(uuid, pv)| Some((uuid.clone(), pv.device.clone()?)))
                .collect();
            let mut parsed = parse(text, &devices).unwrap();
            if report.vgs.len() > 1 {
                // It was recorded without the hidden LVs: where legs are, and what pools are made of.
                parsed.lvs.values_mut().for_each(|lv| (lv.legs, lv.parts) = (vec![], vec![]));
                parsed.has_pool_spare = false;
            }
            assert_eq!(&parsed, reported, "{name}");
        }
    }

    #[test]
    fn a_vg_with_raid() {
        let vg = parse(RAID_VG0, &BTreeMap::new()).unwrap();
        let lv = |name: &str| &vg.lvs[&LvName::parse(name).unwrap()];
        let raid = |level, legs, kib| {
            let layout = ThickLayout::Raid { level, legs, stripe_size: Bytes::kib(kib) };
            LvLayout::Raid(layout)
        };
        for (name, layout, legs) in [
            ("pvc-r1", raid(RaidLevel::Raid1, 2, 0), 2),
            ("pvc-r5", raid(RaidLevel::Raid5, 3, 64), 3),
            ("pvc-r6", raid(RaidLevel::Raid6, 5, 64), 5),
            ("pvc-r10", raid(RaidLevel::Raid10, 4, 64), 4),
        ] {
            let lv = lv(name);
            assert_eq!((&lv.layout, lv.legs.len()), (&layout, legs), "{name}");
            assert!(lv.legs.iter().all(|pvs| pvs.len() == 1) && lv.areas.is_empty(), "{name}");
        }
        let cut = lv("pvc-cut");
        assert_eq!(cut.layout, LvLayout::UnfinishedRaid("raid1".to_owned()));
        assert!(cut.is_unfinished() && cut.is_volume());
        assert!(matches!(lv("pool0").layout, LvLayout::ThinPool { zero: true, .. }));
        let parts = &lv("pool0").parts;
        let names: Vec<_> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["pool0_tdata", "pool0_tmeta"]);
        assert!(parts.iter().all(|it| it.layout == lv("pvc-r1").layout && it.legs.len() == 2));
        // Nothing else is seen, though a cut leaves parts of legs visible that bear our tags.
        assert_eq!(vg.lvs.len(), 6);
    }

    #[test]
    fn a_vg_with_a_pool() {
        let vg = parse(VG0, &BTreeMap::new()).unwrap();
        assert_eq!(vg.seqno, 15);
        assert_eq!(vg.extent_size.bytes(), Bytes::mib(4));
        let lv = |name: &str| &vg.lvs[&LvName::parse(name).unwrap()];
        let pool = LvLayout::ThinPool { zero: true, chunk_size: Bytes::kib(64) };
        assert_eq!(lv("pool0").layout, pool);
        assert_eq!(lv("pool0").tags.kind, Some(Kind::Pool));
        assert!(lv("pvc-1").is_volume() && !lv("pvc-2").is_volume());
        assert!(lv("snap-1").is_snapshot() && !lv("snap-1").writable);
        assert_eq!(lv("snap-1").csi_name().unwrap().as_str(), "snapshot-1");
        assert_eq!(lv("a").size, Bytes::mib(100));
        let striped = LvLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) };
        assert_eq!(lv("striped").layout, striped);
        let thin = |lv: &Lv| match &lv.layout {
            LvLayout::Thin { device_id, origin, .. } => {
                (*device_id, origin.as_ref().map(ToString::to_string))
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(thin(lv("pvc-1")), (1, None));
        assert_eq!(thin(lv("pvc-2")), (3, Some("snap-1".to_owned())));
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let broken = |from: &str, to: &str| {
            assert!(VG0.contains(from), "{from}");
            parse(&VG0.replacen(from, to, 1), &BTreeMap::new()).unwrap_err().to_string()
        };
        assert!(broken("version = 1", "version = 2").contains("version 1"));
        assert!(broken("extent_size = 8192", "extent_size = 0").contains("extent_size is 0"));
        assert!(broken("seqno = 15", "seqno = \"x\"").contains("seqno"));
        assert!(broken("pe_count = 1023", "pe_count = 2").contains("beyond its end"));
        assert!(broken("type = \"striped\"", "type = \"odd\"").contains("unknown use of PVs"));
        assert!(parse("", &BTreeMap::new()).is_err());
    }

    proptest! {
        #[test]
        fn a_cut_or_bent_text_never_panics(at in 0..VG0.len(), by in "[{}=\\[\\]\"0-9a-z ]{0,3}") {
            if VG0.is_char_boundary(at) {
                drop(parse(&VG0[..at], &BTreeMap::new()));
                drop(parse(&format!("{}{by}{}", &VG0[..at], &VG0[at..]), &BTreeMap::new()));
            }
        }
    }
}
