//! What is not finished on a node, as messages, and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use cinderblock_proto::agent::v1 as pb;

use super::wire::{claim, parse_handle, parse_name, told_claim};
use crate::domain::{Unfinished, What};
use crate::error::Result;
use crate::names::Handle;
use crate::units::Bytes;

/// More than this are not told: nothing depends on it but a list for people. A message may have 4 MiB.
const UNFINISHED_MAX: usize = 1_000;

pub(super) type All = BTreeMap<Handle, Arc<Unfinished>>;

pub(super) fn print(all: &All) -> pb::AllUnfinished {
    let one = |unfinished: &Arc<Unfinished>| pb::Unfinished {
        handle: unfinished.handle.to_string(),
        name: unfinished.name.to_string(),
        snapshot: unfinished.what == What::Snapshot,
        size_bytes: unfinished.size.get(),
        created_unix: unfinished.created_unix,
        claim: unfinished.claim.clone().map(claim),
        source: unfinished.source.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    pb::AllUnfinished { unfinished: all.values().take(UNFINISHED_MAX).map(one).collect() }
}

pub(super) fn parse(all: pb::AllUnfinished) -> Result<All> {
    let one = |unfinished: pb::Unfinished| {
        let handle = parse_handle(&unfinished.handle)?;
        let source = Some(unfinished.source).filter(|source| !source.is_empty());
        let parsed = Unfinished {
            handle: handle.clone(),
            what: if unfinished.snapshot { What::Snapshot } else { What::Volume },
            name: parse_name(&unfinished.name)?,
            size: Bytes::new(unfinished.size_bytes),
            created_unix: unfinished.created_unix,
            claim: told_claim(unfinished.claim),
            source: source.map(|source| parse_handle(&source)).transpose()?,
        };
        Ok((handle, Arc::new(parsed)))
    };
    all.unfinished.into_iter().take(UNFINISHED_MAX).map(one).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lvm::tag::Claim;
    use crate::names::{CsiName, LvmUuid};

    /// Some, others for another number.
    pub(in super::super) fn some(number: u64) -> All {
        let handle = |kind: &str| {
            Handle::parse(&format!("{}/{kind}-{number}", LvmUuid::derived("vg"))).unwrap()
        };
        let one = |kind, what| Unfinished {
            handle: handle(kind),
            what,
            name: CsiName::parse(kind).unwrap(),
            size: Bytes::gib(number),
            created_unix: 17,
            claim: (what == What::Volume)
                .then(|| Claim { namespace: "a".to_owned(), name: "b".to_owned() }),
            source: (what == What::Snapshot).then(|| handle("pvc")),
        };
        let all = [one("pvc", What::Volume), one("snap", What::Snapshot)];
        all.into_iter().map(|one| (one.handle.clone(), Arc::new(one))).collect()
    }
}
