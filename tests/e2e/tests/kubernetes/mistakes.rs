//! What is asked for wrongly: an event on the claim says what, and nothing is left behind.

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::{Value, json};

use crate::objects::{BACKEND, Binding, Claim, MISSING_BACKEND, class, storage_class};
use crate::support::{Test, all_lvs, text};

pub(crate) fn unknown_parameter(cluster: &Cluster) -> Result<()> {
    refused(
        cluster,
        "parameter",
        &json!({ "backend": BACKEND, "provisionning": "thin" }),
        &["unknown parameter \"provisionning\"", "known are backend, provisioning"],
    )
}

pub(crate) fn unknown_backend(cluster: &Cluster) -> Result<()> {
    refused(cluster, "backend", &json!({ "backend": "nvme" }), &["backend", "nvme", BACKEND])
}

pub(crate) fn volume_group_that_is_missing(cluster: &Cluster) -> Result<()> {
    refused(
        cluster,
        "missing-vg",
        &json!({ "backend": MISSING_BACKEND }),
        &["no-such-vg", "ResourceExhausted"],
    )
}

pub(crate) fn access_mode_of_many_nodes(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "many")?;
    let mut claim = Claim::new("data", &class("thin", "ext4", Binding::AtOnce), "64Mi");
    claim.access_mode = "ReadWriteMany";
    test.claim(&claim)?;
    let words = ["a volume of this driver is on one", "ReadWriteOnce"];
    test.event("PersistentVolumeClaim", "data", &words)?;
    pending_without_a_trace(&test)
}

fn refused(cluster: &Cluster, name: &str, parameters: &Value, words: &[&str]) -> Result<()> {
    let test = Test::new(cluster, name)?;
    let class = test.namespace.name().to_owned();
    let mut object = storage_class(&class, parameters);
    object["volumeBindingMode"] = json!("Immediate");
    cluster.apply(&object.to_string())?;
    test.claim(&Claim::new("data", &class, "64Mi"))?;
    let seen = test.event("PersistentVolumeClaim", "data", words);
    cluster.kubectl_text(&["delete", "storageclass", &class])?;
    seen?;
    pending_without_a_trace(&test)?;
    test.finish()
}

fn pending_without_a_trace(test: &Test<'_>) -> Result<()> {
    let claim = test.namespace.get_json(&["pvc", "data"])?;
    ensure!(claim["status"]["phase"] == "Pending", "{claim:#}");
    let lv = format!("pvc-{}", text(&claim["metadata"]["uid"])?);
    ensure!(!all_lvs(test.cluster)?.contains(&lv), "{lv} was left behind");
    Ok(())
}
