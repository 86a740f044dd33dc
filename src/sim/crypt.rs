//! cryptsetup: headers on LVs, the keys that open them, and decrypted devices. As the real one, it
//! tells a wrong key by exit code 2, and has no regard for what it formats over.

use std::collections::BTreeMap;
use std::path::Path;

use uuid::Uuid;

use super::world::World;
use crate::host::invocation::{Input, Invocation};
use crate::host::luks::{self, COPY_AT, Header, Token};
use crate::host::runner::{Completed, Exit};
use crate::lvm::state::LUKS_HEADER;
use crate::names::LvmUuid;
use crate::units::Bytes;

/// A LUKS header, and what opens it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimLuks {
    /// What it says.
    pub header: Header,
    /// The keys, by their slots.
    pub keys: BTreeMap<u32, Vec<u8>>,
}

/// A decrypted device.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) lv: LvmUuid,
    pub(super) uuid: String,
    pub(super) minor: u32,
    pub(super) size: Bytes,
    /// Whether its key is where nobody can read it.
    pub(super) keyring: bool,
}

type Outcome = Result<String, (i32, &'static str)>;

const WRONG_KEY: (i32, &str) = (2, "No key available with this passphrase.");
const NO_DEVICE: (i32, &str) = (4, "Device does not exist or access denied.");
const NO_LUKS: (i32, &str) = (1, "Device is not a valid LUKS device.");

/// Whether a call only looks.
pub(super) fn is_read(args: &[String]) -> bool {
    args.iter().any(|arg| arg == "--test-passphrase")
}

/// Runs it.
pub(super) fn run(world: &mut World, call: &Invocation) -> Completed {
    let input = match &call.input {
        Input::Secret(secret) => secret.expose(),
        Input::Nothing | Input::File(_) => &[],
    };
    let (code, stdout, stderr) = match act(world, &call.args, input) {
        Ok(said) => (0, said, ""),
        Err((code, why)) => (code, String::new(), why),
    };
    Completed { exit: Exit::Code(code), stdout, stderr: stderr.to_owned() }
}

fn act(world: &mut World, args: &[String], input: &[u8]) -> Outcome {
    let after = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at.saturating_add(1)).map(String::as_str)
    };
    let from_end = |n: usize| args.iter().rev().nth(n).map(String::as_str).unwrap_or_default();
    let last = from_end(0);
    let slot = after("--key-slot").and_then(|slot| slot.parse().ok());
    let uuid = after("--uuid").and_then(|uuid| Uuid::parse_str(uuid).ok());
    match args.first().map(String::as_str) {
        Some("luksFormat") => format(world, Path::new(last), uuid.unwrap_or_default(), input),
        Some("open") if is_read(args) => {
            let found = world.luks_mut(Path::new(last)).ok_or(NO_LUKS)?.slot(input, slot);
            found.map(|slot| format!("Key slot {slot} unlocked.\n")).ok_or(WRONG_KEY)
        }
        Some("open") => {
            open(world, Path::new(from_end(1)), last, slot, input)?;
            let mapping = world.mappings.get_mut(last).ok_or(NO_DEVICE)?;
            mapping.keyring = !args.iter().any(|arg| arg == "--disable-keyring");
            Ok(String::new())
        }
        Some("luksAddKey") => {
            let luks = world.luks_mut(Path::new(last)).ok_or(NO_LUKS)?;
            let mut lines = input.split(|c| *c == b'\n');
            let (old, new) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
            luks.slot(old, None).ok_or(WRONG_KEY)?;
            let slot =
                slot.filter(|slot| !luks.keys.contains_key(slot)).ok_or((1, "slot is full"))?;
            luks.header.slots.insert(slot);
            luks.keys.insert(slot, new.to_vec());
            Ok(String::new())
        }
        Some("luksKillSlot") => {
            let luks = world.luks_mut(Path::new(from_end(1))).ok_or(NO_LUKS)?;
            let slot: u32 = last.parse().unwrap_or(u32::MAX);
            luks.header.slots.remove(&slot);
            luks.keys.remove(&slot).map(|_| String::new()).ok_or((1, "slot is not active"))
        }
        Some("token") => token(world, args, Path::new(last), input),
        Some("luksUUID") => {
            let luks = world.luks_mut(Path::new(last)).ok_or(NO_LUKS)?;
            luks.header.uuid = uuid.unwrap_or_default();
            Ok(String::new())
        }
        Some("resize") => resize(world, last, input),
        Some("close") => close(world, last),
        other => unreachable!("cryptsetup {other:?}"),
    }
}

