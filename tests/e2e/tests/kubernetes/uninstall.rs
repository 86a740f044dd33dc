//! The driver is removed and installed again: volumes, snapshots and their data are found again, from LVM alone.

use anyhow::{Result, ensure};
use cinderblock_lab::{Cluster, install};

use crate::objects::{self, Binding, Claim, class, on_node, pod};
use crate::support::{Test, all_lvs, check, lvs_of_namespace, write};

pub(crate) fn data_stays(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "uninstall")?;
    let thin = Claim::new("thin", &class("thin", "ext4", Binding::WithPod), "64Mi");
    let thick = Claim::new("thick", &class("thick", "xfs", Binding::WithPod), "512Mi");
    let claims = [&thin, &thick];
    for claim in claims {
        test.claim(claim)?;
    }
    test.run(&on_node(pod("user", &claims), "node1"))?;
    test.sh("user", &write(&claims))?;
    test.snapshot("before", "thin")?;
    let ours = lvs_of_namespace(cluster, test.namespace.name())?;
    ensure!(ours.len() == 3, "two volumes and a snapshot, but {ours:?}");
    install::uninstall(cluster)?;
    // Mounted volumes stay mounted, and LVM has what it had.
    test.sh("user", &check(&claims))?;
    let there = all_lvs(cluster)?;
    ensure!(ours.iter().all(|lv| there.contains(lv)), "before {ours:?}, after {there:?}");
    objects::install(cluster)?;
    test.delete("pod", "user")?;
    let restored = Claim::new("restored", &class("thin", "ext4", Binding::WithPod), "64Mi");
    let restored = restored.of_snapshot("before");
    test.claim(&restored)?;
    let claims = [&thin, &thick, &restored];
    test.run(&pod("user", &claims))?;
    test.sh("user", &check(&claims))?;
    test.finish()
}
