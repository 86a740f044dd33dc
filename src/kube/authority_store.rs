//! Where the certificate authority is kept: its key in a Secret, what nodes have to trust in a
//! ConfigMap. Both are made by whoever installs, empty; here they are only read and written, so
//! that the controller needs rights on these two objects and no other.

use std::collections::BTreeMap;
use std::time::Duration;

use ::kube::api::PostParams;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use tokio_util::sync::CancellationToken;

use super::{Api, Failed};
use crate::error::{Error, Result};
use crate::tls::{Authority, Identity, Step, next_step};

/// The key under which nodes find the certificates that they have to trust.
const BUNDLE: &str = "ca.crt";
/// How often the stored authority is looked at: somebody may have changed it, or its time come.
const LOOK_EVERY: Duration = Duration::from_mins(10);
/// After a failure.
const AGAIN_MIN: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// The two objects.
#[derive(Clone, Debug)]
pub struct AuthorityStore {
    api: Api,
    namespace: String,
    name: String,
}

impl AuthorityStore {
    /// The Secret and the ConfigMap of that name.
    #[must_use]
    pub const fn new(api: Api, namespace: String, name: String) -> Self {
        Self { api, namespace, name }
    }

    /// Who signs now. Makes an authority when there is none, and lets nodes know whom to trust.
    ///
    /// # Errors
    /// When the API fails, or what is stored cannot be read.
    pub async fn signer(&self, now: i64) -> Result<Authority> {
        loop {
            // When another controller was faster, or we have just stored it: what is stored counts.
            if let Some((bundle, signer)) = self.secret_step(now).await?
                && self.publish(&bundle).await?
            {
                return Ok(signer);
            }
        }
    }

    /// One step on the Secret. `None`: look again.
    async fn secret_step(&self, now: i64) -> Result<Option<(String, Authority)>> {
        let secrets = ::kube::Api::<Secret>::namespaced(self.api.client.clone(), &self.namespace);
        let got = self.api.request("get", "secrets", secrets.get(&self.name)).await;
        let mut secret = got.map_err(|failed| self.missing("Secret", failed))?;
        let stored = texts(secret.data.take().unwrap_or_default())?;
        match next_step(&stored, now)? {
            Step::Use { bundle, signer } => Ok(Some((bundle, signer))),
            Step::Store(next) => {
                let bytes =
                    next.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes())));
                secret.data = Some(bytes.collect());
                // With its resource version: whoever is first wins, the others look again.
                let parameters = PostParams::default();
                let put = secrets.replace(&self.name, &parameters, &secret);
                match self.api.request("update", "secrets", put).await {
                    Ok(_) => tracing::info!(secret = self.name, "stored a certificate authority"),
                    Err(failed) if failed.code == Failed::CONFLICT => {}
                    Err(failed) => return Err(failed.into()),
                }
                Ok(None)
            }
        }
    }

    /// Whether nodes can know the bundle now.
    async fn publish(&self, bundle: &str) -> Result<bool> {
        let maps = ::kube::Api::<ConfigMap>::namespaced(self.api.client.clone(), &self.namespace);
        let got = self.api.request("get", "configmaps", maps.get(&self.name)).await;
        let mut map = got.map_err(|failed| self.missing("ConfigMap", failed))?;
        let data = map.data.get_or_insert_default();
        if data.get(BUNDLE).is_some_and(|there| there == bundle) {
            return Ok(true);
        }
        data.insert(BUNDLE.to_owned(), bundle.to_owned());
        let parameters = PostParams::default();
        let put = maps.replace(&self.name, &parameters, &map);
        match self.api.request("update", "configmaps", put).await {
            Ok(_) => {
                tracing::info!(config_map = self.name, "published what nodes have to trust");
                Ok(true)
            }
            Err(failed) if failed.code == Failed::CONFLICT => Ok(false),
            Err(failed) => Err(failed.into()),
        }
    }

    fn missing(&self, kind: &str, failed: Failed) -> Error {
        if failed.code != Failed::NOT_FOUND {
            return failed.into();
        }
        Error::invalid(format!(
            "the {kind} {}/{} is not there: install again, so that it is made",
            self.namespace, self.name
        ))
    }
}

fn texts(data: BTreeMap<String, ByteString>) -> Result<BTreeMap<String, String>> {
    data.into_iter()
        .map(|(key, ByteString(bytes))| match String::from_utf8(bytes) {
            Ok(text) => Ok((key, text)),
            Err(_) => Err(Error::invalid(format!("the stored authority's {key} is not a text"))),
        })
        .collect()
}

