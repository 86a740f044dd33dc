//! LVM is killed right before its calls that change device-mapper, at random ones in a short run and at each of them in a long one: the
//! repeated call gets what was asked for, who uses a volume waits for nothing, and nothing is left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, Class, Csi, Machine, Source};
use cinderblock_lab::long::{self, Random, figure};
use tonic::Status;

use super::broken_lvm::{spoil, wrap};
use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, VG, Vol, expect_nothing_left, filesystem, fill, pooled,
    power_cut, repeated, started_on_debian, sum,
};

/// Points that a short run cuts a command at, if it cuts that at all: the first one, and one of two others.
const POINTS: usize = 1;
/// What changes device-mapper.
const CALLS: &str =
    "DM_DEV_CREATE|DM_DEV_REMOVE|DM_DEV_RENAME|DM_DEV_SUSPEND|DM_TABLE_LOAD|DM_TARGET_MSG";
const RAID: Class = Class { more: &[("layout", "raid1")], ..filesystem("thick", "ext4") };

struct Cutter<'a> {
    machine: &'a Machine,
    random: Random,
    /// Volumes in use all the time.
    live: &'a [&'a Vol],
    cuts: usize,
}

impl Cutter<'_> {
    /// The numbers of those calls among all ioctls of the command that was traced last.
    fn points(&mut self) -> Result<Vec<usize>> {
        let trace = format!("grep -nE '{CALLS}' /run/weather/trace | cut -d: -f1");
        let found = self.machine.sh(&trace)?;
        let mut points: Vec<usize> =
            found.lines().map(|line| line.trim().parse()).collect::<Result<_, _>>()?;
        ensure!(!points.is_empty(), "it changes nothing at device-mapper");
        while !long::is_long() && points.len() > POINTS {
            let at = self.random.below(points.len().try_into()?);
            points.remove(at.try_into()?);
        }
        Ok(points)
    }

    /// Nobody waits, and no table waits for its moment.
    fn all_go_on(&self) -> Result<()> {
        for v in self.live {
            let beat = v.file("beat");
            self.machine.sh(&format!(
                "timeout 60 dd if=/dev/zero of={beat} bs=4k count=1 conv=fsync 2>/dev/null"
            ))?;
        }
        // The agent may be at it by itself, as it is when its own growth was cut.
        let script = "grep -l 1 /sys/block/dm-*/dm/suspended || true
                      dmsetup table --inactive | grep -v ': $' || true";
        let mut left = String::new();
        let gone = self.machine.driver.wait_until(Duration::from_mins(1), "done", || {
            left = self.machine.sh(script)?;
            Ok(left.is_empty())
        });
        gone.with_context(|| format!("suspended, or loaded and not in force: {left}"))
    }

    /// Traces the LVM command that a call runs, and cuts it at its points. `before` makes what the
    /// call needs, and `after` takes away what it made.
    fn cut<B, T>(
        &mut self,
        what: &str,
        before: impl Fn() -> Result<B, Status>,
        call: impl Fn(&B) -> Result<T, Status>,
        after: impl Fn(B, T) -> Result<(), Status>,
    ) -> Result<()> {
        if !long::is_long() && self.cuts > 0 && self.random.below(2) == 0 {
            return Ok(());
        }
        let command = what.split(' ').next().unwrap_or_default();
        let there = before()?;
        spoil(self.machine, command, "trace")?;
        let done = call(&there).with_context(|| format!("{what}, traced"))?;
        let points = self.points().with_context(|| what.to_owned())?;
        after(there, done)?;
        for at in points {
            self.cut_at(command, at, (&before, &call, &after))
                .with_context(|| format!("{what}, cut at ioctl {at}"))?;
        }
        Ok(())
    }

    fn cut_at<B, T>(
        &mut self,
        command: &str,
        at: usize,
        (before, call, after): (
            impl Fn() -> Result<B, Status>,
            impl Fn(&B) -> Result<T, Status>,
            impl Fn(B, T) -> Result<(), Status>,
        ),
    ) -> Result<()> {
        let there = before()?;
        spoil(self.machine, command, &format!("cut-{at}"))?;
        let first = call(&there);
        if let Err(status) = &first {
            println!("{command} cut at {at}: {:?}: {}", status.code(), status.message());
        }
        self.machine.sh("test ! -e /run/weather/next").context("it was not run")?;
        self.cuts += 1;
        self.all_go_on()?;
        let done = match first {
            Ok(done) => done,
            Err(_) => repeated(|| call(&there)).context("repeated")?,
        };
        self.all_go_on().context("after the repeated call")?;
        after(there, done).context("taking it away")
    }

    fn births(&mut self, csi: &Csi, thin: &Vol, thick: &Vol) -> Result<()> {
        let delete = |(): (), v: Vol| v.delete();
        for (what, class) in
            [("lvcreate thin", THIN), ("lvcreate thick", THICK), ("lvcreate raid1", RAID)]
        {
            self.cut(what, || Ok(()), |()| Vol::create(csi, class, "pvc-x", 64 * MIB), delete)?;
        }
        let clone = |(): &()| Vol::from(csi, THIN, "pvc-x", 256 * MIB, Source::Volume(&thin.id));
        self.cut("lvcreate clone", || Ok(()), clone, delete)?;
        for (what, of) in [("lvcreate thin-snapshot", thin), ("lvcreate thick-snapshot", thick)] {
            let take = |(): &()| csi.snapshot("snapshot-x", &of.id);
            let delete =
                |(): (), taken: driver::pb::Snapshot| csi.delete_snapshot(&taken.snapshot_id);
            self.cut(what, || Ok(()), take, delete)?;
        }
        Ok(())
    }

    fn ends(&mut self, csi: &Csi, thin: &Vol, thick: &Vol) -> Result<()> {
        for (what, class) in
            [("lvremove thin", THIN), ("lvremove thick", THICK), ("lvremove raid1", RAID)]
        {
            let make = || Vol::create(csi, class, "pvc-x", 64 * MIB);
            self.cut(what, make, Vol::delete, |_, ()| Ok(()))?;
        }
        for (what, of) in [("lvremove thin-snapshot", thin), ("lvremove thick-snapshot", thick)] {
            let take = || Ok(csi.snapshot("snapshot-x", &of.id)?.snapshot_id);
            self.cut(what, take, |id| csi.delete_snapshot(id), |_, ()| Ok(()))?;
        }
        Ok(())
    }

    fn growth(&mut self, csi: &Csi, live: &[&Vol]) -> Result<()> {
        for v in live {
            let size = std::cell::Cell::new(256 * MIB);
            let larger = || {
                size.set(size.get() + 8 * MIB);
                Ok(())
            };
            let grow = |(): &()| csi.expand(&v.id, size.get());
            let on_node = |(), _| csi.expand_on_node(&v.id, &v.pod).map(drop);
            self.cut("lvextend", larger, grow, on_node)?;
        }
        Ok(())
    }

    /// The agent itself has a pool grown, and nobody repeats a call. `filler` is in that pool.
    fn pool_growth(&mut self, filler: &Vol) -> Result<()> {
        let machine = self.machine;
        let internal = |e: anyhow::Error| Status::internal(format!("{e:#}"));
        let size = format!("lvs --noheadings -o lv_size {VG}/pool0 | tr -d ' '");
        let fill = |before: &String| {
            machine.sh(&format!(
                "for i in $(seq 20); do
                     dd if=/dev/zero bs=1M count=16 oflag=append conv=notrunc,fsync of={} 2>/dev/null
                     sleep 2.5
                     test -e /run/weather/next || break
                 done
                 until test \"$({size})\" != {before}; do sleep 0.5; done
                 while pgrep -x lvm >/dev/null || grep -q 1 /sys/block/dm-*/dm/suspended; do sleep 0.2; done",
                filler.file("filling")
            ))
        };
        let call = |before: &String| fill(before).map_err(internal);
        // One growth may follow the other at once.
        let settled = format!("while pgrep -x lvm >/dev/null; do sleep 0.2; done; {size}");
        self.cut("lvextend pool", || machine.sh(&settled).map_err(internal), call, |_, _| Ok(()))
    }

    fn activation(&mut self, csi: &Csi) -> Result<()> {
        let machine = self.machine;
        for (what, class) in [("lvchange thin", THIN), ("lvchange raid1", RAID)] {
            let inactive = || {
                let v = Vol::create(csi, class, "pvc-x", 64 * MIB)?;
                let off = machine.sh(&format!("lvchange -q -q -an {VG}/{}", v.lv()));
                off.map_err(|e| Status::internal(format!("{e:#}")))?;
                Ok(v)
            };
            self.cut(what, inactive, Vol::stage, |v, ()| v.unstage().and_then(|()| v.delete()))?;
        }
        Ok(())
    }
}

