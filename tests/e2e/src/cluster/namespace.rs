//! A Kubernetes namespace for one test, gone with it. It knows nothing about what the test puts there.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Cluster;
use super::wait::Object;
use crate::exec::Output;

/// How long the namespace of a test may take to appear, or to go with all that is in it.
const TIMEOUT: Duration = Duration::from_mins(5);

/// A namespace of one test. When it is dropped it is deleted without waiting for the end of that;
/// after a panic its pods and events are shown first.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
    deleted: bool,
}

impl Cluster {
    /// Makes a namespace whose name begins with `prefix`, ready to take pods.
    ///
    /// # Errors
    /// The API server refuses it, or it does not become ready.
    pub fn namespace(&self, prefix: &str) -> Result<Namespace<'_>> {
        let unique = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
            .context("making a name")?
            .replace('-', "");
        let name = format!("{prefix}-{}", &unique[..6]);
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                // A storage driver's pods are privileged.
                "labels": { "pod-security.kubernetes.io/enforce": "privileged" },
            },
        });
        self.create_json(&namespace)?;
        let namespace = Namespace { cluster: self, name, deleted: false };
        // No pod is taken before.
        let account = Object::new("serviceaccount", "default").in_namespace(&namespace.name);
        self.wait_for(&account, "there", TIMEOUT, |it| !it.is_null())?;
        Ok(namespace)
    }
}

impl Namespace<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster that it is in.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    /// An object in it.
    #[must_use]
    pub fn object(&self, kind: &str, name: &str) -> Object {
        Object::new(kind, name).in_namespace(&self.name)
    }

    /// Runs kubectl in it. Any exit code is a good answer.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        self.cluster.kubectl(&self.words(arguments))
    }

    /// Runs kubectl in it and returns its stdout.
    ///
    /// # Errors
    /// As [`Cluster::kubectl_text`].
    pub fn kubectl_text(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl_text(&self.words(arguments))
    }

    /// Creates or changes objects in it.
    ///
    /// # Errors
    /// As [`Cluster::apply`].
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let words = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.cluster.with_manifest(&self.words(&words), yaml)
    }

    /// `kubectl get <arguments> -o json` in it.
    ///
    /// # Errors
    /// As [`Cluster::get_json`].
    pub fn get_json(&self, arguments: &[&str]) -> Result<Value> {
        self.cluster.get_json(&[&["--namespace", &self.name], arguments].concat())
    }

    /// Runs a program in a pod and returns its stdout.
    ///
    /// # Errors
    /// As [`Cluster::kubectl_text`]: also when the program fails.
    pub fn exec(&self, pod: &str, argv: &[&str]) -> Result<String> {
        self.kubectl_text(&[&["exec", pod, "--"], argv].concat())
    }

    /// Waits until a pod's containers are ready.
    ///
    /// # Errors
    /// As [`Cluster::wait_for`].
    pub fn wait_for_pod(&self, name: &str, timeout: Duration) -> Result<Value> {
        self.cluster.wait_for_pod(&self.name, name, timeout)
    }

    /// Deletes it and waits until everything in it is gone.
    ///
    /// # Errors
    /// Something stays; the message says what.
    pub fn delete(mut self) -> Result<()> {
        self.deleted = true;
        self.start_deletion()?;
        let own = Object::new("namespace", &self.name).in_namespace(&self.name);
        self.cluster.wait_for(&own, "gone", TIMEOUT, Value::is_null).map(drop)
    }

    fn start_deletion(&self) -> Result<()> {
        let words = ["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"];
        self.cluster.kubectl_text(&words).map(drop)
    }

    fn words<'b>(&'b self, arguments: &[&'b str]) -> Vec<&'b str> {
        ["--namespace", &self.name].iter().chain(arguments).copied().collect()
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if self.deleted {
            return;
        }
        if std::thread::panicking() {
            let all = Object::new("pods", "").in_namespace(&self.name);
            self.cluster.say(&self.cluster.explain(&all));
        }
        if let Err(error) = self.start_deletion() {
            self.cluster.say(&format!("{error:#}"));
        }
    }
}
