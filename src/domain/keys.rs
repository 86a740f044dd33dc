//! What a Secret of Kubernetes says about a volume's key.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};
use crate::secret::Secret;

/// cryptsetup's own limit for what is typed.
const PASSPHRASE_BYTES_MAX: usize = 512;
/// What 32 random bytes have at least, in whatever letters they are written.
const MASTER_KEY_BYTES_MIN: usize = 32;

/// The Secret that came with a call, unread: a volume that is not encrypted needs none, and does not
/// mind one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(BTreeMap<String, Secret>);

/// How a volume is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// By this, as it is.
    Passphrase(Secret),
    /// By a random key of its own, which this unwraps.
    Master(Secret),
}

/// What opens a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// What shall open it.
    pub own: Key,
    /// What may open it still: of the volume's source, or before the Secret was changed.
    pub previous: Vec<Key>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

impl Secrets {
    /// Takes over what came with a call.
    pub fn new(entries: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(entries.into_iter().map(|(k, v)| (k, Secret::new(v.into_bytes()))).collect())
    }

    /// What the Secret says. `parameter` is the one of a `StorageClass` that names such a Secret.
    ///
    /// # Errors
    /// When there is none, or what is in it is no key.
    pub fn keys(&self, parameter: &str) -> Result<Keys> {
        if self.0.is_empty() {
            return Err(Error::invalid(format!(
                "the volume is encrypted, and no Secret came with the call: name one in the StorageClass by the parameters \
                 csi.storage.k8s.io/{parameter}-name and csi.storage.k8s.io/{parameter}-namespace"
            )));
        }
        let own = match (self.passphrase("passphrase")?, self.master("masterKey")?) {
            (Some(key), None) | (None, Some(key)) => key,
            (None, None) => {
                let has: Vec<_> = self.0.keys().map(String::as_str).collect();
                return Err(Error::invalid(format!(
                    "the Secret of an encrypted volume needs the key passphrase or the key masterKey, and has only {}",
                    has.join(", ")
                )));
            }
            (Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "the Secret of an encrypted volume has passphrase and masterKey: it can be opened by one of them only; for the one it was \
                     opened by before, use previousPassphrase or previousMasterKey",
                ));
            }
        };
        let previous = [self.passphrase("previousPassphrase")?, self.master("previousMasterKey")?];
        let previous = previous.into_iter().flatten().filter(|key| *key != own).collect();
        Ok(Keys { own, previous })
    }

    fn passphrase(&self, name: &str) -> Result<Option<Key>> {
        let Some(secret) = self.0.get(name) else { return Ok(None) };
        let bad = |why: &str| Err(Error::invalid(format!("{name} of the Secret {why}")));
        if secret.is_empty() || secret.len() > PASSPHRASE_BYTES_MAX {
            return bad("must have 1 to 512 bytes");
        }
        if secret.expose().iter().any(|c| [b'\n', b'\r', 0].contains(c)) {
            return bad(
                "must be one line without a line break at its end: kubectl create secret --from-literal makes it so",
            );
        }
        Ok(Some(Key::Passphrase(secret.clone())))
    }

    fn master(&self, name: &str) -> Result<Option<Key>> {
        let Some(secret) = self.0.get(name) else { return Ok(None) };
        // A line break at the end is what files have; it is no part of the key.
        let key = Secret::new(secret.expose().trim_ascii().to_vec());
        if key.len() < MASTER_KEY_BYTES_MIN {
            return Err(Error::invalid(format!(
                "{name} of the Secret must have at least {MASTER_KEY_BYTES_MIN} bytes, as `openssl rand -base64 32` makes them"
            )));
        }
        Ok(Some(Key::Master(key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(entries: &[(&str, &str)]) -> Result<Keys> {
        let entries = entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Secrets::new(entries).keys("node-stage-secret")
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes().to_vec())
    }

    #[test]
    fn what_a_secret_may_say() {
        let master = "k".repeat(44);
        let found = keys(&[("passphrase", "open it"), ("previousMasterKey", &master)]).unwrap();
        assert_eq!(found.own, Key::Passphrase(secret("open it")));
        assert_eq!(found.previous, [Key::Master(secret(&master))]);
        let found = keys(&[("masterKey", &format!("{master}\n"))]).unwrap();
        assert_eq!(found, Keys { own: Key::Master(secret(&master)), previous: vec![] });
        let same = keys(&[("passphrase", "a"), ("previousPassphrase", "a")]).unwrap();
        assert_eq!(same.previous, []);
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        let long = "x".repeat(513);
        for (entries, what) in [
            (&[][..], "csi.storage.k8s.io/node-stage-secret-name"),
            (&[("password", "hunter2")], "has only password"),
            (&[("passphrase", "")], "1 to 512 bytes"),
            (&[("passphrase", &*long)], "1 to 512 bytes"),
            (&[("passphrase", "hunter2\n")], "one line"),
            (&[("masterKey", "hunter2")], "at least 32 bytes"),
            (&[("passphrase", "a"), ("masterKey", "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk")], "only"),
        ] {
            let error = keys(entries).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            assert!(!error.chain().contains("hunter2"));
        }
        let held = Secrets::new([("passphrase".to_owned(), "hunter2".to_owned())]);
        assert_eq!(format!("{held:?}"), "1 secrets");
    }
}
