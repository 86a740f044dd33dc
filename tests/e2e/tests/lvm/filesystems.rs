//! ext4, XFS and Btrfs in use: grown under a writer, given to several pods, and copies mounted beside their source.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Status as Exit;
use cinderblock_lab::driver::{Csi, Machine, Source, pb};

use crate::support::{GIB, MIB, Vol, expect_nothing_left, filesystem, fill, pooled, started, sum};

#[test]
fn ext4_in_use() -> Result<()> {
    in_use("ext4")
}

#[test]
fn xfs_in_use() -> Result<()> {
    in_use("xfs")
}

#[test]
fn btrfs_in_use() -> Result<()> {
    in_use("btrfs")
}

fn in_use(fs: &'static str) -> Result<()> {
    started(fs, &[4 * GIB, 4 * GIB], &pooled(2, "60%"), |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, filesystem("thin", fs), "pvc-1", 320 * MIB)?;
        v.attach()?;
        v.attach().context("staged and published twice")?;
        grown_while_written_to(machine, &csi, &v)?;
        several_pods(machine, &v)?;
        agrees_with_df(machine, &csi, &v)?;
        copies_beside(machine, &csi, &v, fs)?;
        v.detach()?;
        v.delete()?;
        expect_nothing_left(machine)
    })
}

fn size(machine: &Machine, v: &Vol) -> Result<u64> {
    let text = machine.sh(&format!("df -B1 --output=size {} | tail -n 1", v.pod.display()))?;
    text.trim().parse().context("df's size")
}

fn grown_while_written_to(machine: &Machine, csi: &Csi, v: &Vol) -> Result<()> {
    let before = size(machine, v)?;
    // Writes files and their checksums for as long as nobody tells it to stop.
    let script = format!(
        "cd {}; n=0; while [ ! -e stop ]; do n=$((n+1)); dd if=/dev/urandom of=f$n bs=256k count=1 conv=fsync 2>/dev/null || exit 1
         sha256sum f$n >>sums; done; sha256sum --quiet -c sums && wc -l <sums",
        v.pod.display()
    );
    std::thread::scope(|scope| {
        let write =
            || machine.node.exec(["sh", "-c", &script]).timeout(Duration::from_mins(2)).run();
        let writer = scope.spawn(write);
        let grow = || -> Result<()> {
            for mib in [448, 640] {
                ensure!(csi.expand(&v.id, mib * MIB)? == mib * MIB, "it did not grow");
                csi.expand_on_node(&v.id, &v.pod)?;
            }
            Ok(())
        };
        let grown = grow();
        machine.sh(&format!("touch {}/stop", v.pod.display()))?;
        let output = writer.join().unwrap()?;
        grown?;
        ensure!(output.status == Exit::Exited(0), "the writer: {}", output.stderr_text());
        let files: u32 = output.stdout_text().parse()?;
        ensure!(files > 2, "it wrote only {files} files meanwhile");
        Ok(())
    })?;
    let after = size(machine, v)?;
    ensure!(after >= before + 280 * MIB, "df: {before} before, {after} after");
    Ok(())
}

