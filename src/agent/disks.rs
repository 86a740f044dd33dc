//! Reads a VG's committed metadata from its disks: a few hundred bytes a disk tell whether anything
//! changed, and only then is the text read. LVM is not run, and nothing is ever written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::host::Host;
use crate::lvm::label::{AREA_HEADER_BYTES, AreaHeader, LABEL_BYTES, Location, PvLabel};
use crate::names::LvmUuid;

/// What was seen on a VG's disks so far.
#[derive(Debug, Default)]
pub(super) struct Disks {
    /// Where the metadata areas of each disk begin.
    areas: BTreeMap<PathBuf, Vec<u64>>,
    /// What was committed in them when the text was last read.
    seen: BTreeMap<(PathBuf, u64), Location>,
}

/// What a look at the disks tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing was committed since the last look.
    Unchanged,
    /// This is committed now.
    Text(String),
    /// It cannot be told: a disk cannot be read, or the disks disagree. Why, for the log.
    Unsure(String),
}

impl Disks {
    /// Looks at the disks of a VG. May block on a hanging disk.
    pub(super) fn look<H: Host>(&mut self, host: &H, pvs: &BTreeMap<LvmUuid, PathBuf>) -> Look {
        match self.try_look(host, pvs) {
            Ok(look) => look,
            Err(why) => {
                // Whatever was known of a disk may be wrong: begin anew.
                *self = Self::default();
                Look::Unsure(why)
            }
        }
    }

    /// Makes the next look read the text, whatever is committed.
    pub(super) fn forget(&mut self) {
        self.seen.clear();
    }

    /// Whether a disk holds the VG's metadata, for all that was seen: one may be without (`pvcreate --pvmetadatacopies 0`).
    pub(super) fn may_hold_metadata(&self, device: &Path) -> bool {
        self.areas.get(device).is_none_or(|areas| !areas.is_empty())
    }

    fn try_look<H: Host>(
        &mut self,
        host: &H,
        pvs: &BTreeMap<LvmUuid, PathBuf>,
    ) -> Result<Look, String> {
        let mut committed = BTreeMap::new();
        for (pv, device) in pvs {
            if !self.areas.contains_key(device) {
                let areas = areas(host, pv, device)?;
                self.areas.insert(device.clone(), areas);
            }
            for &area in self.areas.get(device).into_iter().flatten() {
                let header = header(host, device, area)?;
                if let Some(location) = header.committed {
                    committed.insert((device.clone(), area), (header, location));
                }
            }
        }
        let mut all = committed.iter();
        let Some(((device, _), (header, location))) = all.next() else {
            return Err("no disk holds metadata".to_owned());
        };
        if let Some(((other, _), _)) =
            all.find(|(_, (_, l))| l.fingerprint() != location.fingerprint())
        {
            return Err(format!(
                "{} and {} hold different metadata",
                device.display(),
                other.display()
            ));
        }
        let now: BTreeMap<_, _> = committed.iter().map(|(at, (_, l))| (at.clone(), *l)).collect();
        if now == self.seen {
            return Ok(Look::Unchanged);
        }
        let mut bytes = Vec::new();
        for (offset, len) in header.pieces(*location) {
            bytes.extend(read(host, device, offset, len)?);
        }
        let text = location.text(&bytes).map_err(|e| format!("{}: {e}", device.display()))?;
        let text = text.to_owned();
        self.seen = now;
        Ok(Look::Text(text))
    }
}

fn areas<H: Host>(host: &H, pv: &LvmUuid, device: &Path) -> Result<Vec<u64>, String> {
    let head = read(host, device, 0, LABEL_BYTES)?;
    let label = PvLabel::parse(&head).map_err(|e| format!("{}: {e}", device.display()))?;
    if label.pv != *pv {
        return Err(format!("{} is physical volume {}, not {pv}", device.display(), label.pv));
    }
    Ok(label.areas.into_iter().map(|(offset, _)| offset).collect())
}

fn header<H: Host>(host: &H, device: &Path, area: u64) -> Result<AreaHeader, String> {
    let head = read(host, device, area, AREA_HEADER_BYTES)?;
    AreaHeader::parse(area, &head).map_err(|e| format!("{}: {e}", device.display()))
}

fn read<H: Host>(host: &H, device: &Path, offset: u64, len: u64) -> Result<Vec<u8>, String> {
    host.read_device(device, offset, len)
        .map_err(|e| format!("{}: cannot read {len} bytes at {offset}: {e}", device.display()))
}
