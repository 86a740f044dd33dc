//! Waiting until something is so, with an error that says why it is not. It changes nothing in the cluster.

use std::fmt;
use std::io::BufReader;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::Cluster;
use crate::exec::Output;

/// How soon is looked again, and how long after many looks: each is a process, and the nodes are on
/// the same processors.
const LOOK: Duration = Duration::from_millis(300);
const LOOK_LATER: Duration = Duration::from_millis(1500);

/// How often is looked at an object whose changes are told anyway: what is deleted before the watch
/// begins is never told.
const LOOK_BESIDE: Duration = Duration::from_secs(5);

/// Lines of events in an error message.
const EVENTS: usize = 30;

/// The name of one object in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    kind: String,
    name: String,
    namespace: Option<String>,
}

impl Object {
    /// An object of the cluster, or of the namespace `default`. The kind is as kubectl takes it;
    /// without a name it is all of them.
    #[must_use]
    pub fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned(), namespace: None }
    }

    /// Of another namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// The words with which kubectl finds it.
    fn words(&self) -> Vec<&str> {
        let mut words = vec![self.kind.as_str(), self.name.as_str()];
        words.retain(|word| !word.is_empty());
        if let Some(namespace) = &self.namespace {
            words.extend(["--namespace", namespace]);
        }
        words
    }
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.kind, self.name)?;
        self.namespace.iter().try_for_each(|it| write!(formatter, " in namespace {it}"))
    }
}

impl Cluster {
    /// Waits until `condition` holds for an object and returns the object. While there is no such
    /// object the condition gets null.
    ///
    /// `what` completes the sentence "… is not" in the error: `"ready"`, `"bound"`.
    ///
    /// # Errors
    /// The time is over; the message has the object's description and the namespace's last events.
    pub fn wait_for(
        &self,
        object: &Object,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&Value) -> bool,
    ) -> Result<Value> {
        let words = object.words();
        let mut watch = None;
        let waited = self.looking(&format!("{object} to be {what}"), timeout, |elapsed| {
            let told = match &mut watch {
                Some(Watch { events, .. }) => events.recv_timeout(LOOK_BESIDE),
                None => Err(RecvTimeoutError::Timeout),
            };
            let value = match told {
                Ok(value) => value,
                Err(RecvTimeoutError::Timeout) => self.find_json(&words)?,
                Err(RecvTimeoutError::Disconnected) => {
                    watch = None;
                    self.find_json(&words)?
                }
            };
            if condition(&value) {
                return Ok(Some(value));
            }
            if watch.is_none() && !object.name.is_empty() {
                watch = Some(self.watch(object)?);
            } else if watch.is_none() {
                sleep(pause(elapsed));
            }
            Ok(None)
        });
        waited.map_err(|error| anyhow!("{error:#}{}", self.explain(object)))
    }

    /// Waits until `look` finds something. An error of it counts as "not yet" and is told at the end.
    ///
    /// # Errors
    /// The time is over; `what` completes the sentence "waiting for …".
    pub fn eventually<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.looking(what, timeout, |elapsed| {
            let found = look();
            if !matches!(found, Ok(Some(_))) {
                sleep(pause(elapsed));
            }
            found
        })
    }

    /// Looks until something is found. The looks themselves pause.
    fn looking<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut(Duration) -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        let mut said = Duration::ZERO;
        loop {
            let last = match look(start.elapsed()) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => String::new(),
                Err(error) => {
                    sleep(LOOK);
                    format!("; the last look failed: {error:#}")
                }
            };
            let elapsed = start.elapsed();
            if elapsed > timeout {
                let seconds = timeout.as_secs_f32();
                return Err(anyhow!("waiting for {what} took more than {seconds} s{last}"));
            }
            if elapsed > said + Duration::from_secs(20) {
                said = elapsed;
                self.say(&format!("waiting for {what}, {} s", elapsed.as_secs()));
            }
        }
    }

    /// Begins to hear of an object's changes.
    fn watch(&self, object: &Object) -> Result<Watch> {
        let name = format!("--field-selector=metadata.name={}", object.name);
        let mut command = self.command("kubectl");
        command.args([
            "get",
            &object.kind,
            &name,
            "--watch",
            "--output-watch-events",
            "-o",
            "json",
        ]);
        if let Some(namespace) = &object.namespace {
            command.args(["--namespace", namespace]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut kubectl = self.spawn(&mut command)?;
        let output = kubectl.stdout.take().context("kubectl has no stdout")?;
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for event in
                serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Value>()
            {
                let Ok(mut event) = event else { return };
                let gone = event["type"] == "DELETED";
                let object = if gone { Value::Null } else { event["object"].take() };
                if sender.send(object).is_err() {
                    return;
                }
            }
        });
        Ok(Watch { kubectl, events })
    }

    /// Waits until a pod's containers are ready.
    ///
    /// # Errors
    /// As [`Cluster::wait_for`].
    pub fn wait_for_pod(&self, namespace: &str, name: &str, timeout: Duration) -> Result<Value> {
        let pod = Object::new("pod", name).in_namespace(namespace);
        self.wait_for(&pod, "ready", timeout, |pod| condition(pod, "Ready") == Some(true))
    }

    /// Waits until all replicas of a Deployment's newest version are available.
    ///
    /// # Errors
    /// As [`Cluster::wait_for`].
    pub fn wait_for_deployment(
        &self,
        namespace: &str,
        name: &str,
        timeout: Duration,
    ) -> Result<Value> {
        let deployment = Object::new("deployment", name).in_namespace(namespace);
        self.wait_for(&deployment, "available", timeout, is_available)
    }

    /// What kubectl says about an object, and the namespace's events and pods; as text for an error.
    #[must_use]
    pub fn explain(&self, object: &Object) -> String {
        let timeout = Duration::from_secs(20);
        let run = |words: &[&str]| self.kubectl_within(words, timeout);
        let mut words = vec!["describe"];
        words.extend(object.words());
        let mut text = section("describe", run(&words), usize::MAX);
        let namespace = object.namespace.as_deref().unwrap_or("default");
        let events = ["get", "events", "--namespace", namespace, "--sort-by", ".lastTimestamp"];
        text += &section("events", run(&events), EVENTS);
        let pods = ["get", "pods", "--all-namespaces", "-o", "wide"];
        text += &section("pods", run(&pods), usize::MAX);
        text
    }
}

