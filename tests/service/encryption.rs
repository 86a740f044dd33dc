//! Encrypted volumes: what keys open, what is formatted, what a deletion leaves.

use cinderblock::domain::{AccessType, CapacityRange, Provisioning, VolumeAgent};
use cinderblock::error::ErrorKind;
use cinderblock::lvm::state::LUKS_HEADER;
use cinderblock::lvm::tag::{FsType, Pending, Usage};
use cinderblock::names::LvName;
use cinderblock::sim::{Content, Fault, Mode, SimLuks};
use cinderblock::units::Bytes;

use crate::support::{
    MASTER_KEY, Node, VG, as_thick, cloned, encrypted, master, mounted, restored, secret, thick,
    thin, volume,
};

const EXT4: FsType = FsType::Ext4;

fn lv_name(text: &str) -> LvName {
    LvName::parse(text).unwrap()
}

fn luks(node: &Node, lv: &str) -> SimLuks {
    node.host.world().content(VG, lv).and_then(|c| c.luks.clone()).expect("a header")
}

fn keys(node: &Node, lv: &str) -> Vec<Vec<u8>> {
    luks(node, lv).keys.into_values().collect()
}

#[tokio::test(start_paused = true)]
async fn its_user_gets_the_size_asked_for() {
    let node = Node::ready().await;
    let made = node.create(encrypted(thick("pvc-1"))).await.unwrap();
    assert_eq!(made.size, Bytes::gib(1));
    let lv = |name: &str| node.host.world().vg(VG).unwrap().lvs[&lv_name(name)].size;
    assert_eq!(lv("pvc-1"), Bytes::gib(1).saturating_add(LUKS_HEADER));
    node.stage(&made.handle, mounted(EXT4)).await.unwrap();
    let fs = node.host.world().content(VG, "pvc-1").unwrap().superblock.unwrap();
    assert_eq!(fs.size, Bytes::gib(1));
    assert_eq!(node.expand(&made.handle, Bytes::gib(2)).await.unwrap(), Bytes::gib(2));
    // The same again, and another kind of volume of that name.
    assert_eq!(node.create(encrypted(thick("pvc-1"))).await.unwrap().handle, made.handle);
    let error = node.create(thick("pvc-1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("encryption: luks"), "{error}");
    let mut tight = encrypted(thick("pvc-2"));
    tight.range = CapacityRange { required: Some(Bytes::mib(64)), limit: Some(Bytes::mib(64)) };
    assert_eq!(node.create(tight).await.unwrap().size, Bytes::mib(64));
}

#[tokio::test(start_paused = true)]
async fn data_comes_back_and_the_master_key_is_nowhere() {
    let node = Node::ready().await;
    let volume = node.create(encrypted(thin("pvc-1"))).await.unwrap().handle;
    node.write(&volume, mounted(EXT4), "data").await;
    assert_eq!(node.read(&volume, mounted(EXT4)).await, "data");
    let header = luks(&node, "pvc-1");
    assert_eq!((header.keys.len(), header.header.tokens.len()), (1, 1));
    assert_ne!(header.keys[&0], MASTER_KEY.as_bytes());
    let copy = node.host.world().content(VG, "pvc-1").unwrap().luks_copy.clone();
    assert_eq!(copy.as_ref(), Some(&header), "the copy of the header");
    // Another volume of the same Secret has a key of its own.
    let other = node.create(encrypted(thin("pvc-2"))).await.unwrap().handle;
    node.write(&other, mounted(EXT4), "other").await;
    assert_ne!(keys(&node, "pvc-1"), keys(&node, "pvc-2"));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_does_not_fit_changes_nothing() {
    let node = Node::ready().await;
    let volume = node.create(encrypted(thin("pvc-1"))).await.unwrap().handle;
    for (secrets, what) in [
        (secret(&[]), "node-stage-secret-name"),
        (secret(&[("key", "x")]), "passphrase or the key masterKey"),
        (secret(&[("masterKey", "short")]), "at least 32"),
    ] {
        let error = node.stage_with(&volume, mounted(EXT4), secrets).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(what), "{error}");
    }
    assert!(node.host.world().content(VG, "pvc-1").unwrap().luks.is_none(), "formatted too early");
    node.write(&volume, mounted(EXT4), "data").await;
    let before = node.host.world().summary();
    for wrong in [secret(&[("passphrase", "x")]), secret(&[("masterKey", &"y".repeat(44))])] {
        let error = node.stage_with(&volume, mounted(EXT4), wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("previousPassphrase"), "{error}");
    }
    assert_eq!(node.host.world().summary(), before);
}

#[tokio::test(start_paused = true)]
async fn nothing_but_a_blank_new_volume_is_encrypted() {
    let node = Node::ready().await;
    let volume = node.create(encrypted(thick("pvc-1"))).await.unwrap().handle;
    let foreign = Content { foreign: Some("zfs".to_owned()), ..Content::default() };
    node.host.world().set_content(VG, "pvc-1", foreign);
    let error = node.stage(&volume, mounted(EXT4)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(!node.host.programs_run().contains(&"cryptsetup luksFormat".to_owned()));

    // One that was used and has lost its header is not made anew.
    let used = node.create(encrypted(thin("pvc-2"))).await.unwrap().handle;
    node.write(&used, mounted(EXT4), "data").await;
    node.host.world().lose_luks_header(VG, "pvc-2");
    let before = node.host.programs_run().len();
    let error = node.stage(&used, mounted(EXT4)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("luksHeaderRestore"), "{error}");
    assert!(node.host.programs_run()[before..].is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_copy_gets_a_key_of_its_own() {
    let node = Node::ready().await;
    let source = node.create(encrypted(thin("pvc-0"))).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "before").await;
    let snapshot = node.snapshot("snapshot-1", &source).await.unwrap();
    assert_eq!(snapshot.size, Bytes::gib(1));
    let error = node.create(restored("pvc-1", &snapshot.handle, 1)).await.unwrap_err();
    assert!(error.to_string().contains("encryption: luks"), "{error}");
    let restore = encrypted(restored("pvc-1", &snapshot.handle, 2));
    let restore = node.create(restore).await.unwrap();
    assert_eq!(restore.size, Bytes::gib(2));
    let clone = node.create(encrypted(cloned("pvc-2", &source))).await.unwrap().handle;
    assert_eq!(keys(&node, "pvc-0"), keys(&node, "pvc-1"), "until it is staged");
    assert_eq!(node.read(&restore.handle, mounted(EXT4)).await, "before");
    let theirs = secret(&[("passphrase", "theirs"), ("previousMasterKey", MASTER_KEY)]);
    node.stage_with(&clone, mounted(EXT4), theirs).await.unwrap();
    let (of_source, of_restore) = (luks(&node, "pvc-0"), luks(&node, "pvc-1"));
    assert_eq!((of_restore.keys.len(), of_restore.header.tokens.len()), (1, 1));
    assert_ne!(of_source.keys.values().next(), of_restore.keys.values().next());
    assert_ne!(of_source.header.uuid, of_restore.header.uuid);
    assert_eq!(keys(&node, "pvc-2"), [b"theirs".to_vec()]);
    assert_eq!(luks(&node, "pvc-2").header.tokens.len(), 0);
    // Its own Secret is enough from now on.
    node.unstage(&clone).await.unwrap();
    let own = secret(&[("passphrase", "theirs")]);
    node.stage_with(&clone, mounted(EXT4), own).await.unwrap();
    assert_eq!(node.read(&source, mounted(EXT4)).await, "before");
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_takes_over_from_the_previous_one() {
    let node = Node::ready().await;
    let volume = node.create(encrypted(thin("pvc-1"))).await.unwrap().handle;
    let old = secret(&[("passphrase", "old")]);
    node.stage_with(&volume, mounted(EXT4), old.clone()).await.unwrap();
    node.unstage(&volume).await.unwrap();
    let both = secret(&[("passphrase", "new"), ("previousPassphrase", "old")]);
    for _ in 0..2 {
        node.stage_with(&volume, mounted(EXT4), both.clone()).await.unwrap();
        node.unstage(&volume).await.unwrap();
        assert_eq!(keys(&node, "pvc-1"), [b"new".to_vec()]);
    }
    let error = node.stage_with(&volume, mounted(EXT4), old).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let both = secret(&[("masterKey", MASTER_KEY), ("previousPassphrase", "new")]);
    node.stage_with(&volume, mounted(EXT4), both).await.unwrap();
    node.unstage(&volume).await.unwrap();
    node.stage(&volume, mounted(EXT4)).await.unwrap();
    assert_eq!(keys(&node, "pvc-1").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn growing_takes_no_secret_unless_the_key_is_hidden() {
    let node = Node::ready().await;
    let volume = node.create(encrypted(thick("pvc-1"))).await.unwrap().handle;
    node.stage(&volume, mounted(EXT4)).await.unwrap();
    node.expand(&volume, Bytes::gib(2)).await.unwrap();
    let size = node.expand_published(&volume, Bytes::gib(2), secret(&[])).await.unwrap();
    assert_eq!(size, Bytes::gib(2));
    let grown = || node.host.world().content(VG, "pvc-1").unwrap().superblock.unwrap().size;
    assert_eq!(grown(), Bytes::gib(2));
    let error = node.expand_published(&volume, Bytes::gib(3), master()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    node.host.world().hide_keys();
    // Grown already: nobody is asked for a key.
    node.expand_published(&volume, Bytes::gib(2), secret(&[])).await.unwrap();
    node.expand(&volume, Bytes::mib(2560)).await.unwrap();
    let error = node.expand_published(&volume, Bytes::mib(2560), secret(&[])).await.unwrap_err();
    assert!(error.chain().contains("node-expand-secret-name"), "{error:?}");
    // A resizer that is told "never" does not ask again, also when cryptsetup has only failed once.
    assert_eq!(error.kind(), ErrorKind::Host);
    node.expand_published(&volume, Bytes::mib(2560), master()).await.unwrap();
    assert_eq!(grown(), Bytes::mib(2560));
    // Staged again while it is larger below.
    node.expand(&volume, Bytes::gib(3)).await.unwrap();
    node.stage(&volume, mounted(EXT4)).await.unwrap();
    assert_eq!(grown(), Bytes::gib(3));
}

#[tokio::test(start_paused = true)]
async fn a_block_volume_is_not_zeroed_and_shows_nothing_of_others() {
    let node = Node::ready().await;
    let request = volume("pvc-1", Provisioning::Thick, Usage::Block, 1);
    let block = node.create(encrypted(request)).await.unwrap().handle;
    node.write(&block, AccessType::Block, "data").await;
    assert_eq!(node.read(&block, AccessType::Block).await, "data");
    let foreign = node.host.world().content(VG, "pvc-1").unwrap().foreign.clone();
    assert_eq!(foreign, None, "noise that looks like a signature");
    let lvm = || node.host.programs_run().iter().filter(|p| p.starts_with("lvm ")).count();
    let before = lvm();
    node.expand(&block, Bytes::gib(2)).await.unwrap();
    assert_eq!(lvm() - before, 1);
    node.stage(&block, AccessType::Block).await.unwrap();
    node.publish(&block, AccessType::Block, "/pods/a").await.unwrap();
    let error = node.unstage(&block).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("/pods/a"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn deleting_destroys_the_keys_first() {
    let node = Node::ready().await;
    let handle = node.create(encrypted(thin("pvc-1"))).await.unwrap().handle;
    node.write(&handle, mounted(EXT4), "data").await;
    let snapshot = node.snapshot("snapshot-1", &handle).await.unwrap().handle;
    node.stage(&handle, mounted(EXT4)).await.unwrap();
    let error = node.delete(&handle).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert_eq!(luks(&node, "pvc-1").keys.len(), 1, "of a volume in use");
    node.unstage(&handle).await.unwrap();
    let lvm = || node.host.programs_run().iter().filter(|p| p.starts_with("lvm ")).count();
    let before = lvm();
    node.host.arm(None);
    node.delete(&handle).await.unwrap();
    assert_eq!(lvm() - before, 1);
    let effects = node.host.effects();
    let cleared = effects.iter().filter(|e| e.starts_with("zero ")).count();
    assert!(cleared == 2 && effects.last().unwrap().contains("lvremove"), "{effects:#?}");
    node.host.arm(None);
    node.agent.delete_snapshot(snapshot).await.unwrap();
    let cleared = node.host.effects().iter().filter(|e| e.starts_with("zero ")).count();
    assert_eq!(cleared, 2, "the snapshot has a header, too: {:#?}", node.host.effects());
    // One that was never staged has none.
    let fresh = node.create(encrypted(thick("pvc-2"))).await.unwrap().handle;
    node.host.arm(None);
    node.delete(&fresh).await.unwrap();
    assert_eq!(node.host.effects().len(), 1);
}

/// A thick snapshot cannot be read without its volume's header.
#[tokio::test(start_paused = true)]
async fn a_deleted_volume_keeps_its_keys_for_its_thick_snapshots() {
    let node = Node::ready().await;
    let source = node.create(encrypted(thick("pvc-0"))).await.unwrap().handle;
    node.write(&source, mounted(EXT4), "before").await;
    let snapshot = node.snapshot("snapshot-1", &source).await.unwrap().handle;
    let effects = || node.host.effects();
    let zeroed = || effects().iter().filter(|e| e.starts_with("zero ")).count();
    node.host.arm(None);
    node.delete(&source).await.unwrap();
    assert_eq!(zeroed(), 0, "{:#?}", effects());
    let restore = encrypted(as_thick(restored("pvc-1", &snapshot, 2)));
    let restore = node.create(restore).await.unwrap().handle;
    assert_eq!(node.read(&restore, mounted(EXT4)).await, "before");
    assert_eq!(keys(&node, "pvc-1").len(), 1);
    node.host.arm(None);
    node.agent.delete_snapshot(snapshot).await.unwrap();
    node.wait_wiped().await.unwrap();
    assert_eq!(zeroed(), 2, "{:#?}", effects());
    assert!(effects().last().unwrap().contains("lvremove"), "{:#?}", effects());
}

/// Encrypted, cut, and the call that made it repeated by another agent: it is not taken for one whose
/// birth was cut.
#[tokio::test(start_paused = true)]
async fn a_half_made_volume_is_not_made_again() {
    let node = Node::ready().await;
    let request = || encrypted(thick("pvc-1"));
    let made = node.create(request()).await.unwrap().handle;
    // After the header, before anything in it.
    node.host.arm(Some(Fault { at: 1, mode: Mode::KillAfter }));
    node.stage(&made, mounted(EXT4)).await.unwrap_err();
    let node = node.reincarnate().await;
    let before = keys(&node, "pvc-1");
    node.create(request()).await.unwrap();
    assert_eq!(keys(&node, "pvc-1"), before);
    node.stage(&made, mounted(EXT4)).await.unwrap();
    // A block volume is not zeroed, so that what it shows of others counts.
    let block = || encrypted(volume("pvc-2", Provisioning::Thick, Usage::Block, 1));
    let made = node.create(block()).await.unwrap().handle;
    let foreign = Content { foreign: Some("zfs".to_owned()), ..Content::default() };
    node.host.world().set_content(VG, "pvc-2", foreign);
    let node = node.reincarnate().await;
    node.create(block()).await.unwrap();
    node.stage(&made, AccessType::Block).await.unwrap();
}

/// Cut between the unmount and the end, and nobody calls again but to delete.
#[tokio::test(start_paused = true)]
async fn what_was_left_open_is_closed_before_a_deletion() {
    let node = Node::ready().await;
    let handle = node.create(encrypted(thick("pvc-1"))).await.unwrap().handle;
    node.stage(&handle, mounted(EXT4)).await.unwrap();
    node.agent.unstage(None, crate::support::staging(&handle)).await.unwrap();
    node.delete(&handle).await.unwrap();
    assert!(!node.host.world().vg(VG).unwrap().lvs.contains_key(&lv_name("pvc-1")));
}

/// As when a killed agent's cryptsetup was quicker than that of the next: it says that the device is
/// there already.
#[tokio::test(start_paused = true)]
async fn what_is_open_already_is_open() {
    let node = Node::ready().await;
    let volume = node.create(encrypted(thin("pvc-1"))).await.unwrap().handle;
    node.write(&volume, mounted(EXT4), "data").await;
    node.unstage(&volume).await.unwrap();
    node.host.arm(None);
    node.stage(&volume, mounted(EXT4)).await.unwrap();
    let opens = |effect: &String| effect.starts_with("cryptsetup open");
    let at = node.host.effects().iter().position(opens).unwrap();
    node.unstage(&volume).await.unwrap();
    node.host.arm(Some(Fault { at, mode: Mode::FailAfter }));
    node.stage(&volume, mounted(EXT4)).await.unwrap();
    assert!(opens(&node.host.effects()[at]));
}

/// As after LVM's metadata was restored from a backup of before its first use.
#[tokio::test(start_paused = true)]
async fn a_volume_that_was_in_use_is_never_encrypted_again() {
    let noticed = || tokio::time::sleep(std::time::Duration::from_secs(15));
    let node = Node::ready().await;
    let volume = node.create(encrypted(thin("pvc-1"))).await.unwrap().handle;
    node.write(&volume, mounted(EXT4), "data").await;
    node.unstage(&volume).await.unwrap();
    let before = luks(&node, "pvc-1");
    node.host.world().retag(VG, "pvc-1", |tags| tags.pending = Some(Pending::Fresh));
    noticed().await;
    let other = || secret(&[("passphrase", "another")]);
    let error = node.stage_with(&volume, mounted(EXT4), other()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("nothing was formatted"), "{error}");
    // With the right Secret it is seen what is in it.
    let error = node.stage(&volume, mounted(EXT4)).await.unwrap_err();
    assert!(error.chain().contains("has files: nothing was formatted"), "{error:?}");
    assert_eq!(luks(&node, "pvc-1"), before);
    node.host.world().retag(VG, "pvc-1", |tags| tags.pending = None);
    noticed().await;
    assert_eq!(node.read(&volume, mounted(EXT4)).await, "data");
}
