//! Handles of long-running programs in a guest. Starting one is in `exec`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::node::{ASK_TIMEOUT, Node};
use crate::exec;
use crate::protocol::{ProcessState, Reply, Request};

/// A long-running program in a guest.
#[derive(Debug, Clone)]
pub struct Spawned {
    node: Node,
    /// Process id in the guest; also its process group.
    pub pid: i32,
}

impl Spawned {
    pub(super) fn new(node: &Node, pid: i32) -> Self {
        Self { node: node.clone(), pid }
    }

    /// How it is doing.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn state(&self) -> Result<ProcessState> {
        let reply = self.node.ask(Request::State { pid: self.pid }, ASK_TIMEOUT)?;
        if let Reply::State(state) = reply { Ok(state) } else { Err(exec::unexpected(reply)) }
    }

    /// Sends a signal (15: end, 9: kill) to its process group; fine when it has ended.
    ///
    /// # Errors
    /// The node does not answer, or does not know the process.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.node.ask(Request::Signal { pid: self.pid, signal }, ASK_TIMEOUT).map(drop)
    }

    /// Waits until it ends, for `timeout` at most, and returns how it is then.
    ///
    /// # Errors
    /// The node does not answer.
    pub fn wait(&self, timeout: Duration) -> Result<ProcessState> {
        let start = Instant::now();
        loop {
            let state = self.state()?;
            if state != ProcessState::Running || start.elapsed() > timeout {
                return Ok(state);
            }
            sleep(Duration::from_millis(200));
        }
    }
}
