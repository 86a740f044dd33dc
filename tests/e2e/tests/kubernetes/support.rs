//! What every test does: claims that get bound, pods that run, data that is written and compared, and nothing left at the end. No test lives here.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cinderblock_lab::{Cluster, Namespace, Object};
use serde_json::{Value, json};

use crate::objects::{self, Claim, VG};

/// For what takes seconds on an idle machine: a volume, a pod, a snapshot.
pub(crate) const SOON: Duration = Duration::from_mins(4);

/// One test: its namespace, and what it asks of the cluster.
pub(crate) struct Test<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) namespace: Namespace<'a>,
    patience: Duration,
}

impl<'a> Test<'a> {
    pub(crate) fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        Ok(Self { cluster, namespace: cluster.namespace(name)?, patience: SOON })
    }

    /// Waits so long for things.
    pub(crate) fn patient(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        self.namespace.apply(&object.to_string())
    }

    pub(crate) fn claim(&self, claim: &Claim) -> Result<()> {
        self.apply(&claim.object())
    }

    /// Runs a pod until it is ready; what it is then.
    pub(crate) fn run(&self, pod: &Value) -> Result<Value> {
        self.apply(pod)?;
        let name = pod["metadata"]["name"].as_str().context("the pod has no name")?;
        self.namespace.wait_for_pod(name, self.patience)
    }

    /// Deletes an object and waits until it is gone.
    pub(crate) fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.namespace.kubectl_text(&["delete", kind, name, "--wait=false"])?;
        self.gone(kind, name)
    }

    pub(crate) fn gone(&self, kind: &str, name: &str) -> Result<()> {
        let object = self.namespace.object(kind, name);
        self.cluster.wait_for(&object, "gone", self.patience, Value::is_null).map(drop)
    }

    pub(crate) fn sh(&self, pod: &str, script: &str) -> Result<String> {
        self.namespace.exec(pod, &["sh", "-euc", script])
    }

    /// The size in bytes of the filesystem at a path in a pod, as a user sees it.
    pub(crate) fn fs_size(&self, pod: &str, path: &str) -> Result<u64> {
        let said = self.sh(pod, &format!("stat -f -c '%b %S' {path}"))?;
        let numbers = said.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        ensure!(numbers.len() == 2, "stat -f says {said}");
        Ok(numbers[0] * numbers[1])
    }

    /// Waits until a claim is bound; its volume.
    pub(crate) fn bound(&self, claim: &str) -> Result<Value> {
        let object = self.namespace.object("pvc", claim);
        let found = self.cluster.wait_for(&object, "bound", self.patience, |claim| {
            claim["status"]["phase"] == "Bound"
        })?;
        self.cluster.get_json(&["pv", text(&found["spec"]["volumeName"])?])
    }

    /// Waits until a snapshot can be restored from.
    pub(crate) fn snapshot(&self, name: &str, claim: &str) -> Result<()> {
        self.apply(&objects::snapshot(name, claim))?;
        let object = self.namespace.object("volumesnapshot", name);
        let ready = |it: &Value| it["status"]["readyToUse"] == true;
        self.cluster.wait_for(&object, "ready to use", self.patience, ready).map(drop)
    }

    /// Asks for another size of a claim.
    pub(crate) fn resize(&self, claim: &str, size: &str) -> Result<()> {
        let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        self.namespace.kubectl_text(&["patch", "pvc", claim, "-p", &patch.to_string()]).map(drop)
    }

    /// Waits until a claim has this size and nothing more is to be done.
    pub(crate) fn resized(&self, claim: &str, size: &str) -> Result<()> {
        let object = self.namespace.object("pvc", claim);
        let done = |it: &Value| {
            it["status"]["capacity"]["storage"] == size
                && it["status"]["allocatedResourceStatuses"].is_null()
                && !it["status"]["conditions"].to_string().contains("Resiz")
        };
        self.cluster.wait_for(&object, &format!("of {size}"), self.patience, done).map(drop)
    }

    /// Waits for an event about an object whose message has all of these words; the message.
    pub(crate) fn event(&self, kind: &str, name: &str, words: &[&str]) -> Result<String> {
        let fields =
            format!("--field-selector=involvedObject.kind={kind},involvedObject.name={name}");
        let mut seen = Vec::new();
        let found = self.cluster.eventually("an event", self.patience, || {
            let events = self.namespace.get_json(&["events", &fields])?;
            let all = events["items"].as_array().into_iter().flatten();
            seen = all.filter_map(|it| it["message"].as_str().map(str::to_owned)).collect();
            Ok(seen.iter().find(|it| words.iter().all(|word| it.contains(word))).cloned())
        });
        found.with_context(|| format!("no event about {name} says {words:?}, but: {seen:#?}"))
    }

    /// Deletes the namespace, and sees that every volume and snapshot of it is gone from LVM.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { cluster, namespace, patience } = self;
        let name = namespace.name().to_owned();
        let lvs = lvs_of_namespace(cluster, &name)?;
        namespace.delete()?;
        cluster.eventually("its volumes to be gone", patience, || {
            let volumes = list(cluster, "pv")?;
            let left = volumes.iter().filter(|it| it["spec"]["claimRef"]["namespace"] == *name);
            Ok((left.count() == 0).then_some(()))
        })?;
        cluster.eventually("its snapshots to be gone", patience, || {
            let contents = list(cluster, "volumesnapshotcontents")?;
            let of = |it: &&Value| it["spec"]["volumeSnapshotRef"]["namespace"] == *name;
            Ok((contents.iter().filter(of).count() == 0).then_some(()))
        })?;
        // By what Kubernetes knew of them, and by the claims that they were made for: of these, nobody may know.
        let of_claims = format!("cb.pvc={name}/");
        let mut left = Vec::new();
        // What was deleted may still be wiped.
        let gone = cluster.eventually("its LVs to be gone", patience, || {
            let all = tagged_lvs(cluster)?.into_iter().filter(|(lv, tags)| {
                lvs.contains(lv) || tags.iter().any(|tag| tag.starts_with(&of_claims))
            });
            left = all.map(|(lv, _)| lv).collect();
            Ok(left.is_empty().then_some(()))
        });
        gone.with_context(|| {
            format!("Kubernetes has forgotten these volumes, LVM has not: {left:?}")
        })?;
        Ok(())
    }
}

