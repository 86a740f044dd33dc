//! The one error type below the CSI edge: a small kind that callers match on, a sentence for
//! people, and the cause.
//!
//! The kind says what the caller may do, never where it happened; `csi/status.rs` alone turns it
//! into a gRPC code. The sentence names the volume, device or field, and what to do. It never
//! repeats its cause, which [`Error::chain`] adds.

use std::fmt;

/// A result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error means to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request can never work as it is.
    Invalid,
    /// The object was looked for, completely, and is not there.
    NotFound,
    /// An object of that name is there and differs from what was asked for.
    AlreadyExists,
    /// Not enough room here; another node may have it. Nothing was left behind.
    NoSpace,
    /// A size outside what is possible. Nothing was left behind.
    OutOfRange,
    /// The object's state forbids it: in use, mounted, has dependants. Nothing was changed.
    FailedPrecondition,
    /// Another call is working on this very object. Try again.
    Pending,
    /// The truth cannot be told now (node not connected, report failed, VG missing or partial), or
    /// work may still be going on. Try again; nothing may be concluded from it.
    Unavailable,
    /// A list token that this driver did not give out. CSI wants ABORTED for it.
    BadToken,
    /// Not offered by this driver, or not for this kind of volume.
    Unimplemented,
    /// Data is not what it must be; a person has to look. Nothing was changed.
    Damaged,
    /// The host failed us: a program, a system call, LVM itself.
    Host,
}

/// An error with its kind, a sentence and, if there is one, its cause.
#[allow(clippy::error_impl_error, reason = "the crate has one error type; its name says so")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` with a sentence for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// [`ErrorKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::AlreadyExists`].
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::AlreadyExists, message)
    }

    /// [`ErrorKind::NoSpace`].
    pub fn no_space(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NoSpace, message)
    }

    /// [`ErrorKind::OutOfRange`].
    pub fn out_of_range(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::OutOfRange, message)
    }

    /// [`ErrorKind::FailedPrecondition`].
    pub fn failed_precondition(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }

    /// [`ErrorKind::Pending`].
    pub fn pending(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Pending, message)
    }

    /// [`ErrorKind::Unavailable`].
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// [`ErrorKind::Damaged`].
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Damaged, message)
    }

    /// [`ErrorKind::Host`].
    pub fn host(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Host, message)
    }

    /// [`ErrorKind::Unimplemented`].
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unimplemented, message)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// What the caller may do about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence and all its causes, joined by `: `.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

/// Parts of a sentence about many: the first few, and how many more there are. Five thousand nodes
/// may have refused a volume, and an event of Kubernetes has 1 KiB.
#[must_use]
pub fn few(parts: impl ExactSizeIterator<Item = String>, between: &str) -> String {
    const FEW: usize = 5;
    let more = parts.len().saturating_sub(FEW);
    let mut told: Vec<String> = parts.take(FEW).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told.join(between)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| {
            let e: &(dyn std::error::Error + 'static) = e;
            e
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_told_by_the_first_few() {
        let numbers = |n: usize| few((0..n).map(|n| n.to_string()), ", ");
        assert_eq!(numbers(0), "");
        assert_eq!(numbers(5), "0, 1, 2, 3, 4");
        assert_eq!(numbers(5000), "0, 1, 2, 3, 4, and 4995 more");
    }

    #[test]
    fn the_chain_names_every_cause_once() {
        let io = std::io::Error::other("no such device");
        let inner = Error::host("cannot open /dev/dm-3").because(io);
        let outer = Error::unavailable("volume group vg0 cannot be read").because(inner);
        assert_eq!(
            outer.chain(),
            "volume group vg0 cannot be read: cannot open /dev/dm-3: no such device"
        );
        assert_eq!(outer.to_string(), "volume group vg0 cannot be read");
        assert_eq!(outer.kind(), ErrorKind::Unavailable);
    }
}
