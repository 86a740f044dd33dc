//! The demo on Kubernetes: what a user types, on a cluster of one node with one blank disk.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::images::BUSYBOX;
use cinderblock_lab::install::{self, BACKEND, SNAPSHOTS, THIN, VOLUME_GROUP};
use cinderblock_lab::{Cluster, Object, Options};
use serde_json::{Value, json};

use super::story::{Story, command, seen};

const NAME: &str = "demo";
const CLAIMS: [&str; 3] = ["data", "restored", "clone"];
/// For each thing that is waited for; the host may be loaded.
const PATIENCE: Duration = Duration::from_mins(4);

/// What the pod writes: files that add up to 64 MiB.
const WRITE: &str = "cd /data; for i in 1 2 3 4; do \
    dd if=/dev/urandom of=file$i bs=1M count=16 2>/dev/null; done; \
    sha256sum file* >sums; sync; cat sums";
const DAMAGE: &str = "cd /data; echo damaged >file1; rm file2; sync; sha256sum -c sums";

/// Runs it.
pub(super) fn run(keep: bool) -> Result<()> {
    let mut story = Story::new("Cinderblock on Kubernetes: a volume's life");
    let cluster = story.step("A Kubernetes of one node with one blank disk", up)?;
    let demo = Demo { cluster };
    let told = demo.tell(&mut story, keep);
    if keep && told.is_ok() {
        let lab = "cargo xtask lab --name demo";
        story.end(&format!(
            "It runs on. Look around:  {lab} kubectl get pvc,pv,volumesnapshots\n\
             {:26}{lab} exec node1 -- lvs -a -o +lv_tags\n\
             Throw it away:            {lab} down",
            ""
        ));
        return Ok(());
    }
    if told.is_ok() {
        story.end("Nothing is left: the cluster is thrown away.");
    }
    Cluster::down(NAME)?;
    told
}

fn up() -> Result<Cluster> {
    // What an earlier demo left.
    Cluster::down(NAME)?;
    let cluster = Cluster::up(Options::new(NAME).nodes(1))?;
    let demo = Demo { cluster };
    demo.on_node("lsblk -o NAME,SIZE,TYPE,FSTYPE /dev/disk/by-id/lab-disk1")?;
    Ok(demo.cluster)
}

struct Demo {
    cluster: Cluster,
}

impl Demo {
    fn tell(&self, story: &mut Story, keep: bool) -> Result<()> {
        story.step("Install the driver; the disk becomes a volume group", || self.install())?;
        story.step("A claim and a pod", || {
            self.claim("data", "1Gi", None)?;
            self.pod("app", &["data"])?;
            self.show(&["get", "pvc,pv"])?;
            self.on_node(&format!("lvs -o lv_name,lv_size,lv_tags {VOLUME_GROUP}"))
        })?;
        story.step("Write and take checksums", || self.in_pod("app", WRITE).map(drop))?;
        story.step("Take a snapshot while the pod runs", || self.snapshot())?;
        story.step("Damage the data", || {
            let said = self.in_pod("app", &format!("{DAMAGE} 2>&1 || true"))?;
            ensure!(said.contains("FAILED"), "the checksums should differ now");
            Ok(())
        })?;
        story.step("Restore the snapshot into a new claim and compare", || {
            self.claim("restored", "1Gi", Some(("VolumeSnapshot", "before")))?;
            self.pod("restored", &["restored"])?;
            self.compare("restored")
        })?;
        story.step("Clone the restored claim, twice as large", || {
            self.claim("clone", "2Gi", Some(("PersistentVolumeClaim", "restored")))?;
            self.pod("clone", &["clone"])?;
            self.compare("clone")?;
            self.in_pod("clone", "df -h /data").map(drop)
        })?;
        story.step("Expand the first claim while its pod runs", || self.expand())?;
        if keep {
            return Ok(());
        }
        story.step("Delete everything", || self.delete())?;
        story.step("The volume group is empty again", || self.expect_empty())
    }

    fn install(&self) -> Result<()> {
        let values = install::values();
        command("cat values.yaml");
        let backends = serde_json::to_string_pretty(&values["backends"])?;
        seen(&format!("backends: {backends}"));
        command(
            "helm upgrade --install cinderblock deploy/helm/cinderblock \
             --namespace cinderblock --values values.yaml",
        );
        install::install(&self.cluster, &values)?;
        self.show(&["get", "pods", "--namespace", install::NAMESPACE, "-o", "wide"])?;
        self.show(&["get", "storageclass"])?;
        self.on_node("pvs -o pv_name,vg_name,pv_size,pv_free")?;
        self.on_node(&format!("lvs -o lv_name,lv_size,data_percent {VOLUME_GROUP}"))
    }

