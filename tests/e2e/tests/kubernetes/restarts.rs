//! The agent, the controller and the node go away and come back: data and pods do not notice more than they must.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::Value;

use crate::objects::{Binding, Claim, SYSTEM, class, on_node, pod};
use crate::support::{SOON, Test, check, list, node_of, object, pods, text, write};

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

/// The power of node2 is cut. A volume of it that is deleted meanwhile is not reported as gone.
pub(crate) fn node_off(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "off")?;
    let claims = [
        Claim::new("kept", &class("thin", "ext4", Binding::WithPod), "64Mi"),
        Claim::new("deleted", &class("thick", "ext4", Binding::WithPod), "64Mi"),
    ];
    let [kept, deleted] = &claims;
    test.claim(kept)?;
    test.claim(deleted)?;
    test.run(&on_node(pod("user", &[kept, deleted]), "node2"))?;
    test.sh("user", &write(&[kept, deleted]))?;
    let volume = test.bound("deleted")?;
    ensure!(node_of(&volume)? == "node2", "it should be on node2");
    let name = text(&volume["metadata"]["name"])?;
    test.delete("pod", "user")?;
    cluster.power_cut_node("node2")?;
    test.delete("pvc", "deleted")?;
    // `kubectl describe pv` says why it is still there.
    let fields = format!("--field-selector=involvedObject.name={name}");
    cluster.eventually("the event that the node is away", SOON, || {
        let events = cluster.get_json(&["events", "--namespace", "default", &fields])?;
        let said = events.to_string();
        Ok((said.contains("VolumeFailedDelete") && said.contains("not connected")).then_some(()))
    })?;
    let there = cluster.get_json(&["pv", name])?;
    ensure!(there["status"]["phase"] != "Bound", "{there:#}");
    cluster.start_node("node2")?;
    cluster.wait_for(&object("pv", name), "gone", SOON, Value::is_null)?;
    test.run(&pod("user", &[kept]))?;
    test.sh("user", &check(&[kept]))?;
    ensure!(list(cluster, "csinodes")?.len() == 2, "a node is missing");
    test.finish()
}
