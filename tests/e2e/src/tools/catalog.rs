//! Which tools there are, at which versions, and the cache key that follows. It reads nothing from disk and builds nothing.

use ring::digest::{Context as Hasher, SHA256};

/// Raised when the way of building changes so that old binaries must not be used.
const FORMAT: u32 = 1;

/// A Go module of the lab, pinned by files in `lab/tools`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Module {
    /// Everything that can share one client-go.
    Main,
    /// csi-provisioner needs an older client-go.
    Provisioner,
    /// `CoreDNS` has its own too.
    CoreDns,
}

impl Module {
    /// Its folder, relative to `lab/tools`.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Provisioner => "provisioner",
            Self::CoreDns => "coredns",
        }
    }

    /// Its go.mod.
    fn pins(self) -> &'static str {
        match self {
            Self::Main => include_str!("../../lab/tools/go.mod"),
            Self::Provisioner => include_str!("../../lab/tools/provisioner/go.mod"),
            Self::CoreDns => include_str!("../../lab/tools/coredns/go.mod"),
        }
    }
}

/// One program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tool {
    /// The name of its binary.
    pub(super) name: &'static str,
    /// Where it is pinned.
    pub(super) module: Module,
    /// What is built.
    pub(super) package: &'static str,
}

const fn tool(name: &'static str, module: Module, package: &'static str) -> Tool {
    Tool { name, module, package }
}

/// Every tool, in the order of building: what shares packages stands together.
pub(super) const TOOLS: [Tool; 18] = [
    tool("csi-sanity", Module::Main, "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"),
    tool("pause", Module::Main, "cinderblock.dev/lab-tools/pause"),
    tool("containerd", Module::Main, "github.com/containerd/containerd/v2/cmd/containerd"),
    tool(
        "containerd-shim-runc-v2",
        Module::Main,
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    ),
    tool("ctr", Module::Main, "github.com/containerd/containerd/v2/cmd/ctr"),
    tool("etcd", Module::Main, "go.etcd.io/etcd/server/v3"),
    tool("kube-apiserver", Module::Main, "k8s.io/kubernetes/cmd/kube-apiserver"),
    tool("kube-controller-manager", Module::Main, "k8s.io/kubernetes/cmd/kube-controller-manager"),
    tool("kube-scheduler", Module::Main, "k8s.io/kubernetes/cmd/kube-scheduler"),
    tool("kube-proxy", Module::Main, "k8s.io/kubernetes/cmd/kube-proxy"),
    tool("kubelet", Module::Main, "k8s.io/kubernetes/cmd/kubelet"),
    tool("kubectl", Module::Main, "k8s.io/kubernetes/cmd/kubectl"),
    tool("helm", Module::Main, "helm.sh/helm/v4/cmd/helm"),
    tool(
        "snapshot-controller",
        Module::Main,
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
    ),
    tool(
        "csi-snapshotter",
        Module::Main,
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
    ),
    tool(
        "csi-resizer",
        Module::Main,
        "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
    ),
    tool(
        "csi-provisioner",
        Module::Provisioner,
        "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
    ),
    tool("coredns", Module::CoreDns, "github.com/coredns/coredns"),
];

/// The module that has the snapshot CRDs, and the folder in it.
pub(super) const SNAPSHOT_CRDS: (&str, &str) =
    ("github.com/kubernetes-csi/external-snapshotter/client/v8", "config/crd");

/// Everything that goes into the cache key besides the flags.
const SOURCES: [&str; 8] = [
    include_str!("../../lab/tools/go.mod"),
    include_str!("../../lab/tools/go.sum"),
    include_str!("../../lab/tools/tools.go"),
    include_str!("../../lab/tools/pause/main.go"),
    include_str!("../../lab/tools/provisioner/go.mod"),
    include_str!("../../lab/tools/provisioner/go.sum"),
    include_str!("../../lab/tools/coredns/go.mod"),
    include_str!("../../lab/tools/coredns/go.sum"),
];

/// The version to which a Go module is pinned, such as `v1.37.2` for `k8s.io/kubernetes`.
#[must_use]
pub fn version(module: &str) -> Option<&'static str> {
    [Module::Main, Module::Provisioner, Module::CoreDns]
        .into_iter()
        .find_map(|pins| version_in(pins.pins(), module))
}

fn version_in(pins: &'static str, module: &str) -> Option<&'static str> {
    pins.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|it| *it != "=>")
    })
}

/// The version of Go that the modules ask for, such as `1.26.6`.
pub(super) fn go_version() -> &'static str {
    let pins = Module::Main.pins();
    pins.lines().find_map(|line| line.strip_prefix("go ")).unwrap_or("1.26.6").trim()
}

/// Flags for the linker: no debug information, and Kubernetes' own version, which its parts compare.
pub(super) fn linker_flags() -> String {
    let version = version("k8s.io/kubernetes").unwrap_or_default();
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    let set = "-X k8s.io/component-base/version.";
    format!(
        "-s -w {set}gitVersion={version} {set}gitMajor={major} {set}gitMinor={minor} \
         {set}gitCommit=lab"
    )
}

/// The flags of every `go build`.
pub(super) fn build_flags() -> [String; 5] {
    ["-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", &linker_flags()]
        .map(str::to_owned)
}

/// The cache key: it changes when any tool could.
pub(super) fn key() -> String {
    let flags = build_flags().join(" ");
    let format = FORMAT.to_string();
    let mut hasher = Hasher::new(&SHA256);
    for part in SOURCES.into_iter().chain([flags.as_str(), format.as_str()]) {
        hasher.update(part.as_bytes());
        hasher.update(&[0]);
    }
    crate::hex(&hasher.finish().as_ref()[..6])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_and_the_pins_agree() {
        let pinned: BTreeSet<_> = include_str!("../../lab/tools/tools.go")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("_ \"")?.strip_suffix('"'))
            .collect();
        let own = "cinderblock.dev/lab-tools/pause";
        let built: BTreeSet<_> = TOOLS
            .iter()
            .filter(|tool| tool.module == Module::Main && tool.package != own)
            .map(|tool| tool.package)
            .collect();
        assert_eq!(built, pinned);
        for tool in TOOLS.iter().filter(|tool| tool.module != Module::Main) {
            assert!(tool.module.pins().contains(&format!("tool {}\n", tool.package)), "{tool:?}");
        }
        let names: BTreeSet<_> = TOOLS.iter().map(|tool| tool.name).collect();
        assert_eq!(names.len(), TOOLS.len());
    }

    #[test]
    fn versions_come_from_the_pins() {
        for module in [
            "k8s.io/kubernetes",
            "github.com/containerd/containerd/v2",
            "github.com/coredns/coredns",
            "github.com/kubernetes-csi/external-provisioner/v6",
            SNAPSHOT_CRDS.0,
        ] {
            assert!(version(module).is_some_and(|it| it.starts_with('v')), "{module}");
        }
        assert_eq!(version("example.com/none"), None);
        let flags = linker_flags();
        let kubernetes = version("k8s.io/kubernetes").unwrap();
        assert!(flags.contains(&format!("gitVersion={kubernetes} ")), "{flags}");
        assert!(flags.contains("gitMajor=1 ") && !flags.contains("gitMinor=0 "), "{flags}");
        assert!(go_version().starts_with("1."));
        assert!(key().len() == 12 && key() == key());
    }
}
