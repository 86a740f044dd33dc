//! What looks like ours and is not, and what is ours and does not look so: a second VG of the same name, and tags that were edited by hand.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Csi, Machine};
use tonic::Code;

use super::broken_lvm::{spoil, wrap};
use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, VG, Vol, code, expect_nothing_left, figure, fill, pooled,
    started, sum, wait_for_trouble,
};

const NOTICED: Duration = Duration::from_secs(40);

fn tag(machine: &Machine, v: &Vol, change: &str) -> Result<()> {
    machine.sh(&format!("lvchange -qq {change} {VG}/{}", v.lv())).map(drop)
}

/// Refused as soon as the tag is noticed, which may take ten seconds.
fn refused(v: &Vol, code: Code, words: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let told = match v.stage() {
            Err(refused) if refused.message().contains(words) => {
                ensure!(refused.code() == code, "{refused:?}");
                return Ok(());
            }
            other => other,
        };
        v.unstage()?;
        ensure!(start.elapsed() < NOTICED, "{told:?} has no {words:?}");
        sleep(Duration::from_millis(500));
    }
}

/// A tag that says too much must not cost the data, and one that is missing not the volume.
fn tags_edited_by_hand(machine: &Machine, csi: &Csi, v: &Vol, written: &str) -> Result<()> {
    tag(machine, v, "--addtag cb.fresh")?;
    refused(v, Code::Internal, "has files: nothing was formatted")?;
    // Its group descriptors, behind the superblock: the kernel mounts it no more.
    let (at, kept) = ("bs=1k count=6", "/run/descriptors");
    let device = v.device();
    machine.sh(&format!("lvchange -qq -ay {VG}/{}", v.lv()))?;
    machine.sh(&format!("dd if={device} of={kept} {at} skip=2 iflag=direct 2>/dev/null"))?;
    machine.sh(&format!(
        "dd if=/dev/zero bs=1k count=6 2>/dev/null | tr '\\0' '\\377' >/run/bad; dd if=/run/bad of={device} {at} seek=2 conv=fsync 2>/dev/null"
    ))?;
    refused(v, Code::Internal, "may have been used: nothing was formatted")?;
    machine.sh(&format!("dd if={kept} of={device} {at} seek=2 conv=fsync 2>/dev/null"))?;
    tag(machine, v, "--deltag cb.fresh --addtag cb.luks")?;
    refused(v, Code::InvalidArgument, "the volume is encrypted, and no Secret came with the call")?;
    tag(machine, v, "--deltag cb.luks --addtag cb.unknown=1")?;
    let start = Instant::now();
    while let Err(refused) = v.stage() {
        ensure!(start.elapsed() < NOTICED, "{refused:?}");
        sleep(Duration::from_millis(500));
    }
    v.attach()?;
    ensure!(sum(machine, &v.file("data"), 8)? == written, "other data");
    v.detach()?;
    tag(machine, v, "--deltag cb.unknown=1 --deltag cinderblock=1")?;
    ensure!(code(v.delete())? == Code::FailedPrecondition, "deleted though it is not ours");
    ensure!(code(csi.expand(&v.id, 256 * MIB))? == Code::NotFound, "expanded");
    tag(machine, v, "--addtag cinderblock=1")
}

fn uuid(machine: &Machine, device: &str) -> Result<String> {
    machine.sh(&format!("pvs --devices {device} --noheadings -o vg_uuid | tr -d ' '"))
}

/// As when disks of another machine are put in: volumes are known by the VG's identifier.
fn two_of_one_name(machine: &Machine, csi: &Csi, v: &Vol, written: &str) -> Result<()> {
    // LVM itself makes none where it sees the links of another.
    machine.sh(&format!(
        "mv /dev/{VG} /dev/away; pvcreate -qq --devices /dev/ubdd /dev/ubdd
         vgcreate -qq --devices /dev/ubdd {VG} /dev/ubdd; rm -rf /dev/{VG}; mv /dev/away /dev/{VG}"
    ))?;
    let other = uuid(machine, "/dev/ubdd")?;
    ensure!(uuid(machine, "/dev/ubdc")? != other, "no second volume group");
    machine.driver.stop()?;
    machine.driver.start()?;
    for class in [THICK, THIN] {
        let refused = csi.create(&class.request("pvc-2", 64 * MIB)).unwrap_err();
        println!("{}", refused.message());
        ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
        ensure!(refused.message().contains("two volume groups are called"), "{refused:?}");
        ensure!(csi.capacity(&class)? == 0, "there is capacity");
    }
    wait_for_trouble(machine, "BackendNotReady", true)?;
    ensure!(figure(machine, "backend_ready")? == Some(0.0), "ready with two of one name");
    v.attach()?;
    ensure!(sum(machine, &v.file("data"), 8)? == written, "other data");
    v.detach()?;
    machine.sh(&format!("vgrename -qq {other} elsewhere"))?;
    machine.driver.wait_for_backend(BACKEND, Duration::from_mins(2))?;
    wait_for_trouble(machine, "BackendNotReady", false)?;
    v.attach()?;
    ensure!(sum(machine, &v.file("data"), 8)? == written, "other data");
    v.detach()?;
    Ok(v.delete()?)
}

#[test]
fn what_looks_like_ours_is_not_taken_and_what_is_ours_is_not_lost() -> Result<()> {
    started("lookalikes", &[GIB, 288 * MIB], &pooled(1, "50%"), |machine| {
        let csi = machine.driver.csi()?;
        let v = Vol::create(&csi, THIN, "pvc-1", 128 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 8)?;
        v.detach()?;
        tags_edited_by_hand(machine, &csi, &v, &written)?;
        two_of_one_name(machine, &csi, &v, &written)?;
        expect_nothing_left(machine)
    })
}

/// A pool whose making was cut is made again. Somebody makes a volume in it just before it is removed: LVM's
/// own proof says no, and the pool is taken as it is.
#[test]
fn a_volume_that_somebody_makes_in_a_half_made_pool_stays() -> Result<()> {
    started("late-volume", &[GIB], &pooled(1, "25%"), |machine| {
        machine.driver.stop()?;
        // As lvconvert leaves it: the tags are its part's, and the spare is not there yet.
        machine.sh(&format!(
            "lvchange -qq --deltag cinderblock=1 --deltag cb.pool {VG}/pool0; lvremove -qqy {VG}/lvol0_pmspare"
        ))?;
        wrap(machine)?;
        // Inactive, so that nothing has the pool open.
        machine.sh(&format!(
            "cat >/run/weather/late <<'END'
                 real=/run/weather/real/lvm
                 $real lvcreate -qqy -V 64M --thinpool pool0 -n theirs {VG}
                 $real lvchange -qqy -an {VG}
END"
        ))?;
        spoil(machine, "lvremove", "late")?;
        machine.start(BACKEND)?;
        machine.sh("test ! -e /run/weather/next").context("no lvremove was run")?;
        let found = machine.sh(&format!("lvs --noheadings -o lv_name,lv_tags {VG}"))?;
        let found: Vec<_> = found.split_whitespace().collect();
        ensure!(found == ["pool0", "cb.pool,cinderblock=1", "theirs"], "{found:?}");
        Ok(())
    })
}
