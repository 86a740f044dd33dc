//! `xfs_admin` is killed at its writes while a restored XFS gets its own UUID, or the power goes before all of
//! them are on the disk: the repeated call gives the volume, with all that its source held.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Csi, Machine, Source};
use cinderblock_lab::long::{self, Random, figure};

use crate::support::{
    GIB, MIB, VG, Vol, expect_nothing_left, filesystem, fill, pooled, power_cut, started, sum,
};

/// Stands where `xfs_db` does, which does the work of `xfs_admin`. A file says at which of its writes it is
/// killed.
const WRAPPER: &str = r#"#!/bin/sh
real=/run/weather/xfs_db
writes='strace -f -qq -e trace=pwrite64,fallocate'
case " $* " in *" -x "*) ;; *) exec $real "$@" ;; esac
read -r at 2>/dev/null </run/weather/at || exec $writes -o /run/weather/writes $real "$@"
rm /run/weather/at
exec $writes -o /dev/null -e inject=pwrite64,fallocate:signal=KILL:when=$at $real "$@"
"#;
/// Stands where `xfs_repair` does, in the same way.
const REPAIR: &str = r#"#!/bin/sh
real=/run/weather/xfs_repair
read -r at 2>/dev/null </run/weather/repair-at || exec $real "$@"
rm /run/weather/repair-at
exec strace -f -qq -o /dev/null -e trace=pwrite64 -e inject=pwrite64:signal=KILL:when=$at $real "$@"
"#;
/// The writes of `xfs_repair` that it is killed at: of the emptied log, and of what it makes anew.
const REPAIRS: [usize; 4] = [1, 2, 4, 8];
/// Writes that a short run kills it at, beside the first one and two superblocks.
const POINTS: usize = 2;
const NOTICED: Duration = Duration::from_secs(40);

fn wrap(machine: &Machine) -> Result<()> {
    for (program, wrapper) in [("xfs_db", WRAPPER), ("xfs_repair", REPAIR)] {
        machine.sh(&format!(
            "mkdir -p /run/weather
             cp /usr/sbin/{program} /run/weather/{program}
             cat >/run/weather/{program}.wrapper <<'END'\n{wrapper}END
             chmod +x /run/weather/{program}.wrapper
             mount --bind /run/weather/{program}.wrapper /usr/sbin/{program}"
        ))?;
    }
    Ok(())
}

/// What there is to restore.
struct Origin<'a> {
    machine: &'a Machine,
    csi: Csi,
    snapshot: String,
    written: String,
}

