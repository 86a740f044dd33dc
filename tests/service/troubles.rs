//! What users are told when something is wrong: the inventory carries it, and a volume's health says
//! it. No LVM process is run for either.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cinderblock::config::Config;
use cinderblock::domain::{CreateVolume, Reason, Subject, VolumeAgent};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::tag::FsType;
use cinderblock::names::{BackendName, Handle, LvName};
use cinderblock::sim::{SimHost, World};
use cinderblock::units::Bytes;

use crate::support::{Node, TWO_VGS, VG, mounted, on_backend, staging, thick, thin};

/// Longer than what is wrong takes to be noticed.
async fn noticed() {
    tokio::time::sleep(Duration::from_secs(15)).await;
}

fn mirrored(name: &str) -> CreateVolume {
    let mut request = thick(name);
    request.class.layout =
        ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };
    request
}

/// What the inventory says is wrong.
fn troubles(node: &Node) -> Vec<(Subject, Reason)> {
    node.agent.inventory().borrow().troubles.keys().cloned().collect()
}

fn of_volume(node: &Node, volume: &Handle) -> Vec<Reason> {
    let about = |(subject, _): &(Subject, Reason)| *subject == Subject::Volume(volume.clone());
    troubles(node).into_iter().filter(about).map(|(_, reason)| reason).collect()
}

fn of_backend(node: &Node) -> Vec<Reason> {
    let about = |(subject, _): &(Subject, Reason)| matches!(subject, Subject::Backend(_));
    troubles(node).into_iter().filter(about).map(|(_, reason)| reason).collect()
}

async fn health(node: &Node, volume: &Handle, paths: &[PathBuf]) -> Vec<(Reason, String)> {
    let runs = node.host.programs_run().len();
    let found = node.agent.volume_health(volume, paths).await.unwrap();
    assert_eq!(node.host.programs_run().len(), runs, "nothing is run to look");
    found
}

async fn health_reasons(node: &Node, volume: &Handle) -> Vec<Reason> {
    health(node, volume, &[]).await.into_iter().map(|(reason, _)| reason).collect()
}

