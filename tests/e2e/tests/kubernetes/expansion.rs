//! Larger volumes: while pods use them, and what happens when there is no room.

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::Value;

use crate::objects::{Binding, Claim, class, pod};
use crate::support::{SOON, Test, check, write};

pub(crate) fn while_in_use(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "expand")?;
    let claims = [
        Claim::new("ext4", &class("thin", "ext4", Binding::WithPod), "512Mi"),
        Claim::new("xfs", &class("thick", "xfs", Binding::WithPod), "512Mi"),
        Claim::new("btrfs", &class("thin", "btrfs", Binding::WithPod), "512Mi"),
        Claim::new("thin", &class("thin", "ext4", Binding::WithPod), "64Mi").block(),
        Claim::new("thick", &class("thick", "ext4", Binding::WithPod), "64Mi").block(),
    ];
    let claims: Vec<_> = claims.iter().collect();
    for claim in &claims {
        test.claim(claim)?;
    }
    test.run(&pod("user", &claims))?;
    test.sh("user", &write(&claims))?;
    for claim in &claims {
        test.resize(&claim.name, if claim.block { "128Mi" } else { "1Gi" })?;
    }
    for claim in &claims {
        test.resized(&claim.name, if claim.block { "128Mi" } else { "1Gi" })?;
    }
    // The pod that ran all the time sees the new sizes and the old data.
    test.sh("user", &check(&claims))?;
    for fs in ["ext4", "xfs", "btrfs"] {
        let size = test.fs_size("user", &format!("/mnt/{fs}"))?;
        ensure!(size > 900 << 20, "{fs}: {size}");
    }
    for device in ["thin", "thick"] {
        let at_end = format!("dd if=/dev/{device} bs=1M skip=120 2>/dev/null | wc -c");
        ensure!(test.sh("user", &at_end)?.trim() == (8 << 20).to_string(), "{device} is smaller");
        let zeros = format!("dd if=/dev/{device} bs=1M skip=64 2>/dev/null | tr -d '\\0' | wc -c");
        ensure!(test.sh("user", &zeros)?.trim() == "0", "{device} shows what was there before");
    }
    test.finish()
}

pub(crate) fn too_large_and_lowered_again(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "too-large")?;
    let claim = Claim::new("data", &class("thick", "ext4", Binding::WithPod), "64Mi");
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    test.sh("user", &write(&[&claim]))?;
    test.resize("data", "500Gi")?;
    let object = test.namespace.object("pvc", "data");
    let told = cluster.wait_for(&object, "told that there is no room", SOON, |claim| {
        claim["status"]["allocatedResourceStatuses"]["storage"] == "ControllerResizeInfeasible"
            && message(claim).contains("do not fit into volume group")
    })?;
    ensure!(told["status"]["capacity"]["storage"] == "64Mi", "{told:#}");
    test.sh("user", &check(&[&claim]))?;
    // Lower than what was asked for, higher than what there is.
    test.resize("data", "128Mi")?;
    test.resized("data", "128Mi")?;
    test.sh("user", &check(&[&claim]))?;
    test.finish()
}

/// What the conditions of a claim say.
fn message(claim: &Value) -> String {
    let conditions = claim["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter_map(|it| it["message"].as_str()).collect()
}
