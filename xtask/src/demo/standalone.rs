//! The demo without Kubernetes: one VM with a blank disk, `cinderblock standalone`, and the CSI calls that Kubernetes would make.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use cinderblock_lab::Lab;
use cinderblock_lab::driver::{
    Access, Class, Csi, Kernel, Machine, Profile, Source, backend, program,
};

use super::story::{Story, command, seen};

const GIB: u64 = 1 << 30;
const DISK: u64 = 12 * GIB;
const BACKEND: &str = "lvmdriver-1";
const VG: &str = "stack-volumes-lvmdriver-1";
const ACCESS: Access = Access::Filesystem("ext4");
const CLASS: Class = Class { backend: BACKEND, provisioning: "thin", access: ACCESS, more: &[] };

/// In the VM, where the volumes are mounted.
const FOLDER: &str = "/run/demo";

/// What the pod writes: files that add up to 64 MiB.
const WRITE: &str = "mkdir -p data && for i in 1 2 3 4; do \
    dd if=/dev/urandom of=data/file$i bs=1M count=16 status=none; done; \
    sha256sum data/* > sums; sync";

/// A volume in use.
struct Volume {
    id: String,
    name: &'static str,
}

impl Volume {
    fn staging(&self) -> PathBuf {
        Path::new(FOLDER).join("staging").join(self.name)
    }

    fn target(&self) -> PathBuf {
        Path::new(FOLDER).join("pods").join(self.name)
    }
}

/// The machine and a client of its driver.
struct Demo {
    machine: Machine,
    csi: Csi,
}

/// Runs it.
pub(super) fn run(keep: bool) -> Result<()> {
    let mut story = Story::new("Cinderblock without Kubernetes: CSI calls to one node");
    let machine = story.step("A machine with one blank disk", boot)?;
    let mut demo = story.step("The driver makes the disk a volume group", || start(machine))?;
    let told = tell(&demo, &mut story, keep);
    if keep && told.is_ok() {
        let lab = "cargo xtask lab --name demo-standalone";
        story.end(&format!(
            "It runs on. Look around:  {lab} exec node1 -- lvs -a -o +lv_tags\n\
             Throw it away:            {lab} down"
        ));
        demo.machine.keep();
        return Ok(());
    }
    told.inspect_err(|_| println!("{}", demo.machine.story()))?;
    story.end("Nothing is left: the machine is thrown away.");
    Ok(())
}

fn boot() -> Result<Machine> {
    let program = program(Profile::Dev)?;
    let config = backend(BACKEND, VG, 1, "thinPool: { name: pool0, size: 80% }");
    let machine =
        Machine::boot(Lab::new("demo-standalone")?, Kernel::Debian, &[DISK], &program, &config)?;
    look(&machine, "lsblk -o NAME,SIZE,TYPE,FSTYPE /dev/disk/by-id/lab-disk1")?;
    Ok(machine)
}

fn start(machine: Machine) -> Result<Demo> {
    command("cat config.yaml");
    seen(&backend(BACKEND, VG, 1, "thinPool: { name: pool0, size: 80% }"));
    command("cinderblock standalone --config config.yaml");
    machine.start(BACKEND)?;
    look(&machine, "pvs -o pv_name,vg_name,pv_size,pv_free")?;
    look(&machine, "lvs -o lv_name,vg_name,lv_size,data_percent")?;
    let csi = machine.driver.csi()?;
    println!("   GetCapacity: {}", gib(csi.capacity(&CLASS)?));
    Ok(Demo { machine, csi })
}

