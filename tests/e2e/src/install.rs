//! The driver in a cluster: its image loaded, its chart installed with Helm, and waited for until it takes volumes. What is done with the volumes is elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Object};
use crate::driver::{self, Other, Profile};
use crate::driver_image::{self, Recipe};
use crate::exec::Output;
use crate::run_within;

/// The namespace that the driver is installed in.
pub const NAMESPACE: &str = "cinderblock";
/// The name of the Helm release; all objects' names begin with it.
pub const RELEASE: &str = "cinderblock";
/// The name of the driver.
pub const DRIVER: &str = "lvm.cinderblock.dev";

/// The backend of [`values`].
pub const BACKEND: &str = "lvmdriver-1";
/// Its VG.
pub const VOLUME_GROUP: &str = "stack-volumes-lvmdriver-1";
/// The class of thin volumes of [`values`], which is the cluster's default.
pub const THIN: &str = "lvmdriver-1-thin";
/// The class of thick volumes of [`values`].
pub const THICK: &str = "lvmdriver-1-thick";
/// The class of snapshots of [`values`].
pub const SNAPSHOTS: &str = "lvmdriver-1";

/// Helm only talks to the API server.
const HELM_TIMEOUT: Duration = Duration::from_mins(2);
/// From image to volume group, on a loaded host.
const READY_TIMEOUT: Duration = Duration::from_mins(5);
/// A node's pod ends when LVM is done.
const GONE_TIMEOUT: Duration = Duration::from_mins(4);

/// The chart in the workspace.
#[must_use]
pub fn chart() -> PathBuf {
    crate::cargo::workspace().join("deploy/helm/cinderblock")
}

/// Values for nodes with one blank data disk each: one backend on it with a thin pool and room for
/// thick volumes, a `StorageClass` for either, a class for snapshots.
#[must_use]
pub fn values() -> Value {
    json!({
        "backends": [{
            "name": BACKEND,
            "volumeGroup": VOLUME_GROUP,
            "create": true,
            "devices": [driver::disk(1)],
            "thinPool": { "name": "pool0", "size": "60%", "overprovision": "2.0" },
            "reserve": "5%",
        }],
        "storageClasses": [
            {
                "name": THIN,
                "default": true,
                "parameters": { "backend": BACKEND, "provisioning": "thin" },
            },
            { "name": THICK, "parameters": { "backend": BACKEND, "provisioning": "thick" } },
        ],
        "volumeSnapshotClasses": [{ "name": SNAPSHOTS, "default": true }],
        "log": { "level": "info,cinderblock=debug" },
        // Tests look at it.
        "sidecars": { "provisioner": { "capacityPollInterval": "15s" } },
    })
}

/// Builds the driver's image for tests, and loads it into all nodes that run.
///
/// # Errors
/// As [`driver_image::build`] and [`Cluster::load_image`].
pub fn load(cluster: &Cluster) -> Result<driver_image::Image> {
    let image = driver_image::build(&Recipe::new(Profile::Dev))?;
    cluster.load_image(&image.archive)?;
    Ok(image)
}

/// Builds and loads the image, installs the chart with these values or upgrades to them, and waits
/// as [`wait_until_ready`] does.
///
/// # Errors
/// The image cannot be made, the chart or the API server refuses the values, or the driver does not
/// become ready; the message has its pods and events.
pub fn install(cluster: &Cluster, values: &Value) -> Result<()> {
    let image = load(cluster)?;
    install_image(cluster, &image, values)
}

/// As [`install`], with an image that the nodes have.
///
/// # Errors
/// As [`install`].
pub fn install_image(cluster: &Cluster, image: &driver_image::Image, values: &Value) -> Result<()> {
    install_chart(cluster, &chart(), image, values)
}

/// As [`install`], of another version, with its chart.
///
/// # Errors
/// As [`install`].
pub fn install_other(cluster: &Cluster, other: &Other, values: &Value) -> Result<()> {
    let image = driver_image::build_other(other)?;
    cluster.load_image(&image.archive)?;
    install_chart(cluster, &other.chart(), &image, values)
}

