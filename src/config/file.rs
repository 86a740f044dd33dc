//! The configuration file as it is written: its keys, and what each may say. How backends get on with
//! each other is not looked at here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::{Autogrow, Backend, Share, ThinPool, WIPE_RATE_DEFAULT};
use crate::domain::pool_layout;
use crate::names::{BackendName, LvName, NodeName, VgName};
use crate::units::{Bytes, parse_quantity};

/// Thin volumes may be promised this many times the pool's room, at the most.
const OVERPROVISION_MAX_PERCENT: u64 = 10_000;
/// Slower than this, a volume of a terabyte takes weeks.
const RATE_MIN: Bytes = Bytes::mib(1);

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) backends: Vec<RawBackend>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawBackend {
    pub(super) name: String,
    volume_group: String,
    #[serde(default)]
    create: bool,
    #[serde(default)]
    devices: Vec<PathBuf>,
    #[serde(default)]
    node_devices: BTreeMap<String, Vec<PathBuf>>,
    thin_pool: Option<RawPool>,
    reserve: Option<Scalar>,
    wipe_rate: Option<Scalar>,
    copy_rate: Option<Scalar>,
    #[serde(default)]
    nodes: BTreeMap<String, String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawPool {
    name: Option<String>,
    size: Option<Scalar>,
    layout: Option<String>,
    stripes: Option<Scalar>,
    stripe_size: Option<Scalar>,
    mirrors: Option<Scalar>,
    overprovision: Option<Scalar>,
    autogrow: Option<RawAutogrow>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAutogrow {
    at: Option<Scalar>,
    by: Option<Scalar>,
}

/// A number or a text: YAML's reader must not decide which of `5`, `5%` and `2.0` is what.
#[derive(Debug)]
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a text")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> Result<Scalar, E> {
                Ok(Scalar(v.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Scalar, E> {
                Ok(Scalar(v.to_string()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl RawBackend {
    pub(super) fn check(self) -> Result<Backend, String> {
        let name = BackendName::parse(&self.name).map_err(|e| format!("name {e}"))?;
        let volume_group =
            VgName::parse(&self.volume_group).map_err(|e| format!("volumeGroup {e}"))?;
        let create_from_on = own_lists(&self.node_devices)?;
        let listed = !self.devices.is_empty() || !create_from_on.is_empty();
        if self.create && !listed {
            return Err(
                "create: true needs devices or nodeDevices, the disks to make the volume group of"
                    .to_owned(),
            );
        }
        if !self.create && listed {
            return Err("devices are listed, but create is not true".to_owned());
        }
        check_devices("devices", &self.devices)?;
        let reserve = match self.reserve {
            Some(Scalar(text)) => Share::parse(&text).map_err(|e| format!("reserve {e}"))?,
            None => Share::Percent(5),
        };
        let wipe_rate = rate("wipeRate", self.wipe_rate)?.unwrap_or(WIPE_RATE_DEFAULT);
        let copy_rate = rate("copyRate", self.copy_rate)?;
        Ok(Backend {
            name,
            volume_group,
            create_from: self.devices,
            create_from_on,
            thin_pool: self.thin_pool.map(RawPool::check).transpose()?,
            reserve,
            wipe_rate,
            copy_rate,
            node_selector: self.nodes,
        })
    }
}

/// Bytes a second.
fn rate(key: &str, value: Option<Scalar>) -> Result<Option<Bytes>, String> {
    let Some(Scalar(text)) = value else { return Ok(None) };
    let rate = parse_quantity(&text).ok().filter(|rate| *rate >= RATE_MIN);
    let wrong = || format!("{key} {text:?} is not a size from 1Mi, as in 100Mi");
    rate.map(Some).ok_or_else(wrong)
}

/// The disks of the nodes that have a list of their own.
fn own_lists(
    lists: &BTreeMap<String, Vec<PathBuf>>,
) -> Result<BTreeMap<NodeName, Vec<PathBuf>>, String> {
    let checked = lists.iter().map(|(node, devices)| {
        let name = NodeName::parse(node).map_err(|e| format!("nodeDevices: a node {e}"))?;
        let key = format!("nodeDevices.{node}");
        if devices.is_empty() {
            return Err(format!(
                "{key} lists no disk: leave it out, or let nodes say which nodes have the backend"
            ));
        }
        check_devices(&key, devices)?;
        Ok((name, devices.clone()))
    });
    checked.collect()
}

fn check_devices(key: &str, devices: &[PathBuf]) -> Result<(), String> {
    for (i, device) in devices.iter().enumerate() {
        check_device(device, devices.get(..i).unwrap_or_default())
            .map_err(|why| format!("{key}: {why}"))?;
    }
    Ok(())
}

/// A name like /dev/sdb is given to another disk at the next boot.
fn check_device(device: &PathBuf, earlier: &[PathBuf]) -> Result<(), String> {
    let text = device.to_string_lossy();
    let plain = device.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    if !text.starts_with("/dev/") || !plain || text.contains([',', '\n']) {
        return Err(format!("{text:?} is not the path of a device under /dev"));
    }
    if !(text.starts_with("/dev/disk/by-") || text.starts_with("/dev/mapper/")) {
        return Err(format!(
            "{text:?} may be another disk after a reboot: use its link under /dev/disk/by-id/ or /dev/disk/by-path/"
        ));
    }
    if earlier.contains(device) {
        return Err(format!("{text:?} is listed twice"));
    }
    Ok(())
}

impl RawPool {
    fn check(self) -> Result<ThinPool, String> {
        let name = self.name.as_deref().unwrap_or("pool0");
        let name = LvName::parse_new(name).map_err(|e| format!("thinPool.name {e}"))?;
        let create_size = self
            .size
            .map(|Scalar(text)| Share::parse(&text).map_err(|e| format!("thinPool.size {e}")))
            .transpose()?;
        if create_size.is_some_and(|size| size.of(Bytes::MAX).is_zero()) {
            return Err("thinPool.size must be more than nothing".to_owned());
        }
        let overprovision_percent = match self.overprovision {
            Some(Scalar(text)) => percent(&text).ok_or_else(|| {
                format!("thinPool.overprovision {text:?} is not a number from 1.0 to 100.0")
            })?,
            None => 100,
        };
        let layout = pool_layout(&[
            ("layout", self.layout),
            ("stripes", self.stripes.map(|Scalar(text)| text)),
            ("stripeSize", self.stripe_size.map(|Scalar(text)| text)),
            ("mirrors", self.mirrors.map(|Scalar(text)| text)),
        ])?;
        let autogrow = self.autogrow.map(RawAutogrow::check).transpose()?;
        Ok(ThinPool { name, create_size, layout, overprovision_percent, autogrow })
    }
}

impl RawAutogrow {
    fn check(self) -> Result<Autogrow, String> {
        let mut autogrow = Autogrow::default();
        if let Some(Scalar(text)) = self.at {
            autogrow.at_percent = match Share::parse(&text) {
                Ok(Share::Percent(percent @ 1..=100)) => percent,
                _ => return Err(format!("thinPool.autogrow.at {text:?} is not 1% to 100%")),
            };
        }
        if let Some(Scalar(text)) = self.by {
            autogrow.by = Share::parse(&text).map_err(|e| format!("thinPool.autogrow.by {e}"))?;
            if autogrow.by.of(Bytes::MAX).is_zero() {
                return Err("thinPool.autogrow.by must be more than nothing".to_owned());
            }
        }
        Ok(autogrow)
    }
}

/// `2.5` is 250; digits beyond the second count as nothing.
fn percent(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if !part.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let hundredths: String = part.chars().chain("00".chars()).take(2).collect();
    let percent =
        whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(hundredths.parse().ok()?)?;
    (100..=OVERPROVISION_MAX_PERCENT).contains(&percent).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overprovision_in_percent() {
        for (text, want) in [
            ("1", Some(100)),
            ("2.0", Some(200)),
            ("2.55", Some(255)),
            ("0.99", None),
            ("x", None),
            ("101", None),
            ("1.x", None),
        ] {
            assert_eq!(percent(text), want, "{text}");
        }
    }
}
