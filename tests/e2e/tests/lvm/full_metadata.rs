//! A thin pool whose metadata fills up while its data has room: nothing new from the guard on; when it is really full, errors for writers, and
//! nothing that was acknowledged is lost; and all is well when it gets room, by hand or by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{self, Csi, Machine, Source};
use tonic::{Code, Status};

use crate::support::{
    BACKEND, GIB, MIB, THICK, THIN, THIN_BLOCK, VG, Vol, bare, code, compare_records,
    expect_nothing_left, figure, fill, sum, wait_for_trouble,
};

/// What the volume has, in MiB.
const SIZE: u64 = 256;
/// A dozen snapshots, each with a round of writes, fill the metadata.
const ROUNDS_MAX: usize = 60;

/// Writes 4 KiB into every part of the volume, so that its pool needs all of its map anew; each write that was synced is noted with its checksum.
const SCATTER: &str = r"
    for i in $(seq 0 60 4095); do
        dd if=/dev/urandom of=$2.record bs=4k count=1 2>/dev/null
        echo $((i * 16)) >>$2
        dd if=$2.record of=$1 bs=4k seek=$((i * 16)) oflag=direct conv=notrunc,fsync || exit 1
        echo $((i * 16)) $(sha256sum <$2.record) >>$2
    done";

/// What gives the pool room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    ByHand,
    ByItself,
}

impl Room {
    fn config(self) -> String {
        let more = if self == Self::ByItself { ", autogrow: {}" } else { "" };
        format!(
            "backends: [{{ name: {BACKEND}, volumeGroup: {VG}, reserve: 0%, thinPool: {{ overprovision: 50{more} }} }}]"
        )
    }

    fn advice(self) -> &'static str {
        match self {
            Self::ByHand => "% full: extend it",
            Self::ByItself => "% full: it cannot grow: add a disk",
        }
    }
}

/// Where a volume's writes are noted.
fn noted(v: &Vol) -> String {
    format!("/run/{}", v.lv())
}

/// Nothing that was acknowledged is another now.
fn is_whole(machine: &Machine, v: &Vol, when: &str) -> Result<()> {
    compare_records(machine, &v.file(""), &noted(v), "4k")
        .with_context(|| format!("{} {when}", v.lv()))
}

/// Whether all went well.
fn scatter(machine: &Machine, v: &Vol) -> Result<bool> {
    let words = ["sh", "-c", SCATTER, "sh", &v.pod.display().to_string(), &noted(v)];
    let done = machine.node.exec(words).timeout(Duration::from_mins(5)).run()?;
    let complaint = done.stderr_text();
    let told = done.status.success() || complaint.contains("Input/output error");
    ensure!(told, "{complaint}");
    Ok(done.status.success())
}

fn lacks_metadata(refused: &Status, room: Room) -> Result<()> {
    ensure!(refused.code() == Code::ResourceExhausted, "{refused:?}");
    let words = ["takes nothing new: its metadata is ", room.advice()];
    ensure!(words.iter().all(|it| refused.message().contains(it)), "{refused:?}");
    Ok(())
}

/// From the guard on: no new volume or snapshot, and no expansion; thick volumes are not concerned.
fn nothing_new(machine: &Machine, csi: &Csi, v: &Vol, room: Room) -> Result<()> {
    lacks_metadata(&csi.create(&THIN.request("pvc-new", 64 * MIB)).unwrap_err(), room)?;
    lacks_metadata(&csi.snapshot("snapshot-new", &v.id).unwrap_err(), room)?;
    ensure!(code(csi.expand(&v.id, 2 * SIZE * MIB))? == Code::OutOfRange, "expand");
    ensure!(csi.capacity(&THIN)? == 0, "there is capacity");
    wait_for_trouble(machine, "ThinPoolAlmostFull", true)?;
    let used = figure(machine, "thin_pool_metadata_used_ratio")?.context("no figure")?;
    ensure!(used >= 0.75, "only {used} is used");
    let data = figure(machine, "thin_pool_data_used_ratio")?.context("no figure")?;
    ensure!(data < 0.8, "{data} of the data is used");
    if room == Room::ByHand {
        let thick = Vol::create(csi, THICK, "pvc-thick", 16 * MIB)?;
        thick.attach()?;
        thick.detach()?;
        thick.delete()?;
    }
    Ok(())
}

/// Snapshots and writes until the driver takes no more snapshots: those that were taken.
fn up_to_the_guard(machine: &Machine, csi: &Csi, v: &Vol, room: Room) -> Result<Vec<String>> {
    let mut snapshots = Vec::new();
    for round in 0..ROUNDS_MAX {
        match csi.snapshot(&format!("snapshot-{round}"), &v.id) {
            Ok(snapshot) => snapshots.push(snapshot.snapshot_id),
            Err(refused) => {
                lacks_metadata(&refused, room)?;
                ensure!(round > 2, "refused after {round} snapshots");
                println!("{round} snapshots: {}", refused.message());
                return Ok(snapshots);
            }
        }
        ensure!(scatter(machine, v)?, "a write failed before the guard");
    }
    anyhow::bail!("the metadata is not full after {ROUNDS_MAX} snapshots")
}

