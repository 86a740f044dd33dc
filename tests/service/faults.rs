//! Every use case, cut at every effect in every way.

mod given;

use std::future::Future;
use std::pin::Pin;

use cinderblock::domain::{AccessType, CreateVolume, Provisioning};
use cinderblock::error::{ErrorKind, Result};
use cinderblock::lvm::layout::RaidLevel;
use cinderblock::lvm::tag::{FsType, Usage, Wipe};
use cinderblock::names::Handle;
use cinderblock::sim::{Fault, Mode};
use cinderblock::units::Bytes;

use given::{
    EXT4, block, cut_restore, fresh_restore, fs, gone, lost_copy, luks_restore, made, mirrored,
    published, raid, small, snapshotted, striped, thick_snapshotted, used,
};

use crate::support::{
    MASTER_KEY, Node, VG, as_thick, cloned, encrypted, master, mounted, restored, secret, thick,
    thin, wiped,
};

/// What has to be there before the call.
pub(crate) type Prepare = for<'a> fn(&'a Node) -> Pin<Box<dyn Future<Output = Vec<Handle>> + 'a>>;
/// The call.
pub(crate) type Call =
    for<'a> fn(&'a Node, &'a [Handle]) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// How often a caller tries again.
const TRIES: usize = 6;

pub(crate) async fn ready(case: &str) -> Node {
    let has = |part| case.contains(part);
    if has("raid5") || has("raid6") || has("raid10") {
        Node::ready_on_disks(4).await
    } else if has("raid") || has("striped") {
        Node::ready_without_a_pool().await
    } else {
        Node::ready().await
    }
}

/// Runs the call without a fault, then with one at each of its effects, each in a host of its own.
async fn sweep(name: &str, prepare: Prepare, call: Call) {
    let node = ready(name).await;
    let handles = prepare(&node).await;
    node.host.arm(None);
    call(&node, &handles).await.unwrap_or_else(|e| panic!("{name} without a fault: {e:?}"));
    let effects = node.host.effects();
    assert!(node.host.world().is_flushed(VG), "{name}: answered from a disk's cache");
    let host = node.end().await;
    let wanted = host.world().summary();
    assert!(!effects.is_empty(), "{name} has no effect");
    for at in 0..effects.len() {
        let has_midst = ["lvm ", "xfs_admin ", "cryptsetup resize "]
            .iter()
            .any(|it| effects[at].starts_with(it));
        for mode in Mode::ALL.into_iter().filter(|mode| has_midst || *mode != Mode::Cut) {
            let fault = Fault { at, mode };
            let cut = format!("{name}, {mode:?} at {:?}", effects[at]);
            let got = Box::pin(cut_and_repeat(&cut, prepare, call, fault)).await;
            assert_eq!(got, wanted, "{cut}");
        }
    }
}

async fn cut_and_repeat(cut: &str, prepare: Prepare, call: Call, fault: Fault) -> String {
    let mut node = ready(cut).await;
    let handles = prepare(&node).await;
    let before = node.host.world().vg(VG).unwrap().free_extents();
    node.host.arm(Some(fault));
    for attempt in 0..TRIES {
        let result = call(&node, &handles).await;
        if attempt == 0 {
            if fault.mode.kills() {
                node = node.reincarnate().await;
            } else if let Err(error) = &result {
                node.host.arm(None);
                // A caller that gets a final code forgets the call: nothing may be left of it.
                let doubt = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Pending);
                let after = node.host.world().vg(VG).unwrap().free_extents();
                assert!(doubt || before == after, "{cut}: {error:?} left something behind");
                continue;
            }
        }
        match result {
            Ok(()) if attempt > 0 || !fault.mode.kills() => {
                assert!(node.host.world().is_flushed(VG), "{cut}: answered from a disk's cache");
                let host = node.end().await;
                let summary = host.world().summary();
                return summary;
            }
            Err(error) if attempt > 0 => panic!("{cut}: the repeated call fails: {error:?}"),
            _ => {}
        }
    }
    panic!("{cut}: no end after {TRIES} tries");
}

