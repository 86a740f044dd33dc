//! Damaged filesystems: mended where that is safe, refused otherwise, and never formatted again.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::Machine;
use tonic::Code;

use crate::support::{GIB, MIB, Vol, expect_nothing_left, filesystem, fill, pooled, started, sum};

/// Refused with these words.
fn refused(v: &Vol, words: &str) -> Result<()> {
    let status = v.stage().err().with_context(|| format!("{} was staged", v.lv()))?;
    println!("{}: {}", v.lv(), status.message());
    ensure!(status.code() == Code::Internal && status.message().contains(words), "{status:?}");
    Ok(())
}

/// The first MiB, where each of them says what it is.
fn head(machine: &Machine, v: &Vol) -> Result<String> {
    machine.sh(&format!("dd if={} bs=1M count=1 iflag=direct 2>/dev/null | sha256sum", v.device()))
}

fn a_head_that_is_lost(machine: &Machine, v: &Vol, written: &str) -> Result<()> {
    let device = v.device();
    machine.sh(&format!(
        "dd if={device} of=/run/head bs=1M count=1 iflag=direct 2>/dev/null
         dd if=/dev/zero of={device} bs=1M count=1 oflag=direct 2>/dev/null"
    ))?;
    let zeros = head(machine, v)?;
    for _ in 0..2 {
        refused(v, "holds no filesystem that this driver knows, and it is not a new volume")?;
    }
    ensure!(head(machine, v)? == zeros, "{}: something was written", v.lv());
    machine.sh(&format!("dd if=/run/head of={device} bs=1M oflag=direct 2>/dev/null"))?;
    v.attach()?;
    ensure!(sum(machine, &v.file("data"), 8)? == written, "{}: other data", v.lv());
    Ok(v.detach()?)
}

/// Unclean, with a wrong count: `e2fsck -p` knows what to do.
fn little_is_mended(machine: &Machine, v: &Vol, written: &str) -> Result<()> {
    let device = v.device();
    // 1 is clean.
    let state = || {
        machine.sh(&format!("debugfs -R 'show_super_stats -h' {device} 2>/dev/null | grep -E '^(Free blocks|Filesystem state):'"))
    };
    let before = state()?;
    machine.sh(&format!(
        "debugfs -w -R 'ssv free_blocks_count 1' {device}; debugfs -w -R 'ssv state 0' {device}"
    ))?;
    let damaged = state()?;
    ensure!(damaged.contains("not clean") && damaged != before, "it is not damaged: {damaged}");
    v.stage()?;
    v.unstage()?;
    let mended = state()?;
    ensure!(mended == before, "not mended:\n{mended}\nbefore:\n{before}");
    v.attach()?;
    ensure!(sum(machine, &v.file("data"), 8)? == written, "{}: other data", v.lv());
    Ok(v.detach()?)
}

/// Without its root directory: for a person.
fn much_is_refused(machine: &Machine, v: &Vol) -> Result<()> {
    let device = v.device();
    let uuid = || machine.sh(&format!("blkid -p -o value -s UUID {device}"));
    let before = uuid()?;
    machine
        .sh(&format!("debugfs -w -R 'clri <2>' {device}; debugfs -w -R 'ssv state 0' {device}"))?;
    for _ in 0..2 {
        refused(v, "damaged beyond what is safe to mend by itself, so it is not mounted")?;
    }
    ensure!(uuid()? == before, "{}: another filesystem", v.lv());
    // What the person does.
    machine.sh(&format!("e2fsck -fy {device} >/dev/null 2>&1 || test $? = 1"))?;
    v.attach()?;
    Ok(v.detach()?)
}

#[test]
fn a_damaged_filesystem_is_mended_or_refused_and_never_made_anew() -> Result<()> {
    started("damage", &[3 * GIB], &pooled(1, "90%"), |machine| {
        let csi = machine.driver.csi()?;
        for fs in ["ext4", "xfs", "btrfs"] {
            let v = Vol::create(&csi, filesystem("thin", fs), &format!("pvc-{fs}"), 320 * MIB)?;
            v.attach()?;
            let written = fill(machine, &v.file("data"), 8)?;
            v.detach()?;
            a_head_that_is_lost(machine, &v, &written)?;
            if fs == "ext4" {
                little_is_mended(machine, &v, &written)?;
                much_is_refused(machine, &v)?;
            }
            v.delete()?;
        }
        expect_nothing_left(machine)
    })
}
