//! OCI image archives, written without a container engine: the same input always gives the same bytes. Nothing here knows what the images are for.

mod image;
mod layer;

pub use image::{Image, Written, inspect};
pub use layer::Layer;

use ring::digest::{Context as Hasher, SHA256};

/// The time that all files in an image get: `SOURCE_DATE_EPOCH` when it is set, else 0.
fn epoch() -> u64 {
    std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// `sha256:` and the hexadecimal digits.
fn digest_of(hasher: Hasher) -> String {
    format!("sha256:{}", crate::hex(hasher.finish().as_ref()))
}

fn digest(bytes: &[u8]) -> String {
    let mut hasher = Hasher::new(&SHA256);
    hasher.update(bytes);
    digest_of(hasher)
}
