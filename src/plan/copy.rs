//! A volume whose content is copied from its source: what has to be there for it, and what goes
//! afterwards. The bytes themselves are the agent's.
//!
//! A snapshot is copied as it is. A volume goes on changing, so that an image of it is taken first,
//! a snapshot of ours beside it that is removed when the copy is complete.

use super::{Plan, Rules, remove, snapshot};
use crate::domain::CowSize;
use crate::error::{Error, Result};
use crate::lvm::change::Change;
use crate::lvm::state::{Lv, VgState};
use crate::lvm::tag::{Kind, Pending, Source, Tags, copied_tag};
use crate::names::{LvName, LvmUuid};

/// What is left to do until the volume's content can be copied ([`Plan::Copy`]), or the copy has
/// left nothing behind.
///
/// # Errors
/// [`crate::error::ErrorKind::NotFound`] when the source is gone and was never copied from;
/// otherwise when its image cannot be taken.
pub fn plan(vg: &VgState, rules: &Rules, lv: &Lv) -> Result<Plan> {
    let image = image_of(vg, &lv.name)?;
    if lv.tags.pending != Some(Pending::Copying) {
        return Ok(image.map_or(Plan::Done, |image| Plan::Rest(remove::last(image))));
    }
    let source = match &lv.tags.source {
        Some(Source::Volume(source)) => source,
        Some(Source::Snapshot(_)) => return Ok(Plan::Copy(lv.name.clone())),
        None => {
            let sentence = format!("volume {} was to be copied, but not from what", lv.name);
            return Err(Error::failed_precondition(sentence));
        }
    };
    match image {
        // It was cut before it became a snapshot.
        Some(image) if image.thick().is_some() => return Ok(Plan::Rest(remove::last(image))),
        Some(_) => return Ok(Plan::Copy(lv.name.clone())),
        None => {}
    }
    let origin =
        vg.lvs.get(source).filter(|lv| lv.is_volume()).ok_or_else(|| source_gone(vg, lv))?;
    // The image before this one is lost: what was copied from it is not what this one holds.
    let again = lv.tags.copied_bytes.map(|bytes| Change::Retag {
        lv: lv.name.clone(),
        uuid: lv.uuid.clone(),
        add: vec![],
        del: vec![copied_tag(bytes)],
    });
    let tags =
        Tags { owned: Some(1), kind: Some(Kind::Image), wipe: origin.tags.wipe, ..Tags::default() };
    let take = snapshot::change(vg, rules, origin, lv.name.image(), CowSize::FULL, tags.print())?;
    Ok(Plan::Rest(again.into_iter().chain([take]).collect()))
}

/// The LV whose bytes are the volume's, when all is there to copy them.
#[must_use]
pub fn source<'a>(vg: &'a VgState, lv: &Lv) -> Option<&'a Lv> {
    match lv.tags.source.as_ref()? {
        Source::Snapshot(snapshot) => {
            vg.lvs.get(snapshot).filter(|lv| lv.is_snapshot() && !lv.is_unfinished())
        }
        Source::Volume(_) => {
            image_of(vg, &lv.name).ok().flatten().filter(|image| image.thick().is_none())
        }
    }
}

/// Whether a volume can never be complete: its source went before it was copied from.
#[must_use]
pub fn is_lost(vg: &VgState, lv: &Lv) -> bool {
    let Some(source) = &lv.tags.source else { return false };
    lv.tags.pending == Some(Pending::Copying)
        && self::source(vg, lv).is_none()
        && vg.lvs.get(source.lv()).is_none_or(|lv| !lv.is_volume() && !lv.is_snapshot())
}

fn lost<'a>(vg: &'a VgState, uuid: &LvmUuid) -> Option<&'a Lv> {
    vg.lvs.values().find(|lv| lv.uuid == *uuid && lv.is_volume() && is_lost(vg, lv))
}

/// What makes a volume that can never be complete begin anew, should it be completed all the same.
#[must_use]
pub fn forget(vg: &VgState, uuid: &LvmUuid) -> Plan {
    match lost(vg, uuid).and_then(|lv| Some((lv, lv.tags.copied_bytes?))) {
        Some((lv, bytes)) => Plan::Steps(vec![Change::Retag {
            lv: lv.name.clone(),
            uuid: uuid.clone(),
            add: vec![],
            del: vec![copied_tag(bytes)],
        }]),
        None => Plan::Done,
    }
}

/// What makes a volume go that can never be complete.
///
/// # Errors
/// When something else has the name of its image.
pub fn give_up(vg: &VgState, uuid: &LvmUuid) -> Result<Plan> {
    lost(vg, uuid).map_or(Ok(Plan::Done), |lv| remove::plan(vg, &lv.name, Kind::Volume))
}

/// What a copy that is given up has left.
///
/// # Errors
/// When something else has the name.
pub(super) fn leftover(vg: &VgState, lv: &LvName) -> Result<Vec<Change>> {
    Ok(image_of(vg, lv)?.map(remove::last).unwrap_or_default())
}

/// What makes an image go whose volume is not there any more.
#[must_use]
pub fn left(vg: &VgState, image: &LvmUuid) -> Plan {
    let is = |lv: &&Lv| {
        lv.uuid == *image
            && lv.tags.is_ours()
            && lv.tags.kind == Some(Kind::Image)
            && !lv.is_trash()
    };
    let Some(image) = vg.lvs.values().find(is) else { return Plan::Done };
    let wanted = vg.lvs.values().any(|lv| lv.is_volume() && lv.name.image() == image.name);
    if wanted { Plan::Done } else { Plan::Steps(remove::last(image)) }
}

/// The volume that is being copied from a snapshot.
#[must_use]
pub fn copied_from<'a>(vg: &'a VgState, snapshot: &LvName) -> Option<&'a Lv> {
    let from = Some(Source::Snapshot(snapshot.clone()));
    let copying = |lv: &&Lv| {
        lv.is_volume() && lv.tags.pending == Some(Pending::Copying) && lv.tags.source == from
    };
    vg.lvs.values().find(copying)
}

fn source_gone(vg: &VgState, lv: &Lv) -> Error {
    let source = lv.tags.source.as_ref().map_or("", |source| source.lv().as_str());
    Error::not_found(format!(
        "volume {source} of volume group {} was deleted before {} was copied from it",
        vg.name, lv.name
    ))
}

fn image_of<'a>(vg: &'a VgState, lv: &LvName) -> Result<Option<&'a Lv>> {
    let name = lv.image();
    match vg.lvs.get(&name) {
        None => Ok(None),
        Some(found) if found.tags.is_ours() && found.tags.kind == Some(Kind::Image) => {
            Ok(Some(found))
        }
        Some(_) => Err(Error::failed_precondition(format!(
            "logical volume {}/{name} is in the way and not ours: rename or remove it",
            vg.name
        ))),
    }
}
