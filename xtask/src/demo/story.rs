//! How a demo is told: numbered steps, what was done and seen in each, and the time it took. It does nothing by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A demo that is being told.
#[derive(Debug)]
pub(super) struct Story {
    begun: Instant,
    /// Name and time of each step that is done.
    done: Vec<(String, Duration)>,
}

impl Story {
    /// Begins with its title.
    pub(super) fn new(title: &str) -> Self {
        println!("\n{title}\n{}", "=".repeat(title.chars().count()));
        Self { begun: Instant::now(), done: Vec::new() }
    }

    /// Tells one step, and does it.
    pub(super) fn step<T>(&mut self, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let number = self.done.len().saturating_add(1);
        println!("\n{number}. {name}");
        let start = Instant::now();
        let made = act().with_context(|| format!("step {number}, {name:?}, failed"))?;
        let took = start.elapsed();
        println!("   {:.1} s", took.as_secs_f32());
        self.done.push((name.to_owned(), took));
        Ok(made)
    }

    /// Tells how long each step took.
    pub(super) fn end(self, last: &str) {
        println!("\n   seconds");
        for (name, took) in &self.done {
            println!("   {:7.1}  {name}", took.as_secs_f32());
        }
        println!("   {:7.1}  in all\n\n{last}", self.begun.elapsed().as_secs_f32());
    }
}

/// Shows a command as it could be typed.
pub(super) fn command(text: &str) {
    for (i, line) in text.trim().lines().enumerate() {
        println!("   {} {line}", if i == 0 { '$' } else { '>' });
    }
}

/// Shows what was seen.
pub(super) fn seen(text: &str) {
    for line in text.trim_end().lines() {
        println!("     {line}");
    }
}
