//! A volume that Kubernetes has forgotten: it stays, is told of everywhere, and goes when a person says so.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::{Cluster, Object};
use serde_json::Value;

use crate::objects::{Binding, Claim, SYSTEM, VG, class, pod};
use crate::support::{SOON, Test, all_lvs, lv_name, node_of, pods, text, write};

pub(crate) fn a_retained_volume_without_an_object(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "orphan")?;
    let claim = Claim::new("data", &class("thick", "ext4", Binding::WithPod), "64Mi");
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    test.sh("user", &write(&[&claim]))?;
    let volume = test.bound("data")?;
    let name = text(&volume["metadata"]["name"])?;
    let handle = text(&volume["spec"]["csi"]["volumeHandle"])?;
    let (lv, node) = (lv_name(handle)?.to_owned(), node_of(&volume)?);
    let retain = r#"{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}"#;
    cluster.kubectl_text(&["patch", "pv", name, "-p", retain])?;
    test.delete("pod", "user")?;
    test.delete("pvc", "data")?;
    let object = Object::new("pv", name);
    let released = |it: &Value| it["status"]["phase"] == "Released";
    cluster.wait_for(&object, "released", SOON, released)?;

    let (controller, _) =
        pods(cluster, "controller")?.into_iter().next().context("no controller")?;
    let refused = command(cluster, &controller, &["--remove", handle]);
    let why = format!("{:#}", refused.err().context("what has a PersistentVolume was removed")?);
    ensure!(why.contains("an object of the cluster knows it"), "{why}");

    // A person deletes the object, and the data stays.
    cluster.kubectl_text(&["delete", "pv", name, "--wait=false"])?;
    cluster.wait_for(&object, "gone", SOON, Value::is_null)?;
    let listed = cluster.eventually("it to be an orphan", SOON, || {
        let listed = command(cluster, &controller, &[])?;
        Ok(listed.lines().find(|line| line.contains(handle)).map(str::to_owned))
    })?;
    let claimed = format!("{}/data", test.namespace.name());
    ensure!(listed.contains(node) && listed.contains(&claimed), "{listed}");
    ensure!(all_lvs(cluster)?.contains(&lv), "{lv} is gone");
    shown(cluster, &controller, node)?;
    told(cluster, "OrphanFound", node, handle)?;

    let removed = command(cluster, &controller, &["--remove", handle])?;
    ensure!(removed.contains(&format!("removed {handle}")), "{removed}");
    ensure!(!all_lvs(cluster)?.contains(&lv), "{lv} is still there");
    ensure!(!command(cluster, &controller, &[])?.contains(handle), "it is listed still");
    test.finish()
}

/// `cinderblock orphans` in a controller's pod.
fn command(cluster: &Cluster, controller: &str, more: &[&str]) -> Result<String> {
    let exec = ["exec", "--namespace", SYSTEM, controller, "--container", "cinderblock", "--"];
    cluster.kubectl_text(&[&exec[..], &["cinderblock", "orphans"], more].concat())
}

/// Sees that a controller's metrics count orphans of a node.
fn shown(cluster: &Cluster, controller: &str, node: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{controller}:9808/proxy/metrics");
    let text = cluster.kubectl_text(&["get", "--raw", &path])?;
    let labels = format!("{{node=\"{node}\",volume_group=\"{VG}\",kind=\"volume\"}} ");
    for (metric, least) in
        [("cinderblock_orphans", 1.0), ("cinderblock_orphan_bytes", 67_108_864.0)]
    {
        let start = format!("{metric}{labels}");
        let value = text.lines().find_map(|line| line.strip_prefix(&start)?.parse::<f64>().ok());
        ensure!(value.is_some_and(|value| value >= least), "{start}is {value:?}");
    }
    Ok(())
}

/// Waits for an event on a node that names a volume.
fn told(cluster: &Cluster, reason: &str, node: &str, handle: &str) -> Result<()> {
    let fields = format!("--field-selector=reason={reason},involvedObject.name={node}");
    cluster.eventually("an event on the node", SOON, || {
        let events = cluster.get_json(&["events", "--namespace", "default", &fields])?;
        let mut all = events["items"].as_array().into_iter().flatten();
        let about = |it: &Value| it["message"].as_str().is_some_and(|said| said.contains(handle));
        Ok(all.any(about).then_some(()))
    })
}
