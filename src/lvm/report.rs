//! LVM's own words: the JSON of `fullreport` and of the command log, read into typed results.
//!
//! A report is complete for one VG when LVM says so for that very VG; another VG's trouble does not
//! count. What is not complete is never read as "not there".

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::layout::{RaidLevel, ThickLayout};
use super::state::{Area, Lv, LvLayout, Pv, VgState};
use super::tag::Tags;
use crate::names::{LvName, LvmUuid, VgName};
use crate::units::{Bytes, ExtentSize, Extents};

/// The columns of each part of the report.
pub(super) const FIELDS: [(&str, &[&str]); 5] = [
    (
        "vg",
        &[
            "vg_name",
            "vg_uuid",
            "vg_seqno",
            "vg_extent_size",
            "vg_tags",
            "vg_exported",
            "vg_systemid",
        ],
    ),
    ("pv", &["pv_uuid", "pv_name", "pv_pe_count", "pv_missing", "pv_allocatable"]),
    (
        "lv",
        &[
            "lv_uuid",
            "lv_name",
            "lv_size",
            "lv_tags",
            "lv_time",
            "lv_attr",
            "lv_role",
            "pool_lv",
            "origin",
            "origin_size",
            "lv_parent",
        ],
    ),
    ("pvseg", &["pv_uuid", "pvseg_start", "pvseg_size", "lv_uuid"]),
    (
        "seg",
        &[
            "lv_uuid",
            "seg_start_pe",
            "segtype",
            "stripes",
            "stripe_size",
            "chunk_size",
            "zero",
            "thin_id",
        ],
    ),
];

/// Why LVM's output cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is not the JSON that was asked for.
    #[error("LVM's report is not the JSON that was asked for")]
    Json(#[from] serde_json::Error),
    /// A field has a value that cannot be.
    #[error("LVM's report: {0}")]
    Field(String),
}

/// All that one report said.
#[derive(Debug, Default)]
pub struct Report {
    /// The VGs that were reported completely.
    pub vgs: Vec<VgState>,
    /// The VGs that were not, by name, with what LVM said.
    pub incomplete: BTreeMap<String, String>,
    /// PVs in no VG: device by identifier.
    pub orphans: BTreeMap<LvmUuid, PathBuf>,
}

/// An entry of the command log.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LogEntry {
    /// `error`, `warn`, `print` or `status`.
    pub log_type: String,
    /// `vg`, `lv`, `pv`, `orphan` or empty.
    pub log_object_type: String,
    /// Name of the object.
    pub log_object_name: String,
    /// Identifier of the object, where LVM knows it.
    pub log_object_id: String,
    /// The sentence, or `success` and `failure` for a status.
    pub log_message: String,
    /// Of a status: 1 for success, otherwise the exit code.
    pub log_ret_code: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Output {
    report: Vec<Part>,
    log: Vec<LogEntry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    vg: Vec<Row>,
    pv: Vec<Row>,
    lv: Vec<Row>,
    pvseg: Vec<Row>,
    seg: Vec<Row>,
}

/// One row. Every value of LVM's JSON is a string; empty means "does not apply".
#[derive(Debug, Deserialize)]
struct Row(BTreeMap<String, String>);

impl Row {
    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str) -> Result<u64, ReportError> {
        let text = self.text(key);
        text.trim().parse().map_err(|_| field(format!("{key} is {text:?}, not a number")))
    }

    fn uuid(&self, key: &str) -> Result<LvmUuid, ReportError> {
        LvmUuid::parse(self.text(key)).map_err(|e| field(format!("{key}: {e}")))
    }

    fn list(&self, key: &str) -> impl Iterator<Item = &str> {
        self.text(key).split(',').filter(|t| !t.is_empty())
    }
}

fn field(what: String) -> ReportError {
    ReportError::Field(what)
}

