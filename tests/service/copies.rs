//! Thick snapshots, and volumes that get their content copied: complete or not there.

use cinderblock::domain::{
    AccessType, ContentSource, CowSize, CreateSnapshot, CreateVolume, Provisioning, Reason,
    Subject, VolumeAgent,
};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::state::LvLayout;
use cinderblock::lvm::tag::{FsType, Tags, Usage, Wipe};
use cinderblock::names::{CsiName, Handle, LvName};
use cinderblock::units::Bytes;

use crate::support::{
    CONFIG, Node, VG, as_thick, cloned, mounted, restored, thick, thin, volume, wiped,
};

const EXT4: FsType = FsType::Ext4;

fn free(node: &Node) -> u64 {
    node.host.world().vg(VG).unwrap().free_extents().get()
}

fn lvs(node: &Node) -> Vec<String> {
    node.host.world().vg(VG).unwrap().lvs.keys().map(ToString::to_string).collect()
}

/// A thick volume with "before", a snapshot of it, and "after" in the volume.
async fn snapshotted(node: &Node) -> (Handle, Handle) {
    let source = node.create(thick("pvc-0")).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "before").await;
    let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "after").await;
    (source, snapshot)
}

/// A node whose copies take a quarter of an hour.
pub async fn slow() -> Node {
    let config = CONFIG.replace("reserve: 0%", "reserve: 0%\n    copyRate: 1Mi");
    assert_ne!(config, CONFIG);
    let disks = cinderblock::sim::World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]);
    let node = Node::start(&cinderblock::sim::SimHost::new(disks), &config);
    node.wait_ready().await;
    node
}

#[tokio::test(start_paused = true)]
async fn every_source_gives_its_content_to_every_kind() {
    let node = Node::ready().await;
    let (thick_volume, thick_snapshot) = snapshotted(&node).await;
    let thin_volume = node.create(thin("pvc-thin")).await.unwrap().handle;
    node.write(&thin_volume, mounted(EXT4), "thin").await;
    let thin_snapshot = node.snapshot("snapshot-thin", &thin_volume).await.unwrap().handle;
    for (i, (request, wanted)) in [
        (as_thick(restored("pvc-a", &thick_snapshot, 1)), "before"),
        (restored("pvc-b", &thick_snapshot, 2), "before"),
        (as_thick(restored("pvc-c", &thin_snapshot, 3)), "thin"),
        (as_thick(cloned("pvc-d", &thick_volume)), "after"),
        (cloned("pvc-e", &thick_volume), "after"),
        (as_thick(cloned("pvc-f", &thin_volume)), "thin"),
    ]
    .into_iter()
    .enumerate()
    {
        let gib = request.range.required.unwrap();
        let made = node.create(request).await.unwrap();
        assert_eq!(made.size, gib);
        assert_eq!(node.read(&made.handle, mounted(EXT4)).await, wanted, "case {i}");
        let image = made.handle.lv.image().to_string();
        assert!(!lvs(&node).contains(&image), "{:?}", lvs(&node));
    }
    assert_eq!(node.agent.copies().running, 0);
    assert_eq!(node.agent.copies().read, 6 << 30);
}

