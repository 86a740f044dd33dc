//! Each RPC by itself, against `cinderblock standalone` in one VM: LVM processes, told by the VM's kernel, and latency.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Lab;
use cinderblock_lab::driver::{
    Access, Class, Csi, Kernel, LvmCount, Machine, Profile, Source, backend, program,
};
use serde_json::{Map, Value, json};

use super::samples::Samples;

const GIB: u64 = 1 << 30;
pub(super) const MIB: u64 = 1 << 20;
const DISK: u64 = 32 * GIB;
pub(super) const BACKEND: &str = "bench";
pub(super) const VG: &str = "bench";
const ACCESS: Access = Access::Filesystem("ext4");
const THIN: Class = Class { backend: BACKEND, provisioning: "thin", access: ACCESS, more: &[] };
const THICK: Class = Class { backend: BACKEND, provisioning: "thick", access: ACCESS, more: &[] };
const RAID1: Class = Class { more: &[("layout", "raid1")], ..THICK };
const WIPED: Class = Class { more: &[("wipe", "zero")], ..THICK };
/// The thin pool leaves room on both disks, as RAID needs it.
const POOL: &str = "thinPool: { name: pool0, size: 25%, overprovision: 8 }";
/// How long a small volume may take to be wiped.
const WIPED_WITHIN: Duration = Duration::from_mins(1);

/// How often everything is done.
const ROUNDS: usize = 7;

/// In the VM, where the volumes are mounted.
pub(super) const FOLDER: &str = "/run/bench";

/// What one operation cost, each time.
#[derive(Default)]
struct Cost {
    times: Samples,
    processes: Vec<usize>,
}

/// A driver, and what its operations have cost.
pub(super) struct Bench {
    pub(super) machine: Machine,
    pub(super) csi: Csi,
    count: LvmCount,
    costs: BTreeMap<&'static str, Cost>,
}

/// A VM with a VG and a thin pool, and a driver that has made them.
pub(super) fn machine() -> Result<Machine> {
    let program = program(Profile::Release)?;
    let config = backend(BACKEND, VG, 2, POOL);
    let lab = Lab::new("bench-standalone")?;
    let machine = Machine::boot(lab, Kernel::Debian, &[DISK, DISK], &program, &config)?;
    machine.start(BACKEND)?;
    Ok(machine)
}

/// Measures, and adds `lvm_processes` and `latency_ms`.
pub(super) fn measure(figures: &mut Map<String, Value>) -> Result<()> {
    let machine = machine()?;
    let (csi, count) = (machine.driver.csi()?, LvmCount::start(&machine.node)?);
    let mut bench = Bench { machine, csi, count, costs: BTreeMap::new() };
    for round in 0..ROUNDS {
        println!("bench: round {} of {ROUNDS}, calls to one node", round + 1);
        bench.round(round)?;
    }
    let copies = super::copies::measure(&mut bench)?;
    figures.insert("copy".to_owned(), copies);
    let mut processes = Map::new();
    let mut latency = Map::new();
    for (name, cost) in &bench.costs {
        if !name.starts_with("by_hand") {
            let most = cost.processes.iter().max();
            processes.insert((*name).to_owned(), json!(most));
        }
        latency.insert((*name).to_owned(), cost.times.told());
    }
    figures.insert("lvm_processes".to_owned(), Value::Object(processes));
    figures.insert("latency_ms".to_owned(), Value::Object(latency));
    let ratio = |ours: &str, by_hand: &str| {
        let median = |name| bench.costs.get(name).map_or(0.0, |cost| cost.times.median());
        json!((median(ours) / median(by_hand) * 100.0).round() / 100.0)
    };
    // One of LVM's own commands, run by hand on the same VG in the same run.
    let ratios = json!({
        "create_thin": ratio("create_thin", "by_hand_create_thin"),
        "create_thick": ratio("create_thick", "by_hand_create_thick"),
    });
    figures.insert("latency_to_lvm_by_hand".to_owned(), ratios);
    Ok(())
}

