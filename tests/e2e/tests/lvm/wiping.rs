//! What was deleted and is to be wiped is not on the disk any more, as the disk itself is read, also when the driver or the machine ends in the middle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Class, Csi, Machine, disk};

use crate::support::{
    BACKEND, GIB, MIB, THICK, THICK_BLOCK, THIN, Vol, bare, expect_nothing_left, lvs, pooled,
    power_cut, started,
};

/// For wiping what these tests delete.
const PATIENCE: Duration = Duration::from_mins(4);

/// Fills a file, or the device, with lines of this word, durably.
fn mark(machine: &Machine, file: &str, word: &str, mib: u64) -> Result<()> {
    machine.sh(&format!(
        "yes {word} | dd of={file} bs=1M count={mib} iflag=fullblock oflag=direct conv=fsync 2>/dev/null"
    ))?;
    Ok(())
}

/// How many lines with this word the disk has, read past every cache and past LVM.
fn on_disk(machine: &Machine, word: &str) -> Result<u64> {
    let count = machine.sh(&format!(
        "dd if={} bs=1M iflag=direct 2>/dev/null | tr '\\0' '\\n' | grep -a -c {word} || true",
        disk(1)
    ))?;
    count.trim().parse().with_context(|| count.clone())
}

/// A volume full of lines of its own name, which are then on the disk.
fn marked(machine: &Machine, csi: &Csi, class: Class, how: &str, word: &str) -> Result<Vol> {
    let v = Vol::wiped(csi, class, how, &format!("pvc-{word}"), 64 * MIB)?;
    v.attach()?;
    mark(machine, &v.file("data"), word, 32)?;
    v.detach()?;
    ensure!(on_disk(machine, word)? > 1_000_000, "{word} is not on the disk: this proves nothing");
    Ok(v)
}

fn wait_wiped(machine: &Machine) -> Result<()> {
    machine.driver.wait_until(PATIENCE, "done with wiping", || {
        Ok(machine.driver.metric("cinderblock_trash_volumes")? == Some(0.0))
    })
}

#[test]
fn what_is_wiped_is_not_on_the_disk_any_more() -> Result<()> {
    bare("wiping", &[GIB], &pooled(1, "40%"), |machine| {
        // The disk is full of what somebody left there long ago.
        mark(machine, &disk(1), "long-ago", GIB / MIB)?;
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?;
        let b = Vol::wiped(&csi, THICK_BLOCK, "none", "pvc-b", 64 * MIB)?;
        b.attach()?;
        csi.expand(&b.id, 128 * MIB)?;
        csi.expand_on_node(&b.id, &b.pod)?;
        let same = machine.sh(&format!(
            "dd if={} bs=1M iflag=direct 2>/dev/null | cmp -n {} - /dev/zero && echo same",
            b.file(""),
            128 * MIB
        ))?;
        ensure!(same == "same", "a block volume shows what was on the disk: {same}");
        b.detach()?;
        b.delete()?;

        // Not wiped: it stays, which shows that what follows can be seen.
        marked(machine, &csi, THICK, "none", "kept-on-disk")?.delete()?;
        ensure!(on_disk(machine, "kept-on-disk")? > 1_000_000, "gone, though nobody wiped it");

        for (class, how, word) in [
            (THICK, "zero", "thick-fs-zero"),
            (THICK_BLOCK, "zero", "thick-block-zero"),
            (THICK, "discard", "thick-fs-discard"),
            (THIN, "discard", "thin-fs-discard"),
        ] {
            let v = marked(machine, &csi, class, how, word)?;
            let free = csi.capacity(&class)?;
            v.delete()?;
            let left = csi.volumes()?;
            ensure!(left.is_empty(), "{word}: still shown: {left:?}");
            wait_wiped(machine)?;
            let lines = on_disk(machine, word)?;
            ensure!(lines == 0, "{word}: {lines} lines are still on the disk");
            let after = csi.capacity(&class)?;
            ensure!(
                after == free + 64 * MIB,
                "{word}: room for {after} bytes, not {free} + 64 MiB"
            );
        }
        // A snapshot keeps its volume's blocks, and is wiped like it.
        let v = marked(machine, &csi, THIN, "discard", "snapped")?;
        let snapshot = csi.snapshot("snapshot-1", &v.id)?.snapshot_id;
        v.delete()?;
        wait_wiped(machine)?;
        ensure!(on_disk(machine, "snapped")? > 1_000_000, "the snapshot lost its data");
        csi.delete_snapshot(&snapshot)?;
        wait_wiped(machine)?;
        ensure!(on_disk(machine, "snapped")? == 0, "what the snapshot kept is still on the disk");
        let unsupported = machine.driver.metric("cinderblock_undiscarded_volumes")?;
        ensure!(unsupported == Some(0.0), "{unsupported:?} were not discarded");
        expect_nothing_left(machine)
    })
}

#[test]
fn wiping_goes_on_after_a_kill_and_after_a_power_cut() -> Result<()> {
    let slow = format!("{}    wipeRate: 32Mi\n", pooled(1, "30%"));
    started("wiping-cut", &[2 * GIB], &slow, |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::wiped(&csi, THICK_BLOCK, "zero", "pvc-secret", GIB)?;
        v.attach()?;
        mark(machine, &v.file(""), "secret", GIB / MIB)?;
        v.detach()?;
        let all = on_disk(machine, "secret")?;
        v.delete()?;
        wait_some_wiped(machine)?;
        machine.driver.kill()?;
        in_the_middle(machine, all)?;
        machine.start(BACKEND)?;
        wait_some_wiped(machine)?;
        power_cut(machine)?;
        in_the_middle(machine, all)?;
        wait_wiped(machine)?;
        ensure!(on_disk(machine, "secret")? == 0, "some of it is still on the disk");
        expect_nothing_left(machine)
    })
}

/// A moment later, some of it is zeroed.
fn wait_some_wiped(machine: &Machine) -> Result<()> {
    let begun = "wiping a deleted volume";
    let start = Instant::now();
    while !machine.driver.log_tail(5).contains(begun) {
        ensure!(start.elapsed() < PATIENCE, "wiping does not begin");
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(5));
    Ok(())
}

fn in_the_middle(machine: &Machine, all: u64) -> Result<()> {
    let left = on_disk(machine, "secret")?;
    ensure!(0 < left && left < all, "{left} of {all} lines are left: that is not the middle");
    let found = lvs(machine)?;
    ensure!(found.iter().any(|lv| lv.starts_with("cb-trash-")), "no trash among {found:?}");
    Ok(())
}
