//! LVM tags as the database: what we know of an LV beside what LVM itself knows. Tags are typed,
//! short (they cost room in the VG's metadata) and few; unknown ones are kept as they are.
//!
//! `cinderblock=1` marks an LV as ours and names the version of this schema. All other tags of
//! ours are `cb.<key>` or `cb.<key>=<value>`. Characters that LVM does not take are written `#XX`.

use std::fmt;

use crate::names::{CsiName, LvName};
use crate::units::Bytes;

/// The tag that makes an LV ours, with the schema version that this program writes.
pub const OWNED: &str = "cinderblock=1";

/// The longest tag that LVM takes, in bytes (lvm(8)).
const TAG_MAX: usize = 1024;

/// What an LV of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A thin pool that we made.
    Pool,
    /// Extents for a thick block volume, zeroed before it gets them.
    Growth,
    /// What a source held at one instant, while a volume is being copied from it.
    Image,
}

/// What has to be done before the volume's device is first given to anybody. Dropped right before
/// that, and never set again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Born blank: a filesystem has to be made, or the device of a thick block volume zeroed.
    Fresh,
    /// Born from a source: its filesystem needs a UUID of its own.
    Restored,
    /// Its content is being copied from its source, and not complete.
    Copying,
}

/// How a volume is used, as it was asked for at its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    /// As a raw block device: its content is the user's from the first to the last byte.
    Block,
    /// With this filesystem.
    Filesystem(FsType),
}

/// The filesystems that we make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FsType {
    /// ext4, the default.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
}

/// How a deleted volume is cleared before its extents are free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wipe {
    /// Its disks are told that nobody needs the blocks any more.
    Discard,
    /// It is overwritten with zeroes.
    Zero,
}

/// Where the content of a volume or snapshot came from, in the same VG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A volume.
    Volume(LvName),
    /// A snapshot.
    Snapshot(LvName),
}

/// The claim that a volume was made for, for people who read `lvs -o+tags`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
}

/// All tags of one LV.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    /// Schema version when the LV is ours.
    pub owned: Option<u32>,
    /// What it is for.
    pub kind: Option<Kind>,
    /// The CO's name, where the LV's name differs from it.
    pub name: Option<CsiName>,
    /// What has to be done before first use.
    pub pending: Option<Pending>,
    /// Where its content came from. A snapshot always has one.
    pub source: Option<Source>,
    /// How the volume is used.
    pub usage: Option<Usage>,
    /// The size that a volume is born with, where making it takes more than one step.
    pub born_bytes: Option<Bytes>,
    /// How much of it is copied from its source already, from its start.
    pub copied_bytes: Option<Bytes>,
    /// How it is cleared when it is deleted. `None`: not at all.
    pub wipe: Option<Wipe>,
    /// How much of it is cleared already, from its start.
    pub wiped_bytes: Option<Bytes>,
    /// Whether its filesystem hides what the disks of a thick volume held before it: copied from one
    /// that was never zeroed, or from a copy of that.
    pub hides: bool,
    /// Whether it is encrypted with LUKS2, with room for its header before what its user sees.
    pub luks: bool,
    /// The claim it was made for.
    pub claim: Option<Claim>,
    /// Tags that this version does not know, in LVM's order.
    pub others: Vec<String>,
}

impl FsType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// The name that mount(2), mkfs and Kubernetes use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// By its name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fs| fs.as_str() == text)
    }

    /// The smallest volume on which its mkfs works with our options.
    #[must_use]
    pub const fn minimum(self) -> Bytes {
        match self {
            // mke2fs works on less, but leaves no room worth a journal.
            Self::Ext4 => Bytes::mib(8),
            // mkfs.xfs refuses less than 300 MB since xfsprogs 5.19.
            Self::Xfs => Bytes::mib(300),
            // mkfs.btrfs: 109 MiB with separate metadata profiles, rounded up.
            Self::Btrfs => Bytes::mib(128),
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Usage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Filesystem(fs) => fs.as_str(),
        }
    }

    /// By the name that its tag has.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == "block" { Some(Self::Block) } else { FsType::parse(text).map(Self::Filesystem) }
    }
}

impl Wipe {
    /// The name that a StorageClass and its tag have.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Discard => "discard",
            Self::Zero => "zero",
        }
    }

    /// By its name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Discard, Self::Zero].into_iter().find(|wipe| wipe.as_str() == text)
    }
}

