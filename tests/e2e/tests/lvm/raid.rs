//! RAID on real LVM: every layout holds what it promises, to the extent; a lost disk loses nothing.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, Access, Class, Machine};
use cinderblock_lab::long::Random;
use tonic::Code;

use crate::support::{
    BACKEND, MIB, VG, Vol, bare, code, fill, health_is, lvs, power_cut_without, sum,
};

const EXTENT: u64 = 4 * MIB;

/// A class of the layout, for a device.
fn block(layout: &'static [(&'static str, &'static str)]) -> Class {
    Class { backend: BACKEND, provisioning: "thick", access: Access::Block, more: layout }
}

fn filesystem(layout: &'static [(&'static str, &'static str)]) -> Class {
    Class { access: Access::Filesystem("ext4"), ..block(layout) }
}

const RAID1: &[(&str, &str)] = &[("layout", "raid1")];
const RAID1_OF_3: &[(&str, &str)] = &[("layout", "raid1"), ("mirrors", "2")];
const RAID5: &[(&str, &str)] = &[("layout", "raid5"), ("stripes", "2")];
const RAID6: &[(&str, &str)] = &[("layout", "raid6"), ("stripes", "3")];
const RAID10: &[(&str, &str)] = &[("layout", "raid10"), ("stripes", "2")];
const STRIPED: &[(&str, &str)] = &[("layout", "striped"), ("stripes", "2")];
const LINEAR: &[(&str, &str)] = &[];

/// Each leg on a disk of its own: no disk is named twice among a volume's images.
fn legs_are_apart(machine: &Machine, lv: &str) -> Result<()> {
    let script = format!(
        "for it in $(lvs -a --noheadings -o lv_name {VG} | tr -d '[] ' | grep '^{lv}_rimage_'); do \
         lvs -a --noheadings -o devices {VG}/$it | tr -d ' ' | sed 's/([0-9]*)//' | sort -u; done"
    );
    let mut disks: Vec<_> = machine.sh(&script)?.lines().map(str::to_owned).collect();
    ensure!(!disks.is_empty(), "{lv} has no images");
    let all = disks.len();
    disks.sort();
    disks.dedup();
    ensure!(disks.len() == all, "two legs of {lv} share a disk");
    Ok(())
}

/// What is free lies in runs of these lengths on each disk, beside what is behind the last.
type Shape = [Vec<u64>; DISKS.len()];

const DISKS: [u64; 5] = [288 * MIB, 320 * MIB, 320 * MIB, 352 * MIB, 480 * MIB];

/// Makes holes: each is an LV that goes, with a wall behind it that stays.
fn make(machine: &Machine, shape: &Shape) -> Result<()> {
    let (mut commands, mut holes) = (String::new(), String::new());
    for (disk, runs) in shape.iter().enumerate() {
        for (n, run) in runs.iter().enumerate() {
            let name = format!("{disk}-{n}");
            let on = driver::disk(disk + 1);
            for (what, extents) in [("hole", *run), ("wall", 1)] {
                writeln!(
                    commands,
                    "lvcreate -y -Wn -Zn -an -l {extents} -n {what}{name} {VG} {on}"
                )?;
            }
            write!(holes, " {VG}/hole{name}")?;
        }
    }
    machine.sh(&format!("lvm >/dev/null 2>&1 <<'EOF'\n{commands}lvremove -y{holes}\nEOF\n"))?;
    let walls = lvs(machine)?.iter().filter(|name| name.starts_with("wall")).count();
    let wanted = shape.iter().map(Vec::len).sum::<usize>();
    ensure!(walls == wanted, "{walls} walls instead of {wanted}");
    Ok(())
}

/// The largest volume offered can be made, and not one extent more; over odd disks, with holes.
#[test]
fn the_largest_volume_of_each_layout_fits_and_one_extent_more_does_not() -> Result<()> {
    let mut random = Random::seeded("raid");
    let backends = driver::backend(BACKEND, VG, DISKS.len(), "reserve: 0%");
    bare("raid-sizes", &DISKS, &backends, |machine| {
        machine.start(BACKEND)?;
        // LVM, left alone, puts two legs on one disk here.
        let known: Shape = [vec![], vec![2], vec![], vec![3, 3, 3], vec![]];
        let any: Shape =
            std::array::from_fn(|_| (0..random.below(4)).map(|_| 1 + random.below(12)).collect());
        for shape in [known, any] {
            make(machine, &shape)?;
            machine.driver.stop()?;
            machine.start(BACKEND)?;
            exact(machine).with_context(|| format!("holes {shape:?}"))?;
            machine.sh(&format!("lvremove -qqy $(lvs --noheadings -o vg_name,lv_name {VG} | awk '/wall/ {{ print $1 \"/\" $2 }}') 2>/dev/null || true"))?;
        }
        Ok(())
    })
}

