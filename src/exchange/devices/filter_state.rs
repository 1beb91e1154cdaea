//! What filters have left behind of one device, and the last answer that had no effect.
//!
//! Most devices get the same answer most of the time, and nothing follows from it. When such an answer comes again, no
//! filter needs to run. What has to be true for that: **what follows from an answer is a function of the answer, of what
//! is remembered of the device, and of the values last seen at each entry of `then`.** Rows with a filter that reads
//! anything else (`Filter::is_changeable`) do not ask. So the answer without effect must be forgotten whenever one of the
//! other two changes; they are private to this file, and each method that changes one does so.

use std::num::NonZeroU64;

/// See above. Boxed slices: there are many devices, and their state seldom changes.
#[derive(Default)]
pub(super) struct FilterState {
    /// A JSON object, as text; empty if there is none.
    memory: Box<[u8]>,
    /// The value last seen at each entry of `then`.
    seen: Box<[Seen]>,
    /// The fingerprint of the last answer that had no effect. One that is 0, of 2^64, is never remembered.
    without_effect: Option<NonZeroU64>,
}

/// The value last seen at one entry of `then`, both as fingerprints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) entry: u64,
    pub(super) value: u64,
}

impl FilterState {
    pub(super) fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// Remembers this instead of what was remembered.
    pub(super) fn remember(&mut self, memory: &[u8]) {
        self.memory = memory.into();
        self.without_effect = None;
    }

    pub(super) fn has_seen(&self, seen: Seen) -> bool {
        self.seen.contains(&seen)
    }

    /// This is the value last seen at its entry.
    pub(super) fn see(&mut self, seen: Seen) {
        let others = self.seen.iter().filter(|other| other.entry != seen.entry);
        self.seen = others.copied().chain([seen]).collect();
        self.without_effect = None;
    }

    pub(super) fn is_without_effect(&self, answer: u64) -> bool {
        NonZeroU64::new(answer).is_some_and(|answer| self.without_effect == Some(answer))
    }

    pub(super) fn mark_without_effect(&mut self, answer: u64) {
        self.without_effect = NonZeroU64::new(answer);
    }
}
