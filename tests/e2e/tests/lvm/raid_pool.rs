//! Thin pools made by the driver: made though cut anywhere, and on RAID grown leg by leg, and of use when a
//! disk is lost, also after a boot without it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, Machine};

use crate::support::{
    BACKEND, MIB, THIN, THIN_BLOCK, VG, Vol, bare, fill, health_is, power_cut_without, sum,
};

const DISKS: [u64; 3] = [288 * MIB; 3];
/// What each disk has beside the room for LVM's own metadata.
const DISK_EXTENTS: u64 = (288 - 65) / 4;

fn backends(pool: &str) -> String {
    let pool = format!("reserve: 0%\nthinPool: {{ name: pool0, overprovision: 10, {pool} }}");
    driver::backend(BACKEND, VG, DISKS.len(), &pool)
}

/// Each leg of the pool's data and of its metadata is on a disk of its own.
fn legs_are_apart(machine: &Machine) -> Result<()> {
    for part in ["pool0_tdata", "pool0_tmeta"] {
        let script = format!(
            "for it in $(lvs -a --noheadings -o lv_name {VG} | tr -d '[] ' | grep '^{part}_rimage_'); do \
             lvs -a --noheadings -o devices {VG}/$it | tr -d ' ' | sed 's/([0-9]*)//' | sort -u; done"
        );
        let mut disks: Vec<_> = machine.sh(&script)?.lines().map(str::to_owned).collect();
        let all = disks.len();
        disks.sort();
        disks.dedup();
        ensure!(all >= 2 && disks.len() == all, "legs of {part} are on {disks:?}");
    }
    Ok(())
}

fn field(machine: &Machine, lv: &str, field: &str) -> Result<String> {
    let text = machine.sh(&format!(
        "lvs -a --noheadings --units b --nosuffix -o {field} {VG}/{lv} 2>/dev/null"
    ))?;
    Ok(text.trim().to_owned())
}

fn size(machine: &Machine, lv: &str) -> Result<u64> {
    let text = field(machine, lv, "lv_size")?;
    text.parse().with_context(|| text.clone())
}

fn failed_legs(machine: &Machine) -> Result<f64> {
    let metrics = machine.driver.metrics()?;
    let lines = metrics.lines().filter(|it| it.starts_with("cinderblock_raid_legs_failed{"));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

#[test]
fn a_pool_on_raid_grows_and_lives_on_without_a_disk() -> Result<()> {
    bare(
        "raid-pool",
        &DISKS,
        &backends("size: 30%, layout: raid1, autogrow: { by: 60Mi }"),
        |machine| {
            machine.start(BACKEND)?;
            legs_are_apart(machine)?;
            // So much of the VG in all, copies and what RAID keeps for itself counted.
            let extents = size(machine, "pool0")? / (4 * MIB);
            let wanted = 3 * DISK_EXTENTS * 30 / 100 / 2 - 1;
            ensure!(extents == wanted, "the pool has {extents} extents instead of {wanted}");
            for (name, wanted) in [("lv_when_full", "error"), ("zero", "zero")] {
                let found = field(machine, "pool0", name)?;
                ensure!(found == wanted, "{name} of the pool is {found}");
            }
            let tags = field(machine, "pool0", "lv_tags")?;
            ensure!(
                tags.contains("cinderblock=1") && tags.contains("cb.pool"),
                "its tags are {tags}"
            );
            let csi = machine.driver.csi()?;
            let mut volumes = Vec::new();
            for (class, name) in [(THIN, "pvc-fs"), (THIN_BLOCK, "pvc-dev")] {
                let v = Vol::create(&csi, class, name, 400 * MIB)?;
                v.attach()?;
                let written = fill(machine, &v.file("data"), 20)?;
                volumes.push((v, written));
            }
            grows(machine, &volumes[0].0)?;
            machine.sh("for n in $(seq 600); do lvs -a --noheadings -o sync_percent vg0 | grep -v 100.00 | grep -q [0-9] || break; sleep 0.1; done")?;
            for (v, _) in &volumes {
                health_is(&csi, &[v], <[String]>::is_empty)?;
                v.detach()?;
            }
            a_disk_is_lost(machine, &mut volumes)
        },
    )
}

/// Beyond its threshold the pool grows, each leg on its disk.
fn grows(machine: &Machine, v: &Vol) -> Result<()> {
    let before = size(machine, "pool0")?;
    machine.sh("sync")?;
    let text = field(machine, "pool0", "data_percent")?;
    let used: f64 = text.parse().with_context(|| text.clone())?;
    ensure!(used < 75.0, "{used}% of the pool are in use already");
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        clippy::as_conversions,
        reason = "a few megabytes"
    )]
    let at = ((84.0 - used) * (before / MIB) as f64 / 100.0) as u64;
    machine.sh(&format!("dd if=/dev/urandom of={} bs=1M count={at} conv=fsync", v.file("more")))?;
    let start = Instant::now();
    while size(machine, "pool0")? == before {
        ensure!(start.elapsed() < Duration::from_mins(2), "the pool does not grow");
        sleep(Duration::from_secs(1));
    }
    legs_are_apart(machine)
}

