//! Thin pools grow by themselves, data and metadata, one LVM process each time, while a filesystem writes.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, LvmCount, Machine};

use crate::support::{BACKEND, GIB, MIB, THIN, VG, Vol, bare, fill, pooled, started, sum};

/// More than a look and a growth take.
const SETTLED: Duration = Duration::from_secs(5);
/// For the process to end whose work is seen.
const ENDED: Duration = Duration::from_secs(2);
/// For what a look at the pool brings about.
const SEEN: Duration = Duration::from_secs(30);

fn figure(machine: &Machine, name: &str) -> Result<Option<f64>> {
    machine.driver.metric(&format!("cinderblock_thin_pool_{name}{{backend=\"{BACKEND}\""))
}

/// A size of an LV in extents.
fn extents(machine: &Machine, lv: &str) -> Result<u64> {
    let text = machine.sh(&format!(
        "lvs -a --noheadings --units b --nosuffix -o lv_size {VG}/{lv} | tr -d ' '"
    ))?;
    Ok(text.parse::<u64>().with_context(|| text.clone())? / (4 * MIB))
}

#[test]
fn a_pool_grows_while_a_filesystem_writes() -> Result<()> {
    started("growth", &[2 * GIB], &pooled(1, "15%"), |machine| {
        let (csi, count) = (machine.driver.csi()?, LvmCount::start(&machine.node)?);
        let v = Vol::create(&csi, THIN, "pvc-1", GIB)?;
        v.attach()?;
        let before = extents(machine, "pool0")?;
        // As fast as the last fifth of so small a pool allows.
        let write = format!(
            "dd if=/dev/urandom of=/run/piece bs=1M count=8 2>/dev/null
             for i in $(seq 1 50); do
                dd if=/run/piece of={} bs=1M conv=fsync 2>/dev/null; sleep 0.8
             done; rm /run/piece",
            v.file("f$i")
        );
        let (written, lvm) = count.lvm_during(|| {
            let written = machine.sh(&write)?;
            sleep(SETTLED);
            let grown = || {
                // The kernel's as well: the metric is as old as the last look.
                let now = machine.sh(&format!("lvs --noheadings -o data_percent {VG}/pool0"))?;
                let told = figure(machine, "data_used_ratio")?;
                Ok(now.trim().parse::<f64>()? < 80.0 && told.is_some_and(|it| it < 0.8))
            };
            machine.driver.wait_until(SEEN, "done growing", grown)?;
            sleep(ENDED);
            anyhow::Ok(written)
        })?;
        written?;
        let after = extents(machine, "pool0")?;
        let (mut size, mut growths) = (before, 0);
        while size < after {
            size += size.div_ceil(5);
            growths += 1;
        }
        println!("{before} extents became {after} in {growths} growths and {lvm} LVM processes");
        ensure!(size == after, "{before} extents became {after}: not by a fifth each time");
        ensure!(growths >= 2, "only {growths} growths");
        ensure!(lvm == growths, "{lvm} LVM processes for {growths} growths");
        let sums = machine.sh(&format!(
            "sync; echo 3 >/proc/sys/vm/drop_caches; cat {} | wc -c; sha256sum {} | cut -d ' ' -f 1 | uniq | wc -l",
            v.file("f*"),
            v.file("f*")
        ))?;
        ensure!(sums == format!("{}\n1", 400 * MIB), "{sums}");
        let used = figure(machine, "data_used_ratio")?.context("no figure")?;
        ensure!(used < 0.8, "{used} of the pool is used");
        v.detach()?;
        v.delete()?;
        Ok(())
    })
}

#[test]
fn a_pool_made_by_hand_grows_in_its_own_layout_when_asked_to() -> Result<()> {
    let pool = "{ overprovision: 2, autogrow: { at: 12%, by: 50% } }";
    let config = format!(
        "backends: [{{ name: {BACKEND}, volumeGroup: {VG}, reserve: 0%, thinPool: {pool} }}]"
    );
    bare("striped", &[GIB, GIB], &config, |machine| {
        let disks = [1, 2].map(driver::disk).join(" ");
        machine.sh(&format!(
            "pvcreate -qq {disks}; vgcreate -qq {VG} {disks}
             lvcreate -qqy --type thin-pool -i 2 -l 74 --poolmetadatasize 4M --chunksize 64k -n pool0 {VG}"
        ))?;
        machine.start(BACKEND)?;
        let told = || figure(machine, "queues_when_full");
        ensure!(told()? == Some(1.0), "it queues, and nobody says so");
        machine.driver.wait_until(SEEN, "warning in its log", || {
            Ok(machine.driver.log_text().contains("--errorwhenfull y vg0/pool0"))
        })?;
        machine.sh(&format!("lvchange -qq --errorwhenfull y {VG}/pool0"))?;
        machine
            .driver
            .wait_until(SEEN, "seeing that it fails writes", || Ok(told()? == Some(0.0)))?;
        let (csi, count) = (machine.driver.csi()?, LvmCount::start(&machine.node)?);
        ensure!(extents(machine, "pool0_tmeta")? == 1, "the metadata is larger already");
        // Eleven extents more than the pool has: LVM makes that twelve, the same on each disk.
        let v = Vol::first(&csi, THIN, "pvc-1", 85 * 4 * MIB)?;
        let (written, lvm) = count.lvm_during(|| {
            v.attach()?;
            let written = fill(machine, &v.file("data"), 250)?;
            sleep(SETTLED);
            let grown =
                || Ok(extents(machine, "pool0")? >= 86 && extents(machine, "pool0_tmeta")? >= 5);
            machine.driver.wait_until(SEEN, "done growing", grown)?;
            sleep(ENDED);
            anyhow::Ok(written)
        })?;
        let written = written?;
        let (data, metadata) = (extents(machine, "pool0")?, extents(machine, "pool0_tmeta")?);
        println!("{data} extents of data, {metadata} of metadata by {lvm} LVM processes");
        ensure!(data == 86, "74 extents of data became {data}");
        ensure!(metadata == 5, "4 MiB of metadata should have 16 MiB more");
        ensure!(extents(machine, "lvol0_pmspare")? >= 5, "the spare is smaller");
        ensure!(lvm == 3, "{lvm} LVM processes, not one for the stage and two to grow");
        let stripes = machine.sh(&format!("lvs -a --noheadings -o stripes {VG}/pool0_tdata"))?;
        ensure!(stripes.split_whitespace().all(|n| n == "2"), "stripes: {stripes}");
        ensure!(sum(machine, &v.file("data"), 250)? == written, "other data");
        v.detach()?;
        Ok(v.delete()?)
    })
}