/// A use case: its name, what it needs, and the call.
pub(crate) type Case = (&'static str, Prepare, Call);

/// What the call does to the host, in this order, when nothing goes wrong.
pub(crate) async fn effects((name, prepare, call): Case) -> Vec<String> {
    let node = ready(name).await;
    let handles = prepare(&node).await;
    node.host.arm(None);
    call(&node, &handles).await.unwrap_or_else(|e| panic!("{name} without a fault: {e:?}"));
    node.host.effects()
}

macro_rules! cases {
    ($($name:ident: |$node:ident| $prepare:expr, |$n:ident, $handles:ident| $call:expr;)*) => {
        /// All of them.
        pub(crate) const CASES: &[Case] = &[$((
            stringify!($name),
            |$node| Box::pin(async move { $prepare }),
            |$n, $handles| Box::pin(async move { $call }),
        )),*];

        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                let (name, prepare, call) =
                    CASES.iter().find(|it| it.0 == stringify!($name)).unwrap();
                Box::pin(sweep(name, *prepare, *call)).await;
            }
        )*
    };
}

cases! {
    create_thin: |_node| vec![], |node, _h| node.create(thin("pvc-1")).await.map(drop);
    create_thick: |_node| vec![], |node, _h| node.create(thick("pvc-1")).await.map(drop);
    create_block: |_node| vec![],
        |node, _h| node.create(block("pvc-1", Provisioning::Thick)).await.map(drop);
    create_raid: |_node| vec![], |node, _h| node.create(mirrored("pvc-1", Usage::Block)).await.map(drop);
    create_thin_block: |_node| vec![],
        |node, _h| node.create(block("pvc-1", Provisioning::Thin)).await.map(drop);
    create_thin_xfs: |_node| vec![],
        |node, _h| node.create(fs("pvc-1", Provisioning::Thin, FsType::Xfs)).await.map(drop);
    create_btrfs: |_node| vec![],
        |node, _h| node.create(fs("pvc-1", Provisioning::Thick, FsType::Btrfs)).await.map(drop);
    create_striped: |_node| vec![], |node, _h| node.create(striped("pvc-1")).await.map(drop);
    create_raid5: |_node| vec![],
        |node, _h| node.create(raid("pvc-1", RaidLevel::Raid5)).await.map(drop);
    create_raid6: |_node| vec![],
        |node, _h| node.create(raid("pvc-1", RaidLevel::Raid6)).await.map(drop);
    create_raid10: |_node| vec![],
        |node, _h| node.create(raid("pvc-1", RaidLevel::Raid10)).await.map(drop);
    create_luks: |_node| vec![], |node, _h| node.create(encrypted(thick("pvc-1"))).await.map(drop);
    create_thin_luks: |_node| vec![],
        |node, _h| node.create(encrypted(thin("pvc-1"))).await.map(drop);
    create_with_an_odd_name: |_node| vec![],
        |node, _h| node.create(thin("data for all")).await.map(drop);

    snapshot: |node| {
        let source = made(node, thin("pvc-0")).await;
        node.write(&source, mounted(FsType::Ext4), "data").await;
        vec![source]
    }, |node, h| node.snapshot("snapshot-1", &h[0]).await.map(drop);

    restore: |node| snapshotted(node, FsType::Ext4).await,
        |node, h| node.create(restored("pvc-1", &h[1], 1)).await.map(drop);
    restore_larger: |node| snapshotted(node, FsType::Ext4).await,
        |node, h| node.create(restored("pvc-1", &h[1], 3)).await.map(drop);
    clone: |node| snapshotted(node, FsType::Ext4).await,
        |node, h| node.create(cloned("pvc-1", &h[0])).await.map(drop);

    snapshot_thick: |node| vec![used(node, small(thick("pvc-0"))).await],
        |node, h| node.snapshot("snapshot-1", &h[0]).await.map(drop);
    restore_thick: |node| thick_snapshotted(node, None).await,
        |node, h| node.create(as_thick(restored("pvc-1", &h[1], 1))).await.map(drop);
    restore_thick_to_a_larger_block: |node| {
        let source = made(node, small(block("pvc-0", Provisioning::Thick))).await;
        node.write(&source, AccessType::Block, "data").await;
        let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
        vec![source, snapshot]
    }, |node, h| {
            let request = restored("pvc-1", &h[1], 2);
            let request = CreateVolume { usage: Usage::Block, ..request };
            node.create(as_thick(request)).await.map(drop)
        };
    restore_thick_to_thin: |node| thick_snapshotted(node, None).await,
        |node, h| node.create(restored("pvc-1", &h[1], 1)).await.map(drop);
    clone_thick: |node| vec![used(node, small(thick("pvc-0"))).await],
        |node, h| node.create(small(as_thick(cloned("pvc-1", &h[0])))).await.map(drop);
    clone_thick_that_is_wiped: |node| vec![used(node, wiped(thick("pvc-0"), Wipe::Zero)).await],
        |node, h| {
            node.create(wiped(as_thick(cloned("pvc-1", &h[0])), Wipe::Zero)).await?;
            node.wait_wiped().await
        };
    clone_thin_to_thick: |node| vec![used(node, small(thin("pvc-0"))).await],
        |node, h| node.create(small(as_thick(cloned("pvc-1", &h[0])))).await.map(drop);
    remove_a_copy_that_is_lost: |node| lost_copy(node, small(thick("pvc-0"))).await,
        |node, h| gone(node, &h[0]).await;
    wipe_a_copy_that_is_lost: |node| lost_copy(node, wiped(thick("pvc-0"), Wipe::Zero)).await,
        |node, h| gone(node, &h[0]).await;
    remove_an_encrypted_copy_that_is_lost:
        |node| lost_copy(node, small(encrypted(thick("pvc-0")))).await,
        |node, h| gone(node, &h[0]).await;
    delete_a_thick_snapshot: |node| thick_snapshotted(node, None).await,
        |node, h| {
            use cinderblock::domain::VolumeAgent;
            node.agent.delete_snapshot(h[1].clone()).await.map(drop)
        };
    delete_and_zero_a_thick_snapshot: |node| thick_snapshotted(node, Some(Wipe::Zero)).await,
        |node, h| {
            use cinderblock::domain::VolumeAgent;
            node.agent.delete_snapshot(h[1].clone()).await?;
            node.wait_wiped().await
        };
    delete_the_source_of_a_thick_snapshot: |node| thick_snapshotted(node, None).await,
        |node, h| node.delete(&h[0]).await;
    delete_a_thick_snapshot_and_its_source: |node| {
        let handles = thick_snapshotted(node, Some(Wipe::Zero)).await;
        node.delete(&handles[0]).await.unwrap();
        handles
    }, |node, h| {
        use cinderblock::domain::VolumeAgent;
        node.agent.delete_snapshot(h[1].clone()).await?;
        node.wait_wiped().await
    };

    delete_thin: |node| vec![made(node, thin("pvc-1")).await],
        |node, h| node.delete(&h[0]).await;
    delete_thick: |node| vec![made(node, thick("pvc-1")).await],
        |node, h| node.delete(&h[0]).await;
    delete_the_source_of_a_snapshot: |node| {
        let handles = snapshotted(node, FsType::Ext4).await;
        node.unstage(&handles[0]).await.unwrap();
        handles
    }, |node, h| node.delete(&h[0]).await;
    delete_a_snapshot: |node| snapshotted(node, FsType::Ext4).await,
        |node, h| {
            use cinderblock::domain::VolumeAgent;
            node.agent.delete_snapshot(h[1].clone()).await.map(drop)
        };

    delete_and_zero: |node| vec![used(node, wiped(thick("pvc-1"), Wipe::Zero)).await],
        |node, h| node.delete_and_wipe(&h[0]).await;
    delete_and_discard: |node| vec![used(node, wiped(thick("pvc-1"), Wipe::Discard)).await],
        |node, h| node.delete_and_wipe(&h[0]).await;
    delete_and_discard_thin: |node| vec![used(node, wiped(thin("pvc-1"), Wipe::Discard)).await],
        |node, h| node.delete_and_wipe(&h[0]).await;
    delete_and_discard_a_snapshot: |node| {
        let source = used(node, wiped(thin("pvc-0"), Wipe::Discard)).await;
        let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
        vec![source, snapshot]
    }, |node, h| {
        use cinderblock::domain::VolumeAgent;
        node.agent.delete_snapshot(h[1].clone()).await?;
        node.wait_wiped().await
    };

    expand_thin: |node| vec![made(node, thin("pvc-1")).await],
        |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);
    expand_thick: |node| vec![made(node, thick("pvc-1")).await],
        |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);
    expand_thick_block: |node| {
        let handle = made(node, block("pvc-1", Provisioning::Thick)).await;
        node.write(&handle, AccessType::Block, "data").await;
        vec![handle]
    }, |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);

    expand_raid: |node| vec![made(node, mirrored("pvc-1", EXT4)).await],
        |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);
    expand_raid_block: |node| {
        let handle = made(node, mirrored("pvc-1", Usage::Block)).await;
        node.write(&handle, AccessType::Block, "data").await;
        vec![handle]
    }, |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);
    expand_striped: |node| vec![made(node, striped("pvc-1")).await],
        |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);
    expand_raid5: |node| vec![made(node, raid("pvc-1", RaidLevel::Raid5)).await],
        |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);
    delete_raid: |node| vec![made(node, mirrored("pvc-1", EXT4)).await],
        |node, h| node.delete(&h[0]).await;

    stage_a_new_ext4: |node| vec![made(node, thin("pvc-1")).await],
        |node, h| node.stage(&h[0], mounted(FsType::Ext4)).await;
    stage_a_new_xfs: |node| vec![made(node, fs("pvc-1", Provisioning::Thick, FsType::Xfs)).await],
        |node, h| node.stage(&h[0], mounted(FsType::Xfs)).await;
    stage_a_new_btrfs: |node| vec![made(node, fs("pvc-1", Provisioning::Thin, FsType::Btrfs)).await],
        |node, h| node.stage(&h[0], mounted(FsType::Btrfs)).await;
    stage_a_new_thin_block: |node| vec![made(node, block("pvc-1", Provisioning::Thin)).await],
        |node, h| node.stage(&h[0], AccessType::Block).await;
    stage_a_new_thick_block: |node| vec![made(node, block("pvc-1", Provisioning::Thick)).await],
        |node, h| node.stage(&h[0], AccessType::Block).await;
    stage_again: |node| {
        let handle = made(node, thin("pvc-1")).await;
        node.write(&handle, mounted(FsType::Ext4), "data").await;
        vec![handle]
    }, |node, h| node.stage(&h[0], mounted(FsType::Ext4)).await;
    stage_a_restored_ext4: |node| fresh_restore(node, FsType::Ext4).await,
        |node, h| node.stage(&h[0], mounted(FsType::Ext4)).await;
    stage_a_restored_xfs: |node| fresh_restore(node, FsType::Xfs).await,
        |node, h| node.stage(&h[0], mounted(FsType::Xfs)).await;
    stage_a_restored_xfs_that_was_cut: |node| cut_restore(node).await,
        |node, h| node.stage(&h[0], mounted(FsType::Xfs)).await;
    stage_a_restored_btrfs: |node| fresh_restore(node, FsType::Btrfs).await,
        |node, h| node.stage(&h[0], mounted(FsType::Btrfs)).await;
    stage_after_an_expansion: |node| {
        let handle = made(node, thin("pvc-1")).await;
        node.write(&handle, mounted(FsType::Ext4), "data").await;
        node.expand(&handle, Bytes::gib(2)).await.unwrap();
        vec![handle]
    }, |node, h| node.stage(&h[0], mounted(FsType::Ext4)).await;

    unstage: |node| {
        let handle = made(node, thin("pvc-1")).await;
        node.stage(&handle, mounted(FsType::Ext4)).await.unwrap();
        vec![handle]
    }, |node, h| node.unstage(&h[0]).await;

    publish_a_filesystem: |node| {
        let handle = made(node, thin("pvc-1")).await;
        node.stage(&handle, mounted(FsType::Ext4)).await.unwrap();
        vec![handle]
    }, |node, h| node.publish(&h[0], mounted(FsType::Ext4), "/pods/a").await;
    publish_a_block: |node| {
        let handle = made(node, block("pvc-1", Provisioning::Thin)).await;
        node.stage(&handle, AccessType::Block).await.unwrap();
        vec![handle]
    }, |node, h| node.publish(&h[0], AccessType::Block, "/pods/a").await;
    publish_a_filesystem_read_only: |node| {
        let handle = made(node, thin("pvc-1")).await;
        node.stage(&handle, mounted(FsType::Ext4)).await.unwrap();
        vec![handle]
    }, |node, h| node.publish_as(&h[0], mounted(FsType::Ext4), "/pods/a", true).await;
    publish_a_block_read_only: |node| {
        let handle = made(node, block("pvc-1", Provisioning::Thin)).await;
        node.stage(&handle, AccessType::Block).await.unwrap();
        vec![handle]
    }, |node, h| node.publish_as(&h[0], AccessType::Block, "/pods/a", true).await;
    unpublish_a_filesystem: |node| published(node, mounted(FsType::Ext4), thin("pvc-1")).await,
        |node, _h| node.unpublish("/pods/a").await;
    unpublish_a_block: |node| {
        published(node, AccessType::Block, block("pvc-1", Provisioning::Thin)).await
    }, |node, _h| node.unpublish("/pods/a").await;

    expand_while_published: |node| {
        let handles = published(node, mounted(FsType::Xfs), fs("pvc-1", Provisioning::Thin, FsType::Xfs)).await;
        node.expand(&handles[0], Bytes::gib(2)).await.unwrap();
        handles
    }, |node, h| {
        node.expand_published(&h[0], Bytes::gib(2), master()).await.map(drop)
    };

    stage_a_new_luks_ext4: |node| vec![made(node, encrypted(thick("pvc-1"))).await],
        |node, h| node.stage(&h[0], mounted(FsType::Ext4)).await;
    stage_a_new_luks_by_passphrase: |node| vec![made(node, encrypted(thin("pvc-1"))).await],
        |node, h| node.stage_with(&h[0], mounted(FsType::Ext4), secret(&[("passphrase", "a")])).await;
    stage_a_new_luks_block: |node| vec![made(node, encrypted(block("pvc-1", Provisioning::Thick))).await],
        |node, h| node.stage(&h[0], AccessType::Block).await;
    stage_luks_again: |node| {
        vec![used(node, encrypted(thin("pvc-1"))).await]
    }, |node, h| node.stage(&h[0], mounted(FsType::Ext4)).await;
    stage_luks_after_an_expansion: |node| {
        let handle = used(node, encrypted(thin("pvc-1"))).await;
        node.expand(&handle, Bytes::gib(2)).await.unwrap();
        vec![handle]
    }, |node, h| node.stage(&h[0], mounted(FsType::Ext4)).await;
    stage_a_restored_luks_xfs: |node| luks_restore(node, FsType::Xfs).await,
        |node, h| node.stage(&h[0], mounted(FsType::Xfs)).await;
    stage_a_restored_luks_with_another_secret: |node| luks_restore(node, FsType::Ext4).await,
        |node, h| {
            let both = secret(&[("passphrase", "b"), ("previousMasterKey", MASTER_KEY)]);
            node.stage_with(&h[0], mounted(FsType::Ext4), both).await
        };
    stage_luks_with_a_new_master_key: |node| vec![used(node, encrypted(thin("pvc-1"))).await],
        |node, h| {
            let new = "n".repeat(44);
            let both = secret(&[("masterKey", &new), ("previousMasterKey", MASTER_KEY)]);
            node.stage_with(&h[0], mounted(FsType::Ext4), both).await
        };
    unstage_luks: |node| {
        let handle = made(node, encrypted(thin("pvc-1"))).await;
        node.stage(&handle, mounted(FsType::Ext4)).await.unwrap();
        vec![handle]
    }, |node, h| node.unstage(&h[0]).await;
    publish_a_luks_block: |node| {
        let handle = made(node, encrypted(block("pvc-1", Provisioning::Thin))).await;
        node.stage(&handle, AccessType::Block).await.unwrap();
        vec![handle]
    }, |node, h| node.publish(&h[0], AccessType::Block, "/pods/a").await;
    expand_luks_while_published: |node| {
        let request = encrypted(fs("pvc-1", Provisioning::Thick, FsType::Xfs));
        let handles = published(node, mounted(FsType::Xfs), request).await;
        node.expand(&handles[0], Bytes::gib(2)).await.unwrap();
        handles
    }, |node, h| node.expand_published(&h[0], Bytes::gib(2), master()).await.map(drop);
    expand_luks_block: |node| {
        let handle = made(node, encrypted(block("pvc-1", Provisioning::Thick))).await;
        node.write(&handle, AccessType::Block, "data").await;
        vec![handle]
    }, |node, h| node.expand(&h[0], Bytes::gib(2)).await.map(drop);
    delete_luks: |node| vec![used(node, encrypted(thick("pvc-1"))).await],
        |node, h| node.delete(&h[0]).await;
    delete_a_luks_snapshot: |node| {
        let source = used(node, encrypted(thin("pvc-0"))).await;
        let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
        vec![snapshot]
    }, |node, h| {
        use cinderblock::domain::VolumeAgent;
        node.agent.delete_snapshot(h[0].clone()).await.map(drop)
    };
    delete_luks_and_zero: |node| vec![used(node, encrypted(wiped(thick("pvc-1"), Wipe::Zero))).await],
        |node, h| node.delete_and_wipe(&h[0]).await;
}
