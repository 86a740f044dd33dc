//! Talking to the cluster through kubectl, on the host inside the lab's network namespace. Waiting for something is in `wait`.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::Cluster;
use crate::exec::Output;
use crate::run_within;

/// For a call that sets no timeout of its own.
pub const KUBECTL_TIMEOUT: Duration = Duration::from_mins(2);

impl Cluster {
    /// The administrator's kubeconfig; its server is reachable inside the lab's namespace only.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki.kubeconfig("admin")
    }

    /// A command with KUBECONFIG set and the lab's tools first in PATH. Start it with
    /// [`Cluster::spawn`].
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let own = self.tools.program(program);
        let mut command = Command::new(if own.exists() { own } else { PathBuf::from(program) });
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.tools.bin()).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.paths.state.join("kubectl-cache"));
        command
    }

    /// Starts a command on the host inside the lab's network namespace, where it reaches the API
    /// server, nodes, Services and pods.
    ///
    /// # Errors
    /// The lab is not up, or there is no such program.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let name = command.get_program().display().to_string();
        self.lab.net().inside(|| command.spawn())?.with_context(|| format!("starting {name}"))
    }

    /// Runs kubectl. Any exit code is a good answer.
    ///
    /// # Errors
    /// The lab is not up, or kubectl does not end within [`KUBECTL_TIMEOUT`].
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        self.kubectl_within(arguments, KUBECTL_TIMEOUT)
    }

    /// As [`Cluster::kubectl`], with another timeout.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_within(&self, arguments: &[&str], timeout: Duration) -> Result<Output> {
        self.kubectl_with(arguments, &[], timeout)
    }

    /// As [`Cluster::kubectl`], with something to read on stdin.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`].
    pub fn kubectl_with(
        &self,
        arguments: &[&str],
        stdin: &[u8],
        timeout: Duration,
    ) -> Result<Output> {
        let mut command = self.command("kubectl");
        command.args(arguments);
        run_within::run(&mut command, stdin, timeout, |command| self.spawn(command))
            .with_context(|| format!("`kubectl {}`", arguments.join(" ")))
    }

    /// Runs kubectl and returns its stdout, without the newline at the end.
    ///
    /// # Errors
    /// As [`Cluster::kubectl`], and anything but exit code 0; the message has its stderr.
    pub fn kubectl_text(&self, arguments: &[&str]) -> Result<String> {
        succeeded(arguments, &self.kubectl(arguments)?)
    }

    /// Creates or changes objects; several are separated by `---`.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.with_manifest(&["apply", "--server-side", "--force-conflicts", "-f", "-"], yaml)
    }

    /// Deletes objects and waits until they are gone; fine when they are not there.
    ///
    /// # Errors
    /// The API server refuses one, or one stays.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.with_manifest(&["delete", "--ignore-not-found", "-f", "-"], yaml)
    }

    pub(super) fn with_manifest(&self, arguments: &[&str], yaml: &str) -> Result<()> {
        let output = self.kubectl_with(arguments, yaml.as_bytes(), KUBECTL_TIMEOUT)?;
        succeeded(arguments, &output).map(drop)
    }

    /// `kubectl get <arguments> -o json`.
    ///
    /// # Errors
    /// As [`Cluster::kubectl_text`]: also when there is no such object.
    pub fn get_json(&self, arguments: &[&str]) -> Result<Value> {
        let words: Vec<_> =
            ["get"].iter().chain(arguments).chain(&["-o", "json"]).copied().collect();
        let text = self.kubectl_text(&words)?;
        serde_json::from_str(&text).with_context(|| format!("`kubectl {}`", words.join(" ")))
    }

    /// As [`Cluster::get_json`]; null when there is no such object.
    ///
    /// # Errors
    /// As [`Cluster::kubectl_text`].
    pub fn find_json(&self, arguments: &[&str]) -> Result<Value> {
        let more = ["--ignore-not-found", "-o", "json"];
        let words: Vec<_> = ["get"].iter().chain(arguments).chain(&more).copied().collect();
        let text = self.kubectl_text(&words)?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(|| format!("`kubectl {}`", words.join(" ")))
    }

    /// Creates an object that is an answer by itself, such as a `TokenReview`, and returns it.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn create_json(&self, object: &Value) -> Result<Value> {
        let arguments = ["create", "-o", "json", "-f", "-"];
        let output =
            self.kubectl_with(&arguments, object.to_string().as_bytes(), KUBECTL_TIMEOUT)?;
        let text = succeeded(&arguments, &output)?;
        serde_json::from_str(&text).map_err(|error| anyhow!("the answer is no JSON: {error}"))
    }
}

fn succeeded(arguments: &[&str], output: &Output) -> Result<String> {
    if !output.status.success() {
        let line = arguments.join(" ");
        bail!("`kubectl {line}`: {}; stderr: {}", output.status, output.stderr_text());
    }
    Ok(output.stdout_text())
}
