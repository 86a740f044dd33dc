//! What was deleted and is to be wiped is not on the disk any more, as the disk itself is read, also when the driver or the machine ends in the middle.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cinderblock_lab::driver::{Class, Machine, disk};

use crate::support::{
    BACKEND, GIB, MIB, THICK, THICK_BLOCK, THIN, VG, Vol, bare, expect_nothing_left, lvs, on_disk,
    pooled, started,
};

/// Small, because it is read as a whole many times.
const DISK: u64 = 768 * MIB;
/// For wiping what these tests delete.
const PATIENCE: Duration = Duration::from_mins(4);

/// Fills a file, or the device, with lines of this word, durably.
pub(crate) fn mark(machine: &Machine, file: &str, word: &str, mib: u64) -> Result<()> {
    machine.sh(&format!(
        "yes {word} | dd of={file} bs=1M count={mib} iflag=fullblock oflag=direct conv=fsync 2>/dev/null"
    ))?;
    Ok(())
}

/// A volume full of lines with a word, which are then on the disk. The volume's name is not in them:
/// that stays in old copies of LVM's metadata.
fn marked(machine: &Machine, disk: &str, class: Class, how: &str, word: &str) -> Result<Vol> {
    let csi = machine.driver.csi()?;
    let name = format!("pvc-{}", word.trim_start_matches("lines-of-"));
    let v = Vol::wiped(&csi, class, how, &name, 64 * MIB)?;
    v.attach()?;
    mark(machine, &v.file("data"), word, 32)?;
    v.detach()?;
    ensure!(
        on_disk(machine, disk, word)? > 1_000_000,
        "{word} is not on the disk: this proves nothing"
    );
    Ok(v)
}

fn wait_wiped(machine: &Machine) -> Result<()> {
    machine.driver.wait_until(PATIENCE, "done with wiping", || {
        Ok(machine.driver.metric("cinderblock_trash_volumes")? == Some(0.0))
    })
}

#[test]
fn what_is_wiped_is_not_on_the_disk_any_more() -> Result<()> {
    bare("wiping", &[DISK], &pooled(1, "40%"), |machine| {
        // The disk is full of what somebody left there long ago.
        mark(machine, &disk(1), "long-ago", DISK / MIB)?;
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
        marked(machine, &disk(1), THICK, "none", "lines-of-kept")?.delete()?;
        let kept = on_disk(machine, &disk(1), "lines-of-kept")?;
        ensure!(kept > 1_000_000, "gone, though nobody wiped it");

        for (class, how, word) in [
            (THICK, "zero", "lines-of-fs-zero"),
            (THICK_BLOCK, "zero", "lines-of-block-zero"),
            (THICK, "discard", "lines-of-fs-discard"),
        ] {
            let v = marked(machine, &disk(1), class, how, word)?;
            wiped_without_trace(machine, &disk(1), &v, class, word)?;
        }
        let unsupported = || machine.driver.metric("cinderblock_undiscarded_volumes");
        ensure!(unsupported()? == Some(0.0), "{:?} were not discarded", unsupported()?);
        // This disk takes discards smaller than a pool's chunks only, so that the kernel passes none on.
        let v = marked(machine, &disk(1), THIN, "discard", "lines-of-thin")?;
        v.delete()?;
        wait_wiped(machine)?;
        let left = on_disk(machine, &disk(1), "lines-of-thin")? > 0;
        let told = unsupported()? == Some(1.0);
        ensure!(left == told, "on the disk still: {left}; told of: {told}");
        expect_nothing_left(machine)
    })
}

fn wiped_without_trace(
    machine: &Machine,
    disk: &str,
    v: &Vol,
    class: Class,
    word: &str,
) -> Result<()> {
    let csi = machine.driver.csi()?;
    let free = csi.capacity(&class)?;
    v.delete()?;
    let left = csi.volumes()?;
    ensure!(left.is_empty(), "{word}: still shown: {left:?}");
    wait_wiped(machine)?;
    let lines = on_disk(machine, disk, word)?;
    ensure!(lines == 0, "{word}: {lines} lines are still on the disk");
    let after = csi.capacity(&class)?;
    ensure!(after == free + 64 * MIB, "{word}: room for {after} bytes, not {free} + 64 MiB");
    Ok(())
}

