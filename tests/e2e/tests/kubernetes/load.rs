//! The driver is upgraded, and the API server goes away, while pods write and claims come and go: no mounted volume notices, and whatever was asked for happens, once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cinderblock_lab::Cluster;
use cinderblock_lab::driver::Other;
use cinderblock_lab::long::{figure, time};
use serde_json::json;

use crate::objects::{self, Binding, Claim, class, on_node, pod};
use crate::support::{SOON, Test};

/// The longest that a synced record may take while all else goes on. The nodes share two processors with
/// whatever restarts.
const STILL: u64 = 120;
/// How long the API server is away: in the short form, and at the most.
const AWAY: Duration = Duration::from_secs(45);
const AWAY_MAX: Duration = Duration::from_mins(10);

/// Appends a numbered record with its time to a file on each volume, each of them synced, until the pod ends.
const WRITER: &str = "sh -c 'trap \"\" HUP; i=0; while :; do i=$((i+1)); for it in /mnt/*; do \
    echo $i $(date +%s) >>$it/records; done; sync; echo $i >/tmp/synced; sleep 0.1; done' \
    >/tmp/writer 2>&1 &";

/// Prints, for each volume, how many records there are and the longest time between two; fails where one is missing.
const READER: &str = "i=$(cat /tmp/synced); for it in /mnt/*; do awk -v synced=$i ' \
    $1 != NR { print \"record \" NR \" is \" $0; bad = 1; exit } \
    NR > 1 && $2 - last > most { most = $2 - last } { last = $2 } \
    END { if (bad || NR < synced) { print NR \" records, \" synced \" synced\"; exit 1 } print NR, most + 0 }' \
    $it/records; done";

/// Pods that write on both nodes.
struct Writers<'a, 'b> {
    test: &'a Test<'b>,
}

impl<'a, 'b> Writers<'a, 'b> {
    const PODS: [(&'static str, &'static str); 2] = [("writer1", "node1"), ("writer2", "node2")];

    fn start(test: &'a Test<'b>) -> Result<Self> {
        for (name, node) in Self::PODS {
            let thin = format!("{name}-thin");
            let thin = Claim::new(&thin, &class("thin", "ext4", Binding::WithPod), "64Mi");
            let thick = format!("{name}-thick");
            let thick = Claim::new(&thick, &class("thick", "ext4", Binding::WithPod), "64Mi");
            test.claim(&thin)?;
            test.claim(&thick)?;
            test.run(&on_node(pod(name, &[&thin, &thick]), node))?;
            test.sh(name, WRITER)?;
        }
        Ok(Self { test })
    }

    /// Every record that was synced is there, and none took long: the pods never stopped, nor were they started
    /// again.
    fn check(&self, what: &str) -> Result<()> {
        for (name, _) in Self::PODS {
            let pod = self.test.namespace.get_json(&["pod", name])?;
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            ensure!(*restarts == 0, "{what}: {name} was restarted {restarts} times");
            let told = self.test.sh(name, READER).with_context(|| format!("{what}: {name}"))?;
            for line in told.lines() {
                let (count, longest) = line.split_once(' ').context("no two numbers")?;
                figure(&format!(
                    "{what}: {name} synced {count} records, {longest} s at the most between two"
                ));
                ensure!(count.parse::<u64>()? > 0, "{what}: {name} wrote nothing");
                ensure!(longest.parse::<u64>()? <= STILL, "{what}: {name} waited {longest} s");
            }
        }
        Ok(())
    }
}

/// Asks the API server until it listens.
fn insist(test: &Test<'_>, what: &str, ask: impl Fn() -> Result<()>) -> Result<()> {
    test.cluster.eventually(what, SOON + AWAY_MAX, || ask().map(Some))
}

/// A claim, its snapshot, a restored one, and their ends, again and again. How often all of it came to its end.
fn churn(test: &Test<'_>, done: &AtomicBool, count: &AtomicUsize) -> Result<()> {
    while !done.load(Ordering::Relaxed) {
        let n = count.load(Ordering::Relaxed);
        let at_once = class("thin", "ext4", Binding::AtOnce);
        let [name, taken, copy] = ["claim", "taken", "restored"].map(|it| format!("{it}-{n}"));
        let claim = Claim::new(&name, &at_once, "64Mi");
        let restored = Claim::new(&copy, &at_once, "64Mi").of_snapshot(&taken);
        insist(test, "a claim", || test.claim(&claim))?;
        insist(test, "its volume", || test.bound(&name).map(drop))?;
        insist(test, "a snapshot", || test.snapshot(&taken, &name))?;
        insist(test, "a restored claim", || test.claim(&restored))?;
        insist(test, "its volume", || test.bound(&copy).map(drop))?;
        insist(test, "more room", || test.resize(&name, "96Mi"))?;
        for (kind, name) in [("pvc", &copy), ("volumesnapshot", &taken), ("pvc", &name)] {
            let words = ["delete", kind, name, "--wait=false", "--ignore-not-found"];
            insist(test, "an end", || test.namespace.kubectl_text(&words).map(drop))?;
            test.gone(kind, name)?;
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Does something while pods write and claims come and go.
fn under_load(test: &Test<'_>, what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let writers = Writers::start(test)?;
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let churning = scope.spawn(|| churn(test, &done, &count));
        let acted = act().and_then(|()| {
            // And all of a life after that.
            let before = count.load(Ordering::Relaxed);
            let start = Instant::now();
            while count.load(Ordering::Relaxed) <= before && !churning.is_finished() {
                ensure!(start.elapsed() < SOON + AWAY_MAX, "no claim comes to its end after that");
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let churned = churning.join();
        acted?;
        churned.map_err(|_| anyhow::anyhow!("a thread died"))?.with_context(|| what.to_owned())
    })?;
    figure(&format!("{what}: {} lives of claims came to their end", count.load(Ordering::Relaxed)));
    writers.check(what)
}

/// All controllers and agents are replaced, twice: to the other version that is told, or else to other settings, and
/// back.
pub(crate) fn rolling_upgrade(cluster: &Cluster) -> Result<()> {
    let test = Test::new(cluster, "upgrade")?.patient(2 * SOON);
    let other = Other::told()?;
    let what = other.as_ref().map_or_else(
        || "rolling upgrade".to_owned(),
        |other| format!("down to {} and up again", other.commit()),
    );
    under_load(&test, &what, || {
        match &other {
            Some(other) => objects::install_other(cluster, other)?,
            None => objects::install_with(cluster, &json!({ "log": { "format": "json" } }))?,
        }
        objects::install(cluster)
    })?;
    test.finish()
}

pub(crate) fn api_server_away(cluster: &Cluster) -> Result<()> {
    let away = time(AWAY).min(AWAY_MAX);
    let test = Test::new(cluster, "away")?.patient(SOON + away);
    under_load(&test, "without an API server", || {
        cluster.stop_api_server()?;
        thread::sleep(away);
        cluster.start_api_server()
    })?;
    test.finish()
}
