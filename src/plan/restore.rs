//! A new volume's content: shared with its source where both are in one thin pool, copied from it
//! otherwise.

use super::cow;
use super::create::{New, check_pool, check_room};
use crate::domain::{ContentSource, Provisioning};
use crate::error::{Error, Result};
use crate::lvm::change::Change;
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Pending, Source, Usage};
use crate::names::dm_name;
use crate::units::Extents;

/// What a volume is to be made from.
///
/// # Errors
/// When it is not there, or not in this VG.
pub(super) fn find_source<'a>(vg: &'a VgState, source: &ContentSource) -> Result<&'a Lv> {
    let handle = source.handle();
    if handle.vg != vg.uuid {
        return Err(Error::invalid(format!(
            "the source {handle} is in another volume group than the backend's, {}: use a class of the source's backend",
            vg.name
        )));
    }
    let (what, is): (_, fn(&Lv) -> bool) = match source {
        ContentSource::Volume(_) => ("volume", Lv::is_volume),
        ContentSource::Snapshot(_) => ("snapshot", Lv::is_snapshot),
    };
    let lv = vg.lvs.get(&handle.lv).filter(|lv| is(lv)).ok_or_else(|| {
        Error::not_found(format!("there is no {what} {} in volume group {}", handle.lv, vg.name))
    })?;
    if lv.is_unfinished() {
        let sentence = format!("the source {what} {} is still being made", handle.lv);
        return Err(Error::unavailable(sentence));
    }
    Ok(lv)
}

pub(super) fn source_tag(source: &ContentSource) -> Source {
    match source {
        ContentSource::Volume(handle) => Source::Volume(handle.lv.clone()),
        ContentSource::Snapshot(handle) => Source::Snapshot(handle.lv.clone()),
    }
}

