//! Encrypted volumes as a user has them: a Secret, a class that names it, and claims as always.

use anyhow::{Result, ensure};
use cinderblock_lab::Cluster;
use serde_json::json;

use crate::objects::{BACKEND, Claim, SYSTEM, VG, on_node, pod, storage_class};
use crate::support::{Test, check, lv_name, node_of, text, write};

pub(crate) fn by_a_secret(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "encrypted")?;
    let name = test.namespace.name().to_owned();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "namespace": SYSTEM },
        "stringData": { "masterKey": "4gBpy3bX0bZ9uTnGfQ6a3uG0r9pQz1J0h2k5m8n1s4o=" },
    });
    cluster.apply(&secret.to_string())?;
    let parameters = json!({
        "backend": BACKEND,
        "provisioning": "thin",
        "encryption": "luks",
        "csi.storage.k8s.io/node-stage-secret-name": name,
        "csi.storage.k8s.io/node-stage-secret-namespace": SYSTEM,
    });
    cluster.apply(&storage_class(&name, &parameters).to_string())?;
    let claims = [Claim::new("data", &name, "64Mi"), Claim::new("device", &name, "64Mi").block()];
    let claims: Vec<_> = claims.iter().collect();
    for claim in &claims {
        test.claim(claim)?;
    }
    test.run(&pod("user", &claims))?;
    test.sh("user", &write(&claims))?;
    for claim in &claims {
        is_encrypted(&test, claim)?;
        test.resize(&claim.name, "128Mi")?;
    }
    for claim in &claims {
        test.resized(&claim.name, "128Mi")?;
    }
    ensure!(test.fs_size("user", "/mnt/data")? > 110 << 20, "the filesystem did not grow");
    let at_end = "dd if=/dev/device bs=1M skip=120 2>/dev/null | wc -c";
    ensure!(test.sh("user", at_end)?.trim() == (8 << 20).to_string(), "the device did not grow");

    // A new pod opens them again.
    test.delete("pod", "user")?;
    let node = node_of(&test.bound("data")?)?.to_owned();
    test.run(&on_node(pod("user", &claims), &node))?;
    test.sh("user", &check(&claims))?;

    test.snapshot("before", "data")?;
    test.sh("user", "cd /mnt/data; echo damaged >data/1; rm data/2; sync")?;
    let restored = Claim::new("restored", &name, "192Mi").of_snapshot("before");
    test.claim(&restored)?;
    test.run(&pod("reader", &[&restored]))?;
    test.sh("reader", &check(&[&restored]))?;
    is_encrypted(&test, &restored)?;
    test.finish()?;
    let open = cluster.lab().node(&node)?.exec(["sh", "-c", "ls /dev/mapper"]).text()?;
    ensure!(!open.contains("cb-crypt-"), "left open on {node}: {open}");
    cluster.kubectl_text(&["delete", "storageclass", &name])?;
    cluster.kubectl_text(&["delete", "secret", "--namespace", SYSTEM, &name]).map(drop)
}

/// Its LV has a LUKS header with one key.
fn is_encrypted(test: &Test<'_>, claim: &Claim) -> Result<()> {
    let volume = test.bound(&claim.name)?;
    let lv = lv_name(text(&volume["spec"]["csi"]["volumeHandle"])?)?.replace('-', "--");
    let device = format!("/dev/mapper/{}-{lv}", VG.replace('-', "--"));
    let node = test.cluster.lab().node(node_of(&volume)?)?;
    let dump = node.exec(["cryptsetup", "luksDump", &device]).text()?;
    let keys = dump.lines().filter(|line| line.ends_with(": luks2")).count();
    ensure!(keys == 1, "{device} has {keys} keys: {dump}");
    Ok(())
}
