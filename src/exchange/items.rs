//! What was pushed to one device, and when: the same is not pushed again too soon.

use std::time::Duration;

use tokio::time::Instant;

use crate::fingerprint::fingerprint;

/// A push, told apart by its topic and by what identifies it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Item {
    topic: u64,
    id: u64,
}

impl Item {
    /// An item identified by `id` on `topic`.
    pub(super) fn new(topic: &str, id: &[u8]) -> Self {
        Self { topic: fingerprint(topic), id: fingerprint(id) }
    }
}

/// The items pushed to one device, the oldest first. Boxed: there are many devices, and few items that seldom
/// change.
#[derive(Debug, Default)]
pub(super) struct Items(Box<[(Item, Instant)]>);

impl Items {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the item was pushed within the last `period`.
    pub(super) fn has(&self, item: Item, period: Duration) -> bool {
        self.0.iter().any(|(pushed, at)| *pushed == item && at.elapsed() < period)
    }

    /// The item is pushed now. At most `most` are kept; the oldest go first.
    pub(super) fn add(&mut self, item: Item, most: usize) {
        let others: Vec<_> = self.0.iter().filter(|(pushed, _)| *pushed != item).collect();
        let oldest = (others.len() + 1).saturating_sub(most);
        let kept = others.into_iter().skip(oldest).copied();
        self.0 = kept.chain([(item, Instant::now())]).collect();
    }

    /// Forgets what was pushed on this topic.
    pub(super) fn forget(&mut self, topic: &str) {
        let topic = fingerprint(topic);
        self.0 = self.0.iter().filter(|(pushed, _)| pushed.topic != topic).copied().collect();
    }
}
