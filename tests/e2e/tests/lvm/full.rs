//! A thin pool filled to the brim with nothing left to grow into: whoever writes is told so, nothing that was synced is lost, and the pool comes back when it gets room.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, Csi, Machine};
use tonic::Code;

use crate::support::{
    BACKEND, GIB, MIB, THIN, VG, Vol, code, expect_nothing_left, started, wait_for_trouble,
};

/// For what may not hang.
const SOON: Duration = Duration::from_mins(5);
/// The pool is looked at every two seconds; a loaded host gets a little more.
const SEEN: Duration = Duration::from_secs(30);

/// Writes files of 8 MiB, each synced and then noted with its checksum, until one fails.
const WRITER: &str = r"
    for i in $(seq 1 90); do
        dd if=/dev/urandom of=$1/f$i bs=1M count=8 conv=fsync || exit 1
        (cd $1; sha256sum f$i) >>/run/synced
        sleep 0.4
    done";

#[test]
fn a_full_pool_gives_errors_and_keeps_what_was_synced() -> Result<()> {
    // The pool can double once, and half of that is not written before it has.
    let more =
        "reserve: 0%\nthinPool: { size: 40%, overprovision: 20, autogrow: { at: 50%, by: 100% } }";
    let config = driver::backend(BACKEND, VG, 1, more);
    started("full", &[512 * MIB, GIB], &config, |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THIN, "pvc-1", GIB)?;
        let beside = Vol::create(&csi, THIN, "pvc-2", 256 * MIB)?;
        for it in [&v, &beside] {
            it.attach()?;
        }
        let directory = v.pod.display().to_string();
        let writer = machine.node.exec(["sh", "-c", WRITER, "sh", &directory]);
        let writer = writer.timeout(SOON).run()?;
        let complaint = writer.stderr_text();
        let said = complaint.lines().find(|line| line.starts_with("dd:")).unwrap_or_default();
        println!("the writer was told: {said}");
        let told = ["Input/output error", "No space left", "Read-only file system"];
        ensure!(!writer.status.success(), "720 MiB went into a volume group of 450");
        ensure!(told.iter().any(|it| complaint.contains(it)), "{complaint}");
        let synced: u64 = machine.sh("wc -l </run/synced")?.parse()?;
        println!("{} MiB were synced", synced * 8);
        ensure!(synced * 8 > 300, "only {synced} files: the pool has not grown before");
        let check = format!("cd {directory} && sha256sum --quiet -c /run/synced");
        machine.sh(&check).context("what was synced, while the pool is full")?;
        refused_and_told(machine, &csi, &v, &beside)?;

        // Room for it, and nothing else: the pool takes it by itself.
        machine.sh(&format!("pvcreate -qq /dev/ubdd; vgextend -qq {VG} /dev/ubdd"))?;
        let well = format!("cinderblock_thin_pool_healthy{{backend=\"{BACKEND}\"");
        machine.driver.wait_until(Duration::from_mins(1), "well again", || {
            Ok(machine.driver.metric(&well)? == Some(1.0) && csi.capacity(&THIN)? > 0)
        })?;
        for reason in ["ThinPoolFull", "ThinPoolAlmostFull", "ThinPoolCannotGrow"] {
            wait_for_trouble(machine, reason, false)?;
        }
        v.detach()?;
        staged_again(machine, &v)?;
        machine.sh(&check).context("what was synced, mounted again")?;
        machine.sh(&format!("dd if=/dev/urandom of={directory}/after bs=1M count=8 conv=fsync"))?;
        for it in [v, beside] {
            it.detach()?;
            it.delete()?;
        }
        expect_nothing_left(machine)
    })
}

/// Nothing new is begun in a full pool, and it does not look well.
fn refused_and_told(machine: &Machine, csi: &Csi, v: &Vol, beside: &Vol) -> Result<()> {
    let created = csi.create(&THIN.request("pvc-3", 64 * MIB)).unwrap_err();
    let snapped = csi.snapshot("snapshot-1", &v.id).unwrap_err();
    for refused in [created, snapped] {
        ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
        let advice = "it cannot grow: add a disk to the volume group";
        ensure!(refused.message().contains(advice), "{refused:?}");
    }
    ensure!(code(csi.expand(&beside.id, 512 * MIB))? == Code::OutOfRange, "expand");
    machine.driver.wait_until(SEEN, "telling that the pool is full", || {
        let metric = |name: &str| {
            machine.driver.metric(&format!("cinderblock_{name}{{backend=\"{BACKEND}\""))
        };
        Ok(csi.capacity(&THIN)? == 0
            && metric("thin_pool_growth_blocked")? == Some(1.0)
            && metric("thin_pool_healthy")? == Some(0.0)
            && metric("backend_ready")? == Some(0.0))
    })?;
    for reason in ["ThinPoolFull", "ThinPoolAlmostFull", "ThinPoolCannotGrow"] {
        wait_for_trouble(machine, reason, true)?;
    }
    for told in ["the thin pool cannot grow", "the thin pool takes no writes"] {
        let times = || machine.driver.log_text().matches(told).count();
        // A refused call has shown it to the metrics; the log has it with the next look.
        machine.driver.wait_until(SEEN, "saying so in its log", || Ok(times() > 0))?;
        ensure!(times() == 1, "{told:?} stands {} times in the log", times());
    }
    Ok(())
}

/// What the kernel could not write it may leave to a person: then the driver says so, and leaves it as it is.
fn staged_again(machine: &Machine, v: &Vol) -> Result<()> {
    let Err(refused) = v.attach() else { return Ok(()) };
    println!("for a person: {refused:?}");
    let advice = format!("e2fsck {}", v.device());
    ensure!(refused.code() == Code::Internal && refused.message().contains(&advice), "{refused:?}");
    // It ends with 1 when it has mended something.
    machine.sh(&format!("e2fsck -y {} >/dev/null 2>&1 || test $? = 1", v.device()))?;
    Ok(v.attach()?)
}