impl SimLuks {
    fn slot(&self, key: &[u8], only: Option<u32>) -> Option<u32> {
        let mut fits =
            self.keys.iter().filter(|(slot, k)| *k == key && only.is_none_or(|o| o == **slot));
        fits.next().map(|(slot, _)| *slot)
    }
}

fn format(world: &mut World, node: &Path, uuid: Uuid, key: &[u8]) -> Outcome {
    let lv = world.lv_at(node).ok_or(NO_DEVICE)?.1.clone();
    if lv.size <= LUKS_HEADER {
        return Err((1, "Device is too small."));
    }
    if world.mappings.values().any(|m| m.lv == lv.uuid) {
        return Err((5, "Device is in use."));
    }
    world.soil(node);
    let content = world.content_mut(node).ok_or(NO_DEVICE)?;
    let header = Header { uuid, slots: [0].into(), ..Header::default() };
    content.luks = Some(SimLuks { header, keys: [(0, key.to_vec())].into() });
    content.superblock = None;
    content.data.clear();
    content.foreign = Some("noise".to_owned());
    Ok(String::new())
}

fn open(world: &mut World, node: &Path, name: &str, slot: Option<u32>, key: &[u8]) -> Outcome {
    let lv = world.lv_at(node).ok_or(NO_DEVICE)?.1.clone();
    let luks = world.luks_mut(node).ok_or(NO_LUKS)?;
    luks.slot(key, slot).ok_or(WRONG_KEY)?;
    let uuid = luks::mapping_uuid(name, luks.header.uuid);
    if world.mappings.contains_key(name) {
        return Err((5, "Device already exists."));
    }
    world.numbers = world.numbers.wrapping_add(1);
    let minor = u32::try_from(world.numbers).unwrap_or_default();
    let size = lv.size.saturating_sub(LUKS_HEADER);
    world
        .mappings
        .insert(name.to_owned(), Mapping { lv: lv.uuid, uuid, minor, size, keyring: false });
    Ok(String::new())
}

fn token(world: &mut World, args: &[String], node: &Path, input: &[u8]) -> Outcome {
    let luks = world.luks_mut(node).ok_or(NO_LUKS)?;
    let tokens = &mut luks.header.tokens;
    if args.iter().any(|arg| arg == "import") {
        let token: Token = serde_json::from_slice(input).map_err(|_| (1, "bad token"))?;
        let id = (0..32).find(|id| !tokens.contains_key(id)).ok_or((1, "no room"))?;
        tokens.insert(id, token);
        return Ok(String::new());
    }
    let id = args.iter().rev().nth(1).and_then(|id| id.parse::<u32>().ok()).unwrap_or(u32::MAX);
    tokens.remove(&id).map(|_| String::new()).ok_or((1, "no such token"))
}

fn resize(world: &mut World, name: &str, key: &[u8]) -> Outcome {
    let node = Path::new("/dev/mapper").join(name);
    let size = world.lv_at(&node).ok_or(NO_DEVICE)?.1.size;
    let content = world.content_mut(&node).ok_or(NO_DEVICE)?;
    let luks = content.luks.clone();
    let mapping = world.mappings.get_mut(name).ok_or(NO_DEVICE)?;
    if mapping.keyring {
        if key.is_empty() {
            return Err((1, "Nothing to read on input."));
        }
        luks.ok_or(NO_LUKS)?.slot(key, None).ok_or(WRONG_KEY)?;
    }
    mapping.size = size.saturating_sub(LUKS_HEADER);
    Ok(String::new())
}

