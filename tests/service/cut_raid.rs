//! RAID whose making was cut: it must not be activated, and so can be neither cleared nor have its keys destroyed.

use cinderblock::domain::Provisioning;
use cinderblock::error::ErrorKind;
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::state::LvLayout;
use cinderblock::lvm::tag::{FsType, Usage, Wipe};
use cinderblock::names::{Handle, LvName};
use cinderblock::sim::{Fault, Mode};
use cinderblock::units::Bytes;

use crate::support::{Node, VG, encrypted, mounted, restored, volume, wiped};

const EXT4: FsType = FsType::Ext4;

#[tokio::test(start_paused = true)]
async fn a_restore_to_raid_that_was_cut_can_be_deleted_and_made_again() {
    for (wipe, luks, repeated) in [
        (Some(Wipe::Zero), false, false),
        (None, true, false),
        (Some(Wipe::Discard), true, false),
        (Some(Wipe::Zero), true, true),
    ] {
        let case = format!("{wipe:?}, encrypted {luks}, repeated {repeated}");
        let node = Node::ready_without_a_pool().await;
        let mut request = volume("pvc-0", Provisioning::Thick, Usage::Filesystem(EXT4), 1);
        request.range.required = Some(Bytes::mib(64));
        let request = if luks { encrypted(request) } else { request };
        let source = node.create(request.clone()).await.unwrap().handle;
        node.write(&source, mounted(EXT4), "data").await;
        let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
        let free = || node.host.world().vg(VG).unwrap().free_extents();
        let all = free();
        let mut copy = restored("pvc-1", &snapshot, 1);
        copy.class = request.class;
        copy.class.layout =
            ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
        let copy = wipe.map_or(copy.clone(), |wipe| wiped(copy, wipe));
        node.host.arm(Some(Fault { at: 0, mode: Mode::Cut }));
        let error = node.create(copy.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{case}: {error}");
        node.host.arm(None);
        let name = LvName::parse("pvc-1").unwrap();
        let layout = node.host.world().vg(VG).unwrap().lvs[&name].layout.clone();
        assert!(matches!(layout, LvLayout::UnfinishedRaid(_)), "{case}: {layout:?}");
        let handle = Handle { lv: name, ..source };
        if repeated {
            node.create(copy).await.unwrap();
            assert_eq!(node.read(&handle, mounted(EXT4)).await, "data");
        }
        node.delete_and_wipe(&handle).await.unwrap_or_else(|e| panic!("{case}: {e:?}"));
        assert_eq!(free(), all, "{case}");
    }
}
