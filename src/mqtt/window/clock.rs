//! The clock of `ack_hold`: how long settled messages have waited for others.
//!
//! It goes while others are settled, or have nothing left to be settled. While they only stand still,
//! as in an outage, it goes as slowly as few wait: nobody is late for an outage, and where one that
//! hangs has stopped everybody, the others are through after a while all the same.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Clock {
    /// What it shows.
    passed: Duration,
    /// When it was set last.
    looked: Option<Instant>,
    /// Something was settled since.
    settled: bool,
    /// What it showed when these began to wait, by number; in order of settlement. Some may have gone.
    waiting: VecDeque<(Duration, u64)>,
}

impl Clock {
    /// A message is settled.
    pub(super) fn settled(&mut self) {
        self.settled = true;
    }

    /// A message begins to wait for others.
    pub(super) fn wait(&mut self, number: u64, now: Instant) {
        if self.waiting.is_empty() {
            (self.looked, self.settled) = (Some(now), false);
        }
        let since = self.looked.map_or(Duration::ZERO, |looked| now - looked);
        self.waiting.push_back((self.passed + since, number));
    }

    /// Who waits longest.
    pub(super) fn front(&self) -> Option<u64> {
        self.waiting.front().map(|(_, number)| *number)
    }

    /// Those below this number wait no more.
    pub(super) fn released(&mut self, number: u64) {
        while self.waiting.pop_front_if(|(_, waits)| *waits < number).is_some() {}
    }

    /// Nobody waits any more.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Whether something was settled since it was set.
    pub(super) fn has_moved(&self) -> bool {
        self.settled
    }

    /// Sets it. `stands_still`: others could be settled and are not. `all` are not acknowledged.
    pub(super) fn look(&mut self, now: Instant, stands_still: bool, all: usize) {
        let Some(looked) = self.looked.replace(now) else { return };
        self.settled = false;
        let share = if stands_still { (self.waiting.len(), all.max(1)) } else { (1, 1) };
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        self.passed += (now - looked) * count(share.0).min(count(share.1)) / count(share.1);
    }

    /// Who has waited for `hold`.
    pub(super) fn expired(&self, hold: Duration) -> Option<u64> {
        let (since, number) = *self.waiting.front()?;
        (since + hold <= self.passed).then_some(number)
    }

    /// When to look again: twice within `hold` at least, since only then is it seen who stands still.
    pub(super) fn next_look(&self, hold: Duration) -> Option<Instant> {
        let left = (self.waiting.front()?.0 + hold).saturating_sub(self.passed);
        Some(self.looked? + left.clamp(hold / 8, hold / 2))
    }
}
