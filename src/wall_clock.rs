//! The time of day, as filters and signatures see it. Nothing in the gateway waits by it.
//!
//! The command `test` begins each case at a time of its own and lets hours pass in no time: there it follows the clock
//! of the runtime, so that a case ends today as it ended yesterday.

use std::{cell::Cell, time::SystemTime};

use tokio::time::Instant;

thread_local! {
    /// The time of day at a moment of the runtime's clock, where it is not the real one.
    static SET: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
}

/// What time it is.
pub(crate) fn now() -> SystemTime {
    match SET.get() {
        None => SystemTime::now(),
        Some((time, at)) => time + at.elapsed(),
    }
}

/// On this thread it is now this time, and goes on by the runtime's clock.
pub(crate) fn set(time: SystemTime) {
    SET.set(Some((time, Instant::now())));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_time_that_is_set_goes_on_by_the_clock_of_the_runtime() {
        let real = SystemTime::now();
        assert!(now() >= real);
        set(SystemTime::UNIX_EPOCH);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(now(), SystemTime::UNIX_EPOCH + Duration::from_secs(90));
    }
}
