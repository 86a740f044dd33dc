//! The life of nodes: storage, power cuts, several nodes, other processes, crashes of the host's side.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use cinderblock_lab::{Lab, Node, NodeState, Status};

use crate::support::{GIB, small, test_lab};

/// Set for the other process: the lab's directory.
const OTHER_PROCESS: &str = "CINDERBLOCK_TEST_LAB";

fn sh(node: &Node, script: &str) -> Result<String> {
    node.exec(["sh", "-ec", script]).text()
}

#[test]
fn storage_survives_power_cuts() -> Result<()> {
    let test = test_lab("storage")?;
    let start = Instant::now();
    let node = test.lab.up(&[small(1).memory_mib(512).disk(4 * GIB).disk(2 * GIB)])?.remove(0);
    println!("up after {:.1} s", start.elapsed().as_secs_f32());
    sh(&node, "test -c /dev/mapper/control")?;
    assert!(sh(&node, "lvm version")?.contains("Driver version"));
    assert_eq!(sh(&node, "readlink -f /dev/disk/by-id/lab-disk1")?, "/dev/ubdc");
    assert_eq!(sh(&node, "readlink -f /dev/disk/by-id/lab-disk2")?, "/dev/ubdd");
    assert_eq!(sh(&node, "blockdev --getsize64 /dev/ubdc")?, (4 * GIB).to_string());
    sh(
        &node,
        "vgcreate -q vg0 /dev/disk/by-id/lab-disk1 /dev/disk/by-id/lab-disk2
         lvcreate -q --type thin-pool -L 1g -n pool vg0
         lvcreate -q --type thin -V 2g --thinpool pool -n thin vg0
         mkfs.ext4 -q /dev/vg0/thin
         mkdir -p /data /var/lib/kubelet/x && mount /dev/vg0/thin /data
         echo kept > /data/file; echo kept > /root/system-file; sync",
    )?;
    power_cut_under_load(&node)?;
    node.boot()?;
    assert_eq!(sh(&node, "lvs --noheadings -o lv_name vg0 | sort | xargs")?, "pool thin");
    sh(&node, "vgchange -q -ay vg0 && udevadm settle && mount /dev/vg0/thin /data")?;
    assert_eq!(
        sh(&node, "cat /data/file /root/system-file && ls /var/lib/kubelet")?,
        "kept\nkept\nx"
    );
    node.shutdown(Duration::from_mins(1))?;
    assert_eq!(node.state()?, NodeState::Off);
    let error = format!("{:#}", node.exec(["true"]).run().unwrap_err());
    assert!(error.contains("node node1 is off"), "{error}");
    let console = fs::read_to_string(node.console())?;
    assert!(!console.contains("stays mounted"), "{console}");
    node.boot()?;
    let dirty = node.exec(["sh", "-c", "dmesg | grep 'EXT4-fs.*recovery'"]).run()?;
    assert_eq!(dirty.status, Status::Exited(1), "after a shutdown: {}", dirty.stdout_text());
    Ok(())
}

/// A call that runs meanwhile ends at once, and says why.
fn power_cut_under_load(node: &Node) -> Result<()> {
    let is_up = AtomicBool::new(false);
    let call = thread::scope(|scope| {
        let script = "echo up; while :; do sync; done";
        let call = scope.spawn(|| {
            node.exec(["sh", "-c", script]).follow(|_| is_up.store(true, Ordering::SeqCst))
        });
        while !is_up.load(Ordering::SeqCst) && !call.is_finished() {
            thread::sleep(Duration::from_millis(10));
        }
        node.power_cut()?;
        let start = Instant::now();
        let call = call.join().unwrap();
        // Long before the call's own time is over.
        assert!(start.elapsed() < Duration::from_secs(20));
        anyhow::Ok(call)
    })?;
    let error = format!("{:#}", call.unwrap_err());
    assert!(error.contains("the VM died meanwhile"), "{error}");
    assert_eq!(node.state()?, NodeState::Off);
    node.power_cut()
}

