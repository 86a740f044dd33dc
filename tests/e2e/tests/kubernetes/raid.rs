//! Volumes that are on two disks, as a user has them: made by a class, grown while in use.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::json;

use crate::objects::{Claim, RAID, RAID_VG, SYSTEM, pod, storage_class};
use crate::support::{SOON, Test, check, lv_name, node_of, pods, text, write};

pub(crate) fn a_mirror_on_two_disks(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "raid")?;
    let name = test.namespace.name().to_owned();
    let parameters = json!({ "backend": RAID, "layout": "raid1" });
    cluster.apply(&storage_class(&name, &parameters).to_string())?;
    let claims = [Claim::new("data", &name, "64Mi"), Claim::new("device", &name, "64Mi").block()];
    let claims: Vec<_> = claims.iter().collect();
    for claim in &claims {
        test.claim(claim)?;
    }
    test.run(&pod("user", &claims))?;
    test.sh("user", &write(&claims))?;
    for claim in &claims {
        test.resize(&claim.name, "128Mi")?;
    }
    for claim in &claims {
        test.resized(&claim.name, "128Mi")?;
    }
    test.sh("user", &check(&claims))?;
    let zeros = "dd if=/dev/device bs=1M skip=64 2>/dev/null | tr -d '\\0' | wc -c";
    ensure!(test.sh("user", zeros)?.trim() == "0", "the device shows what was there before");
    for claim in &claims {
        let volume = test.bound(&claim.name)?;
        let lv = lv_name(text(&volume["spec"]["csi"]["volumeHandle"])?)?.to_owned();
        let node = cluster.lab().node(node_of(&volume)?)?;
        let full = format!("{RAID_VG}/{lv}");
        let layout = node.exec(["lvs", "--noheadings", "-o", "segtype,stripes", &full]).text()?;
        let words: Vec<_> = layout.split_whitespace().collect();
        ensure!(words == ["raid1", "2"], "{full} is {layout}");
    }
    test.finish()?;
    cluster.kubectl_text(&["delete", "storageclass", &name]).map(drop)
}

/// The kernel loses a leg under a pod that writes: the claim says so, and says when it is well again.
pub(crate) fn a_leg_that_fails_is_told_of(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "leg")?;
    let name = test.namespace.name().to_owned();
    let parameters = json!({ "backend": RAID, "layout": "raid1" });
    cluster.apply(&storage_class(&name, &parameters).to_string())?;
    let claim = Claim::new("data", &name, "64Mi");
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    test.sh("user", &write(&[&claim]))?;
    let volume = test.bound("data")?;
    let lv = lv_name(text(&volume["spec"]["csi"]["volumeHandle"])?)?.to_owned();
    let node = cluster.lab().node(node_of(&volume)?)?;
    let full = format!("{RAID_VG}/{lv}");
    cluster.eventually("the legs to be in step", SOON, || {
        let said = node.exec(["lvs", "--noheadings", "-o", "sync_percent", &full]).text()?;
        Ok((said.trim() == "100.00").then_some(()))
    })?;
    // Its disk answers with errors from now on, for this leg alone.
    let leg = format!("{}-{}_rimage_1", RAID_VG.replace('-', "--"), lv.replace('-', "--"));
    node.exec(["dmsetup", "wipe_table", "--noudevsync", &leg]).text()?;
    test.sh("user", "echo more >/mnt/data/more; sync")?;
    test.event(
        "PersistentVolumeClaim",
        "data",
        &["1 of its 2 legs are lost", "cinderblock repair"],
    )?;
    test.sh("user", &check(&[&claim]))?;
    // It is back with its data: who knows that says so.
    let agents = pods(cluster, "node")?;
    let (agent, _) = agents.iter().find(|(_, on)| on == node.name()).context("no agent")?;
    let words = ["exec", "--namespace", SYSTEM, agent, "--", "cinderblock", "repair"];
    let said = cluster.kubectl_text(&words)?;
    ensure!(said.contains(&format!("{full}: has the legs again")), "{said}");
    test.event("PersistentVolumeClaim", "data", &["has all its legs again"])?;
    test.sh("user", &check(&[&claim]))?;
    let shown = test.namespace.kubectl_text(&["describe", "pvc", "data"])?;
    for reason in ["VolumeDegraded", "VolumeRepaired"] {
        ensure!(shown.contains(reason), "kubectl describe does not show {reason}: {shown}");
    }
    test.finish()?;
    cluster.kubectl_text(&["delete", "storageclass", &name]).map(drop)
}
