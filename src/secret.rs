//! Bytes that nobody may see: no `Debug` or `Display` shows them, and their memory is zeroed when
//! they are dropped.

use std::fmt;

use zeroize::Zeroizing;

/// A passphrase or key.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes bytes over, memory and all.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes. Only for a descriptor or a cipher, never for a text.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Several, one line each.
    #[must_use]
    pub fn lines(secrets: &[&Self]) -> Self {
        // Grown once: what a vector leaves behind when it moves is not zeroed.
        let len = secrets.iter().map(|s| s.len().saturating_add(1)).sum();
        let mut bytes = Vec::with_capacity(len);
        for secret in secrets {
            bytes.extend_from_slice(secret.expose());
            bytes.push(b'\n');
        }
        Self::new(bytes)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_sees_it() {
        let secret = Secret::new(b"hunter2".to_vec());
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(format!("{:?}", Some(secret.clone())), "Some(***)");
        assert_eq!(Secret::lines(&[&secret, &secret]).expose(), b"hunter2\nhunter2\n");
    }
}
