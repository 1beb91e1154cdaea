//! What is known of one row of the table: who is served on it, who fails, and who waits to try again.

use std::{sync::Arc, time::Duration};

use lru::LruCache;
use tokio::time::Instant;

use super::{Id, News, Next, Outage};
use crate::backoff::Backoff;

/// Between two proofs at most so much counts: with nothing heard for longer,
/// nothing is known.
const LONGEST_GAP: Duration = Duration::from_secs(10);
/// A device that has failed this often after others had been served fails by itself: it is no witness of an outage.
const OWN_TROUBLE: u32 = 2;
/// Devices that have failed are remembered, at most so many of a row; the one that failed longest ago makes room.
const MAX_DEVICES: usize = 4096;
/// Devices last served, for fleets that are smaller than the number that makes an outage.
const RECENT: usize = 3;
/// Second attempts that are free: so many at once, and one more after each pause. Beyond them, two for every
/// call that is served: what comes back from an outage, or presses against a limit of the API, comes back by a ramp.
const FREE: u32 = 10;
const FREE_AGAIN: Duration = Duration::from_millis(100);
const FOR_EACH_SERVED: u32 = 2;

/// The API's word on when to try again (`Retry-After`) [RFC 9110, 10.2.3].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) struct Told {
    /// For so long.
    pub(in crate::upstream) wait: Duration,
    /// It was said to this device (429), so that others are served changes nothing.
    pub(in crate::upstream) personal: bool,
}

/// Adds up the time in which something is known to be so, from proof to proof.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// What it shows.
    pub(super) time: Duration,
    /// When it was known last.
    pub(super) last: Option<Instant>,
    /// It is known not to have been so since.
    interrupted: bool,
}

impl Clock {
    /// What it will show for this moment, if it is so.
    pub(super) fn reading(&self, now: Instant) -> Duration {
        let since = self.last.filter(|_| !self.interrupted);
        self.time + since.map_or(Duration::ZERO, |last| (now - last).min(LONGEST_GAP))
    }

    /// It is so now.
    pub(super) fn proves(&mut self, now: Instant) {
        *self = Self { time: self.reading(now), last: Some(now), interrupted: false };
    }

    /// It is not so now.
    pub(super) fn interrupt(&mut self) {
        self.interrupted = true;
    }
}

/// A call that waits for its next attempt.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: Id,
    pub(super) failures: u32,
    /// When it failed first.
    pub(super) first: Instant,
    /// When it failed last.
    pub(super) failed_at: Instant,
    /// Its own back-off is over; means nothing in an outage.
    pub(super) ready_at: Instant,
    /// It goes at the latest, however many wait.
    pub(super) latest: Instant,
    /// The API has asked for patience until then; of this device alone or of everybody.
    pub(super) not_before: Option<(Instant, bool)>,
    /// How often the row had served when it failed.
    pub(super) served: u64,
    /// It ends so, as soon as the row is known not to have been down, and the clock shows so much.
    pub(super) end: Option<(Next, Duration)>,
    /// Which the probe may say, since nobody else speaks.
    pub(super) by_probe: bool,
}

/// A device that has failed, and has not been served since.
#[derive(Debug)]
struct Trouble {
    /// How often the row had served others when it failed last.
    served: u64,
    /// How often it has failed again although others had been served in between.
    alone: u32,
    /// The last failure was a time-out.
    hung: bool,
}

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    name: Arc<str>,
    made: Instant,
    /// Runs while it is known to serve.
    pub(super) serving: Clock,
    /// Runs while it is known to serve, or as far as the probe can tell.
    pub(super) answering: Clock,
    /// Calls served so far.
    pub(super) times_served: u64,
    /// Devices last served, by fingerprint.
    recent: Vec<u64>,
    devices: LruCache<u64, Trouble>,
    /// Devices that have failed since a call was last served.
    failing: usize,
    /// Those of them that do not fail by themselves.
    witnesses: usize,
    pub(super) waiting: Vec<Waiting>,
    /// Further attempts that may be made now.
    attempts: u32,
    /// When there will be one more, and how often there was since the outage began.
    refill_at: Instant,
    refills: u32,
    pub(super) outage: Option<Outage>,
    /// Outages that have begun.
    pub(super) outages: u64,
}

