//! The driver is killed and the power goes at random instants, for as long as it is told: `cargo xtask test faults --for 2h`.

mod kills;
mod power;