/// A thick filesystem was never zeroed, and neither is what is copied from it, however often.
#[tokio::test(start_paused = true)]
async fn what_a_filesystem_hides_is_never_shown_by_a_copy() {
    let node = Node::ready().await;
    let (source, snapshot) = snapshotted(&node).await;
    let as_block = |request: CreateVolume| CreateVolume { usage: Usage::Block, ..request };
    let all = free(&node);
    for request in [restored("pvc-1", &snapshot, 1), cloned("pvc-1", &source)] {
        for request in [as_block(request.clone()), as_thick(as_block(request))] {
            let error = node.create(request).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("use volumeMode Filesystem"), "{error}");
        }
    }
    assert_eq!(free(&node), all);
    let copy = node.create(restored("pvc-2", &snapshot, 1)).await.unwrap().handle;
    node.write(&copy, mounted(EXT4), "mine").await;
    let error = node.stage(&copy, AccessType::Block).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let again = node.snapshot("snapshot-2", &copy).await.unwrap().handle;
    let error = node.create(as_block(restored("pvc-3", &again, 1))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let again = node.create(cloned("pvc-3", &copy)).await.unwrap().handle;
    let error = node.create(as_block(cloned("pvc-4", &again))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // Thin all the way, it was zeroed by the pool.
    let thin = node.create(thin("pvc-thin")).await.unwrap().handle;
    node.write(&thin, mounted(EXT4), "mine").await;
    node.create(as_block(cloned("pvc-5", &thin))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_a_thick_volume_is_one_process_and_its_room_counts() {
    let node = Node::ready().await;
    let source = node.create(thick("pvc-0")).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "data").await;
    let (all, runs) = (free(&node), node.host.programs_run().len());
    let snapshot = node.snapshot("snapshot-0", &source).await.unwrap();
    assert_eq!(node.host.programs_run()[runs..], ["lvm lvcreate"]);
    assert_eq!((snapshot.size, snapshot.ready), (Bytes::gib(1), true));
    assert_eq!(free(&node), all - 257, "all that it can need");
    let error = node.expand(&source, Bytes::gib(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("delete snap-0 first"), "{error}");
    node.agent.delete_snapshot(snapshot.handle).await.unwrap();
    assert_eq!(free(&node), all);
    node.expand(&source, Bytes::gib(2)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_not_there_before_its_content_is() {
    let node = slow().await;
    let (_, snapshot) = snapshotted(&node).await;
    let request = as_thick(restored("pvc-1", &snapshot, 1));
    let error = node.create(request.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("% of 1 GiB copied"), "{error}");
    let there = |node: &Node| node.agent.inventory().borrow().volumes.len();
    assert_eq!(there(&node), 1, "only its source");
    let handle = Handle { lv: LvName::parse("pvc-1").unwrap(), ..snapshot.clone() };
    let error = node.stage(&handle, mounted(EXT4)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let error = node.expand(&handle, Bytes::gib(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // What it is copied from stays.
    let error = node.agent.delete_snapshot(snapshot.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("pvc-1 is being copied from"), "{error}");

    // An agent that starts goes on where the one before it was, though nobody asks.
    let node = node.reincarnate().await;
    tokio::time::sleep(std::time::Duration::from_mins(30)).await;
    let effects = node.host.effects();
    let copies: Vec<_> = effects.iter().filter(|effect| effect.starts_with("copy")).collect();
    let from: u64 = copies[0].split(' ').nth(4).unwrap().parse().unwrap();
    assert!(from > 0, "{:?}", copies[0]);
    assert_eq!(there(&node), 2);
    let made = node.create(request).await.unwrap().handle;
    assert_eq!(node.read(&made, mounted(EXT4)).await, "before");
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_stopped_when_its_volume_is_deleted() {
    let node = slow().await;
    let source = node.create(thick("pvc-0")).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "data").await;
    let all = free(&node);
    node.create(as_thick(cloned("pvc-1", &source))).await.unwrap_err();
    assert_eq!(lvs(&node), ["pool0", "pvc-0", "pvc-1", "pvc-1.image"]);
    let error = node.expand(&source, Bytes::gib(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let handle = Handle { lv: LvName::parse("pvc-1").unwrap(), ..source.clone() };
    node.delete(&handle).await.unwrap();
    assert_eq!((lvs(&node), free(&node)), (vec!["pool0".to_owned(), "pvc-0".to_owned()], all));
    tokio::time::sleep(std::time::Duration::from_mins(5)).await;
    assert_eq!(node.agent.copies().running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_clone_survives_its_source() {
    let node = slow().await;
    let source = node.create(thick("pvc-0")).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "data").await;
    let request = as_thick(cloned("pvc-1", &source));
    node.create(request.clone()).await.unwrap_err();
    node.delete(&source).await.unwrap();
    assert!(node.agent.inventory().borrow().volumes.is_empty());
    tokio::time::sleep(std::time::Duration::from_mins(30)).await;
    let made = node.create(request).await.unwrap().handle;
    assert_eq!(node.read(&made, mounted(EXT4)).await, "data");
    assert_eq!(lvs(&node), ["pool0", "pvc-1"]);
}

/// An image that nobody could take does not keep a claim waiting for ever.
#[tokio::test(start_paused = true)]
async fn a_source_that_goes_before_it_is_copied_from_is_told() {
    let node = Node::ready().await;
    let source = node.create(thick("pvc-0")).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "data").await;
    let all = free(&node);
    let request = as_thick(cloned("pvc-1", &source));
    let fault = cinderblock::sim::Fault { at: 1, mode: cinderblock::sim::Mode::KillBefore };
    node.host.arm(Some(fault));
    drop(node.create(request.clone()).await);
    let host = node.end().await;
    assert_eq!(host.world().vg(VG).unwrap().lvs.len(), 3, "pool, source and the new one");
    host.world().rename(VG, &source.lv, &LvName::parse("taken-away").unwrap());
    host.arm(None);
    let node = Node::start(&host, CONFIG);
    node.wait_ready().await;
    drop(node.create(request.clone()).await);
    let error = node.create(request).await.unwrap_err();
    assert_eq!((error.kind(), free(&node)), (ErrorKind::NotFound, all), "{error}");
}

/// The same when nobody repeats the call: it goes by itself, but not before a mistake can be mended.
#[tokio::test(start_paused = true)]
async fn a_copy_whose_source_is_gone_goes_by_itself() {
    let node = slow().await;
    let (source, snapshot) = snapshotted(&node).await;
    let all = free(&node);
    let request = as_thick(restored("pvc-1", &snapshot, 1));
    node.create(request.clone()).await.unwrap_err();
    let away = LvName::parse("taken-away").unwrap();
    // While the agent is not there: a copy that runs has its source open.
    let host = node.end().await;
    host.world().rename(VG, &snapshot.lv, &away);
    let config = CONFIG.replace("reserve: 0%", "reserve: 0%\n    copyRate: 1Mi");
    let node = Node::start(&host, &config);
    node.wait_ready().await;
    tokio::time::sleep(std::time::Duration::from_mins(8)).await;
    host.world().rename(VG, &away, &snapshot.lv);
    tokio::time::sleep(std::time::Duration::from_mins(30)).await;
    let made = node.create(request.clone()).await.unwrap().handle;
    assert_eq!(node.read(&made, mounted(EXT4)).await, "before", "its source came back in time");
    // What is complete stays, whatever becomes of its source.
    let later = CreateVolume { name: CsiName::parse("pvc-2").unwrap(), ..request };
    node.create(later).await.unwrap_err();
    let host = node.end().await;
    host.world().rename(VG, &snapshot.lv, &away);
    let node = Node::start(&host, &config);
    node.wait_ready().await;
    tokio::time::sleep(std::time::Duration::from_mins(5)).await;
    assert_eq!(lvs(&node).len(), 5, "{:?}", lvs(&node));
    tokio::time::sleep(std::time::Duration::from_mins(10)).await;
    assert_eq!(lvs(&node), ["pool0", "pvc-0", "pvc-1", "taken-away"]);
    assert_eq!(free(&node), all - 256);
    assert!(node.agent.inventory().borrow().unfinished.is_empty());
    node.delete(&source).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_deleted_volume_stays_for_its_snapshots_and_no_longer() {
    let node = Node::ready().await;
    let all = free(&node);
    let (source, snapshot) = snapshotted(&node).await;
    node.delete(&source).await.unwrap();
    assert!(node.agent.inventory().borrow().volumes.is_empty());
    assert_eq!(node.agent.trash(), (1, Bytes::gib(1)));
    tokio::time::sleep(std::time::Duration::from_mins(10)).await;
    node.delete(&source).await.unwrap();
    // Its name is free, and what is made from the snapshot is what was in it.
    node.create(thick("pvc-0")).await.unwrap();
    let made = node.create(as_thick(restored("pvc-1", &snapshot, 1))).await.unwrap().handle;
    assert_eq!(node.read(&made, mounted(EXT4)).await, "before");
    node.agent.delete_snapshot(snapshot).await.unwrap();
    node.wait_wiped().await.unwrap();
    assert_eq!(lvs(&node), ["pool0", "pvc-0", "pvc-1"]);
    assert_eq!(free(&node), all - 512);
}

#[tokio::test(start_paused = true)]
async fn what_a_snapshot_kept_is_wiped_with_it() {
    let node = Node::ready().await;
    let source = node.create(wiped(thick("pvc-0"), Wipe::Zero)).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "secret").await;
    let dirty = node.host.world().dirty_free_extents(VG);
    let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
    node.agent.delete_snapshot(snapshot).await.unwrap();
    node.wait_wiped().await.unwrap();
    assert_eq!(lvs(&node), ["pool0", "pvc-0"]);
    let clean = dirty - node.host.world().dirty_free_extents(VG);
    assert_eq!(clean, 17, "64 MiB and the list");
}

async fn small_snapshot(node: &Node, source: &Handle, percent: u8) -> Handle {
    let cow_size = CowSize::percent(percent).unwrap();
    let name = CsiName::parse("snapshot-0").unwrap();
    let request = CreateSnapshot { name, source: source.clone(), cow_size };
    node.agent.create_snapshot(request).await.unwrap().value.handle
}

fn store(node: &Node) -> Bytes {
    match node.host.world().vg(VG).unwrap().lvs[&LvName::parse("snap-0").unwrap()].layout {
        LvLayout::Cow { store, .. } => store,
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_with_little_room_grows_in_time() {
    let node = Node::ready().await;
    let mut request = thick("pvc-0");
    request.range.required = Some(Bytes::gib(3));
    let source = node.create(request).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "data").await;
    small_snapshot(&node, &source, 10).await;
    let mut sizes = vec![store(&node)];
    for _ in 0..5 {
        let used = Bytes::new(sizes.last().unwrap().get() / 10 * 7);
        node.host.world().fill_snapshot(VG, "snap-0", used);
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
        sizes.push(store(&node));
    }
    let extents: Vec<_> = sizes.iter().map(|size| size.get() >> 22).collect();
    assert_eq!(extents, [128, 256, 512, 769, 769, 769]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_snapshot_is_told_and_never_restored_from() {
    let node = Node::ready().await;
    let source = node.create(thick("pvc-0")).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "data").await;
    let snapshot = small_snapshot(&node, &source, 10).await;
    node.host.world().fill_snapshot(VG, "snap-0", Bytes::gib(1));
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let ready = node.agent.inventory().borrow().snapshots[&snapshot].ready;
    assert!(!ready);
    let troubles = node.agent.inventory().borrow().troubles.clone();
    let told = troubles.get(&(Subject::Volume(source.clone()), Reason::SnapshotLost)).unwrap();
    assert!(told.sentence.contains("snapshot-0 ran full"), "{told:?}");
    assert_eq!(node.agent.thick_snapshots().borrow()[&snapshot].used_bp(), 10_000);
    let all = free(&node);
    // Also by an agent that has not looked at it yet, and for which it is not active.
    let node = node.reincarnate().await;
    let error = node.create(as_thick(restored("pvc-1", &snapshot, 1))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("snap-0 is lost"), "{error}");
    assert_eq!(free(&node), all, "nothing is left behind");
    node.agent.delete_snapshot(snapshot).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn raid_has_thick_snapshots_too() {
    let node = Node::ready_without_a_pool().await;
    let mut request = volume("pvc-0", Provisioning::Thick, Usage::Block, 1);
    request.class.layout =
        ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
    let source = node.create(request.clone()).await.unwrap().handle;
    node.write(&source, AccessType::Block, "before").await;
    let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
    node.write(&source, AccessType::Block, "after").await;
    for (name, from, wanted) in [
        ("pvc-1", ContentSource::Snapshot(snapshot), "before"),
        ("pvc-2", ContentSource::Volume(source), "after"),
    ] {
        let name = CsiName::parse(name).unwrap();
        let request = CreateVolume { name, source: Some(from), ..request.clone() };
        let copy = node.create(request).await.unwrap().handle;
        assert_eq!(node.read(&copy, AccessType::Block).await, wanted);
    }
}

/// A RAID volume with data, and a clone of it that is being copied for hours.
async fn clone_of_raid() -> (Node, Handle, Handle, u64) {
    let config: Vec<&str> = CONFIG.lines().filter(|line| !line.contains("thinPool")).collect();
    let config = config.join("\n").replace("reserve: 0%", "reserve: 0%\n    copyRate: 1Mi");
    let disks = cinderblock::sim::World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]);
    let node = Node::start(&cinderblock::sim::SimHost::new(disks), &config);
    node.wait_ready().await;
    let mut request = volume("pvc-0", Provisioning::Thick, Usage::Block, 1);
    request.class.layout =
        ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
    let source = node.create(request.clone()).await.unwrap().handle;
    node.write(&source, AccessType::Block, "data").await;
    let all = free(&node);
    let (name, from) = (CsiName::parse("pvc-1").unwrap(), ContentSource::Volume(source.clone()));
    request.class.layout = ThickLayout::Linear;
    node.create(CreateVolume { name, source: Some(from), ..request }).await.unwrap_err();
    assert_eq!(lvs(&node), ["pvc-0", "pvc-1", "pvc-1.image"]);
    let clone = Handle { lv: LvName::parse("pvc-1").unwrap(), ..source.clone() };
    (node, source, clone, all)
}

/// The commands since then that move a RAID volume's legs.
fn moves(node: &Node, since: usize) -> usize {
    let moves = ["lvm lvremove", "lvm lvconvert"];
    node.host.programs_run()[since..].iter().filter(|run| moves.contains(&run.as_str())).count()
}

/// The kernel would hang with LVM's lock, until the node is started anew.
#[tokio::test(start_paused = true)]
async fn the_image_of_a_raid_volume_goes_only_while_its_legs_are_in_step() {
    for source_is_deleted in [false, true] {
        let (node, source, clone, all) = clone_of_raid().await;
        let mut name = source.lv.clone();
        if source_is_deleted {
            node.delete(&source).await.unwrap();
            let lvs = lvs(&node);
            let trash = lvs.iter().find(|lv| lv.starts_with("cb-trash-")).unwrap();
            name = LvName::parse(trash).unwrap();
        }
        node.host.world().set_raid(VG, name.as_str(), "Aa", "resync");
        let since = node.host.programs_run().len();
        let error = node.delete(&clone).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("being brought in step (25%)"), "{error}");
        assert_eq!(moves(&node, since), 0);
        node.host.world().set_raid(VG, name.as_str(), "AA", "idle");
        node.delete(&clone).await.unwrap();
        node.wait_wiped().await.unwrap();
        // Two legs, each with LVM's own extent.
        let left = if source_is_deleted { all + 514 } else { all };
        assert_eq!(free(&node), left, "{:?}", lvs(&node));
    }
}

/// The same of an image whose volume is gone, and of the copy that comes to its end meanwhile.
#[tokio::test(start_paused = true)]
async fn nobody_removes_the_image_of_a_raid_volume_that_is_not_in_step_by_itself() {
    for (orphaned, source_is_deleted) in
        [(true, false), (true, true), (false, false), (false, true)]
    {
        let (node, source, clone, _) = clone_of_raid().await;
        let mut name = source.lv.clone();
        if source_is_deleted {
            node.delete(&source).await.unwrap();
            let lvs = lvs(&node);
            let trash = lvs.iter().find(|lv| lv.starts_with("cb-trash-")).unwrap();
            name = LvName::parse(trash).unwrap();
        }
        node.host.world().set_raid(VG, name.as_str(), "Aa", "resync");
        if orphaned {
            // Somebody takes its volume for himself.
            node.host.world().retag(VG, "pvc-1", |tags| *tags = Tags::default());
        }
        let since = node.host.programs_run().len();
        tokio::time::sleep(std::time::Duration::from_mins(40)).await;
        assert_eq!(moves(&node, since), 0, "orphaned {orphaned}, deleted {source_is_deleted}");
        assert!(lvs(&node).contains(&"pvc-1.image".to_owned()));
        node.host.world().set_raid(VG, name.as_str(), "AA", "idle");
        tokio::time::sleep(std::time::Duration::from_mins(5)).await;
        assert!(!lvs(&node).contains(&"pvc-1.image".to_owned()), "{:?}", lvs(&node));
        if !orphaned {
            assert_eq!(node.read(&clone, AccessType::Block).await, "data");
        }
    }
}
