//! An encrypted volume before its user gets it: formatted once, given a key of its own, opened.
//!
//! `luksFormat` runs only on a volume that bears `cb.fresh`, and only if the device proves blank -
//! or bears the header of an earlier try, known by its UUID: then nobody ever had it. A key is
//! destroyed only after another one has opened the volume.

use super::super::Agent;
use super::super::blocking::{On, blocking, within};
use super::super::store::Vg;
use super::filesystem::READ_TIMEOUT;
use super::wrap;
use crate::domain::{Key, Keys, Secrets};
use crate::error::{Error, Result};
use crate::host::Host;
use crate::host::dm::DmDevice;
use crate::host::invocation::Invocation;
use crate::host::luks::{self, COPY_AT, HEAD_BYTES, Head, Header, Stretch};
use crate::lvm::state::Lv;
use crate::lvm::tag::Pending;
use crate::secret::Secret;
use crate::units::Bytes;

/// What at both ends of a new volume shows no signature, whatever its extents held before.
const ENDS: Bytes = Bytes::mib(1);
const STAGE_SECRET: &str = "node-stage-secret";
const EXPAND_SECRET: &str = "node-expand-secret";

/// An encrypted volume, and what opens it.
pub(super) struct Crypt<'a> {
    pub(super) lv: &'a Lv,
    /// The LV's device.
    pub(super) device: &'a DmDevice,
    /// What the decrypted device is called.
    pub(super) name: String,
    keys: Keys,
}

/// A key that opens a header, and the slot that it opens.
struct Opens {
    key: Secret,
    slot: u32,
}

impl<H: Host> Agent<H> {
    /// Makes the decrypted device of an encrypted volume, ready but for its filesystem.
    pub(super) async fn open_crypt(
        &self,
        vg: &Vg,
        lv: &Lv,
        device: &DmDevice,
        secrets: &Secrets,
    ) -> Result<DmDevice> {
        let state = vg.state();
        let name = state.handle(&lv.name).crypt_name();
        if let (None, Some(mapping)) = (lv.tags.pending, self.mapping(&state, lv).await?) {
            if mapping.size >= room(lv, device) {
                return Ok(mapping);
            }
            let keys = || secrets.keys(STAGE_SECRET);
            return self.grow_crypt(vg, (lv, device, &mapping.name), keys).await;
        }
        let keys = secrets.keys(STAGE_SECRET)?;
        let crypt = Crypt { lv, device, name, keys };
        match lv.tags.pending {
            Some(Pending::Fresh) => self.format_crypt(vg, &crypt).await?,
            Some(Pending::Restored) => self.own_key(&crypt, true).await.map(drop)?,
            // Staging refuses what is being copied before it comes here.
            Some(Pending::Copying) | None => {}
        }
        let mapping = match self.mapping(&state, lv).await? {
            Some(mapping) => mapping,
            None => self.unlock(vg, &crypt).await?,
        };
        if mapping.size < room(lv, device) {
            return self.grow_crypt(vg, (lv, device, &mapping.name), || Ok(crypt.keys)).await;
        }
        if lv.tags.pending == Some(Pending::Fresh) {
            self.must_be_fresh(vg, lv, &mapping).await?;
            self.blank_ends(&crypt, &mapping).await?;
        }
        Ok(mapping)
    }

    /// Makes the decrypted device of a volume as large as its LV. `None` when it is so already.
    pub(super) async fn grow_mapping(
        &self,
        vg: &Vg,
        lv: &Lv,
        mapping: &DmDevice,
        secrets: &Secrets,
    ) -> Result<Option<DmDevice>> {
        let state = vg.state();
        let device = self.device(&state, lv).await?.ok_or_else(|| {
            Error::unavailable(format!("volume {} is not active, though it is in use", lv.name))
        })?;
        if mapping.size >= room(lv, &device) {
            return Ok(None);
        }
        self.grow_crypt(vg, (lv, &device, &mapping.name), || secrets.keys(EXPAND_SECRET))
            .await
            .map(Some)
    }