#[test]
fn lvm_that_is_killed_in_its_midst_holds_nobody_up() -> Result<()> {
    started_on_debian("cut-lvm", &[2 * GIB, 2 * GIB], &pooled(2, "25%"), |machine| {
        let csi = machine.driver.csi()?;
        let thin = Vol::create(&csi, THIN, "pvc-thin", 256 * MIB)?;
        let thick = Vol::create(&csi, THICK, "pvc-thick", 256 * MIB)?;
        let mut written = Vec::new();
        for v in [&thin, &thick] {
            v.attach()?;
            written.push(fill(machine, &v.file("data"), 4)?);
        }
        wrap(machine)?;
        let live = [&thin, &thick];
        let random = Random::seeded("cut-lvm");
        let mut cutter = Cutter { machine, random, live: &live, cuts: 0 };
        cutter.births(&csi, &thin, &thick)?;
        cutter.ends(&csi, &thin, &thick)?;
        cutter.growth(&csi, &live)?;
        cutter.activation(&csi)?;
        figure(&format!("LVM commands cut: {}", cutter.cuts));
        for (v, written) in live.iter().zip(written) {
            ensure!(sum(machine, &v.file("data"), 4)? == written, "{}: other data", v.lv());
            v.detach()?;
            v.delete()?;
        }
        expect_nothing_left(machine)
    })
}

