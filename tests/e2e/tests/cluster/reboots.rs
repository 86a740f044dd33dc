//! Nodes that go and come back, with what ran on them.

use std::time::Duration;

use anyhow::Result;
use cinderblock_lab::cluster::condition;
use cinderblock_lab::images::{BUSYBOX, IDLE};
use cinderblock_lab::{Cluster, Namespace};
use serde_json::{Value, json};

use crate::support::timed;

const SOON: Duration = Duration::from_mins(3);

pub(crate) fn reboots(cluster: &Cluster) -> Result<()> {
    let test = cluster.namespace("reboots")?;
    let labels = json!({ "app": "sleeper" });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "sleeper" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "nodeSelector": { "kubernetes.io/hostname": "node2" },
                    "terminationGracePeriodSeconds": 1,
                    "containers": [
                        { "name": "main", "image": BUSYBOX, "command": IDLE },
                    ],
                },
            },
        },
    });
    test.apply(&deployment.to_string())?;
    cluster.wait_for_deployment(test.name(), "sleeper", SOON)?;
    timed("reboot", || comes_back(&test, || cluster.reboot_node("node2")))?;
    timed("power cut", || {
        comes_back(&test, || {
            cluster.power_cut_node("node2")?;
            cluster.start_node("node2")
        })
    })?;
    // Boots that ended in order keep all images, and so do others.
    let images = cluster.node_images(&cluster.lab().node("node2")?)?;
    assert!(images.contains_key(BUSYBOX) && images.contains_key("docker.io/library/own:1"));
    Ok(())
}

/// The pod's container runs anew, and finds its way to Services.
fn comes_back(test: &Namespace<'_>, reboot: impl FnOnce() -> Result<()>) -> Result<()> {
    let container = |pods: &Value| pods["items"][0]["status"]["containerStatuses"][0].clone();
    let before = container(&test.get_json(&["pods"])?)["containerID"].clone();
    reboot()?;
    let pods = test.object("pods", "");
    test.cluster().wait_for(&pods, "back", SOON, |pods| {
        let now = container(pods);
        now["containerID"] != before
            && now["ready"] == true
            && condition(&pods["items"][0], "Ready") == Some(true)
    })?;
    let pod = test.kubectl_text(&["get", "pods", "-o", "name"])?;
    let server = ["nslookup", "kubernetes.default.svc.cluster.local"];
    test.cluster().eventually("DNS in the pod that came back", SOON, || {
        Ok(test.exec(&pod, &server)?.contains("10.96.0.1").then_some(()))
    })
}
