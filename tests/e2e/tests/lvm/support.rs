//! A machine per test, and short words for what is done with a volume on it. No test lives here.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Lab;
use cinderblock_lab::driver::{self, Access, Class, Csi, Kernel, Machine, Profile, Source};
use tonic::{Code, Status};

pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const MIB: u64 = 1 << 20;

/// For a copy of a GiB at the most, on a busy machine.
const COPIED: Duration = Duration::from_mins(4);

/// What is not noticed within seconds is looked at again after a minute.
const TOLD: Duration = Duration::from_mins(3);

/// The backend of most tests, and its VG.
pub(crate) const BACKEND: &str = "fast";
pub(crate) const VG: &str = "vg0";

pub(crate) const THIN: Class = filesystem("thin", "ext4");
pub(crate) const THICK: Class = filesystem("thick", "ext4");
pub(crate) const THIN_BLOCK: Class = block("thin");
pub(crate) const THICK_BLOCK: Class = block("thick");

pub(crate) const fn filesystem(provisioning: &'static str, fs: &'static str) -> Class {
    Class { backend: BACKEND, provisioning, access: Access::Filesystem(fs), more: &[] }
}

pub(crate) const fn block(provisioning: &'static str) -> Class {
    Class { backend: BACKEND, provisioning, access: Access::Block, more: &[] }
}

/// What a Secret for encrypted volumes says.
pub(crate) const MASTER: [(&str, &str); 1] =
    [("masterKey", "4gBpy3bX0bZ9uTnGfQ6a3uG0r9pQz1J0h2k5m8n1s4o=")];

/// The same volumes, encrypted.
pub(crate) const fn encrypted(class: Class) -> Class {
    Class { more: &[("encryption", "luks")], ..class }
}

/// The configuration of backend `fast` on the first `disks` disks, with a thin pool on this part.
pub(crate) fn pooled(disks: usize, part: &str) -> String {
    let pool = format!("reserve: 0%\nthinPool: {{ name: pool0, size: {part}, overprovision: 20 }}");
    driver::backend(BACKEND, VG, disks, &pool)
}

/// Runs a test on a new VM with the lab's kernel; the driver is not started. When the test fails, the logs are
/// shown.
pub(crate) fn bare(
    name: &str,
    disks: &[u64],
    backends: &str,
    test: impl FnOnce(&Machine) -> Result<()>,
) -> Result<()> {
    on(Kernel::Own, name, disks, backends, test)
}

fn on(
    kernel: Kernel,
    name: &str,
    disks: &[u64],
    backends: &str,
    test: impl FnOnce(&Machine) -> Result<()>,
) -> Result<()> {
    let machine = machine(1, kernel, name, disks, backends)?;
    let tested = test(&machine);
    if let Err(error) = &tested {
        println!("{error:#}\n{}", machine.story());
    }
    tested
}

/// A new VM in a lab of its own, with this number in its name.
pub(crate) fn machine(
    number: u8,
    kernel: Kernel,
    name: &str,
    disks: &[u64],
    backends: &str,
) -> Result<Machine> {
    let program = driver::program(Profile::Dev)?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lvm").join(name);
    let guest = Path::new(env!("CARGO_BIN_EXE_lab-guest"));
    let lab = Lab::at(&format!("lvm-{name}"), &folder)?.with_guest(guest);
    Machine::boot_numbered(number, lab, kernel, disks, &program, backends)
}

/// As [`bare`], and the driver runs and can use backend `fast`.
pub(crate) fn started(
    name: &str,
    disks: &[u64],
    backends: &str,
    test: impl FnOnce(&Machine) -> Result<()>,
) -> Result<()> {
    bare(name, disks, backends, |machine| {
        machine.start(BACKEND)?;
        test(machine)
    })
}

/// As [`started`], with the device-mapper of Debian 12.
pub(crate) fn started_on_debian(
    name: &str,
    disks: &[u64],
    backends: &str,
    test: impl FnOnce(&Machine) -> Result<()>,
) -> Result<()> {
    on(Kernel::Debian, name, disks, backends, |machine| {
        machine.start(BACKEND)?;
        test(machine)
    })
}

