//! What is wrong, as events: of a volume on its claim, or on the `PersistentVolume` while no claim
//! has it, and of a backend on the node.
//!
//! An event's name is made of what it says and of when the trouble began. So it is written once,
//! however many controllers there are and however often they start: the API refuses the second.

use std::pin::Pin;

use ::kube::api::PostParams;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeSpec};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use uuid::Uuid;

use super::{Api, Failed};
use crate::controller::{Notice, Tells};
use crate::domain::{Reason, Subject};
use crate::error::Result;
use crate::names::{CsiName, Handle, NodeName};

/// Where events about what is in no namespace are (apiserver's validation of events).
const NO_NAMESPACE: &str = "default";
/// The longest note, in bytes (the same).
const NOTE_MAX: usize = 1_024;
/// How much of the object's name is in the event's, which may have 253 bytes.
const NAME_MAX: usize = 200;
/// The namespace of every name derived here (random, chosen once).
const NAMES: Uuid = Uuid::from_u128(0x6b1e_2f0c_94d7_4a35_b8c1_7f3d_5e20_a6d9);

/// Writes events.
#[derive(Debug)]
pub struct Events {
    api: Api,
    driver_name: String,
}

impl Events {
    /// Events of a driver.
    #[must_use]
    pub const fn new(api: Api, driver_name: String) -> Self {
        Self { api, driver_name }
    }

    async fn write(&self, notice: &Notice) -> Result<()> {
        let regarding = match (&notice.subject, &notice.volume) {
            (Subject::Volume(handle), Some(name)) => {
                self.holder(handle, name, &notice.node).await?
            }
            (Subject::Volume(_), None) | (Subject::Backend(_), _) => None,
        };
        let event = event(notice, regarding, &self.driver_name, Timestamp::now());
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let events = ::kube::Api::<Event>::namespaced(self.api.client.clone(), &namespace);
        let options = PostParams::default();
        let create = events.create(&options, &event);
        match self.api.request("create", "events", create).await {
            Ok(_) => Ok(()),
            Err(failed) if failed.code == Failed::CONFLICT => Ok(()),
            // The namespace goes, or we may not: it will not be better.
            Err(failed) if failed.code.is_some_and(is_final) => {
                let error = failed.error.chain();
                tracing::warn!(error, ?notice, "an event cannot be written");
                Ok(())
            }
            Err(failed) => Err(failed.into()),
        }
    }

    /// Who shows a volume to its user: its claim, or its `PersistentVolume`. `None` when that cannot
    /// be found by its name.
    async fn holder(
        &self,
        handle: &Handle,
        name: &CsiName,
        node: &NodeName,
    ) -> Result<Option<ObjectReference>> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-.".contains(&c);
        if !name.as_str().bytes().all(plain) {
            return Ok(None);
        }
        let volumes = ::kube::Api::<PersistentVolume>::all(self.api.client.clone());
        let get = volumes.get(name.as_str());
        let volume = match self.api.request("get", "persistentvolumes", get).await {
            Ok(volume) => volume,
            Err(failed) if failed.code.is_some_and(is_final) => return Ok(None),
            Err(failed) => return Err(failed.into()),
        };
        let spec = volume.spec.unwrap_or_default();
        let ours = spec.csi.as_ref().is_some_and(|csi| {
            csi.driver == self.driver_name && csi.volume_handle == handle.to_string()
        });
        if !ours || !is_on(&spec, node) {
            return Ok(None);
        }
        let bound = volume.status.is_some_and(|s| s.phase.as_deref() == Some("Bound"));
        if let Some(claim) = spec.claim_ref.filter(|_| bound) {
            let kind = Some("PersistentVolumeClaim".to_owned());
            return Ok(Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind,
                resource_version: None,
                ..claim
            }));
        }
        Ok(Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolume".to_owned()),
            name: volume.metadata.name,
            uid: volume.metadata.uid,
            ..ObjectReference::default()
        }))
    }
}

impl Tells for Events {
    fn tell<'a>(
        &'a self,
        notice: &'a Notice,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(self.write(notice))
    }
}

/// Whether the API says so because of what it was asked, and would say it again.
fn is_final(code: u16) -> bool {
    (400..500).contains(&code) && code != 429
}

