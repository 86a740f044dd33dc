//! The cluster of these tests, taken down at their end, and the pods that they use. No test lives here.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, ensure};
use cinderblock_lab::images::BUSYBOX;
use cinderblock_lab::{Cluster, Options};
use serde_json::json;

/// A cluster in a folder of its own below `target/tmp`; down when dropped. The logs stay.
pub(crate) struct TestCluster {
    pub(crate) cluster: Cluster,
    folder: PathBuf,
}

impl TestCluster {
    pub(crate) fn up(name: &str) -> Result<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab").join(name);
        // What a run left behind that was killed.
        Cluster::down_at(name, &folder)?;
        let guest = Path::new(env!("CARGO_BIN_EXE_lab-guest"));
        let cluster = Cluster::up(Options::new(name).dir(&folder).guest(guest))?;
        Ok(Self { cluster, folder })
    }

    pub(crate) fn down(self) -> Result<()> {
        let (lab, logs) = (self.cluster.lab().clone(), self.cluster.logs().clone());
        Cluster::down_at(lab.name(), &self.folder)?;
        ensure!(!lab.net().exists() && lab.net().processes().is_empty());
        ensure!(!self.folder.join("cluster").exists() && logs.join("kube-apiserver.log").exists());
        let error = Cluster::attach_at(lab.name(), &self.folder).unwrap_err().to_string();
        ensure!(error.contains("is not up"), "{error}");
        Ok(())
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if let Err(error) = Cluster::down_at(self.cluster.lab().name(), &self.folder) {
            println!("{error:#}");
        }
    }
}

/// Says how long a part took.
pub(crate) fn timed<T>(what: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let done = part();
    println!("test: {what}: {:.1} s", start.elapsed().as_secs_f32());
    done
}

/// A pod of busybox on this node.
pub(crate) fn pod(name: &str, node: &str, command: &[&str]) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "web" } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "main", "image": BUSYBOX, "command": command }],
        },
    })
    .to_string()
}
