//! A disk whose own cache goes with the power: all that was written to it is kept in a log in the order in which it came
//! to the medium (dm-log-writes), and replayed up to each answer of the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Csi, Machine, Source};

use crate::support::{
    BACKEND, GIB, MASTER, MIB, THICK, THICK_BLOCK, THIN, VG, Vol, bare, encrypted, fill, sum,
};

/// Under the log, and where LVM finds what it wrote: from the second MiB on, so that it knows the disk by one name.
const DISK: &str = "/dev/ubdc";
const LOG: &str = "/dev/ubdd";
const DISK_SIZE: u64 = GIB;
const BEGIN: u64 = 2048;

/// What the log begins with (Linux's `drivers/md/dm-log-writes.c`, `WRITE_LOG_MAGIC`), and how it counts.
const MAGIC: u64 = 0x6a_7366_7773_6872;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// What was answered up to a mark in the log.
#[derive(Clone, Default)]
struct Answered {
    what: String,
    volumes: BTreeMap<String, u64>,
    snapshots: BTreeSet<String>,
    /// Files that were synced, with their checksums.
    files: BTreeMap<String, (Vol, String)>,
}

/// The life of some volumes, with a mark after each answer.
struct Story<'a> {
    machine: &'a Machine,
    csi: &'a Csi,
    now: Answered,
    all: Vec<Answered>,
}

impl Story<'_> {
    fn mark(&mut self, what: &str) -> Result<()> {
        what.clone_into(&mut self.now.what);
        self.all.push(self.now.clone());
        self.machine.sh(&format!("dmsetup message logged 0 mark {}", self.all.len())).map(drop)
    }

    fn made(&mut self, what: &str, v: &Vol, mib: u64) -> Result<()> {
        self.now.volumes.insert(v.id.clone(), mib * MIB);
        self.mark(what)
    }

    fn written(&mut self, v: &Vol) -> Result<()> {
        v.attach()?;
        self.mark("first use")?;
        let written = fill(self.machine, &v.file("data"), 4)?;
        self.now.files.insert(v.id.clone(), (v.clone(), written));
        self.mark("a file that was synced")
    }

    fn expanded(&mut self, v: &Vol, mib: u64) -> Result<()> {
        self.csi.expand(&v.id, mib * MIB)?;
        self.made("expanded", v, mib)?;
        self.csi.expand_on_node(&v.id, &v.staging)?;
        self.mark("expanded on the node")
    }

    fn taken(&mut self, of: &Vol) -> Result<String> {
        let taken = self.csi.snapshot(&format!("snapshot-of-{}", of.lv()), &of.id)?.snapshot_id;
        self.now.snapshots.insert(taken.clone());
        self.mark("a snapshot")?;
        Ok(taken)
    }

    fn gone(&mut self, v: &Vol) -> Result<()> {
        if self.now.files.remove(&v.id).is_some() {
            v.detach()?;
        }
        v.delete()?;
        self.now.volumes.remove(&v.id);
        self.mark("deleted")
    }

    fn snapshot_gone(&mut self, snapshot: &str) -> Result<()> {
        self.csi.delete_snapshot(snapshot)?;
        self.now.snapshots.remove(snapshot);
        self.mark("a deleted snapshot")
    }

    fn whole(&mut self) -> Result<()> {
        let thick = Vol::create(self.csi, THICK, "pvc-thick", 64 * MIB)?;
        self.made("a thick volume", &thick, 64)?;
        self.written(&thick)?;
        self.expanded(&thick, 96)?;
        let of_thick = self.taken(&thick)?;
        let block = Vol::create(self.csi, THICK_BLOCK, "pvc-block", 32 * MIB)?;
        self.made("a thick block volume", &block, 32)?;
        self.written(&block)?;
        let thin = Vol::create(self.csi, THIN, "pvc-thin", 64 * MIB)?;
        self.made("a thin volume", &thin, 64)?;
        self.written(&thin)?;
        let of_thin = self.taken(&thin)?;
        let from = Source::Snapshot(&of_thin);
        let restored = Vol::from(self.csi, THIN, "pvc-restored", 64 * MIB, from)?;
        self.made("a restored volume", &restored, 64)?;
        self.expanded(&thin, 96)?;
        let secret = Vol::create(self.csi, encrypted(THICK), "pvc-secret", 64 * MIB)?;
        self.made("an encrypted volume", &secret, 64)?;
        self.written(&secret)?;
        self.snapshot_gone(&of_thick)?;
        self.snapshot_gone(&of_thin)?;
        for it in [restored, thick, thin, block, secret] {
            self.gone(&it)?;
        }
        Ok(())
    }
}