/// Whether a volume is on that node: no other one has anything to say of it.
fn is_on(spec: &PersistentVolumeSpec, node: &NodeName) -> bool {
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    let terms = required.map(|required| required.node_selector_terms.as_slice());
    let mut expressions =
        terms.unwrap_or_default().iter().flat_map(|term| term.match_expressions.iter().flatten());
    expressions.any(|it| it.values.iter().flatten().any(|value| value == node.as_str()))
}

/// A node as its events name it: the kubelet's have its name as its uid, and `kubectl describe node`
/// looks for that.
fn node(name: &NodeName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(name.to_string()),
        uid: Some(name.to_string()),
        ..ObjectReference::default()
    }
}

fn event(
    notice: &Notice,
    regarding: Option<ObjectReference>,
    driver_name: &str,
    now: Timestamp,
) -> Event {
    let subject = match &notice.subject {
        // It may be a snapshot, too.
        Subject::Volume(handle) if notice.reason == Reason::Orphaned => {
            format!("logical volume {handle}")
        }
        Subject::Volume(handle) => format!("volume {handle}"),
        Subject::Backend(name) => format!("backend {name}"),
    };
    // Who has it in front of him knows what it is about.
    let note = match (&notice.subject, &regarding) {
        (Subject::Volume(_), Some(_)) => format!("node {}: {}", notice.node, notice.sentence),
        (Subject::Volume(_), None) | (Subject::Backend(_), _) => {
            format!("{subject}: {}", notice.sentence)
        }
    };
    let regarding = regarding.unwrap_or_else(|| node(&notice.node));
    let reason =
        if notice.over { notice.reason.mended() } else { notice.reason.as_str() }.to_owned();
    let warns = !notice.over && notice.reason.is_warning();
    let seal = format!("{driver_name} {} {subject} {reason} {}", notice.node, notice.since_unix);
    let name: String = regarding.name.clone().unwrap_or_default().chars().take(NAME_MAX).collect();
    let name = name.trim_end_matches(['-', '.']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{}", Uuid::new_v5(&NAMES, seal.as_bytes()).simple())),
            namespace: regarding.namespace.clone().or_else(|| Some(NO_NAMESPACE.to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: Some(if notice.over { "Mended" } else { "Watched" }.to_owned()),
        reason: Some(reason),
        note: Some(cut(note)),
        type_: Some(if warns { "Warning" } else { "Normal" }.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(driver_name.to_owned()),
        reporting_instance: Some(notice.node.to_string().chars().take(128).collect()),
        ..Event::default()
    }
}

fn cut(mut note: String) -> String {
    let end = note.floor_char_boundary(NOTE_MAX);
    note.truncate(end);
    note
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::names::{BackendName, LvmUuid};
    use serde_json::{Value, json};

    fn handle() -> Handle {
        Handle::parse(&format!("{}/pvc-1", LvmUuid::derived("vg"))).unwrap()
    }

    fn notice(subject: Subject, reason: Reason, over: bool) -> Notice {
        Notice {
            node: NodeName::parse("n1").unwrap(),
            volume: matches!(subject, Subject::Volume(_)).then(|| CsiName::parse("pvc-1").unwrap()),
            subject,
            reason,
            over,
            sentence: "the disk is gone".to_owned(),
            since_unix: 7,
        }
    }

    fn volume(phase: &str, handle: &Handle) -> Value {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": "pvc-1", "uid": "u-pv"},
            "spec": {
                "csi": {"driver": "lvm.example", "volumeHandle": handle.to_string()},
                "claimRef": {
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "db",
                    "name": "data", "uid": "u-claim", "resourceVersion": "17",
                },
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "topology.lvm.example/node", "operator": "In", "values": ["n1"]},
                ]}]}},
            },
            "status": {"phase": phase},
        })
    }

    /// What is written of a notice, and where.
    async fn written(notice: &Notice, pv: (u16, Value), answer: u16) -> (Result<()>, Vec<Value>) {
        let (api, asked) = testing::api(move |(method, _, body)| match method.as_str() {
            "GET" => pv.clone(),
            _ if answer == 201 => (201, body.clone()),
            _ => testing::refusal(answer, "no"),
        });
        let outcome = Events::new(api, "lvm.example".to_owned()).tell(notice).await;
        let asked = asked.lock().unwrap().clone();
        let posts = asked.into_iter().filter(|(method, _, _)| method == "POST");
        let path = |namespace: &Value| {
            format!("/apis/events.k8s.io/v1/namespaces/{}/events", namespace.as_str().unwrap())
        };
        let checked = posts.map(|(_, at, body)| {
            assert_eq!(at, path(&body["metadata"]["namespace"]));
            body
        });
        (outcome, checked.collect())
    }

    #[tokio::test]
    async fn a_volume_shows_on_its_claim_and_a_backend_on_its_node() {
        let lost = notice(Subject::Volume(handle()), Reason::VolumeDegraded, false);
        let (_, events) = written(&lost, (200, volume("Bound", &handle())), 201).await;
        let event = &events[0];
        assert_eq!(
            (&event["type"], &event["reason"]),
            (&json!("Warning"), &json!("VolumeDegraded"))
        );
        let claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "db",
            "name": "data", "uid": "u-claim",
        });
        assert_eq!(event["regarding"], claim);
        assert_eq!(event["note"], "node n1: the disk is gone");
        let mended = Notice { over: true, ..lost.clone() };
        let (_, events) = written(&mended, (200, volume("Released", &handle())), 201).await;
        assert_eq!(events[0]["type"], "Normal");
        assert_eq!(events[0]["reason"], "VolumeRepaired");
        assert_eq!(events[0]["regarding"]["kind"], "PersistentVolume");
        assert_eq!(events[0]["regarding"]["uid"], "u-pv");
        assert_eq!(events[0]["metadata"]["namespace"], "default");
        // Not ours, though it has the name; on another node; or not there.
        let other = Handle::parse(&format!("{}/pvc-2", LvmUuid::derived("vg"))).unwrap();
        let mut elsewhere = volume("Bound", &handle());
        elsewhere["spec"]["nodeAffinity"] = Value::Null;
        for pv in
            [(200, volume("Bound", &other)), (200, elsewhere), testing::refusal(404, "NotFound")]
        {
            let (_, events) = written(&lost, pv, 201).await;
            assert_eq!(events[0]["regarding"]["kind"], "Node");
            assert!(events[0]["note"].as_str().unwrap().contains("/pvc-1: the disk"));
        }
        let backend = Subject::Backend(BackendName::parse("fast").unwrap());
        let full = notice(backend, Reason::ThinPoolFull, false);
        let (_, events) = written(&full, testing::refusal(500, "x"), 201).await;
        assert_eq!(events[0]["regarding"]["uid"], "n1");
        assert_eq!(events[0]["note"], "backend fast: the disk is gone");
    }

    #[tokio::test]
    async fn what_was_told_is_not_told_again_and_what_failed_is() {
        let lost = notice(Subject::Volume(handle()), Reason::VolumeDegraded, false);
        let pv = || (200, volume("Bound", &handle()));
        let (told, first) = written(&lost, pv(), 201).await;
        told.unwrap();
        // Another controller, or the same one after a restart.
        let (again, second) = written(&lost, pv(), 409).await;
        again.unwrap();
        assert_eq!(first[0]["metadata"]["name"], second[0]["metadata"]["name"]);
        let (_, later) = written(&Notice { since_unix: 8, ..lost.clone() }, pv(), 201).await;
        assert_ne!(first[0]["metadata"]["name"], later[0]["metadata"]["name"]);
        let (gone, _) = written(&lost, pv(), 403).await;
        gone.unwrap();
        for code in [429, 500] {
            let (busy, _) = written(&lost, pv(), code).await;
            assert!(busy.is_err(), "{code}");
        }
        let (away, events) = written(&lost, testing::refusal(500, "x"), 201).await;
        assert!(away.is_err() && events.is_empty(), "a claim is not guessed");
    }

    #[test]
    fn names_and_notes_fit() {
        let lost = notice(Subject::Volume(handle()), Reason::VolumeDegraded, false);
        let long = Notice { sentence: "ä".repeat(2_000), ..lost };
        let name = Some(format!("{}-{}", "a".repeat(199), "b".repeat(53)));
        let regarding = ObjectReference { name, ..ObjectReference::default() };
        let event = event(&long, Some(regarding), "lvm.example", Timestamp::UNIX_EPOCH);
        assert!(event.note.unwrap().len() <= NOTE_MAX);
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= 253 && !name.contains("-."), "{name}");
    }
}
