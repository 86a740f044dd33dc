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
const SHUTDOWN_TIMEOUT: Duration = Duration::from_mins(1);

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

    /// Waits until the API server knows this very boot of the node as Ready.
    pub(super) fn wait_for_node(&self, node: &Node) -> Result<()> {
        let start = Instant::now();
        let boot = node
            .exec(["cat", "/proc/sys/kernel/random/boot_id"])
            .text()
            .context("reading the boot's number")?;
        let object = Object::new("node", node.name());
        let ready = |it: &Value| {
            it["status"]["nodeInfo"]["bootID"] == boot.as_str()
                && condition(it, "Ready") == Some(true)
        };
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
