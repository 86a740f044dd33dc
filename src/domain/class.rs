//! The parameters of a StorageClass. Strict: an unknown key is refused, with the known ones named.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::lvm::layout::{RaidLevel, ThickLayout};
use crate::lvm::state::LUKS_HEADER;
use crate::lvm::tag::{Claim, Wipe};
use crate::names::BackendName;
use crate::units::{Bytes, parse_quantity};

/// The keys of a StorageClass, in the order of the documentation.
const KEYS: [&str; 8] =
    ["backend", "provisioning", "layout", "stripes", "stripeSize", "mirrors", "wipe", "encryption"];
/// What external-provisioner adds (`--extra-create-metadata`); all under this prefix is not ours.
const CSI_PREFIX: &str = "csi.storage.k8s.io/";
/// LVM's own limit (lvcreate(8)).
const STRIPES_MAX: u32 = 128;
/// dm-raid takes 253 devices, LVM 64 legs (lvmraid(7)); a row of parity over more is no use.
const LEGS_MAX: u32 = 64;
/// Copies beside the first. LVM takes 10 legs of raid1 at the most.
const MIRRORS_MAX: u32 = 9;
const STRIPE_SIZE_DEFAULT: Bytes = Bytes::kib(64);
/// LVM's own least; the most is the extent size, which only the VG knows.
const STRIPE_SIZE_MIN: Bytes = Bytes::kib(4);

/// Where a volume's room comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// From the thin pool, when it is written to.
    Thin,
    /// From the VG, all of it at once.
    Thick,
}

/// What a StorageClass asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeClass {
    /// `backend`. `None`: the only one there is.
    pub backend: Option<BackendName>,
    /// `provisioning`. `None`: thin where the backend has a thin pool, else thick.
    pub provisioning: Option<Provisioning>,
    /// `layout`, `stripes`, `stripeSize` and `mirrors`, of a thick volume.
    pub layout: ThickLayout,
    /// `wipe`. `None`: what was in it stays on the disks when it is deleted.
    pub wipe: Option<Wipe>,
    /// `encryption: luks`.
    pub luks: bool,
}

impl VolumeClass {
    /// What a volume of this class has before the data of its user.
    #[must_use]
    pub const fn header(&self) -> Bytes {
        if self.luks { LUKS_HEADER } else { Bytes::ZERO }
    }

    /// Reads the parameters.
    ///
    /// # Errors
    /// What is wrong with which parameter, and what is expected.
    pub fn parse(parameters: &BTreeMap<String, String>) -> Result<Self> {
        let bad = |key: &str, why: String| Error::invalid(format!("parameter {key}: {why}"));
        let get = |key: &str| parameters.get(key).map(String::as_str);
        for key in parameters.keys() {
            if !KEYS.contains(&key.as_str()) && !key.starts_with(CSI_PREFIX) {
                let known = KEYS.join(", ");
                return Err(Error::invalid(format!(
                    "unknown parameter {key:?}: known are {known}"
                )));
            }
        }
        let backend = get("backend")
            .map(|text| BackendName::parse(text).map_err(|e| bad("backend", e.to_string())))
            .transpose()?;
        let provisioning = match get("provisioning") {
            None => None,
            Some("thin") => Some(Provisioning::Thin),
            Some("thick") => Some(Provisioning::Thick),
            Some(other) => {
                return Err(bad("provisioning", format!("{other:?} is neither thin nor thick")));
            }
        };
        let layout = layout(&get, &bad)?;
        if provisioning == Some(Provisioning::Thin) && layout != ThickLayout::Linear {
            let why = "a thin volume has the layout of its pool: leave it out, or use provisioning: thick";
            return Err(bad("layout", why.to_owned()));
        }
        let wipe = match get("wipe") {
            None | Some("none") => None,
            Some(text) => Some(Wipe::parse(text).ok_or_else(|| {
                bad("wipe", format!("{text:?} is neither none nor discard nor zero"))
            })?),
        };
        let provisioning = match (wipe, provisioning) {
            (Some(Wipe::Zero), Some(Provisioning::Thin)) => {
                let why = "zero would fill the pool with the zeroes of a thin volume, and not reach what a snapshot has kept: use discard, or provisioning: thick";
                return Err(bad("wipe", why.to_owned()));
            }
            // Only a thick volume can be overwritten, so that is what is meant.
            (Some(Wipe::Zero), None) => Some(Provisioning::Thick),
            // A thin volume has no layout of its own, so that is not what is meant.
            (_, None) if layout != ThickLayout::Linear => Some(Provisioning::Thick),
            (_, provisioning) => provisioning,
        };
        let luks = match get("encryption") {
            None | Some("none") => false,
            Some("luks") => true,
            Some(other) => {
                return Err(bad("encryption", format!("{other:?} is neither none nor luks")));
            }
        };
        Ok(Self { backend, provisioning, layout, wipe, luks })
    }
}

