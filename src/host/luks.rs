//! LUKS2: its header as bytes on a device, and what cryptsetup is told. Pure: argument lists, what
//! its exit codes mean, and facts read from bytes.
//!
//! Keys come to cryptsetup by its standard input and nowhere else. A key is one line of text, so
//! that two of them can come one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::dm::DmDevice;
use super::invocation::{Effect, Input, Invocation, Program};
use super::runner::{Completed, Exit};
use crate::lvm::state::LUKS_HEADER;
use crate::secret::Secret;
use crate::units::Bytes;

/// What the device-mapper uuids of decrypted devices begin with.
pub const UUID_PREFIX: &str = "CRYPT-LUKS2-";

/// What a header with all its key slots takes, of which there are sixteen.
pub const HEADER: Bytes = Bytes::mib(4);
/// Where the copy of the header begins: half way to the data.
pub const COPY_AT: u64 = LUKS_HEADER.get() / 2;
/// One copy of the header's description (`--luks2-metadata-size`); two of them begin a header.
const METADATA: usize = 16 << 10;
/// How much of a device to read for [`parse`].
pub const HEAD_BYTES: u64 = 32 << 10;
/// Key slots that fit into [`HEADER`].
const SLOTS: u32 = 16;
/// Trying a passphrase takes a second on purpose, for each key slot.
const TEST_TIMEOUT: Duration = Duration::from_mins(3);
/// The type of our tokens.
const TOKEN: &str = "cinderblock";

const MAGIC: [&[u8]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
const AT_SIZE: usize = 8;
const AT_SEQID: usize = 16;
const AT_UUID: usize = 168;
const AT_CHECKSUM: usize = 448;
const CHECKSUM: usize = 64;
const BINARY: usize = 4096;

/// What is at the beginning of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// No LUKS header.
    None,
    /// A LUKS header that is not whole, with its UUID where that can be read.
    Damaged(Option<Uuid>),
    /// A LUKS2 header.
    Header(Header),
}

/// What a LUKS2 header says of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Its UUID.
    pub uuid: Uuid,
    /// The key slots in use.
    pub slots: BTreeSet<u32>,
    /// Wrapped keys, by their token's number.
    pub tokens: BTreeMap<u32, Token>,
}

/// A volume's key, wrapped by a master key. Stands in the header itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    #[serde(rename = "type")]
    kind: String,
    /// Always empty: cryptsetup shall neither use nor follow it.
    keyslots: Vec<String>,
    /// The UUID of the header that the key was made for.
    pub uuid: Uuid,
    /// The key slot that the key opens.
    pub slot: u32,
    /// What the wrapping began with, in hexadecimal digits.
    pub nonce: String,
    /// The key, encrypted, in hexadecimal digits.
    pub key: String,
}

impl Token {
    /// A token.
    #[must_use]
    pub fn new(uuid: Uuid, slot: u32, nonce: String, key: String) -> Self {
        Self { kind: TOKEN.to_owned(), keyslots: vec![], uuid, slot, nonce, key }
    }
}

impl Header {
    /// A key slot that nothing is in and no key is meant for.
    #[must_use]
    pub fn free_slot(&self) -> Option<u32> {
        let meant = |slot: &u32| self.tokens.values().any(|token| token.slot == *slot);
        (0..SLOTS).find(|slot| !self.slots.contains(slot) && !meant(slot))
    }
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    keyslots: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    tokens: BTreeMap<String, serde_json::Value>,
}

/// What the first [`HEAD_BYTES`] of a device say.
#[must_use]
pub fn parse(head: &[u8]) -> Head {
    let (one, two) = head.split_at_checked(METADATA).unwrap_or((head, &[]));
    let copies = [copy(one, MAGIC[0]), copy(two, MAGIC[1])];
    let whole = copies.iter().flatten().filter_map(|copy| copy.whole.clone());
    if let Some((_, header)) = whole.max_by_key(|(seqid, _)| *seqid) {
        return Head::Header(header);
    }
    match copies.into_iter().flatten().next() {
        Some(copy) => Head::Damaged(copy.uuid),
        None => Head::None,
    }
}

struct Copy {
    uuid: Option<Uuid>,
    whole: Option<(u64, Header)>,
}

fn copy(bytes: &[u8], magic: &[u8]) -> Option<Copy> {
    bytes.starts_with(magic).then(|| {
        let text = bytes.get(AT_UUID..).and_then(|b| b.split(|c| *c == 0).next());
        let uuid = text.and_then(|t| Uuid::try_parse_ascii(t).ok());
        Copy { uuid, whole: uuid.and_then(|uuid| whole(bytes, uuid)) }
    })
}

