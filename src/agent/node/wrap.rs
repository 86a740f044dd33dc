//! A volume's own key: random, and wrapped by a master key, so that it can stand in the volume's
//! header. Nothing here touches a device.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::host::luks::Token;
use crate::secret::Secret;

/// Bytes of a volume's key.
const KEY_BYTES: usize = 32;
/// What a wrapping key is for, so that the same master key may serve other ends.
const PURPOSE: &[&[u8]] = &[b"cinderblock: keys of LUKS volumes, 1"];

/// A new key, in hexadecimal digits: one line of text.
///
/// # Errors
/// When the kernel has no randomness.
pub(super) fn new_key() -> Result<Secret> {
    let mut key = Secret::new(random::<KEY_BYTES>()?.to_vec());
    key = Secret::new(hex(key.expose()).into_bytes());
    Ok(key)
}

/// Wraps a key that opens this slot of the header with this UUID. No other header takes it.
///
/// # Errors
/// When the kernel has no randomness.
pub(super) fn wrap(master: &Secret, uuid: Uuid, slot: u32, key: &Secret) -> Result<Token> {
    let nonce = random::<NONCE_LEN>()?;
    let mut bytes = key.expose().to_vec();
    let with = Nonce::assume_unique_for_key(nonce);
    let bound = bound(uuid, slot);
    wrapping_key(master, uuid)
        .and_then(|k| k.seal_in_place_append_tag(with, Aad::from(&bound), &mut bytes).ok())
        .ok_or_else(|| Error::host("cannot wrap a volume's key"))?;
    Ok(Token::new(uuid, slot, hex(&nonce), hex(&bytes)))
}

/// The key in a token. `None` when another master key wrapped it, or it was made for another header.
pub(crate) fn unwrap(master: &Secret, token: &Token) -> Option<Secret> {
    let nonce = Nonce::try_assume_unique_for_key(&unhex(&token.nonce)?).ok()?;
    let mut bytes = unhex(&token.key)?;
    let bound = bound(token.uuid, token.slot);
    let key = wrapping_key(master, token.uuid)?;
    let len = key.open_in_place(nonce, Aad::from(&bound), &mut bytes).ok()?.len();
    bytes.truncate(len);
    Some(Secret::new(bytes))
}

/// One for each header: so many keys may be wrapped by one master key as there are volumes.
fn wrapping_key(master: &Secret, uuid: Uuid) -> Option<LessSafeKey> {
    let extracted = Salt::new(HKDF_SHA256, uuid.as_bytes()).extract(master.expose());
    let expanded = extracted.expand(PURPOSE, &AES_256_GCM).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(expanded)))
}

fn bound(uuid: Uuid, slot: u32) -> Vec<u8> {
    format!("{uuid} {slot}").into_bytes()
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::host("the kernel gives no random bytes"))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
        _ => None,
    };
    pairs.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_comes_out_by_its_master_key_alone_and_for_its_header_alone() {
        let master = Secret::new(vec![b'm'; 44]);
        let key = new_key().unwrap();
        assert_eq!(key.len(), 64);
        assert!(key.expose().iter().all(u8::is_ascii_hexdigit) && key != new_key().unwrap());
        let token = wrap(&master, Uuid::from_u128(1), 2, &key).unwrap();
        assert_eq!(unwrap(&master, &token), Some(key.clone()));
        assert_eq!(unwrap(&Secret::new(vec![b'n'; 44]), &token), None);
        let other = |change: fn(&mut Token)| {
            let mut token = token.clone();
            change(&mut token);
            unwrap(&master, &token)
        };
        assert_eq!(other(|t| t.uuid = Uuid::from_u128(2)), None);
        assert_eq!(other(|t| t.slot = 3), None);
        assert_eq!(other(|t| t.nonce = "00".to_owned()), None);
        assert_eq!(other(|t| t.key.truncate(5)), None);
        assert_eq!(other(|t| t.key = "zz".to_owned()), None);
        let text = serde_json::to_string(&token).unwrap();
        assert!(!text.contains(std::str::from_utf8(key.expose()).unwrap()));
    }
}