impl Bench {
    /// Does something once, and keeps what it cost.
    pub(super) fn cost<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&Csi) -> Result<T>,
    ) -> Result<T> {
        let mut time = None;
        let (csi, count) = (&self.csi, &self.count);
        let (done, processes) = count.lvm_during(|| {
            let start = Instant::now();
            let done = work(csi);
            time = Some(start.elapsed());
            done
        })?;
        let cost = self.costs.entry(name).or_default();
        cost.times.add(time.context("it was measured")?);
        cost.processes.push(processes);
        done.with_context(|| name.to_owned())
    }

    fn create(
        &mut self,
        what: &'static str,
        class: &Class,
        name: &str,
        source: Option<Source<'_>>,
    ) -> Result<String> {
        let mut request = class.request(name, GIB);
        request.volume_content_source = source.map(Source::content_source);
        Ok(self.cost(what, |csi| Ok(csi.create(&request)?))?.volume_id)
    }

    fn round(&mut self, round: usize) -> Result<()> {
        let (staging, target) = places(round);
        let parent = target.parent().unwrap_or(&target).display();
        self.machine.sh(&format!("mkdir -p {} {parent}", staging.display()))?;
        let thick = self.create("create_thick", &THICK, &format!("thick{round}"), None)?;
        let thin = self.create("create_thin", &THIN, &format!("thin{round}"), None)?;
        self.cost("capacity", |csi| Ok(csi.capacity(&THICK)?))?;
        self.cost("list_volumes", |csi| Ok(csi.volumes()?))?;
        self.cost("stage_first", |csi| Ok(csi.stage(&thin, ACCESS, &staging)?))?;
        self.cost("publish", |csi| Ok(csi.publish(&thin, ACCESS, &staging, &target)?))?;
        self.cost("stats", |csi| Ok(csi.stats(&thin, &target)?))?;
        let write = format!(
            "dd if=/dev/urandom of={}/x bs=1M count=16 status=none; sync",
            target.display()
        );
        self.machine.sh(&write)?;
        let snapshot = self.cost("snapshot_thin", |csi| {
            Ok(csi.snapshot(&format!("snapshot{round}"), &thin)?.snapshot_id)
        })?;
        let of_snapshot = Some(Source::Snapshot(&snapshot));
        let restored =
            self.create("restore_thin", &THIN, &format!("restored{round}"), of_snapshot)?;
        let of_volume = Some(Source::Volume(&thin));
        let clone = self.create("clone_thin", &THIN, &format!("clone{round}"), of_volume)?;
        self.cost("expand", |csi| Ok(csi.expand(&thin, GIB + 512 * MIB)?))?;
        self.cost("expand_on_node", |csi| Ok(csi.expand_on_node(&thin, &target)?))?;
        self.cost("unpublish", |csi| Ok(csi.unpublish(&thin, &target)?))?;
        self.cost("unstage", |csi| Ok(csi.unstage(&thin, &staging)?))?;
        self.cost("stage_again", |csi| Ok(csi.stage(&thin, ACCESS, &staging)?))?;
        self.csi.unstage(&thin, &staging)?;
        self.cost("delete_snapshot", |csi| Ok(csi.delete_snapshot(&snapshot)?))?;
        for volume in [&thin, &thick, &restored] {
            self.cost("delete", |csi| Ok(csi.delete(volume)?))?;
        }
        self.layouts(round)?;
        self.wiping(round)?;
        self.by_hand()?;
        // It stays, so that the group fills.
        ensure!(!clone.is_empty(), "the clone has no handle");
        Ok(())
    }

    fn layouts(&mut self, round: usize) -> Result<()> {
        let mirror = self.create("create_raid1", &RAID1, &format!("mirror{round}"), None)?;
        self.cost("expand_raid1", |csi| Ok(csi.expand(&mirror, GIB + 512 * MIB)?))?;
        self.cost("delete_raid1", |csi| Ok(csi.delete(&mirror)?))
    }

    /// The call that deletes a volume which is to be wiped, and what follows it in the background.
    fn wiping(&mut self, round: usize) -> Result<()> {
        let staging = Path::new(FOLDER).join(format!("staging/wiped{round}"));
        self.machine.sh(&format!("mkdir -p {}", staging.display()))?;
        let request = WIPED.request(&format!("wiped{round}"), 64 * MIB);
        let volume = self.csi.create(&request)?.volume_id;
        self.csi.stage(&volume, ACCESS, &staging)?;
        self.csi.unstage(&volume, &staging)?;
        self.cost("delete_wiping", |csi| Ok(csi.delete(&volume)?))?;
        let driver = &self.machine.driver;
        let start = Instant::now();
        let (wiped, processes) = self.count.lvm_during(|| {
            while driver.metric("cinderblock_trash_volumes")? != Some(0.0) {
                ensure!(start.elapsed() < WIPED_WITHIN, "not wiped after {WIPED_WITHIN:?}");
                sleep(Duration::from_millis(200));
            }
            anyhow::Ok(())
        })?;
        wiped?;
        let cost = self.costs.entry("wiping_afterwards").or_default();
        cost.times.add(start.elapsed());
        cost.processes.push(processes);
        Ok(())
    }

    /// What LVM itself takes for what the driver lets it do, started by a shell in the VM.
    fn by_hand(&mut self) -> Result<()> {
        let commands = [
            ("by_hand_create_thin", "-V 1g --thinpool pool0 -n by-hand"),
            ("by_hand_create_thick", "-L 1g -n by-hand"),
        ];
        for (name, words) in commands {
            // The time is taken in the VM: a shell's start is no part of it.
            let script = format!(
                "start=$(date +%s%N); lvcreate -qq -y -W n {words} {VG} >/dev/null 2>&1; \
                 echo $(( $(date +%s%N) - start )); lvremove -qq -y {VG}/by-hand"
            );
            let said = self.machine.sh(&script)?;
            let nanoseconds = said.trim().parse().with_context(|| format!("{name}: {said}"))?;
            let cost = self.costs.entry(name).or_default();
            cost.times.add(Duration::from_nanos(nanoseconds));
        }
        Ok(())
    }
}

/// Where a round stages and publishes.
fn places(round: usize) -> (PathBuf, PathBuf) {
    let folder = Path::new(FOLDER);
    (folder.join(format!("staging/{round}")), folder.join(format!("pods/{round}/mount")))
}
