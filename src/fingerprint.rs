//! A short stand-in for a value; equal values have equal ones, within this process.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::LazyLock,
};

use foldhash::{SharedSeed, quality::SeedableRandomState};

/// Chosen anew by each process, and known to nobody outside, as the fingerprints are: so that no device can choose two values
/// that have the same one. It is no cryptographic hash, and need not be: nobody sees what it makes.
static KEY: LazyLock<SeedableRandomState> = LazyLock::new(|| {
    SeedableRandomState::with_seed(RandomState::new().hash_one(()), SharedSeed::global_random())
});

/// The fingerprint of a value.
pub fn fingerprint(value: impl Hash) -> u64 {
    KEY.hash_one(value)
}
