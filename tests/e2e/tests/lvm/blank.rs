//! What somebody wrote is never shown to the next one.

use anyhow::{Result, ensure};
use cinderblock_lab::driver::{Class, Csi, Machine};

use crate::support::{
    GIB, MIB, THICK_BLOCK, THIN_BLOCK, Vol, expect_nothing_left, pooled, started,
};

const SECRET: &str = "tr '\\0' S </dev/zero | head -c";

/// Fills a new volume of that size wholly with a secret, and deletes it.
fn leave_a_secret(machine: &Machine, csi: &Csi, class: Class, bytes: u64) -> Result<()> {
    let v = Vol::create(csi, class, "pvc-secret", bytes)?;
    v.attach()?;
    machine.sh(&format!(
        "{SECRET} {bytes} | dd of={} bs=1M oflag=direct iflag=fullblock 2>/dev/null",
        v.file("")
    ))?;
    v.detach()?;
    v.delete()?;
    Ok(())
}

/// How many MiB of a device have the secret anywhere.
fn secrets(machine: &Machine, device: &str, bytes: u64) -> Result<u64> {
    let size = machine.sh(&format!("blockdev --getsize64 {device}"))?;
    ensure!(size == bytes.to_string(), "{device} has {size} bytes, not {bytes}");
    let count =
        machine.sh(&format!("dd if={device} bs=1M iflag=direct 2>/dev/null | tr -cd S | wc -c"))?;
    Ok(count.parse::<u64>()?.div_ceil(MIB))
}

fn blank(machine: &Machine, v: &Vol, bytes: u64) -> Result<()> {
    let file = v.file("");
    let same = machine.sh(&format!(
        "dd if={file} bs=1M iflag=direct 2>/dev/null | cmp -n {bytes} - /dev/zero && echo same"
    ))?;
    ensure!(same == "same" && secrets(machine, &file, bytes)? == 0, "{}: {same}", v.id);
    Ok(())
}

#[test]
fn old_data_is_never_handed_out() -> Result<()> {
    // One disk, and nearly all of its room in one volume: the same extents again.
    started("zeros", &[GIB], &pooled(1, "30%"), |machine| {
        let csi = machine.driver.csi()?;
        let all = csi.capacity(&THICK_BLOCK)?;
        leave_a_secret(machine, &csi, THICK_BLOCK, all)?;
        let v = Vol::create(&csi, THICK_BLOCK, "pvc-all", all)?;
        let there = secrets(machine, &v.device(), all)?;
        ensure!(
            there > all / MIB - 4,
            "only {there} MiB of the secret are there: this proves nothing"
        );
        v.attach()?;
        blank(machine, &v, all)?;
        v.detach()?;
        v.delete()?;

        leave_a_secret(machine, &csi, THICK_BLOCK, all)?;
        let v = Vol::create(&csi, THICK_BLOCK, "pvc-grows", 64 * MIB)?;
        v.attach()?;
        ensure!(csi.expand(&v.id, all)? == all, "it did not grow");
        csi.expand_on_node(&v.id, &v.pod)?;
        blank(machine, &v, all)?;
        v.detach()?;
        v.delete()?;

        let bytes = 256 * MIB;
        leave_a_secret(machine, &csi, THIN_BLOCK, bytes)?;
        let v = Vol::create(&csi, THIN_BLOCK, "pvc-thin", bytes)?;
        v.attach()?;
        // Less than a block of the pool's, so that the pool fills up the rest.
        machine.sh(&format!(
            "for at in 0 1000 2000 3000; do dd if=/dev/zero of={} bs=4k count=1 seek=$at oflag=direct conv=notrunc 2>/dev/null; done",
            v.file("")
        ))?;
        blank(machine, &v, bytes)?;
        v.detach()?;
        v.delete()?;
        expect_nothing_left(machine)
    })
}