fn exact(machine: &Machine) -> Result<()> {
    let csi = machine.driver.csi()?;
    for layout in [LINEAR, STRIPED, RAID1, RAID1_OF_3, RAID5, RAID6, RAID10] {
        let class = block(layout);
        let (room, most) = (csi.capacity(&class)?, csi.largest(&class)?);
        ensure!(most > 0 && most % EXTENT == 0, "{layout:?}: the largest is {most}");
        let more = code(csi.create(&class.request("pvc-more", most + 1)))?;
        ensure!(more == Code::ResourceExhausted, "{layout:?}: one byte more is {more:?}");
        let v = Vol::create(&csi, class, "pvc-most", most)
            .with_context(|| format!("{layout:?} of {most}"))?;
        if layout.first().is_some_and(|(_, name)| name.starts_with("raid")) {
            legs_are_apart(machine, v.lv())?;
        }
        // Other disks may have room for another one as large.
        let (left, largest) = (csi.capacity(&class)?, csi.largest(&class)?);
        ensure!(
            left < room && largest <= most,
            "{layout:?}: {left} and {largest} are still offered after {most}"
        );
        v.delete()?;
        ensure!(csi.largest(&class)? == most, "{layout:?}: not all of it came back");
    }
    Ok(())
}

/// Written, grown while it is in use, and read again; for a device, what it grew by reads as zeros.
#[test]
fn raid_volumes_grow_online_and_lose_nothing_with_a_disk() -> Result<()> {
    let disks = [288 * MIB; 5];
    let backends = driver::backend(BACKEND, VG, disks.len(), "reserve: 0%");
    bare("raid-life", &disks, &backends, |machine| {
        // Whatever a disk held before must not be seen.
        machine.sh("for n in 1 2 3 4 5; do tr '\\0' '\\252' </dev/zero | dd of=/dev/disk/by-id/lab-disk$n bs=1M count=286 iflag=fullblock 2>/dev/null; dd if=/dev/zero of=/dev/disk/by-id/lab-disk$n bs=1M count=2 conv=notrunc 2>/dev/null; done; sync")?;
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?;
        let mut volumes = Vec::new();
        for (class, name) in [
            (filesystem(RAID1), "pvc-r1"),
            (filesystem(RAID5), "pvc-r5"),
            (block(RAID6), "pvc-r6"),
            (block(RAID10), "pvc-r10"),
        ] {
            let v = Vol::create(&csi, class, name, 24 * MIB)?;
            v.attach()?;
            if class.access == Access::Block {
                zeros(machine, &v, 0)?;
            }
            let written = fill(machine, &v.file("data"), 6)?;
            csi.expand(&v.id, 48 * MIB)?;
            csi.expand_on_node(&v.id, &v.pod)?;
            legs_are_apart(machine, v.lv())?;
            if class.access == Access::Block {
                zeros(machine, &v, 24 * MIB)?;
            }
            ensure!(sum(machine, &v.file("data"), 6)? == written, "{name}: other data");
            volumes.push((v, written));
        }
        for (v, written) in &volumes {
            ensure!(csi.expand(&v.id, 10 << 30).is_err(), "{} grew beyond the disks", v.id);
            ensure!(sum(machine, &v.file("data"), 6)? == *written, "{}: other data", v.id);
        }
        // All is in step before a disk goes, as on a machine that has run for a while.
        machine.sh("for n in $(seq 600); do lvs --noheadings -o sync_percent vg0 | grep -qv 100.00 || break; sleep 0.1; done")?;
        for (v, _) in &volumes {
            v.detach()?;
        }
        a_disk_is_lost(machine, &mut volumes)
    })
}

