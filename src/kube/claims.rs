//! What a claim says of its placement: whether the node that it asks for is a guess of the
//! scheduler, which a volume made of a source need not follow.

use std::pin::Pin;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, TopologySelectorTerm};
use k8s_openapi::api::storage::v1::StorageClass;

use super::{Api, Failed};
use crate::controller::SourcePlacement;
use crate::domain::Parameters;
use crate::error::Result;
use crate::names::NodeName;

/// What external-provisioner adds with --extra-create-metadata.
const CLAIM_NAME: &str = "csi.storage.k8s.io/pvc/name";
const CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// Where the scheduler writes the node that it has chosen (`WaitForFirstConsumer`).
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The claims of a cluster.
#[derive(Debug)]
pub struct Claims {
    api: Api,
    topology_key: String,
}

impl Claims {
    /// Claims of a driver that names nodes by this topology key.
    #[must_use]
    pub const fn new(api: Api, topology_key: String) -> Self {
        Self { api, topology_key }
    }

    /// The scheduler chose before anybody knew where the source is. When the class allows the
    /// source's node, the volume goes there, and the scheduler follows the volume.
    async fn is_guess(&self, parameters: &Parameters, node: &NodeName) -> Result<bool> {
        let (Some(name), Some(namespace)) =
            (parameters.get(CLAIM_NAME), parameters.get(CLAIM_NAMESPACE))
        else {
            return Ok(false);
        };
        let claims =
            ::kube::Api::<PersistentVolumeClaim>::namespaced(self.api.client.clone(), namespace);
        let got = self.api.request("get", "persistentvolumeclaims", claims.get(name)).await;
        let claim = match got {
            Ok(claim) => claim,
            Err(failed) if failed.code == Failed::NOT_FOUND => return Ok(false),
            Err(failed) => return Err(failed.into()),
        };
        if !claim.metadata.annotations.unwrap_or_default().contains_key(SELECTED_NODE) {
            return Ok(false);
        }
        let Some(class) = claim.spec.and_then(|spec| spec.storage_class_name) else {
            return Ok(false);
        };
        let classes = ::kube::Api::<StorageClass>::all(self.api.client.clone());
        let got = self.api.request("get", "storageclasses", classes.get(&class)).await;
        match got {
            Ok(class) => Ok(self.class_allows(class.allowed_topologies.as_deref(), node)),
            // It was removed after the claim was made: what it allowed is not known.
            Err(failed) if failed.code == Failed::NOT_FOUND => Ok(false),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Whether a class allows a node, for all that can be known from its own topology key.
    fn class_allows(&self, terms: Option<&[TopologySelectorTerm]>, node: &NodeName) -> bool {
        let terms = terms.unwrap_or_default();
        terms.is_empty()
            || terms.iter().any(|term| {
                let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
                expressions.iter().all(|expression| {
                    expression.key == self.topology_key
                        && expression.values.iter().any(|value| value == node.as_str())
                })
            })
    }
}

impl SourcePlacement for Claims {
    fn allows<'a>(
        &'a self,
        parameters: &'a Parameters,
        node: &'a NodeName,
    ) -> Pin<Box<dyn Future<Output = Result<bool>> + Send + 'a>> {
        Box::pin(self.is_guess(parameters, node))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use serde_json::{Value, json};

    const KEY: &str = "topology.lvm.example/node";

    async fn ask(annotations: Value, topologies: Value) -> bool {
        let (api, _) = testing::api(move |(_, path, _)| match path.as_str() {
            "/api/v1/namespaces/ns/persistentvolumeclaims/data" => (
                200,
                json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "metadata": {"name": "data", "annotations": annotations},
                    "spec": {"storageClassName": "fast"},
                }),
            ),
            "/apis/storage.k8s.io/v1/storageclasses/fast" => (
                200,
                json!({
                    "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "x",
                    "metadata": {"name": "fast"}, "allowedTopologies": topologies,
                }),
            ),
            _ => testing::refusal(404, "NotFound"),
        });
        let parameters = [(CLAIM_NAME, "data"), (CLAIM_NAMESPACE, "ns")];
        let parameters = parameters.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let claims = Claims::new(api, KEY.to_owned());
        claims.is_guess(&parameters, &NodeName::parse("n2").unwrap()).await.unwrap()
    }

    fn term(key: &str, values: &[&str]) -> Value {
        json!({"matchLabelExpressions": [{"key": key, "values": values}]})
    }

    #[tokio::test]
    async fn a_guess_of_the_scheduler_is_told_from_a_wish_of_the_user() {
        let guess = json!({SELECTED_NODE: "n1"});
        assert!(ask(guess.clone(), Value::Null).await);
        assert!(!ask(Value::Null, Value::Null).await);
        assert!(ask(guess.clone(), json!([term(KEY, &["n1", "n2"])])).await);
        assert!(!ask(guess.clone(), json!([term(KEY, &["n1"])])).await);
        assert!(!ask(guess, json!([term("zone", &["a"])])).await);
    }

    #[tokio::test]
    async fn a_claim_that_is_not_named_or_gone_allows_nothing() {
        let (api, _) = testing::api(|_| testing::refusal(404, "NotFound"));
        let claims = Claims::new(api, KEY.to_owned());
        let node = NodeName::parse("n2").unwrap();
        assert!(!claims.is_guess(&Parameters::default(), &node).await.unwrap());
        let named = [(CLAIM_NAME, "x"), (CLAIM_NAMESPACE, "y")];
        let named = named.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert!(!claims.is_guess(&named, &node).await.unwrap());
    }
}