#[test]
fn lvm_that_is_killed_while_a_pool_grows_holds_nobody_up() -> Result<()> {
    let pool =
        "reserve: 0%\nthinPool: { size: 5%, overprovision: 20, autogrow: { at: 50%, by: 64Mi } }";
    let config = driver::backend(BACKEND, VG, 2, pool);
    started_on_debian("cut-growth", &[2 * GIB, 2 * GIB], &config, |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THIN, "pvc-1", 3 * GIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 4)?;
        wrap(machine)?;
        let random = Random::seeded("cut-growth");
        let mut cutter = Cutter { machine, random, live: &[&v], cuts: 0 };
        cutter.pool_growth(&v)?;
        figure(&format!("growths of a pool cut: {}", cutter.cuts));
        ensure!(sum(machine, &v.file("data"), 4)? == written, "other data");
        v.detach()?;
        v.delete()?;
        expect_nothing_left(machine)
    })
}

/// LVM has told the pool of a snapshot, and is killed before it has noted that; then the power goes. LVM
/// refuses every change of that pool from then on.
#[test]
fn a_snapshot_that_only_its_pool_knows_blocks_nothing() -> Result<()> {
    started_on_debian("half-made", &[2 * GIB], &pooled(1, "60%"), half_made)
}

fn half_made(machine: &Machine) -> Result<()> {
    let csi = machine.driver.csi()?;
    let v = Vol::create(&csi, THIN, "pvc-1", 64 * MIB)?;
    machine.driver.stop()?;
    // How many calls there are before the second message differs by a few.
    let cut = format!(
        "make() {{ strace -qq -o /run/trace \"$@\"; }}
         snapshot() {{ echo lvm lvcreate -qqy -s -n snap-half --addtag cinderblock=1 --addtag cb.snapshot {VG}/pvc-1; }}
         make -e trace=ioctl $(snapshot)
         at=$(grep -n DM_TARGET_MSG /run/trace | sed -n 2p | cut -d: -f1)
         for at in $(seq $at $((at + 9))); do
             lvremove -qqy {VG}/snap-half
             make -e trace=ioctl -e inject=ioctl:signal=KILL:when=$at $(snapshot) || true
             lvcreate -qqy -V 64m --thinpool pool0 -n foreign {VG} 2>/run/refused || break
             lvremove -qqy {VG}/foreign
             dmsetup resume {VG}-pvc--1
         done
         cat /run/refused"
    );
    let refused = machine.sh(&cut)?;
    ensure!(refused.contains("File exists"), "LVM mends this by itself: {refused}");
    power_cut(machine)?;
    let beside = Vol::create(&csi, THIN, "pvc-2", 64 * MIB)?;
    for it in [&beside, &v] {
        it.attach()?;
        it.detach()?;
    }
    let taken = csi.snapshot("snapshot-half", &v.id)?;
    csi.delete_snapshot(&taken.snapshot_id)?;
    v.delete()?;
    beside.delete()?;
    expect_nothing_left(machine)
}
