//! Bounds the memory that answers take, from the first byte read until the last reply made of an answer has been handed to
//! the broker.
//!
//! Small answers reserve nothing: there can be no more of them than calls under way and publications that wait, and both
//! have bounds of their own. A larger answer reserves its memory once, before it is read any further, and as much as it can
//! grow to, so that no two answers can wait for each other. What it did not need is given back when it is complete.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The unit of the budget, in bytes. A semaphore counts in `u32`, which is too small for bytes.
const UNIT: usize = 1024;

/// The memory that all answers share.
#[derive(Clone)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    all: usize,
}

/// A part of it, which is given back on drop.
pub(super) struct Reserved(OwnedSemaphorePermit);

impl Budget {
    /// A budget of this many bytes, but at least `largest`, so that every answer fits.
    pub(super) fn new(bytes: usize, largest: usize) -> Self {
        let all = bytes.max(largest).div_ceil(UNIT).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(all)), all }
    }

    /// Waits until this many bytes are free, and takes them.
    pub(super) async fn reserve(&self, bytes: usize) -> Reserved {
        let units = u32::try_from(bytes.div_ceil(UNIT).min(self.all)).unwrap_or(u32::MAX);
        let permit = self.units.clone().acquire_many_owned(units).await;
        Reserved(permit.expect("the semaphore is never closed"))
    }
}

impl Reserved {
    /// Ties the reservation to these bytes: it is given back when their last copy is dropped, and what they do not need is
    /// given back now.
    pub(super) fn tie_to(mut self, bytes: Vec<u8>) -> Bytes {
        let spare = self.0.num_permits().saturating_sub(bytes.len().div_ceil(UNIT));
        drop(self.0.split(spare));
        Bytes::from_owner(ReservedBytes { bytes, _reserved: self })
    }
}

/// Bytes and the memory reserved for them.
struct ReservedBytes {
    bytes: Vec<u8>,
    _reserved: Reserved,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_answer_is_counted_until_its_last_copy_is_gone() {
        let budget = Budget::new(100 * UNIT, UNIT);
        let reserved = budget.reserve(100 * UNIT).await;
        assert!(budget.reserve(1).now_or_never().is_none(), "all of it is taken");
        let answer = reserved.tie_to(vec![0; 60 * UNIT]);
        assert!(budget.reserve(40 * UNIT).now_or_never().is_some(), "the rest is given back");
        let copy = answer.slice(1..2);
        drop(answer);
        assert!(budget.reserve(41 * UNIT).now_or_never().is_none());
        drop(copy);
        assert!(budget.reserve(100 * UNIT).now_or_never().is_some());
    }

    #[tokio::test]
    async fn the_largest_answer_always_fits() {
        let budget = Budget::new(1, 10 * UNIT);
        assert!(budget.reserve(10 * UNIT).now_or_never().is_some());
        assert!(budget.reserve(1000 * UNIT).now_or_never().is_some(), "no more than there is");
    }
}
