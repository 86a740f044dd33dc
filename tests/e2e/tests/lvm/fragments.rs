//! A volume of hundreds of pieces, as a long life of a full disk leaves: the kernel's answer about it is longer than about others.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver;

use crate::support::{BACKEND, GIB, MIB, THICK, VG, Vol, fill, started, sum};

const PIECES: u64 = 400;

#[test]
fn a_volume_of_hundreds_of_pieces_is_like_any_other() -> Result<()> {
    let config = driver::backend(BACKEND, VG, 1, "reserve: 0%");
    started("fragments", &[4 * GIB], &config, |machine| {
        let csi = machine.driver.csi()?;
        let pv = machine.sh(&format!("pvs --noheadings -o pv_name,vg_name | grep -w {VG}"))?;
        let pv = pv.split_whitespace().next().context("no PV")?.to_owned();
        // Every second extent is somebody else's, and so is all behind them.
        machine.sh(&format!(
            "lvcreate -qqy -an -l {PIECES} -n holes {VG} $(seq -f {pv}:%.0f 0 2 {last})
             lvcreate -qqy -an -l $(($(vgs --noheadings -o vg_free_count {VG}) - {PIECES})) -n rest {VG} {pv}:{behind}-",
            last = 2 * PIECES - 2,
            behind = 2 * PIECES,
        ))?;
        let free = |what: &str| -> Result<()> {
            let free = machine.sh(&format!("vgs --noheadings -o vg_free_count {VG}"))?;
            ensure!(free.trim() == PIECES.to_string(), "{what}: {free} extents are free");
            Ok(())
        };
        free("before")?;
        let v = Vol::create(&csi, THICK, "pvc-1", PIECES * 4 * MIB)?;
        let pieces = machine.sh(&format!("dmsetup table {} | wc -l", v.device()))?;
        ensure!(pieces.trim() == PIECES.to_string(), "it has {pieces} pieces");
        v.attach()?;
        let written = fill(machine, &v.file("data"), 64)?;
        v.publish(Path::new("/run/v/again"))?;
        v.unpublish(Path::new("/run/v/again"))?;
        v.detach()?;
        v.attach()?;
        ensure!(sum(machine, &v.file("data"), 64)? == written, "other data");
        v.detach()?;
        v.delete()?;
        free("after")
    })
}
