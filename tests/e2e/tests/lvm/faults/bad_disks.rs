//! Disks that cannot be read in places, or not at all: told to whom it concerns, never taken for "not there", and all is well when they are back.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cinderblock_lab::driver::{Csi, Machine, Source};
use tonic::Code;

use super::shaky::{self, How, a_life_beside};
use crate::support::{GIB, MIB, THICK, THIN, Vol, bare, code, fill, lvs, sum};

/// A copy that failed is tried again every minute.
const COPIED: Duration = Duration::from_mins(2);

fn message(machine: &Machine, text: &str) -> Result<()> {
    machine.sh(&format!("dmsetup message shaky 0 {text} >/dev/null")).map(drop)
}

/// The sector under the middle of a file.
fn sector(machine: &Machine, v: &Vol) -> Result<u64> {
    let text = machine.sh(&format!(
        "sync; size=$(stat -f -c %S {0}); block=$(debugfs -R 'bmap /data 1000' {1} 2>/dev/null)
         offset=$(dmsetup table {1} | cut -d ' ' -f 5); echo $((2048 + offset + block * size / 512))",
        v.pod.display(),
        v.device()
    ))?;
    text.trim().parse().with_context(|| text.clone())
}

/// Who copies is told, and gets the whole of it once it can be read.
fn a_place_that_cannot_be_read(machine: &Machine, csi: &Csi) -> Result<()> {
    let v = Vol::create(csi, THICK, "pvc-source", 64 * MIB)?;
    v.attach()?;
    let written = fill(machine, &v.file("data"), 16)?;
    let bad = sector(machine, &v)?;
    v.detach()?;
    for n in 0..8 {
        message(machine, &format!("addbadblock {}", bad + n))?;
    }
    message(machine, "enable")?;
    let from = Source::Volume(&v.id);
    let start = Instant::now();
    loop {
        let refused = Vol::from(csi, THICK, "pvc-clone", 64 * MIB, from).unwrap_err();
        ensure!(refused.code() == Code::Unavailable, "{refused:?}");
        if refused.message().contains("cannot be copied now") {
            println!("{}", refused.message());
            break;
        }
        ensure!(start.elapsed() < COPIED, "{refused:?}");
        sleep(Duration::from_millis(500));
    }
    let reads = |v: &Vol| machine.sh(&format!("cat {} >/dev/null", v.file("data")));
    v.attach()?;
    let error = reads(&v).unwrap_err();
    ensure!(format!("{error:#}").contains("Input/output error"), "{error:#}");
    a_life_beside(csi, "pvc-beside")?;
    message(machine, "disable")?;
    reads(&v)?;
    let start = Instant::now();
    let clone = loop {
        match Vol::from(csi, THICK, "pvc-clone", 64 * MIB, from) {
            Ok(clone) => break clone,
            Err(status) if status.code() == Code::Unavailable && start.elapsed() < COPIED => {
                sleep(Duration::from_millis(500));
            }
            Err(status) => bail!("the copy: {status:?}"),
        }
    };
    clone.attach()?;
    ensure!(sum(machine, &clone.file("data"), 16)? == written, "the copy has other data");
    for it in [clone, v] {
        it.detach()?;
        it.delete()?;
    }
    Ok(())
}

/// Nothing is known, so nothing is done and nothing is said to be absent.
fn nothing_is_done(csi: &Csi, volumes: &[(Vol, String)]) -> Result<()> {
    for (v, _) in volumes {
        let clone = THICK.request_from("pvc-clone", 128 * MIB, Source::Volume(&v.id));
        for (what, code) in [
            ("delete", code(csi.delete(&v.id))?),
            ("expand", code(csi.expand(&v.id, 256 * MIB))?),
            ("snapshot", code(csi.snapshot("snapshot-1", &v.id))?),
            ("clone", code(csi.create(&clone))?),
            ("stage", code(v.stage())?),
        ] {
            ensure!(code == Code::Unavailable, "{what} {}: {code:?}", v.lv());
        }
    }
    // A new one may find its place on another node.
    for class in [THICK, THIN] {
        let code = code(csi.create(&class.request("pvc-new", 128 * MIB)))?;
        ensure!([Code::Unavailable, Code::ResourceExhausted].contains(&code), "create: {code:?}");
        ensure!(csi.capacity(&class)? == 0, "there is capacity");
    }
    Ok(())
}

#[test]
fn a_disk_that_fails_is_told_and_nothing_on_it_is_forgotten() -> Result<()> {
    bare("bad-disks", &[GIB, GIB], &shaky::backends(), |machine| {
        shaky::all(machine, How::Dust)?;
        machine.start("fast")?;
        machine.driver.wait_for_backend("steady", Duration::from_mins(1))?;
        let csi = machine.driver.csi()?;
        a_place_that_cannot_be_read(machine, &csi)?;

        let mut volumes = Vec::new();
        for (class, name) in [(THICK, "pvc-thick"), (THIN, "pvc-thin")] {
            let v = Vol::create(&csi, class, name, 128 * MIB)?;
            v.attach()?;
            let written = fill(machine, &v.file("data"), 8)?;
            volumes.push((v, written));
        }
        shaky::all(machine, How::Error)?;
        // A pod that is deleted can leave, whatever its disk does.
        for (v, _) in &volumes {
            let file = v.file("more");
            let error = machine.sh(&format!("dd if=/dev/zero of={file} bs=1M count=1 conv=fsync"));
            ensure!(error.is_err(), "{}: a dead disk has taken a write", v.lv());
            v.detach().with_context(|| format!("detaching {} from a dead disk", v.lv()))?;
        }
        nothing_is_done(&csi, &volumes)?;
        a_life_beside(&csi, "pvc-other")?;
        machine.driver.stop()?;
        machine.driver.start()?;
        machine.driver.wait_for_backend("steady", Duration::from_mins(1))?;
        nothing_is_done(&csi, &volumes)?;
        a_life_beside(&csi, "pvc-third")?;

        machine.node.reboot()?;
        shaky::all(machine, How::Dust)?;
        machine.driver.forget();
        machine.start("fast")?;
        let csi = machine.driver.csi()?;
        for (mut v, written) in volumes {
            v.csi = csi.clone();
            v.attach()?;
            ensure!(sum(machine, &v.file("data"), 8)? == written, "{}: other data", v.lv());
            v.detach()?;
            v.delete()?;
        }
        let left = lvs(machine)?;
        let own = ["[lvol0_pmspare]", "[pool0_tdata]", "[pool0_tmeta]", "pool0"];
        ensure!(left == own, "still there: {left:?}");
        Ok(())
    })
}
