//! Where a cluster's files are in its lab's directory. It makes none of them.

use std::path::{Path, PathBuf};

use crate::lab::Lab;

/// A cluster's files. `state` goes with the cluster, `log` stays; guests see both at the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paths {
    /// Everything but the logs.
    pub(super) state: PathBuf,
    /// The logs, beside the nodes' consoles.
    pub(super) log: PathBuf,
    /// Held during up and down.
    pub(super) lock: PathBuf,
}

impl Paths {
    pub(super) fn of(lab: &Lab) -> Self {
        let dir = lab.dir();
        let (state, log) = (dir.join("cluster"), dir.join("log"));
        Self { state, log, lock: dir.join("cluster.lock") }
    }

    /// What the cluster was last brought up with.
    pub(super) fn saved(&self) -> PathBuf {
        self.state.join("cluster.json")
    }

    /// Certificates and kubeconfigs.
    pub(super) fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// The state file of a control-plane process.
    pub(super) fn daemon(&self, name: &str) -> PathBuf {
        self.state.join("daemons").join(format!("{name}.json"))
    }

    /// The configuration files of a node's services.
    pub(super) fn node(&self, name: &str) -> PathBuf {
        self.state.join("nodes").join(name)
    }

    /// Images that callers load, under names that say their content.
    pub(super) fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// The log of a control-plane process.
    pub(super) fn daemon_log(&self, name: &str) -> PathBuf {
        self.log.join(format!("{name}.log"))
    }

    /// The log of a node's service.
    pub(super) fn service_log(&self, node: &str, service: &str) -> PathBuf {
        self.log.join(format!("{node}.{service}.log"))
    }
}

/// A path as text: a lab's directory is checked to be such.
pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}
