//! TLS configurations: the controller's with a certificate that may change any time, and a node's
//! with the authorities that it trusts.

use std::fmt::{self, Debug};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, Result};

/// Who the controller is, as of now. Clones are one.
#[derive(Clone, Default)]
pub struct Identity(Arc<RwLock<Option<Arc<CertifiedKey>>>>);

impl Identity {
    /// From now on this certificate chain and key, both PEM.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together; then nothing changes.
    pub fn set(&self, chain_pem: &str, key_pem: &str) -> Result<()> {
        let bad = |what: &str| Error::invalid(format!("the controller's {what} cannot be read"));
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| bad("certificate").because(e))?;
        if chain.is_empty() {
            return Err(bad("certificate"));
        }
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| bad("private key"))?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|e| {
            Error::invalid("the controller's certificate and key do not belong together").because(e)
        })?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }

    /// Whether there is a certificate.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("is_set", &self.is_set()).finish()
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// The controller's configuration. Clients prove who they are by their token, later.
///
/// # Errors
/// Never in practice: the versions are those of the provider.
pub fn server_config(identity: Identity) -> Result<rustls::ServerConfig> {
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::host("TLS 1.3 is not to be had").because(e))?;
    Ok(config.with_no_client_auth().with_cert_resolver(Arc::new(identity)))
}

/// A node's configuration: who may sign a controller's certificate stands in a file, read anew for
/// each connection.
///
/// # Errors
/// When the file has no certificates.
pub fn client_config(ca_file: &Path) -> Result<rustls::ClientConfig> {
    let bad = || Error::invalid(format!("the authorities in {} cannot be read", ca_file.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).map_err(|e| bad().because(e))? {
        roots.add(certificate.map_err(|e| bad().because(e))?).map_err(|e| bad().because(e))?;
    }
    if roots.is_empty() {
        return Err(bad());
    }
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::host("TLS 1.3 is not to be had").because(e))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
