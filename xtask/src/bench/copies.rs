//! Copies: how fast beside a plain dd on the same devices, and what cloning a sparse volume reads and writes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Access, Class, Source};
use serde_json::{Value, json};

use super::samples::Samples;
use super::standalone::{BACKEND, Bench, FOLDER, MIB, VG};

const THICK: Class =
    Class { backend: BACKEND, provisioning: "thick", access: Access::Block, more: &[] };
const THIN: Class =
    Class { backend: BACKEND, provisioning: "thin", access: Access::Block, more: &[] };
/// Large enough that LVM's own time is little of it.
const SIZE: u64 = 512 * MIB;
/// What is written to a sparse volume.
const DATA: u64 = 16 * MIB;
/// How often.
const ROUNDS: usize = 3;

/// Measures, and tells: throughput as a share of dd's, and bytes for a sparse source.
pub(super) fn measure(bench: &mut Bench) -> Result<Value> {
    let (mut ours, mut dds) = (Samples::default(), Samples::default());
    let mut sparse = Value::Null;
    for round in 0..ROUNDS {
        println!("bench: round {} of {ROUNDS}, copies", round + 1);
        let (copied, dd) = dense(bench, round)?;
        ours.add(copied);
        dds.add(dd);
        sparse = self::sparse(bench, round)?;
    }
    let mib = f64::from(u32::try_from(SIZE / MIB)?);
    let rate = |samples: &Samples| mib / samples.median() * 1000.0;
    Ok(json!({
        "mib_per_second": rate(&ours).round(),
        "dd_mib_per_second": rate(&dds).round(),
        "share_of_dd": (dds.median() / ours.median() * 100.0).round() / 100.0,
        "sparse_clone": sparse,
    }))
}

/// A full volume, restored from its snapshot; and the same devices with dd.
fn dense(bench: &mut Bench, round: usize) -> Result<(std::time::Duration, std::time::Duration)> {
    let name = format!("dense{round}");
    let source = bench.csi.create(&THICK.request(&name, SIZE))?.volume_id;
    let staging = Path::new(FOLDER).join(&name);
    bench.csi.stage(&source, Access::Block, &staging)?;
    let fill =
        format!("dd if=/dev/urandom of=/dev/{VG}/{name} bs=1M oflag=direct status=none || true");
    bench.machine.sh(&fill)?;
    let snapshot = bench.cost("snapshot_thick", |csi| {
        Ok(csi.snapshot(&format!("snapshot-{name}"), &source)?.snapshot_id)
    })?;
    let mut request = THICK.request(&format!("copy-{name}"), SIZE);
    request.volume_content_source = Some(Source::Snapshot(&snapshot).content_source());
    let copy = bench.cost("restore_thick", |csi| Ok(csi.create(&request)?))?.volume_id;
    let copied = logged(bench)?;
    let by_hand = format!(
        "start=$(date +%s%N); dd if=/dev/{VG}/snap-{name} of=/dev/{VG}/copy-{name} bs=1M iflag=direct oflag=direct conv=fsync status=none; \
         echo $(( $(date +%s%N) - start ))"
    );
    let dd = nanoseconds(&bench.machine.sh(&by_hand)?)?;
    bench.cost("delete_snapshot_thick", |csi| Ok(csi.delete_snapshot(&snapshot)?))?;
    bench.csi.unstage(&source, &staging)?;
    bench.csi.delete(&copy)?;
    bench.csi.delete(&source)?;
    Ok((copied, dd))
}

/// How long the last copy took, without LVM: the driver's log says it.
fn logged(bench: &Bench) -> Result<std::time::Duration> {
    let log = bench.machine.driver.log_text();
    let line = log.lines().rev().find(|line| line.contains("INFO copied a volume"));
    let line = line.context("the log tells of no copy")?;
    let took = line.rsplit("elapsed=").next().unwrap_or_default();
    let number = took.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: f64 = number.parse().with_context(|| line.to_owned())?;
    let seconds = if took.ends_with("ms") { number / 1000.0 } else { number };
    Ok(std::time::Duration::from_secs_f64(seconds))
}

fn nanoseconds(text: &str) -> Result<std::time::Duration> {
    Ok(std::time::Duration::from_nanos(text.trim().parse().with_context(|| text.to_owned())?))
}

/// A thin volume with little in it, cloned to a thick one.
fn sparse(bench: &mut Bench, round: usize) -> Result<Value> {
    let name = format!("sparse{round}");
    let source = bench.csi.create(&THIN.request(&name, SIZE))?.volume_id;
    let staging = Path::new(FOLDER).join(&name);
    bench.csi.stage(&source, Access::Block, &staging)?;
    let mib = DATA / MIB;
    bench.machine.sh(&format!(
        "dd if=/dev/urandom of=/dev/{VG}/{name} bs=1M count={mib} oflag=direct conv=fsync status=none"
    ))?;
    bench.csi.unstage(&source, &staging)?;
    let before = disks(bench)?;
    let mut request = THICK.request(&format!("copy-{name}"), SIZE);
    request.volume_content_source = Some(Source::Volume(&source).content_source());
    let copy = bench.cost("clone_thin_to_thick", |csi| Ok(csi.create(&request)?))?.volume_id;
    let after = disks(bench)?;
    bench.csi.delete(&copy)?;
    bench.csi.delete(&source)?;
    let [read, written] = [after[0] - before[0], after[1] - before[1]];
    ensure!(written >= DATA, "only {written} bytes were written");
    Ok(json!({
        "source_bytes": SIZE, "data_bytes": DATA,
        "disk_read_bytes": read, "disk_written_bytes": written,
    }))
}

/// Bytes read from and written to the VM's data disks since it booted.
fn disks(bench: &Bench) -> Result<[u64; 2]> {
    let script = "for n in 1 2; do cat /sys/class/block/$(basename $(readlink -f /dev/disk/by-id/lab-disk$n))/stat; done | awk '{ r += $3; w += $7 } END { printf \"%.0f %.0f\", r * 512, w * 512 }'";
    let text = bench.machine.sh(script)?;
    let mut words = text.split_whitespace().map(str::parse::<u64>);
    let mut next = || anyhow::Ok(words.next().context("no statistics of the disks")??);
    Ok([next()?, next()?])
}
