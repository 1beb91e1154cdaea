//! A counter of the seconds for which something has been so, which grows while it is.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};
use tokio::time::Instant;

/// Clones share their time.
#[derive(Debug, Clone, Default)]
pub(super) struct Stopwatch(Arc<Mutex<Times>>);

#[derive(Debug, Default)]
struct Times {
    past: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    /// It is so from now on, if it was not before.
    pub(super) fn start(&self) {
        self.times().since.get_or_insert_with(Instant::now);
    }

    /// It is not so any more.
    pub(super) fn stop(&self) {
        let mut times = self.times();
        if let Some(since) = times.since.take() {
            times.past += since.elapsed();
        }
    }

    /// For how long it has been so, in all.
    pub(super) fn total(&self) -> Duration {
        let times = self.times();
        times.past + times.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for Stopwatch {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.total().as_secs_f64(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_grows_while_it_runs_and_only_then() {
        let second = Duration::from_secs(1);
        let watch = Stopwatch::default();
        tokio::time::advance(second).await;
        assert_eq!(watch.total(), Duration::ZERO);
        watch.start();
        tokio::time::advance(second).await;
        watch.start();
        assert_eq!(watch.total(), second, "it was running already");
        tokio::time::advance(second).await;
        watch.stop();
        tokio::time::advance(second).await;
        assert_eq!(watch.total(), 2 * second);
        watch.start();
        tokio::time::advance(second).await;
        assert_eq!(watch.total(), 3 * second);
    }
}