/// The LVs of the volumes and snapshots that Kubernetes knows in a namespace.
pub(crate) fn lvs_of_namespace(cluster: &Cluster, namespace: &str) -> Result<Vec<String>> {
    let mut handles = Vec::new();
    for volume in list(cluster, "pv")? {
        if volume["spec"]["claimRef"]["namespace"] == namespace {
            handles.push(text(&volume["spec"]["csi"]["volumeHandle"])?.to_owned());
        }
    }
    for content in list(cluster, "volumesnapshotcontents")? {
        if content["spec"]["volumeSnapshotRef"]["namespace"] == namespace
            && let Some(handle) = content["status"]["snapshotHandle"].as_str()
        {
            handles.push(handle.to_owned());
        }
    }
    handles.iter().map(|handle| lv_name(handle).map(str::to_owned)).collect()
}

/// The LV in a handle of a volume or snapshot.
pub(crate) fn lv_name(handle: &str) -> Result<&str> {
    let (_, lv) = handle.split_once('/').with_context(|| format!("{handle:?} is no handle"))?;
    Ok(lv)
}

/// The names of all LVs of the driver on all nodes, without pools.
pub(crate) fn all_lvs(cluster: &Cluster) -> Result<Vec<String>> {
    Ok(tagged_lvs(cluster)?.into_iter().map(|(name, _)| name).collect())
}

