//! Scripts that failed once. What the model check prints goes here, with a name that says what holds.

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
