//! The driver is killed at random instants while volumes live their whole lives: whoever repeats his calls gets what he asked for, and nothing is lost or left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cinderblock_lab::driver::{self, Access, Class, Csi, Machine, Source, is_open};
use cinderblock_lab::long::{self, Random, figure};
use tonic::Status;

use crate::support::{
    BACKEND, GIB, MASTER, MIB, THICK_BLOCK, THIN_BLOCK, VG, Vol, encrypted, expect_nothing_left,
    filesystem, fill, started, sum,
};

/// What the Secret of encrypted volumes says while their master key changes.
const CHANGED: [(&str, &str); 2] = [
    ("masterKey", "Zk9uT1mWq2v7Xc4sL8dR0yB5nH3jG6pEaKfQwM1tUxI="),
    ("previousMasterKey", MASTER[0].1),
];
/// A pool that has to grow, and that has room enough while nobody is there to see to it.
const POOL: &str =
    "reserve: 0%\nthinPool: { size: 10%, overprovision: 20, autogrow: { at: 10%, by: 64Mi } }";
/// What lies still in it meanwhile, and is enough for it to grow.
const AT_REST_MIB: u64 = 100;
/// So many kinds of volumes live at the same time in a short run.
const KINDS: usize = 5;

/// New lives begin for so long; the last ones come to their end.
const TIME: Duration = Duration::from_secs(30);
/// The fewest cuts that prove anything.
const CUTS: usize = 10;
/// For one call with all its repetitions. On a busy machine a mkfs is cut many times before it has the time that it takes.
const PATIENCE: Duration = Duration::from_mins(4);

/// Repeats a call as the sidecars do: until it is answered for good.
fn insist<T>(what: &str, mut call: impl FnMut() -> Result<T, Status>) -> Result<T> {
    let start = Instant::now();
    loop {
        match call() {
            Ok(answer) => return Ok(answer),
            Err(status) if is_open(&status) && start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(100));
            }
            Err(status) => bail!("{what}: {status:?}"),
        }
    }
}

/// A volume's life. Every answer that it gets is checked.
pub(crate) fn life(machine: &Machine, csi: &Csi, class: Class, name: &str) -> Result<()> {
    // Thick copies begin again after each of these cuts: they have to be small. RAID has none.
    let (with_copies, thick) =
        (!class.more.contains(&("layout", "raid1")), class.provisioning == "thick");
    let [born, later, larger] = if thick { [64, 96, 128] } else { [320, 384, 448] };
    let create = |name: &str| insist("create", || Vol::create(csi, class, name, born * MIB));
    let attach = |v: &Vol| {
        insist("stage", || v.stage()).and_then(|()| insist("publish", || v.publish(&v.pod)))
    };
    let detach = |v: &Vol| {
        insist("unpublish", || v.unpublish(&v.pod))?;
        insist("unstage", || v.unstage())
    };
    let mut v = create(name)?;
    attach(&v)?;
    let written = fill(machine, &v.file("data"), 4)?;
    let grown = insist("expand", || csi.expand(&v.id, later * MIB))?;
    ensure!(grown == later * MIB, "it has {grown} bytes");
    insist("expand on the node", || csi.expand_on_node(&v.id, &v.pod))?;
    let mut copies = Vec::new();
    let mut snapshot = None;
    // From here on the Secret has the new key beside the old one. Who has no key does not mind.
    let csi = &csi.clone().with_secrets(&CHANGED);
    v.csi = csi.clone();
    if with_copies {
        let of = format!("snapshot-{name}");
        let taken = insist("snapshot", || csi.snapshot(&of, &v.id))?.snapshot_id;
        // On a device there is no other place to write to.
        if class.access != Access::Block {
            fill(machine, &v.file("later"), 2)?;
        }
        for (kind, from) in
            [("restored", Source::Snapshot(&taken)), ("cloned", Source::Volume(&v.id))]
        {
            let copy = format!("{name}-{kind}");
            let bytes = if kind == "restored" { larger } else { later } * MIB;
            let copy = insist(kind, || Vol::from(csi, class, &copy, bytes, from))?;
            attach(&copy)?;
            ensure!(sum(machine, &copy.file("data"), 4)? == written, "{kind}: other data");
            copies.push(copy);
        }
        snapshot = Some(taken);
    }
    ensure!(sum(machine, &v.file("data"), 4)? == written, "other data");
    // The mount that changes the key, and one that has no other any more.
    for secrets in [&CHANGED[..], &CHANGED[..1]] {
        v.csi = csi.clone().with_secrets(secrets);
        detach(&v)?;
        attach(&v)?;
        ensure!(sum(machine, &v.file("data"), 4)? == written, "other data when staged again");
    }
    for it in copies.iter().chain([&v]) {
        detach(it)?;
        insist("delete", || it.delete())?;
    }
    if let Some(snapshot) = snapshot {
        insist("delete the snapshot", || csi.delete_snapshot(&snapshot))?;
    }
    Ok(())
}

