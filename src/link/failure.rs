//! Errors as messages, and back.

use cinderblock_proto::agent::v1 as pb;
use pb::failure::Kind;

use crate::error::{Error, ErrorKind};

/// The longest sentence of a peer that is passed on. It ends in logs, and in a header of the answer to
/// whoever asked.
const SENTENCE_MAX: usize = 4_096;

/// A peer's sentence as it may be passed on: on one line, and not too long.
pub(super) fn bounded(sentence: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    sentence.chars().take(SENTENCE_MAX).map(plain).collect()
}

/// An error as it goes over the wire.
pub(super) fn failure(error: &Error) -> pb::Failure {
    let kind = match error.kind() {
        ErrorKind::Invalid => Kind::Invalid,
        ErrorKind::NotFound => Kind::NotFound,
        ErrorKind::AlreadyExists => Kind::AlreadyExists,
        ErrorKind::NoSpace => Kind::NoSpace,
        ErrorKind::OutOfRange => Kind::OutOfRange,
        ErrorKind::FailedPrecondition => Kind::FailedPrecondition,
        ErrorKind::Pending => Kind::Pending,
        ErrorKind::Unavailable | ErrorKind::BadToken => Kind::Unavailable,
        ErrorKind::Unimplemented => Kind::Unimplemented,
        ErrorKind::Damaged => Kind::Damaged,
        ErrorKind::Host => Kind::Host,
    };
    pb::Failure { kind: kind.into(), message: error.chain() }
}

/// The error that came over the wire. One that is not known leaves everything open.
pub(super) fn error(failure: &pb::Failure) -> Error {
    let kind = match failure.kind() {
        Kind::Unknown | Kind::Unavailable => ErrorKind::Unavailable,
        Kind::Invalid => ErrorKind::Invalid,
        Kind::NotFound => ErrorKind::NotFound,
        Kind::AlreadyExists => ErrorKind::AlreadyExists,
        Kind::NoSpace => ErrorKind::NoSpace,
        Kind::OutOfRange => ErrorKind::OutOfRange,
        Kind::FailedPrecondition => ErrorKind::FailedPrecondition,
        Kind::Pending => ErrorKind::Pending,
        Kind::Unimplemented => ErrorKind::Unimplemented,
        Kind::Damaged => ErrorKind::Damaged,
        Kind::Host => ErrorKind::Host,
    };
    Error::new(kind, bounded(&failure.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_kind_and_unknown_ones_leave_all_open() {
        for kind in [ErrorKind::NoSpace, ErrorKind::Pending, ErrorKind::Host, ErrorKind::NotFound] {
            let back = error(&failure(&Error::new(kind, "why")));
            assert_eq!((back.kind(), back.to_string().as_str()), (kind, "why"));
        }
        let later = pb::Failure { kind: 99, message: "from the future".to_owned() };
        assert_eq!(error(&later).kind(), ErrorKind::Unavailable);
        let endless = pb::Failure { kind: 1, message: "a\nb".repeat(100_000) };
        assert_eq!(error(&endless).to_string().len(), SENTENCE_MAX);
        assert_eq!(bounded("a\n\u{1b}[31mb"), "a  [31mb");
    }
}