fn close(world: &mut World, name: &str) -> Outcome {
    let node = Path::new("/dev/mapper").join(name);
    if world.users(&node) > 0 {
        return Err((5, "Device is still in use."));
    }
    world.mappings.remove(name).map(|_| String::new()).ok_or(NO_DEVICE)
}

impl World {
    /// The decrypted device behind a node.
    pub(super) fn mapping_at(&self, node: &Path) -> Option<&Mapping> {
        self.mappings.get(node.strip_prefix("/dev/mapper").ok()?.to_str()?)
    }

    /// The header on an LV's own device.
    pub(super) fn luks_mut(&mut self, node: &Path) -> Option<&mut SimLuks> {
        if self.mapping_at(node).is_some() {
            return None;
        }
        self.content_mut(node)?.luks.as_mut()
    }

    /// The size of a device.
    pub(super) fn size_at(&self, node: &Path) -> Option<Bytes> {
        match self.mapping_at(node) {
            Some(mapping) => Some(mapping.size),
            None => self.lv_at(node).map(|(_, lv)| lv.size),
        }
    }

    /// Bytes are written to an LV's own device, which has a header: a copy of that, or damage to it.
    pub(super) fn write_luks(&mut self, node: &Path, offset: u64, bytes: &[u8]) -> bool {
        if self.mapping_at(node).is_some() {
            return false;
        }
        let Some(content) = self.content_mut(node) else { return false };
        let Some(luks) = content.luks.clone() else { return false };
        if offset == COPY_AT {
            let same = luks::parse(bytes) == luks::Head::Header(luks.header.clone());
            content.luks_copy = same.then_some(luks);
        }
        true
    }

    /// The copy of the header on an LV, seen on its own device.
    pub(super) fn luks_copy(&mut self, node: &Path) -> Option<SimLuks> {
        if self.mapping_at(node).is_some() {
            return None;
        }
        self.content_mut(node)?.luks_copy.clone()
    }

    /// Zeroes go over a decrypted device, or over a header and its copy.
    pub(super) fn zero_luks(&mut self, node: &Path, offset: u64, len: u64) {
        let mapped = self.mapping_at(node).is_some();
        let Some(content) = self.content_mut(node) else { return };
        let covers = |at: u64| offset <= at && at < offset.saturating_add(len);
        if mapped && covers(0) {
            content.superblock = None;
            content.foreign = None;
        } else if !mapped {
            content.luks.take_if(|_| covers(0));
            content.luks_copy.take_if(|_| covers(COPY_AT));
        }
    }

    /// Somebody opens all encrypted volumes anew by hand, as cryptsetup does when nobody tells it.
    pub fn hide_keys(&mut self) {
        for mapping in self.mappings.values_mut() {
            mapping.keyring = true;
        }
    }

    /// Puts zeroes where a header was, as an accident would.
    pub fn lose_luks_header(&mut self, vg: &str, lv: &str) {
        if let Some(mut content) = self.content(vg, lv).cloned() {
            content.luks = None;
            self.set_content(vg, lv, content);
        }
    }

    /// What the tests compare: not which slots, and not which keys.
    pub(super) fn luks_summary(&self, lv: &LvmUuid) -> String {
        let Some(content) = self.contents.get(lv) else { return String::new() };
        let Some(luks) = &content.luks else { return String::new() };
        let own = if luks.header.uuid == lv.luks_uuid() { "own" } else { "other" };
        let open = self.mappings.iter().find(|(_, m)| m.lv == *lv);
        format!(
            " luks {own} uuid, {} keys, {} tokens, copied {}, open {:?}",
            luks.keys.len(),
            luks.header.tokens.len(),
            content.luks_copy.as_ref() == Some(luks),
            open.map(|(name, m)| (name, m.size))
        )
    }
}