/// Keeps the controller's certificate fresh until `stop`. `clock` tells the seconds since 1970.
pub async fn keep_certificate(
    store: AuthorityStore,
    identity: Identity,
    server_name: String,
    clock: impl Fn() -> i64 + Send,
    stop: CancellationToken,
) {
    let mut signed: Option<(Authority, i64)> = None;
    let mut again = AGAIN_MIN;
    loop {
        let now = clock();
        let pause = match renew(&store, &identity, &server_name, now, &mut signed).await {
            Ok(()) => {
                again = AGAIN_MIN;
                LOOK_EVERY
            }
            Err(error) => {
                tracing::error!(
                    error = error.chain(),
                    "the controller's certificate cannot be renewed; trying again"
                );
                let pause = again;
                again = again.saturating_mul(2).min(AGAIN_MAX);
                pause
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn renew(
    store: &AuthorityStore,
    identity: &Identity,
    server_name: &str,
    now: i64,
    last: &mut Option<(Authority, i64)>,
) -> Result<()> {
    let signer = store.signer(now).await?;
    if last.as_ref().is_some_and(|(by, renew_at)| *by == signer && now < *renew_at) {
        return Ok(());
    }
    let (chain, key) = signer.sign(server_name, now)?;
    identity.set(&chain, &key)?;
    tracing::info!(server_name, "made a certificate for nodes to know the controller by");
    *last = Some((signer, Authority::renew_leaf_at(now)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};

    const NOW: i64 = 1_800_000_000;

    /// A Secret and a ConfigMap behind an API that checks resource versions.
    #[derive(Debug, Default)]
    struct Cluster {
        objects: BTreeMap<String, (u64, Value)>,
        /// What somebody else writes before the next update, once.
        rival: Option<(String, Value)>,
    }

    impl Cluster {
        fn answer(&mut self, (method, path, body): &testing::Asked) -> (u16, Value) {
            let kind = if path.contains("secrets") { "Secret" } else { "ConfigMap" };
            if method == "PUT"
                && let Some((path, data)) = self.rival.take()
            {
                let entry = self.objects.get_mut(&path).unwrap();
                *entry = (entry.0 + 1, data);
            }
            let Some((version, data)) = self.objects.get_mut(path) else {
                return testing::refusal(404, "NotFound");
            };
            if method == "PUT" {
                if body["metadata"]["resourceVersion"] != json!(version.to_string()) {
                    return testing::refusal(409, "Conflict");
                }
                (*version, *data) = (*version + 1, body["data"].clone());
            }
            (
                200,
                json!({
                    "apiVersion": "v1", "kind": kind, "data": data,
                    "metadata": {"name": "ca", "namespace": "ns", "resourceVersion": version.to_string()},
                }),
            )
        }
    }

    const SECRET: &str = "/api/v1/namespaces/ns/secrets/ca";
    const CONFIG_MAP: &str = "/api/v1/namespaces/ns/configmaps/ca";

    fn cluster() -> (AuthorityStore, Arc<Mutex<Cluster>>) {
        let cluster = Arc::new(Mutex::new(Cluster::default()));
        for path in [SECRET, CONFIG_MAP] {
            cluster.lock().unwrap().objects.insert(path.to_owned(), (1, Value::Null));
        }
        let behind = Arc::clone(&cluster);
        let (api, _) = testing::api(move |asked| behind.lock().unwrap().answer(asked));
        (AuthorityStore::new(api, "ns".to_owned(), "ca".to_owned()), cluster)
    }

    #[tokio::test]
    async fn made_once_and_found_again() {
        let (store, cluster) = cluster();
        let first = store.signer(NOW).await.unwrap();
        let bundle = cluster.lock().unwrap().objects[CONFIG_MAP].1["ca.crt"].clone();
        assert!(bundle.as_str().unwrap().contains("BEGIN CERTIFICATE"));
        assert!(!bundle.as_str().unwrap().contains("PRIVATE"));
        assert_eq!(store.signer(NOW + 60).await.unwrap(), first);
        // Whoever empties the ConfigMap is corrected.
        cluster.lock().unwrap().objects.insert(CONFIG_MAP.to_owned(), (9, Value::Null));
        assert_eq!(store.signer(NOW + 60).await.unwrap(), first);
        assert_eq!(cluster.lock().unwrap().objects[CONFIG_MAP].1["ca.crt"], bundle);
    }

    #[tokio::test]
    async fn two_controllers_that_start_together_agree() {
        let ((store, cluster), (other, others)) = (cluster(), cluster());
        let theirs = other.signer(NOW).await.unwrap();
        let data = others.lock().unwrap().objects[SECRET].1.clone();
        cluster.lock().unwrap().rival = Some((SECRET.to_owned(), data));
        assert_eq!(store.signer(NOW).await.unwrap(), theirs);
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let (store, cluster) = cluster();
        cluster.lock().unwrap().objects.remove(CONFIG_MAP);
        let error = store.signer(NOW).await.unwrap_err().to_string();
        assert!(error.contains("ConfigMap ns/ca"), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_is_renewed_in_time_and_not_before() {
        let (store, _cluster) = cluster();
        let identity = Identity::default();
        let mut signed = None;
        renew(&store, &identity, "c.ns.svc", NOW, &mut signed).await.unwrap();
        assert!(identity.is_set());
        let first = signed.clone();
        renew(&store, &identity, "c.ns.svc", NOW + 6 * 86_400, &mut signed).await.unwrap();
        assert_eq!(signed, first);
        renew(&store, &identity, "c.ns.svc", NOW + 8 * 86_400, &mut signed).await.unwrap();
        assert_ne!(signed, first);
    }
}
