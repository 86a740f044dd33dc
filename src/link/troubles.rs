//! What is wrong on a node, as messages, and back.

use cinderblock_proto::agent::v1 as pb;
use pb::trouble::Subject as WireSubject;

use super::wire::{bad, parse_handle};
use crate::domain::{Reason, Subject, Trouble, Troubles};
use crate::error::Result;
use crate::names::BackendName;

/// More troubles than this are one: who reads of a thousand knows enough. A message may have 4 MiB.
const TROUBLES_MAX: usize = 1_000;
/// The longest sentence; a note of Kubernetes takes as much.
const SENTENCE_MAX: usize = 1_024;

pub(super) fn print(troubles: &Troubles) -> pb::Troubles {
    let one = |((subject, reason), trouble): (&(Subject, Reason), &Trouble)| pb::Trouble {
        subject: Some(match subject {
            Subject::Volume(handle) => WireSubject::Volume(handle.to_string()),
            Subject::Backend(name) => WireSubject::Backend(name.to_string()),
        }),
        reason: reason.as_str().to_owned(),
        sentence: trouble.sentence.chars().take(SENTENCE_MAX).collect(),
        since_unix: trouble.since_unix,
    };
    pb::Troubles { troubles: troubles.iter().take(TROUBLES_MAX).map(one).collect() }
}

pub(super) fn parse(troubles: pb::Troubles) -> Result<Troubles> {
    let mut found = Troubles::new();
    for trouble in troubles.troubles.into_iter().take(TROUBLES_MAX) {
        let (Some(subject), Some(reason)) = (trouble.subject, Reason::parse(&trouble.reason))
        else {
            // A later agent's: nothing that this controller could tell anybody.
            continue;
        };
        let subject = match subject {
            WireSubject::Volume(id) => Subject::Volume(parse_handle(&id)?),
            WireSubject::Backend(name) => {
                Subject::Backend(BackendName::parse(&name).map_err(|e| bad("backend", &e))?)
            }
        };
        let sentence = trouble.sentence.chars().take(SENTENCE_MAX).collect();
        found.insert((subject, reason), Trouble { sentence, since_unix: trouble.since_unix });
    }
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::names::{Handle, LvmUuid};

    /// Some, others for another number.
    pub(in super::super) fn some(number: u64) -> Troubles {
        let volume = Handle::parse(&format!("{}/pvc-{number}", LvmUuid::derived("vg"))).unwrap();
        let backend = BackendName::parse("a").unwrap();
        let trouble = |since_unix| Trouble { sentence: format!("no {number}"), since_unix };
        [
            ((Subject::Volume(volume), Reason::VolumeDegraded), trouble(7)),
            ((Subject::Backend(backend), Reason::ThinPoolFull), trouble(8)),
        ]
        .into()
    }

    #[test]
    fn every_reason_comes_through() {
        let volume = Handle::parse(&format!("{}/pvc-1", LvmUuid::derived("vg"))).unwrap();
        let backend = BackendName::parse("a").unwrap();
        for subject in [Subject::Volume(volume), Subject::Backend(backend)] {
            let all = Reason::ALL.into_iter().zip(1..).map(|(reason, since_unix)| {
                let sentence = format!("why {since_unix}");
                ((subject.clone(), reason), Trouble { sentence, since_unix })
            });
            let all: Troubles = all.collect();
            assert_eq!(all.len(), Reason::ALL.len());
            assert_eq!(parse(print(&all)).unwrap(), all);
        }
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut wire = print(&some(1));
        wire.troubles[0].reason = "FromTheFuture".to_owned();
        let parsed = parse(wire.clone()).unwrap();
        assert_eq!(parsed.len(), 1);
        wire.troubles[0].subject = None;
        assert_eq!(parse(wire).unwrap(), parsed);
    }
}
