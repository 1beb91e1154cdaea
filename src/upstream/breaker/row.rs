//! What the breaker knows about one row of the table: which devices are served on it, which fail, and which calls wait.

use std::{sync::Arc, time::Duration};

use lru::LruCache;
use tokio::time::Instant;

use super::{CallId, Next, Outage, OutageChange};
use crate::backoff::Backoff;

/// The most time that counts between two proofs: when nothing is heard for longer, nothing is known.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// A device that has failed this often although others were served in between fails for a reason of its own, and is no
/// witness of an outage.
const OWN_FAILURES: u32 = 2;
/// How many failing devices of a row are remembered. One more replaces the one that failed longest ago.
const MAX_DEVICES: usize = 4096;
/// How many of the devices last served are remembered. When all of them fail, that is an outage even if the fleet has fewer
/// devices than the configuration asks for.
const RECENTLY_SERVED: usize = 3;
/// How many retries a row may make at once without a success. One more is allowed after each `FREE_RETRY_EVERY`, and
/// `RETRIES_PER_SERVED` more for each call that is served. So the calls that waited for an outage to end, or for a limit of
/// the API, do not come back all at once but at a growing rate.
const FREE_RETRIES: u32 = 10;
const FREE_RETRY_EVERY: Duration = Duration::from_millis(100);
const RETRIES_PER_SERVED: u32 = 2;

/// When the API wants the next attempt: `Retry-After` [RFC 9110, 10.2.3].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) struct RetryAfter {
    /// How long to wait.
    pub(in crate::upstream) wait: Duration,
    /// It was meant for this device alone (429), so it counts even when others are served.
    pub(in crate::upstream) for_device: bool,
}

/// Adds up the time during which something is known to be true, from one proof to the next.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The sum.
    pub(super) time: Duration,
    /// The last proof.
    pub(super) last: Option<Instant>,
    /// Whether it is known to have been false since.
    interrupted: bool,
}

impl Clock {
    /// The sum if it is true now.
    pub(super) fn reading(&self, now: Instant) -> Duration {
        let since = self.last.filter(|_| !self.interrupted);
        self.time + since.map_or(Duration::ZERO, |last| (now - last).min(LONGEST_GAP))
    }

    /// It is true now.
    pub(super) fn proves(&mut self, now: Instant) {
        *self = Self { time: self.reading(now), last: Some(now), interrupted: false };
    }

    /// It is false now.
    pub(super) fn interrupt(&mut self) {
        self.interrupted = true;
    }
}

/// A call that waits for its next attempt.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: CallId,
    pub(super) failures: u32,
    /// When its first attempt failed.
    pub(super) first: Instant,
    /// When its last attempt failed.
    pub(super) failed_at: Instant,
    /// When its own back-off is over. It has no meaning in an outage.
    pub(super) ready_at: Instant,
    /// When it is tried at the latest, however many calls wait.
    pub(super) latest: Instant,
    /// The API wants no attempt before this time; `true` if it asked this device alone.
    pub(super) not_before: Option<(Instant, bool)>,
    /// How many calls the row had served when it failed.
    pub(super) served: u64,
    /// How it ends, once the row is known not to have been down when it failed, and the clock has reached this reading.
    pub(super) end: Option<(Next, Duration)>,
    /// Whether the probe is proof enough of that, since no other device sends anything.
    pub(super) by_probe: bool,
}

/// A device whose call has failed and that has not been served since.
#[derive(Debug)]
struct FailingDevice {
    /// How many calls the row had served when it last failed.
    served: u64,
    /// How often it has failed again after others had been served.
    while_others_served: u32,
    /// Whether its last failure was a time-out.
    hung: bool,
}

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    name: Arc<str>,
    created: Instant,
    /// Runs while the row is known to serve calls.
    pub(super) serving: Clock,
    /// Runs while the row is known to serve calls, or the probe is answered and can be believed.
    pub(super) answering: Clock,
    /// How many calls were served so far.
    pub(super) times_served: u64,
    /// The devices last served, by fingerprint, latest first.
    recently_served: Vec<u64>,
    failing_devices: LruCache<u64, FailingDevice>,
    /// How many of them have failed since a call was last served.
    failing_now: usize,
    /// How many of these do not fail for a reason of their own.
    witnesses: usize,
    /// How many attempts in a row, the last one included, the gateway's own credentials were refused.
    pub(super) barred: u32,
    pub(super) waiting: Vec<Waiting>,
    /// How many calls may be tried again now.
    retries: u32,
    /// When one more may be.
    refill_at: Instant,
    /// How often that has happened since the outage began.
    refills: u32,
    pub(super) outage: Option<Outage>,
    /// How many outages have begun so far.
    pub(super) outages: u64,
}