impl Row {
    pub(super) fn new(name: Arc<str>, now: Instant) -> Self {
        Self {
            name,
            made: now,
            serving: Clock::default(),
            answering: Clock::default(),
            times_served: 0,
            recent: Vec::with_capacity(RECENT),
            devices: LruCache::unbounded(),
            failing: 0,
            witnesses: 0,
            waiting: Vec::new(),
            attempts: FREE,
            refill_at: now,
            refills: 0,
            outage: None,
            outages: 0,
        }
    }

    /// Devices that have failed since a call was last served.
    pub(super) fn failing(&self) -> usize {
        self.failing
    }

    pub(super) fn hangs(&self, device: u64) -> bool {
        self.devices.peek(&device).is_some_and(|trouble| trouble.hung && trouble.alone > 0)
    }

    /// The probe says that it is not down.
    pub(super) fn answers(&mut self, now: Instant) {
        self.answering.proves(now);
    }

    /// This device's call was served.
    pub(super) fn served(&mut self, device: u64, now: Instant, news: &mut Vec<News>) {
        self.serving.proves(now);
        self.answers(now);
        self.times_served += 1;
        (self.failing, self.witnesses) = (0, 0);
        self.forget(device);
        if self.recent.first() != Some(&device) {
            self.recent.retain(|recent| *recent != device);
            self.recent.truncate(RECENT - 1);
            self.recent.insert(0, device);
        }
        let most = FREE.max(u32::try_from(self.waiting.len()).unwrap_or(u32::MAX));
        self.attempts = (self.attempts + FOR_EACH_SERVED).min(most);
        self.comes_up(now, news);
    }

    /// The device is not in trouble, or nothing is known about it.
    pub(super) fn forget(&mut self, device: u64) {
        if !self.devices.is_empty()
            && let Some(trouble) = self.devices.pop(&device)
            && self.counts(&trouble)
        {
            self.failing -= 1;
            self.witnesses -= usize::from(trouble.alone < OWN_TROUBLE);
        }
    }

    /// This device's call has failed.
    pub(super) fn failed(&mut self, device: u64, hung: bool) {
        let served = self.times_served;
        let mut alone = 0;
        if let Some(trouble) = self.devices.get_mut(&device) {
            trouble.hung = hung;
            if trouble.served == served {
                return;
            }
            trouble.served = served;
            trouble.alone = trouble.alone.saturating_add(1);
            alone = trouble.alone;
        } else {
            if self.devices.len() >= MAX_DEVICES
                && let Some((_, oldest)) = self.devices.pop_lru()
                && self.counts(&oldest)
            {
                self.failing -= 1;
                self.witnesses -= usize::from(oldest.alone < OWN_TROUBLE);
            }
            self.devices.put(device, Trouble { served, alone, hung });
        }
        self.failing += 1;
        self.witnesses += usize::from(alone < OWN_TROUBLE);
    }

    /// Whether it has failed since a call was last served.
    fn counts(&self, trouble: &Trouble) -> bool {
        trouble.served == self.times_served
    }

    /// Everybody who speaks on this row fails: `devices` of them, or all there are.
    pub(super) fn is_down_for_all(&self, devices: usize) -> bool {
        let fails = |device: &u64| self.devices.peek(device).is_some_and(|t| self.counts(t));
        self.witnesses >= devices
            || self.failing >= 2 && self.witnesses >= 1 && self.recent.iter().all(fails)
    }

    /// Whether an answer to the probe says something about this row: not when several fail on it and nobody is
    /// served; then it may be the row that is down, whatever else answers.
    pub(super) fn believes_probe(&self, devices: usize) -> bool {
        self.failing < 2 || self.witnesses == 0 && self.failing < devices
    }

    /// Somebody waits, or it is down, and nothing has been heard for a while.
    pub(super) fn wants_proof(&self, quiet: Duration, now: Instant) -> bool {
        self.wants_proof_at(quiet).is_some_and(|at| at <= now)
    }

