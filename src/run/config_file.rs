//! The backends' file, read at start and again whenever it changes. A wrong file stops the start;
//! later it is logged and counted, and what was right before stays.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::names::NodeName;

/// How often the file is read. The kubelet replaces a ConfigMap's files about once a minute.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Reads the file, and keeps reading it until `stop`; on a node, as it is there.
pub(super) fn follow(
    path: &Path,
    node: Option<&NodeName>,
    metrics: &Metrics,
    stop: CancellationToken,
) -> Result<watch::Receiver<Arc<Config>>> {
    let (mut text, config) = read(path, node)?;
    let (sender, receiver) = watch::channel(Arc::new(config));
    let is_wrong = Arc::new(AtomicBool::new(false));
    let shown = Arc::clone(&is_wrong);
    metrics.show(
        "cinderblock_configuration_wrong",
        "Whether the backends' configuration is wrong: it would stop the next start",
        move || u64::from(shown.load(Ordering::Relaxed)),
    );
    let (path, node) = (path.to_owned(), node.cloned());
    tokio::spawn(async move {
        while stop.run_until_cancelled(tokio::time::sleep(READ_EVERY)).await.is_some() {
            let Ok(now) = tokio::fs::read_to_string(&path).await else { continue };
            if now == text {
                continue;
            }
            text = now;
            let is_applied = apply(&path, &text, node.as_ref(), &sender);
            is_wrong.store(!is_applied, Ordering::Relaxed);
        }
    });
    Ok(receiver)
}

/// Whether it is right, and counts from now on.
fn apply(
    path: &Path,
    text: &str,
    node: Option<&NodeName>,
    sender: &watch::Sender<Arc<Config>>,
) -> bool {
    let parsed = parse(text, node);
    let is_right = parsed.is_ok();
    match parsed {
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
    is_right
}

fn parse(text: &str, node: Option<&NodeName>) -> Result<Config> {
    let config = Config::parse(text)?;
    Ok(match node {
        Some(node) => config.on_node(node),
        None => config,
    })
}

fn read(path: &Path, node: Option<&NodeName>) -> Result<(String, Config)> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::invalid(format!("cannot read the backends' configuration {}", path.display()))
            .because(e)
    })?;
    let config = parse(&text, node)?;
    Ok((text, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_change_changes_nothing() {
        let (sender, receiver) = watch::channel(Arc::new(Config::default()));
        let path = Path::new("x");
        assert!(apply(path, "backends: [{name: a, volumeGroup: vg0}]", None, &sender));
        assert_eq!(receiver.borrow().backends().count(), 1);
        assert!(!apply(path, "backends: [{name: A}]", None, &sender));
        assert_eq!(receiver.borrow().backends().count(), 1);
        let own = "backends: [{name: a, volumeGroup: vg0, create: true, nodeDevices: {n1: [/dev/disk/by-id/x]}}]";
        assert!(apply(path, own, Some(&NodeName::parse("n1").unwrap()), &sender));
        assert_eq!(receiver.borrow().backend(None).unwrap().create_from.len(), 1);
        let metrics = Metrics::new("test");
        let none = Path::new("/nonexistent");
        assert!(follow(none, None, &metrics, CancellationToken::new()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_change_is_counted_until_it_is_mended() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        let metrics = Metrics::new("test");
        let is_counted = || metrics.text().contains("cinderblock_configuration_wrong 1");
        write("backends: [{name: a, volumeGroup: vg0}]");
        let config = follow(file.path(), None, &metrics, CancellationToken::new()).unwrap();
        assert!(!is_counted());
        write("backends: [{name: a, volumeGroup: vg0, overprovision: much}]");
        // Time is simulated, and the file is not.
        while !is_counted() {
            tokio::time::sleep(READ_EVERY).await;
        }
        assert_eq!(config.borrow().backends().count(), 1);
        write("backends: [{name: b, volumeGroup: vg0}]");
        while is_counted() {
            tokio::time::sleep(READ_EVERY).await;
        }
        assert_eq!(config.borrow().backend(None).unwrap().name.as_str(), "b");
    }
}
