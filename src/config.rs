//! The backends' configuration file, read once into types that need no further check. Neither the
//! disks nor LVM are looked at here.

mod file;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::lvm::layout::ThickLayout;
use crate::names::{BackendName, LvName, NodeName, VgName};
use crate::units::{Bytes, parse_quantity};
use file::File;

/// More backends than anybody has; a file with more is a mistake.
pub(crate) const BACKENDS_MAX: usize = 64;

/// All backends, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    backends: BTreeMap<BackendName, Backend>,
}

/// How fast deleted volumes are zeroed when nobody says: half of what a rotating disk takes.
pub const WIPE_RATE_DEFAULT: Bytes = Bytes::mib(100);

/// A named place to put volumes: on each node that has it, one VG and at most one thin pool in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name, as StorageClasses say it.
    pub name: BackendName,
    /// Its VG.
    pub volume_group: VgName,
    /// The disks to make the VG of when it does not exist. Empty: it must exist.
    pub create_from: Vec<PathBuf>,
    /// The same on nodes that have a list of their own, instead of it.
    pub create_from_on: BTreeMap<NodeName, Vec<PathBuf>>,
    /// Its thin pool.
    pub thin_pool: Option<ThinPool>,
    /// Room in the VG that is never given out.
    pub reserve: Share,
    /// How much of deleted volumes is zeroed in a second.
    pub wipe_rate: Bytes,
    /// How much of one volume is copied in a second. `None`: as much as the disks do.
    pub copy_rate: Option<Bytes>,
    /// Labels that a node must have. Empty: every node.
    pub node_selector: BTreeMap<String, String>,
}

/// A backend's thin pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinPool {
    /// Its LV.
    pub name: LvName,
    /// How large to make it when it does not exist. `None`: it must exist.
    pub create_size: Option<Share>,
    /// How its data lies on the disks. `None`: not said; linear when it is made.
    pub layout: Option<ThickLayout>,
    /// How much may be promised, in percent of the pool's room; at least 100.
    pub overprovision_percent: u64,
    /// When it grows by itself. `None`: not said.
    pub autogrow: Option<Autogrow>,
}

/// When a thin pool grows by itself, and by how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Autogrow {
    /// From this part in use on, in percent. 100: never.
    pub at_percent: u64,
    /// By so much; a share is of the pool.
    pub by: Share,
}

impl Default for Autogrow {
    fn default() -> Self {
        Self { at_percent: 80, by: Share::Percent(20) }
    }
}

/// A part of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// In percent of the whole, at most 100.
    Percent(u64),
    /// As a size.
    Size(Bytes),
}

impl Share {
    /// How much it is of `whole`, rounded down, at most all of it.
    #[must_use]
    pub fn of(self, whole: Bytes) -> Bytes {
        match self {
            Self::Percent(percent) => whole.percent_floor(percent),
            Self::Size(size) => size.min(whole),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse() {
                Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                _ => Err(format!("{text:?} is not a whole number from 0% to 100%")),
            },
            None => parse_quantity(text).map(Self::Size),
        }
    }
}

impl Config {
    /// Reads the file's text.
    ///
    /// # Errors
    /// What is wrong and where, in a sentence that names the backend and the key.
    pub fn parse(text: &str) -> Result<Self> {
        let file: File = serde_saphyr::from_str(text)
            .map_err(|e| Error::invalid("the backends' configuration cannot be read").because(e))?;
        let mut backends = BTreeMap::<BackendName, Backend>::new();
        for raw in file.backends {
            let name = raw.name.clone();
            let backend = raw.check().map_err(|why| {
                Error::invalid(format!("configuration of backend {name:?}: {why}"))
            })?;
            let same_vg = backends.values().find(|other| {
                other.volume_group == backend.volume_group
                    && (other.node_selector.is_empty() || backend.node_selector.is_empty())
            });
            if let Some(other) = same_vg {
                return Err(Error::invalid(format!(
                    "backends {} and {} both use volume group {}: give each its own, or both a node selector",
                    other.name, backend.name, backend.volume_group
                )));
            }
            if backends.insert(backend.name.clone(), backend).is_some() {
                return Err(Error::invalid(format!("two backends are called {name:?}")));
            }
        }
        if backends.len() > BACKENDS_MAX {
            return Err(Error::invalid(format!("more than {BACKENDS_MAX} backends")));
        }
        Ok(Self { backends })
    }

