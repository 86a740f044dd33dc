//! A certificate authority of our own: makes certificates, and knows when its time comes. Whoever
//! calls says what time it is.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;

use crate::error::{Error, Result};

const DAY: Duration = Duration::from_hours(24);
/// How long an authority lasts.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);
/// So long before its end the next one is made and published.
const NEXT_BEFORE_END: Duration = DAY.saturating_mul(365);
/// So long after it was published the next one signs: every node has it then. The kubelet writes a
/// changed ConfigMap within two minutes; a node that was down reads it when it starts.
const PUBLISHED_BEFORE_USE: Duration = DAY.saturating_mul(7);
/// How long a controller's certificate lasts, and how long before its end it makes the next.
const LEAF_LIFE: Duration = DAY.saturating_mul(14);
const LEAF_RENEW_BEFORE_END: Duration = DAY.saturating_mul(7);
/// Clocks differ: a certificate counts from so long before it was made.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";

/// An authority: a certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    certificate: String,
    key: String,
}

impl Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What is to be done about the authority that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Store this, and look again. Whoever stores first wins.
    Store(BTreeMap<String, String>),
    /// Publish this bundle, sign with this authority, and look again within a day.
    Use {
        /// Certificates that nodes have to trust, PEM.
        bundle: String,
        /// Who signs.
        signer: Authority,
    },
}

fn failed(e: rcgen::Error) -> Error {
    Error::host("cannot make a certificate").because(e)
}

fn at(unix: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Whole seconds.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

impl Authority {
    /// A new one, from `now` (seconds since 1970).
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(now: i64) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("cinderblock {now}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = at(now.saturating_sub(seconds(CLOCK_SKEW)));
        params.not_after = at(now.saturating_add(seconds(AUTHORITY_LIFE)));
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate and key for a controller that nodes reach by `name`, both PEM.
    ///
    /// # Errors
    /// When the authority's key is damaged.
    pub fn sign(&self, name: &str, now: i64) -> Result<(String, String)> {
        let key = KeyPair::from_pem(&self.key).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, key).map_err(failed)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = at(now.saturating_sub(seconds(CLOCK_SKEW)));
        params.not_after = at(now.saturating_add(seconds(LEAF_LIFE)));
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// When a certificate that is made at `now` has to be followed by the next.
    #[must_use]
    pub fn renew_leaf_at(now: i64) -> i64 {
        now.saturating_add(seconds(LEAF_LIFE.saturating_sub(LEAF_RENEW_BEFORE_END)))
    }

    fn made_at(&self) -> Result<i64> {
        use rustls_pki_types::pem::PemObject;
        let der = rustls_pki_types::CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|e| Error::invalid("the stored authority cannot be read").because(e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|e| Error::invalid("the stored authority cannot be read").because(e))?;
        Ok(parsed.validity().not_before.timestamp().saturating_add(seconds(CLOCK_SKEW)))
    }
}

/// What is to be done now (seconds since 1970) about what is stored.
///
/// # Errors
/// When what is stored cannot be read: it is never overwritten, a person has to look.
pub fn next_step(stored: &BTreeMap<String, String>, now: i64) -> Result<Step> {
    let pair = |certificate: &str, key: &str| match (stored.get(certificate), stored.get(key)) {
        (Some(certificate), Some(key)) => {
            Ok(Some(Authority { certificate: certificate.clone(), key: key.clone() }))
        }
        (None, None) => Ok(None),
        _ => Err(Error::invalid(format!(
            "the stored authority has {certificate} or {key}, but not both: delete the Secret to begin anew"
        ))),
    };
    let Some(current) = pair(CERTIFICATE, KEY)? else {
        return Ok(Step::Store(store(&Authority::new(now)?, None)));
    };
    let end = current.made_at()?.saturating_add(seconds(AUTHORITY_LIFE));
    let Some(next) = pair(NEXT_CERTIFICATE, NEXT_KEY)? else {
        if now >= end.saturating_sub(seconds(NEXT_BEFORE_END)) {
            return Ok(Step::Store(store(&current, Some(&Authority::new(now)?))));
        }
        return Ok(Step::Use { bundle: current.certificate.clone(), signer: current });
    };
    if now >= end {
        return Ok(Step::Store(store(&next, None)));
    }
    let bundle = format!("{}{}", current.certificate, next.certificate);
    let known = next.made_at()?.saturating_add(seconds(PUBLISHED_BEFORE_USE));
    Ok(Step::Use { bundle, signer: if now >= known { next } else { current } })
}

fn store(current: &Authority, next: Option<&Authority>) -> BTreeMap<String, String> {
    let mut stored = BTreeMap::from([
        (CERTIFICATE.to_owned(), current.certificate.clone()),
        (KEY.to_owned(), current.key.clone()),
    ]);
    if let Some(next) = next {
        stored.insert(NEXT_CERTIFICATE.to_owned(), next.certificate.clone());
        stored.insert(NEXT_KEY.to_owned(), next.key.clone());
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_800_000_000;
    const DAY_S: i64 = 86_400;

    fn used(stored: &BTreeMap<String, String>, now: i64) -> (String, Authority) {
        match next_step(stored, now).unwrap() {
            Step::Use { bundle, signer } => (bundle, signer),
            Step::Store(_) => panic!("nothing has to be stored"),
        }
    }

    fn stored(from: &BTreeMap<String, String>, now: i64) -> BTreeMap<String, String> {
        match next_step(from, now).unwrap() {
            Step::Store(stored) => stored,
            Step::Use { .. } => panic!("something has to be stored"),
        }
    }

    /// Over twenty years, at no time does a controller have a certificate that a node which read the
    /// bundle within the last week would refuse.
    #[test]
    fn authorities_follow_each_other_without_a_gap() {
        let mut store = stored(&BTreeMap::new(), START);
        let mut bundles: Vec<(i64, String)> = Vec::new();
        let (mut signers, mut now) = (Vec::<Authority>::new(), START);
        while now < START + 20 * 365 * DAY_S {
            while let Step::Store(next) = next_step(&store, now).unwrap() {
                store = next;
            }
            let (bundle, signer) = used(&store, now);
            bundles.push((now, bundle));
            let old = bundles.iter().rev().find(|(at, _)| *at <= now - 7 * DAY_S);
            if let Some((_, old)) = old {
                assert!(old.contains(&signer.certificate), "at day {}", (now - START) / DAY_S);
            }
            if signers.last() != Some(&signer) {
                signers.push(signer);
            }
            now += DAY_S;
        }
        assert_eq!(signers.len(), 3);
    }

    #[test]
    fn what_cannot_be_read_is_not_overwritten() {
        let mut store = stored(&BTreeMap::new(), START);
        store.remove(KEY);
        assert!(next_step(&store, START).is_err());
        store.insert(KEY.to_owned(), "x".to_owned());
        store.insert(CERTIFICATE.to_owned(), "y".to_owned());
        assert!(next_step(&store, START).is_err());
    }

    #[test]
    fn certificates_are_accepted_by_who_trusts_the_authority() {
        let (one, two) = (Authority::new(START).unwrap(), Authority::new(START).unwrap());
        let (chain, key) = one.sign("controller.ns.svc", START).unwrap();
        super::super::Identity::default().set(&chain, &key).unwrap();
        let (_, other) = two.sign("controller.ns.svc", START).unwrap();
        assert!(super::super::Identity::default().set(&chain, &other).is_err());
        assert!(Authority::renew_leaf_at(START) < START + 14 * DAY_S);
        assert!(!format!("{one:?}").contains("PRIVATE"));
    }
}
