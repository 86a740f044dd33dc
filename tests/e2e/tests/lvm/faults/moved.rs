//! Disks go from one node into another, in order or because theirs lost its power, and come from another cluster: what is on them is
//! found by its ids, and nothing is made or removed on them that nobody asked for.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, Csi, Kernel, Machine, Source};
use tonic::Code;

use crate::support::{
    BACKEND, GIB, MIB, THICK, THICK_BLOCK, THIN, VG, Vol, code, expect_nothing_left, fill, machine,
    pooled, sum,
};

const DISK: u64 = 2 * GIB;
const OFF: Duration = Duration::from_mins(1);
/// More than the time between two looks at the disks by the agent itself.
const LOOKED: Duration = Duration::from_secs(15);
const POOL: &str = "reserve: 0%\nthinPool: { size: 50%, overprovision: 20 }";

/// Two nodes with a disk each. The second one is off.
struct Two {
    one: Machine,
    other: Machine,
}

impl Two {
    fn new(name: &str, backends: [&str; 2]) -> Result<Self> {
        let boot = |number, part, backends| {
            machine(number, Kernel::Own, &format!("{name}-{part}"), &[DISK], backends)
        };
        let other = boot(2, "other", backends[1])?;
        other.node.power_cut()?;
        Ok(Self { one: boot(1, "one", backends[0])?, other })
    }

    /// Shows all logs when it fails.
    fn test(self, test: impl FnOnce(&Machine, &Machine) -> Result<()>) -> Result<()> {
        let tested = test(&self.one, &self.other);
        if let Err(error) = &tested {
            println!("{error:#}\n{}\n{}", self.one.story(), self.other.story());
        }
        tested
    }
}

/// The end of a machine whose disk is pulled, as docs/operations.md says.
fn ends_in_order(machine: &Machine, vg: &str) -> Result<()> {
    machine.driver.stop()?;
    machine.sh(&format!("vgchange -qq -an {vg}"))?;
    machine.node.shutdown(OFF)?;
    machine.driver.forget();
    Ok(())
}

/// The only disk of a machine without power goes in the place of another's.
fn moves(from: &Machine, to: &Machine) -> Result<()> {
    Ok(std::fs::rename(from.node.disk_file(1), to.node.disk_file(1))?)
}

/// It boots, and its driver can use its backend.
fn starts(machine: &Machine) -> Result<Csi> {
    machine.node.boot()?;
    machine.driver.forget();
    machine.start(BACKEND)?;
    machine.driver.csi()
}

/// Ids and sizes of all that there is.
fn ids(csi: &Csi) -> Result<BTreeMap<String, i64>> {
    let volumes = csi.volumes()?.into_iter().map(|it| (it.volume_id, it.capacity_bytes));
    let snapshots = csi.snapshots()?.into_iter().map(|it| (it.snapshot_id, it.size_bytes));
    Ok(volumes.chain(snapshots).collect())
}

/// What a node of a cluster has on its disk: volumes with their checksums, snapshots of two of them, and a
/// volume that was never used.
struct Content {
    volumes: Vec<(Vol, String)>,
    snapshots: Vec<(String, usize)>,
    fresh: Vol,
}

impl Content {
    fn make(machine: &Machine, csi: &Csi) -> Result<Self> {
        let mut volumes = Vec::new();
        for (class, name) in [(THIN, "pvc-thin"), (THICK, "pvc-thick"), (THICK_BLOCK, "pvc-device")]
        {
            let v = Vol::create(csi, class, name, 64 * MIB)?;
            v.attach()?;
            let written = fill(machine, &v.file("data"), 8)?;
            volumes.push((v, written));
        }
        let mut snapshots = Vec::new();
        for at in [0, 1] {
            let of: &Vol = &volumes[at].0;
            snapshots.push((csi.snapshot(&format!("snapshot-{at}"), &of.id)?.snapshot_id, at));
            fill(machine, &of.file("later"), 2)?;
        }
        let fresh = Vol::create(csi, THICK, "pvc-fresh", 64 * MIB)?;
        Ok(Self { volumes, snapshots, fresh })
    }

    fn all(&self) -> impl Iterator<Item = &Vol> {
        self.volumes.iter().map(|(v, _)| v)
    }

    fn detach(&self) -> Result<()> {
        self.all().try_for_each(|v| Ok(v.detach()?))
    }

    /// On another machine, or after another boot.
    fn through(mut self, csi: &Csi) -> Self {
        let volumes = self.volumes.iter_mut().map(|(v, _)| v);
        volumes.chain([&mut self.fresh]).for_each(|v| v.csi = csi.clone());
        self
    }

