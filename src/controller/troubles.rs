//! What is wrong on the nodes, told when it begins and when it is over. What a node said before it
//! went away still holds until it is back: a node that is not connected says nothing.
//!
//! Every controller tells; who listens has to know what was told already by
//! [`Notice`]'s own fields, which are the same for all of them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Registry;
use crate::domain::{Inventory, Reason, Subject};
use crate::error::Result;
use crate::names::{CsiName, NodeName};

/// A trouble is over when it was not seen for so long: an agent that starts anew learns again what
/// is wrong, and what comes and goes is told once.
const OVER_AFTER: Duration = Duration::from_secs(30);
/// How often it is looked whether something is over.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Notices that wait. What is over that is not told; the metrics tell it all.
const QUEUE_MAX: usize = 1_000;
/// After so many that cannot be told, the API server is taken to be away.
const FAILED_MAX: usize = 3;
/// So many may be told at once, and then one each time this has passed: a lost disk of many volumes
/// must not fill the API server.
const BURST: u32 = 100;
const REFILL: Duration = Duration::from_secs(2);

/// That a trouble has begun, or is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The node.
    pub node: NodeName,
    /// What it is about.
    pub subject: Subject,
    /// Of a volume: what the CO calls it.
    pub volume: Option<CsiName>,
    /// What is wrong, or was.
    pub reason: Reason,
    /// Whether it is over.
    pub over: bool,
    /// What it is, in a sentence.
    pub sentence: String,
    /// When it began, in seconds since 1970, as the node tells.
    pub since_unix: i64,
}

impl Notice {
    fn is_of_same(&self, other: &Self) -> bool {
        (&self.node, &self.subject, self.reason) == (&other.node, &other.subject, other.reason)
    }
}

