//! etcd, API server, controller manager and scheduler: their command lines and the order of their start. Nothing of them runs in a VM.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Cluster;
use super::daemon::Daemon;
use super::options::switches;
use super::paths::text;
use crate::netns::HOST;
use crate::pki::SERVICE;

/// Subnet of the Services.
const SERVICES: &str = "10.96.0.0/16";

/// Subnet of all nodes' pods.
pub(super) const PODS: &str = "10.89.0.0/16";

/// The API server needs some seconds; this is for machines that are loaded.
const READY_TIMEOUT: Duration = Duration::from_mins(2);

impl Cluster {
    /// Starts what does not run yet, and waits for the API server before those that need it.
    pub(super) fn start_control_plane(&self) -> Result<()> {
        let start = Instant::now();
        // Pods reach the API server's Service before their node's kube-proxy works.
        self.lab.net().add_address(&format!("{SERVICE}/32"))?;
        let [etcd, api, others @ ..] = self.daemons();
        etcd.ensure(self.lab.net())?;
        api.ensure(self.lab.net())?;
        self.wait_for_api(&[&etcd, &api])?;
        self.say(&format!("API server ready after {:.1} s", start.elapsed().as_secs_f32()));
        others.iter().try_for_each(|daemon| daemon.ensure(self.lab.net()))
    }

    /// Ends the API server at once: nobody reaches it until [`Cluster::start_api_server`].
    ///
    /// # Errors
    /// It survives.
    pub fn stop_api_server(&self) -> Result<()> {
        self.say("the API server goes away");
        let [_, api, ..] = self.daemons();
        api.stop()
    }

    /// Starts the API server, and what of the control plane ended without it, and waits for it.
    ///
    /// # Errors
    /// It does not become ready; the message has the end of its log.
    pub fn start_api_server(&self) -> Result<()> {
        self.start_control_plane()
    }

    fn wait_for_api(&self, daemons: &[&Daemon]) -> Result<()> {
        let start = Instant::now();
        loop {
            let ready = self.kubectl_within(&["get", "--raw", "/readyz"], Duration::from_secs(5));
            if ready.as_ref().is_ok_and(|output| output.status.success()) {
                return Ok(());
            }
            daemons.iter().try_for_each(|daemon| daemon.check())?;
            if start.elapsed() > READY_TIMEOUT {
                let why = match ready {
                    Ok(output) => output.stderr_text(),
                    Err(error) => format!("{error:#}"),
                };
                let tails: Vec<_> = daemons.iter().map(|daemon| daemon.tail()).collect();
                bail!(
                    "the API server is not ready after {} s: {why}\n{}",
                    READY_TIMEOUT.as_secs(),
                    tails.join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The control plane in the order of its start.
    pub(super) fn daemons(&self) -> [Daemon; 4] {
        [
            self.daemon("etcd", self.etcd()),
            self.daemon("kube-apiserver", self.api_server()),
            self.daemon("kube-controller-manager", self.controller_manager()),
            self.daemon("kube-scheduler", self.scheduler()),
        ]
    }

    fn daemon(&self, name: &'static str, arguments: Vec<String>) -> Daemon {
        Daemon {
            name,
            program: self.tools.program(name),
            arguments,
            log: self.paths.daemon_log(name),
            state: self.paths.daemon(name),
        }
    }

    fn etcd(&self) -> Vec<String> {
        vec![
            flag("data-dir", text(&self.paths.state.join("etcd"))),
            flag("listen-client-urls", "http://127.0.0.1:2379"),
            flag("advertise-client-urls", "http://127.0.0.1:2379"),
            flag("listen-peer-urls", "http://127.0.0.1:2380"),
            // A throwaway cluster on one machine gains nothing from waiting for the disk.
            flag("unsafe-no-fsync", "true"),
            flag("log-level", "warn"),
        ]
    }

    fn api_server(&self) -> Vec<String> {
        let file = |name: &str| text(&self.pki.file(name));
        let (certificate, key) = self.pki.kubelet_client();
        let mut arguments = vec![
            flag("etcd-servers", "http://127.0.0.1:2379"),
            flag("secure-port", "443"),
            flag("bind-address", "0.0.0.0"),
            flag("advertise-address", HOST),
            flag("service-cluster-ip-range", SERVICES),
            flag("tls-cert-file", file("apiserver.crt")),
            flag("tls-private-key-file", file("apiserver.key")),
            flag("client-ca-file", file("ca.crt")),
            flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            flag("service-account-key-file", file("service-account.pub")),
            flag("service-account-signing-key-file", file("service-account.key")),
            flag("authorization-mode", "Node,RBAC"),
            flag("enable-admission-plugins", "NodeRestriction"),
            flag("allow-privileged", "true"),
            flag("kubelet-client-certificate", text(&certificate)),
            flag("kubelet-client-key", text(&key)),
            flag("kubelet-certificate-authority", file("ca.crt")),
            // Nodes' names are in no DNS.
            flag("kubelet-preferred-address-types", "InternalIP"),
            flag("profiling", "false"),
        ];
        self.gates(&mut arguments);
        if !self.options.runtime_config.is_empty() {
            arguments.push(flag("runtime-config", switches(&self.options.runtime_config)));
        }
        arguments
    }

    fn controller_manager(&self) -> Vec<String> {
        let file = |name: &str| text(&self.pki.file(name));
        let mut arguments = self.client("controller-manager");
        arguments.extend([
            flag("service-account-private-key-file", file("service-account.key")),
            flag("root-ca-file", file("ca.crt")),
            flag("cluster-signing-cert-file", file("ca.crt")),
            flag("cluster-signing-key-file", file("ca.key")),
            flag("use-service-account-credentials", "true"),
            flag("cluster-cidr", PODS),
            // A node's subnet follows from its index.
            flag("allocate-node-cidrs", "false"),
        ]);
        arguments
    }

    fn scheduler(&self) -> Vec<String> {
        self.client("scheduler")
    }

    fn client(&self, name: &str) -> Vec<String> {
        let config = text(&self.pki.kubeconfig(name));
        let mut arguments = vec![
            flag("kubeconfig", &config),
            flag("authentication-kubeconfig", &config),
            flag("authorization-kubeconfig", &config),
            flag("bind-address", "127.0.0.1"),
            flag("leader-elect", "false"),
            flag("profiling", "false"),
        ];
        self.gates(&mut arguments);
        arguments
    }

    fn gates(&self, arguments: &mut Vec<String>) {
        if !self.options.feature_gates.is_empty() {
            arguments.push(flag("feature-gates", switches(&self.options.feature_gates)));
        }
    }
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}
