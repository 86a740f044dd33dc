//! Every parser of what comes from outside, as fuzzers and tests feed them: bytes in, no panic, and
//! what is understood can be printed and read again. Only in tests.
//!
//! `cargo xtask fuzz` runs them with LLVM's fuzzer, from the corpus in `fuzz/corpus`; the tests below feed
//! them the same corpus, and mutations of it, with the stable compiler. A parser more is a line in the
//! table and a folder with a seed.

#![allow(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "tests: what does not hold shall be seen"
)]

mod programs;
mod wire;

use std::collections::BTreeMap;
use std::hint::black_box;

use crate::config::Config;
use crate::domain::Secrets;
use crate::host::mountinfo::MountTable;
use crate::host::{superblock, xfs_log};
use crate::lvm::label::{self, AreaHeader, PvLabel};
use crate::lvm::tag::Tags;
use crate::lvm::{metadata, report, text};
use crate::names::{
    BackendName, CsiName, Handle, LvName, LvmUuid, NameError, NodeName, VgName, dm_name,
};
use crate::units::parse_quantity;

/// That of btrfs.
const BTRFS_CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// A parser to feed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus's folder.
    pub name: &'static str,
    /// Feeds it, and checks what it says.
    pub run: fn(&[u8]),
}

/// All of them.
pub static TARGETS: &[Target] = &[
    Target { name: "config", run: config },
    Target { name: "csi_request", run: wire::csi_request },
    Target { name: "keys", run: keys },
    Target { name: "link_failure", run: wire::link_failure },
    Target { name: "link_greeting", run: wire::link_greeting },
    Target { name: "link_inventory", run: wire::link_inventory },
    Target { name: "link_request", run: wire::link_request },
    Target { name: "lvm_label", run: lvm_label },
    Target { name: "lvm_metadata", run: lvm_metadata },
    Target { name: "lvm_report", run: lvm_report },
    Target { name: "lvm_tags", run: lvm_tags },
    Target { name: "luks_header", run: programs::luks_header },
    Target { name: "kernel_status", run: programs::kernel_status },
    Target { name: "mountinfo", run: mountinfo },
    Target { name: "names", run: names },
    Target { name: "program_output", run: programs::output },
    Target { name: "superblock", run: superblock },
];

/// One of them by its name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// As the agent reads what programs say.
fn as_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn config(bytes: &[u8]) {
    let text = as_text(bytes);
    if let Ok(config) = Config::parse(&text) {
        assert!(config.backends().count() <= crate::config::BACKENDS_MAX);
    }
    drop(parse_quantity(&text));
}

/// Lines of a Secret: key and value in turns.
fn keys(bytes: &[u8]) {
    let text = as_text(bytes);
    let lines: Vec<&str> = text.split('\n').collect();
    let entry = |pair: &[&str]| match pair {
        [key, value] => ((*key).to_owned(), (*value).to_owned()),
        rest => (rest.concat(), String::new()),
    };
    let secrets = Secrets::new(lines.chunks(2).map(entry));
    drop(secrets.keys("csi.storage.k8s.io/node-stage-secret"));
}

/// The beginning of a disk: a label, and an area's header behind it. Their checksums are put right, or
/// nothing but the checksum would ever be tested.
fn lvm_label(bytes: &[u8]) {
    drop(PvLabel::parse(bytes));
    let mut head = bytes.to_vec();
    for sector in head.chunks_exact_mut(512).take(4).filter(|s| s.starts_with(b"LABELONE")) {
        let sum = label::crc(sector.get(20..).unwrap_or_default());
        put(sector, 16, sum);
    }
    drop(PvLabel::parse(&head));
    let Some(area) = head.get_mut(2048..2560).or(None) else { return };
    let sum = label::crc(area.get(4..).unwrap_or_default());
    put(area, 0, sum);
    let offset = area.get(24..).and_then(<[u8]>::first_chunk).map(|b| u64::from_le_bytes(*b));
    let Ok(header) = AreaHeader::parse(offset.unwrap_or_default(), area) else { return };
    let Some(at) = header.committed else { return };
    let pieces = header.pieces(at);
    let len = pieces.iter().map(|(_, len)| *len).fold(0, u64::saturating_add);
    assert_eq!(len, at.fingerprint().0, "the pieces are the text: {pieces:?}");
    drop(at.text(head.get(2560..).unwrap_or_default()));
}

fn put(into: &mut [u8], at: usize, number: u32) {
    if let Some(room) = into.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *room = number.to_le_bytes();
    }
}

fn lvm_metadata(bytes: &[u8]) {
    let text = as_text(bytes);
    drop(text::parse(&text));
    if let Ok(vg) = metadata::parse(&text, &BTreeMap::new()) {
        // What everybody asks of a volume group.
        drop((vg.free_extents(), vg.size(), vg.is_partial(), vg.devices()));
        for lv in vg.lvs.values() {
            drop((
                lv.csi_name(),
                lv.is_unfinished(),
                lv.payload(),
                vg.cow_snapshots(&lv.name).count(),
            ));
        }
    }
}

fn lvm_report(bytes: &[u8]) {
    let text = as_text(bytes);
    drop(report::parse(&text));
    drop(report::errors_in_log(&text));
}

fn lvm_tags(bytes: &[u8]) {
    let text = as_text(bytes);
    let raw: Vec<&str> = text.split(['\n', ',']).collect();
    let tags = Tags::parse(raw.iter().copied());
    let printed = tags.print();
    // A tag that LVM would not take is not printed.
    if printed.len() == raw.len() {
        let again = Tags::parse(printed.iter().map(String::as_str));
        assert_eq!(again, tags, "{raw:?} was printed as {printed:?}");
    }
}