/// Reads the output of the report. The exit code does not matter: LVM tells per VG.
///
/// # Errors
/// When it is not such a report at all.
pub fn parse(stdout: &str) -> Result<Report, ReportError> {
    let output: Output = serde_json::from_str(stdout)?;
    let mut report = Report::default();
    for part in &output.report {
        let Some(row) = part.vg.first().filter(|row| !row.text("vg_name").is_empty()) else {
            for row in &part.pv {
                report.orphans.insert(row.uuid("pv_uuid")?, row.text("pv_name").into());
            }
            continue;
        };
        let name = row.text("vg_name").to_owned();
        let said = trouble_of(&output.log, &name, row.text("vg_uuid"));
        match (said, vg(row, part)) {
            (None, Ok(vg)) => report.vgs.push(vg),
            (Some(said), _) => drop(report.incomplete.insert(name, said)),
            (None, Err(e)) => drop(report.incomplete.insert(name, e.to_string())),
        }
    }
    // A VG that LVM could not read at all has no part; its failure stands in the log alone.
    for entry in output.log.iter().filter(|e| e.is_failure() && e.log_object_type == "vg") {
        let name = &entry.log_object_name;
        let known = report.vgs.iter().any(|vg| vg.uuid.as_str() == entry.log_object_id);
        if !known && !report.incomplete.contains_key(name) {
            let said = trouble_of(&output.log, name, &entry.log_object_id).unwrap_or_default();
            report.incomplete.insert(name.clone(), said);
        }
    }
    Ok(report)
}

/// What the command log of a change says went wrong: its error lines, joined. Empty when nothing.
#[must_use]
pub fn errors_in_log(stdout: &str) -> String {
    let Ok(output) = serde_json::from_str::<Output>(stdout) else {
        return String::new();
    };
    let errors = output.log.iter().filter(|e| e.log_type == "error").map(|e| e.log_message.trim());
    errors.collect::<Vec<_>>().join("; ")
}

impl LogEntry {
    fn is_failure(&self) -> bool {
        self.log_type == "status" && self.log_ret_code != "1"
    }
}

/// What LVM said of a VG that it could not report, `None` when all is well.
fn trouble_of(log: &[LogEntry], name: &str, uuid: &str) -> Option<String> {
    let ours = |e: &&LogEntry| {
        e.log_object_type == "vg"
            && (e.log_object_id == uuid
                || (e.log_object_id.is_empty() && e.log_object_name == name))
    };
    let statuses: Vec<_> = log.iter().filter(ours).filter(|e| e.log_type == "status").collect();
    if !statuses.is_empty() && statuses.iter().all(|e| !e.is_failure()) {
        return None;
    }
    let errors: Vec<_> = log
        .iter()
        .filter(ours)
        .filter(|e| e.log_type == "error")
        .map(|e| e.log_message.trim().to_owned())
        .collect();
    if errors.is_empty() {
        return Some("LVM did not say that it was reported completely".to_owned());
    }
    Some(errors.join("; "))
}

fn vg(row: &Row, part: &Part) -> Result<VgState, ReportError> {
    let extent_size = ExtentSize::new(row.number("vg_extent_size")?)
        .ok_or_else(|| field("vg_extent_size is 0".to_owned()))?;
    Ok(VgState {
        name: VgName::parse(row.text("vg_name")).map_err(|e| field(e.to_string()))?,
        uuid: row.uuid("vg_uuid")?,
        seqno: row.number("vg_seqno")?,
        extent_size,
        tags: row.list("vg_tags").map(str::to_owned).collect(),
        exported: !row.text("vg_exported").is_empty(),
        system_id: row.text("vg_systemid").to_owned(),
        pvs: pvs(part)?,
        lvs: lvs(part)?,
        has_pool_spare: part
            .lv
            .iter()
            .any(|row| !is_shown(row) && row.list("lv_role").any(|role| role == "spare")),
    })
}

