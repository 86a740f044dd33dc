//! What the cluster knows of volumes and snapshots: `PersistentVolumes` and
//! `VolumeSnapshotContents`, read page by page, and only the fields that name what they stand for.
//!
//! Ids count whatever driver they are of: one of ours stands for our LV also when the driver was
//! installed under another name before, and what another driver's says does no harm.

use ::kube::api::{ListParams, Request};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Api, Failed};
use crate::controller::{Cluster, Mention, See};
use crate::domain::Answer;
use crate::error::{Error, Result};
use crate::lvm::tag::Claim;
use crate::names::CsiName;

/// Objects of one page, of some KiB each.
const PAGE: u32 = 500;
/// A list that goes on for longer has no end.
const PAGES_MAX: u32 = 10_000;

const VOLUMES: Resource = Resource {
    path: "/api/v1/persistentvolumes",
    name: "persistentvolumes",
    kind: "PersistentVolumeList",
};
const CONTENTS: Resource = Resource {
    path: "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents",
    name: "volumesnapshotcontents",
    kind: "VolumeSnapshotContentList",
};

/// The objects of a cluster.
#[derive(Debug)]
pub struct Objects(Api);

#[derive(Debug)]
struct Resource {
    path: &'static str,
    name: &'static str,
    kind: &'static str,
}

/// A page of a list. What it must have, it must have: half an answer is none.
#[derive(Debug, Deserialize)]
struct Page<T> {
    kind: String,
    metadata: PageMetadata,
    items: Vec<T>,
}

#[derive(Debug, Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Volume {
    spec: VolumeSpec,
}

#[derive(Debug, Deserialize)]
struct VolumeSpec {
    csi: Option<VolumeSource>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSource {
    volume_handle: String,
}

#[derive(Debug, Deserialize)]
struct Content {
    spec: ContentSpec,
    status: Option<ContentStatus>,
}

#[derive(Debug, Deserialize)]
struct ContentSpec {
    source: ContentSource,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContentSource {
    volume_handle: Option<String>,
    snapshot_handle: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContentStatus {
    snapshot_handle: Option<String>,
}

impl Objects {
    /// Asks an API.
    #[must_use]
    pub const fn new(api: Api) -> Self {
        Self(api)
    }

    /// Reads a list to its end. `false`: the cluster has no such objects.
    async fn read<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        mut each: impl FnMut(T) + Send,
    ) -> Result<bool> {
        let mut next = None::<String>;
        for page in 0..PAGES_MAX {
            let page = match self.page(resource, next.take()).await {
                Ok(page) => page,
                // Of the first page only: a list that was begun is there.
                Err(failed) if failed.code == Failed::NOT_FOUND && page == 0 => return Ok(false),
                Err(failed) => return Err(failed.into()),
            };
            if page.kind != resource.kind {
                return Err(Error::unavailable(format!(
                    "the Kubernetes API was asked for a {} and gave a {}",
                    resource.kind, page.kind
                )));
            }
            page.items.into_iter().for_each(&mut each);
            next = page.metadata.next.filter(|next| !next.is_empty());
            if next.is_none() {
                return Ok(true);
            }
        }
        Err(Error::unavailable(format!("the list of {} has no end", resource.name)))
    }

    async fn page<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        next: Option<String>,
    ) -> std::result::Result<Page<T>, Failed> {
        // Without a version: what is in it is the newest, and all pages are of one instant.
        let parameters = ListParams { continue_token: next, ..ListParams::default().limit(PAGE) };
        let request = Request::new(resource.path).list(&parameters);
        let request = request.map_err(|e| Failed {
            code: None,
            error: Error::invalid("a request that cannot be made").because(e),
        })?;
        self.0.request("list", resource.name, self.0.client.request::<Page<T>>(request)).await
    }

    async fn see_volumes(&self, see: See<'_>) -> Result<()> {
        let each = |volume: Volume| {
            if let Some(csi) = volume.spec.csi {
                see(Mention::Handle(&csi.volume_handle));
            }
        };
        if self.read(&VOLUMES, each).await? {
            return Ok(());
        }
        Err(Error::unavailable("the Kubernetes API knows no PersistentVolumes"))
    }

