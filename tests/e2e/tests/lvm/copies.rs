//! Thick snapshots and copies: what is restored is what was there when the snapshot was taken, in any order of deletion, after kills and power cuts, and never from a snapshot that is lost.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use cinderblock_lab::driver::{Access, Class, Csi, Machine, Source, backend, disk};
use tonic::{Code, Status};

use crate::support::{
    BACKEND, GIB, MIB, THICK, THICK_BLOCK, THIN, VG, Vol, bare, code, copied, expect_nothing_left,
    filesystem, fill, lvs, on_disk, pooled, power_cut, started, sum,
};

const PATIENCE: Duration = Duration::from_mins(4);

/// Takes a snapshot with this room.
fn snapshot(csi: &Csi, name: &str, of: &Vol, cow_size: &str) -> Result<String, Status> {
    csi.snapshot_with(name, &of.id, &[("cowSize", cow_size)]).map(|taken| taken.snapshot_id)
}

fn uuid(machine: &Machine, v: &Vol) -> Result<String> {
    machine.sh(&format!("blkid -p -o value -s UUID {}", v.device()))
}

#[test]
fn a_copy_is_what_its_source_was() -> Result<()> {
    started("copies", &[3 * GIB, 3 * GIB], &pooled(2, "25%"), |machine| {
        let csi = machine.driver.csi()?;
        for (i, (of, to)) in [
            (THICK, THICK),
            (filesystem("thick", "xfs"), filesystem("thick", "xfs")),
            (Class { more: &[("layout", "striped")], ..THICK }, THIN),
            (THIN, THICK),
        ]
        .into_iter()
        .enumerate()
        {
            // No smaller one takes XFS.
            let size = if of.access == Access::Filesystem("xfs") { 320 } else { 96 } * MIB;
            let v = Vol::create(&csi, of, &format!("pvc-{i}"), size)?;
            v.attach()?;
            let before = fill(machine, &v.file("data"), 40)?;
            let taken = snapshot(&csi, &format!("snapshot-{i}"), &v, "100%")?;
            // In use all the time, and overwritten.
            let after = fill(machine, &v.file("data"), 40)?;
            let source = Source::Snapshot(&taken);
            let restored = copied(&csi, to, &format!("pvc-{i}-restored"), size + 64 * MIB, source)?;
            let cloned = copied(&csi, to, &format!("pvc-{i}-cloned"), size, Source::Volume(&v.id))?;
            for (copy, wanted) in [(&restored, &before), (&cloned, &after)] {
                copy.attach()?;
                ensure!(
                    sum(machine, &copy.file("data"), 40)? == *wanted,
                    "{}: other data",
                    copy.id
                );
                ensure!(uuid(machine, copy)? != uuid(machine, &v)?, "{}: the same UUID", copy.id);
            }
            let room =
                machine.sh(&format!("df --output=size -B1M {} | tail -1", restored.file("")))?;
            let room = room.trim().parse::<u64>()? * MIB;
            ensure!(room > size - 32 * MIB, "the restored one has {room}");
            // The source first.
            v.detach()?;
            v.delete()?;
            ensure!(sum(machine, &restored.file("data"), 40)? == before, "other data then");
            let again = copied(&csi, to, &format!("pvc-{i}-again"), size, source)?;
            again.attach()?;
            ensure!(
                sum(machine, &again.file("data"), 40)? == before,
                "other data from the snapshot"
            );
            csi.delete_snapshot(&taken)?;
            for copy in [restored, cloned, again] {
                copy.detach()?;
                copy.delete()?;
            }
            machine.driver.wait_until(PATIENCE, "without trash", || {
                Ok(machine.driver.metric("cinderblock_trash_volumes")? == Some(0.0))
            })?;
            expect_nothing_left(machine)?;
        }
        Ok(())
    })
}