    async fn grow_crypt(
        &self,
        vg: &Vg,
        (lv, device, name): (&Lv, &DmDevice, &str),
        keys: impl FnOnce() -> Result<Keys>,
    ) -> Result<DmDevice> {
        // It fails when somebody has opened it by hand, with the key in a keyring.
        let ran = self.resize_mapping(&luks::resize(name, None)).await?;
        let large = |mapping: &DmDevice| mapping.size >= room(lv, device);
        if let Some(mapping) = self.mapping(&vg.state(), lv).await?.filter(large) {
            return Ok(mapping);
        }
        // Whether a Secret is what it lacks is not known: nothing says that this can never be done.
        let keys = keys().map_err(|error| {
            Error::host(format!(
                "cannot grow the decrypted device of volume {}: {}; if somebody opened it by hand, that takes its Secret",
                lv.name,
                ran.complaint()
            ))
            .because(error)
        })?;
        let crypt = Crypt { lv, device, name: name.to_owned(), keys };
        let header = self.header(&crypt).await?;
        let opens = self.opens(&crypt, &header, &crypt.every()).await?;
        let opens = opens.ok_or_else(|| wrong_key(lv))?;
        let done = self.resize_mapping(&luks::resize(name, Some(&opens.key))).await?;
        if !done.success() {
            return Err(Error::host(format!(
                "cannot grow the decrypted device of volume {}: {}",
                lv.name,
                done.complaint()
            )));
        }
        self.mapping(&vg.state(), lv).await?.filter(large).ok_or_else(|| {
            Error::host(format!(
                "the decrypted device of volume {} is not larger, though cryptsetup reports success",
                lv.name
            ))
        })
    }

    /// A header on a volume that nobody ever had.
    async fn format_crypt(&self, vg: &Vg, crypt: &Crypt<'_>) -> Result<()> {
        let Crypt { lv, device, .. } = crypt;
        let uuid = lv.uuid.luks_uuid();
        let head = self.head(crypt).await?;
        let ours = match &head {
            Head::Header(header) => header.uuid == uuid,
            Head::Damaged(found) => *found == Some(uuid),
            Head::None => false,
        };
        if let Head::Header(header) = &head
            && ours
            && self.opens(crypt, header, &crypt.every()).await?.is_some()
        {
            return self.copy_header(crypt).await;
        }
        if ours {
            self.must_not_be_proved(crypt).await?;
        }
        self.close_mapping(&vg.state().handle(&lv.name)).await?;
        self.must_be_fresh(vg, lv, device).await?;
        if !ours {
            self.must_be_blank(lv, device, None).await?;
        }
        tracing::info!(volume = %lv.name, size = %lv.payload(), "encrypting a new volume");
        let (key, stretch) = match &crypt.keys.own {
            Key::Passphrase(passphrase) => (passphrase.clone(), Stretch::Passphrase),
            Key::Master(_) => (wrap::new_key()?, Stretch::Random),
        };
        self.change(lv, "encrypt", &luks::format(&device.node, uuid, &key, stretch)).await?;
        if let Key::Master(master) = &crypt.keys.own {
            self.import(crypt, &wrap::wrap(master, uuid, 0, &key)?).await?;
        }
        let header = self.header(crypt).await?;
        if header.uuid != uuid || self.opens(crypt, &header, &[&crypt.keys.own]).await?.is_none() {
            return Err(Error::damaged(format!(
                "volume {} was encrypted, but its header reads back as another one",
                lv.name
            )));
        }
        self.copy_header(crypt).await
    }

    /// That a header which nothing opens is of a try that was cut. One that was proved has a copy, and may
    /// have been used, whatever the tags say: LVM's metadata may have been restored from a backup.
    async fn must_not_be_proved(&self, crypt: &Crypt<'_>) -> Result<()> {
        let Crypt { lv, device, .. } = crypt;
        let Head::Header(copy) = self.head_at(crypt, COPY_AT).await? else { return Ok(()) };
        if copy.uuid != lv.uuid.luks_uuid() {
            return Ok(());
        }
        Err(Error::failed_precondition(format!(
            "volume {} bears the tag cb.fresh, as if it had never been used, but it was encrypted before, and the Secret does not open it: nothing \
             was formatted. If the Secret was changed, add what opened the volume before as previousPassphrase or previousMasterKey. If its header was \
             damaged: {}. If nobody ever used it, clear it with wipefs -a {}",
            lv.name,
            how_to_restore(crypt),
            device.node.display()
        )))
    }

