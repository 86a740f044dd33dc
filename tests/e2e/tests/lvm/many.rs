//! Many volumes asked for at the same moment, and all of them in use on one node: each costs what one costs, nothing is asked of LVM to look, and a power cut changes none.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Csi, LvmCount, Machine};
use cinderblock_lab::long::{figure, is_long};
use tonic::Status;

use crate::support::{GIB, MIB, THIN, Vol, expect_nothing_left, pooled, power_cut, started};

/// Asked for at once, and mounted together: in a long run, and in every run.
const MANY: usize = 200;
const SOME: usize = 50;
/// Kubelets stage so many at a time, and more.
const HANDS: usize = 8;
/// Who is last in the queue waits for all the others.
const PATIENCE: Duration = Duration::from_mins(8);

/// Does something with each, so many at a time; how long each took, in the order of `volumes`.
fn each(
    volumes: &[Vol],
    hands: usize,
    call: impl Fn(&Vol) -> Result<(), Status> + Sync,
) -> Result<Vec<Duration>> {
    let part = volumes.len().div_ceil(hands);
    let call = &call;
    let some = |part: &[Vol]| -> Result<Vec<Duration>> {
        let timed = |v: &Vol| {
            let start = Instant::now();
            call(v).map(|()| start.elapsed()).with_context(|| v.id.clone())
        };
        part.iter().map(timed).collect()
    };
    let some = &some;
    let done = thread::scope(|scope| {
        let threads: Vec<_> =
            volumes.chunks(part).map(|part| scope.spawn(move || some(part))).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect::<Result<Vec<_>>>()
    })?;
    Ok(done.into_iter().flatten().collect())
}

/// Tells the total, and how the last tenth compares with the first.
fn tell(what: &str, start: Instant, times: &[Duration]) {
    let tenth = (times.len() / 10).max(1);
    let sum = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64();
    let ratio = sum(&times[times.len() - tenth..]) / sum(&times[..tenth]);
    let (count, total) = (times.len(), start.elapsed().as_secs_f64());
    figure(&format!(
        "{what}: {count} in {total:.1} s; the last tenth took {ratio:.1} of the first"
    ));
}

/// All at the same moment, each a call of its own.
fn asked_for_at_once(csi: &Csi, count: usize) -> Result<Vec<Vol>> {
    thread::scope(|scope| {
        let names = (0..count).map(|n| format!("pvc-many-{n}"));
        let threads: Vec<_> = names
            .map(|name| scope.spawn(move || Vol::create(csi, THIN, &name, 16 * MIB)))
            .collect();
        let made = threads.into_iter().map(|it| Ok(it.join().unwrap()?));
        made.collect::<Result<Vec<_>>>()
    })
}

fn write(machine: &Machine, volumes: &[Vol]) -> Result<()> {
    let files: Vec<_> = volumes.iter().map(|v| v.file("name")).collect();
    machine.sh(&format!("for it in {}; do echo $it >$it; done; sync", files.join(" "))).map(drop)
}

fn check(machine: &Machine, volumes: &[Vol]) -> Result<()> {
    let files: Vec<_> = volumes.iter().map(|v| v.file("name")).collect();
    let script =
        format!("for it in {}; do [ $(cat $it) = $it ] || echo $it; done", files.join(" "));
    let other = machine.sh(&script)?;
    ensure!(other.is_empty(), "these have not what was written into them: {other}");
    Ok(())
}

#[test]
fn scale_many_volumes_at_once_and_all_in_use() -> Result<()> {
    let count = if is_long() { MANY } else { SOME };
    started("many", &[8 * GIB], &pooled(1, "50%"), |machine| {
        let csi = machine.driver.csi()?.with_timeout(PATIENCE);
        let lvm = LvmCount::start(&machine.node)?;
        let start = Instant::now();
        let (made, processes) = lvm.lvm_during(|| asked_for_at_once(&csi, count))?;
        let mut volumes = made?;
        let took = start.elapsed().as_secs_f64();
        figure(&format!(
            "{count} volumes asked for at once: {took:.1} s, {processes} LVM processes"
        ));
        ensure!(processes == count, "{processes} LVM processes for {count} volumes");
        let start = Instant::now();
        let (staged, processes) = lvm.lvm_during(|| each(&volumes, HANDS, Vol::attach))?;
        tell("formatted and mounted", start, &staged?);
        ensure!(processes == count, "{processes} LVM processes for {count} first uses");
        write(machine, &volumes)?;
        let start = Instant::now();
        let look = |v: &Vol| csi.stats(&v.id, &v.pod).map(drop);
        let (looked, processes) = lvm.lvm_during(|| each(&volumes, 1, look))?;
        tell("looked at", start, &looked?);
        ensure!(processes == 0, "{processes} LVM processes to look");
        power_cut(machine)?;
        let csi = machine.driver.csi()?.with_timeout(PATIENCE);
        for v in &mut volumes {
            v.csi = csi.clone();
        }
        let start = Instant::now();
        tell("mounted after a power cut", start, &each(&volumes, HANDS, Vol::attach)?);
        check(machine, &volumes)?;
        let start = Instant::now();
        tell("unmounted", start, &each(&volumes, HANDS, Vol::detach)?);
        let start = Instant::now();
        tell("deleted", start, &each(&volumes, count, Vol::delete)?);
        expect_nothing_left(machine)
    })
}
