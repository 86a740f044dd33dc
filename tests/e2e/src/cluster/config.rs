//! The configuration files of a node's services, as text. It reads and writes no file.

use serde_json::{Value, json};

use super::control_plane::PODS;
use super::options::Options;
use super::paths::{Paths, text};
use super::service::Service;
use crate::images::PAUSE;
use crate::netns::pod_subnet;
use crate::pki::Pki;
use crate::vm::NodeSpec;

/// The address of the cluster's DNS.
pub(super) const DNS: &str = "10.96.0.10";

/// containerd's socket in a guest.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

/// Where Debian has the CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Every file of a node: name, text, and the service that reads it at its start.
pub(super) fn files(
    options: &Options,
    spec: &NodeSpec,
    paths: &Paths,
    pki: &Pki,
) -> [(&'static str, String, Service); 4] {
    let folder = paths.node(&spec.name);
    [
        ("containerd.toml", containerd(&text(&folder.join("cni"))), Service::Containerd),
        ("cni/10-lab.conflist", pretty(&cni(spec)), Service::Containerd),
        ("kubelet.json", pretty(&kubelet(options, spec, pki)), Service::Kubelet),
        ("kube-proxy.json", pretty(&kube_proxy(options, spec, pki)), Service::KubeProxy),
    ]
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Plugins that find nothing to work with in a node only slow the start down.
fn containerd(cni: &str) -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.nri.v1.nri",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
address = "{SOCKET}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{cni}"
"#
    )
}

/// Nodes have routes to each other's pods, so no address is ever translated on the way.
fn cni(spec: &NodeSpec) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "subnet": pod_subnet(spec.index),
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

fn kubelet(options: &Options, spec: &NodeSpec, pki: &Pki) -> Value {
    let file = |name: &str| text(&pki.file(name));
    let never = ["memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"]
        .map(|signal| (signal.to_owned(), json!("0%")));
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": file("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": file(&format!("{}.crt", spec.name)),
        "tlsPrivateKeyFile": file(&format!("{}.key", spec.name)),
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        // The host's name servers are out of reach.
        "resolvConf": "",
        "failSwapOn": false,
        // The kernel has no cpuset, and small nodes are not to evict what a test runs.
        "enforceNodeAllocatable": [],
        "evictionHard": Value::Object(never.into_iter().collect()),
        "imageGCHighThresholdPercent": 100,
        // Images come from archives alone.
        "imageMaximumGCAge": "0s",
        "runtimeRequestTimeout": "5m",
        // How long it takes until a kubelet that was started again is heard.
        "nodeStatusUpdateFrequency": "4s",
        // A volume that grew is looked at with the pod: a minute is long for a test.
        "syncFrequency": "20s",
        // Measuring what pods write into their images costs a small VM much, and nobody asks.
        "localStorageCapacityIsolation": false,
        "featureGates": options.feature_gates,
    })
}

fn kube_proxy(options: &Options, spec: &NodeSpec, pki: &Pki) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": text(&pki.kubeconfig("kube-proxy")) },
        "hostnameOverride": spec.name,
        "clusterCIDR": PODS,
        // The kernel has ip_tables, no nftables, and its conntrack takes no limits.
        "mode": "iptables",
        "conntrack": {
            "maxPerCore": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "featureGates": options.feature_gates,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lab::Lab;

    #[test]
    fn files_name_the_node_and_its_paths() {
        let lab = Lab::at("t", Path::new("/no/such/lab")).unwrap();
        let (paths, pki) = (Paths::of(&lab), Pki::at(Path::new("/pki")));
        let options = Options::new("t").feature_gate("Some", true);
        let [containerd, cni, kubelet, proxy] = files(&options, &options.nodes[1], &paths, &pki);
        assert!(containerd.1.contains("conf_dir = \"/no/such/lab/cluster/nodes/node2/cni\""));
        assert!(containerd.1.contains(PAUSE) && cni.1.contains("10.89.2.0/24"));
        let kubelet: Value = serde_json::from_str(&kubelet.1).unwrap();
        assert_eq!(kubelet["tlsCertFile"], "/pki/node2.crt");
        assert_eq!(kubelet["featureGates"]["Some"], true);
        assert_eq!(kubelet["evictionHard"]["memory.available"], "0%");
        let proxy: Value = serde_json::from_str(&proxy.1).unwrap();
        assert_eq!(proxy["hostnameOverride"], "node2");
    }
}
