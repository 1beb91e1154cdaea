//! Every metric: its name, labels and help text, in one place.
//!
//! No label names a device: how many time series there are is decided by the table, not by the fleet.

mod messages;

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};
use tokio::time::Instant;

use self::messages::Messages;
use crate::shares::Shares;

/// All metrics of one gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    messages: Arc<Messages>,
    shares: Arc<Shares>,
    attempts: Family<AttemptLabels, Counter>,
    call_seconds: Family<RouteLabel, Histogram, fn() -> Histogram>,
    fetches: Family<OutcomeLabels, Counter>,
    filter_errors: Family<RouteLabel, Counter>,
    publishes_refused: Family<RefusalLabel, Counter>,
    dead_letters: Family<DeadLetterLabels, Counter>,
    upstream_up: Gauge,
    upstream_outages: Counter,
    broker_connected: Gauge,
    broker_connects: Counter,
    redelivered: Counter,
    overruns: Counter,
    qos_0_dropped: Counter,
    sessions_lost: Counter,
    secret_errors: Family<SecretLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    route: Arc<str>,
    status: AttemptResult,
}

/// How one HTTP exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptResult {
    /// With this HTTP status.
    Answered(u16),
    /// Without an answer; the label says why.
    Failed(&'static str),
}

impl fmt::Display for AttemptResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => status.fmt(f),
            Self::Failed(reason) => reason.fmt(f),
        }
    }
}

impl EncodeLabelValue for AttemptResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => status.encode(encoder),
            Self::Failed(reason) => reason.encode(encoder),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    route: Arc<str>,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabel {
    secret: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLetterLabels {
    route: Arc<str>,
    reason: &'static str,
    kept: Kept,
}

/// Whether any subscriber got a dead letter, as far as the broker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kept {
    /// A client is subscribed.
    Yes,
    /// The broker took it and no client is subscribed: PUBACK No matching subscribers [MQTT 5.0,
    /// 3.4.2.1].
    No,
    /// The broker refused it.
    Refused,
    /// It could not be sent.
    Dropped,
}

impl EncodeLabelValue for Kept {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let label = match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        };
        label.encode(encoder)
    }
}

/// Puts metrics into a registry under their names.
struct Register(Registry);

impl Register {
    /// A metric that starts at nothing; the copy that is returned is the one to count with.
    fn metric<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.put(name, help, M::default())
    }

    fn put<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn collector<C: Collector + Default>(&mut self) -> Arc<C>
    where
        Arc<C>: Collector,
    {
        let collector = Arc::<C>::default();
        self.0.register_collector(Box::new(collector.clone()));
        collector
    }
}

/// Buckets from a fraction of a millisecond, an answer over the loopback, to 30 s, the default deadline.
fn call_buckets() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

impl Default for Metrics {
    #[rustfmt::skip] // It reads as a table.
    fn default() -> Self {
        let mut all = Register(Registry::with_prefix("mqtt_rest_gateway"));
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        all.0.register("build", "The version that runs", version);
        let seconds = Family::new_with_constructor(call_buckets as fn() -> Histogram);
        Self {
            messages: all.collector(),
            shares: all.collector(),
            attempts: all.metric("attempts", "HTTP exchanges, by row and by status or failure"),
            call_seconds: all.put("call_seconds", "Duration of one HTTP exchange", seconds),
            fetches: all.metric("fetches", "Fetches that ran, by their result"),
            filter_errors: all.metric("filter_errors", "jq filters that failed after a call"),
            publishes_refused: all.metric("publishes_refused", "Publications that the broker refused or could not take"),
            dead_letters: all.metric("dead_letters", "Dead letters, by row, reason and whether any subscriber got them"),
            upstream_up: all.metric("upstream_up", "0 during an outage of the upstream or of any row, else 1"),
            upstream_outages: all.metric("upstream_outages", "Outages of the upstream that began"),
            broker_connected: all.metric("broker_connected", "1 while connected to the broker"),
            broker_connects: all.metric("broker_connects", "Connections made to the broker"),
            redelivered: all.metric("redelivered", "Messages that the broker sent again while they were pending; they are not handled twice"),
            overruns: all.metric("overruns", "Times the broker sent more than max_pending_bytes"),
            qos_0_dropped: all.metric("qos0_dropped", "Messages at QoS 0 that came faster than they were handled and were dropped"),
            sessions_lost: all.metric("broker_sessions_lost", "Sessions that the broker had lost, with all messages queued in them"),
            secret_errors: all.metric("secret_errors", "Times that the file of a secret could not be used and its former value stayed"),
            registry: all.0,
        }
    }
}

