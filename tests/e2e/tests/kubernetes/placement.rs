//! Which node a volume is on, and what Kubernetes knows of the room there.

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;

use crate::objects::{Binding, Claim, TOPOLOGY, VG, class, pod};
use crate::support::{SOON, Test, all_lvs, list, node_of, quantity, text};

/// More than node1's disk has, less than node2's.
const LARGE: &str = "30Gi";
/// More than either.
const TOO_LARGE: &str = "90Gi";

pub(crate) fn what_only_one_node_has_room_for(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "large")?;
    // The scheduler finds the node by its room: nobody says which.
    let claim = Claim::new("data", &class("thick", "ext4", Binding::WithPod), LARGE);
    test.claim(&claim)?;
    let found = test.run(&pod("user", &[&claim]))?;
    ensure!(found["spec"]["nodeName"] == "node2", "the pod is on {}", found["spec"]["nodeName"]);
    test.delete("pod", "user")?;
    test.delete("pvc", "data")?;
    // Without a pod the driver finds it.
    let name = class("thick", "ext4", Binding::AtOnce);
    let claim = Claim::new("at-once", &name, LARGE);
    test.claim(&claim)?;
    ensure!(node_of(&test.bound("at-once")?)? == "node2", "30 GiB should not fit on node1");
    test.finish()
}

pub(crate) fn too_large_for_all(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "too-large")?;
    let claim = Claim::new("with-pod", &class("thick", "ext4", Binding::WithPod), TOO_LARGE);
    test.claim(&claim)?;
    test.apply(&pod("user", &[&claim]))?;
    test.event("Pod", "user", &["did not have enough free storage"])?;
    let claim = Claim::new("at-once", &class("thick", "ext4", Binding::AtOnce), TOO_LARGE);
    test.claim(&claim)?;
    // With the room that each node has.
    test.event("PersistentVolumeClaim", "at-once", &["ResourceExhausted", "90 GiB"])?;
    for name in ["with-pod", "at-once"] {
        let claim = test.namespace.get_json(&["pvc", name])?;
        ensure!(claim["status"]["phase"] == "Pending", "{claim:#}");
        let lv = format!("pvc-{}", text(&claim["metadata"]["uid"])?);
        ensure!(!all_lvs(cluster)?.contains(&lv), "{lv} was left behind");
    }
    test.finish()
}

pub(crate) fn capacity_follows_reality(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "capacity")?;
    let name = class("thick", "ext4", Binding::WithPod);
    cluster.eventually("node1's room in the API", SOON, || capacity(cluster, &name, "node1"))?;
    // Kubernetes may not know yet what the tests before freed.
    let before = settled_room(cluster, &name)?;
    let claim = Claim::new("data", &name, LARGE);
    test.claim(&claim)?;
    test.run(&pod("user", &[&claim]))?;
    let less = settled_room(cluster, &name)?;
    ensure!(less + quantity(LARGE)? <= before, "{before} became {less} with {LARGE} in use");
    test.finish()?;
    let after = settled_room(cluster, &name)?;
    ensure!(after == before, "{before} became {after} when {LARGE} was deleted");
    // A change by hand is seen as well.
    let node = cluster.lab().node("node2")?;
    node.exec(["lvcreate", "-qq", "-y", "-Wn", "-L", "4g", "-n", "foreign", VG]).text()?;
    let seen = settled_room(cluster, &name);
    node.exec(["lvremove", "-qq", "-y", &format!("{VG}/foreign")]).text()?;
    let seen = seen?;
    ensure!(seen + (4 << 30) == before, "{before} became {seen} with 4 GiB by hand");
    Ok(())
}

/// Waits until Kubernetes knows the room that LVM has on node2; bytes.
fn settled_room(cluster: &Cluster, class: &str) -> Result<u64> {
    // Two extents: room for a volume is whole ones, and so is the reserve.
    let slack = quantity("8Mi")?;
    let mut last = None;
    let settled = cluster.eventually("Kubernetes to know the room that LVM has", SOON, || {
        // Both anew each time: either may still change.
        let (room, known) = (room_in_lvm(cluster)?, capacity(cluster, class, "node2")?);
        last = Some((room, known));
        Ok(known.filter(|known| known.abs_diff(room) < slack))
    });
    settled.with_context(|| format!("node2's room in LVM and as Kubernetes knows it: {last:?}"))
}

/// Room in node2's VG beyond the reserve, which is 5% when nothing else is said; bytes.
fn room_in_lvm(cluster: &Cluster) -> Result<u64> {
    let vgs = ["vgs", "--noheadings", "--nosuffix", "--units", "b", "-o", "vg_size,vg_free", VG];
    let said = cluster.lab().node("node2")?.exec(vgs).text()?;
    let numbers = said.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    ensure!(numbers.len() == 2, "vgs says {said}");
    Ok(numbers[1].saturating_sub(numbers[0] / 20))
}

/// What `CSIStorageCapacity` says of a class on a node; bytes.
fn capacity(cluster: &Cluster, class: &str, node: &str) -> Result<Option<u64>> {
    for object in list(cluster, "csistoragecapacities")? {
        let on = &object["nodeTopology"]["matchLabels"][TOPOLOGY];
        if object["storageClassName"] == class && on == node {
            return Ok(Some(quantity(text(&object["capacity"])?)?));
        }
    }
    Ok(None)
}
