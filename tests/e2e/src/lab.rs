//! A named lab: its directory, its network namespace, its nodes. Taking one up again after any crash is its business; Kubernetes is not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::NetNs;
use crate::vm::{self, Node, NodeSpec, NodeState, NodeStatus};
use crate::{guest_program, packages, say};

/// Marks a directory as a lab's.
const MARK: &str = "lab.json";

/// A lab. The value is only names and paths: nothing happens before [`Lab::up`].
///
/// In its directory are `nodes/` (disks and state, gone after [`Lab::down`]), `log/` (kept), and what
/// callers put there; every guest sees the directory live and writable at the same path.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
    dir: PathBuf,
    net: NetNs,
    guest: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Mark {
    lab: String,
    namespace: String,
}

/// A lab as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// The name of its network namespace.
    pub namespace: String,
    /// Whether the namespace is there.
    pub namespace_up: bool,
    /// Its nodes, by index.
    pub nodes: Vec<NodeStatus>,
}

impl Lab {
    /// The lab `name` in the workspace's `.lab/<name>`.
    ///
    /// # Errors
    /// The name or the path is not fit.
    pub fn new(name: &str) -> Result<Self> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
        let workspace = workspace.context("the workspace has no folder")?;
        Self::at(name, &workspace.join(".lab").join(name))
    }

    /// The lab `name` in another directory, which is made by [`Lab::up`]. A directory that is there
    /// must be empty or a lab's.
    ///
    /// # Errors
    /// The name or the path is not fit.
    pub fn at(name: &str, dir: &Path) -> Result<Self> {
        vm::check_name("lab", name)?;
        let dir = std::path::absolute(dir).with_context(|| format!("finding {}", dir.display()))?;
        // The same lab by whichever way: links are followed as far as the path exists.
        let known = dir.ancestors().find_map(|part| Some((part, part.canonicalize().ok()?)));
        let dir = match &known {
            Some((part, real)) => real.join(dir.strip_prefix(part)?).components().collect(),
            None => dir,
        };
        vm::check_path(&dir)?;
        Ok(Self { name: name.to_owned(), net: NetNs::of_lab(name, &dir), dir, guest: None })
    }

    /// The lab that another process, or an earlier one, brought up in the default directory.
    ///
    /// # Errors
    /// It is not up.
    pub fn attach(name: &str) -> Result<Self> {
        Self::new(name)?.attached()
    }

    /// As [`Lab::attach`], in another directory.
    ///
    /// # Errors
    /// It is not up.
    pub fn attach_at(name: &str, dir: &Path) -> Result<Self> {
        Self::at(name, dir)?.attached()
    }

    fn attached(self) -> Result<Self> {
        ensure!(
            self.is_marked() && !self.nodes()?.is_empty(),
            "the lab {} is not up in {}: bring it up first",
            self.name,
            self.dir.display()
        );
        Ok(self)
    }

    /// Uses this `lab-guest` program instead of building one.
    #[must_use]
    pub fn with_guest(mut self, program: &Path) -> Self {
        self.guest = Some(program.to_owned());
        self
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its network namespace.
    #[must_use]
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// Brings up the network and these nodes, several at a time. Nodes that run already with the
    /// same specification stay as they are, nodes that were off boot with their old disks, and nodes
    /// that are not named here are left alone.
    ///
    /// # Errors
    /// No root, missing packages (see [`packages::ensure`]), a bad specification, or a node that does
    /// not come up; what did come up stays.
    pub fn up(&self, specs: &[NodeSpec]) -> Result<Vec<Node>> {
        ensure!(rustix::process::geteuid().is_root(), "a lab needs root: run this with sudo");
        specs.iter().try_for_each(NodeSpec::validate)?;
        check_unique(specs)?;
        packages::check()?;
        let _lock = self.prepare()?;
        let old: Vec<_> = self.nodes()?.iter().map(|node| node.spec().clone()).collect();
        let old = old.iter().filter(|old| specs.iter().all(|spec| spec.name != old.name));
        check_unique(old.chain(specs))?;
        let guest = match &self.guest {
            Some(program) => program.clone(),
            None => guest_program::locate()?,
        };
        say(&format!("{}: network namespace {}", self.name, self.net.name()));
        self.net.up(&specs.iter().map(|spec| spec.index).collect::<Vec<_>>())?;
        let mut nodes = Vec::new();
        for spec in specs {
            let node = Node::new(&self.dir, &self.net, &guest, spec.clone());
            let running = matches!(node.state()?, NodeState::Running { .. });
            let old = self.find(&spec.name)?;
            if running && old.is_some_and(|old| old.spec() != spec) {
                bail!("node {} runs with another specification: shut it down first", spec.name);
            }
            if !running {
                node.define()?;
            }
            nodes.push((node, running));
        }
        thread::scope(|scope| {
            // Whoever started a node that runs may have died before it was up.
            let up = |(node, running): &(Node, bool)| {
                if *running { node.wait(vm::BOOT_TIMEOUT) } else { node.boot() }
            };
            let boots: Vec<_> = nodes.iter().map(|node| scope.spawn(move || up(node))).collect();
            // All are awaited before the first error is given back.
            let results: Vec<_> = boots.into_iter().map(ScopedJoinHandle::join).collect();
            let flat =
                |result: thread::Result<_>| result.map_err(|_panic| anyhow!("a boot panicked"))?;
            results.into_iter().try_for_each(flat)
        })?;
        Ok(nodes.into_iter().map(|(node, _)| node).collect())
    }

    /// Cuts the power of all nodes, ends every process in the namespace, and removes the namespace
    /// and the nodes with their disks. Logs and the callers' files stay. Works after any crash, and
    /// when there is nothing to do.
    ///
    /// # Errors
    /// What could not be removed; everything else is removed all the same.
    pub fn down(&self) -> Result<()> {
        if !self.is_marked() {
            // The directory may have been deleted by hand while its VMs ran.
            return self.net.down();
        }
        let _lock = self.lock()?;
        for node in self.nodes().unwrap_or_default() {
            if let Err(error) = node.power_cut() {
                say(&format!("{error:#}"));
            }
        }
        // Also takes what the state files do not know, or say no more because they are damaged.
        let mut errors: Vec<_> = self.net.down().err().into_iter().collect();
        let folder = Node::parent(&self.dir);
        if errors.is_empty() && folder.exists() {
            let removed = fs::remove_dir_all(&folder);
            errors.extend(removed.with_context(|| format!("removing {}", folder.display())).err());
        }
        if errors.is_empty() {
            say(&format!("{}: down", self.name));
            return Ok(());
        }
        let all: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
        bail!("the lab {} is not wholly down: {}", self.name, all.join("; "));
    }

    /// Its nodes, by index.
    ///
    /// # Errors
    /// A state file is damaged.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for entry in fs::read_dir(Node::parent(&self.dir)).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str() {
                nodes.extend(self.find(name)?);
            }
        }
        nodes.sort_by_key(|node| node.spec().index);
        Ok(nodes)
    }

    /// One of its nodes.
    ///
    /// # Errors
    /// The lab has no such node, or a state file is damaged.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.find(name)?.with_context(|| format!("the lab {} has no node {name}", self.name))
    }

    /// The lab as it is now.
    ///
    /// # Errors
    /// A state file is damaged.
    pub fn status(&self) -> Result<LabStatus> {
        Ok(LabStatus {
            name: self.name.clone(),
            dir: self.dir.clone(),
            namespace: self.net.name().to_owned(),
            namespace_up: self.net.exists(),
            nodes: self.nodes()?.iter().map(Node::status).collect::<Result<_>>()?,
        })
    }

    fn find(&self, name: &str) -> Result<Option<Node>> {
        let node = Node::load(&self.dir, &self.net, name)?;
        Ok(match (&self.guest, node) {
            (Some(guest), Some(node)) => {
                Some(Node::new(&self.dir, &self.net, guest, node.spec().clone()))
            }
            (_, node) => node,
        })
    }

    /// Makes the directory a lab's before anybody puts files there.
    pub(crate) fn claim(&self) -> Result<()> {
        self.prepare().map(drop)
    }

    /// Makes the directory a lab's.
    fn prepare(&self) -> Result<File> {
        let dir = &self.dir;
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        ensure!(
            self.is_marked() || fs::read_dir(dir)?.next().is_none(),
            "{} is not empty and no lab's directory: name another one",
            dir.display()
        );
        let mark = Mark { lab: self.name.clone(), namespace: self.net.name().to_owned() };
        vm::write_json(&dir.join(MARK), &mark)?;
        self.lock()
    }

    fn is_marked(&self) -> bool {
        self.dir.join(MARK).exists()
    }

    /// Held during up and down.
    fn lock(&self) -> Result<File> {
        let file = self.dir.join("lock");
        let lock = File::create(&file).with_context(|| format!("creating {}", file.display()))?;
        if lock.try_lock().is_err() {
            say(&format!("{}: waiting for another process that takes it up or down", self.name));
            lock.lock().with_context(|| format!("locking {}", file.display()))?;
        }
        Ok(lock)
    }
}