/// All of a volume is overwritten, by a writer that leaves nothing out.
#[test]
fn a_snapshot_with_all_its_room_never_runs_full() -> Result<()> {
    started("cow-full", &[3 * GIB], &pooled(1, "10%"), |machine| {
        let csi = machine.driver.csi()?;
        // 4096 chunks of 64 KiB fill one list of them wholly.
        for (name, mib) in [("pvc-a", 256), ("pvc-b", 100)] {
            let v = Vol::create(&csi, THICK_BLOCK, name, mib * MIB)?;
            v.attach()?;
            let before = fill(machine, &v.file(""), mib)?;
            let taken = snapshot(&csi, "snapshot-1", &v, "100%")?;
            fill(machine, &v.file(""), mib)?;
            let status = machine.sh("dmsetup status vg0-snap--1")?;
            ensure!(!status.contains("Invalid"), "{status}");
            let copy = copied(&csi, THICK_BLOCK, "pvc-copy", mib * MIB, Source::Snapshot(&taken))?;
            copy.attach()?;
            ensure!(sum(machine, &copy.file(""), mib)? == before, "{name}: other data");
            copy.detach()?;
            copy.delete()?;
            csi.delete_snapshot(&taken)?;
            v.detach()?;
            v.delete()?;
        }
        expect_nothing_left(machine)
    })
}

#[test]
fn a_snapshot_with_little_room_grows_or_is_told_to_be_lost() -> Result<()> {
    started("cow-small", &[4 * GIB], &pooled(1, "10%"), |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THICK_BLOCK, "pvc-1", 704 * MIB)?;
        v.attach()?;
        let before = fill(machine, &v.file(""), 704)?;
        let taken = snapshot(&csi, "snapshot-1", &v, "10%")?;
        // More than it has at first.
        for at in 0..20 {
            machine.sh(&format!(
                "dd if=/dev/urandom of={} bs=1M count=32 seek={} conv=notrunc,fsync 2>/dev/null",
                v.file(""),
                at * 32
            ))?;
            sleep(Duration::from_millis(500));
        }
        let store = machine.sh("lvs --noheadings --units m --nosuffix -o lv_size vg0/snap-1")?;
        ensure!(store.trim().parse::<f64>()? > 600.0, "it has {store} MiB");
        let source = Source::Snapshot(&taken);
        let copy = copied(&csi, THICK_BLOCK, "pvc-copy", 704 * MIB, source)?;
        copy.attach()?;
        ensure!(sum(machine, &copy.file(""), 704)? == before, "other data");
        copy.detach()?;
        copy.delete()?;
        csi.delete_snapshot(&taken)?;

        // No room left for it to grow.
        let taken = snapshot(&csi, "snapshot-2", &v, "10%")?;
        let rest = csi.capacity(&THICK_BLOCK)?;
        let rest_of_it = Vol::create(&csi, THICK_BLOCK, "pvc-filler", rest)?;
        fill(machine, &v.file(""), 704)?;
        let lost = "cinderblock_thick_snapshot_used_ratio";
        machine.driver.wait_until(PATIENCE, "told that it is lost", || {
            Ok(machine.driver.metric(lost)? == Some(1.0))
        })?;
        machine
            .driver
            .wait_until(PATIENCE, "not offering it", || Ok(!csi.snapshots()?[0].ready_to_use))?;
        machine.driver.wait_until(PATIENCE, "saying so in its log", || {
            Ok(machine.driver.log_text().contains("ran full and is lost"))
        })?;
        rest_of_it.delete()?;
        for round in ["before a reboot", "after it"] {
            let csi = machine.driver.csi()?;
            let refused =
                Vol::from(&csi, THICK_BLOCK, "pvc-lost", 704 * MIB, Source::Snapshot(&taken));
            let code = code(refused)?;
            ensure!(code == Code::FailedPrecondition, "{round}: {code}");
            if round == "before a reboot" {
                power_cut(machine)?;
            }
        }
        let csi = machine.driver.csi()?;
        csi.delete_snapshot(&taken)?;
        csi.delete(&v.id)?;
        expect_nothing_left(machine)
    })
}

