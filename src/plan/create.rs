//! Making a volume: blank, from a snapshot or from a volume.

use super::encryption::{same_encryption, word};
use super::restore::{find_source, source_tag};
use super::{Plan, PoolRules, Rules, copy, own, remove, unfinished_raid};
use crate::domain::{CapacityRange, CreateVolume, Provisioning, VolumeClass};
use crate::error::{Error, Result};
use crate::lvm::change::{Change, Range};
use crate::lvm::layout::ThickLayout;
use crate::lvm::state::{Lv, LvLayout, VgState};
use crate::lvm::tag::{Kind, Pending, Tags, Usage, Wipe};
use crate::names::{LvName, dm_name};
use crate::units::{Bytes, Extents};

/// The size of a volume when nobody says, as Kubernetes users know it from other drivers.
const DEFAULT_SIZE: Bytes = Bytes::gib(1);

/// A volume that is not there yet.
pub(super) struct New<'a> {
    pub(super) vg: &'a VgState,
    pub(super) rules: &'a Rules,
    pub(super) request: &'a CreateVolume,
    pub(super) provisioning: Provisioning,
    pub(super) lv: LvName,
    pub(super) extents: Extents,
}

/// What is left to do until the volume is there.
///
/// # Errors
/// When it cannot be made as asked for, or a different one of that name is there.
pub fn plan(vg: &VgState, rules: &Rules, request: &CreateVolume) -> Result<Plan> {
    let lv = LvName::for_volume(&request.name);
    dm_name(&vg.name, &lv).map_err(|e| Error::invalid(e.to_string()))?;
    // What it may be called when it is deleted must fit as well.
    dm_name(&vg.name, &LvName::trash(&vg.uuid)).map_err(|e| Error::invalid(e.to_string()))?;
    let provisioning = provisioning(vg, rules, request)?;
    // What is there already is looked at first: its source may be gone meanwhile.
    if let Some(found) = own(vg, &lv, &request.name, Lv::is_volume)? {
        return resume(vg, found, provisioning, request);
    }
    let source = request.source.as_ref().map(|s| find_source(vg, s)).transpose()?;
    if let Some(from) = source {
        same_encryption(from, request)?;
    }
    let least = match (source, request.usage) {
        (Some(from), _) => from.payload(),
        (None, Usage::Filesystem(fs)) => fs.minimum(),
        (None, Usage::Block) => Bytes::ZERO,
    };
    let extents = extents(vg, &request.class, &request.range, least)?;
    let new = New { vg, rules, request, provisioning, lv, extents };
    let steps = if let Some(from) = source {
        new.restore(from)?
    } else {
        let tags = new.tags(Pending::Fresh);
        vec![new.make(&tags)?]
    };
    Ok(Plan::Steps(steps))
}

fn provisioning(vg: &VgState, rules: &Rules, request: &CreateVolume) -> Result<Provisioning> {
    match (request.class.provisioning, &rules.pool) {
        (Some(Provisioning::Thin), None) => Err(Error::invalid(format!(
            "parameter provisioning: thin needs a thin pool, and this backend has none in volume group {}: \
             configure thinPool for the backend, or use provisioning: thick",
            vg.name
        ))),
        (Some(asked), _) => Ok(asked),
        (None, _) if request.class.layout != ThickLayout::Linear => Ok(Provisioning::Thick),
        (None, Some(_)) => Ok(Provisioning::Thin),
        (None, None) => Ok(Provisioning::Thick),
    }
}

/// The number of extents that a volume gets: at least what is required and what its use needs.
fn extents(
    vg: &VgState,
    class: &VolumeClass,
    range: &CapacityRange,
    least: Bytes,
) -> Result<Extents> {
    let (layout, header) = (&class.layout, class.header());
    let wanted = match (range.required, range.limit) {
        (Some(required), _) => required,
        (None, Some(limit)) => DEFAULT_SIZE.min(limit),
        (None, None) => DEFAULT_SIZE,
    };
    if let Some(size) = layout.stripe_size().filter(|size| *size > vg.extent_size.bytes()) {
        return Err(Error::invalid(format!(
            "parameter stripeSize: {size} is more than the extent size of volume group {}, {}",
            vg.name,
            vg.extent_size.bytes()
        )));
    }
    let unit = u64::from(layout.data_legs());
    let extents = vg.extent_size.extents_ceil(wanted.max(least).saturating_add(header));
    let extents = extents.ceil_to_multiple_of(unit);
    let extents = extents.max(Extents::new(unit));
    let size = vg.extent_size.size_of(extents).saturating_sub(header);
    match range.limit {
        Some(limit) if size > limit => Err(Error::out_of_range(format!(
            "the smallest size of at least {} that volume group {} can make here is {size}, more than the limit of {limit}",
            wanted.max(least),
            vg.name
        ))),
        _ if size > Bytes::MAX => {
            Err(Error::out_of_range(format!("a size of {size} is too large")))
        }
        _ => Ok(extents),
    }
}

