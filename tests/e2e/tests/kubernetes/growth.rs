//! A thin pool that a pod fills: it is larger before it is full, and nobody notices.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::json;

use crate::objects::{Claim, RAID, RAID_VG, SMALL_POOL, pod, storage_class};
use crate::support::{SOON, Test, node_of};

const MIB: u64 = 1 << 20;
/// What the pool is made with.
const POOL: u64 = 256 * MIB;

pub(crate) fn a_pool_grows_under_a_pod(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "growth")?;
    let name = test.namespace.name().to_owned();
    let parameters = json!({ "backend": RAID, "provisioning": "thin" });
    cluster.apply(&storage_class(&name, &parameters).to_string())?;
    let claim = Claim::new("data", &name, "400Mi");
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    let volume = test.bound("data")?;
    let node = cluster.lab().node(node_of(&volume)?)?;
    let size = || -> Result<u64> {
        let pool = format!("{RAID_VG}/{SMALL_POOL}");
        let words = ["lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size", &pool];
        let shown = node.exec(words).text()?;
        shown.trim().parse().with_context(|| format!("{pool} has {shown}"))
    };
    ensure!(size()? == POOL, "the pool has {} before it is written to", size()?);
    // Beyond its threshold, and then more than it has had.
    test.sh("user", "cd /mnt/data; dd if=/dev/urandom of=a bs=1M count=225 2>/dev/null; sync")?;
    let grown = cluster
        .eventually("a larger pool", SOON, || Ok(Some(size()?).filter(|size| *size > POOL)))?;
    ensure!(grown <= 400 * MIB, "the pool has {grown}, more than is promised");
    test.sh(
        "user",
        "cd /mnt/data; sha256sum a >sums; dd if=/dev/urandom of=b bs=1M count=50 2>/dev/null; \
         sync; sha256sum b >>sums; sha256sum -c sums >&2",
    )?;
    test.finish()?;
    cluster.kubectl_text(&["delete", "storageclass", &name]).map(drop)
}
