//! What no object of the cluster knows, as gauges.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use super::float;
use crate::domain::OrphansSeen;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct Labels {
    node: String,
    volume_group: String,
    kind: String,
}

type Read = fn(&(u64, u64)) -> u64;

pub(super) struct Orphans(Box<dyn Fn() -> OrphansSeen + Send + Sync>);

impl Orphans {
    pub(super) fn new(read: impl Fn() -> OrphansSeen + Send + Sync + 'static) -> Self {
        Self(Box::new(read))
    }
}

impl Debug for Orphans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orphans").finish_non_exhaustive()
    }
}

impl Collector for Orphans {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let seen = (self.0)();
        let mut sums = BTreeMap::<Labels, (u64, u64)>::new();
        for orphan in &seen.orphans {
            let labels = Labels {
                node: orphan.node.to_string(),
                volume_group: orphan.volume_group.to_string(),
                kind: orphan.what.to_string(),
            };
            let (count, bytes) = sums.entry(labels).or_default();
            *count = count.saturating_add(1);
            *bytes = bytes.saturating_add(orphan.size.get());
        }
        let rows: [(&str, &str, Read); 2] = [
            (
                "cinderblock_orphans",
                "Volumes and snapshots that no object of the cluster knows",
                |(count, _)| *count,
            ),
            ("cinderblock_orphan_bytes", "Their sizes", |(_, bytes)| *bytes),
        ];
        for (name, help, read) in rows {
            let gauge = ConstGauge::<f64>::new(0.0);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (labels, sum) in &sums {
                ConstGauge::new(float(read(sum))).encode(metric.encode_family(labels)?)?;
            }
        }
        let Some(looked) = seen.looked else { return Ok(()) };
        let gauge = ConstGauge::<f64>::new(looked.as_secs_f64());
        let metric = encoder.encode_descriptor(
            "cinderblock_orphans_looked_seconds_ago",
            "Time since the cluster was last asked with success what it knows",
            None,
            gauge.metric_type(),
        )?;
        gauge.encode(metric)
    }
}
