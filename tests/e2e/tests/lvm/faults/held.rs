//! Another program has a volume's device, as the mkfs of a driver that was killed: nobody works on the device beside it.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::Machine;
use tonic::Code;

use crate::support::{GIB, MIB, Vol, expect_nothing_left, filesystem, fill, pooled, started, sum};

/// A device of device-mapper over it has it for itself alone, as a mount does.
fn hold(machine: &Machine, device: &str) -> Result<()> {
    let table =
        format!("dmsetup create hold --table \"0 $(blockdev --getsz {device}) linear {device} 0\"");
    machine.sh(&table).map(drop)
}

fn let_go(machine: &Machine) -> Result<()> {
    machine.sh("dmsetup remove hold").map(drop)
}

fn is_not_worked_on(v: &Vol) -> Result<()> {
    let refused = v.stage().err().context("it was staged beside another program")?;
    let told =
        refused.code() == Code::Unavailable && refused.message().contains("is not worked on while");
    ensure!(told, "{refused:?}");
    Ok(())
}

/// The words by which the driver knows that another was quicker.
fn programs_say_so(machine: &Machine, device: &str, programs: &[&str]) -> Result<()> {
    for program in programs {
        let said =
            machine.sh(&format!("{program} {device} 2>&1 >/dev/null && echo went well; true"))?;
        let said = said.to_ascii_lowercase();
        ensure!(
            [" in use", "resource busy", "cannot continue, aborting"]
                .iter()
                .any(|words| said.contains(words)),
            "{program}: {said}"
        );
    }
    Ok(())
}

#[test]
fn a_device_that_another_program_has_is_not_worked_on() -> Result<()> {
    started("held", &[4 * GIB, 4 * GIB], &pooled(2, "60%"), |machine| {
        let csi = machine.driver.csi()?;
        for (fs, make) in
            [("ext4", "mkfs.ext4 -q -F"), ("xfs", "mkfs.xfs -q -f"), ("btrfs", "mkfs.btrfs -q -f")]
        {
            let v = Vol::create(&csi, filesystem("thin", fs), &format!("pvc-{fs}"), 320 * MIB)?;
            let device = v.device();
            hold(machine, &device)?;
            programs_say_so(machine, &device, &[make])?;
            is_not_worked_on(&v)?;
            let_go(machine)?;
            v.attach()?;
            let written = fill(machine, &v.file("data"), 4)?;
            v.detach()?;
            if fs == "ext4" {
                // As tune2fs has it, which asks for no device for itself alone.
                let reader =
                    machine.sh(&format!("sleep 1000 >/dev/null 2>&1 <{device} & echo $!"))?;
                is_not_worked_on(&v)?;
                machine.sh(&format!("kill {}", reader.trim()))?;
                hold(machine, &device)?;
                programs_say_so(machine, &device, &["e2fsck -p"])?;
                is_not_worked_on(&v)?;
                let_go(machine)?;
            }
            if fs == "xfs" {
                hold(machine, &device)?;
                programs_say_so(machine, &device, &["xfs_repair"])?;
                let_go(machine)?;
            }
            v.attach()?;
            ensure!(sum(machine, &v.file("data"), 4)? == written, "{fs}: other data");
            v.detach()?;
            v.delete()?;
        }
        expect_nothing_left(machine)
    })
}