    /// They are mounted, and hold what they should.
    fn attach(&self, machine: &Machine) -> Result<()> {
        for (v, written) in &self.volumes {
            v.attach().with_context(|| v.id.clone())?;
            ensure!(sum(machine, &v.file("data"), 8)? == *written, "{}: other data", v.id);
        }
        Ok(())
    }

    /// So do the snapshots.
    fn restore(&self, machine: &Machine, csi: &Csi) -> Result<()> {
        for (snapshot, at) in &self.snapshots {
            let class = if *at == 0 { THIN } else { THICK };
            let name = format!("pvc-restored-{at}");
            let from = Source::Snapshot(snapshot);
            let v = crate::support::copied(csi, class, &name, 64 * MIB, from)?;
            v.attach()?;
            let restored = sum(machine, &v.file("data"), 8)?;
            ensure!(restored == self.volumes[*at].1, "{snapshot}: other data");
            machine.sh(&format!("test ! -e {}", v.file("later")))?;
            v.detach()?;
            v.delete()?;
        }
        Ok(())
    }

    fn delete(&self, csi: &Csi) -> Result<()> {
        for (snapshot, _) in &self.snapshots {
            csi.delete_snapshot(snapshot)?;
        }
        self.all().chain([&self.fresh]).try_for_each(|v| Ok(v.delete()?))
    }
}

#[test]
fn volumes_are_found_in_the_node_that_their_disk_moves_to() -> Result<()> {
    let config = pooled(1, "50%");
    Two::new("moved", [&config, &config])?.test(|one, other| {
        one.start(BACKEND)?;
        let csi = one.driver.csi()?;
        let content = Content::make(one, &csi)?;
        let known = ids(&csi)?;
        ensure!(known.len() == 6, "{known:?}");
        content.detach()?;
        ends_in_order(one, VG)?;

        moves(one, other)?;
        let csi = starts(other)?;
        let content = content.through(&csi);
        ensure!(ids(&csi)? == known, "{:?} of {known:?}", ids(&csi)?);
        for it in csi.volumes()? {
            let place = format!("{:?}", it.accessible_topology);
            ensure!(place.contains("node2"), "{} is said to be at {place}", it.volume_id);
        }
        content.attach(other)?;
        content.restore(other, &csi)?;
        content.fresh.attach()?;
        let later = fill(other, &content.fresh.file("data"), 4)?;

        // All is in use, and nobody lets go of anything.
        other.node.power_cut()?;
        moves(other, one)?;
        let csi = starts(one)?;
        let content = content.through(&csi);
        ensure!(ids(&csi)? == known, "{:?} of {known:?}", ids(&csi)?);
        content.attach(one)?;
        content.restore(one, &csi)?;
        content.fresh.attach()?;
        let found = sum(one, &content.fresh.file("data"), 4)?;
        ensure!(found == later, "formatted on one node, and other data on the next");
        content.fresh.detach()?;
        content.detach()?;
        content.delete(&csi)?;
        ensure!(ids(&csi)?.is_empty(), "{:?}", ids(&csi)?);
        expect_nothing_left(one)
    })
}

/// All LVs with their tags and sizes, the number of the VG's metadata, which each change counts up, and what a
/// volume holds that was never used.
fn untouched(machine: &Machine, fresh: &Vol) -> Result<String> {
    machine.sh(&format!(
        "lvs -a --noheadings --units b -o lv_name,lv_uuid,lv_size,lv_tags {VG}; vgs --noheadings -o vg_uuid,vg_seqno,vg_tags {VG}
         lvchange -qq -ay {VG}/{0}; dd if={1} bs=1M iflag=direct 2>/dev/null | sha256sum; lvchange -qq -an {VG}/{0}",
        fresh.lv(),
        fresh.device()
    ))
}