fn pvs(part: &Part) -> Result<BTreeMap<LvmUuid, Pv>, ReportError> {
    let mut pvs = BTreeMap::new();
    for row in &part.pv {
        let missing = !row.text("pv_missing").is_empty();
        let pv = Pv {
            device: (!missing).then(|| row.text("pv_name").into()),
            allocatable: !row.text("pv_allocatable").is_empty(),
            extents: Extents::new(row.number("pv_pe_count")?),
            free: Vec::new(),
        };
        pvs.insert(row.uuid("pv_uuid")?, pv);
    }
    for row in part.pvseg.iter().filter(|row| row.text("lv_uuid").is_empty()) {
        let run = (row.number("pvseg_start")?, row.number("pvseg_size")?);
        if let Some(pv) = pvs.get_mut(&row.uuid("pv_uuid")?) {
            pv.free.push(run);
        }
    }
    for pv in pvs.values_mut() {
        pv.free.sort_unstable();
        pv.free.dedup();
    }
    Ok(pvs)
}

fn lvs(part: &Part) -> Result<BTreeMap<LvName, Lv>, ReportError> {
    let first_segments: BTreeMap<&str, &Row> = part
        .seg
        .iter()
        .filter(|row| row.text("seg_start_pe") == "0")
        .map(|row| (row.text("lv_uuid"), row))
        .collect();
    let mut all_areas = BTreeMap::<&str, Vec<Area>>::new();
    for row in part.pvseg.iter().filter(|row| !row.text("lv_uuid").is_empty()) {
        let (start, len) = (row.number("pvseg_start")?, row.number("pvseg_size")?);
        let area = Area { pv: row.uuid("pv_uuid")?, start, len };
        all_areas.entry(row.text("lv_uuid")).or_default().push(area);
    }
    let mut lvs = BTreeMap::new();
    for row in part.lv.iter().filter(|row| !is_part(row)) {
        let uuid = row.uuid("lv_uuid")?;
        let segment = first_segments
            .get(uuid.as_str())
            .ok_or_else(|| field(format!("LV {} has no segment", row.text("lv_name"))))?;
        let name = LvName::parse(row.text("lv_name")).map_err(|e| field(e.to_string()))?;
        let mut areas = all_areas.get(uuid.as_str()).cloned().unwrap_or_default();
        areas.sort_unstable();
        areas.dedup();
        let layout = match (RaidLevel::parse(segment.text("segtype")), layout(row, segment)?) {
            (Some(_), _) if is_cut(part, &name) => {
                LvLayout::UnfinishedRaid(segment.text("segtype").to_owned())
            }
            (_, layout) => layout,
        };
        let size = if matches!(layout, LvLayout::Cow { .. }) { "origin_size" } else { "lv_size" };
        let is_raid = matches!(layout, LvLayout::Raid(_));
        let legs = if is_raid { legs(part, &name, &all_areas) } else { vec![] };
        let is_pool = matches!(layout, LvLayout::ThinPool { .. });
        let parts =
            if is_pool { pool_parts(part, &name, &first_segments, &all_areas)? } else { vec![] };
        let lv = Lv {
            name: name.clone(),
            uuid,
            size: Bytes::new(row.number(size)?),
            layout,
            tags: Tags::parse(row.list("lv_tags")),
            created_unix: row.text("lv_time").trim().parse().unwrap_or(0),
            writable: row.text("lv_attr").as_bytes().get(1) != Some(&b'r'),
            areas,
            legs,
            parts,
            queued: false,
        };
        lvs.insert(name, lv);
    }
    Ok(lvs)
}

/// Whether an LV is only a part of another one. LVM puts the names of hidden LVs in brackets; a
/// part of a leg is shown while LVM clears it.
fn is_part(lv: &Row) -> bool {
    !is_shown(lv) || ["private", "raid"].iter().all(|role| lv.list("lv_role").any(|r| r == *role))
}

fn is_shown(lv: &Row) -> bool {
    !lv.text("lv_name").starts_with('[')
}

/// Whether the legs' metadata of a RAID LV is shown, as long as it is not cleared. LVM names no
/// parent then.
fn is_cut(part: &Part, lv: &LvName) -> bool {
    let begins = format!("{lv}_rmeta_");
    part.lv.iter().any(|row| is_part(row) && row.text("lv_name").starts_with(&begins))
}

