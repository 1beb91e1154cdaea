//! A short stand-in for a value; equal values have equal ones, within this process.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::LazyLock,
};

use foldhash::{SharedSeed, quality::SeedableRandomState};

/// Chosen anew by each process, by the system, so that no device can make two values with the same fingerprint.
static KEY: LazyLock<SeedableRandomState> = LazyLock::new(|| {
    SeedableRandomState::with_seed(RandomState::new().hash_one(()), SharedSeed::global_random())
});

/// The fingerprint of a value.
pub fn fingerprint(value: impl Hash) -> u64 {
    KEY.hash_one(value)
}
