//! Volumes that are wiped at deletion, as a user sees it: the claim is gone at once, the room comes back later.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::json;

use crate::objects::{BACKEND, Claim, SYSTEM, VG, pod, storage_class};
use crate::support::{SOON, Test, all_lvs, lv_name, node_of, pods, text, write};

pub(crate) fn a_deleted_claim_is_wiped(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "wipe")?;
    let name = test.namespace.name().to_owned();
    let parameters = json!({ "backend": BACKEND, "wipe": "zero" });
    cluster.apply(&storage_class(&name, &parameters).to_string())?;
    let claim = Claim::new("data", &name, "64Mi");
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    test.sh("user", &write(&[&claim]))?;
    let volume = test.bound("data")?;
    let lv = lv_name(text(&volume["spec"]["csi"]["volumeHandle"])?)?.to_owned();
    let holds = all_lvs(cluster)?;
    ensure!(holds.contains(&lv), "{lv} is not among {holds:?}");
    let on = node_of(&volume)?.to_owned();
    let full = format!("{VG}/{lv}");
    let node = cluster.lab().node(&on)?;
    let uuid = node.exec(["lvs", "--noheadings", "-o", "lv_uuid", &full]).text()?;
    // Under this name it is wiped.
    let trash = format!("cb-trash-{}", uuid.trim().replace('-', "").replace(['!', '#'], "."));
    test.finish()?;
    cluster.eventually("what was deleted to be wiped", SOON, || {
        Ok((!all_lvs(cluster)?.contains(&trash)).then_some(()))
    })?;
    // Gone alone would prove nothing: a volume that was merely removed is gone as well.
    let (agent, _) = pods(cluster, "node")?
        .into_iter()
        .find(|(_, node)| *node == on)
        .with_context(|| format!("no agent on {on}"))?;
    let wiped = |line: &str| line.contains("wiped a deleted volume") && line.contains(&trash);
    cluster.eventually(&format!("{agent} to say that {trash} was wiped"), SOON, || {
        let log = cluster.kubectl_text(&["logs", "--namespace", SYSTEM, &agent])?;
        Ok(log.lines().any(wiped).then_some(()))
    })?;
    cluster.kubectl_text(&["delete", "storageclass", &name]).map(drop)
}
