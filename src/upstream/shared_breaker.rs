//! The breaker as all calls share it: a task wakes the calls that wait and sends the probe, and outages are logged and
//! counted.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use foldhash::{HashMap, HashMapExt};
use lru::LruCache;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    breaker::{
        Breaker, BreakerSettings, CallId, Due, FailedCall, FirstFailure, Next, Outage, OutageChange,
    },
    client::Client,
};
use crate::{
    backoff::Backoff, call::Call, failure::Sign, fingerprint::fingerprint, log::seconds,
    metrics::Metrics,
};

/// How many pauses are remembered. One more replaces the oldest.
const MAX_PAUSES: usize = 10_000;
/// How long a fault of this machine is shown as a reason not to be ready.
const LOCAL_FAULT_SHOWN: Duration = Duration::from_secs(30);
/// Longer than anything waits.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// The breaker, shared by all calls.
pub(super) struct SharedBreaker {
    inner: Mutex<Inner>,
    /// Wakes the driver when something has changed that it should look at.
    changed: Notify,
    stopping: watch::Sender<bool>,
    probe: Option<(Client, Box<str>)>,
    metrics: Arc<Metrics>,
}

struct Inner {
    breaker: Breaker,
    waiters: HashMap<CallId, oneshot::Sender<Next>>,
    /// Whether the driver's task runs.
    driven: bool,
    /// How many calls of a device wait, for whatever reason.
    delayed: HashMap<Arc<str>, usize>,
    /// Until when the API wants no calls of a device on a row, by a fingerprint of both.
    pauses: LruCache<u64, Instant>,
    /// The last fault of this machine.
    local: Option<(Instant, String)>,
}

/// Marks a device as one with a call that waits, for as long as this lives.
pub(super) struct Delayed {
    breaker: Arc<SharedBreaker>,
    device: Arc<str>,
}

impl Drop for Delayed {
    fn drop(&mut self) {
        let mut inner = self.breaker.inner();
        if let Some(count) = inner.delayed.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                inner.delayed.remove(&self.device);
            }
        }
    }
}

/// A call in the breaker. If it is dropped before the breaker releases the call, the call is taken out.
struct Waiter {
    breaker: Arc<SharedBreaker>,
    row: Arc<str>,
    id: CallId,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut inner = self.breaker.inner();
        if inner.waiters.remove(&self.id).is_some() {
            inner.breaker.cancel(&self.row, self.id);
            self.breaker.changed.notify_one();
        }
    }
}

impl SharedBreaker {
    /// `client` sends the probe.
    pub(super) fn new(
        settings: BreakerSettings,
        retry: Backoff,
        deadline: Duration,
        client: Client,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        metrics.upstream_up(true);
        let probe = settings.probe_path.clone().map(|path| (client, path));
        let inner = Inner {
            breaker: Breaker::new(settings, retry, deadline, Instant::now()),
            waiters: HashMap::new(),
            driven: false,
            delayed: HashMap::new(),
            // Bounded by `MAX_PAUSES`; a cache with a bound of its own would allocate room for all of them at once.
            pauses: LruCache::unbounded(),
            local: None,
        };
        let (inner, changed, stopping) =
            (Mutex::new(inner), Notify::new(), watch::Sender::new(false));
        Arc::new(Self { inner, changed, stopping, probe, metrics })
    }

    /// See [`Breaker::serving_time`].
    pub(super) fn serving_time(&self, row: &str) -> Duration {
        self.inner().breaker.serving_time(row)
    }

    /// See [`Breaker::first_failure`].
    pub(super) fn first_failure(&self, row: &str) -> FirstFailure {
        self.inner().breaker.first_failure(row, Instant::now())
    }

    /// See [`Breaker::serving_time_at`].
    pub(super) fn serving_time_now(&self, row: &str) -> Duration {
        self.inner().breaker.serving_time_at(row, Instant::now())
    }

    /// See [`Breaker::answering_time`].
    pub(super) fn answering_time(&self) -> Duration {
        self.inner().breaker.answering_time()
    }

    /// See [`Breaker::outages`].
    pub(super) fn outages(&self) -> Vec<Outage> {
        self.inner().breaker.outages()
    }

    /// The last fault of this machine that kept it from making calls, if it was recent.
    pub(super) fn local_fault(&self) -> Option<String> {
        let inner = self.inner();
        let recent = inner.local.as_ref().filter(|(at, _)| at.elapsed() < LOCAL_FAULT_SHOWN);
        recent.map(|(_, fault)| fault.clone())
    }

    /// Whether a call of this device waits to be tried again, or for a turn of a rate limit.
    pub(super) fn is_delayed(&self, device: &str) -> bool {
        self.inner().delayed.contains_key(device)
    }

    /// Counts how long a call of this row has waited for its turn.
    pub(super) fn throttled(&self, row: &Arc<str>, time: Duration) {
        self.metrics.throttled(row, time);
    }

    /// Marks the device as one with a call that waits.
    pub(super) fn mark_delayed(self: &Arc<Self>, device: &Arc<str>) -> Delayed {
        *self.inner().delayed.entry(device.clone()).or_default() += 1;
        Delayed { breaker: self.clone(), device: device.clone() }
    }