    async fn see_contents(&self, see: See<'_>) -> Result<bool> {
        self.read(&CONTENTS, |content: Content| {
            let told = content.status.and_then(|status| status.snapshot_handle);
            let given = content.spec.source.snapshot_handle;
            let of = content.spec.source.volume_handle.filter(|_| told.is_none());
            for handle in told.iter().chain(&given) {
                see(Mention::Handle(handle));
            }
            if let Some(volume) = of {
                see(Mention::SnapshotOf(&volume));
            }
        })
        .await
    }

    async fn wants(&self, claim: &Claim, volume: &CsiName) -> Result<bool> {
        // A node says it, and it becomes a part of a path. No claim has another name.
        if ![&claim.namespace, &claim.name].into_iter().all(|name| is_plain(name)) {
            return Ok(false);
        }
        let claims = ::kube::Api::<PersistentVolumeClaim>::namespaced(
            self.0.client.clone(),
            &claim.namespace,
        );
        let got = self.0.request("get", "persistentvolumeclaims", claims.get(&claim.name)).await;
        match got {
            Ok(found) => {
                let made_for = found.metadata.uid.map(|uid| format!("pvc-{uid}"));
                let bound_to = found.spec.and_then(|spec| spec.volume_name);
                let bound_to = bound_to.filter(|name| !name.is_empty());
                let is_it = |name: &String| name == volume.as_str();
                // One that has no volume may be waiting for this one, by whatever name it is made.
                Ok(made_for.is_some_and(|name| is_it(&name)) || bound_to.as_ref().is_none_or(is_it))
            }
            Err(failed) if failed.code == Failed::NOT_FOUND => Ok(false),
            Err(failed) => Err(failed.into()),
        }
    }
}

/// Whether an object may have that name.
fn is_plain(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.bytes().all(plain)
}

impl Cluster for Objects {
    fn volumes<'a>(&'a self, see: See<'a>) -> Answer<'a, ()> {
        Box::pin(self.see_volumes(see))
    }

    fn snapshots<'a>(&'a self, see: See<'a>) -> Answer<'a, bool> {
        Box::pin(self.see_contents(see))
    }

