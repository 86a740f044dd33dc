//! LVM's structures on a PV: where the label, the metadata area and the committed metadata stand,
//! and whether their checksums hold. Pure: it is given bytes and says which to read next.
//!
//! The facts are those of lvm2's `lib/label/label.h`, `format_text/layout.h` and `misc/crc.c`,
//! unchanged since 2002: it is the only disk format that `vgcreate` makes.

use crc::{Algorithm, Crc};

use crate::names::LvmUuid;

/// How much of a PV to read for [`PvLabel::parse`]: the four sectors that may hold a label.
pub const LABEL_BYTES: u64 = 4 * SECTOR;
/// How much of a metadata area to read for [`AreaHeader::parse`].
pub const AREA_HEADER_BYTES: u64 = SECTOR;
/// Metadata larger than this is not read (LVM's own limit is the area; 16 MiB hold 30,000 LVs).
pub const TEXT_BYTES_MAX: u64 = 64 << 20;

const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;
/// LVM's checksum: the usual polynomial, another start, no inversion at the end.
const CRC: Crc<u32> = Crc::<u32>::new(&Algorithm {
    width: 32,
    poly: 0x04c1_1db7,
    init: 0xf597_a6cf_u32.reverse_bits(),
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
});
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// `RAW_LOCN_IGNORED`: the area is kept but not used (`--metadataignore`).
const FLAG_IGNORED: u32 = 1;
/// A PV has at most two metadata areas and one data area; more entries mean garbage.
const AREAS_MAX: usize = 8;

/// Why bytes are not the structure that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// No label in the first four sectors.
    #[error("no LVM label")]
    NoLabel,
    /// A checksum does not fit: damaged, or read while it was written.
    #[error("the checksum of the {0} does not fit")]
    Checksum(&'static str),
    /// A field has a value that cannot be.
    #[error("the {0} makes no sense")]
    Field(&'static str),
}

/// A PV's label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PvLabel {
    /// The PV's identifier.
    pub pv: LvmUuid,
    /// Metadata areas: offset on the device and size, in bytes.
    pub areas: Vec<(u64, u64)>,
}

/// The header of a metadata area: where its committed metadata is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaHeader {
    start: u64,
    size: u64,
    /// The committed metadata. `None` when the area is unused.
    pub committed: Option<Location>,
}

/// Where a text stands in its area. Any commit changes it: the text moves on in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    offset: u64,
    size: u64,
    checksum: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}

impl PvLabel {
    /// From the first [`LABEL_BYTES`] of a device.
    ///
    /// # Errors
    /// When there is no label, or it is damaged.
    pub fn parse(head: &[u8]) -> Result<Self, LabelError> {
        let sector = head
            .chunks_exact(SECTOR_LEN)
            .take(4)
            .find(|s| s.starts_with(b"LABELONE") && s.get(24..32) == Some(b"LVM2 001"))
            .ok_or(LabelError::NoLabel)?;
        let field = || LabelError::Field("label");
        let checksum = u32_at(sector, 16).ok_or_else(field)?;
        if crc(sector.get(20..).unwrap_or_default()) != checksum {
            return Err(LabelError::Checksum("label"));
        }
        let at = u32_at(sector, 20).and_then(|n| usize::try_from(n).ok()).ok_or_else(field)?;
        let header = sector.get(at..).ok_or_else(field)?;
        let id = header.get(..32).and_then(|b| std::str::from_utf8(b).ok()).ok_or_else(field)?;
        let pv = LvmUuid::from_compact(id).map_err(|_| field())?;
        // Behind the id and the device's size: data areas up to a zero entry, then metadata areas.
        let mut lists = header.get(40..).unwrap_or_default().chunks_exact(16);
        let mut list = || {
            let mut out = Vec::new();
            for entry in lists.by_ref().take(AREAS_MAX) {
                match (u64_at(entry, 0), u64_at(entry, 8)) {
                    (Some(0) | None, _) | (_, None) => return out,
                    (Some(offset), Some(size)) => out.push((offset, size)),
                }
            }
            out
        };
        list();
        Ok(Self { pv, areas: list() })
    }
}

impl AreaHeader {
    /// From the first [`AREA_HEADER_BYTES`] of the area at `offset` of the device.
    ///
    /// # Errors
    /// When it is damaged or read while LVM wrote it.
    pub fn parse(offset: u64, head: &[u8]) -> Result<Self, LabelError> {
        let field = || LabelError::Field("metadata area's header");
        let head = head.get(..SECTOR_LEN).ok_or_else(field)?;
        if head.get(4..20) != Some(AREA_MAGIC) || u32_at(head, 20) != Some(1) {
            return Err(field());
        }
        if u32_at(head, 0) != Some(crc(head.get(4..).unwrap_or_default())) {
            return Err(LabelError::Checksum("metadata area's header"));
        }
        let start = u64_at(head, 24).ok_or_else(field)?;
        let size = u64_at(head, 32).ok_or_else(field)?;
        if start != offset || size <= SECTOR {
            return Err(field());
        }
        let location = Location {
            offset: u64_at(head, 40).ok_or_else(field)?,
            size: u64_at(head, 48).ok_or_else(field)?,
            checksum: u32_at(head, 56).ok_or_else(field)?,
        };
        let ignored = u32_at(head, 60).is_none_or(|flags| flags & FLAG_IGNORED != 0);
        if ignored || location.offset == 0 {
            return Ok(Self { start, size, committed: None });
        }
        let inside = location.offset >= SECTOR
            && location.offset < size
            && location.size < size.min(TEXT_BYTES_MAX);
        if !inside {
            return Err(field());
        }
        Ok(Self { start, size, committed: Some(location) })
    }

