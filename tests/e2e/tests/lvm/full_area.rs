//! A VG whose metadata area is full, however much room it has otherwise: told in words that a person can act on, with nothing left behind, and
//! only what is new is refused.

use anyhow::{Result, ensure};
use cinderblock_lab::driver::{self, Csi, Machine};
use tonic::{Code, Status};

use crate::support::{BACKEND, GIB, MIB, THICK, VG, Vol, bare, figure, fill, lvs, sum};

const VOLUMES_MAX: usize = 200;

fn is_full(refused: &Status) -> Result<()> {
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    let words = ["the metadata area of volume group vg0 is full", "delete volumes or snapshots"];
    ensure!(words.iter().all(|it| refused.message().contains(it)), "{refused:?}");
    Ok(())
}

/// Volumes until there is room for no more.
fn up_to_the_brim(csi: &Csi) -> Result<Vec<Vol>> {
    let mut volumes = Vec::new();
    for n in 0..VOLUMES_MAX {
        match Vol::create(csi, THICK, &format!("pvc-{n}"), 4 * MIB) {
            Ok(v) => volumes.push(v),
            Err(refused) => {
                println!("{n} volumes: {}", refused.message());
                is_full(&refused)?;
                ensure!(n > 5, "full after {n} volumes");
                return Ok(volumes);
            }
        }
    }
    anyhow::bail!("not full after {VOLUMES_MAX} volumes")
}

#[test]
fn a_full_metadata_area_refuses_what_is_new_and_nothing_else() -> Result<()> {
    let config = format!("backends: [{{ name: {BACKEND}, volumeGroup: {VG}, reserve: 0% }}]");
    bare("full-area", &[2 * GIB], &config, |machine| {
        let disk = driver::disk(1);
        machine.sh(&format!(
            "pvcreate -qq --dataalignment 64k --metadatasize 60k {disk}; vgcreate -qq {VG} {disk}"
        ))?;
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?;
        let used = Vol::create(&csi, THICK, "pvc-used", 128 * MIB)?;
        used.attach()?;
        let written = fill(machine, &used.file("data"), 8)?;
        let mut volumes = up_to_the_brim(&csi)?;
        let before = lvs(machine)?;
        ensure!(before.len() == volumes.len() + 1, "left behind: {before:?}");
        is_full(&csi.create(&THICK.request("pvc-new", 64 * MIB)).unwrap_err())?;
        is_full(&csi.snapshot("snapshot-1", &used.id).unwrap_err())?;
        ensure!(lvs(machine)? == before, "left behind");
        let devices = machine.sh("dmsetup ls | grep -c -e new -e snap || true")?;
        ensure!(devices.trim() == "0", "device-mapper has {devices} more");
        told(machine)?;

        // What is there is used, also after a restart, and goes.
        machine.driver.stop()?;
        machine.start(BACKEND)?;
        let (first, last) = (volumes.remove(0), volumes.pop().unwrap());
        last.attach()?;
        let kept = fill(machine, &last.file("data"), 1)?;
        last.detach()?;
        used.detach()?;
        used.attach()?;
        ensure!(sum(machine, &used.file("data"), 8)? == written, "other data");
        first.delete()?;
        let other = volumes.remove(0);
        other.delete()?;
        // Room for another one.
        let new = Vol::create(&csi, THICK, "pvc-new", 64 * MIB)?;
        new.attach()?;
        last.attach()?;
        ensure!(sum(machine, &last.file("data"), 1)? == kept, "other data");
        for it in [&new, &last, &used] {
            it.detach()?;
        }
        for it in volumes.into_iter().chain([new, last, used]) {
            it.delete()?;
        }
        let left = lvs(machine)?;
        ensure!(left.is_empty(), "left: {left:?}");
        machine.sh(&format!("vgck {VG}")).map(drop)
    })
}

fn told(machine: &Machine) -> Result<()> {
    let failed = "cinderblock_program_seconds_count{program=\"lvm lvcreate\",outcome=\"failed\"}";
    ensure!(machine.driver.metric(failed)? == Some(3.0), "failures of LVM are not counted");
    ensure!(figure(machine, "backend_ready")? == Some(1.0), "ready");
    Ok(())
}
