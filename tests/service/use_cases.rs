//! That nothing the driver does is missing from the table of use cases that are cut everywhere
//! ([`crate::faults`]): who adds a call, a kind of volume, a change of LVM or a filesystem adds a case.

use std::collections::BTreeSet;

use cinderblock::domain::VolumeClass;
use cinderblock::lvm::change::Change;
use cinderblock::lvm::layout::ThickLayout;
use cinderblock::lvm::tag::{FsType, Wipe};

use crate::faults::{CASES, effects};

/// How it is known that a call can be cut anywhere.
enum Cut {
    /// It changes nothing.
    Reads,
    /// Cases whose names begin with this.
    Case(&'static str),
}
use Cut::{Case, Reads};

const CALLS: &[(&str, Cut)] = &[
    ("Controller/ControllerExpandVolume", Case("expand_thin")),
    ("Controller/ControllerGetVolume", Reads),
    ("Controller/ControllerGetCapabilities", Reads),
    ("Controller/CreateSnapshot", Case("snapshot")),
    ("Controller/CreateVolume", Case("create_")),
    ("Controller/DeleteSnapshot", Case("delete_a_snapshot")),
    ("Controller/DeleteVolume", Case("delete_thin")),
    ("Controller/GetCapacity", Reads),
    ("Controller/GetSnapshot", Reads),
    ("Controller/ListSnapshots", Reads),
    ("Controller/ListVolumes", Reads),
    ("Controller/ValidateVolumeCapabilities", Reads),
    ("Identity/GetPluginCapabilities", Reads),
    ("Identity/GetPluginInfo", Reads),
    ("Identity/Probe", Reads),
    ("Node/NodeExpandVolume", Case("expand_while_published")),
    ("Node/NodeGetCapabilities", Reads),
    ("Node/NodeGetInfo", Reads),
    ("Node/NodeGetStorageHealth", Reads),
    ("Node/NodeGetVolumeHealth", Reads),
    ("Node/NodeGetVolumeStats", Reads),
    ("Node/NodePublishVolume", Case("publish_")),
    ("Node/NodeStageVolume", Case("stage_")),
    ("Node/NodeUnpublishVolume", Case("unpublish_")),
    ("Node/NodeUnstageVolume", Case("unstage")),
];

/// What some effect of a case has to begin with, or to have in it where this begins with `--`: each
/// change of LVM, and each other program that writes.
const STEPS: &[&str] = &[
    "lvcreate --wipesignatures",
    "--type raid1",
    "lvcreate --type thin",
    "--snapshot --permission r --",
    "lvcreate --type snapshot",
    "lvconvert --splitsnapshot",
    "--snapshot --permission rw",
    "lvextend --extents",
    "lvremove",
    "lvrename",
    "lvchange --permission rw",
    "lvchange --addtag",
    "lvchange --deltag",
    "lvchange --activate y",
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
    "e2fsck",
    "resize2fs",
    "tune2fs",
    "xfs_growfs",
    "xfs_admin",
    "xfs_repair",
    "btrfs",
    "cryptsetup luksFormat",
    "cryptsetup open",
    "cryptsetup close",
    "cryptsetup resize",
    "cryptsetup luksAddKey",
    "cryptsetup luksKillSlot",
    "cryptsetup token import",
    "cryptsetup luksUUID",
    "unmount",
    "discard",
    "zero",
    "copy",
];

/// Breaks the build when there is something new. Beside it stands where it is cut: in [`STEPS`], or in
/// a sweep of its own.
const fn known(change: &Change, class: &VolumeClass, fs: FsType) {
    match change {
        Change::CreateThick { .. }
        | Change::CreateThin { .. }
        | Change::SnapshotThin { .. }
        | Change::SnapshotThick { .. }
        | Change::SplitSnapshot { .. }
        | Change::CloneThin { .. }
        | Change::Extend { .. }
        | Change::Remove { .. }
        | Change::Rename { .. }
        | Change::MakeWritable { .. }
        | Change::Retag { .. }
        | Change::Activate { .. }
        // setup: a VG and its pool are made, and disks added.
        | Change::ExtendVg { .. }
        // repair: what was lost with a disk is replaced.
        | Change::ReplaceLegs { .. }
        | Change::RemoveLostSpare
        | Change::ForgetMissing
        // pool_parts: a pool is made.
        | Change::ConvertToPool { .. }
        | Change::RemoveUnfinished { .. }
        | Change::Tag { .. }
        // pools, pool_parts: nobody asks for these, and a pool is looked at again and again.
        | Change::ExtendMetadata { .. }
        | Change::ActivateDegraded { .. }
        // Every sweep: LVM is cut in the midst of each of the above.
        | Change::Refresh { .. } => {}
    }
    let VolumeClass { backend: _, provisioning: _, layout, wipe, luks: _ } = class;
    match layout {
        ThickLayout::Linear | ThickLayout::Striped { .. } | ThickLayout::Raid { .. } => {}
    }
    match wipe {
        None | Some(Wipe::Discard | Wipe::Zero) => {}
    }
    match fs {
        FsType::Ext4 | FsType::Xfs | FsType::Btrfs => {}
    }
}

#[test]
fn every_call_that_changes_something_is_cut() {
    let _: fn(&Change, &VolumeClass, FsType) = known;
    let sources = [
        include_str!("../../src/csi/controller.rs"),
        include_str!("../../src/csi/node.rs"),
        include_str!("../../src/csi/identity.rs"),
    ];
    let mut calls: Vec<_> = sources
        .iter()
        .flat_map(|text| text.split("\"/csi.v1.").skip(1))
        .filter_map(|rest| rest.split('"').next())
        .collect();
    calls.sort_unstable();
    let tabled: Vec<_> = CALLS.iter().map(|(name, _)| *name).collect();
    let missing: Vec<_> = calls.iter().filter(|name| !tabled.contains(name)).collect();
    assert!(missing.is_empty(), "not in the table of use_cases.rs: {missing:?}");
    let gone: Vec<_> = tabled.iter().filter(|name| !calls.contains(name)).collect();
    assert!(gone.is_empty(), "in the table, and nowhere else: {gone:?}");
    for (call, cut) in CALLS {
        let Case(part) = cut else { continue };
        assert!(CASES.iter().any(|(name, ..)| name.starts_with(part)), "{call} has no case {part}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_step_is_cut() {
    let mut seen = BTreeSet::new();
    for case in CASES {
        for effect in Box::pin(effects(*case)).await {
            // Which devices a command may use stands between what it does and how.
            let left_out = ["lvm", "--yes", "--batch-mode", "--devices"];
            let words = effect.split(' ');
            let words = words.filter(|it| !left_out.contains(it) && !it.starts_with("/dev/"));
            seen.insert(words.collect::<Vec<_>>().join(" "));
        }
    }
    let shows = |effect: &String, step: &str| {
        effect.starts_with(step) || step.starts_with("--") && effect.contains(step)
    };
    let missing = STEPS.iter().filter(|step| !seen.iter().any(|effect| shows(effect, step)));
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "in no case: {missing:?} of {seen:#?}");
}
