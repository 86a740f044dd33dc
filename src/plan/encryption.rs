//! Encryption is a property of bytes: a copy has its source's.

use crate::domain::CreateVolume;
use crate::error::{Error, Result};
use crate::lvm::state::Lv;

/// What a class says.
pub(super) const fn word(luks: bool) -> &'static str {
    if luks { "luks" } else { "none" }
}

/// A copy has the bytes of its source: it is encrypted as that is.
pub(super) fn same_encryption(from: &Lv, request: &CreateVolume) -> Result<()> {
    if from.tags.luks == request.class.luks {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the source {} has encryption: {}, and what is made from it has the same: use a class that says so",
        from.name,
        word(from.tags.luks)
    )))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{add, lv_name, thin, vg, with_pool};
    use super::super::{Plan, Rules, create, expand};
    use crate::domain::{CapacityRange, ContentSource, CreateVolume, VolumeClass};
    use crate::lvm::change::Change;
    use crate::lvm::state::LvLayout;
    use crate::lvm::tag::Usage;
    use crate::names::CsiName;
    use crate::units::Bytes;

    fn request(size: Bytes) -> CreateVolume {
        let parameters = [("encryption".to_owned(), "luks".to_owned())].into();
        CreateVolume {
            name: CsiName::parse("pvc-1").unwrap(),
            range: CapacityRange { required: Some(size), limit: None },
            class: VolumeClass::parse(&parameters).unwrap(),
            usage: Usage::Block,
            source: None,
            claim: None,
        }
    }

    #[test]
    fn the_header_comes_on_top_of_what_is_asked_for() {
        let vg = vg(&[&[100]]);
        let plan = create::plan(&vg, &Rules::default(), &request(Bytes::mib(100))).unwrap();
        let Plan::Steps(steps) = plan else { panic!() };
        let [Change::CreateThick { extents, tags, .. }] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(extents.get(), 33);
        assert!(tags.contains(&"cb.luks".to_owned()), "{tags:?}");
        let capacity = super::super::capacity::of(&vg, &Rules::default());
        let class = request(Bytes::ZERO).class;
        let offer = capacity.offer(None, &class.layout, class.header());
        assert_eq!((offer.largest, offer.smallest), (Bytes::mib(400 - 32), Bytes::mib(4)));
        let largest = create::plan(&vg, &Rules::default(), &request(offer.largest));
        assert!(largest.is_ok(), "{largest:?}");
        let more = offer.largest.saturating_add(Bytes::new(1));
        assert!(create::plan(&vg, &Rules::default(), &request(more)).is_err());
    }

    #[test]
    fn growing_counts_what_the_user_sees_and_zeroes_nothing() {
        let mut vg = vg(&[&[1000]]);
        let tags = ["cinderblock=1", "cb.volume", "cb.use=block", "cb.luks"];
        add(&mut vg, "pvc-1", Bytes::mib(132), LvLayout::Linear, &tags);
        let go = |size| {
            let range = CapacityRange { required: Some(size), limit: Some(size) };
            expand::plan(&vg, &Rules::default(), &vg.lvs[&lv_name("pvc-1")], &range).unwrap()
        };
        assert_eq!(go(Bytes::mib(100)), Plan::Done);
        let Plan::Steps(steps) = go(Bytes::mib(104)) else { panic!() };
        assert!(matches!(&steps[..], [Change::Extend { extents, .. }] if extents.get() == 34));
    }

    #[test]
    fn a_copy_is_encrypted_as_its_source_is() {
        let (mut vg, rules) = with_pool();
        let tags = ["cinderblock=1", "cb.volume", "cb.use=block", "cb.luks"];
        add(&mut vg, "pvc-0", Bytes::mib(132), thin(None), &tags);
        let mut ask = request(Bytes::mib(100));
        ask.source = Some(ContentSource::Volume(vg.handle(&lv_name("pvc-0"))));
        let Plan::Steps(steps) = create::plan(&vg, &rules, &ask).unwrap() else { panic!() };
        assert_eq!(steps.len(), 1, "as large as its source: {steps:?}");
        ask.class = VolumeClass { luks: false, ..ask.class };
        let error = create::plan(&vg, &rules, &ask).unwrap_err();
        assert!(error.to_string().contains("has encryption: luks"), "{error}");
    }
}
