//! The parameters of a StorageClass. Strict: an unknown key is refused, with the known ones named.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::lvm::command::ThickLayout;
use crate::lvm::tag::{Claim, Wipe};
use crate::names::BackendName;
use crate::units::{Bytes, parse_quantity};

/// The keys of a StorageClass, in the order of the documentation.
const KEYS: [&str; 6] = ["backend", "provisioning", "layout", "stripes", "stripeSize", "wipe"];
/// What external-provisioner adds (`--extra-create-metadata`); all under this prefix is not ours.
const CSI_PREFIX: &str = "csi.storage.k8s.io/";
/// LVM's own limit (lvcreate(8)).
const STRIPES_MAX: u32 = 128;
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
    /// `layout`, `stripes` and `stripeSize`, of a thick volume.
    pub layout: ThickLayout,
    /// `wipe`. `None`: what was in it stays on the disks when it is deleted.
    pub wipe: Option<Wipe>,
}

impl VolumeClass {
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
        let layout = match get("layout") {
            None | Some("linear") => {
                if let Some(key) = ["stripes", "stripeSize"].into_iter().find(|k| get(k).is_some())
                {
                    return Err(bad(key, "is only for layout: striped".to_owned()));
                }
                ThickLayout::Linear
            }
            Some("striped") => striped(get("stripes"), get("stripeSize"), bad)?,
            Some(other) => {
                return Err(bad("layout", format!("{other:?} is neither linear nor striped")));
            }
        };
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
            (_, provisioning) => provisioning,
        };
        Ok(Self { backend, provisioning, layout, wipe })
    }
}

fn striped(
    stripes: Option<&str>,
    stripe_size: Option<&str>,
    bad: impl Fn(&str, String) -> Error,
) -> Result<ThickLayout> {
    let stripes = stripes.unwrap_or("2");
    let stripes =
        stripes.parse().ok().filter(|n| (2..=STRIPES_MAX).contains(n)).ok_or_else(|| {
            bad("stripes", format!("{stripes:?} is not a number from 2 to {STRIPES_MAX}"))
        })?;
    let stripe_size = match stripe_size {
        None => STRIPE_SIZE_DEFAULT,
        Some(text) => parse_quantity(text)
            .ok()
            .filter(|size| size.get().is_power_of_two() && *size >= STRIPE_SIZE_MIN)
            .ok_or_else(|| {
                bad("stripeSize", format!("{text:?} is not a power of two from 4Ki, as in 64Ki"))
            })?,
    };
    Ok(ThickLayout::Striped { stripes, stripe_size })
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
                wipe: None
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
    fn mistakes_name_the_parameter() {
        for (pairs, what) in [
            (
                &[("Backend", "x")][..],
                "unknown parameter \"Backend\": known are backend, provisioning",
            ),
            (&[("backend", "No Such")], "parameter backend"),
            (&[("provisioning", "sparse")], "neither thin nor thick"),
            (&[("layout", "raid7")], "neither linear nor striped"),
            (&[("stripes", "2")], "only for layout: striped"),
            (&[("layout", "striped"), ("stripes", "1")], "from 2 to 128"),
            (&[("layout", "striped"), ("stripeSize", "5Ki")], "power of two"),
            (&[("layout", "striped"), ("provisioning", "thin")], "layout of its pool"),
            (&[("wipe", "shred")], "neither none nor discard nor zero"),
            (&[("wipe", "zero"), ("provisioning", "thin")], "use discard"),
        ] {
            let error = parse(pairs).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
