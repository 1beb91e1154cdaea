//! Exponential back-off with full jitter, for reconnects and for retries.

use std::time::Duration;

/// How long to wait after the n-th failure: anything from nothing to `initial * 2^n`, at most
/// `max`. Full jitter spreads clients that failed together.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Upper bound of the first wait.
    pub initial: Duration,
    /// Upper bound of every wait.
    pub max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row, the first counting as 0.
    pub fn after(&self, failures: u32) -> Duration {
        self.ceiling(failures).mul_f64(fastrand::f64())
    }

    /// The longest wait after `failures` failures in a row.
    pub fn ceiling(&self, failures: u32) -> Duration {
        self.initial.saturating_mul(1 << failures.min(20)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound() {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_secs(2) };
        let ceilings: Vec<_> = (0..7).map(|n| backoff.ceiling(n).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff.ceiling(u32::MAX), backoff.max);
        assert!((0..100).all(|_| backoff.after(3) <= Duration::from_millis(800)));
    }
}
