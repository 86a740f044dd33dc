//! The programs beside LVM: mkfs and its kin, blkid.

use std::path::Path;

use uuid::Uuid;

use super::crypt;
use super::world::World;
use crate::host::invocation::{Input, Invocation, Program};
use crate::host::runner::{Completed, Exit};
use crate::host::superblock::Superblock;
use crate::lvm::tag::FsType;
use crate::units::Bytes;

/// Whether a call only reads.
pub(super) fn is_read(call: &Invocation) -> bool {
    call.program == Program::Blkid
        || (call.program == Program::Cryptsetup && crypt::is_read(&call.args))
}

/// Runs a program.
pub(super) fn run(world: &mut World, call: &Invocation) -> Completed {
    let last = call.args.last().map_or("", String::as_str);
    let device = Path::new(last);
    let ok = |stdout: &str| answer(0, stdout, "");
    let bad = |why: &str| answer(1, "", why);
    let after = |flag: &str| {
        let at = call.args.iter().position(|a| a == flag)?;
        call.args.get(at.saturating_add(1)).cloned()
    };
    match call.program {
        Program::Lvm => bad("lvm is simulated elsewhere"),
        Program::Blkid => match &call.input {
            Input::File(device) => blkid(world, device),
            Input::Nothing | Input::Secret(_) => bad("no device"),
        },
        Program::Cryptsetup => crypt::run(world, call),
        Program::MkfsExt4 => make(world, device, FsType::Ext4, after("-U")),
        Program::MkfsXfs => {
            let uuid = after("-m").and_then(|m| m.strip_prefix("uuid=").map(str::to_owned));
            make(world, device, FsType::Xfs, uuid)
        }
        Program::MkfsBtrfs => make(world, device, FsType::Btrfs, after("-U")),
        Program::E2fsck => match world.filesystem_at(device) {
            Some(FsType::Ext4) => ok(""),
            _ => answer(8, "", "Bad magic number in super-block"),
        },
        Program::Tune2fs | Program::XfsAdmin => set_uuid(world, device, after("-U")),
        Program::XfsRepair => repair(world, device, call.args.iter().any(|arg| arg == "-L")),
        Program::Resize2fs => grow(world, device),
        Program::XfsGrowfs | Program::Btrfs => {
            let source = world.mounts.iter().rev().find(|m| m.target == device);
            match source.map(|m| m.source.clone()) {
                Some(source) => grow(world, &source),
                None => bad("not mounted"),
            }
        }
    }
}

const IN_USE: &str = "it is apparently in use by the system";

fn answer(code: i32, stdout: &str, stderr: &str) -> Completed {
    Completed { exit: Exit::Code(code), stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

fn blkid(world: &mut World, device: &Path) -> Completed {
    if let Some(disk) = world.disk_node(device).and_then(|node| world.disks.get(&node)) {
        return match &disk.holds {
            super::world::Holds::Nothing => answer(2, "", ""),
            super::world::Holds::Something(what) => answer(0, &format!("TYPE={what}\n"), ""),
            super::world::Holds::Pv(_) => answer(0, "TYPE=LVM2_member\n", ""),
        };
    }
    if let Some(luks) = world.luks_mut(device) {
        return answer(0, &format!("UUID={}\nTYPE=crypto_LUKS\n", luks.header.uuid), "");
    }
    let Some(content) = world.content_mut(device) else {
        return answer(2, "", "error: cannot open");
    };
    match (&content.superblock, &content.foreign) {
        (Some(sb), _) => answer(0, &format!("UUID={}\nTYPE={}\n", sb.uuid, sb.fs), ""),
        (None, Some(what)) => answer(0, &format!("TYPE={what}\n"), ""),
        (None, None) => answer(2, "", ""),
    }
}

fn make(world: &mut World, device: &Path, fs: FsType, uuid: Option<String>) -> Completed {
    let size = world.size_at(device);
    let uuid = uuid.and_then(|u| Uuid::parse_str(&u).ok());
    let (Some(size), Some(uuid)) = (size, uuid) else { return answer(1, "", "no such device") };
    if size < fs.minimum() {
        return answer(1, "", "the device is too small");
    }
    if world.users(device) > 0 {
        return answer(1, "", IN_USE);
    }
    world.soil(device);
    let raw = world.mapping_at(device).is_none();
    if let Some(content) = world.content_mut(device) {
        if fs == FsType::Btrfs && content.superblock.as_ref().is_some_and(|sb| sb.uuid == uuid) {
            // Of whatever device, this one too.
            return answer(1, "", &format!("ERROR: non-unique UUID: {uuid}"));
        }
        // mkfs has no regard for what else is there.
        content.superblock = Some(Superblock { fs, uuid, size });
        content.log_cut = false;
        content.data.clear();
        content.foreign = None;
        content.luks.take_if(|_| raw);
    }
    answer(0, "", "")
}

fn set_uuid(world: &mut World, device: &Path, uuid: Option<String>) -> Completed {
    if world.users(device) > 0 {
        return answer(1, "", IN_USE);
    }
    let uuid = uuid.and_then(|u| Uuid::parse_str(&u).ok());
    if world.content_mut(device).is_some_and(|c| c.log_cut) {
        return answer(1, "", "cannot find log head/tail");
    }
    match (world.content_mut(device).and_then(|c| c.superblock.as_mut()), uuid) {
        (Some(sb), Some(uuid)) => {
            sb.uuid = uuid;
            answer(0, "", "")
        }
        _ => answer(1, "", "no filesystem"),
    }
}

/// `xfs_admin` that is killed after it has zeroed the log.
pub(super) fn cut_log(world: &mut World, call: &Invocation) {
    let device = call.args.last().map_or("", String::as_str);
    if let Some(content) = world.content_mut(Path::new(device)) {
        content.log_cut = content.superblock.is_some_and(|sb| sb.fs == FsType::Xfs);
    }
}

/// With a log that is whole, nobody has a reason to take it away: what it says would be lost.
fn repair(world: &mut World, device: &Path, new_log: bool) -> Completed {
    match world.content_mut(device) {
        Some(content) if content.log_cut == new_log => {
            content.log_cut = false;
            answer(0, "", "")
        }
        _ => answer(1, "", "its log is not in that state"),
    }
}

fn grow(world: &mut World, device: &Path) -> Completed {
    let size: Option<Bytes> = world.size_at(device);
    match (world.content_mut(device).and_then(|c| c.superblock.as_mut()), size) {
        (Some(sb), Some(size)) => {
            sb.size = size;
            answer(0, "", "")
        }
        _ => answer(1, "", "no filesystem"),
    }
}
