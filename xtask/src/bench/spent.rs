//! The time that the driver says it spent: in calls, and in the programs that it ran. What took it is elsewhere.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;
use cinderblock_lab::install::NAMESPACE;
use serde_json::{Value, json};

/// The two histograms, and the label that tells what took the time.
const SUMS: [(&str, &str); 2] = [
    ("csi_plugin_operations_seconds_sum{", "method_name"),
    ("cinderblock_program_seconds_sum{", "program"),
];

/// Seconds since the driver's start, by call and by program.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spent(BTreeMap<String, f64>);

impl Spent {
    /// What all pods of the driver say together. A call counts where CSI has it: at the controller, or at the node.
    pub(super) fn read(cluster: &Cluster) -> Result<Self> {
        let mut spent = Self::default();
        for component in ["controller", "node"] {
            for text in metrics(cluster, component)? {
                spent.add(&text);
            }
        }
        Ok(spent)
    }

    fn add(&mut self, metrics: &str) {
        for line in metrics.lines() {
            let told = SUMS.iter().find_map(|(begins, label)| {
                let labels = line.strip_prefix(begins)?;
                let (_, value) = labels.split_once(&format!("{label}=\""))?;
                let name = value.split('"').next()?.rsplit('/').next()?;
                let seconds: f64 = line.rsplit(' ').next()?.parse().ok()?;
                Some((name.to_owned(), seconds))
            });
            if let Some((name, seconds)) = told {
                *self.0.entry(name).or_default() += seconds;
            }
        }
    }

    /// Milliseconds since then for each of so many, without what took none.
    pub(super) fn since(&self, before: &Self, count: usize) -> Value {
        let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let each = self.0.iter().filter_map(|(name, seconds)| {
            let seconds = seconds - before.0.get(name).copied().unwrap_or_default();
            let milliseconds = (seconds / count * 10_000.0).round() / 10.0;
            (milliseconds > 0.0).then(|| (name.clone(), json!(milliseconds)))
        });
        Value::Object(each.collect())
    }
}

/// The metrics of each pod of this part of the driver.
pub(super) fn metrics(cluster: &Cluster, component: &str) -> Result<Vec<String>> {
    let label = format!("app.kubernetes.io/component={component}");
    let pods = cluster.get_json(&["pods", "--namespace", NAMESPACE, "-l", &label])?;
    let mut all = Vec::new();
    for pod in pods["items"].as_array().context("no list of pods")? {
        let name = pod["metadata"]["name"].as_str().context("a pod has no name")?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:9808/proxy/metrics");
        let text = cluster.kubectl_text(&["get", "--raw", &path])?;
        ensure!(text.contains("csi_plugin_operations_seconds"), "{name} tells no metrics");
        all.push(text);
    }
    ensure!(!all.is_empty(), "the driver has no pod of its {component}");
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_told_by_call_and_program() {
        let mut before = Spent::default();
        before.add("csi_plugin_operations_seconds_sum{driver_name=\"d\",grpc_status_code=\"OK\",method_name=\"/csi.v1.Controller/CreateVolume\"} 0.5\n");
        let mut after = before.clone();
        after.add("csi_plugin_operations_seconds_sum{method_name=\"/csi.v1.Controller/CreateVolume\"} 0.25\n# EOF\ncinderblock_program_seconds_sum{program=\"lvm lvcreate\",outcome=\"ok\"} 0.2\n");
        let told = after.since(&before, 2);
        assert_eq!(told, json!({ "CreateVolume": 125.0, "lvm lvcreate": 100.0 }));
        assert_eq!(after.since(&after, 1), json!({}));
    }
}