fn whole(bytes: &[u8], uuid: Uuid) -> Option<(u64, Header)> {
    let number = |at| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    if bytes.get(6..8)? != [0, 2] || number(AT_SIZE)? != u64::try_from(METADATA).ok()? {
        return None;
    }
    let stored = bytes.get(AT_CHECKSUM..)?.get(..32)?;
    if checksum(bytes)? != stored {
        return None;
    }
    let json = bytes.get(BINARY..)?.split(|c| *c == 0).next()?;
    let metadata: Metadata = serde_json::from_slice(json).ok()?;
    let ours = |(id, token): (&String, &serde_json::Value)| {
        let token: Token = serde_json::from_value(token.clone()).ok()?;
        (token.kind == TOKEN).then_some((id.parse().ok()?, token))
    };
    let header = Header {
        uuid,
        slots: metadata.keyslots.keys().filter_map(|slot| slot.parse().ok()).collect(),
        tokens: metadata.tokens.iter().filter_map(ours).collect(),
    };
    Some((number(AT_SEQID)?, header))
}

fn checksum(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.get(..METADATA)?.to_vec();
    bytes.get_mut(AT_CHECKSUM..)?.get_mut(..CHECKSUM)?.fill(0);
    Some(digest(&SHA256, &bytes).as_ref().to_vec())
}

/// How a key is made slow to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// A person may have thought of it: Argon2 with 64 MiB, which fits into the node's pod many times.
    Passphrase,
    /// It is 256 random bits, and nobody guesses it.
    Random,
}

impl Stretch {
    const fn args(self) -> &'static [&'static str] {
        match self {
            // Fixed, and not by a benchmark: the node that opens it may be busier than this one.
            Self::Passphrase => &[
                "--pbkdf",
                "argon2id",
                "--pbkdf-memory",
                "65536",
                "--pbkdf-parallel",
                "1",
                "--pbkdf-force-iterations",
                "4",
            ],
            Self::Random => &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
        }
    }
}

/// Makes a LUKS2 header on a device, with this key in slot 0. Whatever is there is lost.
#[must_use]
pub fn format(device: &Path, uuid: Uuid, key: &Secret, stretch: Stretch) -> Invocation {
    let keyslots = HEADER.saturating_sub(Bytes::new(HEAD_BYTES)).get().to_string();
    let offset = (LUKS_HEADER.get() / 512).to_string();
    let (uuid, device) = (uuid.to_string(), device.to_string_lossy());
    let mut args = vec!["luksFormat", "--batch-mode", "--type", "luks2", "--uuid", &uuid];
    args.extend(["--cipher", "aes-xts-plain64", "--key-size", "512", "--hash", "sha256"]);
    args.extend_from_slice(stretch.args());
    // As every other volume has them, whatever the disk's are: a copy may lie on other disks.
    args.extend(["--sector-size", "512", "--offset", &offset]);
    args.extend(["--luks2-metadata-size", "16k", "--luks2-keyslots-size", &keyslots]);
    args.extend(["--key-file", "-", &device]);
    change(&args, Some(key.clone()))
}

/// Makes the decrypted device. What its user discards is discarded below as well. Its key stands in
/// the kernel's table of the device and not in a keyring, so that growing it takes no Secret.
#[must_use]
pub fn open(device: &Path, name: &str, key: &Secret, slot: Option<u32>) -> Invocation {
    let device = device.to_string_lossy();
    let mut args = vec!["open", "--batch-mode", "--type", "luks2", "--allow-discards"];
    args.push("--disable-keyring");
    let slot = slot.map(|slot| slot.to_string());
    args.extend(slot.iter().flat_map(|slot| ["--key-slot", slot]));
    args.extend(["--key-file", "-", &device, name]);
    change(&args, Some(key.clone()))
}

/// Asks which slot a key opens.
#[must_use]
pub fn test(device: &Path, key: &Secret, slot: Option<u32>) -> Invocation {
    let device = device.to_string_lossy();
    let mut args = vec!["open", "--batch-mode", "--verbose", "--type", "luks2"];
    let slot = slot.map(|slot| slot.to_string());
    args.extend(slot.iter().flat_map(|slot| ["--key-slot", slot]));
    args.extend(["--test-passphrase", "--key-file", "-", &device]);
    let args = args.into_iter().map(str::to_owned).collect();
    let effect = Effect::Read(TEST_TIMEOUT);
    Invocation { program: Program::Cryptsetup, args, effect, input: Input::Secret(key.clone()) }
}