    /// When it will.
    pub(super) fn wants_proof_at(&self, quiet: Duration) -> Option<Instant> {
        let asks = !self.waiting.is_empty() || self.outage.is_some();
        asks.then_some(self.answering.last.map_or(self.made, |last| last + quiet))
    }

    /// Nobody is served any more.
    pub(super) fn goes_down(
        &mut self,
        sign: String,
        probe: Backoff,
        now: Instant,
        news: &mut Vec<News>,
    ) {
        if self.outage.is_some() {
            return;
        }
        self.serving.interrupt();
        self.answering.interrupt();
        (self.attempts, self.refills) = (0, 0);
        self.outages += 1;
        for waiting in &mut self.waiting {
            waiting.end = None;
        }
        self.refill_at = now + probe.after(0);
        let outage = Outage { row: self.name.clone(), since: now, sign };
        news.push(News::Down(outage.clone()));
        self.outage = Some(outage);
    }

    /// It is back, or nobody is left to say that it is not. Who waits because of it is ready.
    pub(super) fn comes_up(&mut self, now: Instant, news: &mut Vec<News>) {
        if let Some(outage) = self.outage.take() {
            for waiting in &mut self.waiting {
                waiting.ready_at = waiting.ready_at.min(now);
            }
            self.attempts = self.attempts.max(1);
            self.refill_at = now + FREE_AGAIN;
            news.push(News::Up(outage));
        }
    }

    /// Something answers again: one of those who wait may look whether it is this row.
    pub(super) fn looks_again(&mut self) {
        self.attempts = self.attempts.max(1);
    }

    /// Time has passed: in an outage one call tries now and then, else some attempts are free.
    pub(super) fn refill(&mut self, probe: Backoff, now: Instant) {
        if self.refill_at > now {
            return;
        }
        if self.outage.is_some() {
            self.attempts = 1;
            self.refills = self.refills.saturating_add(1);
            self.refill_at = now + probe.after(self.refills);
        } else if self.attempts < FREE {
            let pauses = (now - self.refill_at).as_millis() / FREE_AGAIN.as_millis() + 1;
            let more = u32::try_from(pauses).unwrap_or(FREE);
            self.attempts = self.attempts.saturating_add(more).min(FREE);
            self.refill_at = now + FREE_AGAIN;
        }
    }

    /// Who may try again: first who has failed least, since he is the likeliest to be served.
    pub(super) fn release(&mut self, now: Instant, released: &mut Vec<(Id, Next)>) {
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
        let proven =
            |first: Instant| (!down && served_at.is_some_and(|at| at > first)).then_some(outages);
        let mut ready: Vec<_> = self
            .waiting
            .iter()
            .filter(|w| may_try(w, served, now))
            .filter(|w| w.latest <= now || down || w.ready_at <= now)
            .map(|w| (w.latest > now, w.failures, w.latest, w.id, proven(w.first)))
            .collect();
        ready.sort_unstable();
        let before = released.len();
        for (early, _, _, id, proven) in ready {
            if early && self.attempts == 0 {
                break;
            }
            if early {
                if self.attempts >= FREE {
                    self.refill_at = self.refill_at.max(now + FREE_AGAIN);
                }
                self.attempts -= 1;
            }
            released.push((id, Next::Again { proven }));
        }
        let gone = released.get(before..).unwrap_or_default();
        if !gone.is_empty() {
            self.waiting.retain(|waiting| gone.iter().all(|(id, _)| *id != waiting.id));
        }
    }

    /// When somebody may try again, if nothing happens before.
    pub(super) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let down = self.outage.is_some();
        let next = self.waiting.iter().map(|waiting| {
            let early = if down { now } else { waiting.ready_at };
            let early = if self.attempts == 0 { early.max(self.refill_at) } else { early };
            let next = early.min(waiting.latest);
            match waiting.not_before {
                Some((until, _)) if !may_try(waiting, self.times_served, now) => next.max(until),
                _ => next,
            }
        });
        next.min()
    }
}

/// Whether the API's own word lets it try.
fn may_try(waiting: &Waiting, served: u64, now: Instant) -> bool {
    waiting
        .not_before
        .is_none_or(|(until, personal)| until <= now || !personal && served > waiting.served)
}