fn lives(machine: &Machine, class: Class, prefix: &str, end: Instant) -> Result<usize> {
    let csi = machine.driver.csi()?.with_secrets(&MASTER);
    let mut count = 0;
    while Instant::now() < end {
        let name = format!("pvc-{prefix}-{count}");
        life(machine, &csi, class, &name).with_context(|| format!("life of {name}"))?;
        count += 1;
    }
    Ok(count)
}

/// Kills the driver and starts it again, until told to stop. More seldom from the end on: then the last lives come to theirs.
fn cut(
    machine: &Machine,
    (done, end): (&AtomicBool, Instant),
    random: &mut Random,
) -> Result<usize> {
    let mut cuts = 0;
    while !done.load(Ordering::Relaxed) {
        let most = if Instant::now() < end || cuts < CUTS { 2_500 } else { 15_000 };
        thread::sleep(Duration::from_millis(random.below(most)));
        if random.below(2) == 0 { machine.driver.kill() } else { machine.driver.kill_all() }?;
        cuts += 1;
        machine.start(BACKEND)?;
    }
    Ok(cuts)
}

/// In long runs all kinds of volumes, in others some of them.
fn kinds(random: &mut Random) -> Vec<(Class, &'static str)> {
    let raid = Class { more: &[("layout", "raid1")], ..filesystem("thick", "ext4") };
    let wiped = Class { more: &[("wipe", "zero")], ..filesystem("thick", "ext4") };
    let mut kinds = vec![
        (filesystem("thin", "ext4"), "e"),
        (filesystem("thin", "xfs"), "x"),
        (filesystem("thin", "btrfs"), "t"),
        (THICK_BLOCK, "b"),
        (raid, "r"),
        (wiped, "w"),
        (encrypted(filesystem("thin", "ext4")), "l"),
    ];
    while !long::is_long() && kinds.len() > KINDS {
        let at = random.below(u64::try_from(kinds.len()).unwrap_or(1));
        kinds.remove(usize::try_from(at).unwrap_or_default());
    }
    figure(&format!("kinds of volumes: {:?}", kinds.iter().map(|it| it.1).collect::<Vec<_>>()));
    kinds
}

fn pool_mib(machine: &Machine) -> Result<u64> {
    let size = format!("lvs --noheadings --units m --nosuffix -o lv_size {VG}/pool0 | cut -d. -f1");
    Ok(machine.sh(&size)?.trim().parse()?)
}

#[test]
fn a_driver_that_is_killed_at_random_keeps_every_promise() -> Result<()> {
    let mut random = Random::seeded("kills");
    let config = driver::backend(BACKEND, VG, 2, POOL);
    started("killed", &[4 * GIB, 4 * GIB], &config, |machine| {
        machine.driver.watchdog()?;
        let kinds = kinds(&mut random);
        let pool = pool_mib(machine)?;
        let rest = Vol::create(&machine.driver.csi()?, THIN_BLOCK, "pvc-rest", AT_REST_MIB * MIB)?;
        rest.attach()?;
        let written = fill(machine, &rest.file(""), AT_REST_MIB)?;
        let (done, end) = (AtomicBool::new(false), long::end(TIME));
        let (cuts, counts) = thread::scope(|scope| {
            let cutter = scope.spawn(|| cut(machine, (&done, end), &mut random));
            let workers: Vec<_> = kinds
                .into_iter()
                .map(|(class, prefix)| scope.spawn(move || lives(machine, class, prefix, end)))
                .collect();
            let counts: Vec<_> = workers.into_iter().map(|it| it.join().unwrap()).collect();
            done.store(true, Ordering::Relaxed);
            (cutter.join().unwrap(), counts)
        });
        let (cuts, counts) = (cuts?, counts.into_iter().collect::<Result<Vec<_>>>()?);
        let grown = pool_mib(machine)?;
        figure(&format!(
            "kills: {cuts}, lives that came to their end: {counts:?}, the pool: {pool} to {grown} MiB"
        ));
        ensure!(counts.iter().all(|count| *count > 0), "no life came to its end");
        ensure!(cuts >= CUTS, "too few cuts to prove anything");
        ensure!(grown > pool, "the pool did not grow");
        ensure!(sum(machine, &rest.file(""), AT_REST_MIB)? == written, "other data at rest");
        insist("unpublish", || rest.detach())?;
        insist("delete", || rest.delete())?;
        let csi = machine.driver.csi()?;
        let (volumes, snapshots) = (csi.volumes()?, csi.snapshots()?);
        ensure!(volumes.is_empty() && snapshots.is_empty(), "{volumes:?} {snapshots:?}");
        expect_nothing_left(machine)
    })
}
