//! An attempt of a call on its way through the layers of the upstream, and what the attempts of a call know of each other.

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::Call;
use crate::failure::FailureKind;

/// One attempt. The call is the same one in all of them: a copy is cheap.
#[derive(Clone)]
pub(crate) struct Attempt {
    call: Arc<Call>,
    /// Attempts made before.
    pub(crate) earlier: u32,
    /// It has its turn of the rate limits already, and no attempt that the API counts has used it.
    pub(crate) has_turn: bool,
    /// The deadline has passed and the device did not answer last time: it gets a short time.
    pub(crate) hurried: bool,
    /// Since when it waits for one of the `max_in_flight` places.
    pub(crate) queued: Option<Instant>,
}

impl Attempt {
    /// The first one of a call.
    pub(crate) fn first(call: Call) -> Self {
        Self { call: Arc::new(call), earlier: 0, has_turn: false, hurried: false, queued: None }
    }

    /// One of another call that stands for this one and others.
    pub(crate) fn of(&self, call: Call) -> Self {
        Self { call: Arc::new(call), queued: None, ..self.clone() }
    }
}

impl Deref for Attempt {
    type Target = Call;

    fn deref(&self) -> &Call {
        &self.call
    }
}

/// What the attempts of a call know of each other.
#[derive(Debug, Default)]
pub struct Trial {
    /// Nanoseconds that do not count against the deadline.
    excused: AtomicU64,
    /// See [`Trial::others_served`]: one more than the number of outages, or 0 for none.
    others_served: AtomicU64,
    /// See [`Trial::since`].
    since: OnceLock<Duration>,
    ended: OnceLock<FailureKind>,
}

impl Trial {
    /// This much more does not count against the deadline: waits for limits of our own, and a `Retry-After`.
    pub fn excuse(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4);
        self.excused.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How much does not count against the deadline so far.
    pub fn excused(&self) -> Duration {
        Duration::from_nanos(self.excused.load(Ordering::Relaxed))
    }

    /// An attempt has failed when the row's clock showed this.
    pub fn failed(&self, clock: Duration) {
        // Only the first one counts.
        let _ = self.since.set(clock);
    }

    /// What the row's clock showed when the first attempt failed.
    pub fn since(&self) -> Option<Duration> {
        self.since.get().copied()
    }

    /// The next attempt begins. `outages` is there if other devices have been served since this call's first failure, and
    /// says how many outages the row has had so far.
    pub fn begin_attempt(&self, outages: Option<u64>) {
        self.others_served.store(outages.map_or(0, |outages| outages + 1), Ordering::Relaxed);
    }

    /// The `outages` of [`Trial::begin_attempt`] when the last attempt began.
    pub fn others_served(&self) -> Option<u64> {
        self.others_served.load(Ordering::Relaxed).checked_sub(1)
    }

    /// There will be no further attempt, for this reason.
    pub fn end(&self, why: FailureKind) {
        // The first reason is the one that counts.
        let _ = self.ended.set(why);
    }

    /// Why there is no further attempt, if there is none.
    pub fn ended(&self) -> Option<&FailureKind> {
        self.ended.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn a_deadline_runs_from_the_message_or_else_from_the_first_failure() {
        let (second, clock) = (Duration::from_secs(1), Duration::from_secs(10));
        let call = fixtures::call("r", "d");
        assert_eq!(call.spent(clock), Duration::ZERO);
        for failed_at in [4, 8] {
            call.trial.failed(failed_at * second);
            assert_eq!(call.spent(clock), 6 * second);
        }
        call.trial.excuse(second);
        assert_eq!(call.spent(clock), 5 * second);
        let of_message = Call { since: Some(second), ..fixtures::call("r", "d") };
        of_message.trial.failed(4 * second);
        assert_eq!(of_message.spent(clock), 9 * second);
    }

    #[test]
    fn the_copies_of_an_attempt_are_of_one_call_and_one_for_several_is_of_another() {
        let mut first = Attempt::first(fixtures::call("r", "d"));
        (first.earlier, first.queued) = (1, Some(Instant::now()));
        first.clone().trial.end(FailureKind::Expired);
        assert_eq!(first.trial.ended(), Some(&FailureKind::Expired));
        let whole = first.of(fixtures::call("r", ""));
        assert_eq!((whole.trial.ended(), whole.earlier, whole.queued), (None, 1, None));
    }
}
