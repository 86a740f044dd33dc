//! Pods on a Kubernetes of one node: how long until they run, without a volume, with a new one and with one that was mounted before, and what of it is ours.

use anyhow::Result;
use cinderblock_lab::Cluster;
use cinderblock_lab::images::{BUSYBOX, IDLE};
use serde_json::{Value, json};

use super::samples::Samples;
use super::spent::Spent;
use super::watch::Watch;

/// Measures with one pod after the other, one for each of these claims, which are bound.
pub(super) fn measure(cluster: &Cluster, claims: &[String]) -> Result<Value> {
    let mut watch = Watch::start(cluster, "pods")?;
    let mut told = serde_json::Map::new();
    let kinds = [("without_a_volume", false), ("with_a_new_volume", true), ("with_it_again", true)];
    for (what, has_volume) in kinds {
        println!("bench: {} pods {}, one by one", claims.len(), what.replace('_', " "));
        let before = Spent::read(cluster)?;
        let mut samples = Samples::default();
        let names: Vec<_> =
            claims.iter().map(|claim| format!("{claim}-{}", what.replace('_', "-"))).collect();
        for (name, claim) in names.iter().zip(claims) {
            cluster.apply(&pod(name, has_volume.then_some(claim)).to_string())?;
            samples.add(watch.until("Running", std::slice::from_ref(name))?.0);
        }
        let spent = Spent::read(cluster)?.since(&before, claims.len());
        told.insert(what.to_owned(), json!({ "running": samples.told(), "of_it_by_us": spent }));
        let all: Vec<_> = ["delete", "pod", "--grace-period=1"]
            .into_iter()
            .chain(names.iter().map(String::as_str))
            .collect();
        cluster.kubectl_text(&all)?;
    }
    Ok(Value::Object(told))
}

fn pod(name: &str, claim: Option<&String>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "main", "image": BUSYBOX, "command": IDLE }] },
    });
    if let Some(claim) = claim {
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{ "name": "data", "mountPath": "/data" }]);
        pod["spec"]["volumes"] =
            json!([{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }]);
    }
    pod
}
