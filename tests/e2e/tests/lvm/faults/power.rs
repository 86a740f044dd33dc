//! The power goes at random instants while databases write and other volumes live: after each boot all that was acknowledged is there.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cinderblock_lab::driver::{Access, Class, Csi, Machine, Power, Source, is_open};
use cinderblock_lab::long::{self, Random, figure};
use tonic::Status;

use crate::support::{
    BACKEND, GIB, MASTER, MIB, THICK, THICK_BLOCK, THIN, THIN_BLOCK, VG, Vol, encrypted,
    expect_nothing_left, filesystem, fill, pooled, started, sum,
};

/// New rounds begin for so long; each takes a minute or two.
const TIME: Duration = Duration::from_secs(20);
/// And as many as it takes to prove anything.
const ROUNDS: u64 = 2;
/// How long everything lives before the power goes.
const LIFE: u64 = 6000;
/// For one call with all its repetitions after a boot.
const PATIENCE: Duration = Duration::from_mins(4);
/// A small volume.
const SMALL: u64 = 96 * MIB;
/// Blocks of 4 KiB that a database on a device goes round in.
const SLOTS: u64 = 256;
const RAID1: Class = Class { more: &[("layout", "raid1")], ..THICK };

/// A volume that is written to all the time.
struct Database {
    v: Vol,
    uuid: String,
    /// The last record of this round, or ever on a device, that is known to be durable.
    acknowledged: AtomicU64,
    /// Of these, on a device, what earlier rounds have judged.
    judged: u64,
    /// The checksum of what was written in earlier rounds.
    earlier: String,
}

impl Database {
    fn is_a_device(&self) -> bool {
        self.v.access == Access::Block
    }

    /// Writes records and says the number of each that is durable, until the power goes.
    fn writer(&self, round: u64) -> String {
        let (file, from) = (self.v.file("log"), self.acknowledged.load(Ordering::SeqCst));
        if self.is_a_device() {
            return format!(
                "i={from}; while i=$((i+1)); do printf '%-4096s' $i | dd of={file} bs=4096 seek=$((i % {SLOTS})) \
                 iflag=fullblock oflag=direct,dsync conv=notrunc status=none && echo $i; done"
            );
        }
        format!(
            "i=0; while i=$((i+1)); do echo $i >>{file}-{round}; sync -d {file}-{round} && echo $i; done"
        )
    }

    /// Whether every record is there that was said to be durable. How many of this round there were.
    fn judge(&mut self, machine: &Machine, round: u64) -> Result<u64> {
        let (file, last) = (self.v.file("log"), self.acknowledged.load(Ordering::SeqCst));
        if self.is_a_device() {
            let script = format!(
                "dd if={file} bs=4096 count={SLOTS} iflag=direct status=none | tr -d '\\0' | tr -s ' ' '\\n' | \
                 awk '$1 > m {{ m = $1 }} {{ has[$1 % {SLOTS}] = $1 }} \
                 END {{ for (i = {last}; i > 0 && i > {last} - {SLOTS}; i--) if (has[i % {SLOTS}] < i) {{ print \"lost \" i; exit }} print m }}'"
            );
            let most = machine.sh(&script)?;
            let most: u64 =
                most.trim().parse().with_context(|| format!("{}: {most}", self.v.id))?;
            self.acknowledged.store(most, Ordering::SeqCst);
            let new = last.saturating_sub(self.judged);
            self.judged = most;
            return Ok(new);
        }
        let good = format!(
            "awk '$1 != NR && NR <= {last} {{ bad = NR }} END {{ if (bad || NR < {last}) print \"{last} acknowledged, \" NR \" there, wrong: \" bad }}' {file}-{round}"
        );
        let wrong = if last > 0 { machine.sh(&good)? } else { String::new() };
        ensure!(wrong.is_empty(), "{}: {wrong}", self.v.id);
        let older = machine.sh(&checksum(&file, round))?;
        ensure!(older == self.earlier, "{}: what earlier rounds wrote is other data", self.v.id);
        self.earlier = machine.sh(&checksum(&file, round + 1))?;
        self.acknowledged.store(0, Ordering::SeqCst);
        Ok(last)
    }
}

