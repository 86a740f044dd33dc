//! Encrypted volumes on real LUKS: what the disk shows, which keys open what, and what is left when a volume is deleted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Machine, Source, disk};
use tonic::Code;

use crate::support::{
    BACKEND, GIB, MASTER, MIB, THICK, THICK_BLOCK, THIN, THIN_BLOCK, VG, Vol, bare, code, copied,
    encrypted, expect_nothing_left, filesystem, fill, on_disk, pooled, started, sum,
};
use crate::wiping::mark;

/// Small, because it is read as a whole.
const DISK: u64 = 768 * MIB;
const MAGIC: &str = r"LUKS\xba\xbe";

/// How many LUKS headers a disk has, wherever on it. A line must not be longer than grep takes.
fn headers(machine: &Machine, disk: &str) -> Result<u64> {
    let script = format!(
        "dd if={disk} bs=1M iflag=direct 2>/dev/null | tr '\\0' '\\n' | LC_ALL=C grep -a -c -P '{MAGIC}' || true"
    );
    let read = machine.node.exec(["sh", "-euc", &script]).timeout(Duration::from_mins(5));
    let count = read.text()?;
    count.trim().parse().with_context(|| count.clone())
}

/// The size of the decrypted device that a volume has as its only one.
fn decrypted_size(machine: &Machine) -> Result<u64> {
    let size = machine.sh("blockdev --getsize64 /dev/mapper/cb-crypt-*")?;
    size.trim().parse().with_context(|| size.clone())
}

/// Whether a passphrase opens a volume's LV.
fn opens(machine: &Machine, v: &Vol, passphrase: &str) -> Result<bool> {
    let script = format!(
        "printf %s '{passphrase}' | cryptsetup open --test-passphrase --key-file - {} 2>/dev/null \
         && echo yes || echo no",
        v.device()
    );
    Ok(machine.sh(&script)?.trim() == "yes")
}

#[test]
fn the_disk_shows_nothing_and_only_the_secret_opens_it() -> Result<()> {
    bare("encryption", &[DISK], &pooled(1, "20%"), |machine| {
        mark(machine, &disk(1), "long-ago", DISK / MIB)?;
        machine.start("fast")?;
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let plain = Vol::create(&csi, THICK, "pvc-plain", 64 * MIB)?;
        plain.attach()?;
        mark(machine, &plain.file("data"), "lines-in-plain", 16)?;
        ensure!(on_disk(machine, &disk(1), "lines-in-plain")? > 500_000, "this proves nothing");
        plain.detach()?;

        let v = Vol::create(&csi, encrypted(THICK), "pvc-1", 64 * MIB)?;
        v.attach()?;
        ensure!(decrypted_size(machine)? == 64 * MIB, "{} bytes", decrypted_size(machine)?);
        mark(machine, &v.file("data"), "lines-in-luks", 16)?;
        ensure!(on_disk(machine, &disk(1), "lines-in-luks")? == 0, "the disk shows the data");
        let written = sum(machine, &v.file("data"), 16)?;
        ensure!(code(csi.delete(&v.id))? == Code::FailedPrecondition, "deleted in use");
        v.detach()?;
        ensure!(machine.sh("ls /dev/mapper")?.lines().all(|l| !l.starts_with("cb-crypt")), "open");

        let other = [("masterKey", "another key that has more than 32 bytes")];
        for (secrets, wanted) in
            [(&other[..], Code::FailedPrecondition), (&[], Code::InvalidArgument)]
        {
            let got = code(
                machine.driver.csi()?.with_secrets(secrets).stage(&v.id, v.access, &v.staging),
            )?;
            ensure!(got == wanted, "{got:?} with {} secrets", secrets.len());
        }
        v.attach()?;
        ensure!(sum(machine, &v.file("data"), 16)? == written, "other data when staged again");

        grows(machine, &v)?;
        ensure!(sum(machine, &v.file("data"), 16)? == written, "other data after growing");
        v.detach()?;
        header_comes_back(machine, &v)?;
        ensure!(sum(machine, &v.file("data"), 16)? == written, "other data after the repair");
        v.detach()?;
        let log = machine.driver.log_text();
        ensure!(log.contains("encrypting a new volume"), "the log is not what it should be");
        ensure!(!log.contains(MASTER[0].1), "the log has the master key");

        ensure!(headers(machine, &disk(1))? >= 2, "a header and its copy");
        v.delete()?;
        plain.delete()?;
        let left = headers(machine, &disk(1))?;
        ensure!(left == 0, "{left} headers are left on the disk");
        expect_nothing_left(machine)
    })
}

fn grows(machine: &Machine, v: &Vol) -> Result<()> {
    v.csi.expand(&v.id, 128 * MIB)?;
    // It takes no Secret.
    let grown = machine.driver.csi()?.expand_on_node(&v.id, &v.pod)?;
    ensure!(grown == 128 * MIB, "{grown} bytes");
    ensure!(decrypted_size(machine)? == 128 * MIB, "{} bytes", decrypted_size(machine)?);
    let room = machine.sh(&format!("df --output=size -B1 {} | tail -n 1", v.pod.display()))?;
    ensure!(room.trim().parse::<u64>()? > 110 * MIB, "the filesystem has {room}");
    Ok(())
}

