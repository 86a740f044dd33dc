//! The agent, the controller and the node go away and come back: data and pods do not notice more than they must.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::Value;

use crate::objects::{Binding, Claim, SYSTEM, VG, class, on_node, pod};
use crate::support::{SOON, Test, check, list, node_of, object, pods, text, write};

/// Times that an agent is tried to be caught while it waits.
const TRIES: usize = 5;

/// Claims of three kinds, and a pod on node1 that has written into them.
fn in_use(test: &Test<'_>) -> Result<[Claim; 3]> {
    let claims = [
        Claim::new("thin", &class("thin", "ext4", Binding::WithPod), "64Mi"),
        Claim::new("thick", &class("thick", "xfs", Binding::WithPod), "512Mi"),
        Claim::new("block", &class("thick", "ext4", Binding::WithPod), "64Mi").block(),
    ];
    for claim in &claims {
        test.claim(claim)?;
    }
    let all: Vec<_> = claims.iter().collect();
    test.run(&on_node(pod("user", &all), "node1"))?;
    test.sh("user", &write(&all))?;
    Ok(claims)
}

/// A new pod on the same volumes.
fn works_in_a_new_pod(test: &Test<'_>, claims: &[Claim; 3]) -> Result<()> {
    let all: Vec<_> = claims.iter().collect();
    test.delete("pod", "user")?;
    test.run(&pod("user", &all))?;
    test.sh("user", &check(&all))?;
    Ok(())
}

/// One after the other.
pub(crate) fn agent_and_controller(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "restarts")?;
    let claims = in_use(&test)?;
    let all: Vec<_> = claims.iter().collect();
    let agents = pods(cluster, "node")?;
    let (old, _) = agents.iter().find(|(_, node)| node == "node1").context("no agent on node1")?;
    cluster.kubectl_text(&["delete", "pod", "--namespace", SYSTEM, old])?;
    // While it is away, and when another one is there, the pod reads and writes.
    test.sh("user", &check(&all))?;
    test.sh("user", "echo more >/mnt/thin/more; sync")?;
    agent_is_back(cluster, old)?;
    test.sh("user", &check(&all))?;
    works_in_a_new_pod(&test, &claims)?;

    for (name, _) in pods(cluster, "controller")? {
        cluster.kubectl_text(&["delete", "pod", "--namespace", SYSTEM, &name, "--wait=false"])?;
    }
    works_in_a_new_pod(&test, &claims)?;
    cluster.wait_for_deployment(SYSTEM, "cinderblock-controller", SOON)?;
    // The new one knows every volume: a clone finds its source.
    let clone =
        Claim::new("clone", &class("thin", "ext4", Binding::WithPod), "64Mi").of_claim("thin");
    test.claim(&clone)?;
    test.run(&pod("reader", &[&clone]))?;
    test.sh("reader", &check(&[&clone]))?;
    test.finish()
}

