//! A thin pool filled to the brim: whoever writes is told so, and nothing that was synced is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use cinderblock_lab::driver::Machine;
use tonic::Code;

use crate::support::{GIB, MIB, THIN, Vol, code, expect_nothing_left, fill, pooled, started, sum};

/// For what may not hang.
const SOON: Duration = Duration::from_mins(1);

#[test]
fn a_full_pool_gives_errors_and_keeps_what_was_synced() -> Result<()> {
    started("full", &[GIB], &pooled(1, "30%"), |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THIN, "pvc-1", GIB)?;
        let beside = Vol::create(&csi, THIN, "pvc-2", 256 * MIB)?;
        let ballast = Vol::create(&csi, THIN, "pvc-4", 256 * MIB)?;
        for it in [&v, &beside, &ballast] {
            it.attach()?;
        }
        fill(machine, &ballast.file("data"), 64)?;
        let written = fill(machine, &v.file("data"), 64)?;
        let write = format!("dd if=/dev/urandom of={} bs=1M count=600 conv=fsync", v.file("much"));
        let writer = machine.node.exec(["sh", "-c", &write]).timeout(SOON).run()?;
        let complaint = writer.stderr_text();
        let told = ["Input/output error", "No space left", "Read-only file system"];
        ensure!(!writer.status.success(), "600 MiB went into a pool of 300");
        ensure!(told.iter().any(|it| complaint.contains(it)), "{complaint}");
        ensure!(sum(machine, &v.file("data"), 64)? == written, "what was synced is lost");
        // Asked of the kernel at once, not at the next look.
        let refused = csi.create(&THIN.request("pvc-3", 64 * MIB)).unwrap_err();
        ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
        ensure!(code(csi.expand(&beside.id, 512 * MIB))? == Code::OutOfRange, "expand");
        let start = std::time::Instant::now();
        while csi.capacity(&THIN)? > 0 {
            ensure!(start.elapsed() < Duration::from_secs(14), "the capacity does not tell");
            std::thread::sleep(Duration::from_millis(500));
        }
        ballast.detach()?;
        ballast.delete()?;
        v.detach()?;
        staged_again(machine, &v)?;
        ensure!(sum(machine, &v.file("data"), 64)? == written, "lost when staged again");
        v.detach()?;
        v.delete()?;
        // There is room again, also for who was there before.
        let after = fill(machine, &beside.file("data"), 32)?;
        let v = Vol::create(&csi, THIN, "pvc-3", 64 * MIB)?;
        v.attach()?;
        fill(machine, &v.file("data"), 16)?;
        v.detach()?;
        v.delete()?;
        ensure!(sum(machine, &beside.file("data"), 32)? == after, "the other one's data");
        beside.detach()?;
        beside.delete()?;
        expect_nothing_left(machine)
    })
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
