//! What every cluster has besides Kubernetes itself: DNS, the snapshot API and its controller. No storage driver is installed here.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Cluster;
use super::config::DNS;
use super::paths::text;
use crate::images;

/// Deployments in kube-system.
const DEPLOYMENTS: [&str; 2] = ["coredns", "snapshot-controller"];

/// For pods on nodes that have only just come up.
const TIMEOUT: Duration = Duration::from_mins(3);

impl Cluster {
    /// Creates what needs no node.
    pub(super) fn apply_snapshot_api(&self) -> Result<()> {
        let crds = text(&self.tools.crds());
        let words = ["apply", "--server-side", "--force-conflicts", "-f", &crds];
        self.kubectl_text(&words).map(drop).context("installing the snapshot API")
    }

    /// Creates what runs in pods and waits until it does. The nodes should be Ready: the first one
    /// would get all pods.
    pub(super) fn run_addons(&self) -> Result<()> {
        let start = Instant::now();
        self.apply(&manifests()).context("installing DNS and the snapshot controller")?;
        for name in DEPLOYMENTS {
            self.wait_for_deployment("kube-system", name, TIMEOUT)?;
        }
        let seconds = start.elapsed().as_secs_f32();
        self.say(&format!("DNS and snapshot controller ready after {seconds:.1} s"));
        Ok(())
    }
}

/// The manifests with the addresses and images of this build.
fn manifests() -> String {
    let all = [
        include_str!("../../lab/manifests/coredns.yaml"),
        include_str!("../../lab/manifests/snapshot-controller.yaml"),
    ];
    let mut text = all.join("---\n").replace("{dns}", DNS);
    for name in DEPLOYMENTS {
        text = text.replace(&format!("{{{name}}}"), &images::name_of(name).unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_name_the_images_that_are_made() {
        let text = manifests();
        for name in DEPLOYMENTS {
            let image = images::name_of(name).unwrap();
            assert!(text.contains(&format!("image: {image}\n")), "{name}");
        }
        assert!(text.contains("clusterIP: 10.96.0.10\n"));
        assert_eq!(text.matches("image: ").count(), DEPLOYMENTS.len());
    }
}