    /// Opens a volume that was in use before. When only the previous key does that, the Secret was
    /// changed, and the volume gets the new one.
    async fn unlock(&self, vg: &Vg, crypt: &Crypt<'_>) -> Result<DmDevice> {
        let header = self.header(crypt).await?;
        let uuid = crypt.lv.uuid.luks_uuid();
        if header.uuid != uuid {
            return Err(Error::damaged(format!(
                "the LUKS header of volume {} has the UUID {}, not its own, {uuid}: a header of another volume was written there, or a backup of \
                 before it was restored. {}",
                crypt.lv.name,
                header.uuid,
                how_to_restore(crypt)
            )));
        }
        let keys = if crypt.keys.previous.is_empty() {
            candidates(&header, &[&crypt.keys.own])
        } else {
            let Opens { key, slot } = self.own_key(crypt, false).await?;
            vec![(key, Some(slot))]
        };
        self.clear_unfinished(&crypt.name).await?;
        let tried = self.try_keys(crypt, keys).await;
        // Whatever it said, the kernel knows: a cryptsetup that an agent before this one started and
        // did not see the end of may have been quicker.
        match self.mapping(&vg.state(), crypt.lv).await? {
            Some(mapping) => Ok(mapping),
            None if tried? => Err(Error::host(format!(
                "volume {} has no decrypted device, though cryptsetup reports success",
                crypt.lv.name
            ))),
            None => Err(wrong_key(crypt.lv)),
        }
    }

