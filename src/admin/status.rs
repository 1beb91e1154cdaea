//! How everything stands, for people: what `/events` says once a second.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::time::Instant;

use super::health::{Health, Reason};
use crate::{
    config::Config,
    exchange,
    metrics::{FETCHED, FailedMessage, Metrics, Numbered, RouteCounts, Times},
    upstream::Outage,
};

/// Rates and times are those of so many seconds.
const WINDOW: Duration = Duration::from_secs(10);
/// The bad one of the ways in which a fetch can end.
const FAILED: &str = "failed";
/// The kinds of rows.
const ROUTE: &str = "route";
const FETCH: &str = "fetch";

/// What does not change while the gateway runs.
pub(crate) struct About {
    /// Where the broker is.
    broker: String,
    /// Where the API is.
    upstream: String,
    /// The rows of `[[route]]`.
    routes: Vec<Arc<str>>,
    /// Those of `[[fetch]]`.
    fetches: Vec<Arc<str>>,
}

impl About {
    /// What the configuration says of it.
    pub(crate) fn of(config: &Config) -> Self {
        let table = &config.table;
        Self {
            broker: config.broker.address.to_string(),
            upstream: config.upstream.base().to_owned(),
            routes: table.routes.iter().map(|route| route.name.clone()).collect(),
            fetches: table.fetches.iter().map(|fetch| fetch.name.clone()).collect(),
        }
    }
}

/// How everything stands.
#[derive(Default, Serialize)]
pub(super) struct Status {
    version: &'static str,
    at: String,
    up_seconds: u64,
    ready: bool,
    reasons: Vec<Reason>,
    broker: Broker,
    upstream: Upstream,
    pending: Pending,
    total: Total,
    rows: Vec<Row>,
    /// The last messages that were not delivered; a listener is told of each once.
    #[serde(skip)]
    failures: Vec<Numbered>,
}

#[derive(Default, Serialize)]
struct Broker {
    address: String,
    connected: bool,
    since_seconds: u64,
}

#[derive(Default, Serialize)]
struct Upstream {
    url: String,
    up: bool,
    outages: Vec<Down>,
}

/// A row on which nobody is served.
#[derive(Serialize)]
struct Down {
    row: String,
    since_seconds: u64,
    sign: String,
}

#[derive(Default, Serialize)]
struct Pending {
    messages: u64,
    /// How many may be.
    at_most: usize,
    /// How long the oldest has been pending.
    oldest_seconds: Option<f64>,
}

/// All messages.
#[derive(Default, Serialize)]
struct Total {
    messages: u64,
    failed: u64,
    per_second: Option<f64>,
}

#[derive(Default, Serialize)]
struct Row {
    name: String,
    /// `route` or `fetch`.
    kind: &'static str,
    /// Messages received; of a fetch its runs.
    messages: u64,
    pending: u64,
    failed: u64,
    /// How many failed for which reason.
    reasons: BTreeMap<&'static str, u64>,
    per_second: Option<f64>,
    /// Mean duration of an HTTP exchange, in the last seconds.
    call_seconds: Option<f64>,
    /// Mean time from the arrival of a message to its outcome, in the last seconds.
    message_seconds: Option<f64>,
}

/// What a listener hears of a message that was not delivered.
#[derive(Serialize)]
struct Failure<'f> {
    number: u64,
    #[serde(flatten)]
    message: &'f FailedMessage,
}

#[derive(Serialize)]
struct Event<'e> {
    #[serde(flatten)]
    status: &'e Status,
    failures: Vec<Failure<'e>>,
}

impl Status {
    /// As JSON on one line, with the failures after the one of number `told`, which becomes that of the last one.
    pub(super) fn event(&self, told: &mut u64) -> String {
        let new = self.failures.iter().filter(|failure| failure.number > *told);
        let failures: Vec<_> =
            new.map(|Numbered { number, message }| Failure { number: *number, message }).collect();
        *told = failures.last().map_or(*told, |failure| failure.number);
        // Maps with text for keys, and numbers: nothing that JSON cannot say.
        serde_json::to_string(&Event { status: self, failures }).unwrap_or_default()
    }
}

/// What was counted at a moment, by row.
struct Sample {
    at: Instant,
    rows: Vec<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    messages: u64,
    settled: Times,
    calls: Times,
}

/// Looks at everything, for as long as somebody listens.
pub(super) struct Observer<'o> {
    about: &'o About,
    health: &'o Health,
    metrics: &'o Metrics,
    /// What was counted in the last seconds, oldest first.
    past: VecDeque<Sample>,
}

