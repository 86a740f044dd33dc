//! Waiting for a long command while saying now and then that it goes on. What it does is not known here.

use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::say;

/// How often it says so.
const PERIOD: Duration = Duration::from_secs(30);

/// Runs it to its end. `what` begins the line that is said, such as `tools: still building etcd`.
///
/// # Errors
/// It cannot be started or waited for.
pub(crate) fn wait(mut command: Command, what: &str) -> Result<ExitStatus> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
    let start = Instant::now();
    let mut said = Duration::ZERO;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for {name}"))? {
            return Ok(status);
        }
        if start.elapsed() > said + PERIOD {
            said = start.elapsed();
            say(&format!("{what}, {} s", said.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
