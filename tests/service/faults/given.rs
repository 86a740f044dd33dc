//! What use cases find when they are called: volumes of each kind, used, published, or cut on their way.

use std::time::Duration;

use cinderblock::domain::{AccessType, ContentSource, CreateVolume, Provisioning};
use cinderblock::error::{Error, Result};
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::tag::{FsType, Usage, Wipe};
use cinderblock::names::{CsiName, Handle, LvName};
use cinderblock::sim::{Fault, Mode};
use cinderblock::units::Bytes;

use crate::support::{Node, VG, encrypted, mounted, restored, thick, volume};

pub(super) fn block(name: &str, provisioning: Provisioning) -> CreateVolume {
    volume(name, provisioning, Usage::Block, 1)
}

pub(super) fn fs(name: &str, provisioning: Provisioning, fs: FsType) -> CreateVolume {
    volume(name, provisioning, Usage::Filesystem(fs), 1)
}

pub(super) const EXT4: Usage = Usage::Filesystem(FsType::Ext4);

/// A raid1 volume on both disks.
pub(super) fn mirrored(name: &str, usage: Usage) -> CreateVolume {
    let layout = ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
    laid_out(volume(name, Provisioning::Thick, usage, 1), layout)
}

pub(super) fn laid_out(mut request: CreateVolume, layout: ThickLayout) -> CreateVolume {
    request.class.layout = layout;
    request
}

/// A volume of two stripes.
pub(super) fn striped(name: &str) -> CreateVolume {
    laid_out(thick(name), ThickLayout::Striped { stripes: 2, stripe_size: Bytes::kib(64) })
}

/// A RAID volume of two legs with data, and those that it needs beside them.
pub(super) fn raid(name: &str, level: RaidLevel) -> CreateVolume {
    let (legs, stripe_size) = (level.legs(2), Bytes::kib(64));
    laid_out(thick(name), ThickLayout::Raid { level, legs, stripe_size })
}

pub(super) async fn made(node: &Node, request: CreateVolume) -> Handle {
    node.create(request).await.unwrap().handle
}

/// A snapshot of a volume with data, the volume still mounted.
pub(super) async fn snapshotted(node: &Node, fs: FsType) -> Vec<Handle> {
    let source = made(node, self::fs("pvc-0", Provisioning::Thin, fs)).await;
    node.write(&source, mounted(fs), "before").await;
    node.stage(&source, mounted(fs)).await.unwrap();
    let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
    vec![source, snapshot]
}

/// A volume with data.
pub(super) async fn used(node: &Node, request: CreateVolume) -> Handle {
    let handle = made(node, request).await;
    node.write(&handle, mounted(FsType::Ext4), "data").await;
    handle
}

/// The same request for a volume that is copied in three pieces.
pub(super) fn small(mut request: CreateVolume) -> CreateVolume {
    request.range.required = Some(Bytes::mib(192));
    request
}

/// The same of a thick one that is cleared when it is deleted.
pub(super) async fn thick_snapshotted(node: &Node, wipe: Option<Wipe>) -> Vec<Handle> {
    let mut request = small(thick("pvc-0"));
    request.class.wipe = wipe;
    let source = used(node, request).await;
    let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
    vec![source, snapshot]
}

/// A restored volume of that filesystem, not staged yet.
pub(super) async fn fresh_restore(node: &Node, fs: FsType) -> Vec<Handle> {
    let handles = snapshotted(node, fs).await;
    let mut request = restored("pvc-1", &handles[1], 2);
    request.usage = Usage::Filesystem(fs);
    vec![made(node, request).await]
}

/// A restored XFS whose own UUID was written by half.
pub(super) async fn cut_restore(node: &Node) -> Vec<Handle> {
    let handles = fresh_restore(node, FsType::Xfs).await;
    let content = node.host.world().content(VG, "pvc-1").cloned().unwrap();
    let cut = cinderblock::sim::Content { log_cut: true, ..content };
    node.host.world().set_content(VG, "pvc-1", cut);
    handles
}

/// A restored encrypted volume, larger than its source, not staged yet.
pub(super) async fn luks_restore(node: &Node, fs: FsType) -> Vec<Handle> {
    let request = encrypted(self::fs("pvc-0", Provisioning::Thin, fs));
    let source = made(node, request).await;
    node.write(&source, mounted(fs), "before").await;
    let snapshot = node.snapshot("snapshot-0", &source).await.unwrap().handle;
    let mut request = encrypted(restored("pvc-1", &snapshot, 2));
    request.usage = Usage::Filesystem(fs);
    vec![made(node, request).await]
}

/// A volume that is staged and published.
pub(super) async fn published(
    node: &Node,
    access: AccessType,
    request: CreateVolume,
) -> Vec<Handle> {
    let handle = made(node, request).await;
    node.stage(&handle, access.clone()).await.unwrap();
    node.publish(&handle, access, "/pods/a").await.unwrap();
    vec![handle]
}

/// A clone that was cut before its source's image was taken, and whose source is gone since.
pub(super) async fn lost_copy(node: &Node, request: CreateVolume) -> Vec<Handle> {
    let source = used(node, request.clone()).await;
    let name = CsiName::parse("pvc-1").unwrap();
    let from = Some(ContentSource::Volume(source.clone()));
    node.host.arm(Some(Fault { at: 1, mode: Mode::Fail }));
    let clone = CreateVolume { name, source: from, ..request };
    node.create(clone).await.unwrap_err();
    node.host.world().rename(VG, &source.lv, &LvName::parse("taken-away").unwrap());
    vec![Handle { lv: LvName::parse("pvc-1").unwrap(), ..source }]
}

/// Waits until what nobody asks for has gone by itself.
pub(super) async fn gone(node: &Node, handle: &Handle) -> Result<()> {
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_mins(1)).await;
        if !node.host.world().vg(VG).unwrap().lvs.contains_key(&handle.lv) {
            return node.wait_wiped().await;
        }
    }
    Err(Error::unavailable("it is still there"))
}
