//! Drives the breaker: wakes calls that wait, sends the probe, tells what has happened.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    breaker::{Breaker, BreakerSettings, Due, Failing, First, Id, News, Next, Outage},
    client::Client,
};
use crate::{
    backoff::Backoff, call::Call, failure::Sign, fingerprint::fingerprint, metrics::Metrics,
};

/// So many devices can have been told to keep quiet for longer than anything waits.
const MAX_PAUSES: usize = 10_000;
/// A fault of this machine is of interest for so long.
const LOCAL_FAULT: Duration = Duration::from_secs(30);
/// Nothing waits so long.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// The breaker, shared by all calls.
pub(super) struct Hold {
    inner: Mutex<Inner>,
    /// Something has changed that the driver should look at.
    changed: Notify,
    stopping: watch::Sender<bool>,
    probe: Option<(Client, Box<str>)>,
    metrics: Arc<Metrics>,
}

struct Inner {
    breaker: Breaker,
    waiters: HashMap<Id, oneshot::Sender<Next>>,
    /// A task looks after those who wait.
    driven: bool,
    /// Calls of a device that wait, for whatever reason.
    delayed: HashMap<Arc<str>, usize>,
    /// What the API will not take before, by row and device.
    pauses: LruCache<u64, Instant>,
    /// The last fault of this machine.
    local: Option<(Instant, String)>,
}

/// A call of a device that waits, for as long as this lives.
pub(super) struct Delayed {
    hold: Arc<Hold>,
    device: Arc<str>,
}

impl Drop for Delayed {
    fn drop(&mut self) {
        let mut inner = self.hold.inner();
        if let Some(count) = inner.delayed.get_mut(&self.device) {
            *count -= 1;
            if *count == 0 {
                inner.delayed.remove(&self.device);
            }
        }
    }
}

/// Takes a call out of the breaker when it does not wait to the end.
struct Waiter {
    hold: Arc<Hold>,
    row: Arc<str>,
    id: Id,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut inner = self.hold.inner();
        if inner.waiters.remove(&self.id).is_some() {
            inner.breaker.cancel(&self.row, self.id);
            self.hold.changed.notify_one();
        }
    }
}