/// The checksum of the records of all rounds before this one.
fn checksum(file: &str, round: u64) -> String {
    format!(
        "sync; for n in $(seq 0 {round}); do [ $n -lt {round} ] && cat {file}-$n 2>/dev/null; done | sha256sum"
    )
}

/// A volume that comes and goes: what its user has asked for, and knows.
struct Piece {
    class: Class,
    name: String,
    size: u64,
    volume: Option<Vol>,
    written: Option<String>,
    snapshot: Option<String>,
    restored: Option<Vol>,
    deleting: bool,
}

impl Piece {
    fn new(class: Class, name: String) -> Self {
        let (volume, written, snapshot, restored) = (None, None, None, None);
        Self { class, name, size: SMALL, volume, written, snapshot, restored, deleting: false }
    }

    /// Does all that can be done with a volume, and notes what was acknowledged. Again from the
    /// beginning, it asks for the same.
    fn live(&mut self, machine: &Machine, csi: &Csi, call: &Caller<'_>) -> Result<Option<()>> {
        let name = self.name.clone();
        let class = self.class;
        let Some(v) = call.insist("create", || Vol::create(csi, class, &name, SMALL))? else {
            return Ok(None);
        };
        let known = self.volume.replace(v.clone());
        ensure!(known.is_none_or(|known| known.id == v.id), "{name} has another id now");
        if call.insist("attach", || v.attach())?.is_none() {
            return Ok(None);
        }
        if let Some(written) = &self.written {
            let found = sum(machine, &v.file("data"), 2)?;
            ensure!(found == *written, "{name}: other data than was synced");
        } else {
            self.written = call.work(fill(machine, &v.file("data"), 2))?;
            if self.written.is_none() {
                return Ok(None);
            }
        }
        let taken = call.insist("snapshot", || csi.snapshot(&format!("snapshot-{name}"), &v.id))?;
        let Some(snapshot) = taken.map(|taken| taken.snapshot_id) else { return Ok(None) };
        self.snapshot = Some(snapshot.clone());
        let copy = format!("{name}-copy");
        let from = || Vol::from(csi, class, &copy, SMALL, Source::Snapshot(&snapshot));
        let Some(copy) = call.insist("restore", from)? else { return Ok(None) };
        self.restored = Some(copy);
        if self.class.provisioning == "thin" {
            let larger = 2 * SMALL;
            if call.insist("expand", || csi.expand(&v.id, larger))?.is_none() {
                return Ok(None);
            }
            self.size = larger;
        }
        call.insist("detach", || v.detach())
    }

    /// After a boot: what was acknowledged is there, and all of it goes away when that is asked.
    fn judge(&mut self, machine: &Machine, csi: &Csi, call: &Caller<'_>) -> Result<()> {
        if !self.deleting {
            let listed = csi.volumes()?;
            if let Some(v) = &self.volume {
                let found = listed.iter().find(|it| it.volume_id == v.id);
                let found = found.with_context(|| format!("{} is gone", v.id))?;
                let size = u64::try_from(found.capacity_bytes)?;
                ensure!(size >= self.size, "{} has {size} bytes, not {}", v.id, self.size);
            }
            // Before the same is asked for again, which would make what is missing.
            if let Some(copy) = &self.restored {
                let is_there = listed.iter().any(|it| it.volume_id == copy.id);
                ensure!(is_there, "{}, which was restored, is gone", copy.id);
            }
            if let Some(snapshot) = &self.snapshot {
                let is_there = csi.snapshots()?.iter().any(|it| it.snapshot_id == *snapshot);
                ensure!(is_there, "{snapshot}, which was taken, is gone");
            }
            self.live(machine, csi, call)?.context("nobody cuts it")?;
            let copy = self.restored.as_mut().context("it was restored")?;
            copy.csi = csi.clone();
            call.insist("attach the copy", || copy.attach())?;
            let found = sum(machine, &copy.file("data"), 2)?;
            ensure!(Some(found) == self.written, "{}: the copy has other data", copy.id);
            call.insist("detach the copy", || copy.detach())?;
        }
        self.delete(csi, call)?.context("nobody cuts it")
    }