/// What is left to do for a volume that is there already, perhaps half.
fn resume(
    vg: &VgState,
    found: &Lv,
    provisioning: Provisioning,
    request: &CreateVolume,
) -> Result<Plan> {
    let differs = |what: String| {
        Error::already_exists(format!("there is a volume {} already, and {what}", request.name))
    };
    if found.tags.source != request.source.as_ref().map(source_tag) {
        return Err(differs("it was made from another source".to_owned()));
    }
    if let Some(usage) = found.tags.usage.filter(|usage| *usage != request.usage) {
        return Err(differs(format!("it is for {usage}, not for {}", request.usage)));
    }
    if let LvLayout::UnfinishedRaid(_) = found.layout {
        if !matches!(found.tags.pending, Some(Pending::Fresh | Pending::Copying)) {
            return Err(unfinished_raid(vg, found));
        }
        // Never given to anybody: nothing of anybody's alone is in it.
        return Ok(Plan::Rest(remove::last(found)));
    }
    if found.is_cut_thin() || copy::is_lost(vg, found) {
        return Ok(Plan::Rest(remove::last(found)));
    }
    if !same_layout(found, provisioning, request.class.layout) {
        return Err(differs(match found.thick() {
            Some(layout) => format!("it is thick, {layout}"),
            None => "it is thin".to_owned(),
        }));
    }
    if found.tags.wipe != request.class.wipe {
        let wipe = found.tags.wipe.map_or("none", Wipe::as_str);
        return Err(differs(format!("it has wipe: {wipe}")));
    }
    if found.tags.luks != request.class.luks {
        return Err(differs(format!("it has encryption: {}", word(found.tags.luks))));
    }
    // A volume that is to be larger than its source gets there in a second step.
    let size = found.size.max(found.tags.born_bytes.unwrap_or_default());
    let least = request.range.required.unwrap_or_default();
    let payload = size.saturating_sub(found.header());
    if payload < least || request.range.limit.is_some_and(|limit| payload > limit) {
        return Err(differs(format!("it has {payload}")));
    }
    if found.size < size {
        let extents = vg.extent_size.extents_ceil(size);
        let extend = Change::Extend { lv: found.name.clone(), extents, from: vec![] };
        return Ok(Plan::Rest(vec![extend]));
    }
    // Its image is taken where it is copied: that goes on also when nobody repeats this call.
    let copying = found.tags.pending == Some(Pending::Copying);
    Ok(if copying { Plan::Copy(found.name.clone()) } else { Plan::Done })
}

fn same_layout(found: &Lv, provisioning: Provisioning, layout: ThickLayout) -> bool {
    match provisioning {
        Provisioning::Thin => matches!(found.layout, LvLayout::Thin { .. }),
        Provisioning::Thick => found.thick() == Some(layout),
    }
}

impl New<'_> {
    /// Its tags.
    pub(super) fn tags(&self, pending: Pending) -> Tags {
        let request = self.request;
        Tags {
            owned: Some(1),
            kind: Some(Kind::Volume),
            name: (self.lv.as_str() != request.name.as_str()).then(|| request.name.clone()),
            pending: Some(pending),
            usage: Some(request.usage),
            luks: request.class.luks,
            wipe: request.class.wipe,
            claim: request.claim.clone(),
            ..Tags::default()
        }
    }

    /// Its LV, with extents of its own.
    ///
    /// # Errors
    /// When there is no room for it.
    pub(super) fn make(self, tags: &Tags) -> Result<Change> {
        let Self { vg, rules, request, provisioning, lv, extents } = self;
        let size = vg.extent_size.size_of(extents);
        let tags = tags.print();
        if let (Provisioning::Thin, Some(pool)) = (provisioning, &rules.pool) {
            check_pool(vg, pool, size)?;
            return Ok(Change::CreateThin { lv, pool: pool.lv.clone(), size, tags });
        }
        let layout = request.class.layout;
        check_room(vg, rules, &layout, extents)?;
        let on = places(vg, &layout, extents)?;
        Ok(Change::CreateThick { lv, extents, layout, on, tags })
    }
}

/// The disks that new extents go to, where it matters.
pub(super) fn places(vg: &VgState, layout: &ThickLayout, extents: Extents) -> Result<Vec<Range>> {
    super::place::new_legs(vg, layout, extents).ok_or_else(|| {
        Error::no_space(format!(
            "{} do not fit into volume group {} {layout}: each stripe or leg needs a disk of its own with room for its part",
            vg.extent_size.size_of(extents),
            vg.name
        ))
    })
}

