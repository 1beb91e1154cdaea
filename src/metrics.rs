//! Every metric: its name, labels and help text, in one place.
//!
//! No label names a device: how many time series there are is decided by the table, not by the fleet. Whatever is known
//! at start begins at 0 ([`Known`]).

mod acknowledgements;
mod calls;
mod failures;
mod figures;
mod known;
mod labels;
mod messages;
mod process;
mod reading;
mod stopwatch;
mod text;

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Metric, Registry},
};
use tokio::{runtime::Handle, time::Instant};

pub(crate) use self::{
    acknowledgements::Acknowledgements,
    calls::Attempt,
    failures::{FailedMessage, Numbered},
    figures::{RouteCounts, Times},
    known::Known,
    labels::{AttemptResult, Kept, SideLabel},
    text::Format,
};
use self::{
    acknowledgements::Waits,
    calls::Calls,
    figures::Figures,
    labels::{DeadLetterLabels, FetchLabels, ReasonLabel, RouteLabel, SecretLabel},
    messages::Messages,
    process::{Busy, Process},
    reading::Reading,
    stopwatch::Stopwatch,
};
use crate::shares::Shares;

/// What became of a fetch.
pub(crate) const FETCHED: [&str; 4] = ["pushed", "repeated", "empty", "failed"];
/// Why a publication did not reach its subscribers.
const REFUSED: [&str; 4] = ["refused", "too_large", "illegal", "poison"];

/// All metrics of one gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    messages: Arc<Messages>,
    acknowledgements: Waits,
    figures: Figures,
    shares: Arc<Shares>,
    calls: Calls,
    fetches: Family<FetchLabels, Counter>,
    filter_errors: Family<RouteLabel, Counter>,
    publishes_refused: Family<ReasonLabel, Counter>,
    dead_letters: Family<DeadLetterLabels, Counter>,
    upstream_up: Gauge,
    upstream_outages: Counter,
    upstream_down: Stopwatch,
    broker_connected: Gauge,
    broker_connects: Counter,
    broker_disconnected: Stopwatch,
    connection_failures: Family<ReasonLabel, Counter>,
    redelivered: Counter,
    overruns: Counter,
    qos_0_dropped: Counter,
    sessions_lost: Counter,
    secret_errors: Family<SecretLabel, Counter>,
    readings: Readings,
}

/// What is read at each scrape, and where.
#[derive(Debug)]
pub(crate) struct Readings {
    /// Calls under way.
    pub(crate) calls_in_flight: Reading,
    /// How many may be.
    pub(crate) calls_in_flight_limit: Reading,
    /// How many messages may be pending.
    pub(crate) pending_limit: Reading,
    /// How many bytes of payload may be pending.
    pub(crate) pending_bytes_limit: Reading,
    /// Devices of which something is remembered.
    pub(crate) devices_known: Reading,
    /// When the certificates end that the gateway shows, in seconds since 1970.
    pub(crate) certificates: Family<SideLabel, Reading>,
}

/// Puts metrics into a registry under their names.
struct Register<'a>(&'a mut Registry);

impl Register<'_> {
    /// A metric that starts at nothing; the copy that is returned is the one to count with.
    fn metric<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.put(name, help, M::default())
    }

    fn put<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn collector<C: Collector>(&mut self, collector: C) -> Arc<C>
    where
        Arc<C>: Collector,
    {
        let collector = Arc::new(collector);
        self.0.register_collector(Box::new(collector.clone()));
        collector
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&Known::default())
    }
}

