//! The backends' file, read at start and again whenever it changes. A wrong file stops the start;
//! later it is logged, and what was right before stays.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Result};

/// How often the file is read. The kubelet replaces a ConfigMap's files about once a minute.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Reads the file, and keeps reading it until `stop`.
pub(super) fn follow(path: &Path, stop: CancellationToken) -> Result<watch::Receiver<Arc<Config>>> {
    let (mut text, config) = read(path)?;
    let (sender, receiver) = watch::channel(Arc::new(config));
    let path = path.to_owned();
    tokio::spawn(async move {
        while stop.run_until_cancelled(tokio::time::sleep(READ_EVERY)).await.is_some() {
            let Ok(now) = tokio::fs::read_to_string(&path).await else { continue };
            if now == text {
                continue;
            }
            text = now;
            apply(&path, &text, &sender);
        }
    });
    Ok(receiver)
}

fn apply(path: &Path, text: &str, sender: &watch::Sender<Arc<Config>>) {
    match Config::parse(text) {
        Ok(config) => {
            tracing::info!(file = %path.display(), "the backends' configuration changed");
            sender.send_replace(Arc::new(config));
        }
        Err(error) => tracing::error!(
            file = %path.display(),
            error = error.chain(),
            "the backends' configuration changed and is wrong; what was right before stays"
        ),
    }
}

fn read(path: &Path) -> Result<(String, Config)> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::invalid(format!("cannot read the backends' configuration {}", path.display()))
            .because(e)
    })?;
    let config = Config::parse(&text)?;
    Ok((text, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_change_changes_nothing() {
        let (sender, receiver) = watch::channel(Arc::new(Config::default()));
        let path = Path::new("x");
        apply(path, "backends: [{name: a, volumeGroup: vg0}]", &sender);
        assert_eq!(receiver.borrow().backends().count(), 1);
        apply(path, "backends: [{name: A}]", &sender);
        assert_eq!(receiver.borrow().backends().count(), 1);
        assert!(follow(Path::new("/nonexistent"), CancellationToken::new()).is_err());
    }
}
