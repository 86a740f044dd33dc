//! What users rely on, on a host without faults.

use std::path::Path;

use cinderblock::agent::{Publish, Statistics};
use cinderblock::domain::{AccessMode, AccessType, Capability, Provisioning, VolumeAgent};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::tag::{FsType, Pending, Tags, Usage};
use cinderblock::sim::{Content, Fault, Mode};
use cinderblock::units::Bytes;
use futures_util::future::join_all;

use crate::support::{
    Node, VG, cloned, encrypted, mounted, restored, staging, thick, thin, volume,
};

#[tokio::test(start_paused = true)]
async fn lvm_runs_once_for_each_change_and_never_to_read() {
    let node = Node::ready().await;
    let mut seen = node.host.programs_run().len();
    let mut lvm = || {
        let runs = node.host.programs_run();
        let new = runs[seen..].iter().filter(|run| run.starts_with("lvm")).count();
        seen = runs.len();
        new
    };
    let access = || mounted(FsType::Ext4);
    let a = node.create(thin("pvc-a")).await.unwrap().handle;
    assert_eq!(lvm(), 1, "create thin");
    let b = node.create(thick("pvc-b")).await.unwrap().handle;
    assert_eq!(lvm(), 1, "create thick");
    node.stage(&a, access()).await.unwrap();
    assert_eq!(lvm(), 1, "first stage: the tag");
    node.publish(&a, access(), "/pods/a").await.unwrap();
    node.agent.statistics(a.clone(), "/pods/a".into()).await.unwrap();
    node.unpublish("/pods/a").await.unwrap();
    node.unstage(&a).await.unwrap();
    node.stage(&a, access()).await.unwrap();
    assert_eq!(lvm(), 0, "publish, statistics, unpublish, unstage, stage again");
    let snapshot = node.snapshot("snapshot-a", &a).await.unwrap().handle;
    assert_eq!(lvm(), 1, "snapshot");
    node.create(restored("pvc-c", &snapshot, 1)).await.unwrap();
    assert_eq!(lvm(), 1, "restore");
    node.create(cloned("pvc-d", &a)).await.unwrap();
    assert_eq!(lvm(), 1, "clone");
    node.expand(&a, Bytes::gib(2)).await.unwrap();
    node.expand(&b, Bytes::gib(2)).await.unwrap();
    assert_eq!(lvm(), 2, "two expansions");
    node.delete(&b).await.unwrap();
    assert_eq!(lvm(), 1, "delete");
    for _ in 0..2 {
        node.create(thin("pvc-a")).await.unwrap();
        node.expand(&a, Bytes::gib(2)).await.unwrap();
        node.delete(&b).await.unwrap();
    }
    assert_eq!(lvm(), 0, "what is done already");
}