    /// As it is on this node, whose disks may have a list of their own.
    #[must_use]
    pub fn on_node(mut self, node: &NodeName) -> Self {
        for backend in self.backends.values_mut() {
            if let Some(own) = backend.create_from_on.get(node) {
                backend.create_from.clone_from(own);
            }
        }
        self
    }

    /// All backends.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.backends.values()
    }

    /// The backend that a class means.
    ///
    /// # Errors
    /// When there is none of that name, or none is named and it is not clear which.
    pub fn backend(&self, name: Option<&BackendName>) -> Result<&Backend> {
        let known = || {
            let names: Vec<_> = self.backends.keys().map(BackendName::as_str).collect();
            if names.is_empty() {
                "none is configured".to_owned()
            } else {
                format!("known are {}", names.join(", "))
            }
        };
        match name {
            Some(name) => self.backends.get(name).ok_or_else(|| {
                Error::invalid(format!(
                    "parameter backend: there is no backend {name}; {}",
                    known()
                ))
            }),
            None => match self.backends.values().collect::<Vec<_>>().as_slice() {
                [only] => Ok(only),
                _ => Err(Error::invalid(format!("parameter backend is needed; {}", known()))),
            },
        }
    }
}

impl Backend {
    /// Whether a node with these labels has it.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = "
backends:
  - name: lvmdriver-1
    volumeGroup: stack-volumes-lvmdriver-1
    create: true
    devices: [/dev/disk/by-id/one, /dev/disk/by-id/two]
    thinPool: { name: pool0, size: 90%, overprovision: 2.0 }
    reserve: 5%
    nodes: { disk: nvme }
  - name: slow
    volumeGroup: hdd
    reserve: 10Gi
    wipeRate: 20Mi
    copyRate: 50Mi
";

    #[test]
    fn reads_all_there_is() {
        let config = Config::parse(FULL).unwrap();
        let name = |text| BackendName::parse(text).unwrap();
        let first = config.backend(Some(&name("lvmdriver-1"))).unwrap();
        assert_eq!(first.create_from.len(), 2);
        let pool = first.thin_pool.as_ref().unwrap();
        assert_eq!(pool.create_size, Some(Share::Percent(90)));
        assert_eq!((pool.overprovision_percent, pool.layout), (200, None));
        assert!(first.selects(&[("disk".to_owned(), "nvme".to_owned())].into()));
        assert!(!first.selects(&BTreeMap::new()));
        let slow = config.backend(Some(&name("slow"))).unwrap();
        assert_eq!(slow.reserve.of(Bytes::gib(100)), Bytes::gib(10));
        assert_eq!((first.wipe_rate, slow.wipe_rate), (Bytes::mib(100), Bytes::mib(20)));
        assert_eq!((first.copy_rate, slow.copy_rate), (None, Some(Bytes::mib(50))));
        assert!(slow.selects(&BTreeMap::new()) && slow.thin_pool.is_none());
        let error = config.backend(Some(&name("fast"))).unwrap_err().to_string();
        assert_eq!(
            error,
            "parameter backend: there is no backend fast; known are lvmdriver-1, slow"
        );
        assert!(config.backend(None).unwrap_err().to_string().contains("is needed"));
    }