impl Hold {
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
            pauses: LruCache::unbounded(),
            local: None,
        };
        let (inner, changed, stopping) =
            (Mutex::new(inner), Notify::new(), watch::Sender::new(false));
        Arc::new(Self { inner, changed, stopping, probe, metrics })
    }

    /// The clock that deadlines on this row run by: how long it has been known to serve.
    pub(super) fn serving(&self, row: &str) -> Duration {
        self.inner().breaker.serving(row)
    }

    /// A call on this row has failed for the first time.
    pub(super) fn first(&self, row: &str) -> First {
        self.inner().breaker.first(row, Instant::now())
    }

    /// What a deadline on this row begins with.
    pub(super) fn reading(&self, row: &str) -> Duration {
        self.inner().breaker.reading(row, Instant::now())
    }

    /// How long the API has been known to answer anybody.
    pub(super) fn answering(&self) -> Duration {
        self.inner().breaker.answering()
    }

    /// Rows that are down.
    pub(super) fn outages(&self) -> Vec<Outage> {
        self.inner().breaker.outages()
    }

    /// What this machine could not do of late, if that kept it from making calls.
    pub(super) fn local_fault(&self) -> Option<String> {
        let inner = self.inner();
        let recent = inner.local.as_ref().filter(|(at, _)| at.elapsed() < LOCAL_FAULT);
        recent.map(|(_, fault)| fault.clone())
    }

    /// Whether a call of this device waits: to try again, or for a turn.
    pub(super) fn is_delayed(&self, device: &str) -> bool {
        self.inner().delayed.contains_key(device)
    }

    /// Says that a call of this device waits.
    pub(super) fn delayed(self: &Arc<Self>, device: &Arc<str>) -> Delayed {
        *self.inner().delayed.entry(device.clone()).or_default() += 1;
        Delayed { hold: self.clone(), device: device.clone() }
    }

    /// How long the API will not take calls of this device on this row, by its own word.
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

    /// The API has said so.
    pub(super) fn pause(&self, row: &str, device: &str, wait: Duration) {
        let mut inner = self.inner();
        if inner.pauses.len() >= MAX_PAUSES {
            inner.pauses.pop_lru();
        }
        inner.pauses.put(fingerprint((row, device)), Instant::now() + wait);
    }

    /// Whether the call should be tried shortly only: its time is up already, and its device hangs.
    pub(super) fn hurries(&self, call: &Call) -> bool {
        let inner = self.inner();
        let device = fingerprint(&*call.device);
        inner.breaker.hangs(&call.name, device)
            && call.spent(inner.breaker.serving(&call.name)) >= call.deadline
    }

    /// This machine could not make an attempt: it has no descriptor or no memory left, for example.
    pub(super) fn fails_locally(&self, fault: &str) {
        self.inner().local = Some((Instant::now(), fault.to_owned()));
        tracing::error!(
            fault,
            "this machine cannot make calls; messages are held, none is given up for it"
        );
    }

    /// Learns from an attempt; `how` it ended, in words.
    pub(super) fn learn(self: &Arc<Self>, call: &Call, sign: Sign, how: &dyn fmt::Display) {
        if sign == Sign::Nothing {
            return;
        }
        let mut inner = self.inner();
        inner.breaker.learn(&call.name, fingerprint(&*call.device), sign, how, Instant::now());
        self.tell(&mut inner);
        self.drive(&mut inner);
    }

    /// A call has failed; how it goes on is known when the wait is over.
    pub(super) fn wait(self: &Arc<Self>, failing: &Failing<'_>) -> Wait {
        let row = failing.row.clone();
        let mut inner = self.inner();
        let id = inner.breaker.wait(failing, Instant::now());
        let (wake, woken) = oneshot::channel();
        inner.waiters.insert(id, wake);
        self.drive(&mut inner);
        drop(inner);
        Wait { waiter: Waiter { hold: self.clone(), row, id }, woken }
    }

    /// Holds nobody any longer.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Waits for the stop.
    pub(super) async fn stopped(&self) {
        // The sender is ours.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Somebody must look after those who wait, and after an outage.
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
                        // Who does not listen any more takes himself out.
                        let _ = wake.send(*next);
                    }
                }
                self.tell(&mut inner);
                if inner.breaker.is_idle() {
                    inner.driven = false;
                    return;
                }
                (due, inner.breaker.next_timeout(now))
            };
            if let Due { probe: true, .. } = due {
                tokio::spawn(self.clone().ask());
            }
            let next = next.unwrap_or_else(|| Instant::now() + FOREVER);
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// Sends the probe.
    async fn ask(self: Arc<Self>) {
        let Some((client, path)) = &self.probe else { return };
        let result = client.probe(path).await;
        tracing::debug!(?result, "probe");
        let mut inner = self.inner();
        inner.breaker.probed(result, Instant::now());
        self.tell(&mut inner);
        self.drive(&mut inner);
    }

    /// Says what has happened.
    fn tell(&self, inner: &mut Inner) {
        for news in inner.breaker.news() {
            let down = inner.breaker.outages();
            match news {
                News::Down(Outage { row, sign, .. }) => {
                    self.metrics.upstream_down(down.len() == 1);
                    tracing::error!(
                        %row, sign,
                        "the upstream is down: holding messages, none is given up; trying again by itself"
                    );
                }
                News::Up(Outage { row, since, .. }) => {
                    self.metrics.upstream_up(down.is_empty());
                    tracing::info!(%row, lasted = ?since.elapsed(), "the upstream is back");
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
    /// How it goes on; `None` if the message has expired meanwhile, or the gateway stops.
    pub(super) async fn over(self, expires: Option<Instant>) -> Option<Next> {
        let Self { waiter, woken } = self;
        let expires = expires.unwrap_or_else(|| Instant::now() + FOREVER);
        tokio::select! {
            next = woken => next.ok(),
            () = sleep_until(expires) => None,
            () = waiter.hold.stopped() => None,
        }
    }
}