impl Metrics {
    /// All metrics, with the series that are known at 0.
    #[rustfmt::skip] // It reads as a table.
    pub fn new(known: &Known) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::starting()));
        let mut all = Register(registry.sub_registry_with_prefix("mqtt_rest_gateway"));
        let version = [("version", env!("CARGO_PKG_VERSION")), ("revision", env!("BUILD_COMMIT"))];
        all.0.register("build", "The version that runs, and the commit that it is built of", Info::new(version));
        let busy = Busy(Handle::try_current().ok());
        all.put("busy_seconds", "Time for which the one thread that does all the work was busy", busy);
        let metrics = Self {
            messages: all.collector(Messages::new(known)),
            acknowledgements: Waits::new(&mut all),
            figures: Figures::default(),
            shares: all.collector(Shares::default()),
            calls: Calls::new(&mut all, known),
            fetches: all.metric("fetches", "Fetches that ran, by their result"),
            filter_errors: all.metric("filter_errors", "jq filters that failed after a call, by row or fetch"),
            publishes_refused: all.metric("publishes_refused", "Publications that the broker refused or could not take"),
            dead_letters: all.metric("dead_letters", "Dead letters, by row, reason and whether any subscriber got them"),
            upstream_up: all.metric("upstream_up", "0 during an outage of the upstream or of any row, else 1"),
            upstream_outages: all.metric("upstream_outages", "Outages of the upstream that began"),
            upstream_down: all.metric("upstream_down_seconds", "Time for which the upstream or any row was down"),
            broker_connected: all.metric("broker_connected", "1 while connected to the broker"),
            broker_connects: all.metric("broker_connects", "Connections made to the broker"),
            broker_disconnected: all.metric("broker_disconnected_seconds", "Time without a connection to the broker"),
            connection_failures: all.metric("broker_connection_failures", "Connections to the broker that failed or ended, by reason"),
            redelivered: all.metric("redelivered", "Messages that the broker sent again while they were pending; they are not handled twice"),
            overruns: all.metric("overruns", "Times the broker sent more than max_pending_bytes"),
            qos_0_dropped: all.metric("qos0_dropped", "Messages at QoS 0 that came faster than they were handled and were dropped"),
            sessions_lost: all.metric("broker_sessions_lost", "Sessions that the broker had lost, with all messages queued in them"),
            secret_errors: all.metric("secret_errors", "Times that the file of a secret could not be used and its former value stayed"),
            readings: Readings {
                calls_in_flight: all.metric("calls_in_flight", "Calls to the API that are under way"),
                calls_in_flight_limit: all.metric("calls_in_flight_limit", "Calls to the API that may be under way at once: max_in_flight"),
                pending_limit: all.metric("messages_pending_limit", "Messages that may be pending: max_pending, or what the broker sends at once"),
                pending_bytes_limit: all.metric("messages_pending_bytes_limit", "Bytes of payload that may be pending: max_pending_bytes"),
                devices_known: all.metric("devices_known", "Devices of which something is remembered"),
                certificates: all.metric("tls_certificate_not_after_seconds", "When the certificate ends that the gateway shows, or its chain, in seconds since 1970"),
            },
            registry,
        };
        metrics.begin_at_0(known);
        metrics
    }

    /// Creates the series that are known.
    fn begin_at_0(&self, known: &Known) {
        for route in &known.routes {
            self.acknowledgements.of(route);
        }
        for fetch in &known.fetches {
            for outcome in FETCHED {
                let labels = FetchLabels { fetch: fetch.clone(), outcome };
                self.fetches.get_or_create_owned(&labels);
            }
        }
        for route in known.routes.iter().chain(&known.fetches) {
            self.filter_errors.get_or_create_owned(&RouteLabel { route: route.clone() });
        }
        for reason in REFUSED {
            self.publishes_refused.get_or_create_owned(&ReasonLabel { reason });
        }
        // Not with every word for `kept`, which would be most of all series. Those that nobody keeps come in bulk, and
        // first when nobody has thought of them. What the broker does not take is in `publishes_refused` as well,
        // and what is kept has its outcome in `messages_settled`.
        for route in &known.routes {
            for reason in &known.letters {
                let labels = DeadLetterLabels { route: route.clone(), reason, kept: Kept::No };
                self.dead_letters.get_or_create_owned(&labels);
            }
        }
        for reason in known.connection_failures {
            self.connection_failures.get_or_create_owned(&ReasonLabel { reason });
        }
        for secret in &known.secrets {
            self.secret_errors.get_or_create_owned(&SecretLabel { secret: secret.clone() });
        }
        self.broker_disconnected.start();
    }

    /// The text that Prometheus scrapes.
    pub(crate) fn render(&self, format: Format) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encoding::text::encode(&mut text, &self.registry);
        match format {
            Format::OpenMetrics => text::with_units(&text),
            Format::Plain => text::plain(&text),
        }
    }

    /// What is read at each scrape: whoever knows where says so.
    pub(crate) fn readings(&self) -> &Readings {
        &self.readings
    }

    /// How many messages and bytes are pending, by device.
    pub fn shares(&self) -> &Arc<Shares> {
        &self.shares
    }

    /// A message arrived from the broker.
    pub fn received(&self, route: &Arc<str>) {
        self.messages.tally().receive(route);
    }

    /// A message that arrived then has its outcome.
    pub fn settled(&self, route: &Arc<str>, outcome: &'static str, arrived: Instant) {
        self.messages.tally().settle(route, outcome, arrived);
    }

    /// The series of a session whose subscriptions have these labels.
    pub(crate) fn acknowledgements(&self, names: &[Arc<str>]) -> Acknowledgements {
        Acknowledgements(names.iter().map(|name| self.acknowledgements.of(name)).collect())
    }

    /// How many messages are pending, and how long ago the last one was settled.
    pub fn progress(&self) -> (u64, Option<Duration>) {
        let tally = self.messages.tally();
        (tally.pending(), tally.last_settled().map(|at| at.elapsed()))
    }

    /// One HTTP exchange ended.
    pub fn attempt(&self, attempt: &Attempt<'_>) {
        self.calls.attempt(attempt);
    }

    /// A call of this row or fetch has waited for its turn.
    pub fn throttled(&self, name: &Arc<str>, time: Duration) {
        self.calls.throttled(name, time);
    }

    /// That many calls of a row travel together.
    pub fn batch(&self, route: &Arc<str>, calls: usize) {
        self.calls.batch(route, u32::try_from(calls).unwrap_or(u32::MAX));
    }

    /// A fetch ended.
    pub fn fetched(&self, fetch: &Arc<str>, outcome: &'static str) {
        self.fetches.get_or_create(&FetchLabels { fetch: fetch.clone(), outcome }).inc();
    }

    /// A filter failed after the call.
    pub fn filter_failed(&self, route: &Arc<str>) {
        self.filter_errors.get_or_create(&RouteLabel { route: route.clone() }).inc();
    }

    /// A publication did not reach its subscribers.
    pub fn publish_refused(&self, reason: &'static str) {
        self.publishes_refused.get_or_create(&ReasonLabel { reason }).inc();
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
        if up {
            self.upstream_down.stop();
        }
    }

    /// A row of the upstream is down; `first` if none was before.
    pub fn upstream_down(&self, first: bool) {
        self.upstream_up.set(0);
        self.upstream_down.start();
        if first {
            self.upstream_outages.inc();
        }
    }

    /// The gateway is connected to the broker.
    pub fn connected(&self) {
        self.broker_connects.inc();
        self.broker_connected.set(1);
        self.broker_disconnected.stop();
        self.figures.broker_changed();
    }

    /// The gateway is not connected to the broker any more.
    pub fn disconnected(&self) {
        if self.broker_connected.set(0) == 1 {
            self.figures.broker_changed();
        }
        self.broker_disconnected.start();
    }

    /// A connection to the broker could not be made, or ended against our will.
    pub fn connection_failed(&self, reason: &'static str) {
        self.connection_failures.get_or_create(&ReasonLabel { reason }).inc();
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
        metrics.settled(&route, "delivered", Instant::now());
        let text = metrics.render(Format::OpenMetrics);
        for line in [
            r#"mqtt_rest_gateway_messages_received_total{route="telemetry"} 2"#,
            r#"mqtt_rest_gateway_messages_settled_total{route="telemetry",outcome="delivered"} 1"#,
            "mqtt_rest_gateway_messages_pending 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        assert_eq!(metrics.progress().0, 1);
    }
}
