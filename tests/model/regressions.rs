//! Scripts that failed once. What the model check prints goes here, with a name that says what holds.

use cinderblock::sim::Fault;
use cinderblock::sim::Mode::*;

use crate::run::play;
use crate::script::Access::*;
use crate::script::From::*;
use crate::script::Key::*;
use crate::script::Op::*;
use crate::script::{Call, Round, Script};

fn replay(pace: u64, rounds: Vec<Round>) {
    let script = Script { pace, rounds };
    if let Err(why) = play(&script) {
        panic!("{why}");
    }
}

#[test]
fn a_raid_volume_that_was_kept_for_its_snapshot_gives_back_all_its_room() {
    replay(
        2,
        vec![
            Round {
                calls: vec![Call {
                    op: Create { v: 0, class: 5, mib: 1025, limit: 0, from: Nothing },
                    cancel: None,
                }],
                fault: None,
            },
            Round { calls: vec![Call { op: Snapshot { s: 2, v: 0 }, cancel: None }], fault: None },
        ],
    );
}

#[test]
fn what_is_copied_stays_when_the_rest_of_a_larger_raid_device_is_zeroed() {
    replay(
        1,
        vec![
            Round {
                calls: vec![Call {
                    op: Create { v: 3, class: 1, mib: 5, limit: 0, from: Nothing },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 3, access: Xfs, key: Master }, cancel: None }],
                fault: None,
            },
            Round {
                calls: vec![Call {
                    op: Create { v: 0, class: 11, mib: 2048, limit: 0, from: OfVolume(3) },
                    cancel: None,
                }],
                fault: None,
            },
        ],
    );
}

#[test]
fn an_encrypted_volume_that_could_not_grow_once_is_not_told_that_it_never_can() {
    replay(
        30033,
        vec![
            Round {
                calls: vec![Call {
                    op: Create { v: 3, class: 12, mib: 192, limit: 0, from: Nothing },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 3, access: Ext4, key: Master }, cancel: None }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Expand { v: 3, mib: 320, limit: 0 }, cancel: None }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: NodeExpand { v: 3, at: None, mib: 320 }, cancel: None }],
                fault: Some(Fault { at: 0, mode: Fail }),
            },
        ],
    );
}

#[test]
fn a_clone_of_what_was_formatted_and_never_used_is_usable() {
    replay(
        1,
        vec![
            Round {
                calls: vec![Call {
                    op: Create { v: 0, class: 0, mib: 64, limit: 0, from: Nothing },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 0, access: Ext4, key: Master }, cancel: None }],
                fault: Some(Fault { at: 1, mode: KillAfter }),
            },
            Round {
                calls: vec![Call {
                    op: Create { v: 1, class: 0, mib: 64, limit: 0, from: OfVolume(0) },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 1, access: Ext4, key: Master }, cancel: None }],
                fault: None,
            },
        ],
    );
}

#[test]
fn a_clone_of_what_was_encrypted_and_never_used_is_usable() {
    replay(
        1,
        vec![
            Round {
                calls: vec![Call {
                    op: Create { v: 0, class: 7, mib: 64, limit: 0, from: Nothing },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 0, access: Ext4, key: Master }, cancel: None }],
                fault: Some(Fault { at: 1, mode: KillAfter }),
            },
            Round { calls: vec![Call { op: Snapshot { s: 1, v: 0 }, cancel: None }], fault: None },
            Round {
                calls: vec![Call {
                    op: Create { v: 1, class: 7, mib: 64, limit: 0, from: OfSnapshot(1) },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 1, access: Ext4, key: Master }, cancel: None }],
                fault: None,
            },
        ],
    );
}

#[test]
fn a_restore_that_was_cut_is_ended_also_when_its_snapshot_is_gone() {
    replay(
        1,
        vec![
            Round {
                calls: vec![Call {
                    op: Create { v: 0, class: 0, mib: 64, limit: 0, from: Nothing },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 0, access: Ext4, key: Master }, cancel: None }],
                fault: None,
            },
            Round { calls: vec![Call { op: Snapshot { s: 1, v: 0 }, cancel: None }], fault: None },
            Round {
                calls: vec![Call {
                    op: Create { v: 1, class: 0, mib: 192, limit: 0, from: OfSnapshot(1) },
                    cancel: None,
                }],
                fault: Some(Fault { at: 0, mode: KillAfter }),
            },
            Round { calls: vec![Call { op: DeleteSnapshot { s: 1 }, cancel: None }], fault: None },
            Round {
                calls: vec![Call {
                    op: Create { v: 1, class: 0, mib: 192, limit: 0, from: OfSnapshot(1) },
                    cancel: None,
                }],
                fault: None,
            },
        ],
    );
}

#[test]
fn a_thick_snapshot_whose_deletion_was_cut_keeps_its_name_until_that_is_repeated() {
    replay(
        60187,
        vec![
            Round {
                calls: vec![Call {
                    op: Create { v: 3, class: 12, mib: 512, limit: 0, from: Nothing },
                    cancel: None,
                }],
                fault: None,
            },
            Round {
                calls: vec![Call { op: Stage { v: 3, access: Ext4, key: Master }, cancel: None }],
                fault: None,
            },
            Round { calls: vec![Call { op: Snapshot { s: 3, v: 3 }, cancel: None }], fault: None },
            Round {
                calls: vec![Call { op: DeleteSnapshot { s: 3 }, cancel: None }],
                fault: Some(Fault { at: 0, mode: KillAfter }),
            },
            Round { calls: vec![Call { op: Snapshot { s: 3, v: 0 }, cancel: None }], fault: None },
            Round { calls: vec![Call { op: DeleteSnapshot { s: 3 }, cancel: None }], fault: None },
        ],
    );
}