/// The same with their tags.
fn tagged_lvs(cluster: &Cluster) -> Result<Vec<(String, Vec<String>)>> {
    let mut found = Vec::new();
    for node in cluster.lab().nodes()? {
        let rows = node.exec(["lvs", "--noheadings", "-o", "lv_name,lv_tags", VG]).text()?;
        for row in rows.lines() {
            let (name, tags) = row.trim().split_once(' ').unwrap_or((row.trim(), ""));
            let tags: Vec<_> = tags.trim().split(',').collect();
            if tags.contains(&"cinderblock=1") && !tags.contains(&"cb.pool") {
                let tags = tags.iter().map(|tag| (*tag).to_owned());
                found.push((name.to_owned(), tags.collect()));
            }
        }
    }
    Ok(found)
}

/// All objects of a kind, in all namespaces.
pub(crate) fn list(cluster: &Cluster, kind: &str) -> Result<Vec<Value>> {
    let all = cluster.get_json(&[kind, "--all-namespaces"])?;
    Ok(all["items"].as_array().cloned().unwrap_or_default())
}

/// The names of the driver's pods of a component, and where they are.
pub(crate) fn pods(cluster: &Cluster, component: &str) -> Result<Vec<(String, String)>> {
    let label = format!("--selector=app.kubernetes.io/component={component}");
    let pods = cluster.get_json(&["pods", "--namespace", objects::SYSTEM, &label])?;
    let pods = pods["items"].as_array().context("no list of pods")?;
    let name = |pod: &Value| {
        let name = text(&pod["metadata"]["name"])?.to_owned();
        Ok((name, text(&pod["spec"]["nodeName"])?.to_owned()))
    };
    pods.iter().map(name).collect()
}

/// A text in an object.
pub(crate) fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} should be a text"))
}

/// The node that a volume is on, as its affinity says.
pub(crate) fn node_of(volume: &Value) -> Result<&str> {
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    let expression = &terms[0]["matchExpressions"][0];
    ensure!(expression["key"] == objects::TOPOLOGY, "the volume's affinity is {terms}");
    text(&expression["values"][0])
}

/// A shell script that writes what [`check`] then looks for into each of these claims.
pub(crate) fn write(claims: &[&Claim]) -> String {
    let script = |claim: &&Claim| {
        let name = &claim.name;
        if claim.block {
            format!(
                "dd if=/dev/urandom of=/tmp/{name} bs=1M count=8 2>/dev/null; \
                 dd if=/tmp/{name} of=/dev/{name} bs=1M conv=fsync 2>/dev/null; \
                 sha256sum </tmp/{name} | dd of=/dev/{name} bs=1M seek=8 conv=sync,fsync 2>/dev/null; "
            )
        } else {
            format!(
                "cd /mnt/{name}; mkdir -p data; for i in 1 2 3; do \
                 dd if=/dev/urandom of=data/$i bs=1M count=4 2>/dev/null; done; \
                 sha256sum data/* >sums; sync; "
            )
        }
    };
    claims.iter().map(script).collect()
}

/// A shell script that fails unless each of these claims has what [`write`] wrote.
pub(crate) fn check(claims: &[&Claim]) -> String {
    let script = |claim: &&Claim| {
        let name = &claim.name;
        if claim.block {
            format!(
                "sum=$(dd if=/dev/{name} bs=1M count=8 2>/dev/null | sha256sum); \
                 want=$(dd if=/dev/{name} bs=1M skip=8 count=1 2>/dev/null | head -c 64); \
                 [ \"${{sum%% *}}\" = \"$want\" ] || {{ echo {name} differs >&2; exit 1; }}; "
            )
        } else {
            format!("cd /mnt/{name}; sha256sum -c sums >&2; ")
        }
    };
    claims.iter().map(script).collect()
}

/// A quantity of bytes, as Kubernetes writes it.
pub(crate) fn quantity(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().with_context(|| format!("{text:?} is no quantity"))?;
    let factor = match &text[digits.len()..] {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        other => bail!("{other:?} in {text:?} is not known"),
    };
    Ok(number * factor)
}

/// Another namespace's object, or the cluster's.
pub(crate) fn object(kind: &str, name: &str) -> Object {
    Object::new(kind, name)
}