    fn is_claimed<'a>(&'a self, claim: &'a Claim, volume: &'a CsiName) -> Answer<'a, bool> {
        Box::pin(self.wants(claim, volume))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::error::ErrorKind;
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn list(kind: &str, next: &str, items: &Value) -> (u16, Value) {
        let metadata = json!({"continue": next, "resourceVersion": "7"});
        (200, json!({"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    fn volume(driver: &str, handle: &str) -> Value {
        json!({
            "metadata": {"name": "x"}, "status": {"phase": "Bound"},
            "spec": {"capacity": {"storage": "1Gi"}, "csi": {"driver": driver, "volumeHandle": handle}},
        })
    }

    /// What is seen of volumes when the API answers with these pages.
    async fn volumes(pages: Vec<(u16, Value)>) -> (Result<()>, Vec<String>) {
        let at = AtomicU32::new(0);
        let (api, _) = testing::api(move |(_, path, _)| {
            assert_eq!(path, "/api/v1/persistentvolumes");
            let page = usize::try_from(at.fetch_add(1, Ordering::Relaxed)).unwrap();
            pages.get(page.min(pages.len() - 1)).unwrap().clone()
        });
        let mut seen = Vec::new();
        let mut see = |mention: Mention<'_>| seen.push(format!("{mention:?}"));
        let read = Objects::new(api).volumes(&mut see).await;
        (read, seen)
    }

    const KIND: &str = "PersistentVolumeList";

    #[tokio::test]
    async fn all_pages_are_read_and_ids_of_any_driver_count() {
        let local = json!({"spec": {"local": {"path": "/x"}}, "metadata": {"name": "y"}});
        let pages = vec![
            list(KIND, "more", &json!([volume("lvm.example", "a/1"), local])),
            list(KIND, "", &json!([volume("old.example", "a/2")])),
        ];
        let (read, seen) = volumes(pages).await;
        read.unwrap();
        assert_eq!(seen, ["Handle(\"a/1\")", "Handle(\"a/2\")"]);
    }

    #[tokio::test]
    async fn half_a_list_is_none() {
        let first = || list(KIND, "more", &json!([volume("lvm.example", "a/1")]));
        let expired = testing::refusal(410, "Expired");
        let gone = testing::refusal(404, "NotFound");
        let odd = (200, json!({"kind": KIND, "metadata": {}}));
        let other = list("Status", "", &json!([]));
        let nameless = list(KIND, "", &json!([{"spec": {"csi": {"driver": "x"}}}]));
        for second in [expired, gone, odd, other, nameless, testing::refusal(500, "x")] {
            let (read, _) = volumes(vec![first(), second.clone()]).await;
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Unavailable, "{second:?}");
        }
        for only in [testing::refusal(403, "Forbidden"), testing::refusal(404, "NotFound")] {
            assert!(volumes(vec![only]).await.0.is_err());
        }
        // The same page again and again.
        let (endless, _) = volumes(vec![list(KIND, "more", &json!([]))]).await;
        assert!(endless.unwrap_err().to_string().contains("no end"));
    }

    async fn contents(answer: (u16, Value)) -> (Result<bool>, Vec<String>) {
        let (api, _) = testing::api(move |(_, path, _)| {
            assert_eq!(path, "/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents");
            answer.clone()
        });
        let mut seen = Vec::new();
        let mut see = |mention: Mention<'_>| seen.push(format!("{mention:?}"));
        let read = Objects::new(api).snapshots(&mut see).await;
        (read, seen)
    }

    #[tokio::test]
    async fn snapshots_are_known_by_either_id_and_on_their_way_by_their_volume() {
        let items = json!([
            {"spec": {"source": {"volumeHandle": "a/v"}}, "status": {"snapshotHandle": "a/s"}},
            {"spec": {"source": {"snapshotHandle": "a/given"}}},
            {"spec": {"source": {"volumeHandle": "a/w"}}, "status": {"readyToUse": false}},
            {"spec": {"source": {"volumeHandle": "a/x"}}},
        ]);
        let (read, seen) = contents(list("VolumeSnapshotContentList", "", &items)).await;
        assert!(read.unwrap());
        let wanted = [
            "Handle(\"a/s\")",
            "Handle(\"a/given\")",
            "SnapshotOf(\"a/w\")",
            "SnapshotOf(\"a/x\")",
        ];
        assert_eq!(seen, wanted);
        let (read, _) = contents(testing::refusal(404, "NotFound")).await;
        assert!(!read.unwrap(), "no snapshot API is no error");
        assert!(contents(testing::refusal(403, "Forbidden")).await.0.is_err());
    }

    #[tokio::test]
    async fn a_claim_wants_its_own_volume_only() {
        let claimed = async |answer: (u16, Value), name: &str| {
            let (api, _) = testing::api(move |_| answer.clone());
            let claim = Claim { namespace: "db".to_owned(), name: "data".to_owned() };
            Objects::new(api).is_claimed(&claim, &CsiName::parse(name).unwrap()).await
        };
        let claim = |bound: &str| {
            let spec = json!({"volumeName": bound});
            let metadata = json!({"name": "data", "uid": "u1"});
            (
                200,
                json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}),
            )
        };
        assert!(claimed(claim(""), "pvc-u1").await.unwrap());
        assert!(claimed(claim(""), "other").await.unwrap(), "it waits for one");
        assert!(claimed(claim("static"), "static").await.unwrap());
        // A later claim of that name, as a StatefulSet makes it.
        assert!(!claimed(claim("pvc-u1"), "pvc-u0").await.unwrap());
        assert!(!claimed(testing::refusal(404, "NotFound"), "pvc-u1").await.unwrap());
        assert!(claimed(testing::refusal(403, "Forbidden"), "pvc-u1").await.is_err());
        let (api, asked) = testing::api(|_| testing::refusal(500, "x"));
        let odd = Claim { namespace: "..".to_owned(), name: "../secrets/x".to_owned() };
        let wanted = Objects::new(api).is_claimed(&odd, &CsiName::parse("pvc-u1").unwrap()).await;
        assert!(!wanted.unwrap() && asked.lock().unwrap().is_empty(), "no such name is asked for");
    }
}