/// Tells somebody.
pub trait Tells: Debug + Send + Sync {
    /// Tells it. What was told already is told with success.
    fn tell<'a>(
        &'a self,
        notice: &'a Notice,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Watch(BTreeMap<(NodeName, Subject, Reason), Known>);

#[derive(Debug)]
struct Known {
    since_unix: i64,
    /// When it was not seen for the first time since it was last seen.
    absent: Option<Duration>,
}

impl Watch {
    /// What has begun or is over, given all nodes with what they last told and whether they are
    /// connected. `now` is of any clock that goes on.
    pub fn look(
        &mut self,
        now: Duration,
        nodes: &[(NodeName, Arc<Inventory>, bool)],
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let connected = nodes.iter().filter(|(_, _, connected)| *connected);
        let connected: BTreeMap<_, _> = connected.map(|(node, told, _)| (node, told)).collect();
        for (node, inventory) in &connected {
            for ((subject, reason), trouble) in &inventory.troubles {
                let key = ((*node).clone(), subject.clone(), *reason);
                if let Some(known) = self.0.get_mut(&key) {
                    known.absent = None;
                    continue;
                }
                let since_unix = trouble.since_unix;
                let sentence = trouble.sentence.clone();
                notices.push(notice(inventory, &key, since_unix, sentence, false));
                self.0.insert(key, Known { since_unix, absent: None });
            }
        }
        self.0.retain(|key, known| {
            let (of, subject, reason) = key;
            let Some(inventory) = connected.get(of) else { return true };
            if inventory.troubles.contains_key(&(subject.clone(), *reason)) {
                return true;
            }
            if is_hidden(inventory, subject, *reason) {
                return true;
            }
            let since = *known.absent.get_or_insert(now);
            if now.saturating_sub(since) < OVER_AFTER {
                return true;
            }
            // What is gone has no trouble any more, and nobody who wants to know.
            if exists(inventory, subject) {
                let sentence = reason.mended_sentence().to_owned();
                notices.push(notice(inventory, key, known.since_unix, sentence, true));
            }
            false
        });
        notices
    }
}

fn notice(
    inventory: &Inventory,
    (node, subject, reason): &(NodeName, Subject, Reason),
    since_unix: i64,
    sentence: String,
    over: bool,
) -> Notice {
    let volume = match subject {
        Subject::Volume(handle) => inventory.volumes.get(handle).map(|v| v.name.clone()),
        Subject::Backend(_) => None,
    };
    Notice {
        node: node.clone(),
        subject: subject.clone(),
        volume,
        reason: *reason,
        over,
        sentence,
        since_unix,
    }
}

fn exists(inventory: &Inventory, subject: &Subject) -> bool {
    match subject {
        Subject::Volume(handle) => inventory.volumes.contains_key(handle),
        Subject::Backend(name) => inventory.backends.contains_key(name),
    }
}

/// Whether a trouble cannot be seen because of a graver one: how full a pool is that has failed.
fn is_hidden(inventory: &Inventory, subject: &Subject, reason: Reason) -> bool {
    let graver = match reason {
        Reason::ThinPoolAlmostFull | Reason::ThinPoolFull | Reason::ThinPoolCannotGrow => {
            Reason::ThinPoolFailed
        }
        Reason::VolumeDegraded | Reason::VolumeResyncing => Reason::VolumeInaccessible,
        Reason::SnapshotCannotGrow => Reason::SnapshotLost,
        Reason::VolumeInaccessible
        | Reason::FilesystemReadOnly
        | Reason::SnapshotLost
        | Reason::BackendNotReady
        | Reason::BackendSetupFailed
        | Reason::PhysicalVolumeMissing
        | Reason::ThinPoolDegraded
        | Reason::ThinPoolFailed
        | Reason::ThinPoolQueuesWhenFull
        | Reason::LvmHangs
        | Reason::Orphaned => return false,
    };
    inventory.troubles.contains_key(&(subject.clone(), graver))
}

/// Tells of all troubles of all nodes until `stop`.
pub async fn tell_of_troubles(
    registry: Arc<Registry>,
    to: Box<dyn Tells>,
    stop: CancellationToken,
) {
    let (mut watch, mut queue) = (Watch::default(), VecDeque::new());
    let mut changes = registry.changes();
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let start = Instant::now();
    let mut rate = Rate::default();
    let work = async {
        loop {
            tokio::select! {
                Ok(()) = changes.changed() => {}
                _ = tick.tick() => {}
            }
            let now = start.elapsed();
            for notice in watch.look(now, &registry.nodes()) {
                if queue.len() < QUEUE_MAX {
                    queue.push_back(notice);
                } else {
                    tracing::warn!(?notice, "too much is wrong at once: this is not told");
                }
            }
            send(&*to, &mut queue, &mut rate, start).await;
        }
    };
    stop.run_until_cancelled(work).await;
}

/// Tells what waits, as far as it may be told now; the rest waits for the next look. What cannot be told holds up
/// nobody else, as long as anything can be told.
async fn send(to: &dyn Tells, queue: &mut VecDeque<Notice>, rate: &mut Rate, start: Instant) {
    let mut failed = 0_usize;
    for _ in 0..queue.len() {
        if failed == FAILED_MAX || !rate.take(start.elapsed()) {
            return;
        }
        let Some(notice) = queue.pop_front() else { return };
        if let Err(error) = to.tell(&notice).await {
            tracing::warn!(
                ?notice,
                error = error.chain(),
                "cannot tell of a trouble; trying again"
            );
            // That it is over must not be told before that it began.
            let (same, rest) = queue.drain(..).partition(|other| other.is_of_same(&notice));
            *queue = rest;
            queue.push_back(notice);
            queue.extend::<VecDeque<_>>(same);
            failed = failed.saturating_add(1);
        }
    }
}

/// How many may be told now.
#[derive(Debug, Default)]
struct Rate {
    /// What was taken and is not given back yet.
    taken: u32,
    since: Duration,
}

impl Rate {
    fn take(&mut self, now: Duration) -> bool {
        while self.taken > 0 && now.saturating_sub(self.since) >= REFILL {
            self.taken = self.taken.saturating_sub(1);
            self.since = self.since.saturating_add(REFILL);
        }
        if self.taken == 0 {
            self.since = now;
        }
        let may = self.taken < BURST;
        if may {
            self.taken = self.taken.saturating_add(1);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{BackendState, BackendStatus, Provisioning, Trouble, Volume};
    use crate::names::{BackendName, Handle, LvmUuid, VgName};
    use crate::units::Bytes;

    fn handle() -> Handle {
        Handle::parse(&format!("{}/pvc-1", LvmUuid::derived("vg"))).unwrap()
    }

    fn volume() -> Subject {
        Subject::Volume(handle())
    }

    fn backend() -> Subject {
        Subject::Backend(BackendName::parse("fast").unwrap())
    }

    fn inventory(troubles: &[(Subject, Reason)], since_unix: i64) -> Inventory {
        let volume = Volume {
            handle: handle(),
            name: CsiName::parse("pvc-1").unwrap(),
            size: Bytes::gib(1),
            source: None,
            provisioning: Provisioning::Thick,
            encrypted: false,
            created_unix: 0,
            claim: None,
        };
        let status = BackendStatus {
            volume_group: VgName::parse("vg0").unwrap(),
            state: BackendState::Unknown(String::new()),
        };
        let trouble = |key: &(Subject, Reason)| {
            (key.clone(), Trouble { sentence: "why".to_owned(), since_unix })
        };
        Inventory {
            revision: 1,
            backends: [(BackendName::parse("fast").unwrap(), status)].into(),
            vgs: [(handle().vg, VgName::parse("vg0").unwrap())].into(),
            volumes: [(handle(), Arc::new(volume))].into(),
            troubles: troubles.iter().map(trouble).collect(),
            ..Inventory::default()
        }
    }

    /// A watch, and what it says of a node at a time.
    #[derive(Default)]
    struct Seen(Watch);

    impl Seen {
        fn at(&mut self, second: u64, connected: bool, inventory: Inventory) -> Vec<String> {
            let nodes = [(NodeName::parse("n1").unwrap(), Arc::new(inventory), connected)];
            let notices = self.0.look(Duration::from_secs(second), &nodes);
            let word = |n: &Notice| if n.over { n.reason.mended() } else { n.reason.as_str() };
            notices.iter().map(|n| format!("{} {}", word(n), n.since_unix)).collect()
        }
    }

    #[test]
    fn what_begins_is_told_once_and_what_is_over_a_while_later() {
        let mut seen = Seen::default();
        let degraded = [(volume(), Reason::VolumeDegraded)];
        assert_eq!(seen.at(0, true, inventory(&degraded, 5)), ["VolumeDegraded 5"]);
        assert_eq!(seen.at(1, true, inventory(&degraded, 5)), [] as [&str; 0]);
        assert_eq!(seen.at(2, true, inventory(&[], 0)), [] as [&str; 0]);
        // An agent that has started anew, and at first did not know.
        assert_eq!(seen.at(31, true, inventory(&degraded, 30)), [] as [&str; 0]);
        assert_eq!(seen.at(40, true, inventory(&[], 0)), [] as [&str; 0]);
        assert_eq!(seen.at(69, true, inventory(&[], 0)), [] as [&str; 0]);
        assert_eq!(seen.at(70, true, inventory(&[], 0)), ["VolumeRepaired 5"]);
        assert_eq!(seen.at(200, true, inventory(&[], 0)), [] as [&str; 0]);
        assert_eq!(seen.at(201, true, inventory(&degraded, 9)), ["VolumeDegraded 9"]);
    }

    #[test]
    fn a_node_that_is_away_says_nothing() {
        let mut seen = Seen::default();
        let full = [(backend(), Reason::ThinPoolFull)];
        assert_eq!(seen.at(0, false, inventory(&full, 5)), [] as [&str; 0]);
        assert_eq!(seen.at(1, true, inventory(&full, 5)), ["ThinPoolFull 5"]);
        assert_eq!(seen.at(99, false, inventory(&[], 0)), [] as [&str; 0]);
        assert_eq!(seen.at(199, false, inventory(&[], 0)), [] as [&str; 0]);
        assert_eq!(seen.at(200, true, inventory(&full, 5)), [] as [&str; 0]);
    }

    #[test]
    fn what_is_gone_or_hidden_is_not_said_to_be_well() {
        let mut seen = Seen::default();
        let full = [(backend(), Reason::ThinPoolFull)];
        let failed = [(backend(), Reason::ThinPoolFailed)];
        assert_eq!(seen.at(0, true, inventory(&full, 1)), ["ThinPoolFull 1"]);
        assert_eq!(seen.at(1, true, inventory(&failed, 2)), ["ThinPoolFailed 2"]);
        assert_eq!(seen.at(99, true, inventory(&failed, 2)), [] as [&str; 0]);
        let gone = || Inventory { backends: BTreeMap::new(), ..inventory(&[], 0) };
        assert_eq!(seen.at(100, true, gone()), [] as [&str; 0]);
        assert_eq!(seen.at(200, true, gone()), [] as [&str; 0]);
        assert!(seen.0.0.is_empty());
    }

    #[test]
    fn no_more_than_so_many_at_a_time() {
        let mut rate = Rate::default();
        let mut taken = |second| {
            let now = Duration::from_secs(second);
            std::iter::repeat_with(|| rate.take(now)).take_while(|may| *may).count()
        };
        assert_eq!([taken(7), taken(8), taken(9), taken(19)], [100, 0, 1, 5]);
        assert_eq!(taken(10_000), 100);
    }

    /// Refuses what is told of volumes, and keeps the rest.
    #[derive(Debug, Default)]
    struct OfBackends(std::sync::Mutex<Vec<Notice>>);

    impl Tells for OfBackends {
        fn tell<'a>(
            &'a self,
            notice: &'a Notice,
        ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
            let refused = matches!(notice.subject, Subject::Volume(_));
            if !refused {
                self.0.lock().unwrap().push(notice.clone());
            }
            Box::pin(async move {
                if refused { Err(crate::error::Error::unavailable("a webhook")) } else { Ok(()) }
            })
        }
    }

    #[tokio::test]
    async fn what_cannot_be_told_holds_up_nobody_else_and_keeps_its_order() {
        let told = inventory(&[], 0);
        let of = |subject: Subject, over| {
            let key = (NodeName::parse("n1").unwrap(), subject, Reason::LvmHangs);
            notice(&told, &key, 0, String::new(), over)
        };
        let mut queue: VecDeque<_> =
            [of(volume(), false), of(volume(), true), of(backend(), false), of(backend(), true)]
                .into();
        let to = OfBackends::default();
        let start = Instant::now();
        send(&to, &mut queue, &mut Rate::default(), start).await;
        let over = |notices: &mut dyn Iterator<Item = &Notice>| {
            notices.map(|n| n.over).collect::<Vec<_>>()
        };
        assert_eq!(over(&mut to.0.lock().unwrap().iter()), [false, true]);
        assert_eq!(over(&mut queue.iter()), [false, true]);
    }

    #[derive(Debug, Default)]
    struct Listener(Arc<std::sync::Mutex<(u32, Vec<Notice>)>>);

    impl Tells for Listener {
        fn tell<'a>(
            &'a self,
            notice: &'a Notice,
        ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
            let mut told = self.0.lock().unwrap();
            told.0 += 1;
            let fails = told.0 <= 2;
            if !fails {
                told.1.push(notice.clone());
            }
            Box::pin(async move {
                if fails { Err(crate::error::Error::unavailable("away")) } else { Ok(()) }
            })
        }
    }