    fn delete(&mut self, csi: &Csi, call: &Caller<'_>) -> Result<Option<()>> {
        self.deleting = true;
        for v in [&self.volume, &self.restored].into_iter().flatten() {
            if call.insist("delete", || csi.delete(&v.id))?.is_none() {
                return Ok(None);
            }
        }
        let Some(snapshot) = &self.snapshot else { return Ok(Some(())) };
        call.insist("delete the snapshot", || csi.delete_snapshot(snapshot))
    }
}

/// Repeats calls until they are answered for good, or the power goes.
struct Caller<'a> {
    /// The power is going, or gone.
    off: &'a AtomicBool,
    calls: &'a AtomicU64,
}

impl Caller<'_> {
    fn insist<T>(
        &self,
        what: &str,
        mut call: impl FnMut() -> Result<T, Status>,
    ) -> Result<Option<T>> {
        let start = Instant::now();
        loop {
            self.calls.fetch_add(1, Ordering::Relaxed);
            match call() {
                Ok(answer) => return Ok(Some(answer)),
                Err(_) if self.off.load(Ordering::SeqCst) => return Ok(None),
                Err(status) if is_open(&status) && start.elapsed() < PATIENCE => {
                    sleep(Duration::from_millis(100));
                }
                Err(status) => bail!("{what}: {status:?}"),
            }
        }
    }

    /// Something else that fails when the power goes.
    fn work<T>(&self, done: Result<T>) -> Result<Option<T>> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(_) if self.off.load(Ordering::SeqCst) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn databases(machine: &Machine, csi: &Csi) -> Result<Vec<Database>> {
    let classes = [
        // It needs both disks.
        (RAID1, "db-raid"),
        (THIN, "db-thin"),
        (filesystem("thick", "xfs"), "db-thick"),
        (THICK_BLOCK, "db-block"),
        (encrypted(THIN), "db-luks"),
    ];
    let made = classes.map(|(class, name)| -> Result<Database> {
        let v = Vol::create(csi, class, name, 320 * MIB)?;
        v.attach()?;
        let (uuid, earlier) = (uuid(machine, &v)?, machine.sh(&checksum("/none", 0))?);
        Ok(Database { v, uuid, acknowledged: AtomicU64::new(0), judged: 0, earlier })
    });
    made.into_iter().collect()
}

fn uuid(machine: &Machine, v: &Vol) -> Result<String> {
    machine.sh(&format!("blkid -p -o value -s UUID {} || true", v.device()))
}

