//! Deleted volumes are wiped beside everything else, and only then is their room free.

use std::path::Path;

use cinderblock::domain::{AccessType, Provisioning, VolumeAgent};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::state::Lv;
use cinderblock::lvm::tag::{FsType, Usage, Wipe};
use cinderblock::names::LvName;
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;

use crate::support::{CONFIG, Node, VG, mounted, restored, thick, thin, volume, wiped};

/// The only deleted volume that is there.
fn trash(node: &Node) -> Option<Lv> {
    node.host.world().vg(VG).unwrap().lvs.values().find(|lv| lv.is_trash()).cloned()
}

fn free(node: &Node) -> u64 {
    node.host.world().vg(VG).unwrap().free_extents().get()
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_is_gone_at_once_and_its_room_free_when_it_is_wiped() {
    let node = Node::ready().await;
    let all = free(&node);
    let dirty = || node.host.world().dirty_free_extents(VG);
    let a = node.create(wiped(thick("pvc-a"), Wipe::Zero)).await.unwrap().handle;
    let before = dirty();
    node.write(&a, mounted(FsType::Ext4), "secret").await;
    let runs = node.host.programs_run().len();
    node.delete(&a).await.unwrap();
    assert_eq!(node.host.programs_run()[runs..], ["lvm lvrename"], "one process, and answered");
    assert!(node.agent.inventory().borrow().volumes.is_empty());
    assert_eq!(node.agent.trash(), (1, Bytes::mib(64)));
    assert_eq!(free(&node), all - 16, "its room is still used");
    // Again is done, and the name is free.
    node.delete(&a).await.unwrap();
    let same = node.create(wiped(thick("pvc-a"), Wipe::Zero)).await.unwrap().handle;
    assert_eq!((same == a, node.agent.trash().0), (true, 1));
    node.write(&same, mounted(FsType::Ext4), "new").await;
    node.wait_wiped().await.unwrap();
    assert_eq!(free(&node), all - 16, "the new one has as much");
    assert_eq!(dirty() + 16, before, "the new one took 16 dirty ones, and clean ones came back");
    assert_eq!(node.read(&same, mounted(FsType::Ext4)).await, "new");
    let wiping = node.host.programs_run()[runs..].iter().filter(|r| *r == "lvm lvremove").count();
    assert_eq!(wiping, 1);
}

#[tokio::test(start_paused = true)]
async fn a_discard_clears_as_well() {
    let node = Node::ready().await;
    let all = free(&node);
    let a = node.create(wiped(thick("pvc-a"), Wipe::Discard)).await.unwrap().handle;
    let before = node.host.world().dirty_free_extents(VG);
    node.write(&a, mounted(FsType::Ext4), "secret").await;
    node.delete_and_wipe(&a).await.unwrap();
    assert_eq!(free(&node), all);
    assert_eq!(node.host.world().dirty_free_extents(VG), before, "what it had is clean");
    assert_eq!(node.agent.undiscarded(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_wipe_the_data_stays_on_the_disks() {
    let node = Node::ready().await;
    let a = node.create(thick("pvc-a")).await.unwrap().handle;
    let before = node.host.world().dirty_free_extents(VG);
    node.write(&a, mounted(FsType::Ext4), "secret").await;
    node.delete(&a).await.unwrap();
    assert_eq!(node.host.world().dirty_free_extents(VG), before + 256);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_was_never_used_is_removed_at_once() {
    let node = Node::ready().await;
    let a = node.create(wiped(thick("pvc-a"), Wipe::Zero)).await.unwrap().handle;
    node.delete(&a).await.unwrap();
    assert!(trash(&node).is_none());
    assert!(!node.host.world().vg(VG).unwrap().lvs.contains_key(&a.lv));
}

#[tokio::test(start_paused = true)]
async fn wiping_goes_on_where_an_agent_ended() {
    let host = SimHost::new(World::with_disks(&[Bytes::gib(150), Bytes::gib(20)]));
    let config = CONFIG.replace("50%", "1Gi");
    let node = Node::start(&host, &config);
    node.wait_ready().await;
    let mut request = volume("pvc-a", Provisioning::Thick, Usage::Filesystem(FsType::Ext4), 100);
    request.class.wipe = Some(Wipe::Zero);
    let a = node.create(request).await.unwrap().handle;
    node.write(&a, mounted(FsType::Ext4), "secret").await;
    let dirty = node.host.world().dirty_free_extents(VG);
    node.delete(&a).await.unwrap();
    let wiped = loop {
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        if let Some(bytes) = trash(&node).unwrap().tags.wiped_bytes {
            break bytes;
        }
    };
    assert_eq!(wiped, Bytes::gib(64));
    let host = node.end().await;
    assert!(host.world().vg(VG).unwrap().lvs.values().any(Lv::is_trash), "it ends in the middle");
    host.arm(None);
    let node = Node::start(&host, &config);
    node.wait_ready().await;
    node.wait_wiped().await.unwrap();
    let effects = node.host.effects();
    let zeroes: Vec<_> = effects.iter().filter(|effect| effect.starts_with("zero")).collect();
    let first = format!(" {} {}", wiped.get(), 16 << 20);
    assert!(zeroes[0].ends_with(&first), "{:?}", zeroes[0]);
    assert_eq!(zeroes.len(), 36 * 64);
    assert_eq!(node.host.world().dirty_free_extents(VG), dirty, "all of it is zeroed");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_has_open_is_not_wiped() {
    let node = Node::ready().await;
    let a = node.create(wiped(thick("pvc-a"), Wipe::Zero)).await.unwrap().handle;
    node.write(&a, mounted(FsType::Ext4), "mine").await;
    let uuid = node.host.world().vg(VG).unwrap().lvs[&a.lv].uuid.clone();
    let host = node.end().await;
    // Deleted, and opened by somebody before an agent is there to wipe it.
    host.world().rename(VG, &a.lv, &LvName::trash(&uuid));
    host.world().occupy(VG, LvName::trash(&uuid).as_str());
    host.arm(None);
    let node = Node::start(&host, CONFIG);
    node.wait_ready().await;
    assert_eq!(node.wait_wiped().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(node.host.effects(), Vec::<String>::new());
    node.host.world().vacate();
    node.wait_wiped().await.unwrap();
}

/// The LV of that name was another one when LVM renamed it.
#[tokio::test(start_paused = true)]
async fn an_lv_with_the_name_of_trash_that_is_not_its_own_is_left_alone() {
    let node = Node::ready().await;
    let a = node.create(wiped(thick("pvc-a"), Wipe::Zero)).await.unwrap().handle;
    node.write(&a, mounted(FsType::Ext4), "mine").await;
    let host = node.end().await;
    let other = LvName::trash(&cinderblock::names::LvmUuid::derived("the one that was meant"));
    host.world().rename(VG, &a.lv, &other);
    host.arm(None);
    let node = Node::start(&host, CONFIG);
    node.wait_ready().await;
    tokio::time::sleep(std::time::Duration::from_mins(5)).await;
    assert_eq!(node.host.effects(), Vec::<String>::new());
    assert_eq!(node.host.world().content(VG, other.as_str()).unwrap().data, "mine");
}

#[tokio::test(start_paused = true)]
async fn disks_that_take_no_discard_are_told_of() {
    let node = Node::ready().await;
    node.host.world().no_discard = true;
    // A pool would take the discard, and pass it on to nobody.
    for (request, count) in [(thick("pvc-a"), 1), (thin("pvc-b"), 2)] {
        let a = node.create(wiped(request, Wipe::Discard)).await.unwrap().handle;
        node.write(&a, mounted(FsType::Ext4), "secret").await;
        node.delete_and_wipe(&a).await.unwrap();
        assert_eq!(node.agent.undiscarded(), count);
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_wiped_as_its_volume_is() {
    let node = Node::ready().await;
    let a = node.create(wiped(thin("pvc-a"), Wipe::Discard)).await.unwrap().handle;
    node.write(&a, mounted(FsType::Ext4), "secret").await;
    let snapshot = node.snapshot("snapshot-a", &a).await.unwrap().handle;
    node.delete_and_wipe(&a).await.unwrap();
    let restore = node.create(restored("pvc-b", &snapshot, 1)).await.unwrap().handle;
    assert_eq!(node.read(&restore, mounted(FsType::Ext4)).await, "secret");
    node.host.arm(None);
    node.agent.delete_snapshot(snapshot.clone()).await.unwrap();
    assert!(node.agent.inventory().borrow().snapshots.is_empty());
    node.wait_wiped().await.unwrap();
    let effects = node.host.effects();
    let kinds = ["lvrename", "--permission rw", "--activate y", "discard", "lvremove"];
    assert_eq!(effects.len(), kinds.len(), "{effects:#?}");
    for (effect, kind) in effects.iter().zip(kinds) {
        assert!(effect.contains(kind), "{effect} is no {kind}");
    }
    assert_eq!(node.read(&restore, mounted(FsType::Ext4)).await, "secret");
}

/// A raw volume as well, and what an expansion has left goes with it.
#[tokio::test(start_paused = true)]
async fn a_block_volume_is_wiped() {
    let node = Node::ready().await;
    let mut request = wiped(volume("pvc-a", Provisioning::Thick, Usage::Block, 1), Wipe::Zero);
    request.class.provisioning = Some(Provisioning::Thick);
    let a = node.create(request).await.unwrap().handle;
    node.stage(&a, AccessType::Block).await.unwrap();
    node.publish(&a, AccessType::Block, "/pods/a").await.unwrap();
    node.host.world().write(Path::new("/pods/a"), "secret");
    let error = node.delete(&a).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "in use: {error:?}");
    node.unpublish("/pods/a").await.unwrap();
    node.unstage(&a).await.unwrap();
    let dirty = node.host.world().dirty_free_extents(VG);
    node.delete_and_wipe(&a).await.unwrap();
    assert_eq!(node.host.world().dirty_free_extents(VG), dirty);
}
