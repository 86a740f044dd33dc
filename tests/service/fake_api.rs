//! A Kubernetes API of the tests' own: it answers each request by a function, and keeps what it was
//! asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use cinderblock::kube::Api;
use cinderblock::metrics::Metrics;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A request: method, path with its query, and body.
pub(crate) type Asked = (String, String, Value);

/// What the API was asked so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Asked>>>);

impl Seen {
    pub(crate) fn all(&self) -> Vec<Asked> {
        self.0.lock().unwrap().clone()
    }

    /// Bodies of the events that were written.
    pub(crate) fn events(&self) -> Vec<Value> {
        let events = |(method, path, _): &Asked| method == "POST" && path.contains("/events");
        self.all().into_iter().filter(events).map(|(_, _, body)| body).collect()
    }
}

/// An API that answers with a status and an object. What it is asked is counted by `metrics`, too.
pub(crate) fn api(
    metrics: &Metrics,
    answer: impl Fn(&Asked) -> (u16, Value) + Send + Sync + 'static,
) -> (Api, Seen) {
    let seen = Seen::default();
    let (asked, answer) = (seen.clone(), Arc::new(answer));
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (asked, answer) = (asked.clone(), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&bytes).unwrap_or_default();
            let path = head.uri.path_and_query().unwrap().as_str();
            let path = path.strip_suffix('?').unwrap_or(path).to_owned();
            let this = (head.method.to_string(), path, body);
            let (status, object) = answer(&this);
            asked.0.lock().unwrap().push(this);
            let bytes = serde_json::to_vec(&object).unwrap();
            let answer = http::Response::builder().status(status).body(Body::from(bytes));
            Ok::<_, Infallible>(answer.unwrap())
        }
    });
    (Api::new(Client::new(service, "default"), metrics.api()), seen)
}

/// A page of a list. `next`: how the next one is asked for.
pub(crate) fn page(kind: &str, next: &str, items: &Value) -> (u16, Value) {
    let metadata = json!({"continue": next, "resourceVersion": "7"});
    (200, json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}))
}

pub(crate) fn not_found() -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "no", "reason": "NotFound", "code": 404,
    });
    (404, status)
}
