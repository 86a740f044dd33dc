//! Names and identifiers, parsed once: what holds one of these types needs no further check.
//! Nothing here knows whether the thing named exists.

mod lvm;

use std::fmt;

use uuid::Uuid;

pub use lvm::{LvName, LvmUuid, VgName, dm_name};

/// Why a text is not the name it should be. Written to stand behind the name of the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

/// The longest CSI name, in bytes (CSI spec, "Size Limits").
const CSI_NAME_MAX: usize = 128;
/// The namespace of every derived UUID (random, chosen once).
const NAMESPACE: Uuid = Uuid::from_u128(0x3d0f_7a52_9b1c_4e67_8a2e_51c0_d4b6_f793);

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}
use text_type;

text_type!(
    /// The name of a backend: a DNS label or a chain of them.
    BackendName
);
text_type!(
    /// The name of a node, as its topology segment has it.
    NodeName
);
text_type!(
    /// The name that a CO gives to a volume or snapshot: 1 to 128 bytes, no control characters.
    CsiName
);

impl BackendName {
    /// # Errors
    /// When the text is not a DNS subdomain name of at most 63 characters.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        };
        if text.len() > 63 || !text.split('.').all(label) {
            return Err(NameError(format!(
                "{text:?} must have 1 to 63 lower case letters, digits, '-' and '.', as in lvmdriver-1"
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The topology segment by which a driver names nodes.
#[must_use]
pub fn topology_key(driver_name: &str) -> String {
    format!("topology.{driver_name}/node")
}

impl NodeName {
    /// # Errors
    /// When it cannot be the value of a topology segment (CSI spec, `Topology`; label values of
    /// Kubernetes).
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let ends = [text.bytes().next(), text.bytes().next_back()];
        let fits = ends.iter().all(|c| c.is_some_and(|c| c.is_ascii_alphanumeric()))
            && text.len() <= 63
            && text.bytes().all(plain);
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError(format!(
            "{text:?} is not the name of a node: expected 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
        )))
    }
}

impl CsiName {
    /// # Errors
    /// When it is empty, over 128 bytes, or has control characters (CSI spec, `CreateVolume`).
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError("must not be empty".to_owned()));
        }
        if text.len() > CSI_NAME_MAX {
            return Err(NameError(format!("has {} bytes, more than 128", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(NameError(format!("{text:?} has control characters")));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The CSI id of a volume or snapshot: `<vg uuid>/<lv name>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    /// The volume group, by its identifier: names can be given twice.
    pub vg: LvmUuid,
    /// The LV in it.
    pub lv: LvName,
}

/// What the device-mapper names of our decrypted devices begin with.
pub const CRYPT_PREFIX: &str = "cb-crypt-";

impl Handle {
    /// # Errors
    /// When no volume or snapshot of this driver can have this id.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (vg, lv) = text
            .split_once('/')
            .ok_or_else(|| NameError(format!("{text:?} is not <vg uuid>/<lv name>")))?;
        Ok(Self { vg: LvmUuid::parse(vg)?, lv: LvName::parse(lv)? })
    }

    /// The device-mapper name of the volume's decrypted device, known without LVM or the volume.
    #[must_use]
    pub fn crypt_name(&self) -> String {
        format!("{CRYPT_PREFIX}{}", Uuid::new_v5(&NAMESPACE, self.to_string().as_bytes()).simple())
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vg, self.lv)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn csi(text: &str) -> CsiName {
        CsiName::parse(text).unwrap()
    }

    #[test]
    fn handles_fit_into_csi_ids() {
        let handle =
            Handle { vg: LvmUuid::derived("x"), lv: LvName::for_volume(&csi(&"n".repeat(128))) };
        assert_eq!(Handle::parse(&handle.to_string()).unwrap(), handle);
        assert!(handle.to_string().len() <= 128);
        for bad in ["", "a", "a/b", "9xijuU-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov/", "/x", "reallyfake"] {
            assert!(Handle::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".*") {
            drop((Handle::parse(&text), LvmUuid::parse(&text), VgName::parse(&text)));
            drop((LvmUuid::from_compact(&text), BackendName::parse(&text)));
        }
    }
}