    /// For how long the API wants no calls of this device on this row, if it has asked for a pause.
    pub(super) fn paused(&self, row: &str, device: &str) -> Option<Duration> {
        let mut inner = self.inner();
        if inner.pauses.is_empty() {
            return None;
        }
        let key = fingerprint((row, device));
        let left = inner.pauses.peek(&key)?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            inner.pauses.pop(&key);
        }
        Some(left).filter(|left| !left.is_zero())
    }

    /// Remembers that the API wants no calls of this device on this row for this time.
    pub(super) fn pause(&self, row: &str, device: &str, wait: Duration) {
        let mut inner = self.inner();
        if inner.pauses.len() >= MAX_PAUSES {
            inner.pauses.pop_lru();
        }
        inner.pauses.put(fingerprint((row, device)), Instant::now() + wait);
    }

    /// Whether the call should get only a short attempt: its deadline has passed already, and the last call of its device
    /// timed out.
    pub(super) fn is_hurried(&self, call: &Call) -> bool {
        let inner = self.inner();
        let device = fingerprint(&*call.device);
        inner.breaker.hangs(&call.name, device)
            && call.spent(inner.breaker.serving_time(&call.name)) >= call.deadline
    }

    /// Remembers and logs that this machine could not make an attempt, for example because no file descriptor is left.
    pub(super) fn local_fault_happened(&self, fault: &str) {
        self.inner().local = Some((Instant::now(), fault.to_owned()));
        tracing::error!(
            fault,
            "this machine cannot make calls; messages are held, and none is given up because of it"
        );
    }

    /// Learns from an attempt. `how` says in words how it ended.
    pub(super) fn learn(self: &Arc<Self>, call: &Call, sign: Sign, how: &dyn fmt::Display) {
        if sign == Sign::Nothing {
            return;
        }
        let mut inner = self.inner();
        inner.breaker.learn(&call.name, fingerprint(&*call.device), sign, how, Instant::now());
        self.report_changes(&mut inner);
        self.drive(&mut inner);
    }

    /// Lets a call wait that has failed. What happens to it is known when the wait is over.
    pub(super) fn wait(self: &Arc<Self>, call: &FailedCall<'_>) -> Wait {
        let row = call.row.clone();
        let mut inner = self.inner();
        let id = inner.breaker.wait(call, Instant::now());
        let (wake, woken) = oneshot::channel();
        inner.waiters.insert(id, wake);
        self.drive(&mut inner);
        drop(inner);
        Wait { waiter: Waiter { breaker: self.clone(), row, id }, woken }
    }

    /// Ends every wait.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether [`SharedBreaker::stop`] was called.
    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits until [`SharedBreaker::stop`] is called.
    pub(super) async fn stopped(&self) {
        // It cannot fail: `self` has the sender.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Makes sure that the driver runs, and looks at what has changed, if a call waits or a row is down.
    fn drive(self: &Arc<Self>, inner: &mut Inner) {
        if inner.breaker.is_idle() {
            return;
        }
        if inner.driven {
            self.changed.notify_one();
        } else {
            inner.driven = true;
            tokio::spawn(self.clone().driver());
        }
    }

    async fn driver(self: Arc<Self>) {
        loop {
            let (due, next) = {
                let mut inner = self.inner();
                let now = Instant::now();
                let due = inner.breaker.poll(now);
                for (id, next) in &due.released {
                    if let Some(wake) = inner.waiters.remove(id) {
                        // It fails when the call has just stopped waiting, which is fine.
                        let _ = wake.send(*next);
                    }
                }
                self.report_changes(&mut inner);
                if inner.breaker.is_idle() {
                    inner.driven = false;
                    return;
                }
                (due, inner.breaker.next_timeout(now))
            };
            if let Due { probe: true, .. } = due {
                tokio::spawn(self.clone().send_probe());
            }
            let next = next.unwrap_or_else(|| Instant::now() + FOREVER);
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    async fn send_probe(self: Arc<Self>) {
        let Some((client, path)) = &self.probe else { return };
        let result = client.probe(path).await;
        let trouble = result.as_ref().err().map(ToString::to_string);
        tracing::debug!(trouble, "probe");
        let mut inner = self.inner();
        inner.breaker.learn_from_probe(result, Instant::now());
        self.report_changes(&mut inner);
        self.drive(&mut inner);
    }

    /// Logs and counts the outages that have begun and ended.
    fn report_changes(&self, inner: &mut Inner) {
        for change in inner.breaker.take_changes() {
            let down = inner.breaker.outages();
            match change {
                OutageChange::Began(Outage { row, sign, .. }) => {
                    self.metrics.upstream_down(down.len() == 1);
                    tracing::error!(
                        %row, sign,
                        "the upstream is down: messages are held, none is given up, and calls are tried again"
                    );
                }
                OutageChange::Ended(Outage { row, since, .. }) => {
                    self.metrics.upstream_up(down.is_empty());
                    tracing::info!(%row, lasted_seconds = seconds(since.elapsed()), "the upstream is back");
                }
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits for its next attempt.
pub(super) struct Wait {
    waiter: Waiter,
    woken: oneshot::Receiver<Next>,
}

impl Wait {
    /// What happens to the call; `None` if its message has expired meanwhile, or the gateway stops.
    pub(super) async fn over(self, expires: Option<Instant>) -> Option<Next> {
        let Self { waiter, woken } = self;
        let expires = expires.unwrap_or_else(|| Instant::now() + FOREVER);
        tokio::select! {
            next = woken => next.ok(),
            () = sleep_until(expires) => None,
            () = waiter.breaker.stopped() => None,
        }
    }
}
