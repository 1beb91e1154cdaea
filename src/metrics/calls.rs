//! What is counted of calls, by the row or fetch that makes them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, family::Family, histogram::Histogram};

use super::{
    AttemptResult, Known, Register,
    figures::Times,
    labels::{AttemptLabels, RouteLabel},
};

/// From a fraction of a millisecond, an answer over the loopback, to 30 s, the default deadline.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// How many calls may be in a batch.
const BATCHES: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

/// One HTTP exchange that ended.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The row or fetch that made it.
    pub name: &'a Arc<str>,
    /// How it ended.
    pub ended: AttemptResult,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether its call had been tried before.
    pub is_retry: bool,
    /// Bytes of the request's body.
    pub sent: usize,
    /// Bytes of the answer's body, decoded.
    pub received: usize,
}

/// All that is counted of calls.
#[derive(Debug)]
pub(super) struct Calls {
    attempts: Family<AttemptLabels, Counter>,
    seconds: Family<RouteLabel, Histogram, fn() -> Histogram>,
    retries: Family<RouteLabel, Counter>,
    sent: Family<RouteLabel, Counter>,
    received: Family<RouteLabel, Counter>,
    batches: Family<RouteLabel, Histogram, fn() -> Histogram>,
    throttled: Family<RouteLabel, Counter<f64, AtomicU64>>,
    /// The series of those that are known, so that no label is looked up for an attempt.
    callers: BTreeMap<Arc<str>, Caller>,
}

/// The series of one row or fetch.
#[derive(Debug, Clone)]
struct Caller {
    seconds: Histogram,
    sent: Counter,
    received: Counter,
}

impl Calls {
    #[rustfmt::skip] // It reads as a table.
    pub(super) fn new(all: &mut Register<'_>, known: &Known) -> Self {
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> _);
        let batches = Family::new_with_constructor((|| Histogram::new(BATCHES)) as fn() -> _);
        let mut calls = Self {
            attempts: all.metric("attempts", "HTTP exchanges, by row or fetch and by status or failure"),
            seconds: all.put("call_duration_seconds", "Duration of one HTTP exchange, by row or fetch", seconds),
            retries: all.metric("retries", "HTTP exchanges after the first one of a call, by row or fetch"),
            sent: all.metric("request_bytes", "Bytes of bodies sent to the API, by row or fetch"),
            received: all.metric("answer_bytes", "Bytes of bodies that the API answered, decoded, by row or fetch"),
            batches: all.put("batch_calls", "Calls that travelled together in one request, by row", batches),
            throttled: all.metric("throttled_seconds", "Time for which calls waited for a turn of a rate limit, or because the API asked for it, by row or fetch"),
            callers: BTreeMap::new(),
        };
        for name in &known.callers {
            calls.callers.insert(name.clone(), calls.caller(name));
            let label = RouteLabel { route: name.clone() };
            calls.retries.get_or_create_owned(&label);
            calls.throttled.get_or_create_owned(&label);
            for word in known.attempts {
                let (route, status) = (name.clone(), AttemptResult::Failed(word));
                calls.attempts.get_or_create_owned(&AttemptLabels { route, status });
            }
        }
        for name in &known.batches {
            calls.batches.get_or_create_owned(&RouteLabel { route: name.clone() });
        }
        calls
    }

    fn caller(&self, name: &Arc<str>) -> Caller {
        let label = RouteLabel { route: name.clone() };
        Caller {
            seconds: self.seconds.get_or_create_owned(&label),
            sent: self.sent.get_or_create_owned(&label),
            received: self.received.get_or_create_owned(&label),
        }
    }

    pub(super) fn attempt(&self, attempt: &Attempt<'_>) {
        let Attempt { name, ended, elapsed, is_retry, sent, received } = *attempt;
        let labels = AttemptLabels { route: name.clone(), status: ended };
        self.attempts.get_or_create(&labels).inc();
        let caller =
            self.callers.get(name).map_or_else(|| Cow::Owned(self.caller(name)), Cow::Borrowed);
        caller.seconds.observe(elapsed.as_secs_f64());
        caller.sent.inc_by(sent as u64);
        caller.received.inc_by(received as u64);
        if is_retry {
            self.retries.get_or_create(&RouteLabel { route: name.clone() }).inc();
        }
    }

    pub(super) fn throttled(&self, name: &Arc<str>, time: Duration) {
        let label = RouteLabel { route: name.clone() };
        self.throttled.get_or_create(&label).inc_by(time.as_secs_f64());
    }

    /// The exchanges of a row or fetch, and how long they took.
    pub(super) fn time(&self, name: &Arc<str>) -> Times {
        let known = self.callers.get(name);
        known.map_or_else(Times::default, |caller| Times::from(&caller.seconds))
    }

    pub(super) fn batch(&self, name: &Arc<str>, calls: u32) {
        let label = RouteLabel { route: name.clone() };
        self.batches.get_or_create(&label).observe(calls.into());
    }
}