/// The first header is destroyed, and brought back by what the error says.
fn header_comes_back(machine: &Machine, v: &Vol) -> Result<()> {
    let device = v.device();
    machine.sh(&format!("dd if=/dev/zero of={device} bs=1M count=4 conv=fsync 2>/dev/null"))?;
    let said = v.stage().err().context("staged without a header")?;
    ensure!(said.code() == Code::Internal, "{said:?}");
    let restore = [
        format!("dd if={device} of=header.img bs=1M skip=16 count=4"),
        "cryptsetup luksDump header.img".to_owned(),
        format!("cryptsetup luksHeaderRestore {device} --header-backup-file header.img"),
    ];
    for line in &restore {
        ensure!(said.message().contains(line), "{line} is not in: {}", said.message());
    }
    machine.sh(&format!("cd /run; {}; {}; {} -q", restore[0], restore[1], restore[2]))?;
    v.attach()?;
    Ok(())
}

#[test]
fn a_copy_has_a_key_of_its_own() -> Result<()> {
    started("encryption-copies", &[1 << 30], &pooled(1, "80%"), |machine| {
        let connect = |secrets| machine.driver.csi().map(|csi| csi.with_secrets(secrets));
        let csi = connect(&[("passphrase", "one")])?;
        let class = encrypted(filesystem("thin", "xfs"));
        let source = Vol::create(&csi, class, "pvc-source", 320 * MIB)?;
        source.attach()?;
        let written = fill(machine, &source.file("data"), 8)?;
        let snapshot = csi.snapshot("snapshot-1", &source.id)?;
        ensure!(u64::try_from(snapshot.size_bytes)? == 320 * MIB, "{snapshot:?}");
        let from = Source::Snapshot(&snapshot.snapshot_id);
        let csi = connect(&[("passphrase", "two"), ("previousPassphrase", "one")])?;
        let restored = Vol::from(&csi, class, "pvc-restored", 384 * MIB, from)?;
        let csi = connect(&[MASTER[0], ("previousPassphrase", "one")])?;
        let cloned = Vol::from(&csi, class, "pvc-cloned", 320 * MIB, Source::Volume(&source.id))?;
        for copy in [&restored, &cloned] {
            copy.attach()?;
            ensure!(sum(machine, &copy.file("data"), 8)? == written, "other data");
        }
        for (v, passphrase, wanted) in [
            (&source, "one", true),
            (&source, "two", false),
            (&restored, "two", true),
            (&restored, "one", false),
            (&cloned, "one", false),
        ] {
            let found = opens(machine, v, passphrase)?;
            ensure!(found == wanted, "{passphrase} opens {}: {found}", v.id);
        }
        let uuids = machine.sh(
            "for d in /dev/mapper/vg0-pvc*; do cryptsetup luksUUID $d; done | sort -u | wc -l",
        )?;
        ensure!(uuids.trim() == "3", "{uuids} different UUIDs");

        // A clone of that clone, by the master key alone.
        cloned.detach()?;
        let csi = connect(&MASTER)?;
        let again = Vol::from(&csi, class, "pvc-again", 320 * MIB, Source::Volume(&cloned.id))?;
        again.attach()?;
        ensure!(sum(machine, &again.file("data"), 8)? == written, "other data in the second clone");
        let keys =
            |v: &Vol| machine.sh(&format!("cryptsetup luksDump {} | grep -c 'luks2$'", v.device()));
        ensure!(keys(&again)?.trim() == "1" && keys(&cloned)?.trim() == "1", "more than one key");
        for v in [&source, &restored, &again] {
            v.detach()?;
        }
        for v in [&source, &restored, &cloned, &again] {
            v.delete()?;
        }
        csi.delete_snapshot(&snapshot.snapshot_id)?;
        expect_nothing_left(machine)
    })
}

#[test]
fn an_encrypted_block_volume_is_its_users_alone() -> Result<()> {
    bare("encryption-block", &[DISK], &pooled(1, "20%"), |machine| {
        mark(machine, &disk(1), "long-ago", DISK / MIB)?;
        machine.start("fast")?;
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let v = Vol::create(&csi, encrypted(THICK_BLOCK), "pvc-b", 64 * MIB)?;
        v.attach()?;
        let name = machine.sh("dmsetup ls --target crypt | cut -f 1")?;
        v.detach()?;
        // What a cryptsetup leaves that is killed while it makes the device.
        machine.sh(&format!("dmsetup create {name} --notable"))?;
        v.attach()?;
        let device = v.file("");
        csi.expand(&v.id, 96 * MIB)?;
        ensure!(csi.expand_on_node(&v.id, &v.pod)? == 96 * MIB, "another size");
        ensure!(on_disk(machine, &device, "long-ago")? == 0, "it shows what was on the disk");
        let written = fill(machine, &device, 8)?;
        v.detach()?;
        // After a power cut the LV is not active, and the decrypted device is gone.
        crate::support::power_cut(machine)?;
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let v = Vol { csi, ..v };
        v.attach()?;
        ensure!(sum(machine, &device, 8)? == written, "other data after a power cut");
        v.detach()?;
        v.delete()?;

        let thin = Vol::create(&v.csi, encrypted(THIN), "pvc-t", 64 * MIB)?;
        thin.attach()?;
        thin.detach()?;
        ensure!(headers(machine, &disk(1))? == 2, "a header and its copy");
        thin.delete()?;
        // A pool overwrites what was never shared.
        let left = headers(machine, &disk(1))?;
        ensure!(left == 0, "{left} headers are left on the disk");
        expect_nothing_left(machine)
    })
}