impl Metrics {
    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    /// How many messages and bytes are pending, by device.
    pub fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// A message arrived from the broker.
    pub fn received(&self, route: &Arc<str>) {
        let mut tally = self.messages.tally();
        *tally.received.entry(route.clone()).or_default() += 1;
    }

    /// A message has its outcome.
    pub fn settled(&self, route: &Arc<str>, outcome: &'static str, status: u16) {
        let mut tally = self.messages.tally();
        *tally.settled.entry((route.clone(), outcome, status)).or_default() += 1;
        tally.last_settled = Some(Instant::now());
    }

    /// How many messages are pending, and how long ago the last one was settled.
    pub fn progress(&self) -> (u64, Option<Duration>) {
        let tally = self.messages.tally();
        (tally.pending(), tally.last_settled.map(|at| at.elapsed()))
    }

    /// One HTTP exchange ended.
    pub fn attempt(&self, route: &Arc<str>, status: AttemptResult, elapsed: Duration) {
        self.attempts.get_or_create(&AttemptLabels { route: route.clone(), status }).inc();
        let label = RouteLabel { route: route.clone() };
        self.call_seconds.get_or_create(&label).observe(elapsed.as_secs_f64());
    }

    /// A fetch ended.
    pub fn fetched(&self, fetch: &Arc<str>, outcome: &'static str) {
        self.fetches.get_or_create(&OutcomeLabels { route: fetch.clone(), outcome }).inc();
    }

    /// A filter failed after the call.
    pub fn filter_failed(&self, route: &Arc<str>) {
        self.filter_errors.get_or_create(&RouteLabel { route: route.clone() }).inc();
    }

    /// A publication did not reach its subscribers.
    pub fn publish_refused(&self, reason: &'static str) {
        self.publishes_refused.get_or_create(&RefusalLabel { outcome: reason }).inc();
    }

    /// A message at `QoS` 0 was dropped.
    pub fn qos_0_dropped(&self) {
        self.qos_0_dropped.inc();
    }

    /// The broker did not have the session any more.
    pub fn session_lost(&self) {
        self.sessions_lost.inc();
    }

    /// The file of the secret of this name cannot be used.
    pub fn secret_failed(&self, name: &str) {
        self.secret_errors.get_or_create(&SecretLabel { secret: name.into() }).inc();
    }

    /// A dead letter was published, or could not be.
    pub fn dead_letter(&self, route: &Arc<str>, reason: &'static str, kept: Kept) {
        let label = DeadLetterLabels { route: route.clone(), reason, kept };
        self.dead_letters.get_or_create(&label).inc();
    }

    /// Whether no row of the upstream is down.
    pub fn upstream_up(&self, up: bool) {
        self.upstream_up.set(i64::from(up));
    }

    /// A row of the upstream is down; `first` if none was before.
    pub fn upstream_down(&self, first: bool) {
        self.upstream_up.set(0);
        if first {
            self.upstream_outages.inc();
        }
    }

    /// The gateway is connected to the broker.
    pub fn connected(&self) {
        self.broker_connects.inc();
        self.broker_connected.set(1);
    }

    /// The gateway is not connected to the broker any more.
    pub fn disconnected(&self) {
        self.broker_connected.set(0);
    }

    /// The broker sent more than `max_pending_bytes`.
    pub fn overrun(&self) {
        self.overruns.inc();
    }

    /// The broker sent a message again that is pending.
    pub fn redelivered(&self) {
        self.redelivered.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_is_settled_plus_pending() {
        let metrics = Metrics::default();
        let route = Arc::from("telemetry");
        metrics.received(&route);
        metrics.received(&route);
        metrics.settled(&route, "delivered", 201);
        let text = metrics.render();
        for line in [
            r#"mqtt_rest_gateway_messages_received_total{route="telemetry"} 2"#,
            r#"mqtt_rest_gateway_messages_settled_total{route="telemetry",outcome="delivered",status="201"} 1"#,
            "mqtt_rest_gateway_messages_pending 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert_eq!(metrics.progress().0, 1);
    }
}