/// One life of the machine: databases write, pieces come and go, and then there is no power.
fn life(
    machine: &Machine,
    databases: &[Database],
    round: u64,
    (random, calls): (&mut Random, &AtomicU64),
) -> Result<Vec<Piece>> {
    let (off, power) = (AtomicBool::new(false), Power::default());
    let left = Mutex::new(Vec::new());
    let classes = [THIN, THICK, THIN_BLOCK, encrypted(THIN)];
    let first = usize::try_from(random.below(4))?;
    thread::scope(|scope| {
        for database in databases {
            let script = database.writer(round);
            scope.spawn(move || {
                let mut text = String::new();
                let writer = machine.node.exec(["sh", "-c", &script]);
                drop(writer.timeout(PATIENCE).follow(|bytes| {
                    text.push_str(&String::from_utf8_lossy(bytes));
                    let end = text.rfind('\n').map_or(0, |at| at + 1);
                    if let Some(record) = text[..end].lines().last().and_then(|it| it.parse().ok())
                    {
                        database.acknowledged.store(record, Ordering::SeqCst);
                    }
                    text.drain(..end);
                }));
            });
        }
        let users: Vec<_> = (0..2)
            .map(|user| {
                let (off, power, left) = (&off, &power, &left);
                scope.spawn(move || -> Result<()> {
                    let csi = machine.driver.csi()?.with_secrets(&MASTER).with_power(power);
                    let call = Caller { off, calls };
                    for n in 0.. {
                        let class = classes[(first + 2 * user + n) % classes.len()];
                        let mut piece = Piece::new(class, format!("pvc-{round}-{user}-{n}"));
                        let mut done = piece.live(machine, &csi, &call);
                        if matches!(done, Ok(Some(()))) {
                            done = piece.delete(&csi, &call);
                        }
                        if !matches!(done, Ok(Some(()))) {
                            left.lock().unwrap().push(piece);
                            return done.map(drop);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        sleep(Duration::from_millis(300 + random.below(LIFE)));
        off.store(true, Ordering::SeqCst);
        let cut = machine.node.power_cut();
        power.off();
        cut?;
        users.into_iter().try_for_each(|user| user.join().unwrap())
    })?;
    Ok(left.into_inner()?)
}

/// The VG and the pool, looked at by others than the driver.
fn check_metadata(machine: &Machine) -> Result<()> {
    let script = format!(
        "vgck {VG}; lvchange -qq -y -ay {VG}/pool0_tmeta; thin_check -q /dev/{VG}/pool0_tmeta; lvchange -qq -an {VG}/pool0_tmeta"
    );
    machine.sh(&script).map(drop).context("after a power cut")
}

#[test]
fn power_cuts_at_random_lose_nothing_that_was_acknowledged() -> Result<()> {
    let mut random = Random::seeded("power cuts");
    started("power-cuts", &[4 * GIB, 4 * GIB], &pooled(2, "30%"), |machine| {
        let csi = machine.driver.csi()?.with_secrets(&MASTER);
        let mut databases = databases(machine, &csi)?;
        let (calls, mut records, mut unfinished) = (AtomicU64::new(0), 0, 0);
        let (end, mut round) = (long::end(TIME), 0);
        // A life may be shorter than a busy machine needs for its first record.
        while Instant::now() < end || round < ROUNDS || (records == 0 && round < 5 * ROUNDS) {
            let pieces = life(machine, &databases, round, (&mut random, &calls))?;
            machine.node.boot()?;
            machine.driver.forget();
            check_metadata(machine)?;
            machine.start(BACKEND)?;
            let csi = machine.driver.csi()?.with_secrets(&MASTER);
            let call = Caller { off: &AtomicBool::new(false), calls: &calls };
            for database in &mut databases {
                database.v.csi = csi.clone();
                call.insist("attach a database", || database.v.attach())?;
                let found = uuid(machine, &database.v)?;
                ensure!(found == database.uuid, "{}: formatted again", database.v.id);
                records += database.judge(machine, round)?;
            }
            unfinished += pieces.len();
            for mut piece in pieces {
                piece.judge(machine, &csi, &call).with_context(|| piece.name.clone())?;
            }
            round += 1;
            if round % 10 == 0 {
                figure(&format!("power cuts: {round}, {records} records are there"));
            }
        }
        let calls = calls.into_inner();
        figure(&format!(
            "power cuts: {round}; {records} synced records in 5 volumes are there; {unfinished} volumes were cut in their life, of {calls} calls"
        ));
        ensure!(records > 0 && unfinished > 0, "too little to prove anything");
        for database in databases {
            database.v.detach()?;
            database.v.delete()?;
        }
        expect_nothing_left(machine)
    })
}
