//! A whole cluster: two nodes, pods, Services, DNS, tokens, reboots. Takes minutes, so it runs only when asked: `cargo xtask test lab-cluster`.
//!
//! It needs root and three GiB of memory, and fails without.

#![allow(
    clippy::tests_outside_test_module,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "an integration test is a test module as a whole"
)]

mod pods;
mod reboots;
mod support;

use std::time::Duration;

use anyhow::{Context, Result};
use cinderblock_lab::cluster::condition;
use cinderblock_lab::{Cluster, Service};
use support::{TestCluster, timed};

/// For what is so within seconds.
const SOON: Duration = Duration::from_mins(1);

#[test]
fn a_cluster_of_two_nodes() -> Result<()> {
    let test = timed("up", || TestCluster::up("cluster"))?;
    let cluster = &test.cluster;
    nodes_are_ready(cluster)?;
    timed("up again", || up_again(cluster))?;
    snapshot_api(cluster)?;
    timed("pods", || pods::pods(cluster))?;
    timed("token", || pods::token(cluster))?;
    timed("load an image", || pods::own_image(cluster))?;
    timed("a failed wait", || errors(cluster))?;
    timed("a service of a node", || services_of_a_node(cluster))?;
    timed("reboots", || reboots::reboots(cluster))?;
    timed("down", || test.down())
}

fn nodes_are_ready(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.get_json(&["nodes"])?;
    let nodes = nodes["items"].as_array().context("no list")?;
    assert_eq!(nodes.len(), 2);
    for (node, address) in nodes.iter().zip(["10.88.0.11", "10.88.0.12"]) {
        assert_eq!(condition(node, "Ready"), Some(true));
        let name = &node["metadata"]["name"];
        assert_eq!(&node["metadata"]["labels"]["kubernetes.io/hostname"], name);
        assert_eq!(node["status"]["addresses"][0]["address"], address);
        let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str();
        assert_eq!(version, cinderblock_lab::tools::version("k8s.io/kubernetes"));
    }
    // An API server that is slow is said not to be known.
    cluster.eventually("a status of two nodes that are well", SOON, || {
        let status = cluster.status()?.to_string();
        let ready = status.matches(", Ready").count() == 2;
        Ok((ready && !status.contains("not running")).then_some(()))
    })
}

fn up_again(cluster: &Cluster) -> Result<()> {
    let before = cluster.status()?;
    let again = Cluster::up(cluster.options().clone())?;
    // With the processes of before.
    cluster
        .eventually("the status of before", SOON, || Ok((again.status()? == before).then_some(())))
}

fn snapshot_api(cluster: &Cluster) -> Result<()> {
    for name in ["volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"] {
        let crd = cluster.get_json(&["crd", &format!("{name}.snapshot.storage.k8s.io")])?;
        assert_eq!(condition(&crd, "Established"), Some(true), "{name}");
    }
    cluster.wait_for_deployment("kube-system", "snapshot-controller", Duration::from_secs(5))?;
    assert_eq!(cluster.kubectl_text(&["get", "volumesnapshots", "-A"])?, "");
    Ok(())
}

/// What is not so is told with its reasons.
fn errors(cluster: &Cluster) -> Result<()> {
    let test = cluster.namespace("errors")?;
    test.apply(&support::pod("stuck", "node1", &["no-such-program"]))?;
    let error = test.wait_for_pod("stuck", Duration::from_mins(1)).unwrap_err().to_string();
    for part in ["pod stuck in namespace", "to be ready took more than 60 s", "no-such-program"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    let error = test.kubectl_text(&["get", "pod", "none"]).unwrap_err().to_string();
    assert!(error.contains("NotFound"), "{error}");
    let error = cluster.apply("kind: Nonsense").unwrap_err().to_string();
    assert!(error.contains("stderr"), "{error}");
    Ok(())
}

/// A kubelet that is gone is seen, and comes back.
fn services_of_a_node(cluster: &Cluster) -> Result<()> {
    let node = cluster.lab().node("node2")?;
    let first = cluster.service_pid(&node, Service::Kubelet)?;
    assert!(first.is_some());
    cluster.stop_service(&node, Service::Kubelet)?;
    cluster.stop_service(&node, Service::Kubelet)?;
    assert_eq!(cluster.service_pid(&node, Service::Kubelet)?, None);
    assert!(cluster.status()?.to_string().contains("not running"));
    cluster.start_node("node2")?;
    let second = cluster.service_pid(&node, Service::Kubelet)?;
    assert!(second.is_some() && second != first);
    Ok(())
}
