//! A volume group of thousands of LVs: what it costs to look and to change, against an empty one of the same machine in the same run.

use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{LvmCount, Machine};
use cinderblock_lab::long::figure;
use tonic::Status;

use crate::support::{BACKEND, GIB, MIB, THICK, THIN, VG, Vol, pooled, started};

/// LVs that are there beside those of the test: of one extent each, and snapshots of one of them in the pool.
const VOLUMES: usize = 2_000;
const SNAPSHOTS: usize = 500;

/// Times of one life, and the LVM processes of all of it.
#[derive(Debug, Default)]
struct Times {
    rows: Vec<(&'static str, Duration)>,
    processes: usize,
}

impl Times {
    fn take<T>(
        &mut self,
        count: &LvmCount,
        what: &'static str,
        call: impl FnOnce() -> Result<T, Status>,
    ) -> Result<T> {
        let start = Instant::now();
        let ((done, took), processes) = count.lvm_during(|| {
            let done = call();
            (done, start.elapsed())
        })?;
        self.rows.push((what, took));
        self.processes += processes;
        done.with_context(|| what)
    }
}

fn life(machine: &Machine, name: &str) -> Result<Times> {
    let csi = machine.driver.csi()?;
    let count = LvmCount::start(&machine.node)?;
    let mut times = Times::default();
    let v = times.take(&count, "create thick", || Vol::create(&csi, THICK, name, 64 * MIB))?;
    times.take(&count, "create again", || Vol::create(&csi, THICK, name, 64 * MIB))?;
    times.take(&count, "stage first", || v.stage())?;
    times.take(&count, "publish", || v.publish(&v.pod))?;
    times.take(&count, "stats", || csi.stats(&v.id, &v.pod))?;
    times.take(&count, "capacity", || csi.capacity(&THICK))?;
    times.take(&count, "list", || csi.volumes())?;
    times.take(&count, "expand", || csi.expand(&v.id, 96 * MIB))?;
    v.detach()?;
    times.take(&count, "stage again", || v.stage())?;
    v.unstage()?;
    times.take(&count, "delete", || v.delete())?;
    let thin = format!("{name}-thin");
    let v = times.take(&count, "create thin", || Vol::create(&csi, THIN, &thin, 64 * MIB))?;
    let taken = times.take(&count, "snapshot", || csi.snapshot(name, &v.id))?;
    times.take(&count, "delete snapshot", || csi.delete_snapshot(&taken.snapshot_id))?;
    v.delete()?;
    Ok(times)
}

/// An LV's identifier that nothing else has.
fn uuid(n: usize) -> String {
    let text = format!("{n:0>32}");
    let cuts = [0, 6, 10, 14, 18, 22, 26, 32];
    let parts: Vec<_> = cuts.windows(2).filter_map(|cut| text.get(cut[0]..cut[1])).collect();
    parts.join("-")
}

fn lv(name: &str, n: usize, tags: &str, segment: &str) -> String {
    format!(
        "\n\t\t{name} {{\n\t\t\tid = \"{}\"\n\t\t\tstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\n\t\t\tflags = []\n\
         \t\t\ttags = [\"cinderblock=1\", {tags}]\n\t\t\tcreation_time = 1700000000\n\t\t\tcreation_host = \"node1\"\n\
         \t\t\tsegment_count = 1\n\n\t\t\tsegment1 {{\n\t\t\t\tstart_extent = 0\n\t\t\t\textent_count = 1\n{segment}\t\t\t}}\n\t\t}}\n",
        uuid(n)
    )
}

/// Thousands of LVs, as LVM's own text says them: made one by one they would take an hour.
fn crowd(from: usize) -> String {
    let mut text = String::new();
    for n in 0..VOLUMES {
        let segment = format!(
            "\t\t\t\ttype = \"striped\"\n\t\t\t\tstripe_count = 1\n\t\t\t\tstripes = [\n\t\t\t\t\t\"pv0\", {}\n\t\t\t\t]\n",
            from + n
        );
        let tags = "\"cb.volume\", \"cb.use=ext4\"";
        text.push_str(&lv(&format!("pvc-crowd-{n}"), n, tags, &segment));
    }
    for n in 0..SNAPSHOTS {
        let segment = format!(
            "\t\t\t\ttype = \"thin\"\n\t\t\t\tthin_pool = \"pool0\"\n\t\t\t\ttransaction_id = 0\n\t\t\t\tdevice_id = {}\n",
            10_000 + n
        );
        let tags = "\"cb.snapshot\", \"cb.src=v:pvc-crowd-0\"";
        text.push_str(&lv(&format!("snap-crowd-{n}"), VOLUMES + n, tags, &segment));
    }
    text
}

/// Puts the crowd into the VG, while the driver is away.
fn fill_up(machine: &Machine) -> Result<()> {
    machine.driver.stop()?;
    let file = machine.node.lab_dir().join("vg.txt");
    let path = file.display();
    machine.sh(&format!("vgcfgbackup -qq -f {path} {VG}"))?;
    let text = fs::read_to_string(&file)?;
    let free = machine.sh("pvs --noheadings -o pv_pe_alloc_count /dev/ubdc")?;
    let at = text.find("\tlogical_volumes {\n").context("no LVs in the backup")?;
    let at = at + "\tlogical_volumes {\n".len();
    let mut new = String::with_capacity(text.len());
    new.write_str(&text[..at])?;
    // Behind what the pool and its spare have; nothing else is there.
    new.write_str(&crowd(free.trim().parse()?))?;
    new.write_str(&text[at..])?;
    fs::write(&file, new)?;
    machine.sh(&format!("vgcfgrestore -qq --yes --force -f {path} {VG}"))?;
    let start = Instant::now();
    machine.start(BACKEND)?;
    figure(&format!(
        "start with {} LVs: {:.1} s",
        VOLUMES + SNAPSHOTS,
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

#[test]
fn scale_a_volume_group_of_thousands_costs_no_process_more() -> Result<()> {
    started("scale", &[16 * GIB], &pooled(1, "1Gi"), |machine| {
        let alone = life(machine, "pvc-alone")?;
        fill_up(machine)?;
        let csi = machine.driver.csi()?;
        ensure!(csi.volumes()?.len() == VOLUMES, "{} volumes", csi.volumes()?.len());
        ensure!(csi.snapshots()?.len() == SNAPSHOTS, "{} snapshots", csi.snapshots()?.len());
        let crowded = life(machine, "pvc-crowded")?;
        for ((what, before), (_, after)) in alone.rows.iter().zip(&crowded.rows) {
            let ratio = after.as_secs_f64() / before.as_secs_f64();
            let (before, after) = (before.as_millis(), after.as_millis());
            figure(&format!("{what}: {before} ms alone, {after} ms in the crowd ({ratio:.1})"));
        }
        ensure!(
            alone.processes == crowded.processes,
            "{} LVM processes, {} in the crowd",
            alone.processes,
            crowded.processes
        );
        let memory =
            machine.sh("grep VmRSS /proc/$(pgrep -o cinderblock)/status | tr -s ' \\t' ' '")?;
        figure(&format!("the driver's memory with {} LVs: {memory}", VOLUMES + SNAPSHOTS));
        Ok(())
    })
}
