//! A disk of the VG is not there: nobody is told that his volume is gone, nothing is done to what is left, and all is well when it is back.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use cinderblock_lab::driver::{Machine, Source};
use tonic::Code;

use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, VG, Vol, code, expect_nothing_left, fill, pooled,
    power_cut_without, started, sum, troubles, wait_for_trouble,
};

#[test]
fn volumes_of_a_missing_disk_are_unavailable_and_come_back_with_it() -> Result<()> {
    started("missing", &[GIB, GIB], &pooled(2, "40%"), |machine| {
        let csi = machine.driver.csi()?;
        let all = csi.capacity(&THICK)?;
        // Over both disks, on one of them, and in the pool.
        let mut volumes = Vec::new();
        for (class, name, bytes) in [
            (THICK, "pvc-both", all - 256 * MIB),
            (THICK, "pvc-one", 64 * MIB),
            (THIN, "pvc-thin", 256 * MIB),
        ] {
            let v = Vol::create(&csi, class, name, bytes)?;
            v.attach()?;
            let written = fill(machine, &v.file("data"), 8)?;
            v.detach()?;
            volumes.push((v, written));
        }
        let snapshot = csi.snapshot("snapshot-1", &volumes[2].0.id)?.snapshot_id;
        let vanished = machine.node.disk_file(2);
        let kept = vanished.with_extension("kept");
        // A blank one is in its place.
        power_cut_without(machine, 2)?;
        nothing_is_known(machine, &volumes, &snapshot)?;
        wait_for_trouble(machine, "PhysicalVolumeMissing", true)?;
        ensure!(troubles(machine, "BackendNotReady")? == 0.0, "told twice");

        machine.node.power_cut()?;
        fs::rename(&kept, &vanished)?;
        machine.node.boot()?;
        machine.driver.forget();
        machine.start(BACKEND)?;
        wait_for_trouble(machine, "PhysicalVolumeMissing", false)?;
        let csi = machine.driver.csi()?;
        for (mut v, written) in volumes {
            v.csi = csi.clone();
            v.attach()?;
            ensure!(sum(machine, &v.file("data"), 8)? == written, "{}: other data", v.id);
            v.detach()?;
            v.delete()?;
        }
        csi.delete_snapshot(&snapshot)?;
        expect_nothing_left(machine)
    })
}

fn nothing_is_known(machine: &Machine, volumes: &[(Vol, String)], snapshot: &str) -> Result<()> {
    // Long enough for a look at the disks by itself.
    std::thread::sleep(Duration::from_secs(12));
    let csi = machine.driver.csi()?;
    let metadata = "dd if=/dev/ubdc bs=1M count=65 2>/dev/null | sha256sum; dd if=/dev/ubdd bs=1M count=65 2>/dev/null | sha256sum";
    let before = machine.sh(metadata)?;
    for (v, _) in volumes {
        let class = if v.lv() == "pvc-thin" { THIN } else { THICK };
        let size = 64 * MIB;
        let answers = [
            ("delete", code(csi.delete(&v.id))?),
            ("stage", code(csi.stage(&v.id, v.access, &v.staging))?),
            ("expand", code(csi.expand(&v.id, 2 * GIB))?),
            ("snapshot", code(csi.snapshot("snapshot-2", &v.id))?),
            ("create the same", code(csi.create(&class.request(v.lv(), size)))?),
            ("create another", code(csi.create(&class.request("pvc-other", size)))?),
            (
                "clone",
                code(csi.create(&THIN.request_from("pvc-clone", size, Source::Volume(&v.id))))?,
            ),
            ("delete the snapshot", code(csi.delete_snapshot(snapshot))?),
        ];
        for (what, code) in answers {
            ensure!(code == Code::Unavailable, "{what} {}: {code:?}", v.id);
        }
    }
    ensure!(csi.capacity(&THICK)? == 0 && csi.capacity(&THIN)? == 0, "there is capacity");
    ensure!(machine.sh(metadata)? == before, "a disk was written to");
    let blank = machine.sh("blkid -p /dev/ubdd || true")?;
    ensure!(blank.is_empty(), "the blank disk in the place of the missing one holds {blank}");
    let lvs = machine.sh(&format!("lvs --noheadings -o lv_name {VG} 2>/dev/null"))?;
    ensure!(lvs.split_whitespace().count() == 5, "{lvs}");
    Ok(())
}
