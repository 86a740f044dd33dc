//! How drivers of this kind have lost data or let it leak, tried on this one. docs/losses.md has the list; what other files
//! here show is not repeated.

use anyhow::{Result, ensure};
use cinderblock_lab::driver::{Class, Machine};
use tonic::Code;

use crate::support::{
    BACKEND, GIB, MIB, THICK, THICK_BLOCK, THIN, VG, Vol, code, expect_nothing_left, filesystem,
    fill, pooled, started, sum,
};

/// Each extent of the VG begins with the superblock of somebody's ext4, as an old tenant leaves it.
fn leave_signatures(machine: &Machine) -> Result<()> {
    machine.sh(&format!(
        "truncate -s 64M /run/old.img; mkfs.ext4 -q -U 11111111-2222-3333-4444-555555555555 /run/old.img
         lvcreate -qqy -Wn -Zn -l 100%FREE -n old {VG}
         n=$(lvs --noheadings --units m --nosuffix -o lv_size {VG}/old | tr -d ' ' | cut -d. -f1)
         i=0; while [ $i -lt $n ]; do
           dd if=/run/old.img of=/dev/{VG}/old bs=64k count=4 seek=$((i * 16)) conv=notrunc 2>/dev/null; i=$((i + 4))
         done
         sync; blkid -p /dev/{VG}/old >/dev/null
         lvremove -qqy {VG}/old"
    ))
    .map(drop)
}

#[test]
fn what_an_old_tenant_left_is_no_filesystem_and_hides_none() -> Result<()> {
    started("losses-signatures", &[2 * GIB], &pooled(1, "20%"), |machine| {
        leave_signatures(machine)?;
        let csi = machine.driver.csi()?;
        let classes: [(Class, &str); 3] = [
            (THICK, "pvc-ext4"),
            (filesystem("thick", "xfs"), "pvc-xfs"),
            (THICK_BLOCK, "pvc-block"),
        ];
        for (class, name) in classes {
            let v = Vol::create(&csi, class, name, 320 * MIB)?;
            v.attach()?;
            let old = machine.sh(&format!("blkid -p {} || true", v.device()))?;
            ensure!(!old.contains("11111111-2222"), "{name} shows the old tenant's {old}");
            let written = fill(machine, &v.file("data"), 4)?;
            v.detach()?;
            v.attach()?;
            ensure!(sum(machine, &v.file("data"), 4)? == written, "{name}: other data");
            v.detach()?;
            v.delete()?;
        }
        expect_nothing_left(machine)
    })
}

#[test]
fn unmounting_is_honest_and_needs_nothing_that_is_gone() -> Result<()> {
    started("losses-unmount", &[2 * GIB], &pooled(1, "50%"), |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THIN, "pvc-1", 128 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 4)?;
        // Somebody is in it: an unmount that the kernel refuses is told as what it is.
        let pid = machine.sh(&format!(
            "cd {}; sleep 1000 >/dev/null 2>&1 </dev/null & echo $!",
            v.pod.display()
        ))?;
        let refused = code(v.unpublish(&v.pod))?;
        ensure!(refused != Code::Ok, "an unmount that the kernel refuses is told as done");
        let mounted = machine.sh("grep -c /run/v/pvc-1/pod /proc/self/mountinfo || true")?;
        ensure!(mounted.trim() == "1", "it is mounted {mounted} times");
        ensure!(sum(machine, &v.file("data"), 4)? == written, "other data");
        machine.sh(&format!(
            "kill {}; while kill -0 {0} 2>/dev/null; do sleep 0.1; done",
            pid.trim()
        ))?;

        // The backend is not configured any more, and its VG is gone from sight.
        machine.driver.stop()?;
        machine.driver.configure("backends: []\n")?;
        machine.driver.start()?;
        let mut gone = v.clone();
        gone.csi = machine.driver.csi()?;
        gone.detach()?;
        gone.detach()?;
        machine.driver.stop()?;
        machine.driver.configure(&pooled(1, "50%"))?;
        machine.start(BACKEND)?;
        gone.csi = machine.driver.csi()?;
        gone.attach()?;
        ensure!(sum(machine, &gone.file("data"), 4)? == written, "other data");
        gone.detach()?;
        gone.delete()?;
        expect_nothing_left(machine)
    })
}
