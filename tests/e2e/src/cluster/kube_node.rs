//! A VM as a node of the cluster: bringing its services up after a boot, reboots, waiting for Ready. What a service is, is in `service`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Cluster;
use super::service::Service;
use super::wait::{Object, condition};
use crate::vm::{Node, NodeState};

/// The kubelet takes half a minute; this is for machines that are loaded.
const READY_TIMEOUT: Duration = Duration::from_mins(4);

/// What a shutdown of a node may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_mins(4);

impl Cluster {
    /// Shuts a node down in order, boots it with the same disks, and waits until it is Ready.
    ///
    /// # Errors
    /// The node does not go down or does not come back.
    pub fn reboot_node(&self, name: &str) -> Result<()> {
        let node = self.lab.node(name)?;
        if matches!(node.state()?, NodeState::Running { .. }) {
            node.shutdown(SHUTDOWN_TIMEOUT)?;
        }
        self.start_node(name)
    }

    /// Cuts the power of a node; [`Cluster::start_node`] brings it back.
    ///
    /// # Errors
    /// There is no such node, or its VM survives.
    pub fn power_cut_node(&self, name: &str) -> Result<()> {
        self.lab.node(name)?.power_cut()
    }

    /// Boots a node unless it runs, starts its services unless they run, and waits until the API
    /// server knows this very boot as Ready.
    ///
    /// # Errors
    /// The node does not boot, or does not become Ready; the message says why.
    pub fn start_node(&self, name: &str) -> Result<()> {
        let node = self.lab.node(name)?;
        if !matches!(node.state()?, NodeState::Running { .. }) {
            node.boot()?;
        }
        self.start_service(&node, Service::Containerd)?;
        self.join(&node)?;
        self.wait_for_node(&node)
    }

    /// Starts what needs the API server.
    pub(super) fn join(&self, node: &Node) -> Result<()> {
        self.start_service(node, Service::Kubelet)?;
        self.start_service(node, Service::KubeProxy)
    }

    /// Waits until the API server knows this very boot of the node as Ready, by word of the kubelet
    /// that runs now.
    pub(super) fn wait_for_node(&self, node: &Node) -> Result<()> {
        let start = Instant::now();
        let boot = node
            .exec(["cat", "/proc/sys/kernel/random/boot_id"])
            .text()
            .context("reading the boot's number")?;
        let since = self.kubelet_since(node)?.unwrap_or_default();
        let object = Object::new("node", node.name());
        let ready = |it: &Value| is_ready(it, &boot, &since);
        let waited = self.wait_for(&object, "Ready", READY_TIMEOUT, ready);
        waited.map_err(|error| match self.check_services(node) {
            Ok(()) => error,
            Err(ended) => ended.context(error),
        })?;
        let seconds = start.elapsed().as_secs_f32();
        self.say(&format!("{}: Ready, waited {seconds:.1} s", node.name()));
        Ok(())
    }
}

fn is_ready(node: &Value, boot: &str, since: &str) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.and_then(|all| all.iter().find(|it| it["type"] == "Ready"));
    let heartbeat = ready.and_then(|it| it["lastHeartbeatTime"].as_str());
    // Such times sort as text.
    node["status"]["nodeInfo"]["bootID"] == boot
        && condition(node, "Ready") == Some(true)
        && heartbeat.is_some_and(|heartbeat| heartbeat >= since)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_old_word_is_not_taken() {
        let node = json!({"status": {
            "nodeInfo": {"bootID": "b"},
            "conditions": [
                {"type": "Ready", "status": "True", "lastHeartbeatTime": "2030-01-02T03:04:05Z"},
            ],
        }});
        assert!(is_ready(&node, "b", "") && is_ready(&node, "b", "2030-01-02T03:04:05Z"));
        assert!(!is_ready(&node, "b", "2030-01-02T03:04:06Z"));
        assert!(!is_ready(&node, "a", "") && !is_ready(&Value::Null, "b", ""));
    }
}