/// The hidden parts of an LV.
fn parts<'a>(part: &'a Part, of: &'a LvName) -> impl Iterator<Item = &'a Row> {
    part.lv.iter().filter(move |row| {
        let parent = row.text("lv_parent").trim_start_matches('[').trim_end_matches(']');
        is_part(row) && parent == of.as_str()
    })
}

/// The hidden LVs of a pool's data and metadata.
fn pool_parts(
    part: &Part,
    pool: &LvName,
    segments: &BTreeMap<&str, &Row>,
    all_areas: &BTreeMap<&str, Vec<Area>>,
) -> Result<Vec<Lv>, ReportError> {
    let mut found = Vec::new();
    for role in ["data", "metadata"] {
        for row in parts(part, pool).filter(|row| row.list("lv_role").any(|it| it == role)) {
            let uuid = row.uuid("lv_uuid")?;
            let name = row.text("lv_name").trim_start_matches('[').trim_end_matches(']');
            let segment = segments
                .get(uuid.as_str())
                .ok_or_else(|| field(format!("LV {name} has no segment")))?;
            let name = LvName::parse(name).map_err(|e| field(e.to_string()))?;
            let mut areas = all_areas.get(uuid.as_str()).cloned().unwrap_or_default();
            areas.sort_unstable();
            areas.dedup();
            let mut layout = layout(row, segment)?;
            if matches!(layout, LvLayout::Raid(_)) && is_cut(part, &name) {
                layout = LvLayout::UnfinishedRaid(segment.text("segtype").to_owned());
            }
            let is_raid = matches!(layout, LvLayout::Raid(_));
            found.push(Lv {
                legs: if is_raid { legs(part, &name, all_areas) } else { vec![] },
                name,
                uuid,
                size: Bytes::new(row.number("lv_size")?),
                layout,
                tags: Tags::parse(row.list("lv_tags")),
                created_unix: row.text("lv_time").trim().parse().unwrap_or(0),
                writable: row.text("lv_attr").as_bytes().get(1) != Some(&b'r'),
                areas,
                parts: vec![],
                queued: false,
            });
        }
    }
    Ok(found)
}

/// The PVs of each image of a RAID LV.
fn legs(part: &Part, of: &LvName, areas: &BTreeMap<&str, Vec<Area>>) -> Vec<Vec<LvmUuid>> {
    let images = parts(part, of).filter(|row| row.list("lv_role").any(|role| role == "image"));
    let mut legs: Vec<Vec<LvmUuid>> = images
        .map(|image| {
            let areas = areas.get(image.text("lv_uuid")).into_iter().flatten();
            let mut pvs: Vec<_> = areas.map(|area| area.pv.clone()).collect();
            pvs.sort_unstable();
            pvs.dedup();
            pvs
        })
        .collect();
    legs.sort_unstable();
    legs
}

