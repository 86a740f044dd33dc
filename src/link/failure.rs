//! Errors as messages, and back.

use cinderblock_proto::agent::v1 as pb;
use pb::failure::Kind;

use crate::error::{Error, ErrorKind};

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
pub(super) fn error(failure: pb::Failure) -> Error {
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
    Error::new(kind, failure.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_kind_and_unknown_ones_leave_all_open() {
        for kind in [ErrorKind::NoSpace, ErrorKind::Pending, ErrorKind::Host, ErrorKind::NotFound] {
            let back = error(failure(&Error::new(kind, "why")));
            assert_eq!((back.kind(), back.to_string().as_str()), (kind, "why"));
        }
        let later = pb::Failure { kind: 99, message: "from the future".to_owned() };
        assert_eq!(error(later).kind(), ErrorKind::Unavailable);
    }
}
