//! Errors under one part of a VG alone: a pool's data, its metadata, the metadata of the VG. What lies elsewhere goes on, also in the same VG;
//! and what was there is there when the disk is well.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Class, Csi, Machine};
use tonic::Code;

use super::shaky::{self, How, a_life, a_life_beside};
use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, VG, Vol, bare, code, expect_nothing_left_beside, figure, fill,
    sum, troubles, wait_for_trouble,
};

/// A volume in use, and the checksum of what was written to it before.
struct Used {
    v: Vol,
    written: String,
}

impl Used {
    fn new(machine: &Machine, csi: &Csi, class: Class, name: &str) -> Result<Self> {
        let v = Vol::create(csi, class, name, 128 * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), 8)?;
        Ok(Self { v, written })
    }

    fn write(&self, machine: &Machine) -> Result<()> {
        let file = self.v.file("more");
        machine.sh(&format!("dd if=/dev/urandom of={file} bs=1M count=4 conv=fsync 2>&1")).map(drop)
    }

    fn is_whole(&self, machine: &Machine) -> Result<()> {
        let drop_caches = "sync; echo 3 >/proc/sys/vm/drop_caches";
        machine.sh(drop_caches)?;
        ensure!(
            sum(machine, &self.v.file("data"), 8)? == self.written,
            "{}: other data",
            self.v.lv()
        );
        Ok(())
    }

    /// Mounted anew, as for a new pod.
    fn again(&self, machine: &Machine) -> Result<()> {
        self.v.detach()?;
        self.v.attach().with_context(|| format!("{} again", self.v.lv()))?;
        self.is_whole(machine)?;
        self.write(machine)
    }

    fn gone(self) -> Result<()> {
        self.v.detach()?;
        Ok(self.v.delete()?)
    }
}

/// A thick and a thin volume in use on a disk that is good so far.
fn with_both(
    name: &str,
    test: impl FnOnce(&Machine, &Csi, Used, Used) -> Result<()>,
) -> Result<()> {
    bare(name, &[GIB, GIB], &shaky::backends(), |machine| {
        shaky::all(machine, How::Good)?;
        machine.start(BACKEND)?;
        machine.driver.wait_for_backend("steady", Duration::from_mins(1))?;
        let csi = machine.driver.csi()?;
        let thick = Used::new(machine, &csi, THICK, "pvc-thick")?;
        let thin = Used::new(machine, &csi, THIN, "pvc-thin")?;
        test(machine, &csi, thick, thin)?;
        expect_nothing_left_beside(machine, &["shaky", "unwritable"])
    })
}

#[test]
fn a_pool_whose_data_cannot_be_reached_costs_no_volume_beside_it() -> Result<()> {
    with_both("bad-data", |machine, csi, thick, thin| {
        shaky::places(machine, How::Error, &shaky::of_lv(machine, "pool0_tdata")?)?;
        ensure!(thin.write(machine).is_err(), "the pool's data has taken a write");
        thick.write(machine)?;
        thick.is_whole(machine)?;
        a_life(csi, THICK, "pvc-other")?;
        a_life_beside(csi, "pvc-beside")?;
        // The kernel finds nothing wrong with the pool itself, and what needs no data goes on.
        let new = Vol::create(csi, THIN, "pvc-new", 64 * MIB)?;
        let refused = new.attach().unwrap_err();
        ensure!(refused.code() == Code::Internal, "{refused:?}");
        ensure!(refused.message().contains("cannot format volume pvc-new"), "{refused:?}");
        let failed = "csi_plugin_operations_seconds_count{driver_name=\"lvm.cinderblock.dev\",method_name=\"/csi.v1.Node/NodeStageVolume\",grpc_status_code=\"Internal\"}";
        ensure!(machine.driver.metric(failed)? == Some(1.0), "not counted as failed");
        csi.expand(&new.id, 96 * MIB)?;
        new.delete()?;
        ensure!(figure(machine, "thin_pool_healthy")? == Some(1.0), "healthy");
        ensure!(figure(machine, "backend_ready")? == Some(1.0), "ready");
        shaky::all(machine, How::Good)?;
        thin.again(machine)?;
        thick.again(machine)?;
        thin.gone()?;
        thick.gone()
    })
}

/// What is asked of a pool that has failed.
fn nothing_new_in_the_pool(csi: &Csi, thin: &Used) -> Result<()> {
    let created = csi.create(&THIN.request("pvc-new", 64 * MIB)).unwrap_err();
    let snapped = csi.snapshot("snapshot-1", &thin.v.id).unwrap_err();
    for refused in [created, snapped] {
        ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
        ensure!(refused.message().contains("it takes no writes"), "{refused:?}");
    }
    ensure!(code(csi.expand(&thin.v.id, 256 * MIB))? == Code::OutOfRange, "expand");
    ensure!(csi.capacity(&THIN)? == 0 && csi.capacity(&THICK)? > 0, "capacity");
    Ok(())
}

