//! The only table from error kinds to gRPC codes. What each code makes the sidecars and the kubelet
//! do decides whether a claim hangs, leaks or is placed elsewhere (external-provisioner's
//! `checkError`, external-resizer's `isInfeasibleError`).

use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};

/// The code of an error kind (CSI spec, "Error Scheme").
///
/// `Unavailable` and `Aborted` mean "may still be going on": the provisioner asks the same node
/// again with the same arguments and never forgets the volume. Every other code is final for it:
/// when the claim is deleted then, nothing is deleted here. So a kind with a final code means that
/// nothing was left behind.
#[must_use]
pub const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Pending | ErrorKind::BadToken => Code::Aborted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unimplemented => Code::Unimplemented,
        ErrorKind::Damaged | ErrorKind::Host => Code::Internal,
    }
}

/// The longest sentence. It goes in a header, and one that repeats a value of the request may be as long
/// as that.
const SENTENCE_BYTES_MAX: usize = 4 << 10;

/// The error as its caller sees it: the code, and the sentence with all its causes.
pub(super) fn status(error: &Error) -> Status {
    let mut sentence = error.chain();
    if sentence.len() > SENTENCE_BYTES_MAX {
        sentence.truncate(sentence.floor_char_boundary(SENTENCE_BYTES_MAX));
        sentence.push('…');
    }
    Status::new(code(error.kind()), sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ErrorKind; 12] = [
        ErrorKind::Invalid,
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::NoSpace,
        ErrorKind::OutOfRange,
        ErrorKind::FailedPrecondition,
        ErrorKind::Pending,
        ErrorKind::Unavailable,
        ErrorKind::BadToken,
        ErrorKind::Unimplemented,
        ErrorKind::Damaged,
        ErrorKind::Host,
    ];

    /// The codes after which external-provisioner holds on to a volume, and no others.
    #[test]
    fn only_doubt_has_a_code_that_is_not_final() {
        for kind in ALL {
            let open = matches!(
                code(kind),
                Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted
            );
            let doubt =
                matches!(kind, ErrorKind::Pending | ErrorKind::Unavailable | ErrorKind::BadToken);
            assert_eq!(open, doubt, "{kind:?}");
            assert_ne!(code(kind), Code::Ok);
        }
    }

    #[test]
    fn a_status_tells_the_whole_chain() {
        let error = Error::host("mkfs failed").because(std::io::Error::other("disk on fire"));
        let status = status(&error);
        assert_eq!(status.message(), "mkfs failed: disk on fire");
        assert!(status.details().is_empty());
    }
}
