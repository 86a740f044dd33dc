//! Whether the log of an XFS was thrown away halfway: `xfs_admin -U` proves that a log is clean, zeroes it,
//! writes a new one with the new UUID, and then the superblocks. The kernel takes no log of another UUID.
//! And whether an `xfs_repair` was cut. Pure: bytes in, facts out.
//!
//! Offsets are those of `struct xfs_dsb` and `struct xlog_rec_header` (`xfs_format.h` and
//! `xfs_log_format.h` in linux/fs/xfs/libxfs), big-endian.

use uuid::Uuid;

/// How much of a log to read for [`was_cut`].
pub const LOG_HEAD_BYTES: u64 = 4096;

/// First in a log record.
const RECORD_MAGIC: [u8; 4] = [0xfe, 0xed, 0xba, 0xbe];
/// Where a record has the UUID of its filesystem.
const RECORD_UUID: usize = 304;

/// Where the log begins on the device, in bytes, from the first sector of it. `None`: it is no XFS, or
/// its log is on another device.
#[must_use]
pub fn begins_at(head: &[u8]) -> Option<u64> {
    if array(head, 0)? != *b"XFSB" {
        return None;
    }
    let block_bytes = u64::from(u32::from_be_bytes(array(head, 4)?));
    // An address is the number of an allocation group, and in the low bits a block within it.
    let start = u64::from_be_bytes(array(head, 48)?);
    let group_blocks = u64::from(u32::from_be_bytes(array(head, 84)?));
    let [group_bits] = array(head, 124)?;
    let group = start.checked_shr(group_bits.into())?;
    let within = start.checked_sub(group.checked_shl(group_bits.into())?)?;
    let block = group.checked_mul(group_blocks)?.checked_add(within)?;
    (start != 0).then_some(block.checked_mul(block_bytes)?)
}

/// Whether `xfs_repair` has begun with a filesystem and not come to its end, by its superblock
/// (`XFS_SB_FEAT_INCOMPAT_NEEDSREPAIR` in `sb_features_incompat`). The kernel does not mount it.
#[must_use]
pub fn needs_repair(head: &[u8]) -> bool {
    const INCOMPATIBLE_AT: usize = 216;
    const NEEDS_REPAIR: u32 = 1 << 4;
    let flags = array(head, INCOMPATIBLE_AT).map(u32::from_be_bytes);
    array(head, 0) == Some(*b"XFSB") && flags.is_some_and(|flags| flags & NEEDS_REPAIR != 0)
}

/// Whether a log, by its first [`LOG_HEAD_BYTES`], was proved clean and then not wholly replaced, or not
/// its superblock after it. `now` is the UUID in the superblock, and `own` the one that only we give to
/// this volume, and only after that proof.
#[must_use]
pub fn was_cut(log: &[u8], now: Uuid, own: Uuid) -> bool {
    // A log in use never begins with zeroes: each of its sectors bears the number of its round.
    if u64::try_from(log.len()) == Ok(LOG_HEAD_BYTES) && log.iter().all(|byte| *byte == 0) {
        return true;
    }
    let record = array(log, 0) == Some(RECORD_MAGIC);
    let of = array(log, RECORD_UUID).map(Uuid::from_bytes).filter(|_| record);
    of.is_some_and(|of| of != now && (of == own || now == own))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The first record of a log of this UUID, for the simulation. `None`: a log that is zeroed.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn print(of: Option<Uuid>) -> Vec<u8> {
    let zeroes = || std::iter::repeat_n(0, usize::try_from(LOG_HEAD_BYTES).unwrap_or_default());
    let Some(of) = of else { return zeroes().collect() };
    let mut log = RECORD_MAGIC.to_vec();
    log.extend(zeroes().take(RECORD_UUID.saturating_sub(RECORD_MAGIC.len())));
    log.extend(of.as_bytes());
    log.extend(zeroes().skip(log.len()));
    log
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As mkfs.xfs 6.1 lays out 320 MiB: 4 groups of 20480 blocks, the log in the third.
    fn head() -> Vec<u8> {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(b"XFSB");
        head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        head[48..56].copy_from_slice(&65544_u64.to_be_bytes());
        head[84..88].copy_from_slice(&20480_u32.to_be_bytes());
        head[124] = 15;
        head
    }

    #[test]
    fn a_repair_that_was_cut_shows_in_the_superblock() {
        let mut head = vec![0; 512];
        head[..4].copy_from_slice(b"XFSB");
        // FTYPE, SPINODES, META_UUID, BIGTIME.
        head[219] = 0b1111;
        assert!(!needs_repair(&head));
        head[219] |= 0x10;
        assert!(needs_repair(&head));
        head[0] = 0;
        assert!(!needs_repair(&head) && !needs_repair(b"XFSB"));
    }

    #[test]
    fn a_log_is_found_behind_whole_groups() {
        assert_eq!(begins_at(&head()), Some((2 * 20480 + 8) * 4096));
        let external = |mut head: Vec<u8>| {
            head[48..56].fill(0);
            head
        };
        assert_eq!(begins_at(&external(head())), None);
        assert_eq!(begins_at(&head()[..100]), None);
        assert_eq!(begins_at(&[0; 512]), None);
    }

    #[test]
    fn only_a_log_that_our_change_left_is_cut() {
        let [source, own, third] = [1, 2, 3].map(Uuid::from_u128);
        let cut = |log, now| was_cut(&print(log), now, own);
        assert!(cut(None, source) && cut(None, own), "zeroed");
        assert!(cut(Some(own), source), "the log has been written, the superblock not");
        assert!(cut(Some(source), own), "the power went before the log was on the disk");
        assert!(!cut(Some(source), source) && !cut(Some(own), own), "whole");
        assert!(!cut(Some(third), source), "damaged by somebody else");
        let mut inside = print(Some(own));
        inside[0] = 0;
        assert!(!was_cut(&inside, source, own), "not a record's first sector");
        assert!(!was_cut(&[0; 512], source, own) && !was_cut(&[], source, own), "too little");
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..512), zeroes in 0..300usize) {
            let mut head = b"XFSB".to_vec();
            head.extend(bytes);
            head.extend(vec![0; zeroes]);
            let _place = begins_at(&head);
            let _cut = was_cut(&head, Uuid::nil(), Uuid::max());
        }
    }
}
