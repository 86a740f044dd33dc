//! What pods have: each other, Services, DNS, logs, exec, tokens, images. Nodes stay as they are.

use std::time::Duration;

use anyhow::{Context, Result};
use cinderblock_lab::cluster::condition;
use cinderblock_lab::images::{BUSYBOX, IDLE};
use cinderblock_lab::oci::{Image, Layer};
use cinderblock_lab::{Cluster, Namespace};
use serde_json::json;

use crate::support::pod;

const SOON: Duration = Duration::from_secs(90);

/// Serves its host's name, which is the pod's.
const WEB: &str = "echo hello from $HOSTNAME; mkdir /www; hostname > /www/name; \
    trap exit TERM; httpd -f -p 8080 -h /www & wait";

pub(crate) fn pods(cluster: &Cluster) -> Result<()> {
    let test = cluster.namespace("pods")?;
    for (name, node) in [("one", "node1"), ("two", "node2")] {
        test.apply(&pod(name, node, &["sh", "-c", WEB]))?;
    }
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    test.apply(&service.to_string())?;
    let mut addresses = Vec::new();
    for (name, node) in [("one", "node1"), ("two", "node2")] {
        let pod = test.wait_for_pod(name, SOON)?;
        assert_eq!(pod["spec"]["nodeName"], node);
        addresses.push(pod["status"]["podIP"].as_str().context("no address")?.to_owned());
    }
    // Across the nodes, both ways.
    let fetch = |pod: &str, from: &str| {
        let address = format!("http://{from}/name");
        test.exec(pod, &["timeout", "5", "wget", "-q", "-O", "-", &address])
    };
    for (from, to, wanted) in [("one", &addresses[1], "two"), ("two", &addresses[0], "one")] {
        // It is said to be ready when it has begun, which is before it listens.
        cluster.eventually(&format!("{wanted} from {from}"), SOON, || {
            Ok((fetch(from, &format!("{to}:8080"))? == wanted).then_some(()))
        })?;
    }
    // Through the Service, by address and by name, until both have answered.
    let service = test.get_json(&["service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
    let long = format!("web.{}.svc.cluster.local", test.name());
    for name in [address.as_str(), "web", &long] {
        for from in ["one", "two"] {
            for wanted in ["one", "two"] {
                cluster.eventually(&format!("{wanted} behind {name} from {from}"), SOON, || {
                    Ok((fetch(from, name)? == wanted).then_some(()))
                })?;
            }
        }
    }
    logs_and_exec(&test)?;
    // The host side reaches them too.
    let mut command = cluster.command("busybox");
    command.args(["wget", "-q", "-O", "/dev/null", &format!("http://{}:8080/name", addresses[0])]);
    assert!(cluster.spawn(&mut command)?.wait()?.success());
    test.delete()
}

fn logs_and_exec(test: &Namespace<'_>) -> Result<()> {
    assert_eq!(test.kubectl_text(&["logs", "one"])?, "hello from one");
    let script = "echo to-out; echo to-err >&2; exit 3";
    let output = test.kubectl(&["exec", "two", "--", "sh", "-c", script])?;
    assert_eq!(output.stdout_text(), "to-out");
    assert!(output.stderr_text().starts_with("to-err"), "{}", output.stderr_text());
    assert_eq!(output.status.code(), Some(3));
    let events = test.kubectl_text(&["get", "events", "-o", "name"])?;
    assert!(!events.is_empty());
    Ok(())
}

/// A token for an audience of its own, and what the API server says about it.
pub(crate) fn token(cluster: &Cluster) -> Result<()> {
    let test = cluster.namespace("token")?;
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "caller" },
    });
    test.apply(&account.to_string())?;
    let token = json!({ "audience": "cinderblock", "expirationSeconds": 600, "path": "token" });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "caller" },
        "spec": {
            "serviceAccountName": "caller",
            "nodeSelector": { "kubernetes.io/hostname": "node2" },
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": BUSYBOX,
                "command": IDLE,
                "volumeMounts": [{ "name": "token", "mountPath": "/var/run/token" }],
            }],
            "volumes": [{
                "name": "token",
                "projected": { "sources": [{ "serviceAccountToken": token }] },
            }],
        },
    });
    test.apply(&pod.to_string())?;
    test.wait_for_pod("caller", SOON)?;
    let token = test.exec("caller", &["cat", "/var/run/token/token"])?;
    let review = |audience: &str| {
        cluster.create_json(&json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        }))
    };
    let status = &review("cinderblock")?["status"];
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["audiences"], json!(["cinderblock"]));
    let user = &status["user"];
    let name = format!("system:serviceaccount:{}:caller", test.name());
    assert_eq!(user["username"], name);
    assert_eq!(user["extra"]["authentication.kubernetes.io/node-name"], json!(["node2"]));
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!(["caller"]));
    assert_ne!(review("somebody-else")?["status"]["authenticated"], true);
    Ok(())
}

/// An image of our own, and a newer one under the same name.
pub(crate) fn own_image(cluster: &Cluster) -> Result<()> {
    let test = cluster.namespace("image")?;
    let folder = tempfile::tempdir()?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(std::path::Path::new);
    let busybox = busybox.into_iter().find(|file| file.exists()).context("no busybox")?;
    for version in ["first", "second"] {
        let layer = Layer::new().file("/bin/busybox", busybox, 0o755)?;
        let layer = layer.bytes("/version", version, 0o644)?;
        let image = Image::new("docker.io/library/own:1")
            .layer(layer)
            .entrypoint(["/bin/busybox", "cat"])
            .command(["/version"])
            .user("1000:1000");
        let archive = folder.path().join("own.tar");
        image.write(&archive)?;
        cluster.load_image(&archive)?;
        cluster.load_image(&archive)?;
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": version },
            "spec": {
                "restartPolicy": "Never",
                "containers": [{ "name": "main", "image": "docker.io/library/own:1" }],
            },
        });
        test.apply(&pod.to_string())?;
        let object = test.object("pod", version);
        cluster.wait_for(&object, "over", SOON, |pod| pod["status"]["phase"] == "Succeeded")?;
        assert_eq!(test.kubectl_text(&["logs", version])?, version);
    }
    assert_eq!(condition(&test.get_json(&["pod", "first"])?, "Ready"), Some(false));
    Ok(())
}