    /// Whether one of the keys opens the volume.
    async fn try_keys(&self, crypt: &Crypt<'_>, keys: Vec<(Secret, Option<u32>)>) -> Result<bool> {
        for (key, slot) in keys {
            let call = luks::open(&crypt.device.node, &crypt.name, &key, slot);
            if self.try_key(crypt.lv, &call).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes the volume's own key open it, and takes away what opened it before: every other key
    /// of a copy, or the previous one of a volume whose Secret was changed.
    async fn own_key(&self, crypt: &Crypt<'_>, alone: bool) -> Result<Opens> {
        let (lv, node) = (crypt.lv, &crypt.device.node);
        let header = self.header(crypt).await?;
        let bound = lv.uuid.luks_uuid();
        let own = match self.opens(crypt, &own_tokens(&header, bound), &[&crypt.keys.own]).await? {
            Some(opens) => opens,
            None => self.add_own_key(crypt, &header).await?,
        };
        let header = self.header(crypt).await?;
        let mut gone = header.slots.clone();
        gone.remove(&own.slot);
        if !alone {
            gone = self.previous_slots(crypt, &header).await?;
            gone.remove(&own.slot);
        }
        for slot in &gone {
            tracing::info!(volume = %lv.name, slot, "destroying a key that is not the volume's own any more");
            self.change(lv, "destroy a key of", &luks::kill_slot(node, *slot)).await?;
        }
        let stale = header.tokens.iter().filter(|(_, token)| {
            let own = token.slot == own.slot && token.uuid == bound;
            !own && (alone || !header.slots.contains(&token.slot) || gone.contains(&token.slot))
        });
        for (id, _) in stale {
            self.change(lv, "destroy a key of", &luks::remove_token(node, *id)).await?;
        }
        if header.uuid != bound {
            self.change(lv, "give its own UUID to", &luks::set_uuid(node, bound)).await?;
        }
        self.copy_header(crypt).await?;
        Ok(own)
    }

    async fn add_own_key(&self, crypt: &Crypt<'_>, header: &Header) -> Result<Opens> {
        let (lv, node) = (crypt.lv, &crypt.device.node);
        let opener = self.opens(crypt, header, &crypt.every()).await?;
        let opener = opener.ok_or_else(|| wrong_key(lv))?;
        let (own, stretch) = match &crypt.keys.own {
            Key::Passphrase(passphrase) => {
                (Opens { key: passphrase.clone(), slot: free(lv, header)? }, Stretch::Passphrase)
            }
            Key::Master(master) => (self.planned(crypt, master, header).await?, Stretch::Random),
        };
        tracing::info!(volume = %lv.name, slot = own.slot, "giving a volume its own key");
        let call = luks::add_key(node, &opener.key, &own.key, own.slot, stretch);
        self.change(lv, "add a key to", &call).await?;
        if self.slot_of(lv, &luks::test(node, &own.key, Some(own.slot))).await? != Some(own.slot) {
            return Err(Error::damaged(format!(
                "a key was added to volume {}, and does not open it; no other key was touched",
                lv.name
            )));
        }
        Ok(own)
    }

    /// A new key, which is in the header, wrapped, before it opens anything: a cut between the two
    /// would otherwise leave a slot that nobody can open. One of an earlier try is taken as it is.
    async fn planned(&self, crypt: &Crypt<'_>, master: &Secret, header: &Header) -> Result<Opens> {
        let bound = crypt.lv.uuid.luks_uuid();
        let mut before =
            header.tokens.values().filter(|t| t.uuid == bound && !header.slots.contains(&t.slot));
        if let Some((key, slot)) = before.find_map(|t| Some((wrap::unwrap(master, t)?, t.slot))) {
            return Ok(Opens { key, slot });
        }
        let (key, slot) = (wrap::new_key()?, free(crypt.lv, header)?);
        self.import(crypt, &wrap::wrap(master, bound, slot, &key)?).await?;
        Ok(Opens { key, slot })
    }

    async fn previous_slots(
        &self,
        crypt: &Crypt<'_>,
        header: &Header,
    ) -> Result<std::collections::BTreeSet<u32>> {
        let mut slots = std::collections::BTreeSet::new();
        for key in &crypt.keys.previous {
            slots.extend(self.opens(crypt, header, &[key]).await?.map(|opens| opens.slot));
        }
        Ok(slots)
    }

    /// The first of these that opens the header.
    async fn opens(
        &self,
        crypt: &Crypt<'_>,
        header: &Header,
        keys: &[&Key],
    ) -> Result<Option<Opens>> {
        for (key, slot) in candidates(header, keys) {
            let call = luks::test(&crypt.device.node, &key, slot);
            if let Some(slot) = self.slot_of(crypt.lv, &call).await? {
                return Ok(Some(Opens { key, slot }));
            }
        }
        Ok(None)
    }

    async fn slot_of(&self, lv: &Lv, test: &Invocation) -> Result<Option<u32>> {
        luks::test_result(&self.cryptsetup(test).await?)
            .map_err(|why| Error::host(format!("cannot try a key of volume {}: {why}", lv.name)))
    }

    /// Whether a call goes well; false when its key is the wrong one.
    async fn try_key(&self, lv: &Lv, call: &Invocation) -> Result<bool> {
        let done = self.cryptsetup(call).await?;
        if done.success() || luks::is_wrong_key(&done) {
            return Ok(done.success());
        }
        let sentence = format!("cannot open volume {}: {}", lv.name, done.complaint());
        Err(if luks::is_busy(&done) { Error::unavailable(sentence) } else { Error::host(sentence) })
    }

    async fn import(&self, crypt: &Crypt<'_>, token: &luks::Token) -> Result<()> {
        let call = luks::import_token(&crypt.device.node, token)
            .map_err(|e| Error::host("cannot print a wrapped key").because(e))?;
        self.change(crypt.lv, "keep the key of", &call).await
    }

    /// The header that must be there.
    async fn header(&self, crypt: &Crypt<'_>) -> Result<Header> {
        match self.head(crypt).await? {
            Head::Header(header) => Ok(header),
            Head::Damaged(_) | Head::None => Err(Error::damaged(format!(
                "volume {} is encrypted, and its LUKS header is damaged or gone, so nothing was changed. {}",
                crypt.lv.name,
                how_to_restore(crypt)
            ))),
        }
    }

    async fn head(&self, crypt: &Crypt<'_>) -> Result<Head> {
        self.head_at(crypt, 0).await
    }

    async fn head_at(&self, crypt: &Crypt<'_>, offset: u64) -> Result<Head> {
        let node = crypt.device.node.clone();
        let what = format!("volume {}", crypt.lv.name);
        within(&self.0.store, On::Device(crypt.device), READ_TIMEOUT, &what, move |host| {
            host.read_device(&node, offset, HEAD_BYTES)
        })
        .await?
        .map(|head| luks::parse(&head))
        .map_err(|e| Error::host(format!("cannot read the header of {what}")).because(e))
    }

    /// Keeps a copy of the header on the volume itself, for the day when the first one is damaged.
    async fn copy_header(&self, crypt: &Crypt<'_>) -> Result<()> {
        let node = crypt.device.node.clone();
        blocking(&self.0.store.host, move |host| {
            let header = host.read_device(&node, 0, luks::HEADER.get())?;
            host.write_device(&node, COPY_AT, &header)
        })
        .await?
        .map_err(|e| {
            Error::host(format!("cannot copy the LUKS header of volume {}", crypt.lv.name))
                .because(e)
        })
    }

    /// Under a new key, what the extents held before is noise. Some of it may look like a
    /// signature.
    async fn blank_ends(&self, crypt: &Crypt<'_>, mapping: &DmDevice) -> Result<()> {
        let lv = crypt.lv;
        let own = self.superblock(lv, mapping).await?;
        if own.is_some_and(|sb| sb.uuid == lv.uuid.filesystem_uuid()) {
            return Ok(());
        }
        let len = ENDS.get().min(mapping.size.get());
        for at in [0, mapping.size.get().saturating_sub(len)] {
            let node = mapping.node.clone();
            blocking(&self.0.store.host, move |host| host.zero_device(&node, at, len))
                .await?
                .map_err(|e| Error::host(format!("cannot zero volume {}", lv.name)).because(e))?;
        }
        Ok(())
    }
}

impl Crypt<'_> {
    /// All keys that may open it, the one that should first.
    fn every(&self) -> Vec<&Key> {
        [&self.keys.own].into_iter().chain(&self.keys.previous).collect()
    }
}

/// What cryptsetup is given for these keys, each with the slot that it is meant for.
fn candidates(header: &Header, keys: &[&Key]) -> Vec<(Secret, Option<u32>)> {
    let mut found = Vec::new();
    for key in keys {
        match key {
            Key::Passphrase(passphrase) => found.push((passphrase.clone(), None)),
            Key::Master(master) => {
                let tokens = header.tokens.values().filter(|t| header.slots.contains(&t.slot));
                found.extend(tokens.filter_map(|t| Some((wrap::unwrap(master, t)?, Some(t.slot)))));
            }
        }
    }
    found
}

/// A header without the tokens that were made for another one: of a copy's source.
fn own_tokens(header: &Header, uuid: uuid::Uuid) -> Header {
    let mut own = header.clone();
    own.tokens.retain(|_, token| token.uuid == uuid);
    own
}

fn free(lv: &Lv, header: &Header) -> Result<u32> {
    header.free_slot().ok_or_else(|| {
        Error::failed_precondition(format!(
            "all key slots of volume {} are in use: free one with cryptsetup luksKillSlot",
            lv.name
        ))
    })
}

/// How large the decrypted device of an LV should be.
fn room(lv: &Lv, device: &DmDevice) -> Bytes {
    device.size.saturating_sub(lv.header())
}

fn wrong_key(lv: &Lv) -> Error {
    Error::failed_precondition(format!(
        "the Secret does not open volume {}: if it was changed, or the volume was made from one with another Secret, add what opened it before \
         as previousPassphrase or previousMasterKey",
        lv.name
    ))
}

fn how_to_restore(crypt: &Crypt<'_>) -> String {
    format!(
        "A copy is on the volume itself: dd if={0} of=header.img bs=1M skip={1} count={2}, look at it with cryptsetup luksDump header.img, and \
         restore it with cryptsetup luksHeaderRestore {0} --header-backup-file header.img",
        crypt.device.node.display(),
        COPY_AT >> 20,
        luks::HEADER.get() >> 20
    )
}
