//! Taking a snapshot.

use super::create::{check_pool, check_room};
use super::{Plan, Rules, cow, own, remove};
use crate::domain::{CowSize, CreateSnapshot};
use crate::error::{Error, Result};
use crate::lvm::change::Change;
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Kind, Pending, Source, Tags};
use crate::names::{LvName, dm_name};

/// What is left to do until the snapshot is there.
///
/// # Errors
/// When it cannot be taken, or one of that name was taken of another volume.
pub fn plan(vg: &VgState, rules: &Rules, request: &CreateSnapshot) -> Result<Plan> {
    let lv = LvName::for_snapshot(&request.name);
    dm_name(&vg.name, &lv).map_err(|e| Error::invalid(e.to_string()))?;
    let source = Source::Volume(request.source.lv.clone());
    if let Some(found) = own(vg, &lv, &request.name, Lv::is_snapshot)? {
        if found.tags.source.as_ref() == Some(&source) {
            // Cut before it became a snapshot, or after it was one.
            let cut = found.is_unfinished();
            return Ok(if cut { Plan::Rest(remove::last(found)) } else { Plan::Done });
        }
        return Err(Error::already_exists(format!(
            "there is a snapshot {} already, and it was taken of {}",
            request.name,
            found.tags.source.as_ref().map_or("nothing known", |s| s.lv().as_str())
        )));
    }
    let lvs = &vg.lvs;
    let origin = lvs.get(&request.source.lv).filter(|lv| lv.is_volume()).ok_or_else(|| {
        Error::not_found(format!(
            "there is no volume {} in volume group {}",
            request.source.lv, vg.name
        ))
    })?;
    if origin.is_unfinished() {
        return Err(Error::unavailable(format!("volume {} is still being made", origin.name)));
    }
    let tags = Tags {
        owned: Some(1),
        kind: Some(Kind::Snapshot),
        name: (derived_name(&lv).as_deref() != Some(request.name.as_str()))
            .then(|| request.name.clone()),
        // A snapshot of what was never formatted holds nothing, and a volume made of it is blank.
        pending: origin.tags.pending.filter(|pending| *pending == Pending::Fresh),
        source: Some(source),
        usage: origin.tags.usage,
        // It holds blocks of the volume, which are to be cleared with the last that has them.
        wipe: origin.tags.wipe,
        hides: origin.tags.hides,
        luks: origin.tags.luks,
        ..Tags::default()
    };
    Ok(Plan::Steps(vec![change(vg, rules, origin, lv, request.cow_size, tags.print())?]))
}

/// A snapshot of a volume that is there.
///
/// # Errors
/// When there is no room for it, or the volume can have none.
pub(super) fn change(
    vg: &VgState,
    rules: &Rules,
    origin: &Lv,
    lv: LvName,
    cow_size: CowSize,
    tags: Vec<String>,
) -> Result<Change> {
    if origin.pool().is_some() {
        let pool = super::pool::of(vg, rules, origin)?;
        check_pool(vg, pool, origin.size)?;
        return Ok(Change::SnapshotThin { lv, origin: origin.name.clone(), tags });
    }
    cow::may_have_snapshots(origin)?;
    let store = cow::store(vg, origin.size, cow_size);
    check_room(vg, rules, &ThickLayout::Linear, store)?;
    // LVM shows what is in it, and what it keeps, each by a device of its own.
    for part in [&lv, &origin.name] {
        dm_name(&vg.name, &part.growth()).map_err(|e| Error::invalid(e.to_string()))?;
    }
    Ok(Change::SnapshotThick { lv, origin: origin.name.clone(), store, tags })
}

/// The CSI name that the LV's name alone tells.
fn derived_name(lv: &LvName) -> Option<String> {
    lv.as_str().strip_prefix("snap-").map(|rest| format!("snapshot-{rest}"))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, thin, with_pool};
    use super::*;
    use crate::error::ErrorKind;
    use crate::names::{CsiName, Handle};
    use crate::units::Bytes;

    fn request(vg: &VgState, name: &str, of: &str) -> CreateSnapshot {
        let source = Handle { vg: vg.uuid.clone(), lv: lv_name(of) };
        CreateSnapshot { name: CsiName::parse(name).unwrap(), source, cow_size: CowSize::FULL }
    }

    #[test]
    fn taken_once_and_of_one_volume() {
        let (mut vg, rules) = with_pool();
        let volume = ["cinderblock=1", "cb.volume", "cb.use=ext4", "cb.wipe=discard"];
        add(&mut vg, "pvc-1", Bytes::gib(1), thin(None), &volume);
        let ask = request(&vg, "snapshot-1", "pvc-1");
        let Plan::Steps(steps) = plan(&vg, &rules, &ask).unwrap() else { panic!() };
        let [Change::SnapshotThin { lv, tags, .. }] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(lv.as_str(), "snap-1");
        let wanted =
            ["cinderblock=1", "cb.snapshot", "cb.src=v:pvc-1", "cb.use=ext4", "cb.wipe=discard"];
        assert_eq!(tags, &wanted);
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        add(&mut vg, "snap-1", Bytes::gib(1), thin(Some("pvc-1")), &tags);
        assert_eq!(plan(&vg, &rules, &ask).unwrap(), Plan::Done);
        // Also when the volume is gone.
        vg.lvs.remove(&lv_name("pvc-1"));
        assert_eq!(plan(&vg, &rules, &ask).unwrap(), Plan::Done);
        let other = request(&vg, "snapshot-1", "pvc-2");
        assert_eq!(plan(&vg, &rules, &other).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let gone = request(&vg, "snapshot-2", "pvc-1");
        assert_eq!(plan(&vg, &rules, &gone).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn odd_names_are_kept_in_a_tag() {
        let (mut vg, rules) = with_pool();
        add(
            &mut vg,
            "pvc-1",
            Bytes::gib(1),
            thin(None),
            &["cinderblock=1", "cb.volume", "cb.fresh"],
        );
        let Plan::Steps(steps) = plan(&vg, &rules, &request(&vg, "daily 1", "pvc-1")).unwrap()
        else {
            panic!()
        };
        let [Change::SnapshotThin { lv, tags, .. }] = &steps[..] else { panic!("{steps:?}") };
        assert!(lv.as_str().starts_with("cb-"));
        assert!(
            tags.contains(&"cb.name=daily#201".to_owned()) && tags.contains(&"cb.fresh".to_owned())
        );
    }

    #[test]
    fn a_full_pool_takes_no_snapshots() {
        let (mut vg, mut rules) = with_pool();
        add(&mut vg, "pvc-1", Bytes::gib(12), thin(None), &["cinderblock=1", "cb.volume"]);
        let ask = request(&vg, "snapshot-1", "pvc-1");
        assert_eq!(plan(&vg, &rules, &ask).unwrap_err().kind(), ErrorKind::NoSpace);
        rules.pool.as_mut().unwrap().overprovision_percent = 1000;
        assert!(plan(&vg, &rules, &ask).is_ok());
        rules.pool.as_mut().unwrap().metadata_used_bp = 9_000;
        let error = plan(&vg, &rules, &ask).unwrap_err();
        assert!(error.to_string().contains("metadata is 90.00% full"), "{error}");
    }
}
