//! One call at a time on a volume or path. A second one is told so at once and never waits: it
//! would only use up its caller's deadline. What is only read from (the source of a clone) may be
//! read from by many.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::names::{LvName, LvmUuid};

/// What a call works on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Lv(LvmUuid, LvName),
    Path(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Alone,
    Shared(u32),
}

/// All things that a call works on now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guards(Arc<Mutex<BTreeMap<Key, Use>>>);

/// The right to work on something, until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    guards: Guards,
    key: Key,
}

impl Guards {
    /// The right to work on an LV, for oneself alone.
    pub(crate) fn lv(&self, vg: &LvmUuid, lv: &LvName) -> Result<Guard> {
        self.take(Key::Lv(vg.clone(), lv.clone()), false)
            .ok_or_else(|| Error::pending(format!("another call is working on {lv}; try again")))
    }

    /// The right that nobody works on an LV meanwhile. Others may have it, too.
    pub(crate) fn source(&self, vg: &LvmUuid, lv: &LvName) -> Result<Guard> {
        self.take(Key::Lv(vg.clone(), lv.clone()), true).ok_or_else(|| {
            Error::pending(format!("another call is working on the source {lv}; try again"))
        })
    }

    /// The right to work on a path.
    pub(crate) fn path(&self, path: &Path) -> Result<Guard> {
        self.take(Key::Path(path.to_owned()), false).ok_or_else(|| {
            Error::pending(format!("another call is working on {}; try again", path.display()))
        })
    }

    fn take(&self, key: Key, shared: bool) -> Option<Guard> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = match (taken.get(&key), shared) {
            (None, false) => Use::Alone,
            (None, true) => Use::Shared(1),
            (Some(Use::Shared(n)), true) => Use::Shared(n.checked_add(1)?),
            (Some(_), _) => return None,
        };
        taken.insert(key.clone(), now);
        Some(Guard { guards: self.clone(), key })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut taken = self.guards.0.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.key) {
            Some(Use::Shared(n)) if *n > 1 => *n = n.saturating_sub(1),
            _ => drop(taken.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn one_at_a_time_and_free_afterwards() {
        let guards = Guards::default();
        let (vg, lv) = (LvmUuid::derived("vg"), LvName::parse("pvc-1").unwrap());
        let first = guards.lv(&vg, &lv).unwrap();
        assert_eq!(guards.lv(&vg, &lv).unwrap_err().kind(), ErrorKind::Pending);
        assert_eq!(guards.source(&vg, &lv).unwrap_err().kind(), ErrorKind::Pending);
        assert!(guards.lv(&LvmUuid::derived("other"), &lv).is_ok());
        assert!(guards.path(Path::new("/x")).is_ok());
        drop(first);
        assert!(guards.lv(&vg, &lv).is_ok());
    }

    #[test]
    fn many_may_read_from_a_source() {
        let guards = Guards::default();
        let (vg, lv) = (LvmUuid::derived("vg"), LvName::parse("pvc-1").unwrap());
        let (one, two) = (guards.source(&vg, &lv).unwrap(), guards.source(&vg, &lv).unwrap());
        drop(one);
        assert!(guards.lv(&vg, &lv).is_err());
        drop(two);
        assert!(guards.lv(&vg, &lv).is_ok());
    }
}
