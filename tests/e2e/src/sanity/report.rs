//! csi-sanity's report as its test framework (Ginkgo) writes it: what passed, what failed, what was left out and why.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::libtest::Counts;

/// How a run of csi-sanity went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Cases that passed.
    pub passed: usize,
    /// Names of the cases that failed.
    pub failed: Vec<String>,
    /// Why csi-sanity itself left cases out, and how many each: capabilities that are not offered.
    pub left_out: BTreeMap<String, usize>,
    /// Cases that csi-sanity's authors have turned off.
    pub turned_off: usize,
    /// Cases that were not asked for.
    pub not_asked: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    state: String,
    leaf_node_type: String,
    leaf_node_text: String,
    container_hierarchy_texts: Option<Vec<String>>,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Report {
    /// Reads the JSON that `-ginkgo.json-report` writes.
    pub(super) fn parse(json: &[u8]) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(json).context("csi-sanity's report")?;
        let mut report = Self::default();
        for spec in suites.into_iter().flat_map(|it| it.spec_reports.unwrap_or_default()) {
            report.add(&spec);
        }
        Ok(report)
    }

    fn add(&mut self, spec: &Spec) {
        let is_case = spec.leaf_node_type == "It";
        let why = spec.failure.as_ref().map_or("", |it| it.message.as_str());
        match spec.state.as_str() {
            // What is made ready before all cases is no case; when it fails, all have.
            "passed" if !is_case => {}
            "passed" => self.passed += 1,
            "pending" => self.turned_off += 1,
            "skipped" if why.is_empty() => self.not_asked.push(spec.name()),
            "skipped" => *self.left_out.entry(reason(why)).or_default() += 1,
            _ => self.failed.push(spec.name()),
        }
    }

    /// Its numbers; what was left out is in none of them.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { passed: self.passed, failed: self.failed.len(), skipped: 0 }
    }
}

impl Spec {
    fn name(&self) -> String {
        let containers = self.container_hierarchy_texts.iter().flatten();
        let words: Vec<_> = containers.chain([&self.leaf_node_text]).map(String::as_str).collect();
        words.join(" ")
    }
}

/// A reason in one line.
fn reason(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim_end_matches([',', '.']).to_owned()
}

/// What csi-sanity itself leaves out, in one line; empty when it was nothing.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number: usize = self.left_out.values().sum();
        if number > 0 {
            let reasons: Vec<_> =
                self.left_out.iter().map(|(why, many)| format!("{why} ({many})")).collect();
            write!(formatter, "csi-sanity leaves out {number} cases: {}", reasons.join(", "))?;
        }
        if self.turned_off > 0 {
            let before = if number > 0 { "; " } else { "" };
            write!(formatter, "{before}{} turned off by its authors", self.turned_off)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_counts_where_it_should() {
        let spec = |state: &str, kind: &str, text: &str, why: &str| {
            format!(
                r#"{{"State":"{state}","LeafNodeType":"{kind}","LeafNodeText":"{text}",
                "ContainerHierarchyTexts":["Node"],"Failure":{{"Message":"{why}"}}}}"#
            )
        };
        let specs = [
            spec("passed", "It", "a", ""),
            spec("passed", "BeforeSuite", "", ""),
            spec("failed", "It", "b", "no"),
            spec("panicked", "It", "c", "no"),
            spec("skipped", "It", "d", ""),
            spec("skipped", "It", "e", "NodeX not supported"),
            spec("skipped", "It", "f", "NodeX not supported,\\nreally"),
            spec("pending", "It", "g", ""),
        ];
        let json = format!(r#"[{{"SpecReports":[{}]}}]"#, specs.join(","));
        let report = Report::parse(json.as_bytes()).unwrap();
        assert_eq!((report.passed, report.turned_off), (1, 1));
        assert_eq!(report.failed, ["Node b", "Node c"]);
        assert_eq!(report.not_asked, ["Node d"]);
        let line =
            "csi-sanity leaves out 2 cases: NodeX not supported (2); 1 turned off by its authors";
        assert_eq!(report.to_string(), line);
        assert_eq!(report.counts(), Counts { passed: 1, failed: 2, skipped: 0 });
        Report::parse(b"{").unwrap_err();
        assert_eq!(Report::parse(b"[{}]").unwrap().to_string(), "");
    }
}
