//! Disks that do not come back: RAID gets new legs on request, the disks are forgotten, nobody's data is given
//! up, and all of it can be cut anywhere.

use std::path::PathBuf;

use cinderblock::domain::{Repaired, VolumeClass};
use cinderblock::lvm::layout::{RaidLevel, ThickLayout};
use cinderblock::lvm::tag::FsType;
use cinderblock::names::{BackendName, Handle, LvName};
use cinderblock::sim::{Fault, Mode, SimHost, World};
use cinderblock::units::Bytes;

use crate::support::{Node, VG, mounted, thick, thin};

const CONFIG: &str = "
backends:
  - name: fast
    volumeGroup: vg0
    create: true
    devices: [/dev/disk/by-id/disk0, /dev/disk/by-id/disk1, /dev/disk/by-id/disk2]
    thinPool: { size: 30%, overprovision: 4, layout: raid1 }
    reserve: 0%
";
const RAID1: ThickLayout =
    ThickLayout::Raid { level: RaidLevel::Raid1, legs: 2, stripe_size: Bytes::ZERO };

/// A node with a pool on RAID, a thin volume and a RAID volume, both written to; their ids.
async fn in_use() -> (Node, [Handle; 2]) {
    let host = SimHost::new(World::with_disks(&[Bytes::gib(20); 3]));
    let node = Node::start(&host, CONFIG);
    node.wait_ready().await;
    let mut mirrored = thick("pvc-mirrored");
    mirrored.class = VolumeClass { layout: RAID1, ..mirrored.class };
    let mut ids = Vec::new();
    for request in [thin("pvc-thin"), mirrored] {
        let id = node.create(request).await.unwrap().handle;
        node.write(&id, mounted(FsType::Ext4), "kept").await;
        ids.push(id);
    }
    (node, ids.try_into().unwrap())
}

/// The disk that the first leg of the RAID volume is on.
fn disk_of_a_leg(node: &Node) -> PathBuf {
    let world = node.host.world();
    let state = world.vg(VG).unwrap();
    let pv = &state.lvs[&LvName::parse("pvc-mirrored").unwrap()].legs[0][0];
    state.pvs[pv].device.clone().unwrap()
}

/// The same host with a blank disk in the place of that one, after a boot.
async fn replaced(node: Node) -> Node {
    let lost = disk_of_a_leg(&node);
    let host = node.end().await;
    host.world().replace_disk(&lost);
    host.world().reboot();
    started(&host).await
}

async fn started(host: &SimHost) -> Node {
    let node = Node::start(host, CONFIG);
    node.agent.inventory().wait_for(|now| now.revision > 0).await.unwrap();
    node
}

fn is_whole(node: &Node) -> bool {
    let world = node.host.world();
    let state = world.vg(VG).unwrap();
    let legs = |name: &str| state.lvs[&LvName::parse(name).unwrap()].legs.clone();
    let two = legs("pvc-mirrored");
    !state.is_partial() && state.pvs.len() == 3 && two.len() == 2 && two[0] != two[1]
}

fn failed(done: &[Repaired]) -> Vec<&Repaired> {
    done.iter().filter(|it| it.failed).collect()
}

