//! What filesystem is on a device, how large it is and which UUID it has, from its superblock.
//! Pure: bytes in, facts out. It knows the filesystems that we make; whether a device is blank is
//! for `blkid` to say, which knows hundreds.

use crc::{CRC_32_ISCSI, Crc};
use uuid::Uuid;

use crate::lvm::tag::FsType;
use crate::units::Bytes;

/// How much of a device to read for [`parse`]: btrfs has its superblock at 64 KiB.
pub const HEAD_BYTES: u64 = 68 << 10;

const EXT4_AT: usize = 1024;
const BTRFS_AT: usize = 64 << 10;
const EXT4_INCOMPAT_64BIT: u32 = 0x80;

/// Where btrfs keeps its superblock and the copies of it (btrfs-dev-docs/on-disk-format).
pub const BTRFS_COPIES_AT: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
/// Size of a btrfs superblock.
pub const BTRFS_SUPERBLOCK_BYTES: u64 = 4096;
const BTRFS_CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
const BTRFS_FSID: usize = 0x20;
const BTRFS_BYTENR: usize = 0x30;
const BTRFS_INCOMPAT: usize = 0xbc;
const BTRFS_CSUM_TYPE: usize = 0xc4;
const BTRFS_METADATA_UUID: usize = 0x23b;
/// `BTRFS_FEATURE_INCOMPAT_METADATA_UUID`, known by kernels since 5.0.
const BTRFS_INCOMPAT_METADATA_UUID: u64 = 1 << 10;

/// A filesystem, as its superblock describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Its type. ext2 and ext3 count as ext4, whose driver mounts them.
    pub fs: FsType,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its size: where it ends on the device.
    pub size: Bytes,
}

/// The filesystem whose superblock is in the first [`HEAD_BYTES`] of a device, if there is one.
#[must_use]
pub fn parse(head: &[u8]) -> Option<Superblock> {
    btrfs(head.get(BTRFS_AT..)?).or_else(|| xfs(head)).or_else(|| ext4(head.get(EXT4_AT..)?))
}

/// Whether a filesystem was surely never in use, although it may not be whole: ext4 notes the time of its
/// last mount for writing (`s_mtime`, linux/Documentation/filesystems/ext4), and XFS that mkfs is at it
/// (`sb_inprogress`). The superblock of btrfs is written when all else is there.
#[must_use]
pub fn was_never_used(head: &[u8]) -> bool {
    let found = parse(head).map(|superblock| superblock.fs);
    match found {
        Some(FsType::Ext4) => array(head, EXT4_AT + 44) == Some([0; 4]),
        Some(FsType::Xfs) => array(head, 126) == Some([1]),
        Some(FsType::Btrfs) | None => false,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn ext4(sb: &[u8]) -> Option<Superblock> {
    if array(sb, 56)? != 0xef53_u16.to_le_bytes() {
        return None;
    }
    let le32 = |at| array(sb, at).map(u32::from_le_bytes);
    let high = if le32(96)? & EXT4_INCOMPAT_64BIT == 0 { 0 } else { le32(336)? };
    let blocks = u64::from(high) << 32 | u64::from(le32(4)?);
    let block_size = 1024_u64.checked_shl(le32(24)?).filter(|size| *size <= 64 << 10)?;
    let size = Bytes::new(blocks.checked_mul(block_size)?);
    Some(Superblock { fs: FsType::Ext4, uuid: Uuid::from_bytes(array(sb, 104)?), size })
}

fn xfs(sb: &[u8]) -> Option<Superblock> {
    if array(sb, 0)? != *b"XFSB" {
        return None;
    }
    let block_size = u64::from(u32::from_be_bytes(array(sb, 4)?));
    let size = Bytes::new(u64::from_be_bytes(array(sb, 8)?).checked_mul(block_size)?);
    Some(Superblock { fs: FsType::Xfs, uuid: Uuid::from_bytes(array(sb, 32)?), size })
}

fn btrfs(sb: &[u8]) -> Option<Superblock> {
    if array(sb, 64)? != *b"_BHRfS_M" {
        return None;
    }
    let size = Bytes::new(u64::from_le_bytes(array(sb, 112)?));
    Some(Superblock { fs: FsType::Btrfs, uuid: Uuid::from_bytes(array(sb, 32)?), size })
}

/// A btrfs superblock with another UUID: what `btrfstune -M` writes, but of the same generation.
/// btrfstune commits a transaction, after which a log that was still to be replayed - all that was
/// fsynced shortly before the snapshot - cannot be read any more; and a mount that would replay it
/// is refused by the kernel while the source is mounted.
///
/// # Errors
/// Why it cannot be done, as the end of a sentence.
pub fn btrfs_with_uuid(superblock: &[u8], uuid: Uuid) -> Result<Vec<u8>, &'static str> {
    let mut sb = superblock.to_vec();
    let (Some(stored), Some(body)) = (array::<4>(&sb, 0), sb.get(32..)) else {
        return Err("it is too short");
    };
    if array(&sb, BTRFS_CSUM_TYPE) != Some([0, 0]) {
        return Err("its checksums are not crc32c, which is all that this driver makes");
    }
    if BTRFS_CRC.checksum(body).to_le_bytes() != stored {
        return Err("its checksum does not fit");
    }
    let (Some(old), Some(flags)) = (array::<16>(&sb, BTRFS_FSID), array(&sb, BTRFS_INCOMPAT))
    else {
        return Err("it is too short");
    };
    let flags = u64::from_le_bytes(flags);
    if flags & BTRFS_INCOMPAT_METADATA_UUID == 0 {
        put(&mut sb, BTRFS_METADATA_UUID, &old);
        put(&mut sb, BTRFS_INCOMPAT, &(flags | BTRFS_INCOMPAT_METADATA_UUID).to_le_bytes());
    }
    put(&mut sb, BTRFS_FSID, uuid.as_bytes());
    let checksum = BTRFS_CRC.checksum(sb.get(32..).unwrap_or_default());
    put(&mut sb, 0, &checksum.to_le_bytes());
    Ok(sb)
}

/// Whether bytes are the btrfs superblock that belongs at that place.
#[must_use]
pub fn is_btrfs_copy(superblock: &[u8], at: u64) -> bool {
    btrfs(superblock).is_some() && array(superblock, BTRFS_BYTENR) == Some(at.to_le_bytes())
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = into.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        room.copy_from_slice(bytes);
    }
}