fn check_unique<'a>(specs: impl IntoIterator<Item = &'a NodeSpec>) -> Result<()> {
    let (mut names, mut indices) = (BTreeSet::new(), BTreeSet::new());
    for spec in specs {
        ensure!(names.insert(&spec.name), "two nodes of the lab have the name {}", spec.name);
        ensure!(indices.insert(spec.index), "two nodes of the lab have the index {}", spec.index);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lab_whichever_way_its_directory_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("link")).unwrap();
        let one = Lab::at("t", &real.join("new")).unwrap();
        let other = Lab::at("t", &folder.path().join("link/new")).unwrap();
        assert_eq!((one.dir(), one.net()), (other.dir(), other.net()));
        assert!(Lab::new("dev").unwrap().dir().ends_with(".lab/dev"));
    }

    #[test]
    fn twins_are_refused() {
        let same_name = [NodeSpec::new(1), NodeSpec::new(2).name("node1")];
        assert!(check_unique(&same_name).unwrap_err().to_string().contains("the name node1"));
        let same_index = [NodeSpec::new(1), NodeSpec::new(1).name("b")];
        assert!(check_unique(&same_index).unwrap_err().to_string().contains("the index 1"));
    }

    #[test]
    fn a_foreign_directory_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("nodes")).unwrap();
        let lab = Lab::at("t", folder.path()).unwrap();
        assert!(lab.prepare().unwrap_err().to_string().contains("no lab's directory"));
        lab.down().unwrap();
        assert!(folder.path().join("nodes").exists());
        let error = Lab::attach_at("t", folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not up"), "{error}");
    }

    #[test]
    fn an_empty_lab_has_a_status() {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab::at("t", &folder.path().join("x")).unwrap();
        drop(lab.prepare().unwrap());
        let status = lab.status().unwrap();
        assert!(status.nodes.is_empty() && !status.namespace_up);
        assert!(lab.node("node1").unwrap_err().to_string().contains("no node node1"));
        lab.down().unwrap();
    }
}
