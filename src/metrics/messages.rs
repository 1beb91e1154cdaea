//! Messages received, settled and pending, as one collector.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};
use tokio::time::Instant;

/// Messages received and settled, counted under one lock so that `received = settled + pending`
/// holds in every scrape.
#[derive(Default)]
pub(super) struct Messages(Mutex<Tally>);

#[derive(Default)]
pub(super) struct Tally {
    pub(super) received: BTreeMap<Arc<str>, u64>,
    pub(super) settled: BTreeMap<(Arc<str>, &'static str, u16), u64>,
    pub(super) last_settled: Option<Instant>,
}

impl Tally {
    pub(super) fn pending(&self) -> u64 {
        self.received.values().sum::<u64>() - self.settled.values().sum::<u64>()
    }
}

impl Messages {
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
        let tally = self.tally();
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor(
            "messages_received",
            "Messages received from the broker",
            None,
            kind,
        )?;
        for (route, count) in &tally.received {
            let labels = [("route", &**route)];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "messages_settled",
            "Messages settled, by row, outcome and status",
            None,
            kind,
        )?;
        for ((route, outcome, status), count) in &tally.settled {
            let status = status.to_string();
            let labels = [("route", &**route), ("outcome", *outcome), ("status", status.as_str())];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        let pending = ConstGauge::new(i64::try_from(tally.pending()).unwrap_or(i64::MAX));
        let family = encoder.encode_descriptor(
            "messages_pending",
            "Messages received and not settled: received - settled",
            None,
            pending.metric_type(),
        )?;
        pending.encode(family)
    }
}
