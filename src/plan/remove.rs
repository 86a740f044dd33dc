//! Removing a volume or a snapshot: only what is ours. Whether it is in use is for the kernel to
//! say, and LVM proves the identity once more under its own lock. What has to be wiped, or has thick
//! snapshots, becomes trash instead, which frees its name at once, and is removed when it is cleared
//! and the last of them is gone.

use super::expand::leftover;
use super::{Plan, copy};
use crate::error::{Error, Result};
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Kind, Pending};
use crate::names::{LvName, LvmUuid};

/// What is left to do until the LV is gone.
///
/// # Errors
/// When there is an LV of that name which is not what it should be.
pub fn plan(vg: &VgState, lv: &LvName, kind: Kind) -> Result<Plan> {
    let Some(found) = vg.lvs.get(lv) else { return Ok(Plan::Done) };
    if !found.tags.is_ours() {
        return Err(Error::failed_precondition(format!(
            "logical volume {}/{lv} does not bear the tag cinderblock=1, so it is not removed: if it is a {kind} of this driver, \
             give it back its tags; if not, delete the Kubernetes object that names it",
            vg.name
        )));
    }
    if found.tags.kind != Some(kind) {
        return Err(Error::failed_precondition(format!(
            "logical volume {}/{lv} is not a {kind} but a {}, so it is not removed",
            vg.name,
            found.tags.kind.map_or_else(|| "thing unknown".to_owned(), |kind| kind.to_string())
        )));
    }
    if found.is_trash() {
        return Ok(Plan::Done);
    }
    if let Some(reader) = copy::copied_from(vg, lv).filter(|_| kind == Kind::Snapshot) {
        return Err(Error::failed_precondition(format!(
            "volume {} is being copied from snapshot {lv}: wait until it is complete, or delete it",
            reader.name
        )));
    }
    let image = copy::leftover(vg, lv)?;
    if let [Change::SplitSnapshot { .. }] = image[..] {
        // Its volume has to be there as long as it is not trash itself.
        return Ok(Plan::Steps(image));
    }
    let first = leftover(vg, found).into_iter().chain(image);
    let last = if has_snapshots(vg, lv)? { vec![to_trash(found)] } else { last(found) };
    Ok(Plan::Steps(first.chain(last).collect()))
}

/// Whether there are thick snapshots that cannot be read without this LV, and that LVM would remove
/// with it.
fn has_snapshots(vg: &VgState, lv: &LvName) -> Result<bool> {
    let mut any = false;
    for snapshot in vg.cow_snapshots(lv) {
        if !snapshot.tags.is_ours() {
            return Err(Error::failed_precondition(format!(
                "logical volume {}/{lv} has the snapshot {}, which is not of this driver and would be lost with it: remove that first",
                vg.name, snapshot.name
            )));
        }
        any = true;
    }
    Ok(any)
}

fn to_trash(lv: &Lv) -> Change {
    Change::Rename { lv: lv.name.clone(), to: LvName::trash(&lv.uuid) }
}

/// What makes an LV of ours go that nothing depends on.
pub(super) fn last(lv: &Lv) -> Vec<Change> {
    // What bears the tag, or was cut, was never given to anybody: there is nothing in it to wipe.
    let cut = lv.is_cut_thin() || lv.is_cut_raid();
    let used = lv.tags.pending != Some(Pending::Fresh) && !cut;
    if lv.tags.wipe.is_none() || !used {
        return vec![Change::Remove { lv: lv.name.clone(), uuid: lv.uuid.clone() }];
    }
    // To write to a snapshot leaves what it keeps as it is: only apart can that be cleared, and only what is
    // seen to be apart becomes trash.
    vec![match lv.cow_origin() {
        Some(_) => Change::SplitSnapshot { lv: lv.name.clone() },
        None => to_trash(lv),
    }]
}

