//! Every metric: its name, labels and help text, in one place.
//!
//! Labels are `route`, `outcome` and `status`, never a device: their number is known at start-up.

mod messages;

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
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
    attempts: Family<Status, Counter>,
    call_seconds: Family<Route, Histogram, fn() -> Histogram>,
    fetches: Family<Outcome, Counter>,
    filter_errors: Family<Route, Counter>,
    publishes_refused: Family<Reason, Counter>,
    dead_letters: Family<DeadLetter, Counter>,
    upstream_up: Gauge,
    upstream_outages: Counter,
    broker_connected: Gauge,
    broker_connects: Counter,
    redelivered: Counter,
    overruns: Counter,
    qos_0_dropped: Counter,
    sessions_lost: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    route: Arc<str>,
    status: Attempt,
}

/// How one HTTP exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attempt {
    /// With this HTTP status.
    Answered(u16),
    /// Without an answer; the label says why.
    Failed(&'static str),
}

impl EncodeLabelValue for Attempt {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => status.encode(encoder),
            Self::Failed(reason) => reason.encode(encoder),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    route: Arc<str>,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLetter {
    route: Arc<str>,
    reason: &'static str,
    kept: Kept,
}

/// Whether anybody took a dead letter, as far as the broker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kept {
    /// Somebody is subscribed.
    Yes,
    /// The broker took it and nobody is subscribed: PUBACK No matching subscribers [MQTT 5.0,
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

/// Puts a metric of its own into the registry; what is returned counts.
fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// A call lasts from a loopback's fraction of a millisecond to a deadline's half minute.
fn call_buckets() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("gateway");
        let all = &mut registry;
        let messages = Arc::new(Messages::default());
        all.register_collector(Box::new(messages.clone()));
        let shares = Arc::new(Shares::default());
        all.register_collector(Box::new(shares.clone()));
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        all.register("build", "The version that runs", version);
        let (counter, gauge) = (Counter::default, Gauge::default);
        Self {
            messages,
            shares,
            attempts: register(
                all,
                "attempts",
                "HTTP exchanges, by row and by status or failure",
                Family::default(),
            ),
            call_seconds: register(
                all,
                "call_seconds",
                "Duration of one HTTP exchange",
                Family::new_with_constructor(call_buckets as fn() -> Histogram),
            ),
            fetches: register(
                all,
                "fetches",
                "Fetches that ran, by what came of them",
                Family::default(),
            ),
            filter_errors: register(
                all,
                "filter_errors",
                "jq filters that failed after a call",
                Family::default(),
            ),
            publishes_refused: register(
                all,
                "publishes_refused",
                "Publications that the broker refused or could not take",
                Family::default(),
            ),
            dead_letters: register(
                all,
                "dead_letters",
                "Dead letters, by row, reason and whether anybody took them",
                Family::default(),
            ),
            upstream_up: register(
                all,
                "upstream_up",
                "0 while nobody is served, on one row at least",
                gauge(),
            ),
            upstream_outages: register(
                all,
                "upstream_outages",
                "Times that nobody was served any more",
                counter(),
            ),
            broker_connected: register(
                all,
                "broker_connected",
                "1 while connected to the broker",
                gauge(),
            ),
            broker_connects: register(
                all,
                "broker_connects",
                "Connections made to the broker",
                counter(),
            ),
            redelivered: register(
                all,
                "redelivered",
                "Messages that came again while they were held, and were not handled again",
                counter(),
            ),
            overruns: register(
                all,
                "overruns",
                "Times the broker sent more than max_pending_bytes",
                counter(),
            ),
            qos_0_dropped: register(
                all,
                "qos0_dropped",
                "Messages at QoS 0 that came faster than they were handled and were dropped",
                counter(),
            ),
            sessions_lost: register(
                all,
                "broker_sessions_lost",
                "Sessions that were gone when the gateway came back, with what the broker held in them",
                counter(),
            ),
            registry,
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

    /// Who holds how much of what is pending.
    pub fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// A message was taken.
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

    /// How many messages are held, and how long ago the last one was settled.
    pub fn progress(&self) -> (u64, Option<Duration>) {
        let tally = self.messages.tally();
        (tally.pending(), tally.last_settled.map(|at| at.elapsed()))
    }

    /// One HTTP exchange ended.
    pub fn attempt(&self, route: &Arc<str>, status: Attempt, elapsed: Duration) {
        self.attempts.get_or_create(&Status { route: route.clone(), status }).inc();
        let label = Route { route: route.clone() };
        self.call_seconds.get_or_create(&label).observe(elapsed.as_secs_f64());
    }

    /// A fetch ended.
    pub fn fetched(&self, fetch: &Arc<str>, outcome: &'static str) {
        self.fetches.get_or_create(&Outcome { route: fetch.clone(), outcome }).inc();
    }

    /// A filter failed after the call.
    pub fn filter_failed(&self, route: &Arc<str>) {
        self.filter_errors.get_or_create(&Route { route: route.clone() }).inc();
    }

    /// A publication did not reach its subscribers.
    pub fn publish_refused(&self, reason: &'static str) {
        self.publishes_refused.get_or_create(&Reason { outcome: reason }).inc();
    }

    /// A message at `QoS` 0 was dropped.
    pub fn qos_0_dropped(&self) {
        self.qos_0_dropped.inc();
    }

    /// The broker did not have the session any more.
    pub fn session_lost(&self) {
        self.sessions_lost.inc();
    }

    /// A dead letter was taken, or not.
    pub fn dead_letter(&self, route: &Arc<str>, reason: &'static str, kept: Kept) {
        let label = DeadLetter { route: route.clone(), reason, kept };
        self.dead_letters.get_or_create(&label).inc();
    }

    /// No row of the upstream is down any more; or some still are.
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

    /// The connection to the broker stands.
    pub fn connected(&self) {
        self.broker_connects.inc();
        self.broker_connected.set(1);
    }

    /// The connection to the broker is gone.
    pub fn disconnected(&self) {
        self.broker_connected.set(0);
    }

    /// The broker sent more than may be held.
    pub fn overrun(&self) {
        self.overruns.inc();
    }

    /// A message came again while it was held.
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
            r#"gateway_messages_received_total{route="telemetry"} 2"#,
            r#"gateway_messages_settled_total{route="telemetry",outcome="delivered",status="201"} 1"#,
            "gateway_messages_pending 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert_eq!(metrics.progress().0, 1);
    }
}
