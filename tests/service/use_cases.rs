//! That nothing the driver does is missing from the table of use cases that are cut everywhere
//! ([`crate::faults`]): who adds a call, a kind of volume, a change of LVM or a filesystem adds a case.

use std::collections::BTreeSet;

use cinderblock::domain::{Provisioning, VolumeClass};
use cinderblock::lvm::change::Change;
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::state::{Lv, LvLayout};
use cinderblock::lvm::tag::{FsType, Usage, Wipe};
use cinderblock::units::Bytes;

use crate::faults::{CASES, effects, ready};
use crate::support::VG;

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
    // every_kind_of_volume_is_made_and_cut: all of it but how it is cleared.
    let VolumeClass { backend: _, provisioning: _, layout: _, wipe, luks: _ } = class;
    match wipe {
        None | Some(Wipe::Discard | Wipe::Zero) => {}
    }
    match fs {
        FsType::Ext4 | FsType::Xfs | FsType::Btrfs => {}
    }
}

const fn level(level: RaidLevel) -> &'static str {
    match level {
        RaidLevel::Raid1 => "raid1",
        RaidLevel::Raid5 => "raid5",
        RaidLevel::Raid6 => "raid6",
        RaidLevel::Raid10 => "raid10",
    }
}

/// The kinds that a volume is of, each a word.
fn kinds(lv: &Lv) -> Vec<&'static str> {
    let layout = match &lv.layout {
        LvLayout::Thin { .. } => "thin",
        LvLayout::Linear => "linear",
        LvLayout::Striped { .. } => "striped",
        LvLayout::Raid(ThickLayout::Raid { level: of, .. }) => level(*of),
        LvLayout::Raid(_)
        | LvLayout::UnfinishedRaid(_)
        | LvLayout::ThinPool { .. }
        | LvLayout::Cow { .. }
        | LvLayout::Other(_) => {
            panic!("{:?}", lv.layout)
        }
    };
    let usage = match lv.tags.usage {
        Some(Usage::Block) => "block",
        Some(Usage::Filesystem(fs)) => fs.as_str(),
        None => panic!("{:?}", lv.tags),
    };
    let class = match (lv.pool().is_some(), lv.tags.luks) {
        (true, true) => "thin and encrypted",
        (false, true) => "thick and encrypted",
        (true, false) => "thin and plain",
        (false, false) => "thick and plain",
    };
    vec![layout, usage, class]
}

/// All kinds. Breaks the build when a class can ask for something new.
fn all_kinds() -> Vec<&'static str> {
    const PROVISIONING: [Provisioning; 2] = [Provisioning::Thin, Provisioning::Thick];
    let mut all: Vec<_> = RaidLevel::ALL.into_iter().map(level).collect();
    all.extend(FsType::ALL.map(FsType::as_str));
    all.push("block");
    for provisioning in PROVISIONING {
        all.extend(match provisioning {
            Provisioning::Thin => ["thin and plain", "thin and encrypted"],
            Provisioning::Thick => ["thick and plain", "thick and encrypted"],
        });
    }
    let stripe_size = Bytes::ZERO;
    for layout in [ThickLayout::Linear, ThickLayout::Striped { stripes: 2, stripe_size }] {
        all.push(match layout {
            ThickLayout::Linear => "linear",
            ThickLayout::Striped { .. } => "striped",
            ThickLayout::Raid { level: of, .. } => level(of),
        });
    }
    all
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_volume_is_made_and_cut() {
    let mut made = BTreeSet::new();
    for (name, prepare, call) in CASES.iter().filter(|(name, ..)| name.starts_with("create_")) {
        let node = ready(name).await;
        let handles = prepare(&node).await;
        call(&node, &handles).await.unwrap();
        let lvs = node.host.world().vg(VG).unwrap().lvs.clone();
        let volume = lvs.values().find(|lv| lv.is_volume()).unwrap();
        made.extend(kinds(volume));
    }
    let missing: Vec<_> = all_kinds().into_iter().filter(|kind| !made.contains(kind)).collect();
    assert!(missing.is_empty(), "no case creates: {missing:?}");
    // Each layout grows in a way of its own.
    for kind in ["thin", "thick", "thick_block", "striped", "raid", "raid5"] {
        assert!(CASES.iter().any(|(name, ..)| *name == format!("expand_{kind}")), "{kind}");
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
