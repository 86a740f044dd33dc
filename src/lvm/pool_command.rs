//! The argument lists of the changes that are about thin pools. Pure.

use super::args::{Args, Log};
use super::change::{Range, Target};
use super::command;
use super::tag::{Kind, OWNED};
use crate::host::invocation::Invocation;
use crate::names::LvName;
use crate::units::{Bytes, Extents};

/// Makes a pool on plain extents.
pub(super) fn create(
    target: &Target,
    lv: &LvName,
    extents: Extents,
    metadata: Extents,
    chunk_size: Bytes,
) -> Invocation {
    let tags = [OWNED.to_owned(), Kind::Pool.tag().to_owned()];
    let metadata = target.extent_size.size_of(metadata).get();
    let options = [
        ("--type", "thin-pool".to_owned()),
        ("--zero", "y".to_owned()),
        ("--chunksize", format!("{}b", chunk_size.get())),
        ("--poolmetadatasize", format!("{metadata}b")),
        ("--poolmetadataspare", "y".to_owned()),
        ("--extents", extents.get().to_string()),
    ];
    let options: Vec<&str> = options.iter().flat_map(|(k, v)| [*k, v.as_str()]).collect();
    command::create(target, lv, &tags, target.vg.as_str(), &options)
}

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
