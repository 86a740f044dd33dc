//! Thin pools on RAID and stripes: made step by step, cut anywhere, grown where their legs are, and of
//! use while a disk is missing.

use std::path::Path;
use std::time::Duration;

use cinderblock::domain::{BackendState, Reason};
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::state::{LvLayout, VgState};
use cinderblock::lvm::tag::FsType;
use cinderblock::names::LvName;
use cinderblock::sim::{Fault, Mode, SimHost, World};
use cinderblock::units::Bytes;

use crate::support::{Node, VG, mounted, staging, thin};

pub(crate) const RAID1: &str = "
backends:
  - name: fast
    volumeGroup: vg0
    create: true
    devices: [/dev/disk/by-id/disk0, /dev/disk/by-id/disk1, /dev/disk/by-id/disk2]
    thinPool: { size: 50%, overprovision: 4, layout: raid1 }
    reserve: 0%
";

fn disks() -> SimHost {
    SimHost::new(World::with_disks(&[Bytes::gib(20); 3]))
}

async fn ready(config: &str) -> Node {
    let node = Node::start(&disks(), config);
    node.wait_ready().await;
    node
}

fn name(text: &str) -> LvName {
    LvName::parse(text).unwrap()
}

fn state(node: &Node) -> VgState {
    node.host.world().vg(VG).unwrap().clone()
}

