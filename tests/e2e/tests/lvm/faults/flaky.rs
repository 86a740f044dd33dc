//! A disk that comes and goes (dm-flakey) while records are written and volumes live their lives: what was acknowledged is there afterwards,
//! each call comes to its end when it is repeated, and nothing is left.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cinderblock_lab::driver::{Class, Csi, Machine, is_open};
use tonic::{Code, Status};

use super::shaky::{self, How};
use crate::support::{
    BACKEND, GIB, MIB, THICK, THICK_BLOCK, THIN, VG, Vol, bare, compare_records,
    expect_nothing_left_beside, lvs, wait_for_trouble,
};

/// Good for 8 seconds, away for 1.
const FLAKY: How = How::Flaky(8, 1);
const WEATHER: Duration = Duration::from_secs(70);
/// For a step, once the disk is well.
const WELL: Duration = Duration::from_mins(3);

/// Writes one file after the other, and notes each that was synced with its checksum.
const FILES: &str = r"
    for i in $(seq 1 100000); do
        if dd if=/dev/urandom of=$1/f$i bs=64k count=1 conv=fsync 2>/dev/null
        then (cd $1; sha256sum f$i) >>$2
        else echo $i >>$2.failed
        fi
        sleep 0.1
    done";

/// Writes one record after the other to a device, round and round, and notes each that was synced with its checksum.
const RECORDS: &str = r"
    for i in $(seq 0 100000); do
        dd if=/dev/urandom of=$2.record bs=64k count=1 2>/dev/null
        if dd if=$2.record of=$1 bs=64k seek=$((i % 1000)) oflag=direct conv=notrunc,fsync 2>/dev/null
        then echo $((i % 1000)) $(sha256sum <$2.record) >>$2
        else echo $((i % 1000)) >>$2; echo $i >>$2.failed
        fi
        sleep 0.1
    done";

/// A volume's life, step by step, each repeated until it succeeds.
struct Life {
    class: Class,
    name: &'static str,
    done: usize,
    volume: String,
    snapshot: String,
    lives: usize,
    refused: usize,
}

const STEPS: usize = 5;

impl Life {
    fn new(class: Class, name: &'static str) -> Self {
        let (volume, snapshot) = (String::new(), String::new());
        Self { class, name, done: 0, volume, snapshot, lives: 0, refused: 0 }
    }

    fn step(&mut self, csi: &Csi) -> Result<(), Status> {
        match self.done {
            0 => {
                self.volume = csi.create(&self.class.request(self.name, 32 * MIB))?.volume_id;
            }
            1 => drop(csi.expand(&self.volume, 48 * MIB)?),
            2 => {
                let name = format!("snapshot-of-{}", self.name);
                self.snapshot = csi.snapshot(&name, &self.volume)?.snapshot_id;
            }
            3 => csi.delete_snapshot(&self.snapshot)?,
            _ => csi.delete(&self.volume)?,
        }
        self.done = (self.done + 1) % STEPS;
        self.lives += usize::from(self.done == 0);
        Ok(())
    }

    /// Tries the next step. What is said to be absent is not: nobody has deleted it.
    fn try_step(&mut self, csi: &Csi) -> Result<bool> {
        let Err(refused) = self.step(csi) else { return Ok(true) };
        self.refused += 1;
        let fits = is_open(&refused)
            || [Code::Internal, Code::ResourceExhausted, Code::OutOfRange]
                .contains(&refused.code());
        ensure!(fits, "{} step {}: {refused:?}", self.name, self.done);
        Ok(false)
    }

    /// To the end of this life.
    fn finish(&mut self, csi: &Csi) -> Result<()> {
        let start = Instant::now();
        while self.done != 0 {
            if !self.try_step(csi)? {
                if start.elapsed() > WELL {
                    let last = self.step(csi);
                    bail!("{} does not get beyond step {}: {last:?}", self.name, self.done);
                }
                sleep(Duration::from_secs(1));
            }
        }
        Ok(())
    }
}

fn count(machine: &Machine, file: &str) -> Result<u64> {
    machine.sh(&format!("cat {file} 2>/dev/null | wc -l"))?.trim().parse().context("no count")
}

/// Nothing is wrong with LVM's metadata, nor with the pool's.
fn proved_whole(machine: &Machine) -> Result<()> {
    machine.driver.stop()?;
    machine
        .sh(&format!(
            "vgck {VG}; lvchange -qq -an {VG}/pool0; lvchange -qq -y -ay {VG}/pool0_tmeta
             thin_check -q /dev/mapper/{VG}-pool0_tmeta; lvchange -qq -an {VG}/pool0_tmeta"
        ))
        .map(drop)
}