#[tokio::test(start_paused = true)]
async fn a_replaced_disk_is_repaired_on_request_and_not_before() {
    let (node, ids) = in_use().await;
    assert_eq!(node.agent.repair(None).await.unwrap(), []);
    let node = replaced(node).await;
    tokio::time::sleep(std::time::Duration::from_secs(300)).await;
    // A blank disk may stand where the lost one comes back.
    assert!(node.host.world().vg(VG).unwrap().is_partial());
    assert!(node.create(thin("pvc-2")).await.is_err());
    let done = node.agent.repair(None).await.unwrap();
    assert_eq!(failed(&done), Vec::<&Repaired>::new());
    assert!(done.iter().any(|it| it.what == "vg0/pvc-mirrored"), "{done:?}");
    assert!(done.last().unwrap().said.contains("forgotten"), "{done:?}");
    assert!(is_whole(&node));
    for id in &ids {
        assert_eq!(node.read(id, mounted(FsType::Ext4)).await, "kept");
    }
    node.wait_ready().await;
    node.create(thin("pvc-2")).await.unwrap();
    assert_eq!(node.agent.repair(None).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn legs_that_failed_are_taken_back_when_their_disk_is_there() {
    let (node, [_, mirrored]) = in_use().await;
    node.stage(&mirrored, mounted(FsType::Ext4)).await.unwrap();
    node.host.world().set_raid(VG, "pvc-mirrored", "AD", "idle");
    let done = node.agent.repair(None).await.unwrap();
    assert_eq!(done.len(), 1, "{done:?}");
    assert!(done[0].said.contains("legs again") && !done[0].failed, "{done:?}");
    assert_eq!(node.agent.repair(None).await.unwrap(), []);
}

/// Whatever is cut, the repeated request does the rest, and no volume notices.
#[tokio::test(start_paused = true)]
async fn a_repair_can_be_cut_anywhere() {
    let (node, _) = in_use().await;
    let node = replaced(node).await;
    let before = node.host.effects().len();
    node.agent.repair(None).await.unwrap();
    let effects = node.host.effects().split_off(before);
    for step in ["pvcreate", "vgextend", "lvconvert", "lvremove", "vgreduce"] {
        assert!(effects.iter().any(|effect| effect.contains(step)), "no {step} in {effects:?}");
    }
    for at in 0..effects.len() {
        for mode in Mode::ALL {
            let (node, ids) = in_use().await;
            let mut node = replaced(node).await;
            let at = node.host.effects().len() + at;
            node.host.arm(Some(Fault { at, mode }));
            drop(node.agent.repair(None).await);
            node.host.arm(None);
            if mode.kills() {
                node = started(&node.end().await).await;
            }
            let done = node.agent.repair(None).await.unwrap();
            assert_eq!(failed(&done), Vec::<&Repaired>::new(), "{at} {mode:?}");
            assert!(is_whole(&node), "{at} {mode:?} of {effects:?}: {done:?}");
            for id in &ids {
                assert_eq!(node.read(id, mounted(FsType::Ext4)).await, "kept", "{at} {mode:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_copies_keeps_its_disk_and_is_told() {
    let (node, [_, mirrored]) = in_use().await;
    node.create(thick("pvc-plain")).await.unwrap();
    let lost = {
        let world = node.host.world();
        let state = world.vg(VG).unwrap();
        let area = &state.lvs[&LvName::parse("pvc-plain").unwrap()].areas[0];
        state.pvs[&area.pv].device.clone().unwrap()
    };
    let host = node.end().await;
    host.world().replace_disk(&lost);
    host.world().reboot();
    let node = started(&host).await;
    let done = node.agent.repair(None).await.unwrap();
    let told = failed(&done);
    assert_eq!(told.len(), 1, "{done:?}");
    assert_eq!(told[0].what, "vg0/pvc-plain");
    assert!(told[0].said.contains("bring the disk back"), "{told:?}");
    let state = node.host.world().vg(VG).unwrap().clone();
    assert!(state.is_partial() && state.lvs.len() == 4, "nothing was given up");
    assert_eq!(node.read(&mirrored, mounted(FsType::Ext4)).await, "kept");
}

#[tokio::test(start_paused = true)]
async fn without_room_for_a_leg_nothing_is_forgotten() {
    let (node, _) = in_use().await;
    let lost = disk_of_a_leg(&node);
    let host = node.end().await;
    host.world().lose_disk(&lost);
    for link in ["/dev/disk/by-id/disk0", "/dev/disk/by-id/disk1", "/dev/disk/by-id/disk2"] {
        // All others are full.
        host.world().fill_disk(link.as_ref());
    }
    host.world().reboot();
    let node = started(&host).await;
    let done = node.agent.repair(None).await.unwrap();
    assert!(!failed(&done).is_empty(), "{done:?}");
    assert!(failed(&done).iter().all(|it| it.said.contains("allocatable")), "{done:?}");
    assert!(node.host.world().vg(VG).unwrap().is_partial());
    let error = node.agent.repair(Some(BackendName::parse("other").unwrap())).await.unwrap_err();
    assert!(error.to_string().contains("no backend other"), "{error}");
}