/// What is left to do until a deleted volume, which is cleared now, is gone.
#[must_use]
pub fn trash(vg: &VgState, uuid: &LvmUuid) -> Plan {
    match vg.lvs.get(&LvName::trash(uuid)).filter(|lv| lv.is_trash()) {
        // LVM would remove its snapshots with it.
        Some(lv) if vg.cow_snapshots(&lv.name).next().is_some() => Plan::Done,
        Some(lv) => Plan::Steps(vec![Change::Remove { lv: lv.name.clone(), uuid: uuid.clone() }]),
        None => Plan::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, vg};
    use super::*;
    use crate::error::ErrorKind;
    use crate::lvm::state::LvLayout;
    use crate::units::Bytes;

    #[test]
    fn only_what_is_ours_and_of_the_right_kind() {
        let mut vg = vg(&[&[100]]);
        let lv = lv_name("pvc-1");
        assert_eq!(plan(&vg, &lv, Kind::Volume).unwrap(), Plan::Done);
        let mut with = |tags: &[&str]| {
            add(&mut vg, "pvc-1", Bytes::gib(1), LvLayout::Linear, tags);
            plan(&vg, &lv, Kind::Volume)
        };
        assert!(
            matches!(with(&["cinderblock=1", "cb.volume"]), Ok(Plan::Steps(s)) if s.len() == 1)
        );
        for tags in
            [&["mine"][..], &["cinderblock=1", "cb.snapshot"], &["cinderblock=2", "cb.volume"]]
        {
            assert_eq!(with(tags).unwrap_err().kind(), ErrorKind::FailedPrecondition);
        }
    }

    #[test]
    fn what_was_used_and_has_to_be_wiped_becomes_trash() {
        let mut vg = vg(&[&[100]]);
        let lv = lv_name("pvc-1");
        let size = Bytes::gib(1);
        let own = ["cinderblock=1", "cb.volume", "cb.wipe=zero", "cb.fresh"];
        add(&mut vg, "pvc-1", size, LvLayout::Linear, &own);
        let uuid = vg.lvs[&lv].uuid.clone();
        let Plan::Steps(steps) = plan(&vg, &lv, Kind::Volume).unwrap() else { panic!() };
        assert!(matches!(steps[..], [Change::Remove { .. }]), "never used: {steps:?}");
        add(&mut vg, "pvc-1", size, LvLayout::Linear, &own[..3]);
        let to = LvName::trash(&uuid);
        let rename = Change::Rename { lv: lv.clone(), to: to.clone() };
        assert_eq!(plan(&vg, &lv, Kind::Volume).unwrap(), Plan::Steps(vec![rename]));

        let mut renamed = vg.lvs.remove(&lv).unwrap();
        renamed.name = to.clone();
        vg.lvs.insert(to.clone(), renamed);
        assert!(vg.lvs[&to].is_trash() && !vg.lvs[&to].is_volume());
        for name in [&lv, &to] {
            assert_eq!(plan(&vg, name, Kind::Volume).unwrap(), Plan::Done, "deleted already");
        }
        let remove = Change::Remove { lv: to.clone(), uuid: uuid.clone() };
        assert_eq!(trash(&vg, &uuid), Plan::Steps(vec![remove]));

        // Another LV had the name when LVM renamed it: it is not trash and stays.
        vg.lvs.get_mut(&to).unwrap().uuid = LvmUuid::derived("somebody's");
        assert!(!vg.lvs[&to].is_trash());
        assert_eq!(trash(&vg, &uuid), Plan::Done);
    }

    /// It cannot be activated, so that it could never be cleared.
    #[test]
    fn raid_that_was_cut_before_anything_was_copied_to_it_has_nothing_to_wipe() {
        let mut vg = vg(&[&[100]]);
        let lv = lv_name("pvc-1");
        let own = ["cinderblock=1", "cb.volume", "cb.wipe=zero", "cb.copy", "cb.copied=4096"];
        let raid = || LvLayout::UnfinishedRaid("raid1".to_owned());
        add(&mut vg, "pvc-1", Bytes::gib(1), raid(), &own[..4]);
        let Plan::Steps(steps) = plan(&vg, &lv, Kind::Volume).unwrap() else { panic!() };
        assert!(matches!(steps[..], [Change::Remove { .. }]), "{steps:?}");
        for (layout, tags) in
            [(raid(), &own[..]), (raid(), &own[..3]), (LvLayout::Linear, &own[..4])]
        {
            add(&mut vg, "pvc-1", Bytes::gib(1), layout, tags);
            let Plan::Steps(steps) = plan(&vg, &lv, Kind::Volume).unwrap() else { panic!() };
            assert!(matches!(steps[..], [Change::Rename { .. }]), "{tags:?}: {steps:?}");
        }
    }

    #[test]
    fn a_thick_snapshot_becomes_trash_when_it_is_seen_to_be_apart() {
        let mut vg = vg(&[&[100]]);
        let lv = lv_name("snap-1");
        let own = ["cinderblock=1", "cb.snapshot", "cb.wipe=zero", "cb.src=v:pvc-1"];
        let cow = LvLayout::Cow {
            origin: lv_name("pvc-1"),
            chunk_size: Bytes::mib(1),
            store: Bytes::gib(1),
        };
        add(&mut vg, "snap-1", Bytes::gib(1), cow, &own);
        let split = Change::SplitSnapshot { lv: lv.clone() };
        assert_eq!(plan(&vg, &lv, Kind::Snapshot).unwrap(), Plan::Steps(vec![split]));
        add(&mut vg, "snap-1", Bytes::gib(1), LvLayout::Linear, &own);
        let rename = to_trash(&vg.lvs[&lv]);
        assert_eq!(plan(&vg, &lv, Kind::Snapshot).unwrap(), Plan::Steps(vec![rename]));
    }

    #[test]
    fn what_an_expansion_has_left_goes_first() {
        let mut vg = vg(&[&[100]]);
        let own = ["cinderblock=1", "cb.volume"];
        add(&mut vg, "pvc-1", Bytes::gib(1), LvLayout::Linear, &own);
        add(
            &mut vg,
            "pvc-1.growth",
            Bytes::gib(1),
            LvLayout::Linear,
            &["cinderblock=1", "cb.growth"],
        );
        let Plan::Steps(steps) = plan(&vg, &lv_name("pvc-1"), Kind::Volume).unwrap() else {
            panic!()
        };
        let names: Vec<_> = steps.iter().filter_map(|s| s.lv()).map(LvName::as_str).collect();
        assert_eq!(names, ["pvc-1.growth", "pvc-1"]);
    }
}