#[test]
fn a_volume_group_of_another_cluster_is_used_and_loses_nothing() -> Result<()> {
    let pool =
        "reserve: 10%\nthinPool: { size: 20%, overprovision: 30, autogrow: { at: 50%, by: 10% } }";
    let theirs = driver::backend(BACKEND, VG, 1, POOL);
    let ours = driver::backend(BACKEND, VG, 1, pool);
    Two::new("another-cluster", [&theirs, &ours])?.test(|one, other| {
        one.start(BACKEND)?;
        let csi = one.driver.csi()?;
        let content = Content::make(one, &csi)?;
        let known = ids(&csi)?;
        content.detach()?;
        one.driver.stop()?;
        one.sh(&format!("lvcreate -qqy -Wn -Zn -L 32M -n by-hand {VG}"))?;
        let before = untouched(one, &content.fresh)?;
        ends_in_order(one, VG)?;

        moves(one, other)?;
        let csi = starts(other)?;
        let content = content.through(&csi);
        sleep(LOOKED);
        let found = untouched(other, &content.fresh)?;
        ensure!(found == before, "of\n{before}\ncame by itself\n{found}");
        ensure!(ids(&csi)? == known, "{:?} of {known:?}", ids(&csi)?);
        // Who has no cluster behind it cannot know whose they are.
        let metrics = other.driver.metrics()?;
        ensure!(!metrics.contains("cinderblock_orphan"), "{metrics}");
        for class in [THIN, THICK] {
            let v = Vol::create(&csi, class, "pvc-ours", 64 * MIB)?;
            ensure!(!known.contains_key(&v.id), "{} is another's", v.id);
            v.attach()?;
            fill(other, &v.file("data"), 4)?;
            v.detach()?;
            v.delete()?;
        }
        content.attach(other)?;
        content.restore(other, &csi)?;
        content.detach()?;
        ensure!(ids(&csi)? == known, "{:?} of {known:?}", ids(&csi)?);
        ends_in_order(other, VG)?;

        // Their own node has all of it again.
        moves(other, one)?;
        let csi = starts(one)?;
        let content = content.through(&csi);
        ensure!(ids(&csi)? == known, "{:?} of {known:?}", ids(&csi)?);
        content.attach(one)?;
        content.detach()?;
        content.delete(&csi)?;
        one.sh(&format!("lvremove -qqy {VG}/by-hand"))?;
        expect_nothing_left(one)
    })
}

/// Into a node whose own backend is ready and in use. The VG is none of its backends'.
#[test]
fn a_disk_that_is_put_in_is_seen_by_the_next_agent() -> Result<()> {
    const THEIRS: &str = "bulk";
    let theirs = driver::backend(BACKEND, THEIRS, 1, POOL);
    let ours = pooled(1, "50%");
    Two::new("put-in", [&theirs, &ours])?.test(|one, other| {
        one.start(BACKEND)?;
        let csi = one.driver.csi()?;
        let content = Content::make(one, &csi)?;
        let known = ids(&csi)?;
        content.detach()?;
        ends_in_order(one, THEIRS)?;

        let csi = starts(other)?;
        let content = content.through(&csi);
        let own = Vol::create(&csi, THIN, "pvc-own", 64 * MIB)?;
        own.attach()?;
        let written = fill(other, &own.file("data"), 8)?;
        let before = ids(&csi)?;
        std::fs::rename(one.node.disk_file(1), other.node.disk_file(2))?;
        other.node.plug()?;
        other.sh(&format!("until vgs {THEIRS} >/dev/null 2>&1; do sleep 0.5; done"))?;
        sleep(LOOKED);
        ensure!(ids(&csi)? == before, "seen by itself: then docs/operations.md is out of date");
        for v in content.all() {
            ensure!(code(v.delete())? == Code::Unavailable, "{} is said to be gone", v.id);
        }

        other.driver.stop()?;
        other.start(BACKEND)?;
        let (found, mut both) = (ids(&csi)?, known);
        both.extend(before);
        ensure!(found == both, "{found:?} of {both:?}");
        content.attach(other)?;
        // No backend has its pool.
        let refused = code(csi.snapshot("snapshot-2", &content.volumes[0].0.id))?;
        ensure!(refused == Code::FailedPrecondition, "{refused:?}");
        ensure!(csi.expand(&content.fresh.id, 96 * MIB)? == 96 * MIB, "another size");
        content.detach()?;
        content.delete(&csi)?;
        ensure!(sum(other, &own.file("data"), 8)? == written, "its own volume: other data");
        own.detach()?;
        own.delete()?;
        ensure!(ids(&csi)?.is_empty(), "{:?}", ids(&csi)?);
        crate::support::without_trash(other)?;
        let left = other.sh(&format!("lvs --noheadings -o lv_name {THEIRS} | tr -d ' '"))?;
        ensure!(left.trim() == "pool0", "{left}");
        expect_nothing_left_here(other)
    })
}

/// Beside what is in the VG without a backend.
fn expect_nothing_left_here(machine: &Machine) -> Result<()> {
    machine.sh("vgchange -qq -an bulk")?;
    expect_nothing_left(machine)
}