    #[test]
    fn a_node_has_its_own_disks() {
        let text =
            "backends: [{name: a, volumeGroup: vg0, create: true, devices: [/dev/disk/by-id/x],
            nodeDevices: {n1: [/dev/disk/by-id/y, /dev/disk/by-id/z]}}]";
        let disks = |text: &str, node| {
            let config = Config::parse(text).unwrap().on_node(&NodeName::parse(node).unwrap());
            let disks = config.backend(None).unwrap().create_from.clone();
            disks.into_iter().map(|disk| disk.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(disks(text, "n1"), ["/dev/disk/by-id/y", "/dev/disk/by-id/z"]);
        assert_eq!(disks(text, "n2"), ["/dev/disk/by-id/x"]);
        let none = text.replace("devices: [/dev/disk/by-id/x],", "");
        assert_eq!(disks(&none, "n2"), [""; 0]);
    }

    #[test]
    fn an_only_backend_need_not_be_named() {
        let config =
            Config::parse("backends: [{name: a, volumeGroup: vg0, thinPool: {}}]").unwrap();
        let backend = config.backend(None).unwrap();
        assert_eq!(backend.reserve, Share::Percent(5));
        assert_eq!(backend.thin_pool.as_ref().unwrap().name.as_str(), "pool0");
        assert_eq!(backend.thin_pool.as_ref().unwrap().overprovision_percent, 100);
    }

    #[test]
    fn mistakes_are_named() {
        let bad = |text: &str| Config::parse(text).unwrap_err().chain();
        for (backend, what) in [
            ("volumeGroup: vg0, creat: true", "creat"),
            ("volumeGroup: a b", "volumeGroup"),
            ("volumeGroup: vg0, create: true", "needs devices"),
            ("volumeGroup: vg0, devices: [/dev/disk/by-id/x]", "create is not true"),
            ("volumeGroup: vg0, create: true, devices: [/dev/sdb]", "another disk after a reboot"),
            ("volumeGroup: vg0, create: true, devices: [/etc/passwd]", "under /dev"),
            ("volumeGroup: vg0, create: true, devices: [/dev/disk/by-id/../../sda]", "under /dev"),
            (
                "volumeGroup: vg0, create: true, devices: [/dev/disk/by-id/x, /dev/disk/by-id/x]",
                "twice",
            ),
            ("volumeGroup: vg0, nodeDevices: {n1: [/dev/disk/by-id/x]}", "create is not true"),
            ("volumeGroup: vg0, create: true, nodeDevices: {n1: []}", "nodeDevices.n1"),
            ("volumeGroup: vg0, create: true, nodeDevices: {n1: [/dev/sdb]}", "nodeDevices.n1"),
            (
                "volumeGroup: vg0, create: true, nodeDevices: {N 1: [/dev/disk/by-id/x]}",
                "nodeDevices",
            ),
            ("volumeGroup: vg0, reserve: 101%", "reserve"),
            ("volumeGroup: vg0, reserve: some", "reserve"),
            ("volumeGroup: vg0, wipeRate: 0", "wipeRate"),
            ("volumeGroup: vg0, copyRate: fast", "copyRate"),
            ("volumeGroup: vg0, thinPool: {overprovision: 0.5}", "overprovision"),
            ("volumeGroup: vg0, thinPool: {size: 0}", "thinPool.size"),
            ("volumeGroup: vg0, thinPool: {layout: raid4}", "thinPool.layout"),
            ("volumeGroup: vg0, thinPool: {layout: raid1, stripes: 2}", "thinPool.stripes"),
            ("volumeGroup: vg0, thinPool: {mirrors: 1}", "thinPool.mirrors"),
            ("volumeGroup: vg0, thinPool: {name: snapshot1}", "thinPool.name"),
            ("volumeGroup: vg0, thinPool: {autogrow: {at: 10Gi}}", "autogrow.at"),
            ("volumeGroup: vg0, thinPool: {autogrow: {at: 0%}}", "autogrow.at"),
            ("volumeGroup: vg0, thinPool: {autogrow: {by: 0}}", "autogrow.by"),
            ("volumeGroup: vg0, thinPool: {autogrow: true}", "cannot be read"),
        ] {
            let error = bad(&format!("backends: [{{name: x, {backend}}}]"));
            assert!(error.contains(what), "{error}");
        }
        assert!(bad("backends: [{name: X y, volumeGroup: vg0}]").contains("lower case"));
        assert!(
            bad("backends: [{name: a, volumeGroup: v}, {name: a, volumeGroup: w}]")
                .contains("called")
        );
        assert!(
            bad("backends: [{name: a, volumeGroup: v}, {name: b, volumeGroup: v}]")
                .contains("both use")
        );
        assert!(bad("nothing").contains("cannot be read"));
    }

    #[test]
    fn when_a_pool_grows() {
        let read = |pool: &str| {
            let text = format!("backends: [{{name: a, volumeGroup: vg0, thinPool: {pool}}}]");
            Config::parse(&text)
                .map(|c| c.backend(None).unwrap().thin_pool.clone().unwrap().autogrow)
        };
        assert_eq!(read("{}").unwrap(), None);
        assert_eq!(read("{autogrow: {}}").unwrap(), Some(Autogrow::default()));
        let given = Autogrow { at_percent: 70, by: Share::Size(Bytes::gib(10)) };
        assert_eq!(read("{autogrow: {at: 70%, by: 10Gi}}").unwrap(), Some(given));
        assert_eq!(read("{autogrow: {at: 100%}}").unwrap().unwrap().at_percent, 100);
    }
}
