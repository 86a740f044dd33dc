//! A cluster as it is now, for people. It waits for nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::Cluster;
use super::service::Service;
use super::wait::condition;
use crate::lab::LabStatus;
use crate::netns::HOST;
use crate::vm::NodeState;

/// A cluster as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Directory, namespace and VMs.
    pub lab: LabStatus,
    /// The control plane's programs, each with its process id while it runs.
    pub control_plane: Vec<(&'static str, Option<i32>)>,
    /// The services of each node that runs, each with its process id in the guest while it runs.
    pub services: BTreeMap<String, [(Service, Option<i32>); 3]>,
    /// What the API server says about each node; none when it does not answer.
    pub ready: Option<Vec<(String, bool)>>,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The folder of all logs.
    pub logs: PathBuf,
}

impl Cluster {
    /// The cluster as it is now.
    ///
    /// # Errors
    /// A state file is damaged.
    pub fn status(&self) -> Result<ClusterStatus> {
        let mut control_plane = Vec::new();
        for daemon in self.daemons() {
            control_plane.push((daemon.name, daemon.pid()?));
        }
        let mut services = BTreeMap::new();
        for node in self.running_nodes()? {
            // A node that does not answer has none to show.
            let pid = |service| (service, self.service_pid(&node, service).ok().flatten());
            services.insert(node.name().to_owned(), Service::ALL.map(pid));
        }
        Ok(ClusterStatus {
            lab: self.lab.status()?,
            control_plane,
            services,
            ready: self.ready_nodes(),
            kubeconfig: self.kubeconfig(),
            logs: self.paths.log.clone(),
        })
    }

    fn ready_nodes(&self) -> Option<Vec<(String, bool)>> {
        let words = ["get", "nodes", "-o", "json", "--request-timeout=5s"];
        let output = self.kubectl_within(&words, Duration::from_secs(8)).ok()?;
        if !output.status.success() {
            return None;
        }
        let list: Value = serde_json::from_slice(&output.stdout).ok()?;
        let node = |node: &Value| {
            let name = node["metadata"]["name"].as_str()?.to_owned();
            Some((name, condition(node, "Ready") == Some(true)))
        };
        Some(list["items"].as_array()?.iter().filter_map(node).collect())
    }
}

impl fmt::Display for ClusterStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lab = &self.lab;
        writeln!(formatter, "lab {} in {}", lab.name, lab.dir.display())?;
        let up = if lab.namespace_up { "" } else { " (gone)" };
        writeln!(formatter, "network namespace {}{up}, host {HOST}", lab.namespace)?;
        writeln!(formatter, "control plane:")?;
        for (name, pid) in &self.control_plane {
            let pid = pid.map_or("not running".to_owned(), |pid| format!("process {pid}"));
            writeln!(formatter, "  {name:<24} {pid}")?;
        }
        writeln!(formatter, "nodes:")?;
        for node in &lab.nodes {
            let name = &node.spec.name;
            let state = match node.state {
                NodeState::Running { pid } => format!("process {pid}"),
                NodeState::Off => "off".to_owned(),
                NodeState::Died => format!("died, see {}", node.console.display()),
            };
            let ready = self.ready.iter().flatten().find(|(of, _)| of == name);
            let ready = match (ready, &self.ready) {
                (Some((_, true)), _) => "Ready",
                (Some((_, false)), _) => "NotReady",
                (None, Some(_)) => "not in the cluster",
                (None, None) => "unknown, as the API server does not answer",
            };
            writeln!(formatter, "  {name:<12} {:<14} {state}, {ready}", node.address)?;
            for (service, pid) in self.services.get(name).into_iter().flatten() {
                let pid = pid.map_or("not running".to_owned(), |pid| format!("process {pid}"));
                writeln!(formatter, "    {:<22} {pid} (in the guest)", service.name())?;
            }
        }
        writeln!(formatter, "kubeconfig {} (inside the namespace)", self.kubeconfig.display())?;
        write!(formatter, "logs {}", self.logs.display())
    }
}