/// The layout of a thin pool, by the same words. `None` when none is said.
///
/// # Errors
/// What is wrong with which of them.
pub(crate) fn pool_layout(
    said: &[(&'static str, Option<String>); 4],
) -> Result<Option<ThickLayout>, String> {
    let get = |key: &str| said.iter().find(|(name, _)| *name == key)?.1.as_deref();
    if said.iter().all(|(_, value)| value.is_none()) {
        return Ok(None);
    }
    let bad = |key: &str, why: String| Error::invalid(format!("thinPool.{key}: {why}"));
    layout(&get, &bad).map(Some).map_err(|error| error.to_string())
}

fn layout<'a>(
    get: &impl Fn(&str) -> Option<&'a str>,
    bad: &impl Fn(&str, String) -> Error,
) -> Result<ThickLayout> {
    let name = get("layout").unwrap_or("linear");
    let level = RaidLevel::ALL.into_iter().find(|level| level.as_str() == name);
    let unused: &[&str] = match (name, level) {
        ("linear", _) => &["stripes", "stripeSize", "mirrors"],
        (_, Some(RaidLevel::Raid1)) => &["stripes", "stripeSize"],
        ("striped", _) | (_, Some(_)) => &["mirrors"],
        (other, None) => {
            let levels = RaidLevel::ALL.map(RaidLevel::as_str).join(", ");
            let why = format!("{other:?} is none of linear, striped, {levels}");
            return Err(bad("layout", why));
        }
    };
    if let Some(key) = unused.iter().find(|key| get(key).is_some()) {
        return Err(bad(key, format!("is not for layout: {name}")));
    }
    let number = |key: &str, default: u32, least: u32, most: u32| -> Result<u32> {
        let Some(text) = get(key) else { return Ok(default) };
        let number = text.parse().ok().filter(|n| (least..=most).contains(n));
        number.ok_or_else(|| bad(key, format!("{text:?} is not a number from {least} to {most}")))
    };
    let stripe_size = || match get("stripeSize") {
        None => Ok(STRIPE_SIZE_DEFAULT),
        Some(text) => parse_quantity(text)
            .ok()
            .filter(|size| size.get().is_power_of_two() && *size >= STRIPE_SIZE_MIN)
            .ok_or_else(|| {
                bad("stripeSize", format!("{text:?} is not a power of two from 4Ki, as in 64Ki"))
            }),
    };
    let raid = |level: RaidLevel, data: u32, stripe_size: Bytes| ThickLayout::Raid {
        level,
        legs: level.legs(data),
        stripe_size,
    };
    Ok(match level {
        None if name == "linear" => ThickLayout::Linear,
        None => {
            let stripes = number("stripes", 2, 2, STRIPES_MAX)?;
            ThickLayout::Striped { stripes, stripe_size: stripe_size()? }
        }
        Some(level @ RaidLevel::Raid1) => {
            let copies = number("mirrors", 1, 1, MIRRORS_MAX)?.saturating_add(1);
            raid(level, copies, Bytes::ZERO)
        }
        Some(level @ (RaidLevel::Raid5 | RaidLevel::Raid10)) => {
            raid(level, number("stripes", 2, 2, LEGS_MAX / 2)?, stripe_size()?)
        }
        // LVM takes no fewer (lvmraid(7)).
        Some(level @ RaidLevel::Raid6) => {
            raid(level, number("stripes", 3, 3, LEGS_MAX / 2)?, stripe_size()?)
        }
    })
}

/// The claim that external-provisioner names among the parameters, if it does.
#[must_use]
pub(crate) fn claim(parameters: &BTreeMap<String, String>) -> Option<Claim> {
    Some(Claim {
        namespace: parameters.get("csi.storage.k8s.io/pvc/namespace")?.clone(),
        name: parameters.get("csi.storage.k8s.io/pvc/name")?.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<VolumeClass> {
        VolumeClass::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn what_a_class_may_say() {
        let class = parse(&[]).unwrap();
        assert_eq!(
            class,
            VolumeClass {
                backend: None,
                provisioning: None,
                layout: ThickLayout::Linear,
                wipe: None,
                luks: false
            }
        );
        let class = parse(&[
            ("backend", "lvmdriver-1"),
            ("provisioning", "thick"),
            ("layout", "striped"),
            ("stripes", "4"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ])
        .unwrap();
        assert_eq!(class.backend.unwrap().as_str(), "lvmdriver-1");
        let layout = ThickLayout::Striped { stripes: 4, stripe_size: Bytes::kib(64) };
        assert_eq!((class.provisioning, class.layout), (Some(Provisioning::Thick), layout));
    }

    #[test]
    fn how_a_volume_is_wiped() {
        let wipe = |pairs: &[(&str, &str)]| parse(pairs).map(|c| (c.wipe, c.provisioning)).unwrap();
        assert_eq!(wipe(&[("wipe", "none")]), (None, None));
        assert_eq!(wipe(&[("wipe", "discard")]), (Some(Wipe::Discard), None));
        let thin = [("wipe", "discard"), ("provisioning", "thin")];
        assert_eq!(wipe(&thin), (Some(Wipe::Discard), Some(Provisioning::Thin)));
        // Thick even where the backend has a pool: nothing else can be overwritten.
        assert_eq!(wipe(&[("wipe", "zero")]), (Some(Wipe::Zero), Some(Provisioning::Thick)));
    }

    #[test]
    fn what_has_a_layout_is_thick_also_where_there_is_a_pool() {
        for layout in ["striped", "raid1", "raid5", "raid6", "raid10"] {
            let class = parse(&[("layout", layout)]).unwrap();
            assert_eq!(class.provisioning, Some(Provisioning::Thick), "{layout}");
        }
        assert_eq!(parse(&[("layout", "linear")]).unwrap().provisioning, None);
    }

    #[test]
    fn raid_has_its_defaults() {
        let layout = |pairs: &[(&str, &str)]| parse(pairs).unwrap().layout;
        let raid = |level, legs, stripe_size| ThickLayout::Raid { level, legs, stripe_size };
        let each = Bytes::kib(64);
        assert_eq!(layout(&[("layout", "raid1")]), raid(RaidLevel::Raid1, 2, Bytes::ZERO));
        assert_eq!(
            layout(&[("layout", "raid1"), ("mirrors", "2")]),
            raid(RaidLevel::Raid1, 3, Bytes::ZERO)
        );
        assert_eq!(layout(&[("layout", "raid5")]), raid(RaidLevel::Raid5, 3, each));
        assert_eq!(layout(&[("layout", "raid6")]), raid(RaidLevel::Raid6, 5, each));
        assert_eq!(layout(&[("layout", "raid10")]), raid(RaidLevel::Raid10, 4, each));
    }

    #[test]
    fn mistakes_name_the_parameter() {
        for (pairs, what) in [
            (
                &[("Backend", "x")][..],
                "unknown parameter \"Backend\": known are backend, provisioning",
            ),
            (&[("backend", "No Such")], "parameter backend"),
            (&[("provisioning", "sparse")], "neither thin nor thick"),
            (&[("layout", "raid7")], "none of linear, striped, raid1"),
            (&[("stripes", "2")], "is not for layout: linear"),
            (&[("layout", "raid1"), ("stripes", "2")], "is not for layout: raid1"),
            (&[("layout", "raid10"), ("mirrors", "2")], "is not for layout: raid10"),
            (&[("layout", "raid6"), ("stripes", "2")], "from 3 to 32"),
            (&[("layout", "raid1"), ("provisioning", "thin")], "layout of its pool"),
            (&[("layout", "striped"), ("stripes", "1")], "from 2 to 128"),
            (&[("layout", "striped"), ("stripeSize", "5Ki")], "power of two"),
            (&[("layout", "striped"), ("provisioning", "thin")], "layout of its pool"),
            (&[("encryption", "yes")], "neither none nor luks"),
            (&[("wipe", "shred")], "neither none nor discard nor zero"),
            (&[("wipe", "zero"), ("provisioning", "thin")], "use discard"),
        ] {
            let error = parse(pairs).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
