//! A disk of the VM under another name, which can be spoiled as a whole or in places. No test lives here.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Class, Csi, Machine, disk};

use crate::support::{MIB, THICK, VG, Vol};

/// The first disk; LVM shall find nothing on it but by way of `/dev/mapper/shaky`, which begins at its second MiB.
const DISK: &str = "/dev/ubdc";
const BEGIN: u64 = 2048;

/// The same disk, where every write fails; LVM shall find no label on it. A flush would fail as well, and with it whoever uses a good place:
/// it is asked by way of dm-unstripe, which passes no flush on.
const UNWRITABLE: &str = "/dev/mapper/unwritable";

/// How a place on the disk is.
#[derive(Clone, Copy)]
pub(super) enum How {
    Good,
    /// Bad blocks can be named (dm-dust).
    Dust,
    /// Neither read nor written (dm-error).
    Error,
    /// Read, and not written (dm-flakey), in pieces of 4 KiB.
    NoWrites,
    /// For so many seconds it is good, and for so many neither read nor written, in turns (dm-flakey).
    Flaky(u32, u32),
}

impl How {
    /// A line of a table for device-mapper.
    fn line(self, place: &Range<u64>) -> String {
        let (from, len, at) = (place.start, place.end - place.start, BEGIN + place.start);
        let kind = match self {
            Self::Good => format!("linear {DISK} {at}"),
            Self::Dust => format!("dust {DISK} {at} 512"),
            Self::Error => "error".to_owned(),
            Self::NoWrites => format!("unstriped 1 8 0 {UNWRITABLE} {at}"),
            Self::Flaky(up, down) => format!("flakey {DISK} {at} {up} {down}"),
        };
        format!("{from} {len} {kind}\n")
    }
}

/// One backend on the disk that can be spoiled, another one on a good disk.
pub(super) fn backends() -> String {
    format!(
        "backends:
  - name: fast
    volumeGroup: {VG}
    create: true
    devices: [/dev/mapper/shaky]
    reserve: 0%
    thinPool: {{ name: pool0, size: 40%, overprovision: 20 }}
  - {{ name: steady, volumeGroup: vg1, create: true, devices: [{}], reserve: 0% }}
",
        disk(2)
    )
}

/// Makes the whole disk so.
pub(super) fn all(machine: &Machine, how: How) -> Result<()> {
    let size = size(machine)?;
    load(machine, &how.line(&(0..size)))
}

/// Makes these places so, which are in order, and all others good.
pub(super) fn places(machine: &Machine, how: How, places: &[Range<u64>]) -> Result<()> {
    let (mut table, mut at) = (String::new(), 0);
    for place in places {
        if place.start > at {
            table += &How::Good.line(&(at..place.start));
        }
        table += &how.line(place);
        at = place.end;
    }
    let size = size(machine)?;
    table += &How::Good.line(&(at..size));
    if matches!(how, How::NoWrites) {
        machine.sh(&format!(
            "dmsetup info unwritable >/dev/null 2>&1 || dmsetup create unwritable <<'END'
0 {BEGIN} error
{BEGIN} {size} flakey {DISK} {BEGIN} 0 1 1 error_writes
END"
        ))?;
    }
    load(machine, &table)
}

fn size(machine: &Machine) -> Result<u64> {
    let text = machine.sh(&format!("blockdev --getsz {DISK}"))?;
    Ok(text.trim().parse::<u64>().with_context(|| text.clone())? - BEGIN)
}

fn load(machine: &Machine, table: &str) -> Result<()> {
    machine
        .sh(&format!(
            "if dmsetup info shaky >/dev/null 2>&1; then
                 dmsetup load shaky; dmsetup suspend --noflush --nolockfs shaky; dmsetup resume shaky
             else
                 dmsetup create shaky
             fi <<'END'\n{table}END"
        ))
        .map(drop)
}

/// The sectors of the disk that an active LV, or a part of one, lies on.
pub(super) fn of_lv(machine: &Machine, lv: &str) -> Result<Vec<Range<u64>>> {
    let name = format!("{VG}-{}", lv.replace('-', "--"));
    let shaky = machine.sh("dmsetup info -c --noheadings -o major,minor shaky")?;
    let table = machine.sh(&format!("dmsetup table {name}"))?;
    let place = |line: &str| -> Option<Range<u64>> {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, len, "linear", device, at] = words[..] else { return None };
        let at: u64 = at.parse().ok().filter(|_| device == shaky.trim())?;
        Some(at..at + len.parse::<u64>().ok()?)
    };
    let places: Option<Vec<_>> = table.lines().map(place).collect();
    let mut places = places.with_context(|| format!("{name} is {table}"))?;
    places.sort_by_key(|place| place.start);
    ensure!(!places.is_empty(), "{name} has no table");
    Ok(places)
}

/// The label and the metadata area of the PV, and nothing else.
pub(super) fn of_vg_metadata(machine: &Machine) -> Result<Vec<Range<u64>>> {
    let text = machine
        .sh("pvs --noheadings --nosuffix --units s -o pe_start /dev/mapper/shaky | tr -d ' '")?;
    let end = text.trim().parse().with_context(|| text.clone())?;
    Ok(Vec::from([Range { start: 0, end }]))
}

/// On the other backend all goes well.
pub(super) fn a_life_beside(csi: &Csi, name: &str) -> Result<()> {
    a_life(csi, Class { backend: "steady", ..THICK }, name)
}

/// A volume that is made, used, expanded and deleted.
pub(super) fn a_life(csi: &Csi, class: Class, name: &str) -> Result<()> {
    let v = Vol::create(csi, class, name, 64 * MIB)?;
    v.attach()?;
    v.detach()?;
    csi.expand(&v.id, 96 * MIB)?;
    Ok(v.delete()?)
}
