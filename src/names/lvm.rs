//! LVM's names and identifiers, by LVM's rules and ours, and what device-mapper calls an LV. What names
//! others may give stands elsewhere.

use std::fmt;

use uuid::Uuid;

use super::{CsiName, NAMESPACE, NameError, text_type};

/// The longest LV or VG name that LVM takes, in bytes (lvm(8), "Valid names").
const LVM_NAME_MAX: usize = 127;
/// The longest LV name of ours: with a VG uuid and a slash it makes a handle within CSI's 128 bytes.
const LV_NAME_MAX: usize = 63;
/// `DM_NAME_LEN` of the kernel's dm-ioctl.h, less its terminating zero.
const DM_NAME_MAX: usize = 127;
/// Name parts that LVM keeps for itself (lvm(8), "Valid names").
const RESERVED_PREFIXES: [&str; 2] = ["snapshot", "pvmove"];
const RESERVED_PARTS: [&str; 17] = [
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage",
    "_rmeta", "_tdata", "_tmeta", "_vdata", "_imeta", "_iorig", "_pmspare", "_vorigin",
];
/// Names that begin so are given by us; a CSI name that does is hashed, so that they cannot meet.
const OWN_PREFIXES: [&str; 3] = ["snap-", "cb-", "lvol"];
/// What is behind a volume's name in that of the LV with the extents that it is about to get.
const GROWTH_SUFFIX: &str = ".growth";
/// What is behind a volume's name in that of the LV that it is being copied from.
const IMAGE_SUFFIX: &str = ".image";
/// What is behind a pool's name in that of the LV that is to become its metadata.
const POOL_METADATA_SUFFIX: &str = ".meta";
/// What a deleted volume's name begins with while it is being cleared. No hash of ours does.
const TRASH_PREFIX: &str = "cb-trash-";

/// Sixteen letters and digits that are the same for the same text.
fn letters(text: &str) -> String {
    const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let hash = Uuid::new_v5(&NAMESPACE, format!("lvm:{text}").as_bytes());
    let letter = |byte: &u8| {
        let at = usize::from(*byte).checked_rem(ALPHABET.len()).unwrap_or(0);
        char::from(ALPHABET.get(at).copied().unwrap_or(b'0'))
    };
    hash.as_bytes().iter().map(letter).collect()
}

fn lvm_name(text: &str) -> Result<(), NameError> {
    let err = |why: &str| Err(NameError(format!("{text:?} {why}")));
    if text.is_empty() || text.len() > LVM_NAME_MAX {
        return err("must have 1 to 127 characters");
    }
    if text.starts_with('-') || text == "." || text == ".." {
        return err("must not begin with '-' or be '.' or '..'");
    }
    if !text.bytes().all(|c| c.is_ascii_alphanumeric() || b"+_.-".contains(&c)) {
        return err("may hold only letters, digits and + _ . -");
    }
    Ok(())
}

text_type!(
    /// The name of a volume group.
    VgName
);
text_type!(
    /// The name of a logical volume.
    LvName
);
text_type!(
    /// An LVM identifier as LVM prints it: 32 characters in groups of 6-4-4-4-4-4-6.
    LvmUuid
);

