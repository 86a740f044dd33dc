//! Snapshots, restores and clones, and their deletion in any order.

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;

use crate::objects::{Binding, Claim, class, pod};
use crate::support::{Test, check, node_of, write};

pub(crate) fn of_a_mounted_volume(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "snapshot")?;
    let class = |fs: &str| class("thin", fs, Binding::WithPod);
    let sources = ["ext4", "xfs", "btrfs"].map(|fs| Claim::new(fs, &class(fs), "512Mi"));
    let sources: Vec<_> = sources.iter().collect();
    for claim in &sources {
        test.claim(claim)?;
    }
    test.run(&pod("user", &sources))?;
    test.sh("user", &write(&sources))?;
    let mut copies = Vec::new();
    for claim in &sources {
        let fs = &claim.name;
        test.snapshot(fs, fs)?;
        test.sh("user", &format!("cd /mnt/{fs}; echo damaged >data/1; rm data/2; sync"))?;
        // One of the same size, one larger, and a clone of the first of them.
        let restored = Claim::new(&format!("{fs}-restored"), &class(fs), "512Mi").of_snapshot(fs);
        let larger = Claim::new(&format!("{fs}-larger"), &class(fs), "1Gi").of_snapshot(fs);
        let clone =
            Claim::new(&format!("{fs}-clone"), &class(fs), "512Mi").of_claim(&restored.name);
        copies.extend([restored, larger, clone]);
    }
    let copies: Vec<_> = copies.iter().collect();
    for claim in &copies {
        test.claim(claim)?;
    }
    // On the node of the sources, although the class would take any.
    test.run(&pod("reader", &copies))?;
    test.sh("reader", &check(&copies))?;
    let node = node_of(&test.bound("ext4")?)?.to_owned();
    for fs in ["ext4", "xfs", "btrfs"] {
        let larger = format!("{fs}-larger");
        ensure!(node_of(&test.bound(&larger)?)? == node, "the copy is elsewhere");
        let size = test.fs_size("reader", &format!("/mnt/{larger}"))?;
        ensure!(size > 900 << 20, "the filesystem of {larger} did not grow: {size}");
        // A copy is independent of its source.
        test.sh("reader", &format!("cd /mnt/{fs}-restored; echo other >data/3; sync"))?;
    }
    let others: Vec<_> = copies.into_iter().filter(|it| !it.name.ends_with("-restored")).collect();
    test.sh("reader", &check(&others))?;
    test.finish()
}

pub(crate) fn of_a_block_volume(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "snapshot-block")?;
    let class = class("thin", "ext4", Binding::AtOnce);
    let claim = Claim::new("data", &class, "64Mi").block();
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    test.sh("user", &write(&[&claim]))?;
    test.snapshot("before", "data")?;
    test.sh("user", "dd if=/dev/zero of=/dev/data bs=1M count=20 conv=fsync 2>/dev/null")?;
    let restored = Claim::new("restored", &class, "128Mi").block().of_snapshot("before");
    test.claim(&restored)?;
    test.run(&pod("reader", &[&restored]))?;
    // `check` looks under the claim's own name.
    test.sh("reader", &check(&[&restored]))?;
    test.finish()
}

pub(crate) fn any_order_of_deletion(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "order")?;
    let class = class("thin", "ext4", Binding::AtOnce);
    let claim = Claim::new("source", &class, "64Mi");
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    test.sh("user", &write(&[&claim]))?;
    test.snapshot("before", "source")?;
    let clone = Claim::new("clone", &class, "64Mi").of_claim("source");
    test.claim(&clone)?;
    test.bound("clone")?;
    test.delete("pod", "user")?;
    // The source first, and its volume is gone, though its snapshot and its clone live on.
    let volume = test.bound("source")?;
    test.delete("pvc", "source")?;
    let name = crate::support::text(&volume["metadata"]["name"])?;
    let object = crate::support::object("pv", name);
    cluster.wait_for(&object, "gone", crate::support::SOON, serde_json::Value::is_null)?;
    let restored = Claim::new("restored", &class, "64Mi").of_snapshot("before");
    test.claim(&restored)?;
    test.bound("restored")?;
    // Then the snapshot, while its copy is there.
    test.delete("volumesnapshot", "before")?;
    test.run(&pod("reader", &[&restored, &clone]))?;
    test.sh("reader", &check(&[&restored, &clone]))?;
    test.finish()
}

/// Copied instead of shared: complete when the claim is bound, and independent of what goes first.
pub(crate) fn of_thick_volumes(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "thick-snapshot")?;
    let class = class("thick", "ext4", Binding::WithPod);
    let sources = [Claim::new("data", &class, "64Mi"), Claim::new("raw", &class, "64Mi").block()];
    let sources: Vec<_> = sources.iter().collect();
    for claim in &sources {
        test.claim(claim)?;
    }
    test.run(&pod("user", &sources))?;
    test.sh("user", &write(&sources))?;
    test.snapshot("data", "data")?;
    test.snapshot("raw", "raw")?;
    test.sh("user", "cd /mnt/data; echo damaged >data/1; rm data/2; sync")?;
    test.sh("user", "dd if=/dev/zero of=/dev/raw bs=1M count=20 conv=fsync 2>/dev/null")?;
    let copies = [
        Claim::new("data-restored", &class, "128Mi").of_snapshot("data"),
        Claim::new("raw-restored", &class, "64Mi").block().of_snapshot("raw"),
    ];
    let copies: Vec<_> = copies.iter().collect();
    for claim in &copies {
        test.claim(claim)?;
    }
    test.run(&pod("reader", &copies))?;
    test.sh("reader", &check(&copies))?;
    let clone = Claim::new("data-clone", &class, "128Mi").of_claim("data-restored");
    test.claim(&clone)?;
    test.run(&pod("clones", &[&clone]))?;
    test.sh("clones", &check(&[&clone]))?;
    // The source goes, though its snapshot cannot be read without its blocks.
    test.delete("pod", "user")?;
    let volume = test.bound("data")?;
    test.delete("pvc", "data")?;
    let name = crate::support::text(&volume["metadata"]["name"])?;
    let object = crate::support::object("pv", name);
    cluster.wait_for(&object, "gone", crate::support::SOON, serde_json::Value::is_null)?;
    let again = Claim::new("data-again", &class, "64Mi").of_snapshot("data");
    test.claim(&again)?;
    test.run(&pod("last", &[&again]))?;
    test.sh("last", &check(&[&again]))?;
    test.finish()
}
