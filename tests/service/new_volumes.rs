//! What is known of a volume may be older than the disks. Nothing of a volume that was in use goes on
//! account of that.

use std::path::Path;
use std::time::Duration;

use cinderblock::domain::{AccessType, CreateVolume, Provisioning};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::tag::{FsType, Pending, Usage};
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;

use crate::support::{
    Node, TWO_VGS, VG, encrypted, mounted, on_backend, secret, thick, thin, volume,
};

fn block(name: &str) -> CreateVolume {
    volume(name, Provisioning::Thick, Usage::Block, 1)
}

/// LVM is asked about one volume group and is slow. What is done in another one meanwhile is not in its
/// report, which says of all of them what it saw at its beginning.
#[tokio::test(start_paused = true)]
async fn a_report_that_comes_late_takes_nothing_back() {
    let host = SimHost::new(World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]));
    let node = Node::start(&host, TWO_VGS);
    node.wait_ready().await;
    let create = async |name| node.create(on_backend(block(name), "a")).await.unwrap().handle;
    let old = create("pvc-old").await;
    let gone = create("pvc-gone").await;
    let reports = || host.programs_run().iter().filter(|run| *run == "lvm fullreport").count();
    let before = reports();
    host.hold_back(Some("fullreport"));
    host.world().lose_disk(Path::new("/dev/disk/by-id/disk1"));
    while reports() == before {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    node.write(&old, AccessType::Block, "mine").await;
    let new = create("pvc-new").await;
    node.write(&new, AccessType::Block, "mine, too").await;
    let unused = create("pvc-unused").await;
    node.delete(&gone).await.unwrap();

    host.hold_back(None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.read(&old, AccessType::Block).await, "mine");
    assert_eq!(node.read(&new, AccessType::Block).await, "mine, too");
    node.stage(&unused, AccessType::Block).await.unwrap();
    node.delete(&unused).await.unwrap();
    let error = node.stage(&gone, AccessType::Block).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let left: Vec<_> = host.world().vg(VG).unwrap().lvs.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["pvc-new", "pvc-old"]);
    // Of the one that it was asked about, it was believed.
    let error = node.create(on_backend(block("pvc-b"), "b")).await.unwrap_err();
    assert!(error.chain().contains("misses a disk"), "{error:?}");
}

/// Its tag was dropped, and the agent has not seen it yet.
#[tokio::test(start_paused = true)]
async fn what_is_not_new_any_more_is_not_overwritten() {
    let ext4 = || mounted(FsType::Ext4);
    for (request, access) in [
        (block("pvc-a"), AccessType::Block),
        (encrypted(block("pvc-a")), AccessType::Block),
        (thick("pvc-a"), ext4()),
        (encrypted(thick("pvc-a")), ext4()),
        (thin("pvc-a"), ext4()),
    ] {
        let node = Node::ready().await;
        let a = node.create(request.clone()).await.unwrap().handle;
        node.write(&a, access.clone(), "mine").await;
        let retag = |pending| node.host.world().retag(VG, "pvc-a", |tags| tags.pending = pending);
        retag(Some(Pending::Fresh));
        tokio::time::sleep(Duration::from_secs(15)).await;
        retag(None);
        let error = node.stage(&a, access.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{request:?} {error:?}");
        assert!(error.chain().contains("nothing was overwritten"), "{request:?} {error:?}");
        assert_eq!(node.read(&a, access).await, "mine", "{request:?}");
    }
    // Nor is one that nobody can open encrypted anew.
    let node = Node::ready().await;
    let a = node.create(encrypted(block("pvc-a"))).await.unwrap().handle;
    node.write(&a, AccessType::Block, "mine").await;
    node.host.world().retag(VG, "pvc-a", |tags| tags.pending = Some(Pending::Fresh));
    let mut content = node.host.world().content(VG, "pvc-a").cloned().unwrap();
    (content.luks, content.luks_copy) = (None, None);
    node.host.world().set_content(VG, "pvc-a", content);
    tokio::time::sleep(Duration::from_secs(15)).await;
    node.host.world().retag(VG, "pvc-a", |tags| tags.pending = None);
    let other = secret(&[("passphrase", "other")]);
    let error = node.stage_with(&a, AccessType::Block, other).await.unwrap_err();
    assert!(error.chain().contains("nothing was overwritten"), "{error:?}");
    assert!(node.host.world().content(VG, "pvc-a").unwrap().luks.is_none());
}

/// A program of an agent that was killed goes on, and so does whoever has it by mistake.
#[tokio::test(start_paused = true)]
async fn what_somebody_has_open_is_not_overwritten() {
    for request in [block("pvc-a"), encrypted(block("pvc-a"))] {
        let node = Node::ready().await;
        let a = node.create(request).await.unwrap().handle;
        node.host.world().occupy(VG, "pvc-a");
        node.host.arm(None);
        let error = node.stage(&a, AccessType::Block).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.chain().contains("somebody has its device"), "{error:?}");
        assert_eq!(node.host.effects(), [""; 0]);
        node.host.world().vacate();
        node.stage(&a, AccessType::Block).await.unwrap();
    }
}