fn install_chart(
    cluster: &Cluster,
    chart: &Path,
    image: &driver_image::Image,
    values: &Value,
) -> Result<()> {
    let start = Instant::now();
    cluster.apply(&namespace().to_string())?;
    let mut values = values.clone();
    // A build of the same version is another image under the same name: pods are to see it.
    let digest = json!({ "cinderblock.dev/image": image.digest });
    merge(&mut values, &json!({ "image": { "pullPolicy": "Never" } }));
    for part in ["controller", "node"] {
        merge(&mut values, &json!({ part: { "podAnnotations": digest } }));
    }
    let chart = chart.display().to_string();
    helm(
        cluster,
        &["upgrade", "--install", RELEASE, &chart, "--namespace", NAMESPACE, "--values", "-"],
        values.to_string().as_bytes(),
    )?;
    wait_until_ready(cluster)?;
    cluster.say(&format!("the driver is ready after {:.1} s", start.elapsed().as_secs_f32()));
    Ok(())
}

/// Waits until all controllers and all nodes' pods are ready in their newest version, every kubelet
/// knows the driver, and every controller is connected with every node.
///
/// # Errors
/// The time is over; the message has the driver's pods and events.
pub fn wait_until_ready(cluster: &Cluster) -> Result<()> {
    cluster.wait_for_deployment(NAMESPACE, &format!("{RELEASE}-controller"), READY_TIMEOUT)?;
    let name = format!("{RELEASE}-node");
    let nodes = Object::new("daemonset", &name).in_namespace(NAMESPACE);
    let daemon_set = cluster.wait_for(&nodes, "ready", READY_TIMEOUT, is_ready)?;
    let count = daemon_set["status"]["desiredNumberScheduled"].as_u64().unwrap_or(0);
    cluster.eventually("every kubelet to know the driver", READY_TIMEOUT, || {
        Ok((registered(&cluster.get_json(&["csinodes"])?) == count).then_some(()))
    })?;
    let waited = cluster.eventually("every controller to know every node", READY_TIMEOUT, || {
        for controller in controllers(cluster)? {
            if connected(cluster, &controller)? != Some(count) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    waited.with_context(|| cluster.explain(&nodes))
}

/// Uninstalls the chart and waits until its pods are gone. Volumes stay on the disks.
///
/// # Errors
/// It is not installed, or a pod stays.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    helm(cluster, &["uninstall", RELEASE, "--namespace", NAMESPACE], b"")?;
    let label = format!("app.kubernetes.io/instance={RELEASE}");
    cluster.eventually("the driver's pods to be gone", GONE_TIMEOUT, || {
        let pods = cluster.get_json(&["pods", "--namespace", NAMESPACE, "-l", &label])?;
        Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
}

/// Runs Helm on a cluster.
///
/// # Errors
/// It fails; the message has what it wrote.
pub fn helm(cluster: &Cluster, arguments: &[&str], stdin: &[u8]) -> Result<String> {
    let mut command = cluster.command("helm");
    command.args(arguments);
    let line = format!("`helm {}`", arguments.join(" "));
    let output =
        run_within::run(own_helm(&mut command), stdin, HELM_TIMEOUT, |it| cluster.spawn(it));
    succeeded(&line, &output.with_context(|| line.clone())?)
}

/// Helm without what a user has configured for himself.
pub(crate) fn own_helm(command: &mut Command) -> &mut Command {
    for name in ["HELM_PLUGINS", "HELM_NAMESPACE", "HELM_DRIVER", "HELM_DEBUG"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn succeeded(line: &str, output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{line}: {}; {}{}",
        output.status,
        output.stderr_text(),
        output.stdout_text()
    );
    Ok(output.stdout_text())
}

fn namespace() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": NAMESPACE,
            // The nodes' pods mount for others.
            "labels": { "pod-security.kubernetes.io/enforce": "privileged" },
        },
    })
}

/// The names of the controllers' pods.
fn controllers(cluster: &Cluster) -> Result<Vec<String>> {
    let label =
        format!("app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=controller");
    let pods = cluster.get_json(&["pods", "--namespace", NAMESPACE, "-l", &label])?;
    let ends = |pod: &Value| !pod["metadata"]["deletionTimestamp"].is_null();
    let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned);
    let pods = pods["items"].as_array().into_iter().flatten();
    Ok(pods.filter(|pod| !ends(pod)).filter_map(name).collect())
}