impl fmt::Display for Wipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Source {
    /// The LV it names.
    #[must_use]
    pub const fn lv(&self) -> &LvName {
        match self {
            Self::Volume(lv) | Self::Snapshot(lv) => lv,
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Volume(lv) => format!("v:{lv}"),
            Self::Snapshot(lv) => format!("s:{lv}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, lv) = text.split_once(':')?;
        let lv = LvName::parse(lv).ok()?;
        match kind {
            "v" => Some(Self::Volume(lv)),
            "s" => Some(Self::Snapshot(lv)),
            _ => None,
        }
    }
}

impl Claim {
    fn print(&self) -> String {
        format!("{}/{}", escape(&self.namespace), escape(&self.name))
    }

    fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        Some(Self { namespace: unescape(namespace)?, name: unescape(name)? })
    }
}

impl Tags {
    /// Reads the tags of one LV. Never fails: what is not understood is kept among the others.
    pub fn parse<'a>(raw: impl IntoIterator<Item = &'a str>) -> Self {
        let mut tags = Self::default();
        for tag in raw {
            if tags.take(tag).is_none() {
                tags.others.push(tag.to_owned());
            }
        }
        tags
    }

    fn take(&mut self, tag: &str) -> Option<()> {
        if let Some(version) = tag.strip_prefix("cinderblock=") {
            return set(&mut self.owned, version.parse().ok());
        }
        let body = tag.strip_prefix("cb.")?;
        let (key, value) = body.split_once('=').unwrap_or((body, ""));
        match key {
            "volume" if value.is_empty() => set(&mut self.kind, Some(Kind::Volume)),
            "snapshot" if value.is_empty() => set(&mut self.kind, Some(Kind::Snapshot)),
            "pool" if value.is_empty() => set(&mut self.kind, Some(Kind::Pool)),
            "growth" if value.is_empty() => set(&mut self.kind, Some(Kind::Growth)),
            "image" if value.is_empty() => set(&mut self.kind, Some(Kind::Image)),
            "fresh" if value.is_empty() => set(&mut self.pending, Some(Pending::Fresh)),
            "restored" if value.is_empty() => set(&mut self.pending, Some(Pending::Restored)),
            "copy" if value.is_empty() => set(&mut self.pending, Some(Pending::Copying)),
            "name" => set(&mut self.name, unescape(value).and_then(|n| CsiName::parse(&n).ok())),
            "src" => set(&mut self.source, Source::parse(value)),
            "use" => set(&mut self.usage, Usage::parse(value)),
            "born" => set(&mut self.born_bytes, value.parse().ok().map(Bytes::new)),
            "copied" => set(&mut self.copied_bytes, value.parse().ok().map(Bytes::new)),
            "wipe" => set(&mut self.wipe, Wipe::parse(value)),
            "wiped" => set(&mut self.wiped_bytes, value.parse().ok().map(Bytes::new)),
            "hides" if value.is_empty() && !self.hides => {
                self.hides = true;
                Some(())
            }
            "luks" if value.is_empty() && !self.luks => {
                self.luks = true;
                Some(())
            }
            "pvc" => set(&mut self.claim, Claim::parse(value)),
            _ => None,
        }
    }

    /// The tags as LVM gets them, ours first.
    #[must_use]
    pub fn print(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(version) = self.owned {
            out.push(format!("cinderblock={version}"));
        }
        out.extend(self.kind.map(|kind| kind.tag().to_owned()));
        out.extend(self.pending.map(|pending| pending.tag().to_owned()));
        out.extend(self.name.as_ref().map(|n| format!("cb.name={}", escape(n.as_str()))));
        out.extend(self.source.as_ref().map(|s| format!("cb.src={}", s.print())));
        out.extend(self.usage.map(|u| format!("cb.use={}", u.as_str())));
        out.extend(self.born_bytes.map(|b| format!("cb.born={}", b.get())));
        out.extend(self.copied_bytes.map(copied_tag));
        out.extend(self.wipe.map(|w| format!("cb.wipe={w}")));
        out.extend(self.wiped_bytes.map(wiped_tag));
        out.extend(self.hides.then(|| "cb.hides".to_owned()));
        out.extend(self.luks.then(|| "cb.luks".to_owned()));
        out.extend(self.claim.as_ref().map(|c| format!("cb.pvc={}", c.print())));
        out.extend(self.others.iter().cloned());
        out.retain(|tag| tag.len() <= TAG_MAX);
        out
    }

    /// Whether the LV is ours, in a schema that this version understands.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.owned == Some(1)
    }
}