/// Clones of what the volume held before need maps of their own when they are written to: until writes fail.
fn up_to_the_brim(machine: &Machine, clones: &[Vol]) -> Result<()> {
    for clone in clones {
        if !scatter(machine, clone)? {
            return Ok(());
        }
    }
    anyhow::bail!("the metadata is not full after {} clones", clones.len())
}

fn filled(name: &str, room: Room) -> Result<()> {
    bare(name, &[GIB], &room.config(), |machine| {
        let disk = driver::disk(1);
        machine.sh(&format!(
            "pvcreate -qq {disk}; vgcreate -qq -s 1m {VG} {disk}
             lvcreate -qqy --type thin-pool -L 700M --poolmetadatasize 2M --chunksize 64k -n pool0 {VG}
             lvchange -qq --errorwhenfull y {VG}/pool0"
        ))?;
        if room == Room::ByItself {
            machine.sh(&format!("lvcreate -qqy -an -l 100%FREE -n filler {VG}"))?;
        }
        machine.start(BACKEND)?;
        let csi = machine.driver.csi()?;
        let v = Vol::first(&csi, THIN_BLOCK, "pvc-1", SIZE * MIB)?;
        v.attach()?;
        let written = fill(machine, &v.file(""), SIZE)?;
        let mut clones = Vec::new();
        for name in (1..=8).map(|n| format!("pvc-clone-{n}")) {
            let clone = Vol::from(&csi, THIN_BLOCK, &name, SIZE * MIB, Source::Volume(&v.id))?;
            clone.attach()?;
            clones.push(clone);
        }
        let snapshots = up_to_the_guard(machine, &csi, &v, room)?;
        nothing_new(machine, &csi, &v, room)?;
        ensure!(figure(machine, "thin_pool_healthy")? == Some(1.0), "healthy");
        ensure!(figure(machine, "backend_ready")? == Some(1.0), "ready");

        up_to_the_brim(machine, &clones)?;
        println!("{}", machine.sh(&format!("dmsetup status {VG}-pool0-tpool"))?);
        wait_for_trouble(machine, "ThinPoolFull", true)?;
        ensure!(figure(machine, "thin_pool_healthy")? == Some(0.0), "healthy");
        ensure!(figure(machine, "backend_ready")? == Some(0.0), "ready");
        nothing_new(machine, &csi, &v, room)?;
        is_whole(machine, &v, "while it is full")?;
        is_whole(machine, &clones[0], "while it is full")?;

        // As docs/operations.md says.
        match room {
            Room::ByHand => {
                machine.sh(&format!("lvextend -qq --poolmetadatasize +8M {VG}/pool0"))?
            }
            Room::ByItself => machine.sh(&format!("lvremove -qqy {VG}/filler"))?,
        };
        for reason in ["ThinPoolFull", "ThinPoolAlmostFull", "ThinPoolFailed", "ThinPoolCannotGrow"]
        {
            wait_for_trouble(machine, reason, false)?;
        }
        ensure!(figure(machine, "thin_pool_healthy")? == Some(1.0), "not healthy");
        well_again(machine, &csi, (v, clones), &snapshots, &written)
    })
}

fn well_again(
    machine: &Machine,
    csi: &Csi,
    (v, clones): (Vol, Vec<Vol>),
    snapshots: &[String],
    written: &str,
) -> Result<()> {
    for it in [&v, &clones[0]] {
        is_whole(machine, it, "when there is room")?;
        it.detach()?;
        it.attach()?;
        is_whole(machine, it, "attached anew")?;
    }
    let last = clones.last().context("no clone")?;
    ensure!(scatter(machine, last)?, "a write failed");
    is_whole(machine, last, "when there is room")?;
    let first = Source::Snapshot(&snapshots[0]);
    let restored = Vol::from(csi, THIN_BLOCK, "pvc-restored", SIZE * MIB, first)?;
    restored.attach()?;
    ensure!(sum(machine, &restored.file(""), SIZE)? == written, "the first snapshot is another");
    for it in clones.into_iter().chain([v, restored]) {
        it.detach()?;
        it.delete()?;
    }
    for snapshot in snapshots {
        csi.delete_snapshot(snapshot)?;
    }
    expect_nothing_left(machine)
}

#[test]
fn a_pool_without_room_for_metadata_takes_nothing_new_and_loses_nothing() -> Result<()> {
    filled("full-metadata", Room::ByHand)
}

#[test]
fn a_pool_without_room_for_metadata_grows_as_soon_as_there_is_room() -> Result<()> {
    filled("stuck-metadata", Room::ByItself)
}
