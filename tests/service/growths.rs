//! Expansions of thick block volumes that are cut and that nobody repeats.

use std::time::Duration;

use cinderblock::domain::{AccessType, Provisioning};
use cinderblock::lvm::tag::Usage;
use cinderblock::names::Handle;
use cinderblock::sim::{Fault, Mode};
use cinderblock::units::Bytes;

use crate::support::{Node, VG, volume};

async fn used() -> (Node, Handle) {
    let node = Node::ready().await;
    let request = volume("pvc-1", Provisioning::Thick, Usage::Block, 1);
    let handle = node.create(request).await.unwrap().handle;
    node.write(&handle, AccessType::Block, "data").await;
    (node, handle)
}

fn state(node: &Node) -> (Vec<String>, u64, Bytes) {
    let world = node.host.world();
    let vg = world.vg(VG).unwrap();
    let names = vg.lvs.keys().map(ToString::to_string).collect();
    let volume = vg.lvs.values().find(|lv| lv.name.as_str() == "pvc-1").unwrap();
    (names, vg.free_extents().get(), volume.size)
}

fn has_left(node: &Node) -> bool {
    state(node).0.contains(&"pvc-1.growth".to_owned())
}

/// Cuts an expansion at that effect, and goes on with an agent that lives.
async fn cut(fault: Fault) -> (Node, Handle, u64) {
    let (node, handle) = used().await;
    let before = state(&node).1;
    node.host.arm(Some(fault));
    drop(node.expand(&handle, Bytes::gib(2)).await);
    let node = if fault.mode.kills() { node.reincarnate().await } else { node };
    node.host.arm(None);
    (node, handle, before)
}

async fn faults() -> Vec<Fault> {
    let (node, handle) = used().await;
    node.host.arm(None);
    node.expand(&handle, Bytes::gib(2)).await.unwrap();
    let effects = node.host.effects();
    // Of zeroing, which is piece by piece, the first and the last.
    let zeroes = |at: usize| effects.get(at).is_some_and(|effect| effect.starts_with("zero"));
    let midst = |at: &usize| zeroes(*at) && zeroes(at.saturating_sub(1)) && zeroes(at + 1);
    let places = (0..effects.len()).filter(|at| !midst(at));
    let modes = [Mode::FailAfter, Mode::KillAfter];
    places.flat_map(|at| modes.map(|mode| Fault { at, mode })).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_an_expansion_goes_by_itself() {
    let mut left = 0;
    for fault in faults().await {
        let (node, _, before) = cut(fault).await;
        left += usize::from(has_left(&node));
        tokio::time::sleep(Duration::from_mins(12)).await;
        let (names, free, size) = state(&node);
        assert_eq!(names, ["pool0", "pvc-1"], "{fault:?}");
        let grown = if size == Bytes::gib(2) { 256 } else { 0 };
        assert_eq!(free, before - grown, "{fault:?}: {size}");
    }
    assert!(left > 4, "only {left} of these left anything");
}

#[tokio::test(start_paused = true)]
async fn who_repeats_an_expansion_in_time_finds_what_it_left_and_later_none() {
    for minutes in [5, 30] {
        for mode in [Mode::KillAfter, Mode::FailAfter] {
            let (node, handle, before) = cut(Fault { at: 0, mode }).await;
            let made = node.host.programs_run().len();
            tokio::time::sleep(Duration::from_mins(minutes)).await;
            assert_eq!(node.expand(&handle, Bytes::gib(2)).await.unwrap(), Bytes::gib(2));
            let runs = node.host.programs_run()[made..].to_vec();
            let begun_anew = runs.contains(&"lvm lvcreate".to_owned());
            assert_eq!(begun_anew, minutes == 30, "{minutes} {mode:?} {runs:?}");
            assert_eq!(
                state(&node),
                (vec!["pool0".into(), "pvc-1".into()], before - 256, Bytes::gib(2))
            );
            assert_eq!(node.read(&handle, AccessType::Block).await, "data");
        }
    }
}

/// Zeroing may take hours. The volume's guard is held, and nobody takes away what is worked on.
#[tokio::test(start_paused = true)]
async fn nothing_goes_that_an_expansion_still_works_on() {
    let (node, handle) = used().await;
    node.host.stall(Some("lvchange"));
    let agent = node.agent.clone();
    let call = tokio::spawn(async move {
        use cinderblock::domain::{CapacityRange, VolumeAgent};
        let range = CapacityRange { required: Some(Bytes::gib(2)), limit: None };
        agent.expand_volume(handle, range).await.map(|told| told.value)
    });
    tokio::time::sleep(Duration::from_mins(60)).await;
    assert!(has_left(&node) && !call.is_finished());
    node.host.stall(None);
    assert_eq!(call.await.unwrap().unwrap(), Bytes::gib(2));
    assert!(!has_left(&node));
}

/// What somebody else made under such a name is not ours to remove.
#[tokio::test(start_paused = true)]
async fn what_does_not_bear_our_tag_stays() {
    let (node, _, _) = cut(Fault { at: 0, mode: Mode::KillAfter }).await;
    node.host.world().retag(VG, "pvc-1.growth", |tags| tags.owned = None);
    tokio::time::sleep(Duration::from_mins(60)).await;
    assert!(has_left(&node));
}
