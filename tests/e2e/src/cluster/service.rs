//! The services of a node (containerd, kubelet, kube-proxy): starting them in its VM and knowing whether they run. Images are in `image_store`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Cluster;
use super::config::{self, SOCKET};
use super::daemon::tail;
use super::paths::text;
use crate::protocol::ProcessState;
use crate::vm::{Node, read_json, write_json};

/// containerd's first start on a new disk takes some seconds; this is for machines that are loaded.
const SOCKET_TIMEOUT: Duration = Duration::from_mins(2);

/// A service of a node, in the order of their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// The container runtime.
    Containerd,
    /// The kubelet.
    Kubelet,
    /// Makes Services reachable.
    KubeProxy,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Containerd, Self::Kubelet, Self::KubeProxy];

    /// Its name, also that of its program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Process ids are of one boot only.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Started {
    boot: String,
    /// Those that run, as far as is known.
    pids: BTreeMap<Service, i32>,
    /// Those that were ever started in this boot.
    begun: BTreeSet<Service>,
    /// When the kubelet was started last.
    #[serde(default)]
    kubelet_since: Option<String>,
}

impl Cluster {
    /// Writes the configuration files of a node's services, and ends those that run with others.
    pub(super) fn configure(&self, node: &Node) -> Result<()> {
        let folder = self.paths.node(node.name());
        for (name, text, service) in
            config::files(&self.options, node.spec(), &self.paths, &self.pki)
        {
            let file = folder.join(name);
            if fs::read_to_string(&file).ok().as_ref() == Some(&text) {
                continue;
            }
            let write = || -> std::io::Result<()> {
                fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
                fs::write(&file, &text)
            };
            write().with_context(|| format!("writing {}", file.display()))?;
            self.stop_service(node, service)?;
        }
        Ok(())
    }

    /// Starts a service unless it runs; containerd takes calls when this returns.
    ///
    /// # Errors
    /// The node is off, or the service does not start; the message has the end of its log.
    pub fn start_service(&self, node: &Node, service: Service) -> Result<()> {
        if self.service_pid(node, service)?.is_none() {
            let log = self.service_log(node, service);
            self.rotate(node, service, &log)?;
            let since = match service {
                Service::Kubelet => Some(now(node)?),
                Service::Containerd | Service::KubeProxy => None,
            };
            let spawned = node
                .exec(self.service_words(node, service))
                .env("PATH", &self.node_path())
                .spawn(&log)
                .with_context(|| format!("starting {service}"))?;
            self.remember(node, |started| {
                started.pids.insert(service, spawned.pid);
                started.begun.insert(service);
                started.kubelet_since = since.or(started.kubelet_since.take());
            })?;
        }
        if service == Service::Containerd { self.wait_for_containerd(node) } else { Ok(()) }
    }

    /// Ends a service with SIGKILL; fine when it does not run. Containers go on without it.
    ///
    /// # Errors
    /// The node is off, or the service does not end.
    pub fn stop_service(&self, node: &Node, service: Service) -> Result<()> {
        if let Some(pid) = self.service_pid(node, service)? {
            let process = node.spawned(pid);
            process.signal(9)?;
            let state = process.wait(Duration::from_secs(20))?;
            let name = node.name();
            ensure!(state != ProcessState::Running, "{service} of node {name} survives SIGKILL");
        }
        self.remember(node, |started| {
            started.pids.remove(&service);
        })
    }

    /// The process id of a service in its guest while it runs.
    ///
    /// # Errors
    /// The node is off or does not answer.
    pub fn service_pid(&self, node: &Node, service: Service) -> Result<Option<i32>> {
        let boot = node.boot_token()?;
        let started = self.started(node)?.filter(|started| started.boot == boot);
        let Some(pid) = started.and_then(|started| started.pids.get(&service).copied()) else {
            return Ok(None);
        };
        Ok((node.spawned(pid).state()? == ProcessState::Running).then_some(pid))
    }

