//! Disks that are not blank: refused with a reason, and not a byte of them or of their neighbours touched.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Class, Machine, disk};
use ring::digest::{SHA256, digest};
use tonic::Code;

use crate::support::{BACKEND, MIB, THICK, VG, Vol, bare};

const DISKS: usize = 5;

/// What is on a disk, how it came there, and the words that refuse it.
const DIRTY: [(&str, &str, &str); 4] = [
    ("signature", "mkfs.ext4 -q -F /dev/disk/by-id/lab-disk1", "TYPE=ext4"),
    (
        // One partition of type Linux from sector 2048 on, 100 MiB, as old tools write it.
        "partitions",
        "printf '\\000\\000\\000\\000\\203\\000\\000\\000\\000\\010\\000\\000\\000\\040\\003\\000' | dd of=/dev/disk/by-id/lab-disk2 bs=1 seek=446 conv=notrunc,fsync 2>/dev/null
         printf '\\125\\252' | dd of=/dev/disk/by-id/lab-disk2 bs=1 seek=510 conv=notrunc,fsync 2>/dev/null
         # Whether the kernel reads it by itself depends on when udev looks.
         n=0; until blockdev --rereadpt /dev/disk/by-id/lab-disk2; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.1; done",
        "it has partitions (",
    ),
    (
        "holder",
        "echo \"0 2048 linear $(readlink -f /dev/disk/by-id/lab-disk3) 0\" | dmsetup create other",
        "dm-0 is made of it",
    ),
    (
        "mounted",
        "mkfs.ext4 -q -F /dev/disk/by-id/lab-disk4; mkdir -p /run/other; mount -o ro /dev/disk/by-id/lab-disk4 /run/other",
        "mounted",
    ),
];

/// A backend for each dirty disk, with the blank disk listed first.
fn backends() -> String {
    let mut text = "backends:\n".to_owned();
    for (number, (name, _, _)) in DIRTY.iter().enumerate() {
        let (blank, dirty) = (disk(DISKS), disk(number + 1));
        let line = format!(
            "  - {{ name: {name}, volumeGroup: vg-{name}, create: true, devices: [{blank}, {dirty}] }}\n"
        );
        text.push_str(&line);
    }
    text
}

fn sums(machine: &Machine) -> Result<Vec<Vec<u8>>> {
    machine.sh("sync")?;
    let sum = |number| {
        let file = machine.node.disk_file(number);
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(digest(&SHA256, &bytes).as_ref().to_vec())
    };
    (1..=DISKS).map(sum).collect()
}

#[test]
fn a_disk_that_is_not_blank_is_refused_with_the_reason_and_untouched() -> Result<()> {
    bare("disks", &[288 * MIB; DISKS], &backends(), |machine| {
        for (_, make, _) in DIRTY {
            machine.sh(make)?;
        }
        let before = sums(machine)?;
        machine.driver.start()?;
        let csi = machine.driver.csi()?;
        for (name, _, why) in DIRTY {
            let class = Class { backend: name, ..THICK };
            let refused = csi.create(&class.request("pvc-1", 16 * MIB)).unwrap_err();
            let message = refused.message();
            ensure!(refused.code() == Code::ResourceExhausted, "{name}: {refused:?}");
            ensure!(message.contains(why) && message.contains("nothing was touched"), "{message}");
            ensure!(csi.capacity(&class)? == 0, "{name} has capacity");
        }
        machine.driver.stop()?;
        ensure!(sums(machine)? == before, "a disk was written to");
        ensure!(
            machine.sh("pvs --noheadings; vgs --noheadings")?.is_empty(),
            "a PV or VG was made"
        );

        // Cleared by a person and listed again, the disk is taken.
        machine.sh(&format!("wipefs -qa {}", disk(1)))?;
        let devices = format!("{}, {}", disk(DISKS), disk(1));
        machine.driver.configure(&format!(
            "backends:\n  - {{ name: {BACKEND}, volumeGroup: {VG}, create: true, devices: [{devices}] }}\n"
        ))?;
        machine.driver.start()?;
        machine.driver.wait_for_backend(BACKEND, Duration::from_mins(3))?;
        let v = Vol::create(&csi, THICK, "pvc-1", 16 * MIB)?;
        v.attach()?;
        v.detach()?;
        v.delete()?;
        let now = sums(machine)?;
        ensure!(now[1..4] == before[1..4], "another backend's disk was written to");
        Ok(())
    })
}
