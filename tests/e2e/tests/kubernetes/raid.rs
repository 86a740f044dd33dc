//! Volumes that are on two disks, as a user has them: made by a class, grown while in use.

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::json;

use crate::objects::{Claim, RAID, RAID_VG, pod, storage_class};
use crate::support::{Test, check, lv_name, node_of, text, write};

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
