//! The agent is killed with the LVM command that it ran, while it waits itself for what that held: beside it, the watchdog has all go on.

use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::Machine;

use crate::support::{
    BACKEND, GIB, MIB, THIN, VG, Vol, expect_nothing_left, fill, pooled, started, sum,
};

/// For a call that waits for ever.
const HASTE: Duration = Duration::from_secs(5);

/// Holds the pool as LVM does, and has the agent mount a volume of it. It waits in the kernel then.
fn held(machine: &Machine, v: &Vol) -> Result<()> {
    machine.sh(&format!("dmsetup suspend --noflush {VG}-pool0-tpool"))?;
    let hasty = Vol { csi: v.csi.clone().with_timeout(HASTE), ..v.clone() };
    ensure!(spawn(move || hasty.stage()).join().is_ok_and(|staged| staged.is_err()), "staged");
    let waits = "for it in /proc/$(pgrep -o cinderblock)/task/*/stat; do cut -d ' ' -f 3 $it; done";
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