/// Of many claims at once, the first is not bound only when the last is made.
#[tokio::test(start_paused = true)]
async fn of_many_calls_at_once_each_is_answered_when_its_own_is_done() {
    let node = Node::ready().await;
    // So that calls meet wherever they wait.
    node.host.pace(1);
    let before = node.host.programs_run().len();
    let create = |n: usize| {
        let node = &node;
        async move {
            let class = if n.is_multiple_of(2) { thin } else { thick };
            node.create(class(&format!("pvc-{n}"))).await.unwrap();
            let runs = node.host.programs_run();
            runs[before..].iter().filter(|run| run.contains("lvcreate")).count()
        }
    };
    let mut made = join_all((0..10).map(create)).await;
    made.sort_unstable();
    for (answered, made) in made.iter().enumerate() {
        assert!(made - answered <= 2, "{made} were made when {answered} had been answered");
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_keeps_what_was_there_and_each_copy_goes_its_own_way() {
    let node = Node::ready().await;
    for fs in FsType::ALL {
        let name = |n: &str| format!("pvc-{fs}-{n}");
        let request = |n: &str| volume(&name(n), Provisioning::Thin, Usage::Filesystem(fs), 1);
        let source = node.create(request("a")).await.unwrap().handle;
        node.write(&source, mounted(fs), "first").await;
        let snapshot = node.snapshot(&format!("snapshot-{fs}"), &source).await.unwrap();
        node.write(&source, mounted(fs), "second").await;
        let mut restore = restored(&name("b"), &snapshot.handle, 2);
        restore.usage = Usage::Filesystem(fs);
        let restore = node.create(restore).await.unwrap();
        let mut clone = cloned(&name("c"), &source);
        clone.usage = Usage::Filesystem(fs);
        let clone = node.create(clone).await.unwrap().handle;
        // All mounted at once: each has a UUID of its own.
        node.stage(&source, mounted(fs)).await.unwrap();
        assert_eq!(node.read(&restore.handle, mounted(fs)).await, "first");
        assert_eq!(node.read(&clone, mounted(fs)).await, "second");
        assert_eq!(restore.size, Bytes::gib(2));
        let content = node.host.world().content(VG, &name("b")).cloned().unwrap();
        assert_eq!(content.superblock.unwrap().size, Bytes::gib(2), "grown when it was staged");
        // In any order of deletion.
        node.unstage(&source).await.unwrap();
        node.delete(&source).await.unwrap();
        node.agent.delete_snapshot(snapshot.handle).await.unwrap();
        assert_eq!(node.read(&restore.handle, mounted(fs)).await, "first");
    }
}

#[tokio::test(start_paused = true)]
async fn a_filesystem_is_made_once_and_never_over_anything() {
    let node = Node::ready().await;
    let a = node.create(thin("pvc-a")).await.unwrap().handle;
    node.write(&a, mounted(FsType::Ext4), "mine").await;
    // Staged as something else.
    let error = node.stage(&a, mounted(FsType::Xfs)).await.unwrap_err();
    assert!(error.chain().contains("holds ext4, but is to be mounted as xfs"), "{error:?}");
    assert_eq!(node.read(&a, mounted(FsType::Ext4)).await, "mine");
    // Its superblock is gone: for a person to look at.
    let mut content = node.host.world().content(VG, "pvc-a").cloned().unwrap();
    content.superblock = None;
    node.host.world().set_content(VG, "pvc-a", content);
    let error = node.stage(&a, mounted(FsType::Ext4)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
    assert_eq!(node.host.world().content(VG, "pvc-a").unwrap().data, "mine");
    // As if it were new, after a backup of LVM's metadata was restored.
    let c = node.create(thin("pvc-c")).await.unwrap().handle;
    node.write(&c, mounted(FsType::Xfs), "mine").await;
    node.unstage(&c).await.unwrap();
    node.host.world().retag(VG, "pvc-c", |tags| tags.pending = Some(Pending::Fresh));
    // As soon as it is noticed.
    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    let error = node.stage(&c, mounted(FsType::Xfs)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.chain().contains("has files: nothing was formatted"), "{error:?}");
    assert_eq!(node.host.world().content(VG, "pvc-c").unwrap().data, "mine");
    // New, but not blank.
    let b = node.create(thick("pvc-b")).await.unwrap().handle;
    let mut content = node.host.world().content(VG, "pvc-b").cloned().unwrap();
    content.foreign = Some("zfs_member".to_owned());
    node.host.world().set_content(VG, "pvc-b", content);
    let error = node.stage(&b, mounted(FsType::Ext4)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.chain().contains("zfs_member") && error.chain().contains("nothing was changed"));
}

/// The mkfs of an agent that was killed goes on, and so does the tune2fs of a volume that is made from
/// another: nobody works on the device beside them.
#[tokio::test(start_paused = true)]
async fn what_another_program_has_open_is_not_worked_on() {
    let node = Node::ready().await;
    let access = || mounted(FsType::Ext4);
    let new = node.create(thin("pvc-new")).await.unwrap().handle;
    let old = node.create(thin("pvc-old")).await.unwrap().handle;
    node.write(&old, access(), "mine").await;
    node.unstage(&old).await.unwrap();
    let clone = node.create(cloned("pvc-clone", &old)).await.unwrap().handle;
    for volume in [&new, &old, &clone] {
        node.host.world().occupy(VG, volume.lv.as_str());
        let before = node.host.programs_run().len();
        let error = node.stage(volume, access()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.chain().contains("somebody has its device"), "{error:?}");
        assert_eq!(node.host.programs_run()[before..], [""; 0], "{}", volume.lv);
        node.host.world().vacate();
        node.stage(volume, access()).await.unwrap();
    }
    assert_eq!(node.read(&clone, access()).await, "mine");
}

/// LVM was cut between writing a new volume into its metadata and clearing its first blocks.
#[tokio::test(start_paused = true)]
async fn a_volume_whose_birth_was_cut_shows_nothing_of_the_one_before() {
    for mode in [Mode::KillAfter, Mode::Lose, Mode::FailAfter] {
        let node = Node::ready().await;
        let all = node.host.world().vg(VG).unwrap().free_extents();
        node.host.arm(Some(Fault { at: 0, mode }));
        let first = node.create(thick("pvc-a")).await;
        let old =
            Content { foreign: Some("ext4 of another tenant".to_owned()), ..Content::default() };
        node.host.world().set_content(VG, "pvc-a", old);
        let node = if mode.kills() { node.reincarnate().await } else { node };
        node.host.arm(None);
        // Whoever was told that it is there has it from a call that saw LVM end well.
        assert!(first.is_err() || mode != Mode::KillAfter);
        let a = node.create(thick("pvc-a")).await.unwrap().handle;
        node.write(&a, mounted(FsType::Ext4), "mine").await;
        assert_eq!(node.read(&a, mounted(FsType::Ext4)).await, "mine");
        // One that is in use is never taken for one.
        node.create(thick("pvc-a")).await.unwrap();
        assert_eq!(node.read(&a, mounted(FsType::Ext4)).await, "mine");
        node.delete(&a).await.unwrap();
        assert_eq!(node.host.world().vg(VG).unwrap().free_extents(), all);
    }
}

/// A volume that was never staged has nothing in it, and so has what is made of it.
#[tokio::test(start_paused = true)]
async fn a_copy_of_a_blank_volume_is_blank() {
    let node = Node::ready().await;
    let a = node.create(thin("pvc-a")).await.unwrap().handle;
    let snapshot = node.snapshot("snapshot-a", &a).await.unwrap().handle;
    let b = node.create(restored("pvc-b", &snapshot, 1)).await.unwrap();
    assert!(b.source.is_some());
    node.write(&b.handle, mounted(FsType::Ext4), "new").await;
    assert_eq!(node.read(&b.handle, mounted(FsType::Ext4)).await, "new");
}

#[tokio::test(start_paused = true)]
async fn old_data_is_never_shown() {
    let node = Node::ready().await;
    let block = |name: &str, gib| volume(name, Provisioning::Thick, Usage::Block, gib);
    // Somebody wrote to all of the VG's free extents and is gone.
    let first = node.create(block("pvc-old", 15)).await.unwrap().handle;
    node.write(&first, AccessType::Block, "secret").await;
    node.delete(&first).await.unwrap();
    let next = node.create(block("pvc-new", 5)).await.unwrap().handle;
    assert!(node.host.world().shows_old_data(VG, "pvc-new"), "not zeroed before it is used");
    // It cannot be used before it is zeroed.
    let publish = node.publish(&next, AccessType::Block, "/pods/a").await;
    assert_eq!(publish.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    node.stage(&next, AccessType::Block).await.unwrap();
    assert!(!node.host.world().shows_old_data(VG, "pvc-new"));
    node.publish(&next, AccessType::Block, "/pods/a").await.unwrap();
    node.expand(&next, Bytes::gib(10)).await.unwrap();
    assert!(!node.host.world().shows_old_data(VG, "pvc-new"), "nor does what it gained");
    assert!(
        node.host.world().vg(VG).unwrap().lvs.keys().all(|lv| !lv.as_str().ends_with(".growth"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_thick_filesystem_is_never_shown_as_a_device() {
    let node = Node::ready().await;
    let usage = Usage::Filesystem(FsType::Ext4);
    let a = node.create(volume("pvc-a", Provisioning::Thick, usage, 1)).await.unwrap().handle;
    let error = node.stage(&a, AccessType::Block).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.chain().contains("use volumeMode Filesystem"), "{error:?}");
    node.stage(&a, mounted(FsType::Ext4)).await.unwrap();
    let publish = node.publish(&a, AccessType::Block, "/pods/a").await;
    assert_eq!(publish.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    node.publish(&a, mounted(FsType::Ext4), "/pods/a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_or_not_ours_is_not_removed() {
    let node = Node::ready().await;
    let a = node.create(thin("pvc-a")).await.unwrap().handle;
    node.stage(&a, mounted(FsType::Ext4)).await.unwrap();
    let error = node.delete(&a).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.chain().contains("mounted at /staging/pvc-a"), "{error:?}");
    node.unstage(&a).await.unwrap();
    // Somebody took the tags away: it is not ours any more.
    node.host.world().retag(VG, "pvc-a", |tags| *tags = Tags::default());
    let error = node.delete(&a).await.unwrap_err();
    assert!(error.chain().contains("does not bear the tag cinderblock=1"), "{error:?}");
    assert!(node.host.world().vg(VG).unwrap().lvs.keys().any(|lv| lv.as_str() == "pvc-a"));
}

#[tokio::test(start_paused = true)]
async fn a_vg_that_is_not_seen_says_nothing_about_its_volumes() {
    let node = Node::ready().await;
    let a = node.create(thin("pvc-a")).await.unwrap().handle;
    let mut gone = a.clone();
    gone.vg = cinderblock::names::LvmUuid::derived("somewhere else");
    assert_eq!(node.delete(&gone).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(
        node.stage(&gone, AccessType::Block).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    // A disk is missing: nothing is made, removed or reported absent.
    node.host.world().lose_disk(Path::new("/dev/disk/by-id/disk1"));
    let mut absent = a.clone();
    absent.lv = cinderblock::names::LvName::parse("pvc-x").unwrap();
    assert_eq!(node.delete(&absent).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(node.delete(&a).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let error = node.create(thick("pvc-b")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("misses"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn access_modes_hold() {
    let node = Node::ready().await;
    let a = node.create(thin("pvc-a")).await.unwrap().handle;
    let access = mounted(FsType::Ext4);
    let publish = |target: &str, mode, read_only| {
        let capability = Capability { access: access.clone(), mode };
        node.agent.publish_volume(Publish {
            volume: a.clone(),
            staging: staging(&a),
            target: target.into(),
            capability,
            read_only,
        })
    };
    let multi = AccessMode::MultiWriter;
    let kind = |r: cinderblock::error::Result<()>| r.unwrap_err().kind();
    assert_eq!(kind(publish("/pods/1", multi, false).await), ErrorKind::FailedPrecondition);
    node.stage(&a, access.clone()).await.unwrap();
    for _ in 0..2 {
        publish("/pods/1", multi, false).await.unwrap();
        publish("/pods/2", multi, true).await.unwrap();
    }
    assert_eq!(kind(publish("/pods/1", multi, true).await), ErrorKind::AlreadyExists);
    let single = AccessMode::SingleWriter;
    assert_eq!(kind(publish("/pods/3", single, false).await), ErrorKind::FailedPrecondition);
    publish("/pods/1", single, false).await.unwrap();
    assert_eq!(node.host.world().mounted().iter().filter(|m| m.read_only).count(), 1);
    let statistics = node.agent.statistics(a.clone(), "/pods/1".into()).await.unwrap();
    assert!(matches!(statistics, Statistics::Filesystem(_)));
    let elsewhere = node.agent.statistics(a.clone(), "/pods/9".into()).await;
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn calls_on_one_volume_never_run_at_once() {
    let node = Node::ready().await;
    let calls = (0..20).map(|_| node.create(thin("pvc-a")));
    let results = futures_join(calls).await;
    let made = results.iter().filter(|r| r.is_ok()).count();
    let pending = |r: &&cinderblock::error::Result<_>| {
        r.as_ref().is_err_and(|e| e.kind() == ErrorKind::Pending)
    };
    assert!(made >= 1 && made + results.iter().filter(pending).count() == 20, "{results:?}");
    let creates = node.host.programs_run().iter().filter(|run| *run == "lvm lvcreate").count();
    assert_eq!(creates, 3, "the pool's two parts and the volume");
}

async fn futures_join<T>(calls: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut calls: Vec<_> = calls.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = calls.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (call, slot) in calls.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = call.as_mut().poll(cx)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// The capabilities of one claim may ask for both, and nothing tells which comes first.
#[tokio::test(start_paused = true)]
async fn a_device_that_was_a_filesystem_first_shows_nothing_of_before() {
    for (request, zeroes) in [
        (volume("pvc-a", Provisioning::Thick, Usage::Block, 1), true),
        (thick("pvc-a"), false),
        (volume("pvc-a", Provisioning::Thin, Usage::Block, 1), false),
        (encrypted(volume("pvc-a", Provisioning::Thick, Usage::Block, 1)), false),
    ] {
        let node = Node::ready().await;
        let a = node.create(request.clone()).await.unwrap().handle;
        node.host.arm(None);
        node.stage(&a, mounted(FsType::Ext4)).await.unwrap();
        let effects = node.host.effects();
        let made = effects.iter().position(|effect| effect.contains("mkfs.ext4")).unwrap();
        let pieces = effects[..made].iter().filter(|effect| effect.starts_with("zero "));
        let zeroed: u64 =
            pieces.map(|it| it.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        // Where keys begin, LUKS makes sure of zeroes anyway.
        assert_eq!(zeroed == 1 << 30, zeroes, "{request:?}: {zeroed}");
        let after = effects[made..].iter().filter(|effect| effect.starts_with("zero ")).count();
        assert_eq!(after, 0, "what mkfs wrote: {request:?}");
        node.unstage(&a).await.unwrap();
        let hides = matches!(request.usage, Usage::Filesystem(_));
        assert_eq!(node.stage(&a, AccessType::Block).await.is_err(), hides, "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_disk_has_on_its_medium_is_not_told() {
    let node = Node::ready().await;
    node.host.world().no_flush = true;
    let error = node.create(thick("pvc-1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let text = error.chain();
    assert!(
        text.contains("no disk with the metadata of volume group vg0 empties its cache"),
        "{text}"
    );
    node.host.world().no_flush = false;
    let runs = node.host.programs_run();
    let made = node.create(thick("pvc-1")).await.unwrap();
    assert!(node.host.world().is_flushed(VG));
    assert_eq!(node.host.programs_run(), runs, "it was made before");
    node.delete(&made.handle).await.unwrap();
    assert!(node.host.world().is_flushed(VG));
}
