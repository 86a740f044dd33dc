//! What the kernel and programs say, and headers on devices.

use std::hint::black_box;

use uuid::Uuid;

use super::as_text;
use crate::agent::wrap;
use crate::host::cow_status::CowStatus;
use crate::host::dm::PoolStatus;
use crate::host::raid_status::RaidStatus;
use crate::host::runner::{Completed, Exit};
use crate::host::{dm_status, filesystem, luks};
use crate::lvm::tag::FsType;
use crate::secret::Secret;

/// A header as it is, and the same bytes as the description in one whose checksums are right. What is in a
/// token is tried as a key.
pub(super) fn luks_header(bytes: &[u8]) {
    drop(luks::parse(bytes));
    let whole = luks::with_description(Uuid::from_u128(7), bytes);
    if let luks::Head::Header(header) = luks::parse(&whole) {
        let free = header.free_slot();
        assert!(free.is_none_or(|slot| !header.slots.contains(&slot)));
        let master = Secret::new(vec![7; 32]);
        for token in header.tokens.values() {
            drop(wrap::unwrap(&master, token));
        }
    }
}

/// What the kernel's device-mapper says: the bytes of an answer, and the lines in it.
pub(super) fn kernel_status(bytes: &[u8]) {
    drop(dm_status::parse(bytes));
    for line in as_text(bytes).lines() {
        black_box(PoolStatus::parse(line));
        if let Some(raid) = RaidStatus::parse(line) {
            assert!(raid.percent_in_step().is_none_or(|percent| percent <= 100), "{line}");
        }
        if let Some(cow) = CowStatus::parse(line) {
            black_box(cow.used_bp());
        }
    }
}

/// What blkid, fsck and cryptsetup say. The first byte is how they ended.
pub(super) fn output(bytes: &[u8]) {
    let (code, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let text = as_text(rest);
    let (stdout, stderr) = text.split_once('\0').unwrap_or((&text, ""));
    let done = Completed {
        exit: Exit::Code(i32::from(*code)),
        stdout: stdout.to_owned(),
        stderr: stderr.to_owned(),
    };
    drop(filesystem::probe_result(&done));
    drop(filesystem::check_result(&done));
    drop(luks::test_result(&done));
    black_box(luks::is_wrong_key(&done));
    drop((FsType::parse(stdout), done.complaint()));
}
