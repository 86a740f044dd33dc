//! Wire types of Cinderblock: CSI 1.13, the kubelet's plugin registration, the protocol between
//! controller and node agent, and what the command line asks of a controller.
//!
//! Everything is generated from the files in `protos/`, whose text is our own. The tests hold it to
//! the facts of the originals.
//!
//! # Secrets
//!
//! No message prints a secret with `Debug`. A field with the option `csi_secret` shows as
//! `<redacted, 2 keys>`: neither keys nor values, in whatever message and however deep it lies.
//! That comes from the option alone, so a new secret field needs nothing but the option.

#[cfg(test)]
mod redaction_tests;

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code: prost and tonic decide how it looks"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
    include!(concat!(env!("OUT_DIR"), "/debug.rs"));

    #[cfg(test)]
    pub(crate) const MESSAGES: &[crate::redaction_tests::Formatter] = {
        use crate::redaction_tests::format_as;
        include!(concat!(env!("OUT_DIR"), "/messages.rs"))
    };
}

pub use generated::cinderblock::{agent, operator};
pub use generated::{csi, pluginregistration};

/// The descriptors of all messages and services, with all that they import: a `FileDescriptorSet`,
/// encoded, without comments. gRPC reflection and the tests read it.
pub static FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