fn tell(demo: &Demo, story: &mut Story, keep: bool) -> Result<()> {
    let first = story.step("Create a volume, mount it", || demo.create("first", GIB, None))?;
    story.step("Write and take checksums", || demo.within(&first, WRITE))?;
    let snapshot = story.step("Take a snapshot while it is mounted", || {
        let snapshot = demo.csi.snapshot("before", &first.id)?;
        println!("   CreateSnapshot: {}", snapshot.snapshot_id);
        Ok(snapshot)
    })?;
    story.step("Damage the data", || {
        demo.within(&first, "echo damaged > data/file1; rm data/file2; sync")?;
        let (ok, _) = demo.checked(&first)?;
        ensure!(!ok, "the checksums should differ now");
        Ok(())
    })?;
    let restored = story.step("Restore the snapshot into a new volume and compare", || {
        let source = Source::Snapshot(&snapshot.snapshot_id);
        let restored = demo.create("restored", GIB, Some(source))?;
        demo.expect_good(&restored)?;
        Ok(restored)
    })?;
    let clone = story.step("Clone the restored volume, twice as large", || {
        let clone = demo.create("clone", 2 * GIB, Some(Source::Volume(&restored.id)))?;
        demo.expect_good(&clone)?;
        demo.size(&clone)?;
        Ok(clone)
    })?;
    story.step("Expand the first volume while it is mounted", || {
        let size = demo.csi.expand(&first.id, 3 * GIB)?;
        println!("   ControllerExpandVolume: {}", gib(size));
        demo.csi.expand_on_node(&first.id, &first.target())?;
        demo.size(&first)
    })?;
    if keep {
        return Ok(());
    }
    story.step("Delete everything", || {
        for volume in [&first, &restored, &clone] {
            demo.delete(volume)?;
        }
        demo.csi.delete_snapshot(&snapshot.snapshot_id)?;
        println!("   DeleteSnapshot: {}", snapshot.snapshot_id);
        Ok(())
    })?;
    story.step("The volume group is empty again", || demo.expect_empty())
}

impl Demo {
    fn create(&self, name: &'static str, bytes: u64, source: Option<Source<'_>>) -> Result<Volume> {
        let mut request = CLASS.request(&format!("pvc-{name}"), bytes);
        request.volume_content_source = source.map(Source::content_source);
        let made = self.csi.create(&request)?;
        let size = u64::try_from(made.capacity_bytes).unwrap_or_default();
        println!("   CreateVolume: {}, {}", made.volume_id, gib(size));
        let volume = Volume { id: made.volume_id, name };
        let (staging, target) = (volume.staging(), volume.target());
        let parent = target.parent().unwrap_or(&target).display().to_string();
        self.machine.sh(&format!("mkdir -p {} {parent}", staging.display()))?;
        self.csi.stage(&volume.id, ACCESS, &staging)?;
        self.csi.publish(&volume.id, ACCESS, &staging, &target)?;
        println!("   NodeStageVolume, NodePublishVolume: {}", target.display());
        Ok(volume)
    }

    fn delete(&self, volume: &Volume) -> Result<()> {
        self.csi.unpublish(&volume.id, &volume.target())?;
        self.csi.unstage(&volume.id, &volume.staging())?;
        self.csi.delete(&volume.id)?;
        println!("   NodeUnpublishVolume, NodeUnstageVolume, DeleteVolume: {}", volume.id);
        Ok(())
    }

    /// What a pod would do in its folder.
    fn within(&self, volume: &Volume, script: &str) -> Result<()> {
        command(&format!("cd {}; {script}", volume.target().display()));
        self.machine.sh(&format!("cd {}; {script}", volume.target().display())).map(drop)
    }

    /// Whether the checksums are those that were taken.
    fn checked(&self, volume: &Volume) -> Result<(bool, String)> {
        let script = "sha256sum -c sums 2>&1 || true";
        let said = self.machine.sh(&format!("cd {}; {script}", volume.target().display()))?;
        command(&format!("cd {}; sha256sum -c sums", volume.target().display()));
        seen(&said);
        Ok((said.lines().count() == 4 && said.lines().all(|line| line.ends_with(": OK")), said))
    }

    fn expect_good(&self, volume: &Volume) -> Result<()> {
        let (good, said) = self.checked(volume)?;
        ensure!(good, "the data of {} is not what was written: {said}", volume.name);
        Ok(())
    }

    fn size(&self, volume: &Volume) -> Result<()> {
        look(
            &self.machine,
            &format!("df -h --output=size,used,target {}", volume.target().display()),
        )
    }

    fn expect_empty(&self) -> Result<()> {
        look(&self.machine, &format!("lvs -o lv_name,lv_size,data_percent {VG}"))?;
        let left = self.machine.sh(&format!("lvs --noheadings -o lv_name {VG}"))?;
        ensure!(left.trim() == "pool0", "volumes are left in {VG}: {left}");
        let mounts = self.machine.sh(&format!("grep -c {FOLDER} /proc/mounts || true"))?;
        ensure!(mounts.trim() == "0", "{mounts} mounts are left");
        Ok(())
    }
}

/// Runs a command in the VM, and shows both.
fn look(machine: &Machine, script: &str) -> Result<()> {
    command(script);
    seen(&machine.sh(script)?);
    Ok(())
}

/// GiB with two digits.
fn gib(bytes: u64) -> String {
    let hundredths = bytes.saturating_mul(100) / GIB;
    format!("{}.{:02} GiB", hundredths / 100, hundredths % 100)
}
