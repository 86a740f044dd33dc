//! Claims on a Kubernetes of one node: how long until they are bound, and what that costs in LVM processes, API writes and memory.

use std::time::Duration;

use anyhow::{Context, Result};
use cinderblock_lab::driver::{LvmCount, Profile};
use cinderblock_lab::driver_image::{self, Recipe};
use cinderblock_lab::install::{self, BACKEND, NAMESPACE};
use cinderblock_lab::{Cluster, Node, Object, Options};
use serde_json::{Map, Value, json};

use super::pods;
use super::samples::{Samples, milliseconds};
use super::spent::{self, Spent};
use super::watch::Watch;

const NAME: &str = "bench";
const CLASS: &str = "bench";
/// Claims one by one, and claims at once.
const ONE_BY_ONE: usize = 10;
const AT_ONCE: usize = 100;
/// As many of the claims get a pod.
const PODS: usize = 5;
/// For all that is waited for at once.
const PATIENCE: Duration = Duration::from_mins(5);

/// Measures, and adds `pvc_to_bound_ms`, `memory_rss_mib` and what belongs to them.
pub(super) fn measure(figures: &mut Map<String, Value>) -> Result<()> {
    Cluster::down(NAME)?;
    let cluster = Cluster::up(Options::new(NAME).nodes(1))?;
    let measured = on(&cluster, figures);
    Cluster::down(NAME)?;
    measured
}

fn on(cluster: &Cluster, figures: &mut Map<String, Value>) -> Result<()> {
    let image = driver_image::build(&Recipe::new(Profile::Release))?;
    cluster.load_image(&image.archive)?;
    let mut values = install::values();
    // As it is delivered.
    install::merge(&mut values, &json!({ "log": { "level": "info" } }));
    values["backends"][0]["thinPool"]["overprovision"] = json!("50.0");
    install::install_image(cluster, &image, &values)?;
    cluster.apply(&class().to_string())?;
    let node = cluster.lab().node("node1")?;
    let count = LvmCount::start(&node)?;
    let before = writes(cluster)?;
    let spent = Spent::read(cluster)?;

    println!("bench: {ONE_BY_ONE} claims, one by one");
    let mut watch = Watch::start(cluster, "pvc")?;
    let mut single = Samples::default();
    let (done, one_by_one_lvm) = count.lvm_during(|| -> Result<()> {
        for number in 0..ONE_BY_ONE {
            let name = format!("single-{number}");
            cluster.apply(&claim(&name).to_string())?;
            single.add(watch.until("Bound", &[name])?.0);
        }
        Ok(())
    })?;
    done?;
    let of_a_claim = Spent::read(cluster)?.since(&spent, ONE_BY_ONE);
    println!("bench: {AT_ONCE} claims at once");
    let names: Vec<_> = (0..AT_ONCE).map(|number| format!("many-{number}")).collect();
    let all: Vec<_> = names.iter().map(|name| claim(name).to_string()).collect();
    let (done, at_once_lvm) = count.lvm_during(|| -> Result<(Duration, Samples)> {
        cluster.apply(&all.join("\n---\n"))?;
        watch.until("Bound", &names)
    })?;
    let (last, each) = done?;
    let claims = ONE_BY_ONE + AT_ONCE;
    let bound = json!({
        "one_by_one": single.told(),
        "of_it_by_us": of_a_claim,
        "at_once": { "each": each.told(), "all_of_them": milliseconds(last) },
    });
    figures.insert("pvc_to_bound_ms".to_owned(), bound);
    let lvm = ratio(one_by_one_lvm + at_once_lvm, claims);
    figures.insert("lvm_processes_per_claim".to_owned(), lvm);
    let memory = json!({
        "agent": memory(&node, "node")?,
        "watchdog": memory(&node, "watchdog")?,
        "controller": memory(&node, "controller")?,
    });
    figures.insert("memory_rss_mib".to_owned(), memory);
    figures.insert("pod_to_running_ms".to_owned(), pods::measure(cluster, &names[..PODS])?);
    delete(cluster)?;
    let after = writes(cluster)?;
    figures.insert("api_writes_per_volume".to_owned(), ratio(after.saturating_sub(before), claims));
    figures.insert("containers".to_owned(), containers(cluster)?);
    Ok(())
}

fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": CLASS },
        "provisioner": install::DRIVER,
        "parameters": { "backend": BACKEND, "provisioning": "thin" },
        "volumeBindingMode": "Immediate",
    })
}

fn claim(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": name },
        "spec": {
            "storageClassName": CLASS,
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } },
        },
    })
}

/// Deletes all claims, and waits until the volumes are gone.
fn delete(cluster: &Cluster) -> Result<()> {
    println!("bench: deleting them");
    cluster.kubectl_text(&["delete", "pvc", "--all", "--wait=false"])?;
    let none = |all: &Value| all["items"].as_array().is_none_or(Vec::is_empty);
    cluster.wait_for(&Object::new("pv", ""), "gone", PATIENCE, none).map(drop)
}

/// Requests of the driver to the API server that change something, by its own count.
fn writes(cluster: &Cluster) -> Result<usize> {
    let mut count = 0_usize;
    for text in spent::metrics(cluster, "controller")? {
        for line in
            text.lines().filter(|it| it.starts_with("cinderblock_kubernetes_requests_total"))
        {
            // A review of a token changes nothing, though it is made with `create`.
            let changes = ["create", "update", "patch", "delete"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")));
            if changes && !line.contains("resource=\"tokenreviews\"") {
                let number = line.rsplit(' ').next().and_then(|it| it.parse().ok());
                count = count.saturating_add(number.unwrap_or(0));
            }
        }
    }
    Ok(count)
}

/// Resident memory in MiB of the largest process of the driver in this mode.
fn memory(node: &Node, mode: &str) -> Result<Value> {
    let script = "for it in /proc/[0-9]*; do \
        words=$(tr '\\0' ' ' <$it/cmdline 2>/dev/null) || continue; \
        case $words in *cinderblock\\ $1\\ *) awk '/^VmRSS/ { print $2 }' $it/status;; esac; done";
    let said = node.exec(["sh", "-c", script, "sh", mode]).text()?;
    let kib = said.lines().filter_map(|line| line.trim().parse::<u32>().ok()).max();
    let kib = kib.with_context(|| format!("no process of cinderblock {mode} runs: {said:?}"))?;
    Ok(json!((f64::from(kib) / 102.4).round() / 10.0))
}

/// Containers of the driver's pods: on each node, and of each controller.
fn containers(cluster: &Cluster) -> Result<Value> {
    let count = |kind: &str, name: &str| -> Result<usize> {
        let object = cluster.get_json(&["--namespace", NAMESPACE, kind, name])?;
        let pod = &object["spec"]["template"]["spec"];
        let all = pod["containers"].as_array().map(Vec::len);
        // Those that start first, and stay.
        let more = pod["initContainers"].as_array().map_or(0, Vec::len);
        all.map(|count| count + more).with_context(|| format!("{name} has no containers"))
    };
    Ok(json!({
        "node": count("daemonset", "cinderblock-node")?,
        "controller": count("deployment", "cinderblock-controller")?,
    }))
}

/// With two digits after the point.
fn ratio(of: usize, by: usize) -> Value {
    let number = |count| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    json!((number(of) / number(by) * 100.0).round() / 100.0)
}
