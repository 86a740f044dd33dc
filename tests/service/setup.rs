//! Backends are set up once and safely: blank disks only, cut anywhere, mended when the cause is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cinderblock::config::Config;
use cinderblock::domain::{CapacityRange, VolumeAgent};
use cinderblock::sim::{Fault, Mode, SimHost, World};
use cinderblock::units::Bytes;

use crate::support::{CONFIG, Node, VG, thick, thin};

fn blank() -> SimHost {
    SimHost::new(World::with_disks(&[Bytes::gib(20), Bytes::gib(20)]))
}

#[tokio::test(start_paused = true)]
async fn making_a_vg_and_its_pool_can_be_cut_anywhere() {
    let host = blank();
    let node = Node::start(&host, CONFIG);
    node.wait_ready().await;
    let effects = node.end().await.effects();
    let wanted = host.world().summary();
    assert_eq!(effects.len(), 7, "two PVs, a VG, a pool in four steps: {effects:?}");
    for at in 0..effects.len() {
        for mode in Mode::ALL {
            let host = blank();
            host.arm(Some(Fault { at, mode }));
            let node = Node::start(&host, CONFIG);
            if mode.kills() {
                // It is dead somewhere on the way; the next one finds what it left.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let host = node.end().await;
                host.arm(None);
                let node = Node::start(&host, CONFIG);
                node.wait_ready().await;
                node.end().await;
            } else {
                node.wait_ready().await;
                // What failed is tried again within a minute.
                tokio::time::sleep(Duration::from_secs(90)).await;
                node.end().await;
            }
            assert_eq!(host.world().summary(), wanted, "{mode:?} at {}", effects[at]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_not_blank_is_refused_and_nothing_is_touched() {
    let host = blank();
    host.world().put_on_disk(Path::new("/dev/disk/by-id/disk1"), "xfs");
    let node = Node::start(&host, CONFIG);
    let why = node.trouble().await;
    assert!(why.contains("/dev/disk/by-id/disk1") && why.contains("TYPE=xfs"), "{why}");
    assert!(why.contains("nothing was touched") && why.contains("wipefs"), "{why}");
    assert_eq!(node.host.effects(), Vec::<String>::new());
    let error = node.create(thin("pvc-1")).await.unwrap_err();
    assert!(error.chain().contains("not blank"), "{error:?}");
    assert_eq!(error.kind(), cinderblock::error::ErrorKind::NoSpace);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_listed_by_two_names_is_told_and_nothing_is_touched() {
    let config = CONFIG.replace("by-id/disk1", "by-path/disk0");
    let node = Node::start(&blank(), &config);
    let why = node.trouble().await;
    assert!(why.contains("/dev/disk/by-path/disk0 is /dev/sda, which is listed"), "{why}");
    assert_eq!(node.host.effects(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_vg_that_is_missing_says_so_until_it_is_there() {
    let host = blank();
    let node = Node::start(&host, "backends: [{name: fast, volumeGroup: vg0, reserve: 0%}]");
    let why = node.trouble().await;
    assert!(why.contains("volume group vg0 does not exist on this node"), "{why}");
    // Somebody makes it by hand; within a minute it is found.
    let maker = Node::start(&host, CONFIG);
    maker.wait_ready().await;
    maker.end().await;
    node.wait_ready().await;
    node.create(thick("pvc-1")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_listed_later_is_added() {
    let host = blank();
    let one = CONFIG.replace(", /dev/disk/by-id/disk1", "");
    let node = Node::start(&host, &one);
    node.wait_ready().await;
    let before = host.world().vg(VG).unwrap().size();
    node.config.send_replace(Arc::new(Config::parse(CONFIG).unwrap()));
    let mut inventory = node.agent.inventory();
    while host.world().vg(VG).unwrap().size() == before {
        inventory.changed().await.unwrap();
    }
    assert_eq!(host.world().vg(VG).unwrap().pvs.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_was_refused_is_added_once_it_is_blank() {
    let host = blank();
    let node = Node::start(&host, &CONFIG.replace(", /dev/disk/by-id/disk1", ""));
    node.wait_ready().await;
    let disk = Path::new("/dev/disk/by-id/disk1");
    host.world().put_on_disk(disk, "xfs");
    node.config.send_replace(Arc::new(Config::parse(CONFIG).unwrap()));
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(host.world().vg(VG).unwrap().pvs.len(), 1);
    host.world().clear_disk(disk);
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(host.world().vg(VG).unwrap().pvs.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_blank_disk_in_the_place_of_a_missing_one_is_not_touched() {
    let host = Node::ready().await.end().await;
    host.world().replace_disk(Path::new("/dev/disk/by-id/disk1"));
    host.arm(None);
    let node = Node::start(&host, CONFIG);
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert_eq!(node.host.effects(), Vec::<String>::new());
    let error = node.create(thin("pvc-1")).await.unwrap_err();
    assert!(error.chain().contains("misses"), "{error:?}");
    assert_eq!(error.kind(), cinderblock::error::ErrorKind::Unavailable);
}

/// A command of LVM that changes something is never killed, and so it is waited for: also one that nobody
/// has asked for.
#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_waits_for_what_it_sets_up() {
    for part in ["pvcreate", "vgcreate", "lvconvert"] {
        let host = blank();
        host.stall(Some(part));
        let node = Node::start(&host, CONFIG);
        let runs = || host.programs_run().iter().filter(|run| run.ends_with(part)).count();
        while runs() == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let end = tokio::spawn(node.end());
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!end.is_finished(), "{part} was not waited for");
        let before = host.effects().len();
        host.stall(None);
        let host = end.await.unwrap();
        assert!(host.effects().len() > before, "{part} came to its end");
        let node = Node::start(&host, CONFIG);
        node.wait_ready().await;
        node.create(thin("pvc-1")).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_ends_waits_for_what_it_mends() {
    let dead = Node::ready().await;
    let volume = dead.create(thick("pvc-1")).await.unwrap().handle;
    // LVM is killed while it holds the volume, and the agent as well before it mends that.
    dead.host.stall(Some("--refresh"));
    dead.host.arm(Some(Fault { at: 0, mode: Mode::Cut }));
    let agent = dead.agent.clone();
    let range = CapacityRange { required: Some(Bytes::gib(2)), limit: None };
    tokio::spawn(async move { agent.expand_volume(volume, range).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let host = dead.host.next_process();
    host.stall(Some("--refresh"));
    let node = Node::start(&host, CONFIG);
    let runs = || host.programs_run().iter().filter(|run| *run == "lvm lvchange").count();
    let before = runs();
    while runs() == before {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let end = tokio::spawn(node.end());
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(!end.is_finished(), "it was not waited for");
    assert!(host.world().summary().contains("is held"));
    host.stall(None);
    let host = end.await.unwrap();
    assert!(!host.world().summary().contains("is held"));
}

/// An agent was cut after it had made the disk a physical volume, and the next one saw that; then somebody
/// put something else on it.
#[tokio::test(start_paused = true)]
async fn a_disk_that_was_half_made_once_is_looked_at_again() {
    let one = CONFIG.replace(", /dev/disk/by-id/disk1", "");
    for put in [true, false] {
        let host = blank();
        let node = Node::start(&host, &one);
        node.wait_ready().await;
        host.arm(Some(Fault { at: 1, mode: Mode::KillBefore }));
        node.config.send_replace(Arc::new(Config::parse(CONFIG).unwrap()));
        host.death().await;
        let host = host.next_process();
        let node = Node::start(&host, &one);
        node.wait_ready().await;
        if put {
            host.world().put_on_disk(Path::new("/dev/disk/by-id/disk1"), "xfs");
        }
        node.config.send_replace(Arc::new(Config::parse(CONFIG).unwrap()));
        tokio::time::sleep(Duration::from_mins(3)).await;
        let extended = host.programs_run().iter().any(|run| run == "lvm vgextend");
        assert_eq!(extended, !put);
        let pvs = host.world().vg(VG).unwrap().pvs.len();
        assert_eq!(pvs, if put { 1 } else { 2 });
    }
}
