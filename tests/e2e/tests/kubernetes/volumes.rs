//! Every kind of volume in a pod: thin and thick, each filesystem and a device, bound with the pod or at once.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::json;

use crate::objects::{Binding, Claim, class, on_node, pod, storage_class};
use crate::support::{SOON, Test, check, node_of, write};

/// XFS takes no less than 300 MiB.
const SIZE: &str = "512Mi";

pub(crate) fn every_kind_where_the_pod_is(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "with-pod")?;
    let claims = claims(Binding::WithPod);
    for claim in &claims {
        test.claim(claim)?;
    }
    let claims: Vec<_> = claims.iter().collect();
    // All of them on the one node that the pod is to be on.
    test.run(&on_node(pod("first", &claims), "node2"))?;
    test.sh("first", &write(&claims))?;
    for claim in &claims {
        ensure!(node_of(&test.bound(&claim.name)?)? == "node2", "{} is elsewhere", claim.name);
    }
    // Another pod on some of the same volumes, while the first still runs.
    let some = [claims[0], claims[5], claims[7]];
    test.run(&pod("beside", &some))?;
    test.sh("beside", &check(&some))?;
    test.delete("pod", "first")?;
    test.sh("beside", &check(&some))?;
    test.run(&pod("second", &claims))?;
    test.sh("second", &check(&claims))?;
    test.finish()
}

pub(crate) fn every_kind_at_once(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "at-once")?;
    let claims = claims(Binding::AtOnce);
    for claim in &claims {
        test.claim(claim)?;
    }
    // Without a pod, and the pods follow.
    let mut by_node = BTreeMap::<String, Vec<&Claim>>::new();
    for claim in &claims {
        let volume = test.bound(&claim.name)?;
        by_node.entry(node_of(&volume)?.to_owned()).or_default().push(claim);
    }
    for (node, claims) in &by_node {
        let name = format!("pod-{node}");
        let found = test.run(&pod(&name, claims))?;
        ensure!(found["spec"]["nodeName"] == **node, "the volumes are on {node}, the pod is not");
        test.sh(&name, &write(claims))?;
        test.delete("pod", &name)?;
        test.run(&pod(&name, claims))?;
        test.sh(&name, &check(claims))?;
    }
    test.finish()
}

pub(crate) fn mount_options_and_read_only(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "options")?;
    let name = test.namespace.name().to_owned();
    let mut options =
        storage_class(&name, &json!({ "provisioning": "thin", "backend": "lvmdriver-1" }));
    options["mountOptions"] = json!(["noatime", "nodev"]);
    cluster.apply(&options.to_string())?;
    let claim = Claim::new("data", &name, "64Mi");
    test.claim(&claim)?;
    test.run(&pod("writer", &[&claim]))?;
    test.sh("writer", &write(&[&claim]))?;
    let mount = test.sh("writer", "grep /mnt/data /proc/mounts")?;
    ensure!(mount.contains("noatime") && mount.contains("nodev"), "mounted as {mount}");
    let mut reader = pod("reader", &[&claim]);
    reader["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(true);
    test.run(&reader)?;
    test.sh("reader", &check(&[&claim]))?;
    let refused = test.namespace.kubectl(&["exec", "reader", "--", "touch", "/mnt/data/x"])?;
    ensure!(refused.stderr_text().contains("Read-only file system"), "{refused:?}");
    test.sh("writer", "echo x >/mnt/data/x")?;
    let class = crate::support::object("storageclass", &name);
    cluster.kubectl_text(&["delete", "storageclass", &name])?;
    cluster.wait_for(&class, "gone", SOON, serde_json::Value::is_null)?;
    test.finish()
}

/// One claim of each kind.
fn claims(binding: Binding) -> Vec<Claim> {
    let mut claims = Vec::new();
    for provisioning in ["thin", "thick"] {
        for fs in ["ext4", "xfs", "btrfs"] {
            let name = format!("{provisioning}-{fs}");
            claims.push(Claim::new(&name, &class(provisioning, fs, binding), SIZE));
        }
        let name = format!("{provisioning}-block");
        claims.push(Claim::new(&name, &class(provisioning, "ext4", binding), "64Mi").block());
    }
    claims
}