fn a_disk_is_lost(machine: &Machine, volumes: &mut [(Vol, String)]) -> Result<()> {
    power_cut_without(machine, 1)?;
    let csi = machine.driver.csi()?;
    for (v, written) in volumes.iter_mut() {
        v.csi = csi.clone();
        v.attach().with_context(|| format!("{} without a disk", v.id))?;
        ensure!(sum(machine, &v.file("data"), 20)? == *written, "{}: other data", v.id);
        health_is(&csi, &[v], |health| health.iter().any(|it| it == "PartialActivation"))?;
    }
    // What is written now is there afterwards.
    let late = fill(machine, &volumes[0].0.file("late"), 4)?;
    let start = Instant::now();
    while failed_legs(machine)? < 1.0 {
        ensure!(start.elapsed() < Duration::from_mins(1), "the metrics tell of no lost leg");
        sleep(Duration::from_secs(1));
    }
    a_disk_is_replaced(machine)?;
    let v = &volumes[0].0;
    ensure!(sum(machine, &v.file("late"), 4)? == late, "what was written meanwhile is other");
    for (v, written) in volumes.iter() {
        ensure!(sum(machine, &v.file("data"), 20)? == *written, "{}: other data", v.id);
        // That it could not grow meanwhile, it may still say.
        health_is(&csi, &[v], |health| !health.iter().any(|it| it == "PartialActivation"))?;
        v.detach()?;
        v.delete()?;
    }
    Vol::create(&csi, THIN, "pvc-after", 100 * MIB)?.delete()?;
    Ok(())
}

/// As docs/operations.md says it, with the volumes in use.
fn a_disk_is_replaced(machine: &Machine) -> Result<()> {
    let said = machine.driver.ask(&["repair"])?;
    // The pool's data, its metadata or both were on that disk.
    for words in ["added to volume group vg0", "has new legs", "forgotten"] {
        ensure!(said.contains(words), "{words} is not in {said}");
    }
    let broken =
        machine.sh(&format!("lvs -a --noheadings -o lv_name -S lv_health_status!='' {VG}"))?;
    ensure!(broken.trim().is_empty(), "still broken: {broken}");
    let start = Instant::now();
    while failed_legs(machine)? > 0.0 {
        ensure!(start.elapsed() < Duration::from_mins(1), "legs are still lost");
        sleep(Duration::from_secs(1));
    }
    legs_are_apart(machine)
}

/// The power goes at any moment while the pool is made, on RAID and on plain extents. It is made all the same,
/// whole, and nothing else is there.
#[test]
fn a_pool_is_made_though_the_power_goes() -> Result<()> {
    let raid = backends("size: 50%, layout: raid5");
    bare("raid-pool-cut", &DISKS, &raid, |machine| {
        let on_raid = [
            ("pool0.meta_rmeta_0", 0),
            ("pool0.meta", 300),
            ("pool0_rmeta_0", 0),
            ("pool0_rimage_1", 700),
            ("pool0", 1_500),
            ("lvol0", 0),
        ];
        is_made_though_cut(machine, &on_raid)?;
        machine.driver.stop()?;
        clear(machine)?;
        machine.driver.configure(&backends("size: 50%"))?;
        is_made_though_cut(machine, &[("pool0.meta", 0), ("pool0", 0), ("lvol0", 0)])
    })
}

/// Each cut is so many milliseconds after a device has come.
fn is_made_though_cut(machine: &Machine, cuts: &[(&str, u64)]) -> Result<()> {
    machine.start(BACKEND)?;
    let (whole, mut halves) = (made(machine)?, 0);
    for (device, millis) in cuts {
        machine.driver.stop()?;
        clear(machine)?;
        std::thread::scope(|scope| {
            let started = scope.spawn(|| machine.driver.start());
            let cut = cut(machine, device, *millis);
            // It came to its end with the VM.
            drop(started.join());
            cut
        })?;
        machine.driver.forget();
        let left = made(machine)?;
        if left != whole {
            halves += 1;
        }
        println!("cut {millis} ms after {device}: {left:?}");
        machine.start(BACKEND)?;
        if whole.iter().any(|lv| lv.contains("rimage")) {
            legs_are_apart(machine)?;
        }
        let found = made(machine)?;
        ensure!(found == whole, "cut {millis} ms after {device}: {found:#?}");
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THIN, "pvc-1", 64 * MIB)?;
        v.attach()?;
        fill(machine, &v.file("data"), 4)?;
        v.detach()?;
        v.delete()?;
    }
    ensure!(halves * 3 >= cuts.len(), "only {halves} cuts of {} came in time", cuts.len());
    Ok(())
}

/// Blank disks.
fn clear(machine: &Machine) -> Result<()> {
    machine.sh("vgremove -qqy -f vg0; for n in 1 2 3; do pvremove -qqy -ff /dev/disk/by-id/lab-disk$n; wipefs -qa /dev/disk/by-id/lab-disk$n; done; sync").map(drop)
}

/// The power goes so long after a device has come; or when the pool is there, where the device was gone before
/// anybody saw it.
fn cut(machine: &Machine, device: &str, millis: u64) -> Result<()> {
    machine.sh(&format!(
        "for n in $(seq 2000); do dmsetup ls 2>/dev/null | cut -f 1 | grep -qxE 'vg0-({device}|pool0_tmeta)' && exit 0; sleep 0.01; done; exit 1"
    ))?;
    sleep(Duration::from_millis(millis));
    machine.node.reboot()
}

/// All LVs, with their sizes and kinds.
fn made(machine: &Machine) -> Result<Vec<String>> {
    let text =
        machine.sh("lvs -a --noheadings -o lv_name,lv_size,segtype vg0 2>/dev/null || true")?;
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found: Vec<_> = text.lines().map(words).collect();
    found.sort();
    Ok(found)
}
