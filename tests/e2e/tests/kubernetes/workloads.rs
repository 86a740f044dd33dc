//! The ways in which workloads ask for volumes, besides a claim of their own.

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;
use cinderblock_lab::images::{BUSYBOX, IDLE};
use serde_json::{Value, json};

use crate::objects::{Binding, Claim, class, on_node, pod};
use crate::support::{SOON, Test, all_lvs, check, lv_name, object, text, write};

pub(crate) fn generic_ephemeral_volume(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "ephemeral")?;
    let mut user = pod("user", &[]);
    user["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "scratch", "mountPath": "/mnt" }]);
    user["spec"]["volumes"] = json!([{ "name": "scratch", "ephemeral": { "volumeClaimTemplate": {
        "spec": Claim::new("", &class("thin", "ext4", Binding::WithPod), "64Mi").object()["spec"],
    }}}]);
    test.run(&user)?;
    test.sh("user", "echo here >/mnt/x; sync; grep ' /mnt ext4' /proc/mounts")?;
    let volume = test.bound("user-scratch")?;
    test.delete("pod", "user")?;
    // The claim goes with its pod, and the volume with its claim.
    test.gone("pvc", "user-scratch")?;
    let volume = object("pv", text(&volume["metadata"]["name"])?);
    cluster.wait_for(&volume, "gone", SOON, Value::is_null)?;
    test.finish()
}

pub(crate) fn read_write_once_pod(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "one-pod")?;
    let mut claim = Claim::new("data", &class("thin", "ext4", Binding::WithPod), "64Mi");
    claim.access_mode = "ReadWriteOncePod";
    test.claim(&claim)?;
    test.run(&pod("first", &[&claim]))?;
    test.sh("first", &write(&[&claim]))?;
    // A second pod waits for the first to end, also when the scheduler is not asked.
    test.apply(&pod("second", &[&claim]))?;
    test.event("Pod", "second", &["ReadWriteOncePod"])?;
    test.delete("pod", "first")?;
    test.namespace.wait_for_pod("second", SOON)?;
    test.sh("second", &check(&[&claim]))?;
    test.finish()
}

pub(crate) fn fs_group(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "fs-group")?;
    let claim = Claim::new("data", &class("thin", "xfs", Binding::WithPod), "512Mi");
    test.claim(&claim)?;
    let mut user = pod("user", &[&claim]);
    user["spec"]["securityContext"] =
        json!({ "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 4242 });
    test.run(&user)?;
    let owner =
        test.sh("user", "touch /mnt/data/x; stat -c '%u %g' /mnt/data/x; stat -c %g /mnt/data")?;
    ensure!(owner.split_whitespace().eq(["1000", "4242", "4242"]), "{owner}");
    test.finish()
}

pub(crate) fn stateful_set(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "stateful")?;
    let template = Claim::new("data", &class("thin", "ext4", Binding::WithPod), "64Mi").object();
    let labels = json!({ "app": "db" });
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": { "name": "db" },
        "spec": {
            "replicas": 2,
            "serviceName": "db",
            "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": { "matchLabels": labels },
                    }],
                    "containers": [{
                        "name": "main",
                        "image": BUSYBOX,
                        "command": IDLE,
                        "volumeMounts": [{ "name": "data", "mountPath": "/mnt/data" }],
                    }],
                },
            },
            "volumeClaimTemplates": [template],
        },
    });
    test.apply(&set)?;
    let mut nodes = Vec::new();
    for name in ["db-0", "db-1"] {
        let found = test.namespace.wait_for_pod(name, SOON)?;
        nodes.push(text(&found["spec"]["nodeName"])?.to_owned());
        test.sh(name, &format!("echo {name} >/mnt/data/name; sync"))?;
    }
    ensure!(nodes[0] != nodes[1], "both are on {}", nodes[0]);
    // Down and up again: each finds its own.
    test.namespace.kubectl_text(&["scale", "statefulset", "db", "--replicas=0"])?;
    test.gone("pod", "db-0")?;
    test.gone("pod", "db-1")?;
    test.namespace.kubectl_text(&["scale", "statefulset", "db", "--replicas=2"])?;
    for (name, node) in ["db-0", "db-1"].iter().zip(&nodes) {
        let found = test.namespace.wait_for_pod(name, SOON)?;
        ensure!(found["spec"]["nodeName"] == **node, "{name} was on {node}");
        ensure!(
            test.sh(name, "cat /mnt/data/name")?.trim() == *name,
            "{name} has another's volume"
        );
    }
    test.finish()
}

pub(crate) fn retain(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "retain")?;
    let claim = Claim::new("data", &class("thick", "ext4", Binding::WithPod), "64Mi");
    test.claim(&claim)?;
    test.run(&on_node(pod("user", &[&claim]), "node1"))?;
    test.sh("user", &write(&[&claim]))?;
    let volume = test.bound("data")?;
    let name = text(&volume["metadata"]["name"])?;
    let retain = r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#;
    cluster.kubectl_text(&["patch", "pv", name, "-p", retain])?;
    test.delete("pod", "user")?;
    test.delete("pvc", "data")?;
    let object = object("pv", name);
    let released = |it: &Value| it["status"]["phase"] == "Released";
    cluster.wait_for(&object, "released", SOON, released)?;
    let lv = lv_name(text(&volume["spec"]["csi"]["volumeHandle"])?)?.to_owned();
    ensure!(all_lvs(cluster)?.contains(&lv), "{lv} is gone");
    // A person gives it to a new claim, and the data is there.
    cluster.kubectl_text(&["patch", "pv", name, "-p", r#"{"spec":{"claimRef":null}}"#])?;
    let mut again = claim.object();
    again["spec"]["volumeName"] = json!(name);
    test.apply(&again)?;
    test.run(&pod("reader", &[&claim]))?;
    test.sh("reader", &check(&[&claim]))?;
    let delete = r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#;
    cluster.kubectl_text(&["patch", "pv", name, "-p", delete])?;
    test.finish()
}
