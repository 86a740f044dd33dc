//! What became of a repair that a person asked for.

/// One thing that was to be repaired, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// What: an LV, a volume group, a disk.
    pub what: String,
    /// What became of it.
    pub said: String,
    /// Whether it is as broken as before.
    pub failed: bool,
}