/// Copies slowly enough that they can be cut in the middle.
#[test]
fn a_copy_goes_on_where_it_was_cut() -> Result<()> {
    let more =
        "reserve: 0%\ncopyRate: 8Mi\nthinPool: { name: pool0, size: 10%, overprovision: 20 }";
    let backends = backend(BACKEND, VG, 1, more);
    started("copy-cut", &[3 * GIB], &backends, |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THICK, "pvc-1", 540 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 300)?;
        let begun = Vol::from(&csi, THICK, "pvc-2", 540 * MIB, Source::Volume(&v.id));
        ensure!(code(begun)? == Code::Unavailable);
        // The image is what counts, not what comes after it.
        fill(machine, &v.file("data"), 20)?;
        ensure!(csi.volumes()?.len() == 1, "it is listed though it is not complete");
        let noted = machine.sh("lvs --noheadings -o lv_tags vg0/pvc-2")?;
        ensure!(noted.contains("cb.copied="), "nothing is noted: {noted}");
        machine.driver.kill_all()?;
        machine.start(BACKEND)?;
        machine.driver.wait_until(PATIENCE, "going on where it was", || {
            let log = machine.driver.log_text();
            let mut copying = log.lines().filter(|line| line.contains("copying a volume"));
            Ok(copying.any(|line| line.contains(" at=") && !line.contains("at=0 B")))
        })?;
        sleep(Duration::from_secs(2));
        power_cut(machine)?;
        let csi = machine.driver.csi()?;
        let copy = copied(&csi, THICK, "pvc-2", 540 * MIB, Source::Volume(&v.id))?;
        copy.attach()?;
        ensure!(sum(machine, &copy.file("data"), 300)? == written, "other data");
        copy.detach()?;
        copy.delete()?;
        csi.delete(&v.id)?;
        expect_nothing_left(machine)
    })
}

/// What a snapshot has kept of a volume that is wiped is wiped as well; and LVM itself keeps an origin
/// from being removed with its snapshots.
#[test]
fn a_thick_snapshot_leaves_no_trace_and_never_goes_with_its_origin() -> Result<()> {
    let small = 768 * MIB;
    bare("cow-wiping", &[small], &pooled(1, "20%"), |machine| {
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?;
        let word = "lines-of-kept-blocks";
        let v = Vol::wiped(&csi, THICK_BLOCK, "zero", "pvc-1", 64 * MIB)?;
        v.attach()?;
        let write = |word: &str| {
            let to = v.file("");
            machine.sh(&format!("yes {word} | dd of={to} bs=1M count=64 iflag=fullblock oflag=direct conv=fsync 2>/dev/null"))
        };
        write(word)?;
        let taken = snapshot(&csi, "snapshot-1", &v, "100%")?;
        write("other-lines")?;
        let found = || on_disk(machine, &disk(1), word);
        ensure!(found()? > 1_000_000, "it is not on the disk: this proves nothing");
        let select = "lv_name=pvc-1 && lv_attr!~\"^[oO]\"";
        machine.sh(&format!("lvremove -y --select '{select}' vg0"))?;
        ensure!(lvs(machine)?.iter().any(|lv| lv == "snap-1"), "LVM removed the snapshot");
        csi.delete_snapshot(&taken)?;
        machine.driver.wait_until(PATIENCE, "wiped", || {
            Ok(machine.driver.metric("cinderblock_trash_volumes")? == Some(0.0))
        })?;
        ensure!(found()? == 0, "it is on the disk still");
        v.detach()?;
        v.delete()?;
        machine.driver.wait_until(PATIENCE, "wiped", || {
            Ok(machine.driver.metric("cinderblock_trash_volumes")? == Some(0.0))
        })?;
        expect_nothing_left(machine)
    })
}