    /// Makes a claim; of what, and what it is a copy of.
    fn claim(&self, name: &str, size: &str, source: Option<(&str, &str)>) -> Result<()> {
        let mut spec = json!({
            "storageClassName": THIN,
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": size } },
        });
        if let Some((kind, name)) = source {
            spec["dataSource"] = json!({ "kind": kind, "name": name });
            if kind == "VolumeSnapshot" {
                spec["dataSource"]["apiGroup"] = json!("snapshot.storage.k8s.io");
            }
        }
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": { "name": name },
            "spec": spec,
        }))
    }

    fn pod(&self, name: &str, claims: &[&str]) -> Result<()> {
        let claim = claims.first().context("a pod has one claim here")?;
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "main",
                    "image": BUSYBOX,
                    "command": ["sh", "-c", "trap exit TERM; sleep 36000 & wait"],
                    "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                }],
                "volumes": [{
                    "name": "data",
                    "persistentVolumeClaim": { "claimName": claim },
                }],
            },
        }))?;
        self.show(&["wait", "--for=condition=Ready", "--timeout=4m", &format!("pod/{name}")])
    }

    fn snapshot(&self) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": { "name": "before" },
            "spec": {
                "volumeSnapshotClassName": SNAPSHOTS,
                "source": { "persistentVolumeClaimName": "data" },
            },
        }))?;
        let ready = "--for=jsonpath={.status.readyToUse}=true";
        self.show(&["wait", ready, "--timeout=4m", "volumesnapshot/before"])
    }

    fn compare(&self, pod: &str) -> Result<()> {
        let said = self.in_pod(pod, "cd /data; sha256sum -c sums")?;
        ensure!(said.matches(": OK").count() == 4, "the data of {pod} is not what was written");
        Ok(())
    }

    fn expand(&self) -> Result<()> {
        let patch = r#"{"spec":{"resources":{"requests":{"storage":"3Gi"}}}}"#;
        self.show(&["patch", "pvc", "data", "--patch", patch])?;
        let size = "--for=jsonpath={.status.capacity.storage}=3Gi";
        self.show(&["wait", size, "--timeout=4m", "pvc/data"])?;
        self.in_pod("app", "df -h /data").map(drop)
    }

    fn delete(&self) -> Result<()> {
        self.show(&["delete", "pod", "app", "restored", "clone"])?;
        self.show(&["delete", "volumesnapshot", "before"])?;
        self.show(&[&["delete", "pvc"], CLAIMS.as_slice()].concat())?;
        self.cluster.wait_for(&Object::new("pv", ""), "gone", PATIENCE, |all| {
            all["items"].as_array().is_none_or(Vec::is_empty)
        })?;
        Ok(())
    }

    fn expect_empty(&self) -> Result<()> {
        self.show(&["get", "pv"])?;
        self.on_node(&format!("lvs -o lv_name,lv_size,data_percent {VOLUME_GROUP}"))?;
        let node = self.cluster.lab().node("node1")?;
        let left = node.exec(["lvs", "--noheadings", "-o", "lv_name", VOLUME_GROUP]).text()?;
        ensure!(left.trim() == "pool0", "volumes of {BACKEND} are left: {left}");
        Ok(())
    }

    fn apply(&self, object: &Value) -> Result<()> {
        command(&format!("kubectl apply -f - <<< '{object}'"));
        self.cluster.apply(&object.to_string())
    }

    /// Runs kubectl and shows both it and its answer.
    fn show(&self, words: &[&str]) -> Result<()> {
        let quoted: Vec<_> = words.iter().map(|word| quote(word)).collect();
        command(&format!("kubectl {}", quoted.join(" ")));
        let patience = PATIENCE.saturating_add(Duration::from_secs(30));
        let output = self.cluster.kubectl_within(words, patience)?;
        seen(&output.stdout_text());
        ensure!(output.status.success(), "kubectl: {}", output.stderr_text());
        Ok(())
    }

    fn in_pod(&self, pod: &str, script: &str) -> Result<String> {
        command(&format!("kubectl exec {pod} -- sh -c '{script}'"));
        let said = self.cluster.kubectl_text(&["exec", pod, "--", "sh", "-c", script])?;
        seen(&said);
        Ok(said)
    }

    /// Runs a command on the node, and shows both.
    fn on_node(&self, script: &str) -> Result<()> {
        command(&format!("# on node1: {script}"));
        seen(&self.cluster.lab().node("node1")?.exec(["sh", "-c", script]).text()?);
        Ok(())
    }
}

/// As a shell would need it.
fn quote(word: &str) -> String {
    if word.chars().any(|c| c.is_whitespace() || "{}[]\"'$".contains(c)) {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}
