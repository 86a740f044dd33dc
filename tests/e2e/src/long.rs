//! Tests that go on for as long as they are told: their time, their random numbers, their figures. What they do is theirs.

use std::io::Write;
use std::time::{Duration, Instant};

/// Seconds that such a test goes on for, instead of its own short time.
pub const TIME: &str = "CINDERBLOCK_FOR";
/// What its random numbers begin with.
pub const SEED: &str = "CINDERBLOCK_SEED";
/// Begins a line for people on stderr, past the test harness, which keeps what a test prints.
pub const FIGURE: &str = "figure: ";

/// Tells a figure, or a seed, at once and whether or not the test ends well.
pub fn figure(text: &str) {
    drop(writeln!(std::io::stderr(), "{FIGURE}{text}"));
}

/// How long a test goes on: so long as it is told, or its own short time.
#[must_use]
pub fn time(short: Duration) -> Duration {
    let told = std::env::var(TIME).ok().and_then(|seconds| seconds.parse().ok());
    told.map_or(short, Duration::from_secs)
}

/// Whether a test was told to go on for longer than its own short time.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os(TIME).is_some()
}

/// The end of a test that goes on for [`time`] from now.
#[must_use]
pub fn end(short: Duration) -> Instant {
    Instant::now() + time(short)
}

/// Random numbers that a seed repeats; good enough to choose moments.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded by the clock, or by [`SEED`]. The seed is told.
    #[must_use]
    pub fn seeded(test: &str) -> Self {
        let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
        let seed = given.unwrap_or_else(|| u64::try_from(now).unwrap_or(1));
        figure(&format!("{test} has {SEED}={seed}"));
        Self(seed | 1)
    }

    /// One below this, which is not 0 (xorshift).
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