    /// When the kubelet of this boot was started last, as Kubernetes writes a time.
    pub(super) fn kubelet_since(&self, node: &Node) -> Result<Option<String>> {
        let boot = node.boot_token()?;
        let started = self.started(node)?.filter(|started| started.boot == boot);
        Ok(started.and_then(|started| started.kubelet_since))
    }

    /// Fails when a service of the node does not run any more.
    pub(super) fn check_services(&self, node: &Node) -> Result<()> {
        for service in Service::ALL {
            if self.service_pid(node, service)?.is_none() {
                return Err(self.ended(node, service));
            }
        }
        Ok(())
    }

    /// A service's log.
    #[must_use]
    pub fn service_log(&self, node: &Node, service: Service) -> PathBuf {
        self.paths.service_log(node.name(), service.name())
    }

    /// The first start in a boot begins a new log; the old one has `.1` added.
    fn rotate(&self, node: &Node, service: Service, log: &Path) -> Result<()> {
        let boot = node.boot_token()?;
        let again =
            self.started(node)?.is_some_and(|it| it.boot == boot && it.begun.contains(&service));
        if !again && log.exists() {
            fs::rename(log, log.with_extension("log.1"))
                .with_context(|| format!("renaming {}", log.display()))?;
        }
        Ok(())
    }

    fn ended(&self, node: &Node, service: Service) -> anyhow::Error {
        let log = self.service_log(node, service);
        anyhow!("{service} of node {} has ended; {}", node.name(), tail(&log))
    }

    /// Where a guest finds programs: the cache is there at the same path.
    #[must_use]
    pub fn node_path(&self) -> String {
        format!("{}:{}", self.tools.bin().display(), crate::programs::GUEST_PATH)
    }

    fn service_words(&self, node: &Node, service: Service) -> Vec<String> {
        let config = |name: &str| text(&self.paths.node(node.name()).join(name));
        let mut words = vec![text(&self.tools.program(service.name()))];
        words.extend(match service {
            Service::Containerd => vec!["--config".to_owned(), config("containerd.toml")],
            Service::Kubelet => vec![
                format!("--config={}", config("kubelet.json")),
                format!("--kubeconfig={}", text(&self.pki.kubeconfig(node.name()))),
                format!("--hostname-override={}", node.name()),
                format!("--node-ip={}", node.address()),
                "--root-dir=/var/lib/kubelet".to_owned(),
                "--v=2".to_owned(),
            ],
            Service::KubeProxy => vec![format!("--config={}", config("kube-proxy.json"))],
        });
        words
    }

    fn wait_for_containerd(&self, node: &Node) -> Result<()> {
        let start = Instant::now();
        // One call instead of one per look: a program's start is slow in a guest.
        let look =
            format!("for i in $(seq 50); do test -S {SOCKET} && exit 0; sleep 0.1; done; exit 1");
        loop {
            if node.exec(["busybox", "sh", "-c", &look]).run()?.status.success() {
                return Ok(());
            }
            if self.service_pid(node, Service::Containerd)?.is_none() {
                return Err(self.ended(node, Service::Containerd));
            }
            if start.elapsed() > SOCKET_TIMEOUT {
                let log = self.service_log(node, Service::Containerd);
                bail!(
                    "containerd of node {} takes no calls after {} s; {}",
                    node.name(),
                    SOCKET_TIMEOUT.as_secs(),
                    tail(&log)
                );
            }
        }
    }

    fn started(&self, node: &Node) -> Result<Option<Started>> {
        read_json(&self.paths.node(node.name()).join("services.json"))
    }

    fn remember(&self, node: &Node, change: impl FnOnce(&mut Started)) -> Result<()> {
        let boot = node.boot_token()?;
        let mut started = self.started(node)?.filter(|it| it.boot == boot).unwrap_or_default();
        started.boot = boot;
        change(&mut started);
        write_json(&self.paths.node(node.name()).join("services.json"), &started)
    }
}

/// The guest's time, as Kubernetes writes it.
fn now(node: &Node) -> Result<String> {
    node.exec(["date", "-u", "+%Y-%m-%dT%H:%M:%SZ"]).text()
}