#[test]
fn a_disk_that_comes_and_goes_loses_nothing_that_was_acknowledged() -> Result<()> {
    bare("flaky", &[GIB, GIB], &shaky::backends(), |machine| {
        shaky::all(machine, How::Good)?;
        machine.start(BACKEND)?;
        machine.driver.wait_for_backend("steady", Duration::from_mins(1))?;
        let csi = machine.driver.csi()?;
        let mut used = Vec::new();
        for (class, name, script) in [
            (THICK_BLOCK, "pvc-records", RECORDS),
            (THICK, "pvc-thick", FILES),
            (THIN, "pvc-thin", FILES),
        ] {
            let v = Vol::create(&csi, class, name, 96 * MIB)?;
            v.attach()?;
            let (place, noted) = (v.pod.display().to_string(), format!("/run/{name}"));
            let words = ["sh", "-c", script, "sh", &place, &noted];
            let writer =
                machine.node.exec(words).spawn(&machine.driver.log().with_extension(name))?;
            used.push((v, noted, writer));
        }
        for (v, noted, _) in &used {
            let what = format!("writing to {}", v.lv());
            machine.driver.wait_until(WELL, &what, || Ok(count(machine, noted)? > 5))?;
        }
        shaky::all(machine, FLAKY)?;
        let mut lives = [
            Life::new(THICK, "pvc-one"),
            Life::new(Class { backend: "steady", ..THICK }, "pvc-steady"),
            Life::new(THIN, "pvc-two"),
        ];
        let start = Instant::now();
        while start.elapsed() < WEATHER {
            for life in &mut lives {
                life.try_step(&csi)?;
            }
            sleep(Duration::from_millis(100));
        }
        ensure!(lives[1].refused == 0, "the good disk: {} refusals", lives[1].refused);
        for (v, noted, writer) in &used {
            writer.signal(9)?;
            let (acknowledged, failed) =
                (count(machine, noted)?, count(machine, &format!("{noted}.failed"))?);
            println!("{}: {acknowledged} noted, {failed} failed", v.lv());
            ensure!(failed > 0, "{}: nothing has failed", v.lv());
            ensure!(acknowledged > 5, "{}: only {acknowledged} records", v.lv());
        }
        shaky::all(machine, How::Good)?;
        // What waits for a disk dies when it has an answer.
        machine.sh("while pgrep -x dd >/dev/null; do sleep 0.2; done")?;
        for (v, _, _) in &used {
            v.detach()?;
        }
        afterwards(
            machine,
            &csi,
            used.into_iter().map(|(v, noted, _)| (v, noted)).collect(),
            &mut lives,
        )
    })
}

fn afterwards(
    machine: &Machine,
    csi: &Csi,
    used: Vec<(Vol, String)>,
    lives: &mut [Life],
) -> Result<()> {
    println!("{}", machine.sh("dmsetup status; lvs -a")?);
    // A pool that could not write its metadata wants a check: docs/operations.md.
    machine.driver.stop()?;
    machine.sh(&format!("lvchange -qq -an {VG}"))?;
    machine.start(BACKEND)?;
    wait_for_trouble(machine, "ThinPoolFailed", false)?;
    for (v, noted) in &used {
        v.attach().with_context(|| format!("{} afterwards", v.lv()))?;
        let place = v.pod.display().to_string();
        if v.lv() == "pvc-records" {
            compare_records(machine, &place, noted, "64k")?;
        } else {
            let compare = format!("cd {place}; sha256sum --quiet -c {noted}");
            machine.sh(&compare).with_context(|| format!("what {} acknowledged", v.lv()))?;
        }
    }
    for life in lives.iter_mut() {
        life.finish(csi)?;
        println!("{}: {} lives, {} refusals", life.name, life.lives, life.refused);
        // One more, with nothing in its way.
        life.step(csi)?;
        life.finish(csi)?;
        ensure!(life.lives > 0, "{}: no life came to its end", life.name);
    }
    for (v, _) in used {
        v.detach()?;
        v.delete()?;
    }
    expect_nothing_left_beside(machine, &["shaky"])?;
    let steady = machine.sh("lvs -a --noheadings vg1")?;
    ensure!(steady.trim().is_empty(), "in vg1: {steady}");
    let before = lvs(machine)?;
    proved_whole(machine)?;
    ensure!(lvs(machine)? == before, "LVs have changed");
    Ok(())
}