impl Kind {
    /// The tag itself.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::Volume => "cb.volume",
            Self::Snapshot => "cb.snapshot",
            Self::Pool => "cb.pool",
            Self::Growth => "cb.growth",
            Self::Image => "cb.image",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Pool => "thin pool",
            Self::Growth => "growth of a volume",
            Self::Image => "source of a copy",
        })
    }
}

impl Pending {
    /// The tag itself.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::Fresh => "cb.fresh",
            Self::Restored => "cb.restored",
            Self::Copying => "cb.copy",
        }
    }
}

/// The tag that says how much of a volume is copied from its source.
#[must_use]
pub fn copied_tag(bytes: Bytes) -> String {
    format!("cb.copied={}", bytes.get())
}

/// The tag that says how much of a deleted volume is cleared.
#[must_use]
pub fn wiped_tag(bytes: Bytes) -> String {
    format!("cb.wiped={}", bytes.get())
}

/// A second tag of the same key is not ours to understand: it stays among the others.
fn set<T>(slot: &mut Option<T>, value: Option<T>) -> Option<()> {
    if slot.is_some() {
        return None;
    }
    *slot = Some(value?);
    Some(())
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('#');
            let digit =
                |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0').to_ascii_uppercase();
            out.extend([digit(byte >> 4), digit(byte & 15)]);
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'#' {
            let hex = [rest.next()?, rest.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full() -> Tags {
        Tags {
            owned: Some(1),
            kind: Some(Kind::Volume),
            name: Some(CsiName::parse("data für alle").unwrap()),
            pending: Some(Pending::Restored),
            source: Some(Source::Snapshot(LvName::parse("snap-1").unwrap())),
            usage: Some(Usage::Filesystem(FsType::Xfs)),
            born_bytes: Some(Bytes::gib(2)),
            copied_bytes: Some(Bytes::mib(3)),
            wipe: Some(Wipe::Discard),
            wiped_bytes: Some(Bytes::gib(1)),
            hides: true,
            luks: true,
            claim: Some(Claim { namespace: "db".to_owned(), name: "data-0".to_owned() }),
            others: vec!["backup=daily".to_owned()],
        }
    }

    #[test]
    fn tags_as_an_admin_reads_them() {
        assert_eq!(
            full().print(),
            [
                "cinderblock=1",
                "cb.volume",
                "cb.restored",
                "cb.name=data#20f#C3#BCr#20alle",
                "cb.src=s:snap-1",
                "cb.use=xfs",
                "cb.born=2147483648",
                "cb.copied=3145728",
                "cb.wipe=discard",
                "cb.wiped=1073741824",
                "cb.hides",
                "cb.luks",
                "cb.pvc=db/data-0",
                "backup=daily",
            ]
        );
    }

    #[test]
    fn unknown_and_doubled_tags_are_kept() {
        let raw = ["cinderblock=1", "cb.later=x", "cb.fresh", "cb.fresh=1", "cb.restored", "mine"];
        let tags = Tags::parse(raw);
        assert_eq!(tags.pending, Some(Pending::Fresh));
        assert_eq!(tags.others, ["cb.later=x", "cb.fresh=1", "cb.restored", "mine"]);
        assert_eq!(tags.print().len(), raw.len());
    }

    #[test]
    fn ours_only_in_a_schema_that_we_understand() {
        assert!(Tags::parse(["cinderblock=1"]).is_ours());
        assert!(!Tags::parse(["cinderblock=2"]).is_ours());
        assert!(!Tags::parse(["cb.volume", "cinderblock"]).is_ours());
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(raw in proptest::collection::vec("(cb\\.|cinderblock=)?[a-z]{0,8}(=[a-zA-Z0-9#:/.]{0,12})?", 0..8)) {
            let tags = Tags::parse(raw.iter().map(String::as_str));
            let printed = tags.print();
            prop_assert_eq!(&Tags::parse(printed.iter().map(String::as_str)), &tags);
        }

        #[test]
        fn any_name_survives(name in "\\PC{1,40}") {
            if let Ok(name) = CsiName::parse(&name) {
                let tags = Tags { owned: Some(1), name: Some(name), ..Tags::default() };
                let printed = tags.print();
                prop_assert!(printed.iter().all(|t| t.bytes().all(|c| c.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&c))));
                prop_assert_eq!(Tags::parse(printed.iter().map(String::as_str)), tags);
            }
        }
    }
}