impl<'o> Observer<'o> {
    pub(super) fn new(about: &'o About, health: &'o Health, metrics: &'o Metrics) -> Self {
        Self { about, health, metrics, past: VecDeque::new() }
    }

    /// How everything stands now.
    pub(super) fn look(&mut self) -> Status {
        let (about, health, metrics) = (self.about, self.health, self.metrics);
        let (mut rows, counts) = self.rows();
        let at = Instant::now();
        while self.past.front().is_some_and(|sample| at - sample.at > WINDOW) {
            self.past.pop_front();
        }
        let mut per_second = None;
        if let Some(Sample { at: then, rows: before }) = self.past.front() {
            let seconds = (at - *then).as_secs_f64();
            for ((row, now), before) in rows.iter_mut().zip(&counts).zip(before) {
                row.since(now, before, seconds);
            }
            let routes = rows.iter().filter(|row| row.kind == ROUTE);
            per_second = Some(routes.filter_map(|row| row.per_second).sum());
        }
        self.past.push_back(Sample { at, rows: counts });
        let reasons = health.unready();
        let outages: Vec<_> = health.outages().into_iter().map(Down::from).collect();
        let (connected, since) = metrics.broker();
        let since = since.map_or(health.age(), |since| since.elapsed());
        let routes = || rows.iter().filter(|row| row.kind == ROUTE);
        let pending = routes().map(|row| row.pending).sum();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            up_seconds: health.age().as_secs(),
            ready: reasons.is_empty(),
            reasons,
            broker: Broker {
                address: about.broker.clone(),
                connected,
                since_seconds: since.as_secs(),
            },
            upstream: Upstream { url: about.upstream.clone(), up: outages.is_empty(), outages },
            pending: Pending {
                messages: pending,
                at_most: health.window().messages,
                oldest_seconds: (pending > 0).then(|| metrics.shares().oldest().as_secs_f64()),
            },
            total: Total {
                messages: routes().map(|row| row.messages).sum(),
                failed: routes().map(|row| row.failed).sum(),
                per_second,
            },
            failures: metrics.failures(),
            rows,
        }
    }

    /// The rows in the order of the table, and what came for none.
    fn rows(&self) -> (Vec<Row>, Vec<Counts>) {
        let metrics = self.metrics;
        let mut counted = metrics.route_counts();
        let mut rows = Vec::new();
        for name in &self.about.routes {
            rows.push((name.clone(), ROUTE, counted.remove(name).unwrap_or_default()));
        }
        for name in &self.about.fetches {
            let runs = FETCHED.map(|outcome| (outcome, metrics.fetches(name, outcome)));
            let received = runs.iter().map(|(_, count)| count).sum();
            let counts = RouteCounts { received, settled: runs.into(), times: Times::default() };
            rows.push((name.clone(), FETCH, counts));
        }
        // Last, since they may come later: a row keeps its place.
        counted.retain(|_, counts| counts.received > 0);
        rows.extend(counted.into_iter().map(|(name, counts)| (name, ROUTE, counts)));
        let row = |(name, kind, counts): (Arc<str>, _, RouteCounts)| {
            let (messages, settled) = (counts.received, counts.times);
            let counted = Counts { messages, settled, calls: metrics.call_time(&name) };
            (Row::new(&name, kind, counts), counted)
        };
        rows.into_iter().map(row).unzip()
    }
}

impl Row {
    fn new(name: &str, kind: &'static str, counts: RouteCounts) -> Self {
        let RouteCounts { received, settled: mut failures, .. } = counts;
        let pending = received - failures.values().sum::<u64>();
        let well = |outcome| match kind {
            FETCH => outcome != FAILED,
            _ => exchange::WELL.contains(&outcome),
        };
        failures.retain(|outcome, count| *count > 0 && !well(outcome));
        Self {
            name: name.to_owned(),
            kind,
            messages: received,
            pending,
            failed: failures.values().sum(),
            // Of a fetch there is one, which says nothing.
            reasons: if kind == FETCH { BTreeMap::new() } else { failures },
            ..Self::default()
        }
    }

    /// Learns what there was since `before`, so many seconds ago.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn since(&mut self, now: &Counts, before: &Counts, seconds: f64) {
        self.per_second = Some((now.messages - before.messages) as f64 / seconds);
        let mean = |now: Times, before: Times| {
            let count = now.count - before.count;
            (count > 0).then(|| (now.seconds - before.seconds) / count as f64)
        };
        self.call_seconds = mean(now.calls, before.calls);
        self.message_seconds = mean(now.settled, before.settled);
    }
}

impl From<Outage> for Down {
    fn from(Outage { row, since, sign }: Outage) -> Self {
        Self { row: row.to_string(), since_seconds: since.elapsed().as_secs(), sign }
    }
}
