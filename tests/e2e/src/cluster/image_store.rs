//! Images in the nodes' containerd: which are there, and loading those that are not. Making archives is in `images` and `oci`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::config::SOCKET;
use super::paths::text;
use super::{Cluster, in_parallel};
use crate::oci::{self, Written};
use crate::vm::{Node, NodeState};

/// An image of some hundred megabytes takes seconds; this is for machines that are loaded.
const TIMEOUT: Duration = Duration::from_mins(5);

/// Run in a guest with the seed as `$0`.
const PLANT: &str = "root=/var/lib/containerd
metadata=io.containerd.metadata.v1.bolt
if test -e $root/$metadata; then exit 0; fi
rm -rf $root/*
cp -a $0/io.containerd.content.v1.content $root
cp -a $0/$metadata $root/planting
sync -f $root
mv $root/planting $root/$metadata";

impl Cluster {
    /// Loads an image archive into all nodes that run. A node that has this very image already is
    /// left alone; one that has another image of this name gets the new one.
    ///
    /// # Errors
    /// The file is no OCI image archive, or a node does not take it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let image = oci::inspect(archive)?;
        // Under a name of its own: a guest may not see that a file was written anew.
        let folder = self.paths.images();
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let copy = folder.join(format!("{}.tar", image.digest.replace(':', "-")));
        fs::copy(archive, &copy)
            .with_context(|| format!("copying {} to {}", archive.display(), copy.display()))?;
        let nodes = self.running_nodes()?;
        let loaded = in_parallel(&nodes, |node| self.import(node, &[(&image, &copy)]));
        crate::vm::remove(&copy)?;
        loaded
    }

    /// Imports what a node does not have.
    pub(super) fn import(&self, node: &Node, images: &[(&Written, &Path)]) -> Result<()> {
        let present = self.node_images(node)?;
        for (image, archive) in images {
            if present.get(&image.name) == Some(&image.digest) {
                continue;
            }
            let start = Instant::now();
            // Unpacked by the first container that needs it; many images are never used.
            let words =
                ["images", "import", "--local", "--no-unpack", &text(archive)].map(str::to_owned);
            self.ctr(node, &words)
                .with_context(|| format!("loading {} into node {}", image.name, node.name()))?;
            let seconds = start.elapsed().as_secs_f32();
            self.say(&format!("{}: loaded {} in {seconds:.1} s", node.name(), image.name));
        }
        Ok(())
    }

    /// The images of a node: name and digest.
    ///
    /// # Errors
    /// The node is off, or containerd does not answer.
    pub fn node_images(&self, node: &Node) -> Result<BTreeMap<String, String>> {
        let list = self.ctr(node, &["images", "ls"].map(str::to_owned))?;
        Ok(parse_images(&list))
    }

    /// The nodes whose VMs run.
    pub(super) fn running_nodes(&self) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for node in self.lab.nodes()? {
            if matches!(node.state()?, NodeState::Running { .. }) {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    fn ctr(&self, node: &Node, words: &[String]) -> Result<String> {
        let program = text(&self.tools.program("ctr"));
        let first = [program.as_str(), "--address", SOCKET, "--namespace", "k8s.io"];
        let words = first.into_iter().chain(words.iter().map(String::as_str));
        let output = node.exec(words).timeout(TIMEOUT).run()?;
        if output.status.success() {
            return Ok(output.stdout_text());
        }
        Err(anyhow!("ctr: {}: {}", output.status, output.stderr_text()))
    }
}

/// Gives a new node a containerd root that has images already. The metadata come last, so that a
/// power cut meanwhile leaves a root without any.
pub(super) fn plant(node: &Node, seed: &Path) -> Result<()> {
    let folder = text(seed);
    node.exec(["sh", "-ec", PLANT, &folder])
        .timeout(TIMEOUT)
        .text()
        .map(drop)
        .with_context(|| format!("copying the images in {folder} to node {}", node.name()))
}

/// `ctr images ls`: the name is the first word of a line and the digest the third.
fn parse_images(list: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        Some((name, words.nth(1).filter(|it| it.starts_with("sha256:"))?.to_owned()))
    };
    list.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_images() {
        let list = "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
            docker.io/library/a:1 application/vnd.oci.image.manifest.v1+json sha256:ab 1 MiB x -\n";
        let want = BTreeMap::from([("docker.io/library/a:1".to_owned(), "sha256:ab".to_owned())]);
        assert_eq!(parse_images(list), want);
        assert!(parse_images("").is_empty());
    }
}
