//! One program for all parsers: which one it feeds stands in `CINDERBLOCK_FUZZ`, as their table
//! (src/fuzzing.rs) has it.

#![no_main]

use std::sync::LazyLock;

use cinderblock::fuzzing::{self, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("CINDERBLOCK_FUZZ").unwrap_or_default();
    fuzzing::target(&name).unwrap_or_else(|| panic!("CINDERBLOCK_FUZZ={name} is no target"))
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
