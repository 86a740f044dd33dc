//! A node that is not well itself: no room on its root disk, /etc that cannot be written, no udev, a clock that jumps. Volumes live their lives all the same.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Csi, Machine, Source};

use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, Vol, expect_nothing_left, fill, pooled, started, sum,
};

/// What is wrong, and how it comes about. Each stays for those after it.
const TROUBLES: [(&str, &str); 5] = [
    (
        "root disk full",
        "fallocate -l $(($(df -B1 --output=avail / | tail -n 1) - 65536)) /fill
         dd if=/dev/zero of=/fill2 bs=4k 2>/dev/null || true
         ! sh -c 'echo more >/more' 2>/dev/null",
    ),
    (
        "/etc read-only",
        "mount --bind /etc /etc; mount -o remount,bind,ro /etc; ! touch /etc/more 2>/dev/null",
    ),
    ("udev slow", "pkill -STOP -x systemd-udevd"),
    ("udev gone", "pkill -KILL -x systemd-udevd; while pgrep -x systemd-udevd; do sleep 0.1; done"),
    ("clock ahead", "date -s '+400 days' >/dev/null"),
];

fn life(machine: &Machine, csi: &Csi, name: &str) -> Result<()> {
    let mut volumes = Vec::new();
    for (class, kind) in [(THIN, "thin"), (THICK, "thick")] {
        let v = Vol::create(csi, class, &format!("pvc-{name}-{kind}"), 64 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 4)?;
        ensure!(csi.expand(&v.id, 96 * MIB)? == 96 * MIB, "it did not grow");
        csi.expand_on_node(&v.id, &v.pod)?;
        volumes.push((v, class, written));
    }
    let (v, class, written) = &volumes[0];
    let snapshot = csi.snapshot(&format!("snapshot-{name}"), &v.id)?.snapshot_id;
    let restored = format!("pvc-{name}-restored");
    let restored = Vol::from(csi, *class, &restored, 96 * MIB, Source::Snapshot(&snapshot))?;
    restored.attach()?;
    ensure!(sum(machine, &restored.file("data"), 4)? == *written, "restored: other data");
    restored.detach()?;
    restored.delete()?;
    csi.delete_snapshot(&snapshot)?;
    for (v, _, written) in volumes {
        v.detach()?;
        v.attach()?;
        ensure!(sum(machine, &v.file("data"), 4)? == written, "other data");
        v.detach()?;
        v.delete()?;
    }
    Ok(())
}

#[test]
fn volumes_live_on_a_node_that_is_not_well() -> Result<()> {
    started("poor-node", &[2 * GIB], &pooled(1, "50%"), |machine| {
        let csi = machine.driver.csi()?;
        for (n, (what, how)) in TROUBLES.into_iter().enumerate() {
            machine.sh(how).with_context(|| format!("making it so: {what}"))?;
            life(machine, &csi, &n.to_string()).with_context(|| format!("with {what}"))?;
        }
        // An agent that starts there, in another year.
        machine.sh("date -s '-800 days' >/dev/null")?;
        machine.driver.stop()?;
        machine.start(BACKEND)?;
        life(machine, &csi, "last").context("with a clock behind, after a start")?;
        expect_nothing_left(machine)
    })
}
