//! A node's agent becomes another version and goes back, while its volumes are mounted: each version knows what the other made. Without a commit
//! to go to (`--from`), both are this one.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, Class, Csi, Machine, Other, Profile, Source};
use cinderblock_lab::long::figure;

use crate::support::{
    BACKEND, GIB, MASTER, MIB, THICK, THICK_BLOCK, THIN, THIN_BLOCK, Vol, bare, copied, encrypted,
    expect_nothing_left, filesystem, fill, pooled, sum,
};

const RAID1: Class = Class { more: &[("layout", "raid1")], ..THICK };
const SIZE: u64 = 64 * MIB;
/// Of what is written to each.
const DATA: u64 = 2;

/// A volume, a snapshot of it, and what both hold.
struct Kept {
    class: Class,
    v: Vol,
    snapshot: String,
    written: String,
}

impl Kept {
    fn make(machine: &Machine, csi: &Csi, class: Class, name: &str, size: u64) -> Result<Self> {
        let v = Vol::create(csi, class, name, size)?;
        v.attach()?;
        let written = fill(machine, &v.file("data"), DATA)?;
        let snapshot = csi.snapshot(&format!("snapshot-{name}"), &v.id)?.snapshot_id;
        Ok(Self { class, v, snapshot, written })
    }

    /// The other version knows it: it is listed, repeated calls are answered, the data is there, and what
    /// is made of its snapshot is complete.
    fn is_known(&mut self, machine: &Machine, csi: &Csi) -> Result<()> {
        let v = &mut self.v;
        v.csi = csi.clone();
        let size = size(csi, v)?;
        v.attach().context("staged and published again")?;
        ensure!(sum(machine, &v.file("data"), DATA)? == self.written, "other data");
        let name = format!("{}-copy", v.lv());
        let copy = copied(csi, self.class, &name, size, Source::Snapshot(&self.snapshot))?;
        copy.attach().context("the restored one")?;
        ensure!(sum(machine, &copy.file("data"), DATA)? == self.written, "restored: other data");
        copy.detach()?;
        copy.delete()?;
        Ok(())
    }

    /// All that changes a volume goes on.
    fn lives(&self, machine: &Machine, csi: &Csi) -> Result<()> {
        let v = &self.v;
        if self.class.provisioning == "thin" {
            let larger = size(csi, v)? + SIZE;
            csi.expand(&v.id, larger)?;
            csi.expand_on_node(&v.id, &v.pod)?;
        }
        v.detach()?;
        v.attach()?;
        ensure!(sum(machine, &v.file("data"), DATA)? == self.written, "attached: other data");
        Ok(())
    }

    fn ends(&self, csi: &Csi) -> Result<()> {
        self.v.detach()?;
        csi.delete_snapshot(&self.snapshot)?;
        self.v.delete()?;
        Ok(())
    }
}

/// Its bytes, as it is listed.
fn size(csi: &Csi, v: &Vol) -> Result<u64> {
    let listed = csi.volumes()?;
    let found = listed.iter().find(|it| it.volume_id == v.id).context("it is not listed")?;
    Ok(u64::try_from(found.capacity_bytes)?)
}

/// What is mounted of ours, in the kernel's words.
fn mounts(machine: &Machine) -> Result<String> {
    machine.sh("grep '/run/v/' /proc/self/mountinfo | sort")
}

fn make(machine: &Machine, csi: &Csi, turn: usize) -> Result<Vec<Kept>> {
    let kinds = [
        (THIN, "thin", SIZE),
        (filesystem("thick", "xfs"), "thick", 320 * MIB),
        (RAID1, "raid", SIZE),
        (THIN_BLOCK, "thin-block", SIZE),
        (THICK_BLOCK, "block", SIZE),
        (encrypted(THIN), "luks", SIZE),
    ];
    let made = kinds.map(|(class, kind, size)| {
        let name = format!("pvc-{kind}-{turn}");
        Kept::make(machine, csi, class, &name, size).with_context(|| format!("making {name}"))
    });
    made.into_iter().collect()
}

/// What is done under a version, after all that is there was looked at.
#[derive(Clone, Copy)]
enum Turn {
    Make,
    EndHalf,
    EndAll,
}

#[test]
fn an_upgrade_and_a_downgrade_keep_every_volume() -> Result<()> {
    let own = driver::program(Profile::Dev)?;
    let (turns, which) = match Other::told()? {
        Some(other) => {
            let older = other.program()?;
            let turns = vec![
                (older.clone(), Turn::Make),
                (own.clone(), Turn::Make),
                (older, Turn::EndHalf),
                (own, Turn::EndAll),
            ];
            (turns, other.commit().to_owned())
        }
        None => (vec![(own.clone(), Turn::Make), (own, Turn::EndAll)], "itself".to_owned()),
    };
    bare("upgrade", &[6 * GIB, 6 * GIB], &pooled(2, "30%"), |machine| {
        let mut kept = Vec::new();
        for (n, (program, turn)) in turns.iter().enumerate() {
            under(machine, program, (n, *turn), &mut kept)
                .with_context(|| format!("turn {n}, {}", program.display()))?;
        }
        figure(&format!("6 kinds of volumes under this version and {which}, in turn"));
        expect_nothing_left(machine)
    })
}

fn under(
    machine: &Machine,
    program: &Path,
    (n, turn): (usize, Turn),
    kept: &mut Vec<Kept>,
) -> Result<()> {
    let before = mounts(machine)?;
    machine.driver.stop()?;
    machine.driver.replace(program)?;
    machine.start(BACKEND)?;
    ensure!(mounts(machine)? == before, "not everything is mounted as before");
    let csi = machine.driver.csi()?.with_secrets(&MASTER);
    for it in &mut *kept {
        it.is_known(machine, &csi).with_context(|| it.v.id.clone())?;
        it.lives(machine, &csi).with_context(|| it.v.id.clone())?;
    }
    let ending = match turn {
        Turn::Make => {
            kept.extend(make(machine, &csi, n)?);
            0
        }
        // Of each kind, the one that was made first.
        Turn::EndHalf => kept.len() / 2,
        Turn::EndAll => kept.len(),
    };
    kept.drain(..ending).try_for_each(|it| it.ends(&csi))
}