impl Origin<'_> {
    /// A restored volume that was never staged.
    fn restored(&self) -> Result<Vol> {
        let class = filesystem("thin", "xfs");
        let from = Source::Snapshot(&self.snapshot);
        Ok(Vol::from(&self.csi, class, "pvc-x", 320 * MIB, from)?)
    }

    /// It is staged now, with what its source held, and is sound.
    fn is_whole(&self, v: &Vol) -> Result<()> {
        v.attach()?;
        ensure!(sum(self.machine, &v.file("data"), 8)? == self.written, "other data");
        fill(self.machine, &v.file("more"), 2)?;
        v.detach()?;
        self.machine.sh(&format!("xfs_repair -n {} 2>&1", v.device()))?;
        Ok(v.delete()?)
    }

    /// Kills `xfs_admin` at that write.
    fn cut_at(&self, at: usize) -> Result<()> {
        let v = self.restored()?;
        self.machine.sh(&format!("echo {at} >/run/weather/at"))?;
        let first = v.stage();
        self.machine.sh("test ! -e /run/weather/at").context("it was not run")?;
        match first {
            Err(status) => println!("cut at {at}: {}", status.message()),
            Ok(()) => anyhow::bail!("it was not killed"),
        }
        self.is_whole(&v)
    }

    /// Kills the `xfs_repair` that makes a new log after a cut `xfs_admin`, at that write if it has so many.
    fn repair_cut_at(&self, at: usize) -> Result<bool> {
        let v = self.restored()?;
        self.machine.sh(&format!("echo 2 >/run/weather/at; echo {at} >/run/weather/repair-at"))?;
        ensure!(v.stage().is_err(), "xfs_admin was not killed");
        let second = v.stage();
        self.machine.sh("test ! -e /run/weather/repair-at").context("xfs_repair was not run")?;
        if let Err(status) = &second {
            println!("xfs_repair cut at {at}: {}", status.message());
        }
        self.is_whole(&v)?;
        Ok(second.is_err())
    }

    /// The power goes after the superblocks were written, and before the log was.
    fn log_is_lost(&self) -> Result<()> {
        let v = self.restored()?;
        let device = v.device();
        self.machine.sh("echo 1 >/run/weather/at")?;
        ensure!(v.stage().is_err(), "it was not killed");
        // Where the log begins, and how dd reads and writes its first MiB.
        let log = format!(
            "set -- $(/run/weather/xfs_db -r -c 'sb 0' -c 'p logstart agblocks agblklog' {device} | sed 's/.*= //')
             log=$((($1 >> $3) * $2 + ($1 & ((1 << $3) - 1))))
             copy='bs=4k count=256 conv=notrunc'"
        );
        self.machine.sh(&format!(
            "{log}; dd if={device} of=/run/weather/log skip=$log iflag=direct $copy 2>/dev/null"
        ))?;
        v.stage()?;
        v.unstage()?;
        self.machine.sh(&format!(
            "{log}; dd if=/run/weather/log of={device} seek=$log oflag=direct $copy 2>/dev/null
             lvchange -qq --addtag cb.restored {VG}/{}",
            v.lv()
        ))?;
        // A tag that somebody else sets is noticed within ten seconds.
        let start = Instant::now();
        while let Err(refused) = v.stage() {
            ensure!(start.elapsed() < NOTICED, "{refused:?}");
            sleep(Duration::from_millis(500));
        }
        self.is_whole(&v)
    }
}

#[test]
fn a_restored_xfs_that_was_cut_while_it_got_its_uuid_is_whole() -> Result<()> {
    started("cut-xfs", &[3 * GIB], &pooled(1, "90%"), |machine| {
        let csi = machine.driver.csi()?;
        let source = Vol::create(&csi, filesystem("thin", "xfs"), "pvc-1", 320 * MIB)?;
        source.attach()?;
        let written = fill(machine, &source.file("data"), 8)?;
        let snapshot = csi.snapshot("snapshot-1", &source.id)?.snapshot_id;
        source.detach()?;
        wrap(machine)?;
        let origin = Origin { machine, csi, snapshot, written };
        let v = origin.restored()?;
        v.stage()?;
        v.unstage()?;
        origin.is_whole(&v)?;
        let writes: usize = machine.sh("grep -c pwrite64 /run/weather/writes")?.trim().parse()?;
        println!("xfs_admin has {writes} writes");
        let mut random = Random::seeded("cut-xfs");
        // The last ones are the superblocks.
        let last = writes.saturating_sub(2);
        let mut points: Vec<usize> = (2..last).collect();
        while !long::is_long() && points.len() > POINTS {
            let at = random.below(points.len().try_into()?);
            points.remove(at.try_into()?);
        }
        let points: Vec<usize> = [1].into_iter().chain(points).chain([last, writes]).collect();
        for at in &points {
            origin.cut_at(*at).with_context(|| format!("cut at write {at} of {writes}"))?;
        }
        figure(&format!("restored XFS cut at a write: {}", points.len()));
        let mut repairs = 0;
        for at in REPAIRS {
            let cut =
                origin.repair_cut_at(at).with_context(|| format!("xfs_repair cut at {at}"))?;
            repairs += usize::from(cut);
        }
        figure(&format!("xfs_repair cut at a write: {repairs}"));
        ensure!(repairs >= 2, "only {repairs} of {} were killed", REPAIRS.len());
        origin.log_is_lost().context("its log was not on the disk")?;
        origin.csi.delete_snapshot(&origin.snapshot)?;
        source.delete()?;
        power_cut(machine)?;
        expect_nothing_left(machine)
    })
}