/// Thick snapshots are read through the volume's own blocks, and restored by copying.
#[test]
fn thick_snapshots_can_be_read_until_the_last_one_is_gone() -> Result<()> {
    started("encryption-thick", &[DISK], &pooled(1, "20%"), |machine| {
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let source = Vol::create(&csi, encrypted(THICK), "pvc-source", 64 * MIB)?;
        source.attach()?;
        let written = fill(machine, &source.file("data"), 8)?;
        let snapshot = csi.snapshot("snapshot-1", &source.id)?.snapshot_id;
        fill(machine, &source.file("data"), 8)?;
        source.detach()?;
        source.delete()?;
        let from = Source::Snapshot(&snapshot);
        let restored = copied(&csi, encrypted(THICK), "pvc-restored", 96 * MIB, from)?;
        restored.attach()?;
        ensure!(sum(machine, &restored.file("data"), 8)? == written, "other data");
        ensure!(decrypted_size(machine)? == 96 * MIB, "{} bytes", decrypted_size(machine)?);
        csi.delete_snapshot(&snapshot)?;
        machine.driver.wait_until(Duration::from_mins(3), "done with its trash", || {
            Ok(machine.driver.metric("cinderblock_trash_volumes")? == Some(0.0))
        })?;
        // That of the restored volume, and its copy.
        let left = headers(machine, &disk(1))?;
        ensure!(left == 2, "{left} headers are on the disk");
        restored.detach()?;
        restored.delete()?;
        let left = headers(machine, &disk(1))?;
        ensure!(left == 0, "{left} headers are left on the disk");
        expect_nothing_left(machine)
    })
}

/// What a user makes inside a volume is no business of the node's LVM, whatever name it bears.
#[test]
fn a_volume_group_inside_an_encrypted_volume_is_nobodys() -> Result<()> {
    started("encryption-inside", &[2 * GIB], &pooled(1, "60%"), |machine| {
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let v = Vol::create(&csi, encrypted(THIN_BLOCK), "pvc-1", 64 * MIB)?;
        v.attach()?;
        // LVM itself makes none where it sees the links of another.
        machine.sh(&format!(
            "inside=$(echo /dev/mapper/cb-crypt-*); mv /dev/{VG} /dev/away
             pvcreate -qq --devices $inside $inside; vgcreate -qq --devices $inside {VG} $inside
             rm -rf /dev/{VG}; mv /dev/away /dev/{VG}; pvs --devices $inside $inside"
        ))?;
        machine.driver.stop()?;
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        ensure!(csi.capacity(&THIN)? > 0, "there is no capacity");
        let beside = Vol::create(&csi, THIN, "pvc-2", 64 * MIB)?;
        beside.attach()?;
        beside.detach()?;
        beside.delete()?;
        let v = Vol { csi, ..v };
        v.detach()?;
        v.delete()?;
        expect_nothing_left(machine)
    })
}

/// A cryptsetup that is killed while it grows a volume in use, with its agent as when a pod is killed.
#[test]
fn a_decrypted_device_that_was_left_suspended_holds_nobody_up() -> Result<()> {
    started("encryption-held", &[2 * GIB], &pooled(1, "60%"), |machine| {
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let v = Vol::create(&csi, encrypted(THIN), "pvc-1", 64 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 8)?;
        machine.driver.kill()?;
        machine.sh("dmsetup suspend /dev/mapper/cb-crypt-*")?;
        machine.start(BACKEND)?;
        let write = "timeout 20 dd if=/dev/zero bs=4k count=1 conv=fsync 2>/dev/null";
        machine.sh(&format!("{write} of={}", v.file("beat")))?;
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let v = Vol { csi, ..v };
        v.csi.expand(&v.id, 128 * MIB)?;
        v.csi.expand_on_node(&v.id, &v.pod)?;
        ensure!(decrypted_size(machine)? == 128 * MIB, "{} bytes", decrypted_size(machine)?);
        ensure!(sum(machine, &v.file("data"), 8)? == written, "other data");
        v.detach()?;
        v.delete()?;
        expect_nothing_left(machine)
    })
}
