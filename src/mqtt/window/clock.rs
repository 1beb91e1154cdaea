//! The clock of `ack_hold`: how long settled messages have waited for unsettled ones before them.
//!
//! It runs at full speed while messages are being settled, or only overdue ones are left. While nothing is
//! settled, as in an outage, it runs slower: in proportion to the share of messages that wait. So an outage
//! makes hardly anybody overdue, and where one hanging message stops everybody the others get through.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Its reading.
    passed: Duration,
    /// When it was last advanced.
    looked: Option<Instant>,
    /// A message was settled since then.
    settled: bool,
    /// Settled messages that wait, by number, with the reading when they began to; oldest first. Entries of
    /// messages that do not wait any more are dropped lazily.
    waiting: VecDeque<(Duration, u64)>,
}

impl Clock {
    /// A message is settled.
    pub(super) fn settled(&mut self) {
        self.settled = true;
    }

    /// A settled message begins to wait for earlier ones.
    pub(super) fn wait(&mut self, number: u64, now: Instant) {
        if self.waiting.is_empty() {
            (self.looked, self.settled) = (Some(now), false);
        }
        let since = self.looked.map_or(Duration::ZERO, |looked| now - looked);
        self.waiting.push_back((self.passed + since, number));
    }

    /// The message that has waited longest.
    pub(super) fn front(&self) -> Option<u64> {
        self.waiting.front().map(|(_, number)| *number)
    }

    /// Messages below this number do not wait any more.
    pub(super) fn released(&mut self, number: u64) {
        while self.waiting.pop_front_if(|(_, waits)| *waits < number).is_some() {}
    }

    /// Forgets all that wait.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Whether a message was settled since the clock was advanced.
    pub(super) fn has_moved(&self) -> bool {
        self.settled
    }

    /// Advances the clock to `now`. `stands_still`: messages could be settled and are not. `all`: how many
    /// messages are not acknowledged.
    pub(super) fn look(&mut self, now: Instant, stands_still: bool, all: usize) {
        let Some(looked) = self.looked.replace(now) else { return };
        self.settled = false;
        let share = if stands_still { (self.waiting.len(), all.max(1)) } else { (1, 1) };
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        self.passed += (now - looked) * count(share.0).min(count(share.1)) / count(share.1);
    }

    /// The first message that has waited for `hold`.
    pub(super) fn expired(&self, hold: Duration) -> Option<u64> {
        let (since, number) = *self.waiting.front()?;
        (since + hold <= self.passed).then_some(number)
    }

    /// When to advance it next: at least twice within `hold`, so that a standstill is noticed.
    pub(super) fn next_look(&self, hold: Duration) -> Option<Instant> {
        let left = (self.waiting.front()?.0 + hold).saturating_sub(self.passed);
        Some(self.looked? + left.clamp(hold / 8, hold / 2))
    }
}
