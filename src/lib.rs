//! Cinderblock.