/// On a disk that takes large discards, which those of this VM do not.
#[test]
fn a_discarded_thin_volume_is_not_on_the_disk_when_its_last_snapshot_is_gone() -> Result<()> {
    let backends = format!(
        "backends: [{{name: {BACKEND}, volumeGroup: {VG}, reserve: 0%, thinPool: {{size: 60%, overprovision: 4}}}}]"
    );
    bare("wiping-thin", &[GIB], &backends, |machine| {
        let disk = "/dev/loop0";
        machine.sh(&format!(
            "mkfs.ext4 -q {}; mkdir -p /run/files; mount {} /run/files
             truncate -s 512M /run/files/disk; losetup {disk} /run/files/disk
             vgcreate --config 'activation{{udev_sync=0 udev_rules=0}}' {VG} {disk}",
            cinderblock_lab::driver::disk(1),
            cinderblock_lab::driver::disk(1)
        ))?;
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?;
        let v = marked(machine, disk, THIN, "discard", "lines-of-alone")?;
        wiped_without_trace(machine, disk, &v, THIN, "lines-of-alone")?;

        let v = marked(machine, disk, THIN, "discard", "lines-of-snapped")?;
        let snapshot = csi.snapshot("snapshot-1", &v.id)?.snapshot_id;
        v.delete()?;
        wait_wiped(machine)?;
        let kept = on_disk(machine, disk, "lines-of-snapped")?;
        ensure!(kept > 1_000_000, "the snapshot lost its data");
        csi.delete_snapshot(&snapshot)?;
        wait_wiped(machine)?;
        let left = on_disk(machine, disk, "lines-of-snapped")?;
        ensure!(left == 0, "{left} lines that the snapshot kept are still on the disk");
        let unsupported = machine.driver.metric("cinderblock_undiscarded_volumes")?;
        ensure!(unsupported == Some(0.0), "{unsupported:?} were not discarded");
        Ok(())
    })
}

#[test]
fn wiping_goes_on_after_a_kill_and_after_a_power_cut() -> Result<()> {
    let slow = format!("{}    wipeRate: 16Mi\n", pooled(1, "20%"));
    started("wiping-cut", &[GIB], &slow, |machine| {
        let csi = machine.driver.csi()?;
        let bytes = 512 * MIB;
        let v = Vol::wiped(&csi, THICK_BLOCK, "zero", "pvc-1", bytes)?;
        v.attach()?;
        mark(machine, &v.file(""), "lines-of-1", bytes / MIB)?;
        v.detach()?;
        let all = on_disk(machine, &disk(1), "lines-of-1")?;
        v.delete()?;
        wait_some_wiped(machine)?;
        machine.driver.kill()?;
        let left = on_disk(machine, &disk(1), "lines-of-1")?;
        ensure!(0 < left && left < all, "{left} of {all} lines are left: that is not the middle");
        machine.start(BACKEND)?;
        wait_some_wiped(machine)?;
        machine.node.reboot()?;
        machine.driver.forget();
        let found = lvs(machine)?;
        ensure!(found.iter().any(|lv| lv.starts_with("cb-trash-")), "no trash among {found:?}");
        machine.start(BACKEND)?;
        wait_wiped(machine)?;
        ensure!(on_disk(machine, &disk(1), "lines-of-1")? == 0, "some of it is still on the disk");
        expect_nothing_left(machine)
    })
}

/// A moment later, some of it is zeroed.
fn wait_some_wiped(machine: &Machine) -> Result<()> {
    let begun = "wiping a deleted volume";
    let start = Instant::now();
    while !machine.driver.log_tail(8).contains(begun) {
        ensure!(start.elapsed() < PATIENCE, "wiping does not begin");
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(5));
    Ok(())
}
