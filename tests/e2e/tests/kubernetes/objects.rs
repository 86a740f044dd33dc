//! Kubernetes objects that the tests make, and the driver's installation. Nothing waits here but the installation.

use anyhow::Result;
use cinderblock_lab::driver::Other;
use cinderblock_lab::images::{BUSYBOX, IDLE};
use cinderblock_lab::install::{self, DRIVER};
use cinderblock_lab::{Cluster, driver};
use serde_json::{Value, json};

pub(crate) use cinderblock_lab::install::{BACKEND, NAMESPACE as SYSTEM, VOLUME_GROUP as VG};

pub(crate) const TOPOLOGY: &str = "topology.lvm.cinderblock.dev/node";
/// The backend for RAID, and its VG.
pub(crate) const RAID: &str = "mirrored";
pub(crate) const RAID_VG: &str = "mirrored-vg";
/// Its thin pool, small enough to be filled.
pub(crate) const SMALL_POOL: &str = "small";
/// A backend whose VG is on no node.
pub(crate) const MISSING_BACKEND: &str = "missing";
pub(crate) const SNAPSHOT_CLASS: &str = "snapshots";

/// Installs the driver: one backend on each node's first disk, with room for thin and for thick
/// volumes, one on two more disks for RAID and with a small pool, and one that no node has.
pub(crate) fn install(cluster: &Cluster) -> Result<()> {
    install_with(cluster, &json!({}))
}

/// As [`install`], with these values besides.
pub(crate) fn install_with(cluster: &Cluster, more: &Value) -> Result<()> {
    let disks = raid_disks();
    // What one list for all nodes says as well.
    let own = json!({ "nodeDevices": { "node1": disks, "node2": disks } });
    install::install(cluster, &values(&own, more))
}

/// As [`install`], of another version.
pub(crate) fn install_other(cluster: &Cluster, other: &Other) -> Result<()> {
    let all = json!({ "devices": raid_disks() });
    install::install_other(cluster, other, &values(&all, &json!({})))
}

fn raid_disks() -> [String; 2] {
    [driver::disk(2), driver::disk(3)]
}

fn values(raid_disks: &Value, more: &Value) -> Value {
    let mut values = json!({
        "backends": [
            {
                "name": BACKEND,
                "volumeGroup": VG,
                "create": true,
                "devices": [driver::disk(1)],
                "thinPool": { "name": "pool0", "size": "40%" },
            },
            {
                "name": RAID,
                "volumeGroup": RAID_VG,
                "create": true,
                "thinPool": { "name": SMALL_POOL, "size": "256Mi", "overprovision": 2 },
            },
            { "name": MISSING_BACKEND, "volumeGroup": "no-such-vg" },
        ],
        "log": { "level": "info,cinderblock=debug" },
        // The tests wait for these.
        "orphans": { "grace": "1m", "interval": "15s" },
        "sidecars": { "provisioner": { "capacityPollInterval": "15s" } },
    });
    install::merge(&mut values["backends"][1], raid_disks);
    install::merge(&mut values, more);
    values
}

/// When a claim becomes a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// With its first pod.
    WithPod,
    /// At once.
    AtOnce,
}

/// The name of the class of that kind.
pub(crate) fn class(provisioning: &str, fs: &str, binding: Binding) -> String {
    let binding = if binding == Binding::WithPod { "with-pod" } else { "at-once" };
    format!("{provisioning}-{fs}-{binding}")
}

/// A `StorageClass` of ours.
pub(crate) fn storage_class(name: &str, parameters: &Value) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": { "name": name },
        "provisioner": DRIVER,
        "parameters": parameters,
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

/// All classes that [`class`] names, and the one of snapshots.
pub(crate) fn storage_classes(cluster: &Cluster) -> Result<()> {
    for provisioning in ["thin", "thick"] {
        for fs in ["ext4", "xfs", "btrfs"] {
            for binding in [Binding::WithPod, Binding::AtOnce] {
                let parameters = json!({
                    "backend": BACKEND,
                    "provisioning": provisioning,
                    "csi.storage.k8s.io/fstype": fs,
                });
                let name = class(provisioning, fs, binding);
                let mut object = storage_class(&name, &parameters);
                if binding == Binding::AtOnce {
                    object["volumeBindingMode"] = json!("Immediate");
                }
                cluster.apply(&object.to_string())?;
            }
        }
    }
    let snapshots = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": { "name": SNAPSHOT_CLASS },
        "driver": DRIVER,
        "deletionPolicy": "Delete",
    });
    cluster.apply(&snapshots.to_string())
}

/// A claim that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) class: String,
    pub(crate) size: String,
    pub(crate) block: bool,
    pub(crate) access_mode: &'static str,
    /// Kind and name of what it is a copy of.
    pub(crate) source: Option<(&'static str, String)>,
}

impl Claim {
    /// With a filesystem, for pods of one node.
    pub(crate) fn new(name: &str, class: &str, size: &str) -> Self {
        Self {
            name: name.to_owned(),
            class: class.to_owned(),
            size: size.to_owned(),
            block: false,
            access_mode: "ReadWriteOnce",
            source: None,
        }
    }

    /// As a device.
    pub(crate) fn block(mut self) -> Self {
        self.block = true;
        self
    }

    /// Of a snapshot.
    pub(crate) fn of_snapshot(mut self, name: &str) -> Self {
        self.source = Some(("VolumeSnapshot", name.to_owned()));
        self
    }

    /// Of another claim.
    pub(crate) fn of_claim(mut self, name: &str) -> Self {
        self.source = Some(("PersistentVolumeClaim", name.to_owned()));
        self
    }

    /// What Kubernetes is told.
    pub(crate) fn object(&self) -> Value {
        let mut spec = json!({
            "accessModes": [self.access_mode],
            "storageClassName": self.class,
            "volumeMode": if self.block { "Block" } else { "Filesystem" },
            "resources": { "requests": { "storage": self.size } },
        });
        if let Some((kind, name)) = &self.source {
            spec["dataSource"] = json!({ "kind": kind, "name": name });
            if *kind == "VolumeSnapshot" {
                spec["dataSource"]["apiGroup"] = json!("snapshot.storage.k8s.io");
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": { "name": self.name },
            "spec": spec,
        })
    }
}

/// A snapshot of a claim.
pub(crate) fn snapshot(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": { "name": name },
        "spec": {
            "volumeSnapshotClassName": SNAPSHOT_CLASS,
            "source": { "persistentVolumeClaimName": claim },
        },
    })
}

/// A pod that idles, with these claims: a filesystem is below `/mnt` and a device below `/dev`, under
/// the claim's name.
pub(crate) fn pod(name: &str, claims: &[&Claim]) -> Value {
    let mut mounts = Vec::new();
    let mut devices = Vec::new();
    for claim in claims {
        let name = &claim.name;
        if claim.block {
            devices.push(json!({ "name": name, "devicePath": format!("/dev/{name}") }));
        } else {
            mounts.push(json!({ "name": name, "mountPath": format!("/mnt/{name}") }));
        }
    }
    let volumes: Vec<_> = claims
        .iter()
        .map(|claim| {
            let source = json!({ "claimName": claim.name });
            json!({ "name": claim.name, "persistentVolumeClaim": source })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": BUSYBOX,
                "command": IDLE,
                "volumeMounts": mounts,
                "volumeDevices": devices,
            }],
            "volumes": volumes,
        },
    })
}

/// The same pod, on this node alone.
pub(crate) fn on_node(mut pod: Value, node: &str) -> Value {
    pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
    pod
}