/// The changes of one object, from a kubectl that runs until this is dropped; null when it is
/// deleted.
struct Watch {
    kubectl: Child,
    events: Receiver<Value>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.kubectl.kill());
        drop(self.kubectl.wait());
    }
}

/// How long to wait for the next look, after so long a time.
fn pause(elapsed: Duration) -> Duration {
    (elapsed / 8).clamp(LOOK, LOOK_LATER)
}

fn section(name: &str, output: Result<Output>, last: usize) -> String {
    let text = match output {
        Ok(output) if output.status.success() => output.stdout_text(),
        Ok(output) => output.stderr_text(),
        Err(error) => format!("{error:#}"),
    };
    let lines: Vec<_> = text.lines().collect();
    let lines = lines[lines.len().saturating_sub(last)..].join("\n  ");
    format!("\n{name}:\n  {lines}")
}

/// The status of one of an object's conditions; none when it is neither true nor false.
#[must_use]
pub fn condition(object: &Value, kind: &str) -> Option<bool> {
    let all = object["status"]["conditions"].as_array()?;
    match all.iter().find(|it| it["type"] == kind)?["status"].as_str()? {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

fn is_available(deployment: &Value) -> bool {
    let wanted = deployment["spec"]["replicas"].as_u64();
    let (meta, status) = (&deployment["metadata"], &deployment["status"]);
    wanted.is_some()
        && status["observedGeneration"] == meta["generation"]
        && ["updatedReplicas", "availableReplicas", "replicas"]
            .iter()
            .all(|count| status[count].as_u64().unwrap_or(0) == wanted.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_have_words_and_a_name() {
        let object = Object::new("pod", "web").in_namespace("t");
        assert_eq!(object.words(), ["pod", "web", "--namespace", "t"]);
        assert_eq!(object.to_string(), "pod web in namespace t");
    }

    #[test]
    fn conditions_and_deployments() {
        let node = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Full", "status": "Unknown"},
        ]}});
        assert_eq!(condition(&node, "Ready"), Some(true));
        assert_eq!(condition(&node, "Full"), None);
        assert_eq!(condition(&Value::Null, "Ready"), None);
        let mut deployment = json!({
            "metadata": {"generation": 2}, "spec": {"replicas": 1},
            "status": {"observedGeneration": 2, "updatedReplicas": 1, "availableReplicas": 1,
                       "replicas": 1},
        });
        assert!(is_available(&deployment));
        deployment["status"]["replicas"] = json!(2);
        assert!(!is_available(&deployment));
        assert!(!is_available(&Value::Null));
    }
}
