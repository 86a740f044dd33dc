//! A certificate of the user's own, from files that somebody else renews in place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::server::Identity;
use crate::error::{Error, Result};

const READ_EVERY: Duration = Duration::from_secs(10);

/// Reads the files, and reads them again until `stop`.
///
/// # Errors
/// When they cannot be used now; later that is logged, and the certificate before stays.
pub fn follow_files(
    identity: &Identity,
    certificate: &Path,
    key: &Path,
    stop: CancellationToken,
) -> Result<()> {
    let mut last = read(certificate, key)?;
    identity.set(&last.0, &last.1)?;
    let (identity, certificate, key) = (identity.clone(), certificate.to_owned(), key.to_owned());
    tokio::spawn(async move {
        while stop.run_until_cancelled(tokio::time::sleep(READ_EVERY)).await.is_some() {
            let Ok(now) = read(&certificate, &key) else { continue };
            if now == last {
                continue;
            }
            match identity.set(&now.0, &now.1) {
                Ok(()) => {
                    tracing::info!(file = %certificate.display(), "the controller's certificate was renewed");
                    last = now;
                }
                Err(error) => {
                    tracing::warn!(file = %certificate.display(), error = error.chain(), "the renewed certificate cannot be used yet");
                }
            }
        }
    });
    Ok(())
}

fn read(certificate: &Path, key: &Path) -> Result<(String, String)> {
    let read = |path: &Path| -> Result<String> {
        let path = PathBuf::from(path);
        std::fs::read_to_string(&path)
            .map_err(|e| Error::invalid(format!("cannot read {}", path.display())).because(e))
    };
    Ok((read(certificate)?, read(key)?))
}
