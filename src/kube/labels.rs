//! The labels of nodes, watched only when a backend selects nodes by them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::kube::core::PartialObjectMeta;
use ::kube::runtime::{WatchStreamExt, watcher};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Api;
use crate::agent::Labels;
use crate::config::Config;
use crate::link::NodeLabels;
use crate::names::NodeName;

type Known = BTreeMap<NodeName, watch::Sender<Option<Labels>>>;

/// The labels of all nodes.
#[derive(Debug, Default)]
pub struct NodeLabelsWatch {
    known: Mutex<Known>,
}

impl NodeLabelsWatch {
    /// Watches the nodes from when a backend first selects by labels, until `stop`.
    pub async fn run(
        self: Arc<Self>,
        api: Api,
        mut config: watch::Receiver<Arc<Config>>,
        stop: CancellationToken,
    ) {
        let selects = |config: &Arc<Config>| config.backends().any(|b| !b.node_selector.is_empty());
        let needed = async { config.wait_for(selects).await.is_ok() };
        if stop.run_until_cancelled(needed).await != Some(true) {
            return;
        }
        api.requests.count("watch", "nodes");
        let nodes = ::kube::Api::<PartialObjectMeta<Node>>::all(api.client.clone());
        let events = watcher(nodes, watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut failed = false;
        while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
            match event {
                Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => {
                    failed = false;
                    let metadata = node.metadata;
                    let name = metadata.name.as_deref().map(NodeName::parse);
                    if let Some(Ok(name)) = name {
                        self.set(name, metadata.labels.unwrap_or_default());
                    }
                }
                // A node that is gone connects no more, and keeps what it had while it does.
                Ok(watcher::Event::Delete(_) | watcher::Event::Init | watcher::Event::InitDone) => {
                }
                Err(error) => {
                    if !failed {
                        tracing::warn!(%error, "nodes' labels cannot be watched; trying again");
                    }
                    failed = true;
                }
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, node: NodeName, labels: Labels) {
        let mut known = self.known();
        let sender = known.entry(node).or_insert_with(|| watch::Sender::new(None));
        sender.send_if_modified(|before| {
            let differs = before.as_ref() != Some(&labels);
            *before = Some(labels);
            differs
        });
    }
}

impl NodeLabels for NodeLabelsWatch {
    fn labels(&self, node: &NodeName) -> watch::Receiver<Option<Labels>> {
        let mut known = self.known();
        known.entry(node.clone()).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn labels_arrive_when_a_backend_asks_for_them() {
        let (api, asked) = testing::api(|(_, path, _)| {
            assert_eq!(path, "/api/v1/nodes");
            (
                200,
                json!({
                    "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
                    "metadata": {"resourceVersion": "1"},
                    "items": [{"metadata": {"name": "n1", "labels": {"disk": "nvme"}}}],
                }),
            )
        });
        let config = watch::Sender::new(Arc::new(Config::default()));
        let labels = Arc::new(NodeLabelsWatch::default());
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&labels).run(api, config.subscribe(), stop.clone()));
        let mut n1 = labels.labels(&NodeName::parse("n1").unwrap());
        tokio::task::yield_now().await;
        assert!(asked.lock().unwrap().is_empty());
        let text = "backends: [{name: a, volumeGroup: v, nodes: {disk: nvme}}]";
        config.send_replace(Arc::new(Config::parse(text).unwrap()));
        n1.wait_for(|l| l.as_ref().is_some_and(|l| l["disk"] == "nvme")).await.unwrap();
        stop.cancel();
        running.await.unwrap();
    }
}