/// Whether a thick volume fits.
pub(super) fn check_room(
    vg: &VgState,
    rules: &Rules,
    layout: &ThickLayout,
    extents: Extents,
) -> Result<()> {
    let rules = Rules { pool: None, reserve: rules.reserve };
    let offer =
        super::capacity::of(vg, &rules).offer(Some(Provisioning::Thick), layout, Bytes::ZERO);
    let wanted = vg.extent_size.size_of(extents);
    if wanted <= offer.largest {
        return Ok(());
    }
    Err(Error::no_space(format!(
        "{wanted} do not fit into volume group {}: the largest volume of this layout is {} ({} free beyond the reserve of {})",
        vg.name, offer.largest, offer.available, rules.reserve
    )))
}

/// Whether a pool may promise so much more.
pub(super) fn check_pool(vg: &VgState, pool: &PoolRules, more: Bytes) -> Result<()> {
    let Some(capacity) = pool.capacity(vg) else {
        let sentence = format!("thin pool {} is not in volume group {}", pool.lv, vg.name);
        return Err(Error::no_space(sentence));
    };
    if let Some(trouble) = capacity.trouble() {
        return Err(Error::no_space(format!(
            "thin pool {}/{} takes nothing new: {trouble}",
            vg.name, pool.lv
        )));
    }
    if more <= capacity.room() {
        return Ok(());
    }
    Err(Error::no_space(format!(
        "{more} do not fit into thin pool {}/{}: of its {}, {}% may be promised, {} are promised already",
        vg.name, pool.lv, capacity.size, capacity.overprovision_percent, capacity.promised
    )))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::fixture::{add, lv_name, thin, vg, with_pool};
    use super::*;
    use crate::domain::{ContentSource, VolumeClass};
    use crate::error::ErrorKind;
    use crate::lvm::layout::RaidLevel;
    use crate::lvm::tag::{Claim, FsType};
    use crate::names::{CsiName, Handle};

    pub(in crate::plan) fn request(provisioning: Option<Provisioning>) -> CreateVolume {
        CreateVolume {
            name: CsiName::parse("pvc-1").unwrap(),
            range: CapacityRange { required: Some(Bytes::gib(1)), limit: None },
            class: VolumeClass {
                backend: None,
                provisioning,
                layout: ThickLayout::Linear,
                wipe: None,
                luks: false,
            },
            usage: Usage::Filesystem(FsType::Ext4),
            source: None,
            claim: Some(Claim { namespace: "db".to_owned(), name: "data".to_owned() }),
        }
    }

    pub(in crate::plan) fn only(plan: Result<Plan>) -> Change {
        match plan.unwrap() {
            Plan::Steps(steps) | Plan::Rest(steps) if steps.len() == 1 => steps[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn blank_volumes_are_born_fresh_and_ours() {
        let tags = ["cinderblock=1", "cb.volume", "cb.fresh", "cb.use=ext4", "cb.pvc=db/data"];
        let tags = tags.map(str::to_owned).to_vec();
        let vg0 = vg(&[&[1000]]);
        let step = only(plan(&vg0, &Rules::default(), &request(None)));
        let (lv, extents, layout) = (lv_name("pvc-1"), Extents::new(256), ThickLayout::Linear);
        assert_eq!(
            step,
            Change::CreateThick { lv, extents, layout, on: vec![], tags: tags.clone() }
        );
        let (mut vg, rules) = with_pool();
        vg.pvs = vg0.pvs.clone();
        let step = only(plan(&vg, &rules, &request(None)));
        let (lv, pool) = (lv_name("pvc-1"), lv_name("pool0"));
        assert_eq!(step, Change::CreateThin { lv, pool, size: Bytes::gib(1), tags });
        let step = only(plan(&vg, &rules, &request(Some(Provisioning::Thick))));
        assert!(matches!(step, Change::CreateThick { .. }));
        let error = plan(&vg0, &Rules::default(), &request(Some(Provisioning::Thin))).unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("thinPool"));
    }

    #[test]
    fn sizes_round_up_to_extents_and_stay_within_the_limit() {
        let vg = vg(&[&[1000], &[1000]]);
        let size = |required, limit, stripes, usage| {
            let mut request = request(None);
            request.range = CapacityRange { required, limit };
            request.usage = usage;
            if stripes > 1 {
                request.class.layout =
                    ThickLayout::Striped { stripes, stripe_size: Bytes::kib(64) };
            }
            plan(&vg, &Rules::default(), &request).map(|p| match only(Ok(p)) {
                Change::CreateThick { extents, .. } => extents.get(),
                other => panic!("{other:?}"),
            })
        };
        let mib = |n| Some(Bytes::mib(n));
        assert_eq!(size(mib(5), None, 1, Usage::Block).unwrap(), 2);
        assert_eq!(size(mib(12), None, 2, Usage::Block).unwrap(), 4);
        assert_eq!(size(None, None, 1, Usage::Block).unwrap(), 256);
        assert_eq!(size(None, mib(8), 1, Usage::Block).unwrap(), 2);
        assert_eq!(size(mib(1), None, 1, Usage::Filesystem(FsType::Xfs)).unwrap(), 75);
        assert_eq!(size(mib(4), mib(4), 1, Usage::Block).unwrap(), 1);
        for (required, limit, usage) in [
            (mib(5), mib(7), Usage::Block),
            (mib(5), mib(8), Usage::Filesystem(FsType::Xfs)),
            (None, mib(1), Usage::Block),
        ] {
            assert_eq!(size(required, limit, 1, usage).unwrap_err().kind(), ErrorKind::OutOfRange);
        }
        assert_eq!(size(mib(8004), None, 1, Usage::Block).unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(size(mib(8000), None, 1, Usage::Block).unwrap(), 2000);
    }

    #[test]
    fn the_same_again_is_done_and_another_is_a_conflict() {
        let (mut vg, rules) = with_pool();
        add(
            &mut vg,
            "pvc-1",
            Bytes::gib(1),
            thin(None),
            &["cinderblock=1", "cb.volume", "cb.use=ext4"],
        );
        assert_eq!(plan(&vg, &rules, &request(None)).unwrap(), Plan::Done);
        let conflict = |change: fn(&mut CreateVolume)| {
            let mut request = request(None);
            change(&mut request);
            let error = plan(&vg, &rules, &request).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        };
        conflict(|r| r.range.required = Some(Bytes::gib(2)));
        conflict(|r| r.range = CapacityRange { required: None, limit: Some(Bytes::mib(1)) });
        conflict(|r| r.usage = Usage::Block);
        conflict(|r| r.class.wipe = Some(Wipe::Discard));
        conflict(|r| r.class.provisioning = Some(Provisioning::Thick));
        conflict(|r| {
            let vg = crate::names::LvmUuid::derived("vg0");
            r.source = Some(ContentSource::Volume(Handle { vg, lv: lv_name("pvc-0") }));
        });
        // An LV of somebody else has the name.
        add(&mut vg, "pvc-1", Bytes::gib(1), thin(None), &["mine"]);
        let error = plan(&vg, &rules, &request(None)).unwrap_err();
        assert!(error.to_string().contains("was not made for"), "{error}");
    }

    /// LVM makes RAID in several commits; what it left when it was cut is made anew.
    #[test]
    fn raid_that_was_cut_is_made_anew() {
        let mut vg = vg(&[&[1000], &[1000], &[1000]]);
        let rules = Rules::default();
        let mut ask = request(Some(Provisioning::Thick));
        let (level, stripe_size) = (RaidLevel::Raid1, Bytes::ZERO);
        ask.class.layout = ThickLayout::Raid { level, legs: 2, stripe_size };
        let Change::CreateThick { on, tags, .. } = only(plan(&vg, &rules, &ask)) else { panic!() };
        assert_eq!(on.len(), 2);
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let unfinished = LvLayout::UnfinishedRaid("raid1".to_owned());
        add(&mut vg, "pvc-1", Bytes::gib(1), unfinished, &tags);
        assert!(matches!(only(plan(&vg, &rules, &ask)), Change::Remove { .. }));
        // Somebody replaces a leg of one that is in use: nothing is removed.
        let used: Vec<&str> = tags.iter().copied().filter(|tag| *tag != "cb.fresh").collect();
        let unfinished = LvLayout::UnfinishedRaid("raid1".to_owned());
        add(&mut vg, "pvc-1", Bytes::gib(1), unfinished, &used);
        assert!(!vg.lvs[&lv_name("pvc-1")].is_unfinished(), "it would not be listed");
        let error = plan(&vg, &rules, &ask).unwrap_err();
        assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("vg0/pvc-1"));
        add(&mut vg, "pvc-1", Bytes::gib(1), LvLayout::Raid(ask.class.layout), &tags);
        assert_eq!(plan(&vg, &rules, &ask).unwrap(), Plan::Done);
        ask.class.layout = ThickLayout::Raid { level, legs: 3, stripe_size };
        let error = plan(&vg, &rules, &ask).unwrap_err();
        assert!(error.to_string().contains("it is thick, raid1 on 2 disks"), "{error}");
    }
}