    /// The one or two pieces of the device that hold the text: offset and length in bytes.
    #[must_use]
    pub fn pieces(&self, at: Location) -> Vec<(u64, u64)> {
        let first = at.size.min(self.size.saturating_sub(at.offset));
        let mut pieces = vec![(self.start.saturating_add(at.offset), first)];
        if first < at.size {
            pieces.push((self.start.saturating_add(SECTOR), at.size.saturating_sub(first)));
        }
        pieces
    }
}

impl Location {
    /// The same for the same text, wherever it stands on whichever disk.
    #[must_use]
    pub const fn fingerprint(self) -> (u64, u32) {
        (self.size, self.checksum)
    }

    /// The text, from the bytes of its pieces in their order.
    ///
    /// # Errors
    /// When the checksum does not fit: LVM has written meanwhile, or the area is damaged.
    pub fn text(self, bytes: &[u8]) -> Result<&str, LabelError> {
        if u64::try_from(bytes.len()) != Ok(self.size) || crc(bytes) != self.checksum {
            return Err(LabelError::Checksum("metadata"));
        }
        std::str::from_utf8(bytes)
            .map(|text| text.trim_end_matches('\0'))
            .map_err(|_| LabelError::Field("metadata"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first 16 KiB of a PV made by LVM 2.03.16, in the VG `exported`.
    const PV: &[u8] = include_bytes!("../../tests/recordings/lvm-2.03.16/exported.pv");

    fn area() -> (AreaHeader, Location) {
        let label = PvLabel::parse(&PV[..2048]).unwrap();
        assert_eq!(label.pv.as_str(), "0ZPnCr-AFHq-zk62-eZSV-Y7Ss-ahGv-dGhHp7");
        let (offset, _) = label.areas[0];
        let at = usize::try_from(offset).unwrap();
        let header = AreaHeader::parse(offset, &PV[at..at + 512]).unwrap();
        (header, header.committed.unwrap())
    }

    #[test]
    fn finds_the_committed_metadata_of_a_real_pv() {
        let (header, at) = area();
        let mut bytes = Vec::new();
        for (offset, len) in header.pieces(at) {
            let from = usize::try_from(offset).unwrap();
            bytes.extend(&PV[from..from + usize::try_from(len).unwrap()]);
        }
        let text = at.text(&bytes).unwrap();
        assert!(text.starts_with("exported {\nid = \"hmdYjM"), "{text}");
        assert!(text.contains("seqno = 3\n"));
        assert!(!text.ends_with('\0'));
    }

    #[test]
    fn refuses_what_is_damaged() {
        let mut head = PV[..2048].to_vec();
        assert_eq!(PvLabel::parse(&[0; 2048]), Err(LabelError::NoLabel));
        head[512 + 40] ^= 1;
        assert_eq!(PvLabel::parse(&head), Err(LabelError::Checksum("label")));
        let mut header = PV[4096..4608].to_vec();
        header[44] ^= 1;
        assert!(matches!(AreaHeader::parse(4096, &header), Err(LabelError::Checksum(_))));
        assert!(AreaHeader::parse(0, &PV[4096..4608]).is_err());
        let (_, at) = area();
        let bytes = vec![b'x'; usize::try_from(at.size).unwrap()];
        assert_eq!(at.text(&bytes), Err(LabelError::Checksum("metadata")));
    }

    #[test]
    fn a_text_at_the_end_of_the_ring_goes_on_behind_the_header() {
        let header = AreaHeader { start: 4096, size: 10_000, committed: None };
        let at = Location { offset: 9_000, size: 1_500, checksum: 0 };
        assert_eq!(header.pieces(at), [(13_096, 1_000), (4_608, 500)]);
        let at = Location { offset: 512, size: 1_500, checksum: 0 };
        assert_eq!(header.pieces(at), [(4_608, 1_500)]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(head in proptest::collection::vec(any::<u8>(), 0..2048), at in any::<u64>()) {
            drop(PvLabel::parse(&head));
            drop(AreaHeader::parse(at, &head));
        }

        #[test]
        fn any_damage_to_a_label_is_noticed(at in 512..1024usize, bit in 0..8u8) {
            let mut head = PV[..2048].to_vec();
            head[at] ^= 1 << bit;
            let read = PvLabel::parse(&head);
            // The sector number (bytes 8 to 16) is not ours to check, and not under the checksum.
            prop_assert!(read.is_err() || (520..528).contains(&at));
        }
    }
}