fn several_pods(machine: &Machine, v: &Vol) -> Result<()> {
    let (second, reader) =
        (PathBuf::from("/run/v/second/pod"), PathBuf::from("/run/readers/mount"));
    // As the kubelet's folder is: the agent mounts, and the node sees it, in a mount namespace of its own.
    let elsewhere = machine.sh(
        "mkdir -p /run/readers; mount --bind /run/readers /run/readers; mount --make-shared /run/readers
         unshare --mount --propagation slave sleep 3600 </dev/null >/dev/null 2>&1 & other=$!
         until [ \"$(readlink /proc/$other/ns/mnt)\" != \"$(readlink /proc/self/ns/mnt)\" ]; do sleep 0.1; done
         echo $other",
    )?;
    for _ in 0..2 {
        v.publish(&second)?;
        v.csi.publish_read_only(&v.id, v.access, &v.staging, &reader)?;
    }
    let seen = format!("grep ' {} ' /proc/{}/mountinfo", reader.display(), elsewhere.trim());
    let seen = machine.sh(&seen).context("the mount is not seen elsewhere")?;
    ensure!(
        seen.contains(&format!(" {} ro,", reader.display())),
        "a reader may write elsewhere: {seen}"
    );
    machine.sh(&format!("echo hello >{}/note; sync", second.display()))?;
    for pod in [&v.pod, &reader] {
        ensure!(machine.sh(&format!("cat {}/note", pod.display()))? == "hello", "not shared");
    }
    let write = format!("echo no >{}/note", reader.display());
    let refused = machine.node.exec(["sh", "-c", &write]).run()?;
    ensure!(!refused.status.success(), "a reader wrote");
    ensure!(refused.stderr_text().contains("Read-only"), "{}", refused.stderr_text());
    machine.sh(&format!("echo still >{}/note", v.pod.display()))?;
    for pod in [&second, &reader] {
        v.unpublish(pod)?;
        v.unpublish(pod).context("unpublished twice")?;
    }
    machine.sh(&format!("kill {}; umount /run/readers", elsewhere.trim())).map(drop)
}

fn agrees_with_df(machine: &Machine, csi: &Csi, v: &Vol) -> Result<()> {
    fill(machine, &v.file("some"), 16)?;
    let usage = csi.stats(&v.id, &v.pod)?;
    let bytes = usage.iter().find(|it| it.unit() == pb::volume_usage::Unit::Bytes);
    let bytes = bytes.context("no bytes")?;
    let df =
        machine.sh(&format!("df -B1 --output=size,used,avail {} | tail -n 1", v.pod.display()))?;
    let df: Vec<i64> = df.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(df == [bytes.total, bytes.used, bytes.available], "df: {df:?}, ours: {bytes:?}");
    Ok(())
}

/// A snapshot of the mounted volume restored, larger, and a clone; both mounted beside it.
fn copies_beside(machine: &Machine, csi: &Csi, v: &Vol, fs: &'static str) -> Result<()> {
    let written = fill(machine, &v.file("data"), 16)?;
    let snapshot = csi.snapshot("snapshot-1", &v.id)?.snapshot_id;
    let damaged = fill(machine, &v.file("data"), 16)?;
    let class = filesystem("thin", fs);
    let restored = Vol::from(csi, class, "pvc-2", 960 * MIB, Source::Snapshot(&snapshot))?;
    let cloned = Vol::from(csi, class, "pvc-3", 640 * MIB, Source::Volume(&v.id))?;
    for copy in [&restored, &cloned] {
        copy.attach()?;
    }
    ensure!(sum(machine, &restored.file("data"), 16)? == written, "restored: other data");
    ensure!(sum(machine, &cloned.file("data"), 16)? == damaged, "cloned: other data");
    ensure!(size(machine, &restored)? >= size(machine, v)? + 280 * MIB, "it did not grow");
    let uuid = |v: &Vol| machine.sh(&format!("blkid -p -o value -s UUID {}", v.device()));
    let uuids = [uuid(v)?, uuid(&restored)?, uuid(&cloned)?];
    ensure!(uuids[0] != uuids[1] && uuids[1] != uuids[2] && uuids[0] != uuids[2], "{uuids:?}");
    // Nobody writes into another's.
    fill(machine, &restored.file("data"), 16)?;
    fill(machine, &cloned.file("data"), 16)?;
    ensure!(sum(machine, &v.file("data"), 16)? == damaged, "the source changed");
    for copy in [&restored, &cloned] {
        copy.detach()?;
        copy.attach().context("staged again")?;
        copy.detach()?;
        copy.delete()?;
    }
    csi.delete_snapshot(&snapshot)?;
    Ok(())
}