/// Longer than what is wrong takes to be noticed.
async fn noticed() {
    tokio::time::sleep(Duration::from_secs(15)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_made_of_raid_and_volumes_are_made_in_it() {
    let stripe_size = Bytes::kib(64);
    let raid5 = ThickLayout::Raid { level: RaidLevel::Raid5, legs: 3, stripe_size };
    for (words, data, copies) in [
        ("layout: raid5, stripes: 2", LvLayout::Raid(raid5), 2),
        ("layout: striped, stripes: 3", LvLayout::Striped { stripes: 3, stripe_size }, 1),
    ] {
        let node = ready(&RAID1.replace("layout: raid1", words)).await;
        let pool = state(&node).lvs[&name("pool0")].clone();
        assert_eq!(pool.parts[0].layout, data, "{words}");
        assert_eq!(pool.parts[1].thick().unwrap().legs(), copies, "{words}");
        assert!(pool.tags.is_ours(), "{words}");
        assert_eq!(state(&node).lvs.len(), 1, "nothing is left of its making");
        node.create(thin("pvc-1")).await.unwrap();
        // What is there is not made again.
        let runs = node.host.programs_run().len();
        let node = node.reincarnate().await;
        noticed().await;
        let after = node.host.programs_run();
        let changes = after[runs..].iter().filter(|run| !run.contains("fullreport"));
        assert_eq!(changes.count(), 0, "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_making_can_be_cut_anywhere() {
    let host = ready(RAID1).await.end().await;
    let (effects, wanted) = (host.effects(), host.world().summary());
    let steps = effects.iter().filter(|effect| effect.contains("lvc")).count();
    assert_eq!(steps, 4, "metadata, data, pool, tags: {effects:?}");
    for at in 0..effects.len() {
        for mode in Mode::ALL {
            let host = disks();
            host.arm(Some(Fault { at, mode }));
            let mut node = Node::start(&host, RAID1);
            tokio::time::sleep(Duration::from_secs(90)).await;
            if mode.kills() {
                node = node.reincarnate().await;
            }
            node.wait_ready().await;
            noticed().await;
            assert_eq!(node.end().await.world().summary(), wanted, "{} {mode:?}", effects[at]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn legs_stay_on_their_disks_while_the_pool_grows() {
    let node = ready(RAID1).await;
    let mut large = thin("pvc-1");
    large.range.required = Some(Bytes::gib(59));
    node.create(large).await.unwrap();
    let before = state(&node).lvs[&name("pool0")].clone();
    let used = before.size.percent_floor(85);
    node.host.world().pool(VG, "pool0").data_used = used;
    let runs = node.host.programs_run().len();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = state(&node).lvs[&name("pool0")].clone();
    assert!(after.size > before.size, "{} became {}", before.size, after.size);
    assert_eq!(after.parts[0].legs, before.parts[0].legs);
    assert_eq!(node.host.programs_run().len(), runs + 1, "one process");
    let metadata = before.parts[1].size;
    node.host.world().pool(VG, "pool0").metadata_used = metadata.percent_floor(85);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let grown = state(&node).lvs[&name("pool0")].clone();
    assert!(grown.parts[1].size > metadata && grown.parts[1].legs == before.parts[1].legs);
}

#[tokio::test(start_paused = true)]
async fn a_lost_disk_is_told_of_and_volumes_stay_in_use_also_after_a_reboot() {
    let node = ready(RAID1).await;
    let volume = node.create(thin("pvc-1")).await.unwrap().handle;
    let ext4 = || mounted(FsType::Ext4);
    node.write(&volume, ext4(), "kept").await;
    noticed().await;
    assert!(node.agent.inventory().borrow().troubles.is_empty());
    let lost = {
        let state = state(&node);
        let pv = &state.lvs[&name("pool0")].parts[0].legs[0][0];
        state.pvs[pv].device.clone().unwrap()
    };
    let host = node.end().await;
    host.world().lose_disk(Path::new(&lost));
    host.world().reboot();
    let node = Node::start(&host, RAID1);
    node.agent.inventory().wait_for(|now| now.revision > 0).await.unwrap();
    assert_eq!(node.read(&volume, ext4()).await, "kept");
    node.stage(&volume, ext4()).await.unwrap();
    noticed().await;
    let inventory = node.agent.inventory().borrow().clone();
    let told: Vec<_> = inventory.troubles.keys().map(|(_, reason)| *reason).collect();
    assert_eq!(told, [Reason::PhysicalVolumeMissing, Reason::ThinPoolDegraded]);
    let health = node.agent.volume_health(&volume, &[staging(&volume)]).await.unwrap();
    assert_eq!(health.iter().map(|it| it.0).collect::<Vec<_>>(), [Reason::ThinPoolDegraded]);
    let failed: u32 = node.agent.raid().borrow().values().map(|status| status.failed).sum();
    assert!(failed > 0, "the metrics tell of it");
    // What LVM would have to write down waits for the disk.
    assert!(node.create(thin("pvc-2")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_pool_on_plain_disks_is_not_taken_for_one_that_survives() {
    let node = ready(&RAID1.replace(", layout: raid1", "")).await;
    let volume = node.create(thin("pvc-1")).await.unwrap().handle;
    node.write(&volume, mounted(FsType::Ext4), "lost").await;
    let lost = {
        let state = state(&node);
        let pv = state.lvs[&name("pool0")].parts[0].areas[0].pv.clone();
        state.pvs[&pv].device.clone().unwrap()
    };
    let host = node.end().await;
    host.world().lose_disk(Path::new(&lost));
    host.world().reboot();
    let node = Node::start(&host, RAID1);
    node.agent.inventory().wait_for(|now| now.revision > 0).await.unwrap();
    let error = node.stage(&volume, mounted(FsType::Ext4)).await.unwrap_err();
    assert!(error.chain().contains("misses physical volume"), "{error:?}");
    let told = node.agent.volume_health(&volume, &[]).await.unwrap();
    assert_eq!(told[0].0, Reason::VolumeInaccessible);
}

#[tokio::test(start_paused = true)]
async fn what_the_configuration_says_of_a_pool_that_is_there_must_be_so() {
    let host = ready(&RAID1.replace(", layout: raid1", "")).await.end().await;
    let node = Node::start(&host, RAID1);
    let why = node.trouble().await;
    assert!(why.contains("is linear, not raid1 on 2 disks"), "{why}");
    node.config.send_replace(
        cinderblock::config::Config::parse(&RAID1.replace(", layout: raid1", "")).unwrap().into(),
    );
    node.wait_ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_has_no_room_for_its_legs_is_refused_before_anything_is_made() {
    let one = RAID1.replace(", /dev/disk/by-id/disk1, /dev/disk/by-id/disk2", "");
    let node = Node::start(&disks(), &one);
    let why = node.trouble().await;
    assert!(why.contains("it is to be raid1 on 2 disks"), "{why}");
    assert!(state(&node).lvs.is_empty());
    let states = node.agent.inventory().borrow().backends.clone();
    assert!(states.values().all(|b| !matches!(b.state, BackendState::Ready { .. })));
}
