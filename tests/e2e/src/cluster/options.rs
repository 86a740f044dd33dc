//! What a cluster is made of. Nothing here touches a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::vm::{GIB, NodeSpec};

/// Memory of a node: the kubelet, containerd, kube-proxy and some pods.
const MEMORY_MIB: u32 = 1536;

/// Size of the data disk of a node that [`Options::nodes`] makes.
const DISK: u64 = 20 * GIB;

/// What a cluster is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// The lab's name.
    pub name: String,
    /// The lab's directory; none for the workspace's `.lab/<name>`.
    pub dir: Option<PathBuf>,
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// Feature gates of all of Kubernetes' programs.
    pub feature_gates: BTreeMap<String, bool>,
    /// The API server's `--runtime-config`: API groups and versions that are off by default.
    pub runtime_config: BTreeMap<String, bool>,
    /// Use this `lab-guest` program instead of building one.
    #[serde(skip)]
    pub guest: Option<PathBuf>,
}

impl Options {
    /// Two nodes, in the workspace's `.lab/<name>`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: None,
            nodes: Vec::new(),
            feature_gates: BTreeMap::new(),
            runtime_config: BTreeMap::new(),
            guest: None,
        }
        .nodes(2)
    }

    /// This many nodes of the usual size (1536 MiB of memory, a data disk of 20 GiB), instead of
    /// those so far.
    #[must_use]
    pub fn nodes(mut self, count: u8) -> Self {
        self.nodes = (1..=count).map(Self::node_spec).collect();
        self
    }

    /// The specification of a node of the usual size.
    #[must_use]
    pub fn node_spec(index: u8) -> NodeSpec {
        NodeSpec::new(index).own_kernel().memory_mib(MEMORY_MIB).disk(DISK)
    }

    /// These nodes instead of those so far.
    #[must_use]
    pub fn node_specs(mut self, specs: impl IntoIterator<Item = NodeSpec>) -> Self {
        self.nodes = specs.into_iter().collect();
        self
    }

    /// Another directory for the lab.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Turns a feature gate on or off.
    #[must_use]
    pub fn feature_gate(mut self, name: &str, on: bool) -> Self {
        self.feature_gates.insert(name.to_owned(), on);
        self
    }

    /// Turns an API group and version (`storage.k8s.io/v1beta1`) on or off.
    #[must_use]
    pub fn api(mut self, name: &str, on: bool) -> Self {
        self.runtime_config.insert(name.to_owned(), on);
        self
    }

    /// Uses this `lab-guest` program instead of building one.
    #[must_use]
    pub fn guest(mut self, program: &Path) -> Self {
        self.guest = Some(program.to_owned());
        self
    }

    /// Refuses what cannot work, besides what the nodes' own specifications refuse.
    pub(super) fn validate(&self) -> Result<()> {
        ensure!(!self.nodes.is_empty(), "a cluster needs a node: take --nodes 1 or more");
        for name in self.feature_gates.keys() {
            let good = name.chars().all(|it| it.is_ascii_alphanumeric());
            ensure!(good && !name.is_empty(), "{name:?} is no feature gate");
        }
        Ok(())
    }
}

/// `A=true,B=false`, as Kubernetes' flags take it.
pub(super) fn switches(map: &BTreeMap<String, bool>) -> String {
    map.iter().map(|(name, on)| format!("{name}={on}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_their_file() {
        let options = Options::new("dev")
            .nodes(3)
            .feature_gate("B", false)
            .feature_gate("A", true)
            .api("storage.k8s.io/v1alpha1", true);
        options.validate().unwrap();
        let json = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&json).unwrap(), options);
        assert_eq!(switches(&options.feature_gates), "A=true,B=false");
        assert_eq!(options.nodes[2].name, "node3");
    }

    #[test]
    fn nonsense_is_refused() {
        Options::new("dev").nodes(0).validate().unwrap_err();
        Options::new("dev").feature_gate("A=true", true).validate().unwrap_err();
    }
}
