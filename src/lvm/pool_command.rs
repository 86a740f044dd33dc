//! The argument lists of the changes that are about thin pools. Pure.

use super::args::{Args, Log};
use super::change::{Range, Target};
use crate::host::invocation::Invocation;
use crate::names::{LvName, LvmUuid};
use crate::units::Bytes;

/// Makes two LVs a pool.
pub(super) fn convert(
    target: &Target,
    lv: &LvName,
    metadata: &LvName,
    chunk_size: Bytes,
) -> Invocation {
    let full = |lv: &LvName| format!("{}/{lv}", target.vg);
    Args::on(target, "lvconvert", Log::Json)
        .with(&["--type", "thin-pool", "--zero", "y"])
        .with(&["--chunksize", &format!("{}b", chunk_size.get())])
        .with(&["--poolmetadataspare", "y", "--poolmetadata", &full(metadata), &full(lv)])
        .change()
}

/// Removes what has no tags, and nobody has open or has made a volume in: LVM would remove the volumes with it.
pub(super) fn remove_unfinished(target: &Target, lv: &LvmUuid) -> Invocation {
    let vg = &target.uuid;
    let proof = format!(
        "vg_uuid=\"{vg}\" && lv_uuid=\"{lv}\" && lv_tags=\"\" && lv_attr!~\"^[oO]\" && lv_attr!~\"^.....o\" && (thin_count=0 || thin_count=undefined)"
    );
    Args::on(target, "lvremove", Log::Plain)
        .with(&["--select", &proof, target.vg.as_str()])
        .change()
}

/// Makes a pool's metadata larger.
pub(super) fn extend_metadata(
    target: &Target,
    lv: &LvName,
    size: Bytes,
    from: &[Range],
) -> Invocation {
    let from: Vec<String> = from.iter().map(Range::argument).collect();
    Args::on(target, "lvextend", Log::Json)
        .with(&["--poolmetadatasize", &format!("{}b", size.get())])
        .with(&[&format!("{}/{lv}", target.vg)])
        .with(&from.iter().map(String::as_str).collect::<Vec<_>>())
        .change()
}
