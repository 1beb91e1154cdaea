//! Messages received, settled and pending, and how long they took, as one collector.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
};
use tokio::time::Instant;

use super::{
    Known,
    figures::{RouteCounts, Times},
};
use crate::wall_clock;

/// From the fastest answer to the length of a long outage, in which a message is held.
const BUCKETS: [f64; 16] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    3600.0,
];

/// How long messages take.
pub(super) fn seconds() -> Histogram {
    Histogram::new(BUCKETS)
}

/// Messages received and settled, counted under one lock so that `received = settled + pending`
/// holds in every scrape.
#[derive(Default)]
pub(super) struct Messages(Mutex<Tally>);

#[derive(Default)]
pub(super) struct Tally {
    rows: BTreeMap<Arc<str>, Row>,
    received: u64,
    settled: u64,
    last_settled: Option<Instant>,
    /// Which that was when it was scraped last, and the time of day.
    last_shown: Option<(Instant, f64)>,
}

/// The messages of one row.
pub(super) struct Row {
    received: u64,
    /// By outcome. The most frequent one comes first, so that it is found at once.
    settled: Vec<(&'static str, u64)>,
    seconds: Histogram,
}

impl Default for Row {
    fn default() -> Self {
        Self { received: 0, settled: Vec::new(), seconds: seconds() }
    }
}

impl Row {
    /// For people.
    pub(super) fn counts(&self) -> RouteCounts {
        let settled = self.settled.iter().copied().collect();
        RouteCounts { received: self.received, settled, times: Times::from(&self.seconds) }
    }
}

impl Tally {
    pub(super) fn pending(&self) -> u64 {
        self.received - self.settled
    }

    /// What is counted, by row.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&Arc<str>, &Row)> {
        self.rows.iter()
    }

    pub(super) fn last_settled(&self) -> Option<Instant> {
        self.last_settled
    }

    /// When the last one was settled, in seconds since 1970; 0 if none was. It is the same in every scrape until the next
    /// one is.
    fn last_settled_timestamp(&mut self) -> f64 {
        let Some(last) = self.last_settled else { return 0.0 };
        match self.last_shown {
            Some((shown, timestamp)) if shown == last => timestamp,
            _ => {
                let now = wall_clock::now().duration_since(SystemTime::UNIX_EPOCH);
                let timestamp = now.unwrap_or_default().saturating_sub(last.elapsed());
                let timestamp = timestamp.as_secs_f64();
                self.last_shown = Some((last, timestamp));
                timestamp
            }
        }
    }

    /// A message of this row arrived.
    pub(super) fn receive(&mut self, row: &Arc<str>) {
        self.received += 1;
        self.rows.entry(row.clone()).or_default().received += 1;
    }

    /// A message of this row that arrived then has its outcome.
    pub(super) fn settle(&mut self, row: &Arc<str>, outcome: &'static str, arrived: Instant) {
        let now = Instant::now();
        self.settled += 1;
        self.last_settled = Some(now);
        let row = self.rows.entry(row.clone()).or_default();
        match row.settled.iter_mut().find(|(word, _)| *word == outcome) {
            Some((_, count)) => *count += 1,
            None => row.settled.push((outcome, 1)),
        }
        row.seconds.observe(now.saturating_duration_since(arrived).as_secs_f64());
    }
}

impl Messages {
    pub(super) fn new(known: &Known) -> Self {
        let row = || Row {
            settled: known.outcomes.iter().map(|outcome| (*outcome, 0)).collect(),
            ..Row::default()
        };
        let rows = known.routes.iter().map(|route| (route.clone(), row())).collect();
        Self(Mutex::new(Tally { rows, ..Tally::default() }))
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Messages")
    }
}

impl Collector for Messages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut tally = self.tally();
        let help = "Messages received from the broker, by row";
        let kind = MetricType::Counter;
        let mut family = encoder.encode_descriptor("messages_received", help, None, kind)?;
        for (route, row) in &tally.rows {
            let labels = [("route", &**route)];
            ConstCounter::new(row.received).encode(family.encode_family(&labels)?)?;
        }
        let help = "Messages settled, by row and outcome";
        let mut family = encoder.encode_descriptor("messages_settled", help, None, kind)?;
        for (route, row) in &tally.rows {
            for (outcome, count) in &row.settled {
                let labels = [("route", &**route), ("outcome", *outcome)];
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help =
            "Time from the arrival of a message to its outcome, after which its PUBACK is due";
        let kind = MetricType::Histogram;
        let mut family = encoder.encode_descriptor("message_duration_seconds", help, None, kind)?;
        for (route, row) in &tally.rows {
            row.seconds.encode(family.encode_family(&[("route", &**route)])?)?;
        }
        let last = ConstGauge::new(tally.last_settled_timestamp());
        let help = "When a message was last settled, in seconds since 1970";
        let (name, kind) = ("last_settled_timestamp_seconds", last.metric_type());
        last.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        let pending = ConstGauge::new(i64::try_from(tally.pending()).unwrap_or(i64::MAX));
        let help = "Messages received and not settled: received - settled";
        let kind = pending.metric_type();
        pending.encode(encoder.encode_descriptor("messages_pending", help, None, kind)?)
    }
}