impl New<'_> {
    /// With the content of something that is there.
    ///
    /// # Errors
    /// When it cannot be made of that, or there is no room.
    pub(super) fn restore(self, from: &Lv) -> Result<Vec<Change>> {
        let Self { vg, rules, request, extents, .. } = self;
        if request.usage == Usage::Block && from.hides_old_data() {
            return Err(Error::invalid(format!(
                "the source {} was made for a filesystem, and as a device would show what its disks held before: use volumeMode Filesystem",
                from.name
            )));
        }
        let fresh = from.tags.pending == Some(Pending::Fresh);
        let pool = match (self.provisioning, from.pool(), &rules.pool) {
            (Provisioning::Thin, Some(has), Some(pool)) if *has == pool.lv && !fresh => pool,
            _ => return Ok(vec![self.copied(from)?]),
        };
        let size = vg.extent_size.size_of(extents);
        check_pool(vg, pool, size)?;
        let mut tags = self.tags(Pending::Restored);
        tags.source = request.source.as_ref().map(source_tag);
        tags.hides = from.tags.hides;
        let grows = size > from.size;
        tags.born_bytes = grows.then_some(size);
        let (lv, origin) = (self.lv, from.name.clone());
        let mut steps = vec![Change::CloneThin { lv: lv.clone(), origin, tags: tags.print() }];
        if grows {
            steps.push(Change::Extend { lv, extents, from: vec![] });
        }
        Ok(steps)
    }

    /// A volume that gets its content copied, because it cannot share its source's blocks. One of a
    /// source that was never used is blank from the start: that one's first use may have been cut when
    /// its filesystem was made, and what bears `cb.fresh` must hold no filesystem but its own.
    fn copied(self, from: &Lv) -> Result<Change> {
        let Self { vg, rules, request, provisioning, extents, .. } = self;
        dm_name(&vg.name, &self.lv.image()).map_err(|e| Error::invalid(e.to_string()))?;
        let pending = match from.tags.pending {
            Some(Pending::Fresh) => Pending::Fresh,
            Some(Pending::Restored | Pending::Copying) | None => Pending::Copying,
        };
        // A volume goes on changing: an image of it is needed as long as it is copied.
        if let (None, Pending::Copying, Some(layout)) = (from.cow_origin(), pending, from.thick()) {
            cow::may_have_snapshots(from)?;
            let store = cow::largest_store(vg, from.size);
            let own = match provisioning {
                Provisioning::Thin => Extents::ZERO,
                Provisioning::Thick => {
                    let legs = u64::from(request.class.layout.legs());
                    let each = request.class.layout.leg_extents(extents).get();
                    Extents::new(each.saturating_mul(legs))
                }
            };
            check_room(vg, rules, &ThickLayout::Linear, own.saturating_add(store)).map_err(|e| {
            Error::no_space(format!(
                "a clone of thick volume {} ({layout}) needs room for what the volume overwrites while it is copied, too; \
                 a restore from a snapshot with cowSize below 100% needs less",
                from.name
            ))
            .because(e)
        })?;
        }
        let mut tags = self.tags(pending);
        tags.source = request.source.as_ref().map(source_tag);
        // A thick volume bears that in its layout.
        tags.hides = provisioning == Provisioning::Thin && from.hides_old_data();
        self.make(&tags)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::super::create::plan;
    use super::super::create::tests::{only, request};
    use super::super::fixture::{add, lv_name, thin, with_pool};
    use super::*;
    use crate::domain::CreateVolume;
    use crate::error::ErrorKind;
    use crate::names::Handle;
    use crate::units::Bytes;

    #[test]
    fn a_restore_larger_than_its_source_is_finished_after_a_cut() {
        let (mut vg, rules) = with_pool();
        let snap = ["cinderblock=1", "cb.snapshot", "cb.src=v:pvc-0"];
        add(&mut vg, "snap-1", Bytes::gib(1), thin(None), &snap);
        let mut request = request(None);
        let source = Handle { vg: vg.uuid.clone(), lv: lv_name("snap-1") };
        request.source = Some(ContentSource::Snapshot(source));
        request.range.required = Some(Bytes::gib(2));
        let Plan::Steps(steps) = plan(&vg, &rules, &request).unwrap() else { panic!() };
        let [Change::CloneThin { tags, .. }, extend] = &steps[..] else { panic!("{steps:?}") };
        assert!(
            tags.contains(&"cb.restored".to_owned())
                && tags.contains(&"cb.src=s:snap-1".to_owned())
        );
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        add(&mut vg, "pvc-1", Bytes::gib(1), thin(Some("snap-1")), &tags);
        // Cut between the two, and the snapshot deleted meanwhile.
        vg.lvs.remove(&lv_name("snap-1"));
        assert_eq!(&only(plan(&vg, &rules, &request)), extend);
        add(&mut vg, "pvc-1", Bytes::gib(2), thin(None), &tags);
        assert_eq!(plan(&vg, &rules, &request).unwrap(), Plan::Done);
    }

    #[test]
    fn sources_must_be_there_and_fit() {
        let (mut vg, rules) = with_pool();
        let mut ask = request(None);
        let handle = |vg: &VgState, lv: &str| Handle { vg: vg.uuid.clone(), lv: lv_name(lv) };
        ask.source = Some(ContentSource::Snapshot(handle(&vg, "snap-1")));
        let kind = |vg: &VgState, ask: &CreateVolume| plan(vg, &rules, ask).unwrap_err().kind();
        assert_eq!(kind(&vg, &ask), ErrorKind::NotFound);
        // A volume is no snapshot.
        add(&mut vg, "snap-1", Bytes::gib(2), thin(None), &["cinderblock=1", "cb.volume"]);
        assert_eq!(kind(&vg, &ask), ErrorKind::NotFound);
        add(&mut vg, "snap-1", Bytes::gib(2), thin(None), &["cinderblock=1", "cb.snapshot"]);
        // Never smaller than its source.
        let step = only(plan(&vg, &rules, &ask));
        assert!(matches!(step, Change::CloneThin { .. }));
        ask.range.limit = Some(Bytes::gib(1));
        assert_eq!(kind(&vg, &ask), ErrorKind::OutOfRange);
        ask.range.limit = None;
        // What is made of something that was never used is as blank, and has no block of it: a first
        // use that was cut may have left some there.
        ask.class.provisioning = None;
        let fresh = ["cinderblock=1", "cb.snapshot", "cb.fresh"];
        add(&mut vg, "snap-1", Bytes::gib(2), thin(None), &fresh);
        match only(plan(&vg, &rules, &ask)) {
            Change::CreateThin { tags, size, .. } => {
                assert!(tags.contains(&"cb.fresh".to_owned()) && size == Bytes::gib(2));
            }
            other => panic!("{other:?}"),
        }
    }
}