/// The slot that [`test()`] found; `None` when the key opens none.
///
/// # Errors
/// When nothing can be concluded, with what it said.
pub fn test_result(done: &Completed) -> Result<Option<u32>, String> {
    match done.exit {
        Exit::Code(0) => {
            let words = done.stdout.lines().find_map(|line| line.trim().strip_prefix("Key slot "));
            let slot = words.and_then(|w| w.split(' ').next()).and_then(|n| n.parse().ok());
            slot.map(Some).ok_or_else(|| format!("it does not name a slot: {}", done.stdout.trim()))
        }
        // cryptsetup(8): 2 is "no permission (bad passphrase)".
        Exit::Code(2) => Ok(None),
        Exit::Code(_) | Exit::Signal(_) => Err(done.complaint()),
    }
}

/// Adds a key in this slot; `opener` is one that opens it already.
#[must_use]
pub fn add_key(
    device: &Path,
    opener: &Secret,
    key: &Secret,
    slot: u32,
    stretch: Stretch,
) -> Invocation {
    let (slot, device) = (slot.to_string(), device.to_string_lossy());
    let mut args = vec!["luksAddKey", "--batch-mode", "--key-slot", &slot];
    args.extend_from_slice(stretch.args());
    args.push(&device);
    change(&args, Some(Secret::lines(&[opener, key])))
}

/// Destroys the key in a slot.
#[must_use]
pub fn kill_slot(device: &Path, slot: u32) -> Invocation {
    let (slot, device) = (slot.to_string(), device.to_string_lossy());
    change(&["luksKillSlot", "--batch-mode", &device, &slot], None)
}

/// Writes a token into the header.
///
/// # Errors
/// Never for a token that was made by us.
pub fn import_token(device: &Path, token: &Token) -> Result<Invocation, serde_json::Error> {
    let (json, device) = (serde_json::to_vec(token)?, device.to_string_lossy());
    let args = ["token", "import", "--batch-mode", "--json-file", "-", &device];
    Ok(change(&args, Some(Secret::new(json))))
}

/// Takes a token out of the header.
#[must_use]
pub fn remove_token(device: &Path, id: u32) -> Invocation {
    let (id, device) = (id.to_string(), device.to_string_lossy());
    change(&["token", "remove", "--batch-mode", "--token-id", &id, &device], None)
}

/// Gives the header another UUID.
#[must_use]
pub fn set_uuid(device: &Path, uuid: Uuid) -> Invocation {
    let (uuid, device) = (uuid.to_string(), device.to_string_lossy());
    change(&["luksUUID", "--batch-mode", "--uuid", &uuid, &device], None)
}

/// Makes the decrypted device as large as what is below it. One that somebody has opened with its key
/// in a keyring takes the key once more.
#[must_use]
pub fn resize(name: &str, key: Option<&Secret>) -> Invocation {
    let mut args = vec!["resize", "--batch-mode", "--disable-keyring"];
    if key.is_some() {
        args = vec!["resize", "--batch-mode", "--key-file", "-"];
    }
    args.push(name);
    change(&args, key.cloned())
}

/// Takes the decrypted device away.
#[must_use]
pub fn close(name: &str) -> Invocation {
    change(&["close", name], None)
}

/// Whether a call that takes a key says that it is the wrong one.
#[must_use]
pub fn is_wrong_key(done: &Completed) -> bool {
    done.exit == Exit::Code(2)
}

/// Whether a call says that the device is there already, or in use: also while another cryptsetup is
/// making it, when nobody else sees it yet.
#[must_use]
pub fn is_busy(done: &Completed) -> bool {
    done.exit == Exit::Code(5)
}

/// Whether a device is the decrypted device of that name over the header of that UUID.
#[must_use]
pub fn is_mapping(device: &DmDevice, uuid: Uuid) -> bool {
    device.uuid == mapping_uuid(&device.name, uuid)
}

/// The uuid that cryptsetup gives to a decrypted device.
#[must_use]
pub fn mapping_uuid(name: &str, uuid: Uuid) -> String {
    format!("{UUID_PREFIX}{}-{name}", uuid.simple())
}

fn change(args: &[&str], input: Option<Secret>) -> Invocation {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let input = input.map_or(Input::Nothing, Input::Secret);
    Invocation { program: Program::Cryptsetup, args, effect: Effect::Change, input }
}

/// A header as cryptsetup would leave it, for tests and for the simulation.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn print(header: &Header) -> Vec<u8> {
    let slots: BTreeMap<_, _> =
        header.slots.iter().map(|slot| (slot.to_string(), serde_json::json!({}))).collect();
    let tokens: BTreeMap<_, _> = header.tokens.iter().map(|(id, t)| (id.to_string(), t)).collect();
    let json = serde_json::json!({ "keyslots": slots, "tokens": tokens }).to_string();
    with_description(header.uuid, json.as_bytes())
}

