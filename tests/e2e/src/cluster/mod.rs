//! A throwaway Kubernetes in a lab: control plane on the host, nodes in VMs. No storage driver is installed here.
//!
//! | what | address |
//! | --- | --- |
//! | API server | <https://10.88.0.1:443>, and the Service address 10.96.0.1 |
//! | DNS | 10.96.0.10 |
//! | Services | 10.96.0.0/16 |
//! | nodes, pods | see [`crate::netns`] |

mod addons;
mod client;
mod config;
mod control_plane;
mod daemon;
mod image_store;
mod kube_node;
mod namespace;
mod options;
mod paths;
mod service;
mod status;
mod wait;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

pub use client::KUBECTL_TIMEOUT;
pub use namespace::Namespace;
pub use options::Options;
pub use service::Service;
pub use status::ClusterStatus;
pub use wait::{Object, condition};

use crate::images::{self, Images};
use crate::lab::Lab;
use crate::pki::Pki;
use crate::tools::{self, Tools};
use crate::vm::{Node, read_json, write_json};
use crate::{kernel, packages, say};
use paths::Paths;

/// A Kubernetes cluster. All state is in files and processes, so that any process can take it up
/// with [`Cluster::attach`].
#[derive(Debug, Clone)]
pub struct Cluster {
    lab: Lab,
    options: Options,
    paths: Paths,
    pki: Pki,
    tools: Tools,
}

/// What a cluster was last brought up with.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    options: Options,
    /// Those of this checkout may be others meanwhile.
    tools: PathBuf,
}

impl Cluster {
    /// Brings the cluster up and waits until nodes, DNS and snapshot controller are ready. What runs
    /// already stays; nodes that were off boot with their disks and come back with their pods.
    ///
    /// The first time on a machine this installs packages and builds the VMs' kernel and the lab's tools.
    ///
    /// # Errors
    /// The first thing that did not work; what did come up stays.
    pub fn up(options: Options) -> Result<Self> {
        let start = Instant::now();
        options.validate()?;
        ensure!(rustix::process::geteuid().is_root(), "a lab needs root: run this with sudo");
        packages::ensure()?;
        kernel::ensure()?;
        let tools = tools::ensure()?;
        let images = images::ensure(&tools)?;
        let cluster = Self::new(options, tools)?;
        cluster.bring_up(&images)?;
        cluster.say(&format!("the cluster is up after {:.1} s", start.elapsed().as_secs_f32()));
        Ok(cluster)
    }

    /// The cluster that another process, or an earlier one, brought up in the workspace.
    ///
    /// # Errors
    /// It is not up.
    pub fn attach(name: &str) -> Result<Self> {
        Self::attached(&Lab::new(name)?)
    }

    /// As [`Cluster::attach`], in another directory.
    ///
    /// # Errors
    /// It is not up.
    pub fn attach_at(name: &str, dir: &Path) -> Result<Self> {
        Self::attached(&Lab::at(name, dir)?)
    }

    fn attached(lab: &Lab) -> Result<Self> {
        let saved: Option<Saved> = read_json(&Paths::of(lab).saved())?;
        let Saved { options, tools } = saved.with_context(|| {
            let dir = lab.dir().display();
            format!("the cluster {} is not up in {dir}: bring it up first", lab.name())
        })?;
        Self::new(options, Tools::at(&tools))
    }

    fn new(options: Options, tools: Tools) -> Result<Self> {
        let mut lab = match &options.dir {
            Some(dir) => Lab::at(&options.name, dir)?,
            None => Lab::new(&options.name)?,
        };
        if let Some(guest) = &options.guest {
            lab = lab.with_guest(guest);
        }
        let paths = Paths::of(&lab);
        Ok(Self { pki: Pki::at(&paths.pki()), lab, options, paths, tools })
    }

    /// Takes down the cluster of this name in the workspace, or what a crash left of it. Logs stay.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn down(name: &str) -> Result<()> {
        Self::take_down(&Lab::new(name)?)
    }

    /// As [`Cluster::down`], in another directory.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn down_at(name: &str, dir: &Path) -> Result<()> {
        Self::take_down(&Lab::at(name, dir)?)
    }

    fn take_down(lab: &Lab) -> Result<()> {
        // Ends every process in the namespace: the control plane too.
        lab.down()?;
        let state = Paths::of(lab).state;
        if state.exists() {
            fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()))?;
        }
        Ok(())
    }

    /// The lab below: its nodes as VMs, its network namespace.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What it was brought up with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The tools that it runs.
    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The folder of all logs: control plane, consoles and services of the nodes.
    #[must_use]
    pub fn logs(&self) -> &PathBuf {
        &self.paths.log
    }

    fn bring_up(&self, images: &Images) -> Result<()> {
        self.lab.claim()?;
        let _lock = self.lock()?;
        for folder in [&self.paths.state, &self.paths.log] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        // Guests see the tools at the same path, wherever the cache is.
        let share = |spec: &crate::NodeSpec| spec.clone().share(self.tools.dir());
        let specs: Vec<_> = self.options.nodes.iter().map(share).collect();
        let nodes: Vec<_> = specs
            .iter()
            .map(|spec| (spec.name.as_str(), crate::netns::node_address(spec.index)))
            .collect();
        self.pki.ensure(&nodes)?;
        let tools = self.tools.dir().to_owned();
        write_json(&self.paths.saved(), &Saved { options: self.options.clone(), tools })?;
        let indices: Vec<_> = specs.iter().map(|spec| spec.index).collect();
        self.lab.net().up(&indices)?;
        thread::scope(|scope| {
            let control_plane = scope.spawn(|| {
                self.start_control_plane()?;
                self.apply_snapshot_api()
            });
            let prepared = self.lab.up(&specs).and_then(|nodes| {
                in_parallel(&nodes, |node| {
                    self.configure(node)?;
                    image_store::plant(node, &images.seed)?;
                    self.start_service(node, Service::Containerd)
                })?;
                Ok(nodes)
            });
            // Looked at first: its failure is the likelier cause.
            joined(control_plane.join())?;
            let nodes = prepared?;
            // A node that was planted with other images than these gets what it lacks.
            let archives: Vec<_> =
                images.archives.iter().map(|it| (&it.image, it.file.as_path())).collect();
            in_parallel(&nodes, |node| {
                self.join(node)?;
                self.import(node, &archives)?;
                self.wait_for_node(node)
            })?;
            self.run_addons()
        })
    }

    /// Held while it comes up.
    fn lock(&self) -> Result<File> {
        let file = &self.paths.lock;
        let lock = File::create(file).with_context(|| format!("creating {}", file.display()))?;
        if lock.try_lock().is_err() {
            self.say("waiting for another process that brings the cluster up");
            lock.lock().with_context(|| format!("locking {}", file.display()))?;
        }
        Ok(lock)
    }

    pub(crate) fn say(&self, line: &str) {
        say(&format!("{}: {line}", self.lab.name()));
    }
}

/// Does the same to all nodes at once; every one is awaited before the first error is given back.
fn in_parallel(nodes: &[Node], work: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    thread::scope(|scope| {
        let running: Vec<_> = nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
        let results: Vec<_> = running.into_iter().map(|it| joined(it.join())).collect();
        results.into_iter().collect()
    })
}

fn joined<T>(result: thread::Result<Result<T>>) -> Result<T> {
    result.map_err(|_panic| anyhow!("a thread of the lab panicked"))?
}
