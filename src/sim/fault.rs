//! Faults: at the n-th effect on the host, something goes wrong. Reads are no effects.

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It fails, and nothing happened.
    Fail,
    /// It happened, but fails.
    FailAfter,
    /// It happened, and whether it did is not told.
    Lose,
    /// Of a change by LVM, cryptsetup or `xfs_admin`: it is killed in its midst. Of all else: it happened, but fails.
    Cut,
    /// The agent dies right before it.
    KillBefore,
    /// The agent dies right after it.
    KillAfter,
}

/// A fault that waits for its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The effect at which it strikes, counted from 0.
    pub at: usize,
    /// What it does.
    pub mode: Mode,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Fail, Self::FailAfter, Self::Lose, Self::Cut, Self::KillBefore, Self::KillAfter];

    /// Whether the effect takes place.
    #[must_use]
    pub const fn happens(self) -> bool {
        matches!(self, Self::FailAfter | Self::Lose | Self::Cut | Self::KillAfter)
    }

    /// Whether the agent is dead from then on.
    #[must_use]
    pub const fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter)
    }
}
