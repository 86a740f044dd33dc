//! Removing a volume or a snapshot: only what is ours. Whether it is in use is for the kernel to
//! say, and LVM proves the identity once more under its own lock.

use super::Plan;
use super::expand::leftover;
use crate::error::{Error, Result};
use crate::lvm::command::Change;
use crate::lvm::state::VgState;
use crate::lvm::tag::Kind;
use crate::names::LvName;

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
    let remove = Change::Remove { lv: lv.clone(), uuid: found.uuid.clone() };
    Ok(Plan::Steps(leftover(vg, found).into_iter().chain([remove]).collect()))
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
