//! A short stand-in for a value; equal values have equal ones, within this process.

use std::hash::{DefaultHasher, Hash, Hasher};

/// The fingerprint of a value.
pub fn fingerprint(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