fn layout(lv: &Row, segment: &Row) -> Result<LvLayout, ReportError> {
    if lv.list("lv_role").any(|role| role == "thicksnapshot") {
        return Ok(LvLayout::Cow {
            origin: LvName::parse(lv.text("origin")).map_err(|e| field(e.to_string()))?,
            chunk_size: Bytes::new(segment.number("chunk_size")?),
            store: Bytes::new(lv.number("lv_size")?),
        });
    }
    let stripes = || {
        u32::try_from(segment.number("stripes")?).map_err(|_| field("too many stripes".to_owned()))
    };
    if let Some(level) = RaidLevel::parse(segment.text("segtype")) {
        let (legs, stripe_size) = (stripes()?, Bytes::new(segment.number("stripe_size")?));
        return Ok(LvLayout::Raid(ThickLayout::Raid { level, legs, stripe_size }));
    }
    Ok(match segment.text("segtype") {
        "linear" => LvLayout::Linear,
        "striped" => LvLayout::Striped {
            stripes: stripes()?,
            stripe_size: Bytes::new(segment.number("stripe_size")?),
        },
        "thin-pool" => LvLayout::ThinPool {
            zero: segment.text("zero") == "zero",
            chunk_size: Bytes::new(segment.number("chunk_size")?),
        },
        "thin" => LvLayout::Thin {
            pool: LvName::parse(lv.text("pool_lv")).map_err(|e| field(e.to_string()))?,
            device_id: segment.number("thin_id")?,
            origin: match lv.text("origin") {
                "" => None,
                origin => Some(LvName::parse(origin).map_err(|e| field(e.to_string()))?),
            },
        },
        other => LvLayout::Other(other.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVERAL: &str = include_str!("../../tests/recordings/lvm-2.03.16/several.json");
    const EMPTY: &str = include_str!("../../tests/recordings/lvm-2.03.16/empty.json");

    #[test]
    fn vgs_orphans_and_missing_disks() {
        let report = parse(SEVERAL).unwrap();
        let names: Vec<_> = report.vgs.iter().map(|vg| vg.name.as_str()).collect();
        assert_eq!(names, ["vg0", "gone", "exported", "rest"]);
        assert_eq!(report.incomplete, BTreeMap::new());
        let (uuid, device) = report.orphans.first_key_value().unwrap();
        assert_eq!(uuid.as_str(), "AAAAAA-bbbb-cccc-dddd-eeee-ffff-gggggg");
        assert_eq!(device.to_str(), Some("/dev/loop8"));
        let partial: Vec<_> = report.vgs.iter().map(VgState::is_partial).collect();
        assert_eq!(partial, [false, true, false, false]);
        let exported: Vec<_> = report.vgs.iter().map(|vg| vg.exported).collect();
        assert_eq!(exported, [false, false, true, false]);
        assert_eq!(report.vgs[0].free_extents(), Extents::new(1743));
    }

    #[test]
    fn a_host_without_vgs() {
        let report = parse(EMPTY).unwrap();
        assert!(report.vgs.is_empty() && report.incomplete.is_empty() && report.orphans.is_empty());
    }

    /// LVM's trouble with one VG says nothing about the others, and never that the VG is not there.
    #[test]
    fn a_vg_that_lvm_could_not_read_is_incomplete() {
        let status = r#""log_object_type":"vg", "log_object_name":"gone", "log_object_id":"7txUAi-qW6A-HASK-mLIg-Dh2K-32dF-dsYdAU", "log_object_group":"", "log_object_group_id":"", "log_message":"success", "log_errno":"0", "log_ret_code":"1""#;
        assert!(SEVERAL.contains(status));
        let failed = status.replace("success", "failure").replace(r#"code":"1""#, r#"code":"5""#);
        let report = parse(&SEVERAL.replace(status, &failed)).unwrap();
        assert_eq!(report.vgs.len(), 3);
        assert!(report.incomplete.contains_key("gone"));
        // Nor does a VG count as reported when LVM says nothing of it at all.
        let report = parse(&SEVERAL.replace(status, r#""log_object_type":"x""#)).unwrap();
        assert!(report.incomplete["gone"].contains("did not say"));
        // A VG that only the log knows.
        let log = r#"{"log":[{"log_type":"error","log_object_type":"vg","log_object_name":"bad","log_object_id":"","log_message":"cannot read","log_ret_code":"0"},{"log_type":"status","log_object_type":"vg","log_object_name":"bad","log_object_id":"","log_message":"failure","log_ret_code":"5"}]}"#;
        assert_eq!(parse(log).unwrap().incomplete["bad"], "cannot read");
    }

    #[test]
    fn errors_of_a_change() {
        let log = r#"{"log":[
            {"log_type":"error","log_object_type":"vg","log_object_name":"vg0","log_message":"Volume group \"vg0\" has insufficient free space (761 extents): 25600 required.","log_ret_code":"0"},
            {"log_type":"status","log_object_type":"vg","log_object_name":"vg0","log_message":"failure","log_ret_code":"5"}]}"#;
        assert!(errors_in_log(log).contains("insufficient free space (761 extents)"));
        assert_eq!(errors_in_log("  rubbish"), "");
        assert!(
            parse("rubbish").is_err() && parse("{\"report\": [{\"vg\": [{\"a\": 1}]}]}").is_err()
        );
    }
}
