//! A process beside the agent, for the one thing that an agent cannot do that was killed with the LVM command it ran: to
//! resume what that held. A thread of it that waits for such a device keeps its container from ending, and
//! so the next agent from coming. Nothing is looked at here but what is suspended.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, Labels};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::host::dm_status;
use crate::metrics::Metrics;

/// A look is one question to the kernel for each device of device-mapper.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// LVM holds a device for less than a second, and an agent that lives resumes within a few what was left held.
const HELD_FOR: Duration = Duration::from_secs(10);
/// For what could not be resumed, and what somebody suspended on purpose.
const AGAIN_AFTER: Duration = Duration::from_mins(1);
/// All of it, with LVM's report. LVM itself is never killed over it.
const MEND_TIMEOUT: Duration = Duration::from_mins(5);

/// Watches until `stop`.
pub(super) async fn run(run_dir: &Path, stop: CancellationToken) -> Result<()> {
    // It serves none of them.
    let metrics = Metrics::new("watchdog");
    super::host(run_dir, metrics.programs()).await?;
    tracing::info!("watching for what is held and nobody resumes");
    let mut watch = Watch::default();
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let held = match tokio::task::spawn_blocking(dm_status::held).await {
            Ok(Ok(held)) => held,
            Ok(Err(error)) => {
                tracing::error!(%error, "device-mapper does not tell what is suspended");
                continue;
            }
            Err(error) => return Err(Error::host("the look at device-mapper died").because(error)),
        };
        let overdue = watch.overdue(held, Instant::now());
        if overdue.is_empty() {
            continue;
        }
        tracing::error!(
            devices = overdue.join(", "),
            "suspended for {} s: whoever uses these waits, and no agent resumes them; doing so where LVM is not at work",
            HELD_FOR.as_secs()
        );
        let mended = tokio::time::timeout(MEND_TIMEOUT, mend(run_dir, &metrics)).await;
        if let Err(error) =
            mended.unwrap_or_else(|_| Err(Error::unavailable("LVM or a disk gives no answer")))
        {
            tracing::error!(
                error = error.chain(),
                "what is suspended cannot be resumed now; it is tried again"
            );
        }
    }
    Ok(())
}

/// Resumes, and leaves all else to the next agent: an agent that lives may be at work in the same VG.
async fn mend(run_dir: &Path, metrics: &Metrics) -> Result<()> {
    let host = super::host(run_dir, metrics.programs()).await?;
    let (config, labels) =
        (watch::Sender::new(Arc::new(Config::default())), watch::Sender::new(Some(Labels::new())));
    Agent::new(host, config.subscribe(), labels.subscribe()).resume_held().await
}

/// Since when devices are suspended.
#[derive(Debug, Default)]
struct Watch(BTreeMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    since: Instant,
    tried: Option<Instant>,
}

impl Watch {
    /// Those that were suspended at each look for long enough, and not tried lately.
    fn overdue(&mut self, held: Vec<String>, now: Instant) -> Vec<String> {
        self.0.retain(|name, _| held.contains(name));
        let mut overdue = Vec::new();
        for name in held {
            let seen = self.0.entry(name.clone()).or_insert(Seen { since: now, tried: None });
            let lately = seen.tried.is_some_and(|at| now.duration_since(at) < AGAIN_AFTER);
            if now.duration_since(seen.since) >= HELD_FOR && !lately {
                seen.tried = Some(now);
                overdue.push(name);
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_suspended_is_overdue() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut look = |seconds: u64, held: &[&str]| {
            let held = held.iter().map(|name| (*name).to_owned()).collect();
            watch.overdue(held, start + Duration::from_secs(seconds))
        };
        let none: [&str; 0] = [];
        assert_eq!(look(0, &["a", "b"]), none);
        assert_eq!(look(9, &["a"]), none);
        assert_eq!(look(11, &["a", "b"]), ["a"]);
        // It was tried, and `b` was seen to go on meanwhile.
        assert_eq!(look(20, &["a", "b"]), none);
        assert_eq!(look(21, &["a", "b"]), ["b"]);
        assert_eq!(look(71, &["a"]), ["a"]);
    }
}
