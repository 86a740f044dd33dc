//! The names of the volumes that calls are making on this node, from the moment a call came until its end: a
//! controller that did not ask itself has to know of them, or it would choose another node for the
//! same volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Agent;
use crate::host::Host;
use crate::names::CsiName;

/// How many calls are making a volume of each name.
#[derive(Debug, Default)]
pub(super) struct Making(Mutex<BTreeMap<CsiName, usize>>);

/// One of these calls, until it is dropped.
#[derive(Debug)]
pub(super) struct Made<'a, H: Host> {
    agent: &'a Agent<H>,
    name: &'a CsiName,
}

impl Making {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<CsiName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn names(&self) -> BTreeSet<CsiName> {
        self.lock().keys().cloned().collect()
    }
}

impl<H: Host> Agent<H> {
    /// Tells that a volume of that name is being made, until what this returns is dropped.
    pub(super) fn making<'a>(&'a self, name: &'a CsiName) -> Made<'a, H> {
        let mut making = self.0.making.lock();
        let calls = making.entry(name.clone()).or_default();
        *calls = calls.saturating_add(1);
        drop(making);
        self.publish();
        Made { agent: self, name }
    }
}

impl<H: Host> Drop for Made<'_, H> {
    fn drop(&mut self) {
        let mut making = self.agent.0.making.lock();
        if let Some(calls) = making.get_mut(self.name) {
            *calls = calls.saturating_sub(1);
            if *calls == 0 {
                making.remove(self.name);
            }
        }
        drop(making);
        self.agent.publish();
    }
}
