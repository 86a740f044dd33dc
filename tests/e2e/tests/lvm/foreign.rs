//! What others do in the same VG: their LVs are left alone and counted as used, and what they change is noticed without being asked.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Csi, Machine};
use tonic::Code;

use crate::support::{
    GIB, MIB, THICK, THIN, VG, Vol, code, expect_nothing_left, fill, pooled, started, sum,
};

/// The driver looks every 10 s, and once more 10 s later when LVM is busy; a loaded host gets a little more.
const NOTICED: Duration = Duration::from_secs(30);

/// Waits until others' doings show.
fn noticed(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !look()? {
        ensure!(start.elapsed() < NOTICED, "{what} was not noticed within {NOTICED:?}");
        sleep(Duration::from_millis(250));
    }
    println!("{what}: noticed after {:?}", start.elapsed());
    Ok(())
}

fn vg_uuid(machine: &Machine) -> Result<String> {
    machine.sh(&format!("vgs --noheadings -o vg_uuid {VG} | tr -d ' '"))
}

#[test]
fn foreign_volumes_are_never_shown_or_removed_and_count_as_used() -> Result<()> {
    started("foreign", &[2 * GIB], &pooled(1, "40%"), |machine| {
        let csi = machine.driver.csi()?;
        let (thick, thin) = (csi.capacity(&THICK)?, csi.capacity(&THIN)?);
        machine.sh(&format!(
            "lvcreate -qqy -an -L 256M -n pvc-foreign {VG}; lvcreate -qqy -V 512M -T {VG}/pool0 -n pvc-thin"
        ))?;
        noticed("a foreign LV", || Ok(csi.capacity(&THICK)? == thick - 256 * MIB))?;
        noticed("a foreign thin LV", || Ok(csi.capacity(&THIN)? == thin - 512 * MIB))?;
        ensure!(csi.volumes()?.is_empty(), "foreign LVs are listed");
        let before =
            machine.sh(&format!("lvs --noheadings -o lv_name,lv_uuid,lv_size,lv_tags {VG}"))?;
        let uuid = vg_uuid(machine)?;
        for (name, class) in [("pvc-foreign", THICK), ("pvc-thin", THIN)] {
            let id = format!("{uuid}/{name}");
            ensure!(code(csi.delete(&id))? == Code::FailedPrecondition, "delete {id}");
            ensure!(code(csi.expand(&id, GIB))? == Code::NotFound, "expand {id}");
            ensure!(code(csi.snapshot("snapshot-1", &id))? == Code::NotFound, "snapshot of {id}");
            let staging = "/run/v/foreign".as_ref();
            ensure!(code(csi.stage(&id, class.access, staging))? == Code::NotFound, "stage {id}");
            let taken = code(csi.create(&class.request(name, 256 * MIB)))?;
            ensure!(taken == Code::AlreadyExists, "create {name}: {taken:?}");
        }
        let after =
            machine.sh(&format!("lvs --noheadings -o lv_name,lv_uuid,lv_size,lv_tags {VG}"))?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        Ok(())
    })
}

#[test]
fn what_an_admin_changes_is_noticed_within_ten_seconds() -> Result<()> {
    started("admin", &[GIB, GIB], &pooled(1, "40%"), |machine| {
        let csi = machine.driver.csi()?;
        let before = csi.capacity(&THICK)?;
        machine.sh(&format!("pvcreate -qq /dev/ubdd; vgextend -qq {VG} /dev/ubdd"))?;
        noticed("vgextend", || Ok(csi.capacity(&THICK)? > before + 900 * MIB))?;
        // The new disk is used, and what is on it is kept.
        let v = Vol::create(&csi, THICK, "pvc-1", before + 128 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 8)?;
        v.detach()?;
        renamed(machine, &csi, &v)?;
        v.attach()?;
        ensure!(sum(machine, &v.file("data"), 8)? == written, "other data");
        v.detach()?;
        removed(machine, &csi, &v)?;
        expect_nothing_left(machine)
    })
}

/// Gone under its name, and there again when it gets it back.
fn renamed(machine: &Machine, csi: &Csi, v: &Vol) -> Result<()> {
    let listed = |id: &str| Ok(csi.volumes()?.iter().any(|it| it.volume_id == id));
    machine.sh(&format!("lvrename -qq {VG} {} elsewhere", v.lv()))?;
    // Before it is noticed as well: the disks are looked at before there is an answer.
    ensure!(code(v.stage())? == Code::NotFound, "stage of a renamed volume");
    noticed("lvrename", || Ok(!listed(&v.id)?))?;
    v.delete().context("a volume that is seen to be absent is deleted")?;
    ensure!(crate::support::lvs(machine)?.contains(&"elsewhere".to_owned()), "the LV is gone");
    machine.sh(&format!("lvrename -qq {VG} elsewhere {}", v.lv()))?;
    noticed("lvrename back", || listed(&v.id))
}

fn removed(machine: &Machine, csi: &Csi, v: &Vol) -> Result<()> {
    machine.sh(&format!("lvremove -qqf {VG}/{}", v.lv()))?;
    ensure!(code(v.stage())? == Code::NotFound, "stage of a removed volume");
    ensure!(code(csi.expand(&v.id, 2 * GIB))? == Code::NotFound, "expansion of a removed volume");
    v.delete()?;
    noticed("lvremove", || Ok(csi.volumes()?.is_empty()))
}
