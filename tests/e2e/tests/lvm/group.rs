//! A backend's VG: made once, found for ever, whenever its making was cut and whatever the host's own LVM is told.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use cinderblock_lab::driver::Machine;
use cinderblock_lab::long::Random;

use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, VG, Vol, bare, expect_nothing_left, fill, pooled, power_cut,
    started, sum,
};

const FIRST: &str = "making the disk a physical volume backend=fast disk=/dev/disk/by-id/lab-disk1";
const MADE: &str = "making the volume group";

fn identity(machine: &Machine) -> Result<String> {
    machine.sh(&format!(
        "vgs --noheadings -o vg_uuid,pv_count,vg_tags {VG}; pvs --noheadings -o pv_uuid"
    ))
}

#[test]
fn the_group_is_made_once_and_found_after_a_restart_and_a_power_cut() -> Result<()> {
    started("group", &[GIB, GIB], &pooled(2, "50%"), |machine| {
        let made = identity(machine)?;
        machine.driver.stop()?;
        machine.start(BACKEND)?;
        ensure!(identity(machine)? == made, "another after a restart");
        power_cut(machine)?;
        ensure!(identity(machine)? == made, "another after a power cut: {made}");
        let times = machine.driver.log_text().matches(MADE).count();
        ensure!(times == 1, "the log says {times} times: {MADE}");
        closed_to_the_hosts_own_lvm(machine)
    })
}

/// The host's configuration forbids LVM every disk; the driver works, and the files stay as they are.
fn closed_to_the_hosts_own_lvm(machine: &Machine) -> Result<()> {
    machine.driver.stop()?;
    machine.sh(
        "mkdir -p /etc/lvm/devices
         echo 'devices { use_devicesfile=1 global_filter=[\"r|.*|\"] filter=[\"r|.*|\"] }' >/etc/lvm/lvm.conf
         printf 'VERSION=1.1.1\\nIDTYPE=devname IDNAME=/dev/none DEVNAME=/dev/none PVID=none\\n' >/etc/lvm/devices/system.devices",
    )?;
    let files = "find /etc/lvm -type f | sort | xargs sha256sum; find /etc/lvm | sort";
    let before = machine.sh(files)?;
    let seen = machine.sh("vgs --noheadings 2>/dev/null || true")?;
    ensure!(seen.is_empty(), "the host's own LVM should see nothing, but sees {seen}");
    machine.start(BACKEND)?;
    let csi = machine.driver.csi()?;
    for (class, name) in [(THIN, "pvc-thin"), (THICK, "pvc-thick")] {
        let v = Vol::create(&csi, class, name, 128 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 8)?;
        csi.expand(&v.id, 160 * MIB)?;
        csi.expand_on_node(&v.id, &v.staging)?;
        ensure!(sum(machine, &v.file("data"), 8)? == written, "{name}: other data");
        v.detach()?;
        v.delete()?;
    }
    ensure!(machine.sh(files)? == before, "files in /etc/lvm changed");
    machine.sh("rm -r /etc/lvm/devices; : >/etc/lvm/lvm.conf")?;
    expect_nothing_left(machine)
}

/// How often the making is cut.
const CUTS: usize = 6;

#[test]
fn a_making_that_is_killed_at_any_moment_is_finished() -> Result<()> {
    let mut random = Random::seeded("group");
    bare("making", &[GIB, GIB], &pooled(2, "50%"), |machine| {
        for cut in 0..CUTS {
            let (wait, all) = (random.below(1500), random.below(2) == 0);
            let before = machine.driver.log_text().matches(FIRST).count();
            thread::scope(|scope| -> Result<()> {
                // It fails because it is killed, or is done before.
                let starting = scope.spawn(|| machine.driver.start());
                let begun = std::time::Instant::now();
                // From its first step on.
                while machine.driver.log_text().matches(FIRST).count() == before {
                    ensure!(begun.elapsed() < Duration::from_mins(3), "no disk was taken");
                    thread::sleep(Duration::from_millis(10));
                }
                thread::sleep(Duration::from_millis(wait));
                if all { machine.driver.kill_all() } else { machine.driver.kill() }?;
                drop(starting.join());
                Ok(())
            })?;
            let half = machine
                .sh("pvs --noheadings -o pv_name,vg_name; lvs -a --noheadings -o lv_name")?;
            println!("cut {cut} after {wait} ms (with its children: {all}), which left: {half:?}");
            machine.start(BACKEND)?;
            let groups = machine.sh("vgs --noheadings -o vg_name,pv_count")?;
            ensure!(groups.split_whitespace().eq([VG, "2"]), "{groups}");
            expect_nothing_left(machine)?;
            machine.driver.stop()?;
            machine.sh(&format!("vgremove -qff {VG}; pvremove -qff /dev/disk/by-id/lab-disk1 /dev/disk/by-id/lab-disk2"))?;
        }
        Ok(())
    })
}