/// A header whose checksums are right, whatever it says.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn with_description(uuid: Uuid, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for magic in MAGIC {
        let mut bytes = vec![0; METADATA];
        let mut put = |at: usize, what: &[u8]| {
            if let Some(room) = bytes.get_mut(at..).and_then(|b| b.get_mut(..what.len())) {
                room.copy_from_slice(what);
            }
        };
        put(0, magic);
        put(6, &[0, 2]);
        put(AT_SIZE, &(16_u64 << 10).to_be_bytes());
        put(AT_SEQID, &3_u64.to_be_bytes());
        put(AT_UUID, uuid.to_string().as_bytes());
        put(BINARY, json);
        let sum = checksum(&bytes).unwrap_or_default();
        if let Some(room) = bytes.get_mut(AT_CHECKSUM..).and_then(|b| b.get_mut(..sum.len())) {
            room.copy_from_slice(&sum);
        }
        out.extend(bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let uuid = Uuid::from_u128(7);
        let token = Token::new(uuid, 1, "0a".to_owned(), "0b".to_owned());
        Header { uuid, slots: [0, 1].into(), tokens: [(0, token)].into() }
    }

    #[test]
    fn argument_lists() {
        let device = Path::new("/dev/mapper/vg0-pvc--1");
        let (old, new) = (Secret::new(b"old key".to_vec()), Secret::new(b"new key".to_vec()));
        let uuid = Uuid::from_u128(7);
        let token = Token::new(uuid, 1, "0a".to_owned(), "0b".to_owned());
        let calls = [
            format(device, uuid, &new, Stretch::Random),
            format(device, uuid, &new, Stretch::Passphrase),
            open(device, "cb-crypt-1", &new, Some(3)),
            test(device, &new, None),
            add_key(device, &old, &new, 1, Stretch::Random),
            kill_slot(device, 0),
            import_token(device, &token).unwrap(),
            remove_token(device, 2),
            set_uuid(device, uuid),
            resize("cb-crypt-1", None),
            resize("cb-crypt-1", Some(&new)),
            close("cb-crypt-1"),
        ];
        let lines: Vec<_> = calls.iter().map(ToString::to_string).collect();
        assert!(!format!("{calls:?}").contains("new key"));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn either_copy_of_a_header_will_do_and_none_that_is_not_whole() {
        let good = print(&header());
        assert_eq!(parse(&good), Head::Header(header()));
        let mut first_broken = good.clone();
        first_broken[5000] ^= 1;
        assert_eq!(parse(&first_broken), Head::Header(header()));
        let mut both = first_broken.clone();
        both[METADATA + 5000] ^= 1;
        assert_eq!(parse(&both), Head::Damaged(Some(Uuid::from_u128(7))));
        first_broken[..METADATA].fill(0);
        assert_eq!(parse(&first_broken), Head::Header(header()));
        assert_eq!(parse(&vec![0; 32 << 10]), Head::None);
        for len in [0, 5, 6, 100, 5000, METADATA + 3] {
            assert!(!matches!(parse(&good[..len]), Head::Header(_)) || len > METADATA, "{len}");
        }
    }

    #[test]
    fn the_newer_copy_counts() {
        let mut newer = header();
        newer.slots = [1].into();
        let mut bytes = print(&newer);
        bytes[METADATA..].copy_from_slice(&print(&header())[METADATA..]);
        bytes[AT_SEQID + 7] = 9;
        let sum = checksum(&bytes[..METADATA]).unwrap();
        bytes[AT_CHECKSUM..AT_CHECKSUM + 32].copy_from_slice(&sum);
        assert_eq!(parse(&bytes), Head::Header(newer));
    }

    #[test]
    fn a_slot_that_a_key_is_meant_for_is_not_free() {
        let mut header = header();
        assert_eq!(header.free_slot(), Some(2));
        header.slots = [0].into();
        assert_eq!(header.free_slot(), Some(2));
        header.slots = (0..SLOTS).collect();
        assert_eq!(header.free_slot(), None);
    }

    #[test]
    fn what_a_tried_key_opens() {
        let done = |code, stdout: &str| Completed {
            exit: Exit::Code(code),
            stdout: stdout.to_owned(),
            stderr: String::new(),
        };
        let said = "No usable token is available.\nKey slot 3 unlocked.\nCommand successful.\n";
        assert_eq!(test_result(&done(0, said)), Ok(Some(3)));
        assert_eq!(test_result(&done(2, "")), Ok(None));
        assert!(test_result(&done(0, "")).is_err() && test_result(&done(1, "")).is_err());
    }
}