impl Row {
    pub(super) fn new(name: Arc<str>, now: Instant) -> Self {
        Self {
            name,
            created: now,
            serving: Clock::default(),
            answering: Clock::default(),
            times_served: 0,
            recently_served: Vec::with_capacity(RECENTLY_SERVED),
            // Bounded by `MAX_DEVICES`; a cache with a bound of its own would allocate room for all of them at once.
            failing_devices: LruCache::unbounded(),
            failing_now: 0,
            witnesses: 0,
            barred: 0,
            waiting: Vec::new(),
            retries: FREE_RETRIES,
            refill_at: now,
            refills: 0,
            outage: None,
            outages: 0,
        }
    }

    /// How many devices have failed since a call was last served.
    pub(super) fn failing(&self) -> usize {
        self.failing_now
    }

    /// Whether the device's last failure was a time-out, and others were served before it.
    pub(super) fn hangs(&self, device: u64) -> bool {
        self.failing_devices
            .peek(&device)
            .is_some_and(|failing| failing.hung && failing.while_others_served > 0)
    }

    /// The probe was answered and shows that the row is not down.
    pub(super) fn probe_answered(&mut self, now: Instant) {
        self.answering.proves(now);
    }

    /// A call of this device was served.
    pub(super) fn served(&mut self, device: u64, now: Instant, changes: &mut Vec<OutageChange>) {
        self.serving.proves(now);
        self.answering.proves(now);
        self.times_served += 1;
        (self.failing_now, self.witnesses) = (0, 0);
        self.forget(device);
        if self.recently_served.first() != Some(&device) {
            self.recently_served.retain(|served| *served != device);
            self.recently_served.truncate(RECENTLY_SERVED - 1);
            self.recently_served.insert(0, device);
        }
        let most = FREE_RETRIES.max(u32::try_from(self.waiting.len()).unwrap_or(u32::MAX));
        self.retries = (self.retries + RETRIES_PER_SERVED).min(most);
        self.comes_up(now, changes);
    }

    /// The device does not count as failing any more.
    pub(super) fn forget(&mut self, device: u64) {
        if !self.failing_devices.is_empty()
            && let Some(failing) = self.failing_devices.pop(&device)
            && self.is_current(&failing)
        {
            self.failing_now -= 1;
            self.witnesses -= usize::from(failing.while_others_served < OWN_FAILURES);
        }
    }

    /// A call of this device has failed.
    pub(super) fn failed(&mut self, device: u64, hung: bool) {
        let served = self.times_served;
        let mut while_others_served = 0;
        if let Some(failing) = self.failing_devices.get_mut(&device) {
            failing.hung = hung;
            if failing.served == served {
                return;
            }
            failing.served = served;
            failing.while_others_served = failing.while_others_served.saturating_add(1);
            while_others_served = failing.while_others_served;
        } else {
            if self.failing_devices.len() >= MAX_DEVICES
                && let Some((_, oldest)) = self.failing_devices.pop_lru()
                && self.is_current(&oldest)
            {
                self.failing_now -= 1;
                self.witnesses -= usize::from(oldest.while_others_served < OWN_FAILURES);
            }
            self.failing_devices.put(device, FailingDevice { served, while_others_served, hung });
        }
        self.failing_now += 1;
        self.witnesses += usize::from(while_others_served < OWN_FAILURES);
    }

    /// Whether the device has failed since a call was last served.
    fn is_current(&self, failing: &FailingDevice) -> bool {
        failing.served == self.times_served
    }

    /// Whether every device on this row fails: at least `devices` of them, or all that there are.
    pub(super) fn is_down_for_all(&self, devices: usize) -> bool {
        let fails =
            |device: &u64| self.failing_devices.peek(device).is_some_and(|t| self.is_current(t));
        self.witnesses >= devices
            || self.failing_now >= 2
                && self.witnesses >= 1
                && self.recently_served.iter().all(fails)
    }

    /// Whether an answer to the probe says something about this row. When several devices fail on it and none is served, the
    /// row itself may be down although the probe's path is answered. When the gateway's credentials are refused it says
    /// nothing either: the probe carries none.
    pub(super) fn believes_probe(&self, devices: usize) -> bool {
        let by_themselves = self.witnesses == 0 && self.failing_now < devices;
        self.barred == 0 && (self.failing_now < 2 || by_themselves)
    }

    /// Whether the probe should be sent: calls wait or the row is down, and nothing has been heard for `silence`.
    pub(super) fn wants_proof(&self, silence: Duration, now: Instant) -> bool {
        self.wants_proof_at(silence).is_some_and(|at| at <= now)
    }

    /// When [`Row::wants_proof`] will be true.
    pub(super) fn wants_proof_at(&self, silence: Duration) -> Option<Instant> {
        let asks = !self.waiting.is_empty() || self.outage.is_some();
        asks.then_some(self.answering.last.map_or(self.created, |last| last + silence))
    }

