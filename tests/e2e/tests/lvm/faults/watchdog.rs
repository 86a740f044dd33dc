//! The agent is killed with the LVM command that it ran, while it waits itself for what that held: beside it, the watchdog has all go on.

use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Machine, Source};

use super::broken_lvm::{spoil, wrap};
use crate::support::{
    BACKEND, GIB, MIB, THIN, VG, Vol, expect_nothing_left, fill, pooled, started,
    started_on_debian, sum,
};

/// For a call that waits for ever.
const HASTE: Duration = Duration::from_secs(5);

/// Holds the pool as LVM does, and has the agent mount a volume of it. It waits in the kernel then.
fn held(machine: &Machine, v: &Vol) -> Result<()> {
    machine.sh(&format!("dmsetup suspend --noflush {VG}-pool0-tpool"))?;
    let hasty = Vol { csi: v.csi.clone().with_timeout(HASTE), ..v.clone() };
    ensure!(spawn(move || hasty.stage()).join().is_ok_and(|staged| staged.is_err()), "staged");
    let waits = "for it in /proc/$(pgrep -o cinderblock)/task/*/stat; do cut -d ' ' -f 3 $it 2>/dev/null || :; done";
    for _ in 0..50 {
        if machine.sh(waits)?.contains('D') {
            return Ok(());
        }
        sleep(Duration::from_millis(100));
    }
    Err(anyhow::anyhow!("nothing of the agent waits for the pool"))
}

#[test]
fn an_agent_that_waits_for_what_lvm_held_can_end() -> Result<()> {
    started("watchdog", &[2 * GIB], &pooled(1, "60%"), |machine| {
        let csi = machine.driver.csi()?;
        let used = Vol::create(&csi, THIN, "pvc-used", 64 * MIB)?;
        used.attach()?;
        let written = fill(machine, &used.file("data"), 2)?;
        let v = Vol::create(&csi, THIN, "pvc-1", 64 * MIB)?;
        v.attach()?;
        v.detach()?;
        machine.driver.watchdog()?;
        held(machine, &v)?;
        machine.driver.kill_all().context("it cannot end")?;
        // Before another agent comes.
        let beat = used.file("beat");
        machine.sh(&format!("timeout 60 dd if=/dev/zero of={beat} bs=4k count=1 conv=fsync"))?;
        machine.start(BACKEND)?;
        for it in [&used, &v] {
            it.attach()?;
        }
        ensure!(sum(machine, &used.file("data"), 2)? == written, "other data");
        for it in [used, v] {
            it.detach()?;
            it.delete()?;
        }
        expect_nothing_left(machine)
    })
}

/// The numbers of two calls among all ioctls of a `lvcreate` that takes a snapshot: right after the volume is held, and the
/// pool's second message, which says that the first one counts.
fn while_it_is_held(machine: &Machine) -> Result<[usize; 2]> {
    let trace = machine.sh("cat /run/weather/trace")?;
    let numbers = |is: &dyn Fn(&str) -> bool| {
        let lines = trace.lines().enumerate().filter(|(_, line)| is(line));
        lines.map(|(at, _)| at + 1).collect::<Vec<_>>()
    };
    let held =
        numbers(&|line| line.contains("DM_DEV_SUSPEND") && line.contains("flags=DM_SUSPEND_FLAG"));
    let told = numbers(&|line| line.contains("DM_TARGET_MSG"));
    let ([held], [_, second]) = (&held[..], &told[..]) else {
        anyhow::bail!("held at {held:?} and told at {told:?}");
    };
    Ok([held + 1, *second])
}

fn held_devices(machine: &Machine) -> Result<String> {
    machine.sh("dmsetup info -c --noheadings -o name,suspended | grep Suspended | cut -d: -f1 | sort || true")
}

/// LVM is killed at this call while it takes a snapshot. The agent is stopped in that instant: nothing but the watchdog
/// has all go on.
fn cut_without_an_agent(machine: &Machine, used: &Vol, at: usize, name: &str) -> Result<()> {
    spoil(machine, "lvcreate", &format!("alone-{at}"))?;
    let hasty = machine.driver.csi()?.with_timeout(HASTE);
    ensure!(hasty.snapshot(&format!("snapshot-{name}"), &used.id).is_err(), "taken by nobody");
    machine.sh("test ! -e /run/weather/next").context("it was not run")?;
    let half = machine.sh(&format!("lvs --noheadings -o lv_name {VG}/snap-{name}"))?;
    ensure!(half.trim() == format!("snap-{name}"), "LVM had not noted it");
    // The pool as well, as by a second command.
    machine.sh(&format!("dmsetup suspend --noflush {VG}-pool0-tpool"))?;
    let held = held_devices(machine)?;
    ensure!(held.lines().count() >= 2, "LVM holds {held:?} there");
    // Before another agent comes.
    let beat = used.file("beat");
    machine.sh(&format!("timeout 60 dd if=/dev/zero of={beat} bs=4k count=1 conv=fsync"))?;
    let held = held_devices(machine)?;
    ensure!(held.is_empty(), "held still: {held}");
    let seen = machine.sh(&format!("lvs --noheadings -o lv_name {VG}/snap-{name}"))?;
    ensure!(seen == half, "the watchdog has removed it");
    Ok(())
}

#[test]
fn a_snapshot_that_was_cut_is_resumed_without_an_agent_and_taken_by_the_next() -> Result<()> {
    started_on_debian("watchdog-half-made", &[2 * GIB], &pooled(1, "60%"), |machine| {
        let csi = machine.driver.csi()?;
        let used = Vol::create(&csi, THIN, "pvc-used", 64 * MIB)?;
        used.attach()?;
        let written = fill(machine, &used.file("data"), 2)?;
        wrap(machine)?;
        spoil(machine, "lvcreate", "trace")?;
        let traced = csi.snapshot("snapshot-0", &used.id)?;
        csi.delete_snapshot(&traced.snapshot_id)?;
        let points = while_it_is_held(machine)?;
        machine.driver.watchdog()?;
        for (at, name) in points.into_iter().zip(["1", "2"]) {
            cut_without_an_agent(machine, &used, at, name).with_context(|| format!("at {at}"))?;
            machine.driver.kill_all()?;
            machine.start(BACKEND)?;
            let taken = csi.snapshot(&format!("snapshot-{name}"), &used.id)?.snapshot_id;
            let source = Source::Snapshot(&taken);
            let v = Vol::from(&csi, THIN, &format!("pvc-{name}"), 64 * MIB, source)?;
            v.attach()?;
            ensure!(sum(machine, &v.file("data"), 2)? == written, "other data in the snapshot");
            v.detach()?;
            v.delete()?;
            csi.delete_snapshot(&taken)?;
        }
        ensure!(sum(machine, &used.file("data"), 2)? == written, "other data");
        used.detach()?;
        used.delete()?;
        expect_nothing_left(machine)
    })
}
