//! Power cuts: what was synced is there, nothing is formatted twice, and a volume whose making was cut is made after all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::Machine;

use crate::support::{
    GIB, MIB, THICK_BLOCK, Vol, expect_nothing_left, filesystem, fill, pooled, power_cut,
    started_on_debian, sum,
};

#[test]
fn synced_data_survives_a_power_cut_and_inactive_volumes_become_active() -> Result<()> {
    started_on_debian("power", &[4 * GIB, 4 * GIB], &pooled(2, "60%"), |machine| {
        let classes = [
            (filesystem("thin", "ext4"), "pvc-a"),
            (filesystem("thin", "xfs"), "pvc-b"),
            (filesystem("thick", "btrfs"), "pvc-c"),
            (THICK_BLOCK, "pvc-d"),
        ];
        let csi = machine.driver.csi()?;
        let mut before = Vec::new();
        for (class, name) in classes {
            let mut v = Vol::create(&csi, class, name, 320 * MIB)?;
            v.attach()?;
            let written = fill(machine, &v.file("data"), 8)?;
            let uuid = uuid(machine, &v)?;
            // Written, and never synced: it may be lost, but must not harm.
            machine.sh(&format!(
                "dd if=/dev/urandom of={} bs=1M count=2 seek=20 2>/dev/null",
                v.file("more")
            ))?;
            v.csi = csi.clone();
            before.push((v, written, uuid));
        }
        power_cut(machine)?;
        let active = machine.sh("dmsetup ls | grep -c pvc || true")?;
        ensure!(active == "0", "{active} volumes are active, though nobody staged them");
        let csi = machine.driver.csi()?;
        for (mut v, written, was) in before {
            v.csi = csi.clone();
            v.attach().with_context(|| v.id.clone())?;
            ensure!(sum(machine, &v.file("data"), 8)? == written, "{}: other data", v.id);
            ensure!(uuid(machine, &v)? == was, "{}: formatted again", v.id);
            v.detach()?;
            v.delete()?;
        }
        expect_nothing_left(machine)
    })
}

fn uuid(machine: &Machine, v: &Vol) -> Result<String> {
    machine.sh(&format!("blkid -p -o value -s UUID {} || true", v.device()))
}

#[test]
fn a_volume_whose_mkfs_was_cut_is_formatted_after_all() -> Result<()> {
    started_on_debian("mkfs", &[8 * GIB, 8 * GIB], &pooled(2, "60%"), |machine| {
        let csi = machine.driver.csi()?;
        let mut volumes = Vec::new();
        for (fs, name) in [("ext4", "pvc-a"), ("xfs", "pvc-b"), ("btrfs", "pvc-c")] {
            volumes.push((fs, Vol::create(&csi, filesystem("thick", fs), name, GIB)?));
        }
        for (fs, v) in &volumes {
            caught_in_the_middle(machine, fs, v)?;
        }
        power_cut(machine)?;
        let csi = machine.driver.csi()?;
        for (fs, mut v) in volumes {
            v.csi = csi.clone();
            v.attach().with_context(|| fs.to_owned())?;
            let written = fill(machine, &v.file("data"), 8)?;
            v.detach()?;
            v.attach()?;
            ensure!(sum(machine, &v.file("data"), 8)? == written, "{fs}: other data");
            v.detach()?;
            v.delete()?;
        }
        expect_nothing_left(machine)
    })
}

/// Stages a new volume and stops its mkfs after it has begun to write. Nobody waits for the call.
fn caught_in_the_middle(machine: &Machine, fs: &str, v: &Vol) -> Result<()> {
    machine.sh(&trap(fs, &v.device()))?;
    let hasty = v.csi.clone().with_timeout(Duration::from_secs(5));
    let staged = Vol { csi: hasty, ..v.clone() }.stage();
    ensure!(staged.is_err(), "{fs}: staged, though its mkfs was caught");
    let caught = machine
        .sh(&format!("until test -s /run/caught-{fs}; do sleep 0.1; done; cat /run/caught-{fs}"))?;
    let sectors: u64 = caught.trim().parse().with_context(|| format!("mkfs.{fs}: {caught}"))?;
    println!("mkfs.{fs} was caught after it had written {sectors} sectors");
    Ok(())
}

/// A script that puts another mkfs over this one until the VM boots again. It starts the real one in
/// small steps, and stops it for good when the device's count of written sectors has changed.
fn trap(fs: &str, device: &str) -> String {
    format!(
        r#"mkdir -p /run/real /run/trap
        cp -L /usr/sbin/mkfs.{fs} /run/real/mkfs.{fs}
        cat >/run/trap/mkfs.{fs} <<'TRAP'
#!/bin/sh
written() {{ read -r _ _ _ _ _ _ sectors _ </sys/block/$disk/stat; }}
disk=dm-$(($(stat -Lc 0x%T {device})))
sh -c 'kill -STOP $$; exec "$0" "$@"' /run/real/mkfs.{fs} "$@" &
pid=$!
until grep -q '^State:.T' /proc/$pid/status; do :; done
written; before=$sectors
while written && [ $sectors = $before ] && kill -CONT $pid; do kill -STOP $pid; done
kill -STOP $pid
while grep -q '^State:.[RS]' /proc/$pid/status; do sleep 0.1; done
if grep -q '^State:.[TD]' /proc/$pid/status; then written; echo $((sectors-before)); else echo it ended; fi >/run/caught-{fs}
sleep 3600
TRAP
        chmod +x /run/trap/mkfs.{fs}
        mount --bind /run/trap/mkfs.{fs} $(readlink -f /usr/sbin/mkfs.{fs})"#
    )
}
