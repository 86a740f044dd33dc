//! Objects of a cluster watched until they are in a phase, with the time that each took. What is done with them is elsewhere.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cinderblock_lab::Cluster;

use super::samples::Samples;

/// For the next thing that happens.
const PATIENCE: Duration = Duration::from_mins(5);

/// The phases of objects of one kind, as the API server tells them while they change.
pub(super) struct Watch {
    kubectl: Child,
    lines: Receiver<(Instant, String)>,
    /// When each was first seen.
    seen: BTreeMap<String, Instant>,
}

impl Watch {
    pub(super) fn start(cluster: &Cluster, kind: &str) -> Result<Self> {
        let columns = "-o=custom-columns=N:.metadata.name,P:.status.phase";
        let mut command = cluster.command("kubectl");
        command.args(["get", kind, "--watch", "--no-headers", columns]).stdout(Stdio::piped());
        let mut kubectl = cluster.spawn(&mut command)?;
        let output = kubectl.stdout.take().context("kubectl has no stdout")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { kubectl, lines, seen: BTreeMap::new() })
    }

    /// Waits until all of these are in a phase: the time from the first that was seen to the last
    /// that came so far, and that of each.
    pub(super) fn until(&mut self, wanted: &str, names: &[String]) -> Result<(Duration, Samples)> {
        let mut each = BTreeMap::new();
        while each.len() < names.len() {
            let Ok((now, line)) = self.lines.recv_timeout(PATIENCE) else {
                bail!(
                    "of {} objects {} are {wanted}, and nothing happens",
                    names.len(),
                    each.len()
                );
            };
            let mut words = line.split_whitespace();
            let (Some(name), Some(phase)) = (words.next(), words.next()) else { continue };
            let first = *self.seen.entry(name.to_owned()).or_insert(now);
            if phase == wanted && names.iter().any(|it| it == name) {
                each.entry(name.to_owned()).or_insert((first, now));
            }
        }
        let first = each.values().map(|(first, _)| *first).min().context("no object")?;
        let last = each.values().map(|(_, last)| *last).max().context("no object")?;
        let times = each.values().map(|(first, last)| last.duration_since(*first)).collect();
        Ok((last.duration_since(first), times))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It runs until it is told.
        drop(self.kubectl.kill());
        drop(self.kubectl.wait());
    }
}
