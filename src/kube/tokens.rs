//! Whose a node's token is: asked of the API server by a TokenReview, so that a node can speak only
//! for itself.

use std::pin::Pin;

use ::kube::api::PostParams;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};

use super::Api;
use crate::error::{Error, Result};
use crate::link::{Authenticator, Peer};
use crate::names::NodeName;

/// For whom a node's token has to be made: one made for the API server is not taken.
const AUDIENCE: &str = "cinderblock";
/// What the API server tells of a pod's token (KEP-4193).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// The API server as the one who knows tokens.
#[derive(Debug)]
pub struct TokenReviews {
    api: Api,
    user: String,
}

impl TokenReviews {
    /// Takes tokens of pods that run under a service account.
    #[must_use]
    pub fn new(api: Api, namespace: &str, service_account: &str) -> Self {
        Self { api, user: format!("system:serviceaccount:{namespace}:{service_account}") }
    }

    async fn review(&self, token: &str) -> Result<Peer> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let reviews = ::kube::Api::<TokenReview>::all(self.api.client.clone());
        let parameters = PostParams::default();
        let made = reviews.create(&parameters, &review);
        let answer = self.api.request("create", "tokenreviews", made).await?;
        judge(&self.user, answer.status.unwrap_or_default())
    }
}

impl Authenticator for TokenReviews {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Peer>> + Send + 'a>> {
        Box::pin(self.review(token))
    }
}

fn judge(expected: &str, status: TokenReviewStatus) -> Result<Peer> {
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "the API server does not know it".to_owned());
        return Err(Error::invalid(format!("the node's token is not valid: {why}")));
    }
    // An API server that knows nothing of audiences answers without any.
    if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
        return Err(Error::invalid(format!(
            "the node's token is not made for the audience {AUDIENCE:?}"
        )));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    if name != expected {
        return Err(Error::invalid(format!(
            "the token is of {name:?}, and nodes are {expected:?}"
        )));
    }
    let mut extra = user.extra.unwrap_or_default();
    let mut only = |key: &str| extra.remove(key).and_then(|mut values| values.pop());
    let node = only(NODE_NAME).ok_or_else(|| {
        Error::invalid("the token is not bound to a pod on a node: Kubernetes 1.32 or later, and a projected token, are needed")
    })?;
    let node =
        NodeName::parse(&node).map_err(|e| Error::invalid(format!("the token's node name {e}")))?;
    Ok(Peer { node, pod: only(POD_NAME).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use serde_json::{Value, json};

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["cinderblock"],
            "user": {
                "username": "system:serviceaccount:ns:node",
                "extra": {NODE_NAME: ["n1"], POD_NAME: ["node-x"]},
            },
        })
    }

    async fn ask(status: Value) -> Result<Peer> {
        let (api, asked) = testing::api(move |_| {
            (
                201,
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": status}),
            )
        });
        let peer = TokenReviews::new(api, "ns", "node").authenticate("t0ken").await;
        let asked = asked.lock().unwrap();
        let [(method, path, body)] = asked.as_slice() else { panic!("{asked:?}") };
        assert_eq!(
            (method.as_str(), path.as_str()),
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
        );
        assert_eq!(body["spec"], json!({"token": "t0ken", "audiences": ["cinderblock"]}));
        peer
    }

    #[tokio::test]
    async fn a_node_is_who_the_api_server_says() {
        let peer = ask(good()).await.unwrap();
        assert_eq!((peer.node.as_str(), peer.pod.as_str()), ("n1", "node-x"));
    }

    #[tokio::test]
    async fn everybody_else_is_refused() {
        let with = |pointer: &str, value: Value| {
            let mut status = good();
            *status.pointer_mut(pointer).unwrap() = value;
            status
        };
        for (status, why) in [
            (json!({}), "not valid"),
            (json!({"authenticated": false, "error": "expired"}), "expired"),
            (with("/audiences", json!([])), "audience"),
            (with("/audiences", json!(["https://kubernetes.default.svc"])), "audience"),
            (with("/user/username", json!("system:serviceaccount:other:node")), "nodes are"),
            (with("/user/extra", json!({})), "not bound to a pod"),
            (with("/user/extra", json!({NODE_NAME: ["a b"]})), "node name"),
        ] {
            let error = ask(status.clone()).await.unwrap_err().chain();
            assert!(error.contains(why), "{status}: {error}");
            assert!(!error.contains("t0ken"));
        }
    }

    #[tokio::test]
    async fn an_api_that_fails_refuses_nobody_for_good() {
        let (api, _) = testing::api(|_| testing::refusal(500, "InternalError"));
        let error = TokenReviews::new(api, "ns", "node").authenticate("t").await.unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Unavailable);
    }
}
