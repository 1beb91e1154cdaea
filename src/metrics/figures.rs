//! What people are shown of the metrics, and what no metric can say: the last failures, and since when.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use super::{
    Metrics,
    failures::{FailedMessage, Failures, Numbered},
    labels::FetchLabels,
};

/// What is kept for people alone.
#[derive(Debug, Default)]
pub(super) struct Figures {
    failures: Failures,
    /// When the connection to the broker was last made or lost.
    broker_changed: Mutex<Option<Instant>>,
}

/// What has become of the messages of one row.
#[derive(Debug, Default)]
pub(crate) struct RouteCounts {
    /// Messages that have come.
    pub(crate) received: u64,
    /// Messages by their outcome.
    pub(crate) settled: BTreeMap<&'static str, u64>,
    /// From their arrival to their outcome.
    pub(crate) times: Times,
}

/// How many there were, and how many seconds they took together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) seconds: f64,
}

impl From<&Histogram> for Times {
    fn from(histogram: &Histogram) -> Self {
        Self { count: histogram.count(), seconds: histogram.sum() }
    }
}

impl Figures {
    pub(super) fn broker_changed(&self) {
        let mut changed = self.broker_changed.lock().unwrap_or_else(PoisonError::into_inner);
        *changed = Some(Instant::now());
    }
}

impl Metrics {
    /// A message was not delivered: people are shown the last ones.
    pub(crate) fn failed(&self, message: FailedMessage) {
        self.figures.failures.add(message);
    }

    /// The last messages that were not delivered, oldest first.
    pub(crate) fn failures(&self) -> Vec<Numbered> {
        self.figures.failures.last()
    }

    /// Whether the gateway is connected to the broker, and since when; since its start if there is no time.
    pub(crate) fn broker(&self) -> (bool, Option<Instant>) {
        let changed = self.figures.broker_changed.lock().unwrap_or_else(PoisonError::into_inner);
        (self.broker_connected.get() == 1, *changed)
    }

    /// What has become of the messages of each row.
    pub(crate) fn route_counts(&self) -> BTreeMap<Arc<str>, RouteCounts> {
        let tally = self.messages.tally();
        tally.rows().map(|(route, row)| (route.clone(), row.counts())).collect()
    }

    /// How many HTTP exchanges a row or fetch had, and how many seconds they took together.
    pub(crate) fn call_time(&self, row: &Arc<str>) -> Times {
        self.calls.time(row)
    }

    /// How many runs of a fetch have ended so.
    pub(crate) fn fetches(&self, fetch: &Arc<str>, outcome: &'static str) -> u64 {
        let labels = FetchLabels { fetch: fetch.clone(), outcome };
        self.fetches.get(&labels).map_or(0, |runs| runs.get())
    }
}
