//! How often LVM is run, counted by the kernel: once for a change, never to look.

use anyhow::{Result, ensure};
use cinderblock_lab::driver::{LvmCount, Source};
use tonic::Status;

use crate::support::{GIB, MASTER, MIB, THICK, THICK_BLOCK, THIN, Vol, encrypted, pooled, started};

/// Runs a call that must go well, and compares how many LVM processes it takes.
fn takes<T>(
    count: &LvmCount,
    what: &str,
    budget: usize,
    call: impl FnOnce() -> Result<T, Status>,
) -> Result<T> {
    let (done, programs) = count.during(call)?;
    let found = programs.get("lvm").copied().unwrap_or_default();
    println!("{what}: {found} of lvm, in all {programs:?}");
    let done = done?;
    ensure!(found == budget, "{what} took {found} LVM processes, not {budget}: {programs:?}");
    Ok(done)
}

#[test]
fn a_change_is_one_process_and_a_look_is_none() -> Result<()> {
    started("processes", &[4 * GIB, 4 * GIB], &pooled(2, "50%"), |machine| {
        let (csi, count) =
            (machine.driver.csi()?.with_secrets(&MASTER), LvmCount::start(&machine.node)?);
        for (class, kind) in [
            (THIN, "thin"),
            (THICK, "thick"),
            (THICK_BLOCK, "thick block"),
            (encrypted(THICK), "encrypted thick"),
        ] {
            let create = || Vol::create(&csi, class, &format!("pvc-{}", kind.len()), 256 * MIB);
            let v = takes(&count, &format!("create {kind}"), 1, create)?;
            takes(&count, &format!("create {kind} again"), 0, create)?;
            takes(&count, &format!("stage {kind} first"), 1, || v.stage())?;
            takes(&count, &format!("publish {kind}"), 0, || v.publish(&v.pod))?;
            takes(&count, &format!("stats {kind}"), 0, || csi.stats(&v.id, &v.pod))?;
            takes(&count, &format!("unpublish {kind}"), 0, || v.unpublish(&v.pod))?;
            takes(&count, &format!("unstage {kind}"), 0, || v.unstage())?;
            takes(&count, &format!("stage {kind} again"), 0, || v.stage())?;
            takes(&count, &format!("stage {kind} twice"), 0, || v.stage())?;
            if class != THICK_BLOCK {
                takes(&count, &format!("expand {kind}"), 1, || csi.expand(&v.id, 512 * MIB))?;
                takes(&count, &format!("expand {kind} on the node"), 0, || {
                    csi.expand_on_node(&v.id, &v.staging)
                })?;
            }
            if class == THIN {
                let s = takes(&count, "snapshot", 1, || csi.snapshot("snapshot-1", &v.id))?;
                let from = Source::Snapshot(&s.snapshot_id);
                let restore = || Vol::from(&csi, class, "pvc-restored", 512 * MIB, from);
                let restored = takes(&count, "restore", 1, restore)?;
                takes(&count, "stage what was restored", 1, || restored.stage())?;
                takes(&count, "unstage it", 0, || restored.unstage())?;
                let from = Source::Volume(&v.id);
                let clone = || Vol::from(&csi, class, "pvc-cloned", 512 * MIB, from);
                let cloned = takes(&count, "clone", 1, clone)?;
                takes(&count, "list volumes", 0, || csi.volumes())?;
                takes(&count, "list snapshots", 0, || csi.snapshots())?;
                takes(&count, "capacity", 0, || csi.capacity(&class))?;
                takes(&count, "delete what was cloned", 1, || cloned.delete())?;
                takes(&count, "delete what was restored", 1, || restored.delete())?;
                takes(&count, "delete the snapshot", 1, || csi.delete_snapshot(&s.snapshot_id))?;
            }
            v.unstage()?;
            takes(&count, &format!("delete {kind}"), 1, || v.delete())?;
            takes(&count, &format!("delete {kind} again"), 0, || v.delete())?;
        }
        idle_and_start(machine, &count)
    })
}

/// Nothing is polled by LVM, and a start takes its version and one report.
fn idle_and_start(machine: &cinderblock_lab::driver::Machine, count: &LvmCount) -> Result<()> {
    let tick = std::time::Duration::from_secs(12);
    let ((), found) = count.lvm_during(|| std::thread::sleep(tick))?;
    ensure!(found == 0, "an idle driver ran {found} LVM processes in {} s", tick.as_secs());
    machine.driver.stop()?;
    let (started, found) = count.lvm_during(|| machine.start(crate::support::BACKEND))?;
    started?;
    ensure!(found == 2, "a start took {found} LVM processes, not 2 (version and report)");
    Ok(())
}
