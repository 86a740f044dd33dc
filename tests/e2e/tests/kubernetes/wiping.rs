//! Volumes that are wiped at deletion, as a user sees it: the claim is gone at once, the room comes back later.

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::json;

use crate::objects::{BACKEND, Claim, pod, storage_class};
use crate::support::{SOON, Test, all_lvs, lv_name, text, write};

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
    test.finish()?;
    cluster.eventually("what was deleted to be wiped", SOON, || {
        let trash = all_lvs(cluster)?.iter().any(|lv| lv.starts_with("cb-trash-"));
        Ok((!trash).then_some(()))
    })?;
    cluster.kubectl_text(&["delete", "storageclass", &name]).map(drop)
}