/// A power cut, a boot with the same disks, and the driver again.
pub(crate) fn power_cut(machine: &Machine) -> Result<()> {
    machine.node.reboot()?;
    machine.driver.forget();
    machine.start(BACKEND)
}

/// A power cut, a boot without this disk, and the driver again: a backend may not be ready now.
pub(crate) fn power_cut_without(machine: &Machine, disk: usize) -> Result<()> {
    machine.node.power_cut()?;
    let vanished = machine.node.disk_file(disk);
    std::fs::rename(&vanished, vanished.with_extension("kept"))?;
    machine.node.boot()?;
    machine.driver.forget();
    machine.driver.start()
}

/// All LVs of the VG as LVM shows them, in order; those that LVM hides are in brackets.
pub(crate) fn lvs(machine: &Machine) -> Result<Vec<String>> {
    let text = machine.sh(&format!("lvs -a --noheadings -o lv_name {VG}"))?;
    let mut names: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// The tags that a VG and its pool may have while there is no volume.
const LASTING: [&str; 3] = ["", "cinderblock=1", "cb.pool"];

/// Fails when anything is left beside the pool: LVs, tags, device-mapper devices, mounts.
pub(crate) fn expect_nothing_left(machine: &Machine) -> Result<()> {
    expect_nothing_left_beside(machine, &[])
}

/// The same where these devices of device-mapper are the test's own.
pub(crate) fn expect_nothing_left_beside(machine: &Machine, own: &[&str]) -> Result<()> {
    without_trash(machine)?;
    let found = lvs(machine)?;
    let pool = ["[lvol0_pmspare]", "[pool0_tdata]", "[pool0_tmeta]", "pool0"];
    ensure!(found == pool, "the volume group should hold the pool alone, but has {found:?}");
    let tags = format!(
        "{{ vgs --noheadings -o vg_tags {VG}; lvs -a --noheadings -o lv_tags {VG}; }} | tr ', ' '\n\n' | sort -u"
    );
    let tags = machine.sh(&tags)?;
    let strange: Vec<_> = tags.lines().filter(|tag| !LASTING.contains(tag)).collect();
    ensure!(strange.is_empty(), "the volume group and its pool have the tags {strange:?}");
    let devices = machine.sh("dmsetup ls | cut -f 1 | sort")?;
    // With its last volume goes a pool's device that LVM activated for that alone; then this is what is said.
    let none = "No devices found";
    let layers = ["vg0-pool0", "vg0-pool0-tpool", "vg0-pool0_tdata", "vg0-pool0_tmeta", none];
    let strange: Vec<_> =
        devices.lines().filter(|name| ![&layers[..], own].concat().contains(name)).collect();
    ensure!(strange.is_empty(), "device-mapper still has {strange:?}");
    let mounts = machine.sh("grep -E 'vg0|/dev/dm-|/run/v/' /proc/self/mountinfo || true")?;
    ensure!(mounts.is_empty(), "still mounted:\n{mounts}");
    Ok(())
}

/// A figure of the backend, by its name without `cinderblock_`.
pub(crate) fn figure(machine: &Machine, name: &str) -> Result<Option<f64>> {
    machine.driver.metric(&format!("cinderblock_{name}{{backend=\"{BACKEND}\""))
}

/// How much is wrong for this reason, by the driver's metrics.
pub(crate) fn troubles(machine: &Machine, reason: &str) -> Result<f64> {
    let found = machine.driver.metric(&format!("cinderblock_troubles{{reason=\"{reason}\"}}"))?;
    Ok(found.unwrap_or_default())
}

/// Waits until one thing is told to be wrong for this reason; or until nothing is any more, when it should not last.
pub(crate) fn wait_for_trouble(machine: &Machine, reason: &str, lasts: bool) -> Result<()> {
    let what = format!("{} of {reason}", if lasts { "telling" } else { "done with telling" });
    let wanted = if lasts { 1.0 } else { 0.0 };
    machine.driver.wait_until(TOLD, &what, || Ok((troubles(machine, reason)? - wanted).abs() < 0.5))
}

/// Waits until what was deleted has gone: a volume whose snapshot goes after it has a while in the trash.
pub(crate) fn without_trash(machine: &Machine) -> Result<()> {
    machine.driver.wait_until(Duration::from_mins(3), "done with its trash", || {
        Ok(machine.driver.metric("cinderblock_trash_volumes")? == Some(0.0))
    })
}

/// A volume, and where it is staged and published in the VM.
#[derive(Debug, Clone)]
pub(crate) struct Vol {
    pub(crate) csi: Csi,
    pub(crate) id: String,
    pub(crate) access: Access,
    pub(crate) staging: PathBuf,
    /// Where the first pod has it.
    pub(crate) pod: PathBuf,
}

impl Vol {
    /// A blank one.
    pub(crate) fn create(csi: &Csi, class: Class, name: &str, bytes: u64) -> Result<Self, Status> {
        let made = csi.create(&class.request(name, bytes))?;
        Ok(Self::known(csi, class, name, &made))
    }

    /// The first one in a pool that was made by hand: udev may be late with the names that it had then.
    pub(crate) fn first(csi: &Csi, class: Class, name: &str, bytes: u64) -> Result<Self, Status> {
        let start = Instant::now();
        loop {
            match Self::create(csi, class, name, bytes) {
                Err(status) if driver::is_open(&status) && start.elapsed() < TOLD => {
                    sleep(Duration::from_millis(500));
                }
                done => return done,
            }
        }
    }

    /// A blank one that is wiped when it is deleted.
    pub(crate) fn wiped(
        csi: &Csi,
        class: Class,
        how: &str,
        name: &str,
        bytes: u64,
    ) -> Result<Self, Status> {
        let mut request = class.request(name, bytes);
        request.parameters.insert("wipe".to_owned(), how.to_owned());
        let made = csi.create(&request)?;
        Ok(Self::known(csi, class, name, &made))
    }

    /// One with the content of something that is there.
    pub(crate) fn from(
        csi: &Csi,
        class: Class,
        name: &str,
        bytes: u64,
        from: Source<'_>,
    ) -> Result<Self, Status> {
        let made = csi.create(&class.request_from(name, bytes, from))?;
        Ok(Self::known(csi, class, name, &made))
    }

    fn known(csi: &Csi, class: Class, name: &str, made: &driver::pb::Volume) -> Self {
        let place = Path::new("/run/v").join(name);
        Self {
            csi: csi.clone(),
            id: made.volume_id.clone(),
            access: class.access,
            staging: place.join("staging"),
            pod: place.join("pod"),
        }
    }

    /// Its LV's name.
    pub(crate) fn lv(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }

    /// Its device.
    pub(crate) fn device(&self) -> String {
        format!("/dev/mapper/{VG}-{}", self.lv().replace('-', "--"))
    }

    /// Repeated while udev is late with a name that another device bore before.
    pub(crate) fn stage(&self) -> Result<(), Status> {
        let start = Instant::now();
        loop {
            match self.csi.stage(&self.id, self.access, &self.staging) {
                Err(status) if has_late_name(&status) && start.elapsed() < TOLD => {
                    println!("{}: {}", self.lv(), status.message());
                    sleep(Duration::from_millis(300));
                }
                done => return done,
            }
        }
    }

    pub(crate) fn unstage(&self) -> Result<(), Status> {
        self.csi.unstage(&self.id, &self.staging)
    }

    pub(crate) fn publish(&self, target: &Path) -> Result<(), Status> {
        self.csi.publish(&self.id, self.access, &self.staging, target)
    }

    pub(crate) fn unpublish(&self, target: &Path) -> Result<(), Status> {
        self.csi.unpublish(&self.id, target)
    }

    pub(crate) fn attach(&self) -> Result<(), Status> {
        self.stage()?;
        self.publish(&self.pod)
    }

    pub(crate) fn detach(&self) -> Result<(), Status> {
        self.unpublish(&self.pod)?;
        self.unstage()
    }

    pub(crate) fn delete(&self) -> Result<(), Status> {
        self.csi.delete(&self.id)
    }

    /// A file of the first pod's, or its device.
    pub(crate) fn file(&self, name: &str) -> String {
        match self.access {
            Access::Block => self.pod.display().to_string(),
            Access::Filesystem(_) => self.pod.join(name).display().to_string(),
        }
    }
}

fn has_late_name(status: &Status) -> bool {
    let late = ["no node for a moment", "found no device node"];
    status.code() == Code::Unavailable && late.iter().any(|it| status.message().contains(it))
}

/// A call that was cut, as often as a CO would repeat it.
pub(crate) fn repeated<T>(call: impl Fn() -> Result<T, Status>) -> Result<T, Status> {
    let start = Instant::now();
    loop {
        match call() {
            Err(status) if driver::is_open(&status) && start.elapsed() < TOLD => {
                println!("repeated: {:?}: {}", status.code(), status.message());
                sleep(Duration::from_millis(300));
            }
            done => return done,
        }
    }
}

/// A volume from a source, as soon as it is complete.
pub(crate) fn copied(
    csi: &Csi,
    class: Class,
    name: &str,
    bytes: u64,
    from: Source<'_>,
) -> Result<Vol> {
    let start = Instant::now();
    loop {
        match Vol::from(csi, class, name, bytes, from) {
            Err(status) if driver::is_open(&status) && start.elapsed() < COPIED => {
                sleep(Duration::from_millis(300));
            }
            made => return made.with_context(|| name.to_owned()),
        }
    }
}

/// Writes so many MiB that nobody could guess, durably; their checksum.
pub(crate) fn fill(machine: &Machine, file: &str, mib: u64) -> Result<String> {
    let write = format!("dd if=/dev/urandom of={file} bs=1M count={mib} conv=fsync 2>/dev/null");
    machine.sh(&write)?;
    sum(machine, file, mib)
}

/// The checksum of the first so many MiB, read past the cache where there is one.
pub(crate) fn sum(machine: &Machine, file: &str, mib: u64) -> Result<String> {
    let text = machine.sh(&format!("sync; head -c {} {file} | sha256sum", mib * MIB))?;
    text.split(' ').next().map(str::to_owned).context("no checksum")
}

/// The last that was noted of each record that was written to a device, in lines of its number and its checksum, against the device. A line without a
/// checksum is of a write that was begun, and may have happened or not.
pub(crate) fn compare_records(
    machine: &Machine,
    device: &str,
    noted: &str,
    size: &str,
) -> Result<()> {
    machine
        .sh(&format!(
            r#"awk '{{ last[$1] = $2 }} END {{ for (i in last) if (last[i] != "") print i, last[i] }}' {noted} >{noted}.last
               test -s {noted}.last
               while read at sum; do
                   has=$(dd if={device} bs={size} skip=$at count=1 iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)
                   test $has = $sum || {{ echo record $at is another >&2; exit 1; }}
               done <{noted}.last"#
        ))
        .map(drop)
}

/// How many lines with this word a disk has, read past every cache and past LVM.
pub(crate) fn on_disk(machine: &Machine, disk: &str, word: &str) -> Result<u64> {
    let count = machine.sh(&format!(
        "dd if={disk} bs=1M iflag=direct 2>/dev/null | tr '\\0' '\\n' | grep -a -c {word} || true"
    ))?;
    count.trim().parse().with_context(|| count.clone())
}

/// Waits until the health of volumes is as it should be: what is wrong is noticed within seconds, and so is its end.
pub(crate) fn health_is(
    csi: &Csi,
    volumes: &[&Vol],
    good: impl Fn(&[String]) -> bool,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let mut health = Vec::new();
        for v in volumes {
            health.extend(csi.health(&v.id)?);
        }
        if good(&health) {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_mins(3), "their health is said to be {health:?}");
        sleep(Duration::from_secs(1));
    }
}

/// The code of a call that should fail.
pub(crate) fn code<T>(result: Result<T, Status>) -> Result<Code> {
    match result {
        Ok(_) => anyhow::bail!("a call went well that should be refused"),
        Err(status) => Ok(status.code()),
    }
}