/// LVM's end left the pool held, and the agent is killed while it mounts a volume of it: its container could not end.
pub(crate) fn agent_that_waits(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "waits")?;
    let claims = in_use(&test)?;
    let all: Vec<_> = claims.iter().collect();
    test.delete("pod", "user")?;
    let agents = pods(cluster, "node")?;
    let (agent, _) =
        agents.iter().find(|(_, node)| node == "node1").context("no agent on node1")?;
    let restarts = || -> Result<u64> {
        let pod = cluster.get_json(&["--namespace", SYSTEM, "pod", agent])?;
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64().context("no count")
    };
    let before = restarts()?;
    let node = cluster.lab().node("node1")?;
    let pool = format!("{}-pool0-tpool", VG.replace('-', "--"));
    let catch = format!(
        "while dmsetup info -c --noheadings -o suspended {pool} | grep -q Suspended; do
             pid=$(pgrep -of 'cinderblock node')
             grep -qE '^[0-9]+ [(].*[)] D ' /proc/$pid/task/*/stat && kill -9 $pid && exit
             sleep 0.1
         done
         exit 1"
    );
    // The watchdog has the pool go on after some seconds, and a busy kubelet may come later: once more then.
    let killed = (0..TRIES).try_fold(false, |killed, _| -> Result<bool> {
        if killed {
            return Ok(true);
        }
        node.exec(["dmsetup", "suspend", "--noflush", &pool]).text()?;
        test.apply(&on_node(pod("user", &all), "node1"))?;
        let caught = node.exec(["sh", "-c", &catch]).timeout(SOON).run()?.status.success();
        if !caught {
            test.delete("pod", "user")?;
        }
        Ok(caught)
    })?;
    ensure!(killed, "nothing of the agent waited for the pool in {TRIES} tries");
    test.namespace.wait_for_pod("user", SOON)?;
    test.sh("user", &check(&all))?;
    cluster.eventually("the agent's restart to be counted", SOON, || {
        Ok((restarts()? > before).then_some(()))
    })?;
    test.finish()
}

/// Waits for an agent on node1 that is ready and is not this one.
fn agent_is_back(cluster: &Cluster, old: &str) -> Result<()> {
    let find = || {
        let found = pods(cluster, "node")?;
        Ok(found.into_iter().find(|(name, node)| node == "node1" && name != old))
    };
    let (new, _) = cluster.eventually("a new agent", SOON, find)?;
    cluster.wait_for_pod(SYSTEM, &new, SOON).map(drop)
}

pub(crate) fn node(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "reboot")?;
    let claims = in_use(&test)?;
    let all: Vec<_> = claims.iter().collect();
    cluster.reboot_node("node1")?;
    // The kubelet starts the same pod again, when the agent is there.
    cluster.eventually("the pod's data", SOON, || Ok(test.sh("user", &check(&all)).ok()))?;
    works_in_a_new_pod(&test, &claims)?;
    test.finish()
}

/// A volume on node2 that is to be kept and one that is to be deleted, both written to, and nobody uses them; and
/// the name of the second one's object.
fn kept_and_deleted(test: &Test<'_>) -> Result<(Claim, String)> {
    let kept = Claim::new("kept", &class("thin", "ext4", Binding::WithPod), "64Mi");
    let deleted = Claim::new("deleted", &class("thick", "ext4", Binding::WithPod), "64Mi");
    test.claim(&kept)?;
    test.claim(&deleted)?;
    test.run(&on_node(pod("user", &[&kept, &deleted]), "node2"))?;
    test.sh("user", &write(&[&kept, &deleted]))?;
    let volume = test.bound("deleted")?;
    ensure!(node_of(&volume)? == "node2", "it should be on node2");
    test.delete("pod", "user")?;
    Ok((kept, text(&volume["metadata"]["name"])?.to_owned()))
}

/// The power of node2 is cut. A volume of it that is deleted meanwhile is not reported as gone.
pub(crate) fn node_off(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "off")?;
    let (kept, name) = &kept_and_deleted(&test)?;
    cluster.power_cut_node("node2")?;
    test.delete("pvc", "deleted")?;
    stays_undeleted(cluster, name, "not connected")?;
    cluster.start_node("node2")?;
    cluster.wait_for(&object("pv", name), "gone", SOON, Value::is_null)?;
    test.run(&pod("user", &[kept]))?;
    test.sh("user", &check(&[kept]))?;
    ensure!(list(cluster, "csinodes")?.len() == 2, "a node is missing");
    test.finish()
}

/// `kubectl describe pv` says why a volume that is to be deleted is still there.
fn stays_undeleted(cluster: &Cluster, volume: &str, why: &str) -> Result<()> {
    let fields = format!("--field-selector=involvedObject.name={volume}");
    cluster.eventually(&format!("the event that says {why}"), SOON, || {
        let events = cluster.get_json(&["events", "--namespace", "default", &fields])?;
        let said = events.to_string();
        Ok((said.contains("VolumeFailedDelete") && said.contains(why)).then_some(()))
    })?;
    let there = cluster.get_json(&["pv", volume])?;
    ensure!(there["status"]["phase"] == "Released", "{there:#}");
    Ok(())
}

/// Another machine comes under node2's name, with empty disks, and works. What the old one has is not
/// taken for gone, and is there when its disks are back.
pub(crate) fn node_replaced(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "replaced")?;
    let (kept, name) = &kept_and_deleted(&test)?;

    cluster.power_cut_node("node2")?;
    let disks = data_disks(cluster)?;
    for disk in &disks {
        rename(disk, &disk.with_extension("old"))?;
    }
    // With new disks: there are none in those places.
    cluster.start_node("node2")?;
    let new = Claim::new("new", &class("thick", "ext4", Binding::WithPod), "64Mi");
    test.claim(&new)?;
    test.run(&on_node(pod("newcomer", &[&new]), "node2"))?;
    test.delete("pvc", "deleted")?;
    stays_undeleted(cluster, name, "no node that is connected has volume group")?;
    test.apply(&pod("user", &[kept]))?;
    test.event("Pod", "user", &["this node sees no volume group with the identifier"])?;
    test.delete("pod", "user")?;
    test.delete("pod", "newcomer")?;
    test.delete("pvc", "new")?;
    let none = |it: &&Value| it["spec"]["claimRef"]["name"] == "new";
    cluster.eventually("the new volume to be gone", SOON, || {
        Ok((list(cluster, "pv")?.iter().filter(none).count() == 0).then_some(()))
    })?;

    cluster.power_cut_node("node2")?;
    for disk in &disks {
        rename(&disk.with_extension("old"), disk)?;
    }
    cluster.start_node("node2")?;
    cluster.wait_for(&object("pv", name), "gone", SOON, Value::is_null)?;
    test.run(&pod("user", &[kept]))?;
    test.sh("user", &check(&[kept]))?;
    test.finish()
}

/// The files that are node2's data disks.
fn data_disks(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let nodes = cluster.lab().nodes()?;
    let node = nodes.iter().find(|node| node.name() == "node2").context("no node2")?;
    let disks = (1..10).map(|n| node.disk_file(n));
    Ok(disks.filter(|file| file.exists()).collect())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("renaming {}", from.display()))
}
