//! What filesystem is on a device, how large it is and which UUID it has, from its superblock.
//! Pure: bytes in, facts out. It knows the filesystems that we make; whether a device is blank is
//! for `blkid` to say, which knows hundreds.

use uuid::Uuid;

use crate::lvm::tag::FsType;
use crate::units::Bytes;

/// How much of a device to read for [`parse`]: btrfs has its superblock at 64 KiB.
pub const HEAD_BYTES: u64 = 68 << 10;

const EXT4_AT: usize = 1024;
const BTRFS_AT: usize = 64 << 10;
const EXT4_INCOMPAT_64BIT: u32 = 0x80;

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

/// A superblock as our mkfs would leave it, for tests and for the simulation.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn print(superblock: &Superblock) -> Vec<u8> {
    let mut head = vec![0; usize::try_from(HEAD_BYTES).unwrap_or_default()];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(room) = head.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            room.copy_from_slice(bytes);
        }
    };
    let blocks = superblock.size.get() / 4096;
    match superblock.fs {
        FsType::Ext4 => {
            let low = blocks.to_le_bytes();
            put(EXT4_AT + 4, &[low[0], low[1], low[2], low[3]]);
            put(EXT4_AT + 24, &2_u32.to_le_bytes());
            put(EXT4_AT + 56, &0xef53_u16.to_le_bytes());
            put(EXT4_AT + 96, &EXT4_INCOMPAT_64BIT.to_le_bytes());
            put(EXT4_AT + 104, superblock.uuid.as_bytes());
            put(EXT4_AT + 336, &[low[4], low[5], low[6], low[7]]);
        }
        FsType::Xfs => {
            put(0, b"XFSB");
            put(4, &4096_u32.to_be_bytes());
            put(8, &blocks.to_be_bytes());
            put(32, superblock.uuid.as_bytes());
        }
        FsType::Btrfs => {
            put(BTRFS_AT + 32, superblock.uuid.as_bytes());
            put(BTRFS_AT + 64, b"_BHRfS_M");
            put(BTRFS_AT + 112, &superblock.size.get().to_le_bytes());
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
    fn a_blank_device_has_none() {
        assert_eq!(parse(&vec![0; usize::try_from(HEAD_BYTES).unwrap()]), None);
    }
}