/// The last disk is gone at the next boot. Every volume is there, and can be used.
fn a_disk_is_lost(machine: &Machine, volumes: &mut [(Vol, String)]) -> Result<()> {
    power_cut_without(machine, 1)?;
    let csi = machine.driver.csi()?;
    for (v, written) in volumes.iter_mut() {
        v.csi = csi.clone();
        v.attach().with_context(|| format!("{} without a disk", v.id))?;
        ensure!(sum(machine, &v.file("data"), 6)? == *written, "{}: other data", v.id);
        // What the VG's metadata has to be written for waits for the disk.
        ensure!(code(v.delete())? != Code::Ok, "{} was deleted", v.id);
    }
    let waited = Instant::now();
    // Two of the volumes have a leg on every disk or on the first two.
    while failed_legs(machine)? < 2.0 {
        ensure!(
            waited.elapsed() < Duration::from_mins(1),
            "the metrics tell of {} lost legs: {}",
            failed_legs(machine)?,
            machine.sh("dmsetup status --target raid; lvs -a -o+devices vg0")?
        );
        sleep(Duration::from_secs(1));
    }
    ensure!(lvs(machine)?.iter().any(|name| name == "pvc-r1"), "pvc-r1 is gone");
    let all: Vec<&Vol> = volumes.iter().map(|(v, _)| v).collect();
    health_is(&csi, &all, |health| {
        health.len() >= 2 && health.iter().all(|it| it == "PartialActivation")
    })?;
    a_disk_is_replaced(machine, volumes)
}

/// As docs/operations.md says it, with the volumes in use.
fn a_disk_is_replaced(machine: &Machine, volumes: &[(Vol, String)]) -> Result<()> {
    let said = machine.driver.ask(&["repair"])?;
    // That one has a leg on every disk.
    for words in ["lab-disk1: added to volume group vg0", "vg0/pvc-r6: has new legs", "forgotten"] {
        ensure!(said.contains(words), "{words} is not in {said}");
    }
    let again = machine.driver.ask(&["repair", "--backend", BACKEND])?;
    ensure!(again.contains("nothing to repair"), "{again}");
    let start = Instant::now();
    while failed_legs(machine)? > 0.0 {
        ensure!(start.elapsed() < Duration::from_mins(1), "legs are still lost");
        sleep(Duration::from_secs(1));
    }
    let csi = machine.driver.csi()?;
    for (v, written) in volumes {
        ensure!(sum(machine, &v.file("data"), 6)? == *written, "{}: other data", v.id);
        legs_are_apart(machine, v.lv())?;
        health_is(&csi, &[v], <[String]>::is_empty).with_context(|| v.id.clone())?;
        v.detach()?;
        v.delete()?;
    }
    let v = Vol::create(&csi, filesystem(RAID1), "pvc-after", 24 * MIB)?;
    v.delete()?;
    Ok(())
}

/// A thick snapshot lies on one disk. Lost with it, it must not keep the volume from being used.
#[test]
fn a_snapshot_that_is_lost_with_a_disk_can_be_given_up() -> Result<()> {
    let backends = driver::backend(BACKEND, VG, 2, "reserve: 0%");
    bare("raid-snapshot", &[352 * MIB; 2], &backends, |machine| {
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?;
        let mut v = Vol::create(&csi, filesystem(RAID1), "pvc-1", 48 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 6)?;
        let taken = csi.snapshot("snapshot-1", &v.id)?.snapshot_id;
        machine.driver.wait_until(Duration::from_mins(1), "in step", || {
            Ok(machine.driver.metric("cinderblock_raid_in_step_ratio")? == Some(1.0))
        })?;
        let on = machine.sh(&format!("lvs --noheadings -o devices {VG}/snap-1"))?;
        let lost =
            if on.contains(&machine.sh("readlink -f /dev/disk/by-id/lab-disk1")?) { 1 } else { 2 };
        v.detach()?;
        power_cut_without(machine, lost)?;
        v.csi = machine.driver.csi()?;
        let refused = v.stage().err().context("it was staged")?;
        ensure!(refused.code() == Code::FailedPrecondition, "{refused:?}");
        ensure!(refused.message().contains("snapshots snap-1 keep"), "{refused:?}");
        v.csi.delete_snapshot(&taken)?;
        v.attach()?;
        ensure!(sum(machine, &v.file("data"), 6)? == written, "other data");
        ensure!(failed_legs(machine)? >= 0.0);
        v.detach()?;
        Ok(())
    })
}

fn failed_legs(machine: &Machine) -> Result<f64> {
    let metrics = machine.driver.metrics()?;
    let lines = metrics.lines().filter(|it| it.starts_with("cinderblock_raid_legs_failed{"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Fails unless a device reads as zeros from there on.
fn zeros(machine: &Machine, v: &Vol, from: u64) -> Result<()> {
    let device = v.pod.display();
    let rest = machine.sh(&format!(
        "dd if={device} bs=1M skip={} 2>/dev/null | tr -d '\\0' | head -c 64 | wc -c",
        from / MIB
    ))?;
    ensure!(rest.trim() == "0", "{} shows what its disks held before", v.id);
    Ok(())
}
