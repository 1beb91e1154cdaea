//! Notices a connection on which nothing passes any more.

use std::time::Duration;

use tokio::time::Instant;

/// When bytes last passed.
pub(super) struct Traffic {
    /// When the last byte was read.
    pub(super) read: Instant,
    /// When the last byte was written, or nothing was left to write.
    pub(super) written: Instant,
}

impl Traffic {
    /// The traffic of a connection that is opened now.
    pub(super) fn new(now: Instant) -> Self {
        Self { read: now, written: now }
    }

    /// What is wrong, if no byte has passed in one direction for `patience`; `waiting` says whether bytes wait to be
    /// written.
    pub(super) fn stalled(
        &self,
        now: Instant,
        patience: Duration,
        waiting: bool,
    ) -> Option<&'static str> {
        let silent = self.read + patience <= now;
        if waiting && (silent || self.written + patience <= now) {
            Some("the broker has stopped reading")
        } else {
            silent.then_some("the broker did not answer in time")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_bytes_that_cannot_be_written_are_told_apart() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let stalled = |read, written, waiting| {
            Traffic { read, written }.stalled(began + 3 * second, 2 * second, waiting)
        };
        let (long_ago, lately) = (began, began + 2 * second);
        assert_eq!(stalled(lately, lately, true), None);
        assert_eq!(stalled(lately, long_ago, false), None, "nothing waits to be written");
        assert_eq!(stalled(long_ago, lately, false), Some("the broker did not answer in time"));
        assert_eq!(stalled(lately, long_ago, true), Some("the broker has stopped reading"));
        assert_eq!(stalled(long_ago, lately, true), Some("the broker has stopped reading"));
    }
}
