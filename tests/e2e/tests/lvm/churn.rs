//! Volumes come and go, for as long as it is told: the driver, the VG and the node are no fuller afterwards than before.

use std::collections::BTreeSet;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::driver::{Class, Machine};
use cinderblock_lab::long::{self, figure};

use crate::faults::kills::life;
use crate::support::{
    GIB, MASTER, THICK_BLOCK, VG, encrypted, expect_nothing_left, filesystem, pooled, started,
    without_trash,
};

/// New lives begin for so long, after those that fill all caches.
const TIME: Duration = Duration::from_secs(15);
/// A long run looks this often, so that it shows a growth that is slow beside one that stops.
const LEG: Duration = Duration::from_mins(15);
/// What the driver's memory may differ from one look to the other: its allocator keeps the most that was ever needed at once.
const MEMORY_KIB: u64 = 16 << 10;

/// What must not grow.
struct Fullness {
    memory_kib: u64,
    descriptors: u64,
    threads: u64,
    /// Of the VG's metadata as text.
    lines: u64,
    /// Of the VG and of all LVs.
    tags: u64,
    free_extents: u64,
    /// Of the pool's metadata, in use.
    blocks: u64,
    /// All that is where the driver, LVM and cryptsetup may write. The host's own caches are seen in a VM, and grow.
    files: BTreeSet<String>,
}

impl Fullness {
    fn of(machine: &Machine) -> Result<Self> {
        without_trash(machine)?;
        let number = |what: &str, script: &str| -> Result<u64> {
            let text = machine.sh(script)?;
            text.trim().parse().with_context(|| format!("{what}: {text:?}"))
        };
        let pid = "$(pgrep -o cinderblock)";
        let status = |field: &str| format!("awk '/^{field}:/ {{ print $2 }}' /proc/{pid}/status");
        Ok(Self {
            memory_kib: number("memory", &status("VmRSS"))?,
            descriptors: number("descriptors", &format!("ls /proc/{pid}/fd | wc -l"))?,
            threads: number("threads", &status("Threads"))?,
            lines: number(
                "lines",
                &format!(
                    "LVM_SYSTEM_DIR=/tmp/lvm vgcfgbackup -qq -f /tmp/vg {VG}; grep -c . /tmp/vg; rm /tmp/vg"
                ),
            )?,
            tags: number(
                "tags",
                &format!(
                    "{{ LVM_SYSTEM_DIR=/tmp/lvm vgs --noheadings -o vg_tags {VG}; LVM_SYSTEM_DIR=/tmp/lvm lvs -a --noheadings -o lv_tags {VG}; }} | tr ', ' '\n\n' | grep -c . || true"
                ),
            )?,
            free_extents: number(
                "extents",
                &format!("LVM_SYSTEM_DIR=/tmp/lvm vgs --noheadings -o vg_free_count {VG}"),
            )?,
            blocks: number(
                "blocks",
                "dmsetup status --target thin-pool | sed 's/.*: //' | awk '{ split($5, a, \"/\"); print a[1] }'",
            )?,
            files: machine
                .sh("find /run /etc /var/lib /var/tmp -xdev -path /run/udev -prune -o -type f -print")?
                .lines()
                .map(str::to_owned)
                .collect(),
        })
    }

    fn is_no_fuller_than(&self, before: &Self) -> Result<()> {
        let grown = |what: &str, after: u64, before: u64, by: u64| {
            ensure!(after <= before + by, "{what}: {after} after {before}");
            Ok(())
        };
        grown("descriptors", self.descriptors, before.descriptors, 2)?;
        // Blocking calls have threads that wait for the next one for a while.
        grown("threads", self.threads, before.threads, 8)?;
        grown("lines of the VG's metadata", self.lines, before.lines, 0)?;
        grown("tags", self.tags, before.tags, 0)?;
        grown("the pool's metadata", self.blocks, before.blocks, 2)?;
        let new: Vec<_> = self.files.difference(&before.files).collect();
        ensure!(new.is_empty(), "new files: {new:?}");
        ensure!(self.free_extents == before.free_extents, "free extents are others");
        grown("memory", self.memory_kib, before.memory_kib, MEMORY_KIB)
    }
}

impl fmt::Display for Fullness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB, {} descriptors, {} threads, {} lines of metadata, {} tags, {} blocks of the pool's, {} files",
            self.memory_kib,
            self.descriptors,
            self.threads,
            self.lines,
            self.tags,
            self.blocks,
            self.files.len()
        )
    }
}

/// Whole lives of volumes of several kinds at the same time, and at least one of each. How many came to their end.
fn lives(machine: &Machine, round: &str, end: Instant) -> Result<usize> {
    let csi = &machine.driver.csi()?.with_secrets(&MASTER);
    let classes = [
        (filesystem("thin", "ext4"), "e"),
        (THICK_BLOCK, "b"),
        (Class { more: &[("layout", "raid1")], ..filesystem("thick", "ext4") }, "r"),
        (encrypted(filesystem("thin", "xfs")), "l"),
    ];
    let some = |class: Class, kind: &str| -> Result<usize> {
        let mut count = 0;
        while count == 0 || Instant::now() < end {
            let name = format!("pvc-{round}-{kind}-{count}");
            life(machine, csi, class, &name).with_context(|| format!("life of {name}"))?;
            count += 1;
        }
        Ok(count)
    };
    let some = &some;
    let counts = thread::scope(|scope| {
        let workers = classes.map(|(class, kind)| scope.spawn(move || some(class, kind)));
        workers.map(|worker| worker.join().unwrap())
    });
    counts.into_iter().sum()
}

#[test]
fn scale_volumes_that_come_and_go_leave_nothing_behind() -> Result<()> {
    started("churn", &[4 * GIB, 4 * GIB], &pooled(2, "40%"), |machine| {
        lives(machine, "warm", Instant::now())?;
        let before = Fullness::of(machine)?;
        figure(&format!("before: {before}"));
        let end = long::end(TIME);
        let mut count = 0;
        for leg in 1.. {
            count += lives(machine, &format!("churn{leg}"), end.min(Instant::now() + LEG))?;
            let after = Fullness::of(machine)?;
            figure(&format!("after {count} lives: {after}"));
            after.is_no_fuller_than(&before)?;
            if Instant::now() >= end {
                break;
            }
        }
        expect_nothing_left(machine)
    })
}