#[test]
fn a_pool_whose_metadata_cannot_be_reached_is_told_and_comes_back() -> Result<()> {
    with_both("bad-metadata", |machine, csi, thick, thin| {
        let second = Used::new(machine, csi, THIN, "pvc-second")?;
        shaky::places(machine, How::Error, &shaky::of_lv(machine, "pool0_tmeta")?)?;
        ensure!(thin.write(machine).is_err(), "a write was acknowledged that the pool cannot know");
        wait_for_trouble(machine, "ThinPoolFailed", true)?;
        ensure!(figure(machine, "thin_pool_healthy")? == Some(0.0), "healthy");
        ensure!(figure(machine, "backend_ready")? == Some(0.0), "ready");
        nothing_new_in_the_pool(csi, &thin)?;
        thick.write(machine)?;
        thick.is_whole(machine)?;
        a_life(csi, THICK, "pvc-other")?;
        a_life_beside(csi, "pvc-beside")?;
        // Its pod can leave, and is told why it cannot come back.
        thin.v.detach()?;
        ensure!(code(thin.v.stage())? == Code::Internal, "stage");
        ensure!(csi.health(&thin.v.id)? == ["ThinPoolFailed"], "its health");
        ensure!(csi.health(&thick.v.id)?.is_empty(), "the health of the thick one");
        // Gone from the VG; the pool is told when it can be.
        second.gone()?;
        machine.driver.stop()?;
        machine.driver.start()?;
        wait_for_trouble(machine, "ThinPoolFailed", true)?;
        nothing_new_in_the_pool(csi, &thin)?;
        a_life(csi, THICK, "pvc-third")?;

        // As docs/operations.md says.
        shaky::all(machine, How::Good)?;
        machine.driver.stop()?;
        machine.sh(&format!("lvchange -qq -an {VG}/pvc-thin; lvchange -qq -an {VG}/pool0"))?;
        machine.start(BACKEND)?;
        wait_for_trouble(machine, "ThinPoolFailed", false)?;
        ensure!(figure(machine, "thin_pool_healthy")? == Some(1.0), "not healthy");
        thin.v.attach()?;
        thin.again(machine)?;
        thick.again(machine)?;
        let snapshot = csi.snapshot("snapshot-1", &thin.v.id)?.snapshot_id;
        csi.delete_snapshot(&snapshot)?;
        thin.gone()?;
        thick.gone()?;
        machine.driver.wait_until(Duration::from_mins(1), "rid of what was in the pool", || {
            Ok(figure(machine, "thin_pool_data_used_ratio")? == Some(0.0))
        })
    })
}

/// Who has a volume notices nothing.
fn users_go_on(machine: &Machine, volumes: [&Used; 2]) -> Result<()> {
    for it in volumes {
        it.write(machine)?;
        it.is_whole(machine)?;
    }
    Ok(())
}

/// Each change of the VG is refused.
fn refused(csi: &Csi, volumes: [&Used; 2], change: Code, create: Code) -> Result<()> {
    for it in volumes {
        let (v, lv) = (&it.v, it.v.lv());
        ensure!(code(csi.expand(&v.id, 256 * MIB))? == change, "expand {lv}");
        ensure!(code(csi.snapshot("snapshot-1", &v.id))? == change, "snapshot of {lv}");
    }
    for class in [THICK, THIN] {
        let answer = csi.create(&class.request("pvc-new", 64 * MIB)).unwrap_err();
        ensure!(answer.code() == create, "create: {answer:?}");
    }
    Ok(())
}

#[test]
fn a_volume_group_whose_metadata_cannot_be_reached_is_told_and_its_users_go_on() -> Result<()> {
    with_both("bad-area", |machine, csi, thick, thin| {
        let area = shaky::of_vg_metadata(machine)?;
        let lvs = || {
            machine
                .sh(&format!("lvs -a --noheadings -o lv_name,lv_size,lv_tags,seg_pe_ranges {VG}"))
        };
        let idle = Vol::create(csi, THICK, "pvc-idle", 64 * MIB)?;
        let before = lvs()?;
        shaky::places(machine, How::NoWrites, &area)?;
        refused(csi, [&thick, &thin], Code::Internal, Code::Internal)?;
        let deleted = idle.delete().unwrap_err();
        ensure!(deleted.code() == Code::Internal, "{deleted:?}");
        ensure!(deleted.message().contains("Failed to write metadata"), "{deleted:?}");
        users_go_on(machine, [&thick, &thin])?;
        a_life_beside(csi, "pvc-beside")?;
        let after = lvs()?;
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        let failed =
            "cinderblock_program_seconds_count{program=\"lvm lvcreate\",outcome=\"failed\"}";
        ensure!(machine.driver.metric(failed)? == Some(4.0), "failures of LVM are not counted");

        shaky::places(machine, How::Error, &area)?;
        wait_for_trouble(machine, "BackendNotReady", true)?;
        ensure!(figure(machine, "backend_ready")? == Some(0.0), "ready");
        refused(csi, [&thick, &thin], Code::Unavailable, Code::ResourceExhausted)?;
        users_go_on(machine, [&thick, &thin])?;
        a_life_beside(csi, "pvc-third")?;
        ensure!(code(idle.delete())? == Code::Unavailable, "delete");
        for it in [&thick, &thin] {
            it.v.detach()?;
            ensure!(code(it.v.stage())? == Code::Unavailable, "stage {}", it.v.lv());
        }

        shaky::all(machine, How::Good)?;
        wait_for_trouble(machine, "BackendNotReady", false)?;
        ensure!(troubles(machine, "ThinPoolFailed")? == 0.0, "the pool has failed");
        let after = lvs()?;
        ensure!(after == before, "before:\n{before}\nafter:\n{after}");
        a_life(csi, THIN, "pvc-new")?;
        idle.delete()?;
        for it in [thick, thin] {
            it.v.attach()?;
            it.is_whole(machine)?;
            it.gone()?;
        }
        Ok(())
    })
}