fn mountinfo(bytes: &[u8]) {
    let table = MountTable::parse(&as_text(bytes));
    for mount in table.iter() {
        assert!(table.at(&mount.target).is_some());
    }
}

/// What was understood is printed as it was read.
fn same<T: ToString>(text: &str, parsed: Result<T, NameError>) -> Option<T> {
    let parsed = parsed.ok()?;
    assert_eq!(parsed.to_string(), text);
    Some(parsed)
}

fn names(bytes: &[u8]) {
    let text = &as_text(bytes);
    let vg = same(text, VgName::parse(text));
    let lv = same(text, LvName::parse(text));
    same(text, BackendName::parse(text));
    same(text, NodeName::parse(text));
    if let (Some(vg), Some(lv)) = (vg, lv) {
        drop(dm_name(&vg, &lv));
    }
    if let Some(handle) = same(text, Handle::parse(text)) {
        assert!(!handle.crypt_name().contains('/'));
    }
    if let Some(uuid) = same(text, LvmUuid::parse(text)) {
        assert_eq!(LvmUuid::from_compact(&uuid.compact()).as_ref(), Ok(&uuid));
        let trash = LvName::trash(&uuid);
        assert_eq!(LvName::parse_new(trash.as_str()).as_ref(), Ok(&trash));
    }
    drop(LvmUuid::from_compact(text));
    if let Some(name) = same(text, CsiName::parse(text)) {
        for lv in [LvName::for_volume(&name), LvName::for_snapshot(&name)] {
            assert_eq!(LvName::parse_new(lv.as_str()).as_ref(), Ok(&lv), "of {name}");
            assert!(lv.as_str().len() <= 63, "{lv}");
        }
        assert_ne!(LvName::for_volume(&name), LvName::for_snapshot(&name));
    }
}

fn superblock(bytes: &[u8]) {
    black_box(superblock::parse(bytes).is_some());
    // Where btrfs has its own.
    let mut head = vec![0; 64 << 10];
    head.extend(bytes);
    black_box(superblock::parse(&head).is_some());
    black_box(superblock::is_btrfs_copy(bytes, 64 << 20));
    black_box(xfs_log::begins_at(bytes));
    black_box(xfs_log::was_cut(bytes, uuid::Uuid::nil(), uuid::Uuid::max()));
    let mut whole = bytes.to_vec();
    let sum = BTRFS_CRC.checksum(bytes.get(32..).unwrap_or_default());
    put(&mut whole, 0, sum);
    let uuid = uuid::Uuid::from_u128(7);
    if let Ok(changed) = superblock::btrfs_with_uuid(&whole, uuid) {
        assert_eq!(changed.len(), bytes.len());
        assert_eq!(superblock::btrfs_with_uuid(&changed, uuid).as_ref(), Ok(&changed));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;

    /// Mutations of each target's corpus. The fuzzer does millions; these see to it that nothing rots.
    const MUTATIONS: usize = 600;
    /// No mutation of a large file takes the time of all others.
    const TIME_MAX: Duration = Duration::from_millis(400);

    fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
        let folder =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
        let entries = std::fs::read_dir(&folder);
        let entries = entries.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
    }

    /// Numbers that look random and are the same each time (xorshift).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 11).unwrap() % bound.max(1)
        }
    }

    /// Bytes changed, cut out, doubled, or taken from another file.
    fn mutate(numbers: &mut Numbers, from: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = from.to_vec();
        for _ in 0..=numbers.below(4) {
            let at = numbers.below(bytes.len());
            let end = (at + numbers.below(64)).min(bytes.len());
            match numbers.below(5) {
                0 if !bytes.is_empty() => bytes[at] = u8::try_from(numbers.below(256)).unwrap(),
                1 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let twice = bytes[at..end].to_vec();
                    bytes.splice(at..at, twice);
                }
                _ if !other.is_empty() => {
                    let from = numbers.below(other.len());
                    let to = (from + numbers.below(64)).min(other.len());
                    bytes.splice(at..end, other[from..to].iter().copied());
                }
                _ => bytes.push(0),
            }
        }
        bytes
    }

    #[test]
    fn every_parser_takes_its_corpus_and_mutations_of_it() {
        for target in TARGETS {
            let corpus = corpus(target);
            assert!(!corpus.is_empty(), "{} has no corpus", target.name);
            for (_, bytes) in &corpus {
                (target.run)(bytes);
            }
            (target.run)(&[]);
            let (mut numbers, begun) = (Numbers(0x9e37_79b9_7f4a_7c15), Instant::now());
            for n in 0..MUTATIONS {
                let (path, from) = &corpus[n % corpus.len()];
                let (_, other) = &corpus[numbers.below(corpus.len())];
                let bytes = mutate(&mut numbers, from, other);
                let run = std::panic::catch_unwind(|| (target.run)(&bytes));
                let bytes = String::from_utf8_lossy(&bytes);
                assert!(run.is_ok(), "{}: of {}: {bytes:?}", target.name, path.display());
                if begun.elapsed() > TIME_MAX {
                    break;
                }
            }
        }
    }

    #[test]
    fn the_corpus_is_of_the_targets_and_small() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut bytes = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let target =
                target(&name).unwrap_or_else(|| panic!("{name} is the corpus of no target"));
            bytes += corpus(target).iter().map(|(_, b)| b.len()).sum::<usize>();
        }
        assert!(bytes < 300 << 10, "the corpus has {bytes} bytes");
    }
}