#[tokio::test(start_paused = true)]
async fn legs_that_fail_are_rebuilt_and_are_well_again() {
    let node = Node::ready_without_a_pool().await;
    let volume = node.create(mirrored("pvc-1")).await.unwrap().handle;
    let other = node.create(thick("pvc-2")).await.unwrap().handle;
    noticed().await;
    assert_eq!(troubles(&node), []);
    let says = async |letters: &str, action: &str, reasons: &[Reason]| {
        node.host.world().set_raid(VG, "pvc-1", letters, action);
        noticed().await;
        assert_eq!(of_volume(&node, &volume), reasons, "{letters}");
        assert_eq!(health_reasons(&node, &volume).await, reasons, "{letters}");
    };
    says("aa", "resync", &[Reason::VolumeResyncing]).await;
    says("AD", "idle", &[Reason::VolumeDegraded]).await;
    let since = |node: &Node| {
        let key = (Subject::Volume(volume.clone()), Reason::VolumeDegraded);
        node.agent.inventory().borrow().troubles[&key].since_unix
    };
    let began = since(&node);
    says("Aa", "recover", &[Reason::VolumeDegraded]).await;
    assert_eq!(since(&node), began, "the same trouble still");
    let said = health(&node, &volume, &[]).await;
    assert!(said[0].1.contains("being rebuilt") && said[0].1.contains("25%"), "{said:?}");
    says("AA", "idle", &[]).await;
    assert_eq!(of_volume(&node, &other), []);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_lost_is_told_of_volume_by_volume() {
    let node = Node::ready_without_a_pool().await;
    let mirror = node.create(mirrored("pvc-1")).await.unwrap().handle;
    let disks = ["/dev/disk/by-id/disk0", "/dev/disk/by-id/disk1"];
    let mut all = thick("pvc-large");
    all.range.required = Some(Bytes::gib(30));
    let large = node.create(all).await.unwrap().handle;
    let small = node.create(thick("pvc-small")).await.unwrap().handle;
    let on = |volume: &Handle| {
        let world = node.host.world();
        let vg = world.vg(VG).unwrap();
        let pvs: Vec<_> = vg.lvs[&volume.lv].areas.iter().map(|area| area.pv.clone()).collect();
        pvs.iter().map(|pv| vg.pvs[pv].device.clone().unwrap()).collect::<Vec<_>>()
    };
    let lost = usize::from(on(&small).contains(&PathBuf::from("/dev/sda")));
    node.host.world().lose_disk(Path::new(disks[lost]));
    // The agent knows when LVM tells: the disks alone do not.
    let node = node.reincarnate_in_any_state().await;
    noticed().await;
    assert_eq!(of_backend(&node), [Reason::PhysicalVolumeMissing]);
    assert_eq!(of_volume(&node, &mirror), [Reason::VolumeDegraded]);
    assert_eq!(of_volume(&node, &large), [Reason::VolumeInaccessible]);
    assert_eq!(of_volume(&node, &small), []);
    assert_eq!(health_reasons(&node, &mirror).await, [Reason::VolumeDegraded]);
    assert_eq!(health_reasons(&node, &large).await, [Reason::VolumeInaccessible]);
    let storage = node.agent.storage_health();
    assert!(storage[0].1.contains("backend fast: volume group vg0 misses"), "{storage:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_fills_is_told_of_step_by_step() {
    let node = Node::ready().await;
    let volume = node.create(thin("pvc-1")).await.unwrap().handle;
    let size = node.host.world().vg(VG).unwrap().lvs[&LvName::parse("pool0").unwrap()].size;
    let fill = async |percent| {
        node.host.world().pool(VG, "pool0").data_used = size.percent_floor(percent);
        noticed().await;
        (of_backend(&node), health_reasons(&node, &volume).await)
    };
    assert_eq!(fill(50).await, (vec![], vec![]));
    // No room to grow into.
    let mut all = thick("pvc-thick");
    let free = node.host.world().vg(VG).unwrap().free_extents().get() * 4;
    all.range.required = Some(Bytes::mib(free));
    node.create(all).await.unwrap();
    let brim = fill(100).await;
    let wanted =
        [Reason::ThinPoolCannotGrow, Reason::ThinPoolAlmostFull, Reason::ThinPoolFull].to_vec();
    assert_eq!(brim, (wanted.clone(), wanted));
    let almost = vec![Reason::ThinPoolCannotGrow, Reason::ThinPoolAlmostFull];
    assert_eq!(fill(96).await, (almost.clone(), almost));
    node.host.world().pool(VG, "pool0").failed = true;
    noticed().await;
    assert_eq!(of_backend(&node), [Reason::ThinPoolFailed]);
    node.host.world().pool(VG, "pool0").failed = false;
    assert_eq!(fill(10).await, (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn lvm_that_hangs_in_one_volume_group_hangs_nothing_else() {
    let host = SimHost::new(World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]));
    let node = Node::start(&host, TWO_VGS);
    node.wait_ready().await;
    let on = |backend: &str, name: &str| on_backend(thick(name), backend);
    let a = node.create(on("a", "pvc-a")).await.unwrap().handle;
    let b = node.create(on("b", "pvc-b")).await.unwrap().handle;
    node.stage(&a, mounted(FsType::Ext4)).await.unwrap();

    host.stall(Some("vg0"));
    let agent = node.agent.clone();
    let request = on("a", "pvc-late");
    let late = tokio::spawn(async move { agent.create_volume(request).await });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(troubles(&node), []);
    tokio::time::sleep(Duration::from_secs(40)).await;
    let backend = Subject::Backend(BackendName::parse("a").unwrap());
    let hangs = [(backend, Reason::LvmHangs)];
    assert_eq!(troubles(&node), hangs);
    assert_eq!(health_reasons(&node, &a).await, []);
    let again = node.create(on("a", "pvc-late")).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Pending);
    // What needs no LVM, and the other volume group, go on; to set up backends has to wait.
    node.publish(&a, mounted(FsType::Ext4), "/pods/1").await.unwrap();
    node.config.send_replace(Arc::new(Config::parse(TWO_VGS).unwrap()));
    noticed().await;
    node.create(on("b", "pvc-b2")).await.unwrap();
    node.write(&b, mounted(FsType::Ext4), "data").await;
    node.expand(&b, Bytes::gib(2)).await.unwrap();
    let b2 =
        node.agent.inventory().borrow().volumes.keys().find(|v| v.lv.as_str() == "pvc-b2").cloned();
    host.world().rename("vg1", &b2.as_ref().unwrap().lv, &LvName::parse("elsewhere").unwrap());
    noticed().await;
    assert!(!node.agent.inventory().borrow().volumes.contains_key(&b2.unwrap()));
    node.delete(&b).await.unwrap();
    assert_eq!(troubles(&node), hangs);

    host.stall(None);
    late.await.unwrap().unwrap();
    noticed().await;
    assert_eq!(troubles(&node), []);
    node.expand(&a, Bytes::gib(2)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_wrong_is_in_the_first_inventory_of_the_next_agent() {
    let node = Node::ready_without_a_pool().await;
    let volume = node.create(mirrored("pvc-1")).await.unwrap().handle;
    node.host.world().set_raid(VG, "pvc-1", "AD", "idle");
    let node = node.reincarnate().await;
    assert_eq!(of_volume(&node, &volume), [Reason::VolumeDegraded]);
}

#[tokio::test(start_paused = true)]
async fn a_filesystem_that_stopped_taking_writes_is_seen_where_it_is_mounted() {
    let node = Node::ready().await;
    let volume = node.create(thin("pvc-1")).await.unwrap().handle;
    let ext4 = || mounted(FsType::Ext4);
    node.stage(&volume, ext4()).await.unwrap();
    node.publish(&volume, ext4(), "/pods/1").await.unwrap();
    let paths = [staging(&volume), PathBuf::from("/pods/1"), PathBuf::from("/pods/none")];
    assert_eq!(health(&node, &volume, &paths).await, []);
    node.host.world().stop_filesystem(Path::new("/pods/1"));
    for path in &paths[..2] {
        let found = health(&node, &volume, std::slice::from_ref(path)).await;
        assert_eq!(found[0].0, Reason::FilesystemReadOnly, "{}", path.display());
    }
    assert_eq!(health(&node, &volume, &paths[2..]).await, []);
}

#[tokio::test(start_paused = true)]
async fn health_of_what_is_not_there() {
    let node = Node::ready().await;
    let volume = node.create(thin("pvc-1")).await.unwrap().handle;
    node.delete(&volume).await.unwrap();
    let error = node.agent.volume_health(&volume, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