#[test]
fn what_is_answered_is_in_no_disks_cache_alone() -> Result<()> {
    let backends = format!(
        "backends:\n  - {{ name: {BACKEND}, volumeGroup: {VG}, create: true, devices: [/dev/mapper/cached], \
         thinPool: {{ name: pool0, size: 40%, overprovision: 20 }} }}\n"
    );
    bare("disk-cache", &[DISK_SIZE, 2 * GIB], &backends, |machine| {
        // What LVM might take for a label is far behind the log's first sectors.
        machine.sh(&format!(
            "dmsetup create logged --table \"0 $(blockdev --getsz {DISK}) log-writes {DISK} {LOG}\"
             dd if=/dev/zero of=/dev/mapper/logged bs=64k count=1 oflag=direct 2>/dev/null"
        ))?;
        assemble(machine, "/dev/mapper/logged")?;
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let (now, all) = (Answered::default(), Vec::new());
        let mut story = Story { machine, csi: &csi, now, all };
        story.whole()?;
        let all = story.all;
        // The log is written to its end when its device goes.
        machine.driver.stop()?;
        machine
            .sh(&format!("vgchange -qq -an {VG}; dmsetup remove cached; dmsetup remove logged"))?;
        for (n, answered) in all.iter().enumerate() {
            let what = format!("{} ({} of {})", answered.what, n + 1, all.len());
            machine.node.power_cut()?;
            let (log, disk) = (machine.node.disk_file(2), machine.node.disk_file(1));
            let writes =
                replay(&File::open(&log)?, &disk, n + 1).context(log.display().to_string())?;
            machine.node.boot()?;
            machine.driver.forget();
            assemble(machine, DISK)?;
            machine.start(BACKEND)?;
            answered.is_there(machine).with_context(|| format!("{what}, after {writes} writes"))?;
        }
        println!("{} answers, each with a power cut right after it", all.len());
        Ok(())
    })
}

/// The disk that the driver has.
fn assemble(machine: &Machine, on: &str) -> Result<()> {
    let table = format!("0 $(($(blockdev --getsz {DISK})-{BEGIN})) linear {on} {BEGIN}");
    machine.sh(&format!("dmsetup create cached --table \"{table}\"")).map(drop)
}

impl Answered {
    fn is_there(&self, machine: &Machine) -> Result<()> {
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let volumes: BTreeMap<_, _> = csi
            .volumes()?
            .into_iter()
            .map(|v| (v.volume_id, u64::try_from(v.capacity_bytes).unwrap()))
            .collect();
        ensure!(volumes == self.volumes, "{volumes:#?}, not {:#?}", self.volumes);
        let snapshots = csi.snapshots()?.into_iter().map(|s| s.snapshot_id).collect();
        ensure!(self.snapshots == snapshots, "{snapshots:?}, not {:?}", self.snapshots);
        for (v, written) in self.files.values() {
            let v = Vol { csi: csi.clone(), ..v.clone() };
            v.attach()?;
            let now = sum(machine, &v.file("data"), 4)?;
            ensure!(now == *written, "{}: other data", v.lv());
            v.detach()?;
        }
        machine.sh(&format!("vgck {VG}")).map(drop)
    }
}

/// Makes a disk what it would be if all had gone that was in its cache when this mark was set: how many writes it saw.
fn replay(log: &File, disk: &std::path::Path, mark: usize) -> Result<usize> {
    let number = |at: u64| -> Result<u64> {
        let mut bytes = [0; 8];
        log.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_le_bytes(bytes))
    };
    ensure!(number(0)? == MAGIC && number(8)? == 1, "it is no log of writes");
    let (entries, sector) = (number(16)?, number(24)? & u64::from(u32::MAX));
    let disk = File::create(disk)?;
    disk.set_len(DISK_SIZE)?;
    let (mut at, mut writes) = (sector, 0);
    for _ in 0..entries {
        let [to, sectors, flags, len] =
            [number(at)?, number(at + 8)?, number(at + 16)?, number(at + 24)?];
        at += sector;
        if flags & MARK != 0 {
            let mut text = vec![0; usize::try_from(len)?];
            log.read_exact_at(&mut text, at - sector + 32)?;
            if String::from_utf8(text)?.trim_end_matches('\0') == mark.to_string() {
                return Ok(writes);
            }
        } else if flags & DISCARD == 0 {
            let mut data = vec![0; usize::try_from(sectors * sector)?];
            log.read_exact_at(&mut data, at)?;
            disk.write_all_at(&data, to * sector)?;
            at += sectors * sector;
            writes += 1;
        }
    }
    anyhow::bail!("mark {mark} is not among {entries} entries")
}
