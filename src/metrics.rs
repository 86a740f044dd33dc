//! Metrics: what is counted, and how it is written out. Gauges of backends and nodes are read from
//! the inventory when they are asked for, so that none outlives its object.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::domain::{BackendState, Inventory, OrphansSeen};
use crate::host::cow_status::CowStatus;
use crate::host::raid_status::RaidStatus;
use crate::names::Handle;

/// Seconds: a call answered from memory, LVM at its usual pace, LVM on a bad day.
const BUCKETS: [f64; 12] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

mod orphans;

/// All metrics of the process. Clones are one.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    rpc: RpcMetrics,
    programs: ProgramMetrics,
    api: ApiMetrics,
}

/// Calls of our services.
#[derive(Clone, Debug)]
pub struct RpcMetrics {
    seconds: Family<RpcLabels, Histogram>,
    driver_name: Arc<str>,
}

/// Programs that were run.
#[derive(Clone, Debug)]
pub struct ProgramMetrics {
    seconds: Family<ProgramLabels, Histogram>,
}

/// Requests to the Kubernetes API.
#[derive(Clone, Debug, Default)]
pub struct ApiMetrics {
    requests: Family<ApiLabels, Counter>,
}

// The names are those of csi-lib-utils, so that dashboards made for other drivers fit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    driver_name: String,
    method_name: &'static str,
    grpc_status_code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProgramLabels {
    program: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabels {
    verb: &'static str,
    resource: &'static str,
}

impl Metrics {
    /// Metrics of a driver of that name.
    #[must_use]
    pub fn new(driver_name: &str) -> Self {
        let histogram = || Histogram::new(BUCKETS);
        let rpc = RpcMetrics {
            seconds: Family::new_with_constructor(histogram),
            driver_name: driver_name.into(),
        };
        let programs = ProgramMetrics { seconds: Family::new_with_constructor(histogram) };
        let mut registry = Registry::default();
        registry.register_with_unit(
            "csi_plugin_operations",
            "Time that a CSI call took",
            Unit::Seconds,
            rpc.seconds.clone(),
        );
        registry.register_with_unit(
            "cinderblock_program",
            "Time that a program (lvm, mkfs, ...) ran",
            Unit::Seconds,
            programs.seconds.clone(),
        );
        let api = ApiMetrics::default();
        registry.register(
            "cinderblock_kubernetes_requests",
            "Requests to the Kubernetes API, by verb and resource as RBAC names them",
            api.requests.clone(),
        );
        Self { registry: Arc::new(Mutex::new(registry)), rpc, programs, api }
    }

    /// Where calls are counted.
    #[must_use]
    pub fn rpc(&self) -> RpcMetrics {
        self.rpc.clone()
    }

    /// Where programs are counted.
    #[must_use]
    pub fn programs(&self) -> ProgramMetrics {
        self.programs.clone()
    }

    /// Where requests to the Kubernetes API are counted.
    #[must_use]
    pub fn api(&self) -> ApiMetrics {
        self.api.clone()
    }

    /// Shows the backends of an inventory.
    pub fn show_inventory(&self, inventory: watch::Receiver<Arc<Inventory>>) {
        self.lock().register_collector(Box::new(Backends(inventory)));
    }

    /// Shows how RAID volumes are.
    pub fn show_raid(&self, volumes: watch::Receiver<Arc<BTreeMap<Handle, RaidStatus>>>) {
        self.lock().register_collector(Box::new(Raid(volumes)));
    }

    /// Shows how full thick snapshots are.
    pub fn show_thick_snapshots(&self, all: watch::Receiver<Arc<BTreeMap<Handle, CowStatus>>>) {
        self.lock().register_collector(Box::new(ThickSnapshots(all)));
    }

    /// Shows what no object of the cluster knows.
    pub fn show_orphans(&self, read: impl Fn() -> OrphansSeen + Send + Sync + 'static) {
        self.lock().register_collector(Box::new(orphans::Orphans::new(read)));
    }

    /// Shows one number that is read when it is asked for.
    pub fn show(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.lock().register_collector(Box::new(Number { name, help, read: Box::new(read) }));
    }

    /// All metrics, as `OpenMetrics` text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        if text::encode(&mut out, &self.lock()).is_err() {
            out.clear();
        }
        out
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl RpcMetrics {
    /// Counts a call.
    pub fn observe(
        &self,
        method_name: &'static str,
        grpc_status_code: &'static str,
        took: Duration,
    ) {
        let driver_name = self.driver_name.to_string();
        let labels = RpcLabels { driver_name, method_name, grpc_status_code };
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

impl ProgramMetrics {
    /// Counts a program that ran.
    pub fn observe(&self, program: String, outcome: &'static str, took: Duration) {
        let labels = ProgramLabels { program, outcome };
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

impl ApiMetrics {
    /// Counts a request.
    pub fn count(&self, verb: &'static str, resource: &'static str) {
        self.requests.get_or_create(&ApiLabels { verb, resource }).inc();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    backend: String,
    volume_group: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TroubleLabels {
    reason: &'static str,
}

#[derive(Debug)]
struct Backends(watch::Receiver<Arc<Inventory>>);

impl Collector for Backends {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Read = fn(&BackendState) -> Option<f64>;
        let rows: [(&str, &str, Read); 10] = [
            (
                "cinderblock_backend_ready",
                "Whether the backend takes volumes (1) or not (0)",
                |s| Some(flag(capacity(s).is_some() && pool(s).is_none_or(|p| p.healthy))),
            ),
            ("cinderblock_volume_group_size_bytes", "Size of the volume group", |s| {
                capacity(s).map(|c| float(c.vg_size.get()))
            }),
            ("cinderblock_volume_group_free_bytes", "Free extents of the volume group", |s| {
                let free = |c: &crate::domain::BackendCapacity| {
                    let extents: u64 = c.free_runs.iter().flatten().sum();
                    float(extents.saturating_mul(c.extent_size.bytes().get()))
                };
                capacity(s).map(free)
            }),
            ("cinderblock_thin_pool_size_bytes", "Room for data in the thin pool", |s| {
                pool(s).map(|p| float(p.size.get()))
            }),
            (
                "cinderblock_thin_pool_promised_bytes",
                "Sizes of all thin volumes and snapshots",
                |s| pool(s).map(|p| float(p.promised.get())),
            ),
            ("cinderblock_thin_pool_data_used_ratio", "Part of the pool's data in use", |s| {
                pool(s).filter(|p| !p.failed()).map(|p| float(p.data_used_bp) / 10_000.0)
            }),
            (
                "cinderblock_thin_pool_metadata_used_ratio",
                "Part of the pool's metadata in use",
                |s| pool(s).filter(|p| !p.failed()).map(|p| float(p.metadata_used_bp) / 10_000.0),
            ),
            (
                "cinderblock_thin_pool_healthy",
                "Whether the pool takes writes (1) or not (0)",
                |s| pool(s).map(|p| flag(p.healthy)),
            ),
            (
                "cinderblock_thin_pool_growth_blocked",
                "Whether the pool should grow and cannot (1)",
                |s| pool(s).map(|p| flag(p.stuck)),
            ),
            (
                "cinderblock_thin_pool_queues_when_full",
                "Whether the pool will hold writes back when it is full (1) instead of failing them (0)",
                |s| pool(s).map(|p| flag(p.queues)),
            ),
        ];
        let inventory = Arc::clone(&self.0.borrow());
        for (name, help, read) in rows {
            let gauge = ConstGauge::<f64>::new(0.0);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (backend, status) in &inventory.backends {
                let Some(value) = read(&status.state) else { continue };
                let labels = BackendLabels {
                    backend: backend.to_string(),
                    volume_group: status.volume_group.to_string(),
                };
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        let mut troubles = BTreeMap::<_, u64>::new();
        for (_, reason) in inventory.troubles.keys() {
            let count = troubles.entry(reason.as_str()).or_default();
            *count = count.saturating_add(1);
        }
        let gauge = ConstGauge::<u64>::new(0);
        let mut metric = encoder.encode_descriptor(
            "cinderblock_troubles",
            "What is wrong now, by the reason of its event",
            None,
            gauge.metric_type(),
        )?;
        for (reason, count) in troubles {
            ConstGauge::new(count).encode(metric.encode_family(&TroubleLabels { reason })?)?;
        }
        for (name, help, value) in [
            ("cinderblock_volumes", "Volumes on this node", inventory.volumes.len()),
            ("cinderblock_snapshots", "Snapshots on this node", inventory.snapshots.len()),
        ] {
            let gauge = ConstGauge::new(u64::try_from(value).unwrap_or(u64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RaidLabels {
    volume_group_uuid: String,
    volume: String,
}

#[derive(Debug)]
struct Raid(watch::Receiver<Arc<BTreeMap<Handle, RaidStatus>>>);

impl Collector for Raid {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Read = fn(&RaidStatus) -> f64;
        let rows: [(&str, &str, Read); 3] = [
            ("cinderblock_raid_legs", "Legs of the RAID volume", |s| f64::from(s.legs)),
            (
                "cinderblock_raid_legs_failed",
                "Legs of the RAID volume that are lost: failed, or on a disk that is missing",
                |s| f64::from(s.failed),
            ),
            ("cinderblock_raid_in_step_ratio", "Part of the RAID volume that is in step", |s| {
                float(s.in_step.0) / float(s.in_step.1.max(1))
            }),
        ];
        let volumes = Arc::clone(&self.0.borrow());
        for (name, help, read) in rows {
            let gauge = ConstGauge::<f64>::new(0.0);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (volume, status) in volumes.iter() {
                let labels = RaidLabels {
                    volume_group_uuid: volume.vg.to_string(),
                    volume: volume.lv.to_string(),
                };
                ConstGauge::new(read(status)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SnapshotLabels {
    volume_group_uuid: String,
    snapshot: String,
}

#[derive(Debug)]
struct ThickSnapshots(watch::Receiver<Arc<BTreeMap<Handle, CowStatus>>>);

impl Collector for ThickSnapshots {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let snapshots = Arc::clone(&self.0.borrow());
        let gauge = ConstGauge::<f64>::new(0.0);
        let mut metric = encoder.encode_descriptor(
            "cinderblock_thick_snapshot_used_ratio",
            "Part of the thick snapshot's room that is in use; 1 when it is lost",
            None,
            gauge.metric_type(),
        )?;
        for (snapshot, status) in snapshots.iter() {
            let labels = SnapshotLabels {
                volume_group_uuid: snapshot.vg.to_string(),
                snapshot: snapshot.lv.to_string(),
            };
            let ratio = f64::from(status.used_bp()) / 10_000.0;
            ConstGauge::new(ratio).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn capacity(state: &BackendState) -> Option<&crate::domain::BackendCapacity> {
    match state {
        BackendState::Ready { capacity, .. } => Some(capacity),
        BackendState::Unusable(_) | BackendState::Unknown(_) => None,
    }
}

fn pool(state: &BackendState) -> Option<&crate::domain::PoolCapacity> {
    capacity(state)?.pool.as_ref()
}

const fn flag(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

#[allow(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a gauge: sizes beyond 2^53 bytes lose their last bytes"
)]
fn float(n: u64) -> f64 {
    n as f64
}

struct Number {
    name: &'static str,
    help: &'static str,
    read: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Number").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Collector for Number {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new((self.read)());
        let metric = encoder.encode_descriptor(self.name, self.help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_shows() {
        let metrics = Metrics::new("lvm.example");
        metrics.rpc().observe("/csi.v1.Node/NodeGetInfo", "OK", Duration::from_millis(3));
        metrics.programs().observe("lvm lvcreate".to_owned(), "ok", Duration::from_millis(300));
        metrics.api().count("create", "tokenreviews");
        metrics.show("cinderblock_nodes_connected", "Nodes", || 7);
        let inventory = watch::Sender::new(Arc::new(Inventory::default()));
        metrics.show_inventory(inventory.subscribe());
        let text = metrics.text();
        for line in [
            "csi_plugin_operations_seconds_count{driver_name=\"lvm.example\",method_name=\"/csi.v1.Node/NodeGetInfo\",grpc_status_code=\"OK\"} 1",
            "cinderblock_program_seconds_count{program=\"lvm lvcreate\",outcome=\"ok\"} 1",
            "cinderblock_kubernetes_requests_total{verb=\"create\",resource=\"tokenreviews\"} 1",
            "cinderblock_nodes_connected 7",
            "cinderblock_volumes 0",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