impl VgName {
    /// # Errors
    /// When LVM would not take the name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        lvm_name(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl LvName {
    /// Any name that LVM takes, also those of its hidden LVs.
    ///
    /// # Errors
    /// When LVM would not take the name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        lvm_name(text)?;
        Ok(Self(text.to_owned()))
    }

    /// A name for an LV that we make: additionally nothing that LVM reserves.
    ///
    /// # Errors
    /// When LVM would not make an LV of that name.
    pub fn parse_new(text: &str) -> Result<Self, NameError> {
        let name = Self::parse(text)?;
        let reserved = RESERVED_PREFIXES.iter().any(|p| text.starts_with(p))
            || RESERVED_PARTS.iter().any(|p| text.contains(p));
        if reserved {
            return Err(NameError(format!("{text:?} is a name that LVM keeps for itself")));
        }
        Ok(name)
    }

    /// The LV of the volume that a CO calls `name`: the name itself where LVM allows it, so that
    /// `lvs` reads like `kubectl get pv`, else `cb-` and a hash.
    #[must_use]
    pub fn for_volume(name: &CsiName) -> Self {
        let text = name.as_str();
        let free = text.len() <= LV_NAME_MAX
            && !OWN_PREFIXES.iter().any(|p| text.starts_with(p))
            && ![GROWTH_SUFFIX, IMAGE_SUFFIX].iter().any(|s| text.ends_with(s));
        match Self::parse_new(text) {
            Ok(lv) if free => lv,
            _ => Self::hashed("volume", text),
        }
    }

    /// The LV of the snapshot that a CO calls `name`: `snap-x` for `snapshot-x` (the long prefix
    /// is LVM's own), else `cb-` and a hash.
    #[must_use]
    pub fn for_snapshot(name: &CsiName) -> Self {
        let text = name.as_str();
        text.strip_prefix("snapshot-")
            .map(|rest| format!("snap-{rest}"))
            .filter(|short| short.len() <= LV_NAME_MAX && short.len() > "snap-".len())
            .and_then(|short| Self::parse_new(&short).ok())
            .unwrap_or_else(|| Self::hashed("snapshot", text))
    }

    /// The LV with the extents that a volume is about to get.
    #[must_use]
    pub fn growth(&self) -> Self {
        Self(format!("{}{GROWTH_SUFFIX}", self.0))
    }

    /// The volume whose [`LvName::growth`] this is.
    #[must_use]
    pub fn without_growth(&self) -> Option<Self> {
        self.0.strip_suffix(GROWTH_SUFFIX).and_then(|name| Self::parse(name).ok())
    }

    /// The LV that holds what a volume's source held at one instant, while it is copied.
    #[must_use]
    pub fn image(&self) -> Self {
        Self(format!("{}{IMAGE_SUFFIX}", self.0))
    }

    /// The LV that is to become the metadata of this pool.
    #[must_use]
    pub fn pool_metadata(&self) -> Self {
        Self(format!("{}{POOL_METADATA_SUFFIX}", self.0))
    }

    /// The name that a deleted volume or snapshot has until it is cleared. Made from the LV's
    /// identifier, so that it proves which LV was meant, and never meets another one's.
    #[must_use]
    pub fn trash(lv: &LvmUuid) -> Self {
        let id = lv.compact().replace(['!', '#'], ".");
        Self(format!("{TRASH_PREFIX}{id}"))
    }

    fn hashed(kind: &str, text: &str) -> Self {
        let id = Uuid::new_v5(&NAMESPACE, format!("{kind}:{text}").as_bytes());
        Self(format!("cb-{id}"))
    }
}

impl LvmUuid {
    /// # Errors
    /// When the text is not an identifier as LVM prints it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let chars = text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-!#".contains(&c));
        if groups != [6, 4, 4, 4, 4, 4, 6] || !chars {
            return Err(NameError(format!("{text:?} is not an LVM identifier")));
        }
        Ok(Self(text.to_owned()))
    }

    /// From the 32 characters that stand on disk.
    ///
    /// # Errors
    /// When these are not characters of an identifier.
    pub fn from_compact(text: &str) -> Result<Self, NameError> {
        let mut parts = Vec::new();
        let mut rest = text;
        for len in [6, 4, 4, 4, 4, 4, 6] {
            let (head, tail) = rest
                .split_at_checked(len)
                .ok_or_else(|| NameError(format!("{text:?} is not an LVM identifier")))?;
            parts.push(head);
            rest = tail;
        }
        Self::parse(&(parts.join("-") + rest))
    }

    /// The 32 characters without dashes, as device-mapper uuids have them.
    #[must_use]
    pub fn compact(&self) -> String {
        self.0.replace('-', "")
    }

    /// An identifier that is the same for the same text.
    #[must_use]
    pub fn derived(text: &str) -> Self {
        Self::from_parts(&letters(&format!("1:{text}")), &letters(&format!("2:{text}")))
    }

    /// An identifier for a PV that we make: nobody else has it, and it proves that we made it for
    /// `purpose`, so that a half-made PV is recognised after a cut.
    #[must_use]
    pub fn sealed(nonce: Uuid, purpose: &str) -> Self {
        let nonce = letters(&nonce.to_string());
        let seal = letters(&format!("seal:{nonce}:{purpose}"));
        Self::from_parts(&nonce, &seal)
    }

    /// Whether [`LvmUuid::sealed`] made it for that purpose.
    #[must_use]
    pub fn is_sealed_for(&self, purpose: &str) -> bool {
        let compact = self.compact();
        compact
            .split_at_checked(16)
            .is_some_and(|(nonce, seal)| seal == letters(&format!("seal:{nonce}:{purpose}")))
    }

    fn from_parts(one: &str, two: &str) -> Self {
        let mut text = String::with_capacity(38);
        for (i, c) in one.chars().chain(two.chars()).enumerate() {
            if [6, 10, 14, 18, 22, 26].contains(&i) {
                text.push('-');
            }
            text.push(c);
        }
        Self(text)
    }

    /// The UUID of the filesystem that is made on the LV with this identifier: always the same,
    /// so that a half-made filesystem is recognised as our own, and a clone's differs from its
    /// source's.
    #[must_use]
    pub fn filesystem_uuid(&self) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("fs:{}", self.0).as_bytes())
    }

    /// The UUID of the LUKS header on the LV with this identifier, for the same reasons.
    #[must_use]
    pub fn luks_uuid(&self) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("luks:{}", self.0).as_bytes())
    }
}

