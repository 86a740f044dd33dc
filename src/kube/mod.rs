//! What the controller asks of Kubernetes, and the only place that names Kubernetes types: whose a
//! node's token is, where its certificate authority is kept, what a claim says of its placement, the
//! labels of nodes, on which object it is told what is wrong, and which volumes the cluster has no
//! object for. What volumes there are is never looked up here: LVM knows them.

mod authority_store;
mod claims;
mod events;
mod labels;
mod objects;
mod tokens;

pub use authority_store::{AuthorityStore, keep_certificate};
pub use claims::Claims;
pub use events::Events;
pub use labels::NodeLabelsWatch;
pub use objects::Objects;
pub use tokens::TokenReviews;

use std::time::Duration;

use ::kube::Client;

use crate::error::{Error, Result};
use crate::metrics::ApiMetrics;

/// A request that takes longer is given up; whoever needs the answer asks again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// The Kubernetes API, with every request counted.
#[derive(Clone)]
pub struct Api {
    client: Client,
    requests: ApiMetrics,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Api {
    /// The API of the cluster that this pod runs in, or of the current context of a kubeconfig.
    ///
    /// # Errors
    /// When there is neither.
    pub async fn connect(requests: ApiMetrics) -> Result<Self> {
        let client = Client::try_default()
            .await
            .map_err(|e| Error::host("no Kubernetes API is configured here").because(e))?;
        Ok(Self::new(client, requests))
    }

    /// The API behind a client.
    #[must_use]
    pub const fn new(client: Client, requests: ApiMetrics) -> Self {
        Self { client, requests }
    }

    /// Makes a request, counted under its verb and resource as RBAC names them.
    async fn request<T>(
        &self,
        verb: &'static str,
        resource: &'static str,
        request: impl Future<Output = ::kube::Result<T>> + Send,
    ) -> Result<T, Failed> {
        self.requests.count(verb, resource);
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                Err(Failed { code: code(&error), error: describe(verb, resource).because(error) })
            }
            Err(_) => Err(Failed {
                code: None,
                error: describe(verb, resource).because(Error::unavailable(format!(
                    "no answer within {} seconds",
                    REQUEST_TIMEOUT.as_secs()
                ))),
            }),
        }
    }
}

/// A request that failed.
#[derive(Debug)]
struct Failed {
    /// The HTTP status, where the API gave one.
    code: Option<u16>,
    error: Error,
}

impl Failed {
    const NOT_FOUND: Option<u16> = Some(404);
    const CONFLICT: Option<u16> = Some(409);
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

fn code(error: &::kube::Error) -> Option<u16> {
    if let ::kube::Error::Api(status) = error { Some(status.code) } else { None }
}

fn describe(verb: &str, resource: &str) -> Error {
    Error::unavailable(format!("the Kubernetes API did not {verb} {resource}"))
}

#[cfg(test)]
mod testing {
    //! A Kubernetes API of the test's own: answers each request by a function.

    use std::sync::{Arc, Mutex};

    use ::kube::Client;
    use ::kube::client::Body;
    use http_body_util::BodyExt as _;
    use serde_json::Value;

    use super::Api;
    use crate::metrics::Metrics;

    /// What was asked: method, path and body.
    pub(super) type Asked = (String, String, Value);
    type Seen = Arc<Mutex<Vec<Asked>>>;

    /// An API that answers with a status and an object.
    pub(super) fn api(
        answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
    ) -> (Api, Seen) {
        let seen = Seen::default();
        let (asked, answer) = (Arc::clone(&seen), Arc::new(answer));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
            async move {
                let (head, body) = request.into_parts();
                let bytes = body.collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or_default();
                let this = (head.method.to_string(), head.uri.path().to_owned(), body);
                let (status, object) = answer(&this);
                asked.lock().unwrap().push(this);
                let bytes = serde_json::to_vec(&object).unwrap();
                let answer = http::Response::builder().status(status).body(Body::from(bytes));
                Ok::<_, std::convert::Infallible>(answer.unwrap())
            }
        });
        (Api::new(Client::new(service, "default"), Metrics::new("x").api()), seen)
    }

    /// An API's refusal.
    pub(super) fn refusal(code: u16, reason: &str) -> (u16, Value) {
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "no", "reason": reason, "code": code,
        });
        (code, status)
    }
}