/// How many nodes a controller is connected with.
fn connected(cluster: &Cluster, pod: &str) -> Result<Option<u64>> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9808/proxy/metrics");
    let text = cluster.kubectl_text(&["get", "--raw", &path])?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix("cinderblock_nodes_connected ")?.parse().ok()))
}

/// How many kubelets know the driver.
fn registered(csi_nodes: &Value) -> u64 {
    let knows = |node: &&Value| {
        let drivers = node["spec"]["drivers"].as_array();
        drivers.is_some_and(|all| all.iter().any(|it| it["name"] == DRIVER))
    };
    let count = csi_nodes["items"].as_array().into_iter().flatten().filter(knows).count();
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Whether a `DaemonSet`'s pods are all ready, in its newest version.
fn is_ready(daemon_set: &Value) -> bool {
    let (meta, status) = (&daemon_set["metadata"], &daemon_set["status"]);
    let wanted = status["desiredNumberScheduled"].as_u64().unwrap_or(0);
    let all = |count: &str| status[count].as_u64().unwrap_or(0) == wanted;
    wanted > 0
        && status["observedGeneration"] == meta["generation"]
        && all("updatedNumberScheduled")
        && all("numberAvailable")
}

/// Puts `more` into `values`; what both have is that of `more`.
pub fn merge(values: &mut Value, more: &Value) {
    match (values, more) {
        (Value::Object(values), Value::Object(more)) => {
            for (key, value) in more {
                merge(values.entry(key).or_insert(Value::Null), value);
            }
        }
        (values, more) => values.clone_from(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images;

    #[test]
    fn the_charts_sidecars_are_those_of_the_lab() {
        let text = std::fs::read_to_string(chart().join("values.yaml")).unwrap();
        for tool in ["csi-provisioner", "csi-snapshotter", "csi-resizer"] {
            let name = images::name_of(tool).unwrap();
            let (repository, tag) = name.rsplit_once(':').unwrap();
            let (_, after) = text.split_once(&format!("repository: {repository}\n")).unwrap();
            let line = after.lines().find(|it| it.trim().starts_with("tag:")).unwrap();
            assert_eq!(line.trim(), format!("tag: {tag}"));
        }
    }

    #[test]
    fn the_chart_has_the_projects_version() {
        let text = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
        for key in ["version", "appVersion"] {
            let line = format!("\n{key}: {}\n", driver_image::VERSION);
            assert!(text.contains(&line), "Chart.yaml has no line{line}");
        }
    }

    #[test]
    fn values_are_merged() {
        let mut values = json!({"a": {"b": 1, "c": [1, 2]}});
        merge(&mut values, &json!({"a": {"c": [3], "d": 4}, "e": 5}));
        assert_eq!(values, json!({"a": {"b": 1, "c": [3], "d": 4}, "e": 5}));
    }

    #[test]
    fn what_ready_means() {
        let mut set = json!({
            "metadata": {"generation": 2},
            "status": {"observedGeneration": 2, "desiredNumberScheduled": 2,
                       "updatedNumberScheduled": 2, "numberAvailable": 2},
        });
        assert!(is_ready(&set) && !is_ready(&Value::Null));
        set["status"]["updatedNumberScheduled"] = json!(1);
        assert!(!is_ready(&set));
        let nodes = json!({"items": [
            {"spec": {"drivers": [{"name": "other"}, {"name": DRIVER}]}},
            {"spec": {"drivers": null}},
        ]});
        assert_eq!(registered(&nodes), 1);
    }
}