/// The device-mapper name of an LV: both names with their dashes doubled, joined by one.
///
/// # Errors
/// When it is longer than the kernel allows.
pub fn dm_name(vg: &VgName, lv: &LvName) -> Result<String, NameError> {
    let name = format!("{}-{}", vg.0.replace('-', "--"), lv.0.replace('-', "--"));
    if name.len() > DM_NAME_MAX {
        return Err(NameError(format!(
            "the device name {name:?} has {} characters, more than {DM_NAME_MAX}: give the volume group a shorter name",
            name.len()
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn csi(text: &str) -> CsiName {
        CsiName::parse(text).unwrap()
    }

    #[test]
    fn volumes_keep_their_name_where_lvm_allows_it() {
        let pvc = "pvc-6f1cbb9d-3f6c-4a6c-8b43-0d9fa3cbb0b5";
        assert_eq!(LvName::for_volume(&csi(pvc)).as_str(), pvc);
        assert_eq!(LvName::for_volume(&csi("web+data_1.2")).as_str(), "web+data_1.2");
        for odd in [
            "x.growth",
            "x.image",
            "snapshot-1",
            "snap-1",
            "cb-1",
            "lvol0",
            "pvmove0",
            "a_tmeta",
            "with blank",
            "-x",
            "..",
            "ünïcode",
            &"x".repeat(64),
            &"n".repeat(128),
        ] {
            let lv = LvName::for_volume(&csi(odd));
            assert!(lv.as_str().starts_with("cb-"), "{odd} -> {lv}");
            assert_eq!(lv, LvName::parse_new(lv.as_str()).unwrap());
        }
    }

    #[test]
    fn snapshots_lose_the_prefix_that_lvm_reserves() {
        let name = csi("snapshot-6f1cbb9d-3f6c-4a6c-8b43-0d9fa3cbb0b5");
        assert_eq!(
            LvName::for_snapshot(&name).as_str(),
            "snap-6f1cbb9d-3f6c-4a6c-8b43-0d9fa3cbb0b5"
        );
        for odd in ["snapshot-", "daily", "snap-1", "snapshot-a b"] {
            assert!(LvName::for_snapshot(&csi(odd)).as_str().starts_with("cb-"), "{odd}");
        }
    }

    #[test]
    fn a_volume_and_a_snapshot_never_share_an_lv() {
        for name in ["daily", "snap-x", "snapshot-x", "x", "cb-x"] {
            assert_ne!(LvName::for_volume(&csi(name)), LvName::for_snapshot(&csi(name)), "{name}");
        }
        assert_ne!(LvName::for_volume(&csi("snap-x")), LvName::for_snapshot(&csi("snapshot-x")));
    }

    #[test]
    fn identifiers_on_disk_and_in_print() {
        let id = LvmUuid::parse("9xijuU-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6Ov").unwrap();
        assert_eq!(id.compact(), "9xijuUB1GCB7FuPXHqP1oQunvPb4f6Ov");
        assert_eq!(LvmUuid::from_compact(&id.compact()).unwrap(), id);
        let derived = LvmUuid::derived("lvmdriver-1:/dev/disk/by-id/one");
        assert_eq!(LvmUuid::parse(derived.as_str()).unwrap(), derived);
        assert_ne!(derived, LvmUuid::derived("lvmdriver-1:/dev/disk/by-id/two"));
        let sealed = LvmUuid::sealed(Uuid::from_u128(7), "vg0:/dev/disk/by-id/one");
        assert_eq!(LvmUuid::parse(sealed.as_str()).unwrap(), sealed);
        assert!(sealed.is_sealed_for("vg0:/dev/disk/by-id/one"));
        assert!(!sealed.is_sealed_for("vg0:/dev/disk/by-id/two"));
        assert!(!id.is_sealed_for("vg0:/dev/disk/by-id/one"));
        for bad in ["", "9xijuU", "9xijuU-B1GC-B7Fu-PXHq-P1oQ-unvP-b4f6O", "../etc/passwd"] {
            assert!(LvmUuid::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn device_mapper_doubles_dashes() {
        let name = |vg, lv| dm_name(&VgName::parse(vg).unwrap(), &LvName::parse(lv).unwrap());
        assert_eq!(name("vg-0", "pvc-1").unwrap(), "vg--0-pvc--1");
        assert!(name(&"v-".repeat(60), "pvc-1").is_err());
    }

    proptest! {
        #[test]
        fn any_csi_name_gives_an_lv_that_lvm_takes(name in "\\PC{1,32}") {
            if let Ok(name) = CsiName::parse(&name) {
                for lv in [LvName::for_volume(&name), LvName::for_snapshot(&name)] {
                    prop_assert_eq!(&LvName::parse_new(lv.as_str()).unwrap(), &lv);
                    prop_assert!(lv.as_str().len() <= LV_NAME_MAX);
                }
            }
        }
    }
}
