//! A short stand-in for a value; equal values have equal ones, within this process.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::LazyLock,
};

/// Chosen anew by each process, so that no device can make two values with the same fingerprint.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The fingerprint of a value.
pub fn fingerprint(value: impl Hash) -> u64 {
    KEY.hash_one(value)
}