#[test]
fn nodes_meet_and_other_processes_take_them_up() -> Result<()> {
    // The other process is this test once more.
    if let Some(dir) = std::env::var_os(OTHER_PROCESS) {
        return other_process(Path::new(&dir));
    }
    let test = test_lab("two")?;
    let specs = [small(1), small(2).name("second").share("/usr/share")];
    let nodes = test.lab.up(&specs)?;
    let ping = "busybox ping -c 2 -W 5";
    sh(&nodes[0], &format!("{ping} {}", nodes[1].address()))?;
    sh(&nodes[1], &format!("{ping} {} && {ping} 10.88.0.1", nodes[0].address()))?;
    assert_ne!(sh(&nodes[0], "cat /etc/machine-id")?, sh(&nodes[1], "cat /etc/machine-id")?);
    let routes = in_namespace(&test.lab, &["ip", "route"])?;
    assert!(routes.contains("10.89.2.0/24 via 10.88.0.12"), "{routes}");

    let child = Command::new(std::env::current_exe()?)
        .args(["--exact", "--nocapture"])
        .arg("lifecycle::nodes_meet_and_other_processes_take_them_up")
        .env(OTHER_PROCESS, test.lab.dir())
        .output()?;
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && output.contains("hello from second"), "{output}");

    // Up once more changes nothing.
    let before = nodes[0].state()?;
    test.lab.up(&specs)?;
    assert_eq!(nodes[0].state()?, before);
    let error = test.lab.up(&[small(1).disk(GIB)]).unwrap_err().to_string();
    assert!(error.contains("another specification"), "{error}");
    let error = test.lab.up(&[small(1).name("third")]).unwrap_err().to_string();
    assert!(error.contains("the index 1"), "{error}");
    crashes(&test.lab, &nodes)
}

fn in_namespace(lab: &Lab, words: &[&str]) -> Result<String> {
    let prefix = lab.net().exec_prefix();
    let output = Command::new(&prefix[0]).args(&prefix[1..]).args(words).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

fn other_process(dir: &Path) -> Result<()> {
    let lab = Lab::attach_at("two", dir)?;
    let status = lab.status()?;
    assert!(status.namespace_up && status.nodes.len() == 2);
    let running = |it: &NodeState| matches!(it, NodeState::Running { .. });
    assert!(status.nodes.iter().all(|it| running(&it.state)));
    println!("hello from {}", sh(&lab.node("second")?, "hostname")?);
    // The VM must outlive this process, which boots it anew.
    lab.node("node1")?.reboot()
}

/// What a host's side that died half-way leaves behind.
fn crashes(lab: &Lab, nodes: &[Node]) -> Result<()> {
    assert_eq!(sh(&nodes[0], "hostname")?, "node1", "rebooted by a process that has ended");
    // A VM that ended by itself.
    let NodeState::Running { pid } = nodes[0].state()? else { anyhow::bail!("not running") };
    let crash = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60";
    let error = format!("{:#}", nodes[0].exec(["sh", "-c", crash]).run().unwrap_err());
    assert!(error.contains("died") || error.contains("broke"), "{error}");
    let gone = (0..600).any(|_| {
        thread::sleep(Duration::from_millis(100));
        nodes[0].state().is_ok_and(|state| state == NodeState::Died)
    });
    assert!(gone, "process {pid} still runs");
    lab.up(&[nodes[0].spec().clone()])?;
    sh(&nodes[0], "true")?;
    // A VM that no state file knows: the run died between starting it and writing that down.
    fs::remove_file(nodes[1].folder().join("run.json"))?;
    assert_eq!(nodes[1].state()?, NodeState::Off);
    lab.up(&[nodes[1].spec().clone()])?;
    sh(&nodes[1], "true")?;
    fs::write(nodes[1].folder().join("run.json"), "{ damaged")?;
    let error = nodes[1].state().unwrap_err().to_string();
    assert!(error.contains("take the lab down"), "{error}");
    lab.down()?;
    assert!(lab.net().processes().is_empty() && !lab.net().exists());
    assert!(!nodes[1].folder().exists() && nodes[1].console().exists());
    lab.down()?;
    Lab::attach_at("two", lab.dir()).unwrap_err();
    // A lab that was down comes up again; here with the guest's program that the lab finds itself.
    let node = Lab::at("two", lab.dir())?.up(&[small(3)])?.remove(0);
    assert_eq!(sh(&node, "hostname")?, "node3");
    Ok(())
}

#[test]
fn a_boot_that_fails_says_where() -> Result<()> {
    let test = test_lab("broken")?;
    let node = test.lab.up(&[small(1)])?.remove(0);
    node.power_cut()?;
    let disk = node.folder().join("system.img");
    let size = disk.metadata()?.len();
    fs::File::create(&disk)?.set_len(size)?;
    let start = Instant::now();
    let error = format!("{:#}", node.boot().unwrap_err());
    // Not at the end of the patience that a good one has.
    assert!(start.elapsed() < Duration::from_secs(100));
    for part in ["node node1", "mount the system disk", "mount -t ext4", "  | "] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert!(!matches!(node.state()?, NodeState::Running { .. }));
    Ok(())
}