    /// An outage begins, unless there is one.
    pub(super) fn goes_down(
        &mut self,
        sign: String,
        probe: Backoff,
        now: Instant,
        changes: &mut Vec<OutageChange>,
    ) {
        if let Some(outage) = &mut self.outage {
            // What is wrong may change: an API that could not be reached is back, and refuses our credentials.
            outage.sign = sign;
            return;
        }
        self.serving.interrupt();
        self.answering.interrupt();
        (self.retries, self.refills) = (0, 0);
        self.outages += 1;
        for waiting in &mut self.waiting {
            waiting.end = None;
        }
        self.refill_at = now + probe.after(0);
        let outage = Outage { row: self.name.clone(), since: now, sign };
        changes.push(OutageChange::Began(outage.clone()));
        self.outage = Some(outage);
    }

    /// The outage ends, if there is one: a call was served, or none is left that could show whether the row is down. The
    /// calls that waited because of it are ready.
    pub(super) fn comes_up(&mut self, now: Instant, changes: &mut Vec<OutageChange>) {
        if let Some(outage) = self.outage.take() {
            for waiting in &mut self.waiting {
                waiting.ready_at = waiting.ready_at.min(now);
            }
            self.retries = self.retries.max(1);
            self.refill_at = now + FREE_RETRY_EVERY;
            changes.push(OutageChange::Ended(outage));
        }
    }

    /// The probe is answered again: one of the calls that wait may find out whether this row is back.
    pub(super) fn allow_one_attempt(&mut self) {
        self.retries = self.retries.max(1);
    }

    /// Allows more retries as time passes: one now and then in an outage, else some at a steady rate.
    pub(super) fn refill(&mut self, probe: Backoff, now: Instant) {
        if self.refill_at > now {
            return;
        }
        if self.outage.is_some() {
            self.retries = 1;
            self.refills = self.refills.saturating_add(1);
            self.refill_at = now + probe.after(self.refills);
        } else if self.retries < FREE_RETRIES {
            let pauses = (now - self.refill_at).as_millis() / FREE_RETRY_EVERY.as_millis() + 1;
            let more = u32::try_from(pauses).unwrap_or(FREE_RETRIES);
            self.retries = self.retries.saturating_add(more).min(FREE_RETRIES);
            self.refill_at = now + FREE_RETRY_EVERY;
        }
    }

    /// Releases the calls that end, then those that may be tried again. The one with the fewest failures is the first, since
    /// it is the likeliest to be served.
    pub(super) fn release(&mut self, now: Instant, released: &mut Vec<(CallId, Next)>) {
        if self.waiting.is_empty() {
            return;
        }
        let (serving, answering) = (&self.serving, &self.answering);
        self.waiting.retain(|waiting| {
            let clock = if waiting.by_probe { answering } else { serving };
            let known = clock.last.is_some_and(|at| at > waiting.failed_at);
            let ends = waiting.end.filter(|(_, reading)| known && clock.time >= *reading);
            released.extend(ends.map(|(end, _)| (waiting.id, end)));
            ends.is_none()
        });
        let served_at = self.serving.last;
        let (down, served, outages) = (self.outage.is_some(), self.times_served, self.outages);
        let others_served =
            |first: Instant| (!down && served_at.is_some_and(|at| at > first)).then_some(outages);
        let mut ready: Vec<_> = self
            .waiting
            .iter()
            .filter(|w| may_try(w, served, now))
            .filter(|w| w.latest <= now || down || w.ready_at <= now)
            .map(|w| (w.latest > now, w.failures, w.latest, w.id, others_served(w.first)))
            .collect();
        ready.sort_unstable();
        let before = released.len();
        for (early, _, _, id, others_served) in ready {
            if early && self.retries == 0 {
                break;
            }
            if early {
                if self.retries >= FREE_RETRIES {
                    self.refill_at = self.refill_at.max(now + FREE_RETRY_EVERY);
                }
                self.retries -= 1;
            }
            released.push((id, Next::Again { others_served }));
        }
        let gone = released.get(before..).unwrap_or_default();
        if !gone.is_empty() {
            self.waiting.retain(|waiting| gone.iter().all(|(id, _)| *id != waiting.id));
        }
    }

    /// When a call may be tried again, if nothing happens before.
    pub(super) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let down = self.outage.is_some();
        let next = self.waiting.iter().map(|waiting| {
            let early = if down { now } else { waiting.ready_at };
            let early = if self.retries == 0 { early.max(self.refill_at) } else { early };
            let next = early.min(waiting.latest);
            match waiting.not_before {
                Some((until, _)) if !may_try(waiting, self.times_served, now) => next.max(until),
                _ => next,
            }
        });
        next.min()
    }
}

/// Whether `Retry-After` lets the call be tried now.
fn may_try(waiting: &Waiting, served: u64, now: Instant) -> bool {
    waiting
        .not_before
        .is_none_or(|(until, for_device)| until <= now || !for_device && served > waiting.served)
}
