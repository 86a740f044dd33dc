//! What is on disks in the world keeps its meaning: recorded tags, read and written as ever.

use std::collections::BTreeSet;

use cinderblock::lvm::tag::{FsType, Kind, Pending, Source, Tags, Usage, Wipe};
use cinderblock::names::{CsiName, LvName};
use cinderblock::units::Bytes;

/// An LV's tags, and what they mean.
fn recorded() -> Vec<(Vec<&'static str>, &'static str)> {
    let lines = include_str!("../recordings/tags-1.txt").lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (tags, meaning) = line.split_once(" => ").unwrap();
            (tags.split(' ').collect(), meaning)
        })
        .collect()
}

/// What the tags of an LV mean to this version. Breaks the build when there is another tag.
fn meaning(tags: &Tags) -> String {
    let Tags {
        owned,
        kind,
        name,
        pending,
        source,
        usage,
        born_bytes,
        copied_bytes,
        wipe,
        wiped_bytes,
        hides,
        luks,
        claim,
        others,
    } = tags;
    let mut words = vec![match owned {
        Some(1) => "ours".to_owned(),
        Some(other) => format!("schema={other}"),
        None => "nobody's".to_owned(),
    }];
    let mut add = |word: &str| words.push(word.to_owned());
    match kind {
        Some(Kind::Volume) => add("volume"),
        Some(Kind::Snapshot) => add("snapshot"),
        Some(Kind::Pool) => add("pool"),
        Some(Kind::Growth) => add("growth"),
        Some(Kind::Image) => add("image"),
        None => {}
    }
    match pending {
        Some(Pending::Fresh) => add("fresh"),
        Some(Pending::Restored) => add("restored"),
        Some(Pending::Copying) => add("copying"),
        None => {}
    }
    if let Some(name) = name {
        add(&format!("name=\"{name}\""));
    }
    match source {
        Some(Source::Volume(lv)) => add(&format!("source=volume:{lv}")),
        Some(Source::Snapshot(lv)) => add(&format!("source=snapshot:{lv}")),
        None => {}
    }
    match usage {
        Some(Usage::Block) => add("use=block"),
        Some(Usage::Filesystem(FsType::Ext4)) => add("use=ext4"),
        Some(Usage::Filesystem(FsType::Xfs)) => add("use=xfs"),
        Some(Usage::Filesystem(FsType::Btrfs)) => add("use=btrfs"),
        None => {}
    }
    for (what, bytes) in [("born", born_bytes), ("copied", copied_bytes)] {
        if let Some(bytes) = bytes {
            add(&format!("{what}={}", bytes.get()));
        }
    }
    match wipe {
        Some(Wipe::Discard) => add("wipe=discard"),
        Some(Wipe::Zero) => add("wipe=zero"),
        None => {}
    }
    if let Some(bytes) = wiped_bytes {
        add(&format!("wiped={}", bytes.get()));
    }
    if *hides {
        add("hides");
    }
    if *luks {
        add("luks");
    }
    if let Some(claim) = claim {
        add(&format!("claim={}/{}", claim.namespace, claim.name));
    }
    for other in others {
        add(&format!("kept={other}"));
    }
    words.join(" ")
}

#[test]
fn what_is_on_disks_means_what_it_meant_and_is_written_as_ever() {
    for (raw, wanted) in recorded() {
        let tags = Tags::parse(raw.iter().copied());
        assert_eq!(meaning(&tags), wanted, "{raw:?}");
        assert_eq!(tags.print(), raw, "as it is written again");
        assert_eq!(tags.is_ours(), wanted.starts_with("ours "), "{raw:?}");
    }
}

/// Who adds a tag, or a value of one, records it.
#[test]
fn all_that_is_written_is_recorded() {
    let lv = || LvName::parse("pvc-0").unwrap();
    let one = |change: &dyn Fn(&mut Tags)| {
        let mut tags = Tags { owned: Some(1), ..Tags::default() };
        change(&mut tags);
        tags.print()
    };
    let mut written = BTreeSet::new();
    let mut write = |change: &dyn Fn(&mut Tags)| written.extend(one(change));
    for kind in [Kind::Volume, Kind::Snapshot, Kind::Pool, Kind::Growth, Kind::Image] {
        write(&|tags| tags.kind = Some(kind));
    }
    for pending in [Pending::Fresh, Pending::Restored, Pending::Copying] {
        write(&|tags| tags.pending = Some(pending));
    }
    for fs in FsType::ALL {
        write(&|tags| tags.usage = Some(Usage::Filesystem(fs)));
    }
    write(&|tags| tags.usage = Some(Usage::Block));
    for wipe in [Wipe::Discard, Wipe::Zero] {
        write(&|tags| tags.wipe = Some(wipe));
    }
    write(&|tags| tags.source = Some(Source::Volume(lv())));
    write(&|tags| (tags.hides, tags.luks) = (true, true));
    let values: [&dyn Fn(&mut Tags); 6] = [
        &|tags| tags.name = Some(CsiName::parse("x").unwrap()),
        &|tags| tags.born_bytes = Some(Bytes::gib(1)),
        &|tags| tags.copied_bytes = Some(Bytes::gib(1)),
        &|tags| tags.wiped_bytes = Some(Bytes::gib(1)),
        &|tags| tags.source = Some(Source::Snapshot(lv())),
        &|tags| {
            let claim = ("db".to_owned(), "x".to_owned());
            tags.claim = Some(cinderblock::lvm::tag::Claim { namespace: claim.0, name: claim.1 });
        },
    ];
    values.into_iter().for_each(&mut write);
    // Of numbers and names, that there is one; of a source, of which kind.
    let shape = |tag: &str| match tag.split_once('=') {
        Some(("cb.src", source)) => format!("cb.src={}", source.split(':').next().unwrap()),
        Some((key @ ("cb.name" | "cb.born" | "cb.copied" | "cb.wiped" | "cb.pvc"), _)) => {
            key.to_owned()
        }
        _ => tag.to_owned(),
    };
    let known: BTreeSet<_> =
        recorded().iter().flat_map(|(tags, _)| tags).map(|t| shape(t)).collect();
    let new: Vec<_> = written.iter().filter(|tag| !known.contains(&shape(tag))).collect();
    assert!(new.is_empty(), "record them in tests/recordings/tags-1.txt: {new:?}");
}