    #[derive(Debug)]
    struct NoAgent;

    impl crate::domain::VolumeAgent for NoAgent {
        fn create_volume(
            &self,
            _: crate::domain::CreateVolume,
        ) -> crate::domain::Answer<'_, crate::domain::Told<Volume>> {
            unreachable!()
        }
        fn delete_volume(&self, _: Handle) -> crate::domain::Answer<'_, crate::domain::Told<()>> {
            unreachable!()
        }
        fn expand_volume(
            &self,
            _: Handle,
            _: crate::domain::CapacityRange,
        ) -> crate::domain::Answer<'_, crate::domain::Told<Bytes>> {
            unreachable!()
        }
        fn create_snapshot(
            &self,
            _: crate::domain::CreateSnapshot,
        ) -> crate::domain::Answer<'_, crate::domain::Told<crate::domain::Snapshot>> {
            unreachable!()
        }
        fn delete_snapshot(&self, _: Handle) -> crate::domain::Answer<'_, crate::domain::Told<()>> {
            unreachable!()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_told_is_told_later() {
        let registry = Arc::new(Registry::default());
        let listener = Listener::default();
        let told = Arc::clone(&listener.0);
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(tell_of_troubles(Arc::clone(&registry), Box::new(listener), stop.clone()));
        let session = registry.connect(NodeName::parse("n1").unwrap(), Arc::new(NoAgent));
        session.update(&Arc::new(inventory(&[(volume(), Reason::VolumeDegraded)], 5)));
        tokio::time::sleep(Duration::from_mins(1)).await;
        session.update(&Arc::new(inventory(&[], 0)));
        tokio::time::sleep(Duration::from_mins(1)).await;
        let said = told.lock().unwrap().1.clone();
        let said: Vec<_> = said.iter().map(|n| (n.reason, n.over, n.volume.clone())).collect();
        let name = CsiName::parse("pvc-1").ok();
        let reason = Reason::VolumeDegraded;
        assert_eq!(said, [(reason, false, name.clone()), (reason, true, name)]);
        stop.cancel();
        task.await.unwrap();
    }
}