/// A superblock as our mkfs would leave it, for tests and for the simulation.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn print(superblock: &Superblock) -> Vec<u8> {
    let mut head = vec![0; usize::try_from(HEAD_BYTES).unwrap_or_default()];
    let blocks = superblock.size.get() / 4096;
    match superblock.fs {
        FsType::Ext4 => {
            let low = blocks.to_le_bytes();
            put(&mut head, EXT4_AT + 4, &[low[0], low[1], low[2], low[3]]);
            put(&mut head, EXT4_AT + 24, &2_u32.to_le_bytes());
            put(&mut head, EXT4_AT + 56, &0xef53_u16.to_le_bytes());
            put(&mut head, EXT4_AT + 96, &EXT4_INCOMPAT_64BIT.to_le_bytes());
            put(&mut head, EXT4_AT + 104, superblock.uuid.as_bytes());
            put(&mut head, EXT4_AT + 336, &[low[4], low[5], low[6], low[7]]);
        }
        FsType::Xfs => {
            put(&mut head, 0, b"XFSB");
            put(&mut head, 4, &4096_u32.to_be_bytes());
            put(&mut head, 8, &blocks.to_be_bytes());
            // A log in the first block of the second of two groups.
            put(&mut head, 48, &(1_u64 << 30).to_be_bytes());
            put(&mut head, 84, &1_u32.to_be_bytes());
            put(&mut head, 124, &[30]);
            put(&mut head, 32, superblock.uuid.as_bytes());
        }
        FsType::Btrfs => {
            put(&mut head, BTRFS_AT + 32, superblock.uuid.as_bytes());
            put(&mut head, BTRFS_AT + 64, b"_BHRfS_M");
            put(&mut head, BTRFS_AT + 112, &superblock.size.get().to_le_bytes());
            let at = u64::try_from(BTRFS_AT).unwrap_or_default();
            put(&mut head, BTRFS_AT + BTRFS_BYTENR, &at.to_le_bytes());
            let body = head.get(BTRFS_AT + 32..BTRFS_AT + 4096).unwrap_or_default();
            let sum = BTRFS_CRC.checksum(body);
            put(&mut head, BTRFS_AT, &sum.to_le_bytes());
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn printing_and_parsing_agree(fs in 0..3usize, blocks in 1..1u64 << 40, id in any::<u128>()) {
            let fs = FsType::ALL[fs];
            let superblock = Superblock { fs, uuid: Uuid::from_u128(id), size: Bytes::new(blocks * 4096) };
            prop_assert_eq!(parse(&print(&superblock)), Some(superblock));
        }

        #[test]
        fn any_bytes_end(head in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(parse(&head), None);
        }
    }

    #[test]
    fn btrfs_gets_another_uuid_and_keeps_what_it_was_made_with() {
        let (old, new, third) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let size = Bytes::gib(1);
        let head = print(&Superblock { fs: FsType::Btrfs, uuid: old, size });
        let before = &head[BTRFS_AT..BTRFS_AT + 4096];
        assert!(is_btrfs_copy(before, 64 << 10) && !is_btrfs_copy(before, 64 << 20));
        let after = btrfs_with_uuid(before, new).unwrap();
        assert_eq!(btrfs(&after).unwrap(), Superblock { fs: FsType::Btrfs, uuid: new, size });
        assert_eq!(array(&after, BTRFS_METADATA_UUID), Some(*old.as_bytes()));
        // A copy of a copy: the trees still bear the first one's.
        let again = btrfs_with_uuid(&after, third).unwrap();
        assert_eq!(array(&again, BTRFS_METADATA_UUID), Some(*old.as_bytes()));
        assert_eq!(btrfs(&again).unwrap().uuid, third);
        let mut broken = before.to_vec();
        broken[100] ^= 1;
        assert!(btrfs_with_uuid(&broken, new).unwrap_err().contains("checksum"));
        assert!(btrfs_with_uuid(&before[..10], new).is_err());
    }

    #[test]
    fn only_what_says_so_was_never_used() {
        let head = |fs| print(&Superblock { fs, uuid: Uuid::from_u128(1), size: Bytes::gib(1) });
        let with = |mut head: Vec<u8>, at: usize, byte| {
            head[at] = byte;
            was_never_used(&head)
        };
        assert!(was_never_used(&head(FsType::Ext4)));
        assert!(!with(head(FsType::Ext4), EXT4_AT + 47, 0x65), "mounted in 2023");
        assert!(with(head(FsType::Xfs), 126, 1) && !was_never_used(&head(FsType::Xfs)));
        assert!(!was_never_used(&head(FsType::Btrfs)) && !was_never_used(&[]));
    }

    #[test]
    fn a_blank_device_has_none() {
        assert_eq!(parse(&vec![0; usize::try_from(HEAD_BYTES).unwrap()]), None);
    }
}
