//! The circuit breaker. When calls fail it finds out whether the cause is one message, one device, one row of the table or
//! the API as a whole.
//!
//! No call waits because another call failed. A call that has not failed is always tried at once; a call that has failed
//! waits here, by itself, until it may be tried again. Its deadline runs only while the API is known to serve other devices
//! on the same row, and stands still in an outage. So a message that fails alone ends by its deadline, and no message is
//! given up because of an outage.
//!
//! What is known about the API comes from the calls themselves. Where there are too few of them to tell, the gateway sends
//! a request of its own, the probe.
//!
//! This module is pure: it has no clock, no socket and no task. `shared_breaker` drives it, and the simulation plays
//! thousands of histories with it.

mod row;

use std::{fmt, sync::Arc, time::Duration};

use foldhash::{HashMap, HashMapExt};
use tokio::time::Instant;

pub(super) use self::row::RetryAfter;
use self::row::{Clock, Row, Waiting};
use crate::{
    backoff::Backoff,
    failure::{ProbeFailure, Sign},
};

/// After this many attempts in a row that found no connection, the API counts as unreachable; after as many on a row whose
/// credentials were refused, the row is down.
const UNREACHABLE_ATTEMPTS: u32 = 3;
/// The longest `Retry-After` that a call waits for. After a longer one its message ends, if the API serves others.
pub(super) const MAX_OBEYED_RETRY_AFTER: Duration = Duration::from_mins(5);

/// What the configuration says about the breaker.
#[derive(Debug, Clone)]
pub struct BreakerSettings {
    /// A row is down when this many devices have failed on it and none was served in between.
    pub devices: usize,
    /// The waits between attempts during an outage, and between probes. No call waits longer than its upper bound between
    /// two attempts, unless the API asks for that.
    pub probe: Backoff,
    /// Path of the probe, below the upstream's URL; `None` sends none.
    pub probe_path: Option<Box<str>>,
}

/// Identifies a call that waits.
pub(super) type CallId = u64;

/// An outage of one row. When the API as a whole is away, every row has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outage {
    /// The row on which no device is served.
    pub row: Arc<str>,
    /// When it began.
    pub since: Instant,
    /// What showed it, in words for the operator.
    pub sign: String,
}

/// When the first attempt of a call failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstFailure {
    at: Instant,
    /// The reading at that time of the row's clock that runs while the row or the probe answers.
    answering: Duration,
}

/// A call that has failed and may be tried again.
#[derive(Debug, Clone)]
pub(super) struct FailedCall<'a> {
    pub(super) row: &'a Arc<str>,
    /// How many attempts have failed.
    pub(super) failures: u32,
    /// When the first of them did.
    pub(super) first: FirstFailure,
    /// How much of its deadline has passed since its message arrived, by the clock of its row.
    pub(super) spent: Duration,
    /// Its deadline.
    pub(super) deadline: Duration,
    /// What [`Next::Again`] said when its last attempt began.
    pub(super) others_served: Option<u64>,
    /// When the API wants the next attempt.
    pub(super) retry_after: Option<RetryAfter>,
}

/// What happens to a call that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is tried again. `others_served` is there if other devices have been served since its first failure, and says how
    /// many outages the row had had then.
    Again { others_served: Option<u64> },
    /// Its deadline has passed, and other devices are served.
    GiveUp,
    /// The API serves others, and asked this device to wait for this time, which is longer than any call waits.
    Pause(Duration),
}

/// An outage began or ended, which the operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum OutageChange {
    Began(Outage),
    Ended(Outage),
}

/// What has to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The calls that wait no longer, and what happens to them.
    pub(super) released: Vec<(CallId, Next)>,
    /// Whether the probe has to be sent.
    pub(super) probe: bool,
}

/// The state of the probe.
struct Probe {
    /// The earliest time of the next one.
    at: Instant,
    /// How many in a row brought no proof.
    failures: u32,
    /// Whether one is being sent.
    under_way: bool,
}

/// What is known about the API, and the calls that wait.
pub(super) struct Breaker {
    settings: BreakerSettings,
    retry: Backoff,
    /// The probe is sent when a row has answered nothing for this time.
    silence: Duration,
    rows: HashMap<Arc<str>, Row>,
    next_id: CallId,
    /// How many attempts in a row, on any row, found no connection.
    unreachable: u32,
    probe: Probe,
    /// Runs while the API is known to answer anybody, on any row.
    answering: Clock,
    changes: Vec<OutageChange>,
}

impl Breaker {
    /// `retry` has the waits between the attempts of one call, and `deadline` is the deadline of calls.
    pub(super) fn new(
        settings: BreakerSettings,
        retry: Backoff,
        deadline: Duration,
        now: Instant,
    ) -> Self {
        // Often enough to notice within a tenth of the deadline that it has passed.
        let silence = settings.probe.initial.min(deadline / 10);
        let probe = Probe { at: now, failures: 0, under_way: false };
        let (rows, changes) = (HashMap::new(), Vec::new());
        Self {
            settings,
            retry,
            silence,
            rows,
            next_id: 0,
            unreachable: 0,
            probe,
            changes,
            answering: Clock::default(),
        }
    }

    /// How long the row has been known to serve, added up. Deadlines run by this clock.
    pub(super) fn serving_time(&self, row: &str) -> Duration {
        self.rows.get(row).map_or(Duration::ZERO, |row| row.serving.time)
    }

    /// What that clock will show for this moment if the row turns out to serve now. The deadline of a message that arrives
    /// now begins with this reading.
    pub(super) fn serving_time_at(&self, row: &str, now: Instant) -> Duration {
        self.rows.get(row).map_or(Duration::ZERO, |row| row.serving.reading(now))
    }

    /// How long the API has been known to answer on any row, added up.
    pub(super) fn answering_time(&self) -> Duration {
        self.answering.time
    }

    /// The outages of rows, in the order of their names.
    pub(super) fn outages(&self) -> Vec<Outage> {
        let mut outages: Vec<_> = self.rows.values().filter_map(|row| row.outage.clone()).collect();
        outages.sort_by(|a, b| a.row.cmp(&b.row));
        outages
    }

    /// Whether no call waits and no row is down.
    pub(super) fn is_idle(&self) -> bool {
        self.rows.values().all(|row| row.waiting.is_empty() && row.outage.is_none())
    }

    /// Whether the device's last failure on this row was a time-out, and other devices were served meanwhile.
    pub(super) fn hangs(&self, row: &str, device: u64) -> bool {
        self.rows.get(row).is_some_and(|row| row.hangs(device))
    }

    /// The outages that have begun and ended since this was last asked.
    pub(super) fn take_changes(&mut self) -> Vec<OutageChange> {
        std::mem::take(&mut self.changes)
    }

    /// Learns from an attempt. `how` says in words how it ended.
    pub(super) fn learn(
        &mut self,
        row: &Arc<str>,
        device: u64,
        sign: Sign,
        how: &dyn fmt::Display,
        now: Instant,
    ) {
        if sign == Sign::Nothing {
            return;
        }
        let Self { settings, rows, unreachable, changes, answering, .. } = self;
        let row = match rows.get_mut(row) {
            Some(row) => row,
            None => rows.entry(row.clone()).or_insert_with(|| Row::new(row.clone(), now)),
        };
        *unreachable = match sign {
            Sign::Unreachable => unreachable.saturating_add(1),
            Sign::Served
            | Sign::Refused
            | Sign::Failed
            | Sign::Hung
            | Sign::Barred
            | Sign::Nothing => 0,
        };
        row.barred = if sign == Sign::Barred { row.barred.saturating_add(1) } else { 0 };
        match sign {
            Sign::Served => {
                row.served(device, now, changes);
                answering.proves(now);
            }
            Sign::Refused => row.forget(device),
            Sign::Failed | Sign::Hung | Sign::Unreachable | Sign::Barred => {
                row.failed(device, sign == Sign::Hung);
                let in_a_row = (*unreachable).max(row.barred);
                let sign = if in_a_row >= UNREACHABLE_ATTEMPTS {
                    how.to_string()
                } else if row.is_down_for_all(settings.devices) {
                    format!(
                        "{} devices failed and none was served; the last result: {how}",
                        row.failing()
                    )
                } else {
                    return;
                };
                row.goes_down(sign, settings.probe, now, changes);
                answering.interrupt();
            }
            Sign::Nothing => {}
        }
    }

    /// The mark of a call whose first attempt has just failed.
    pub(super) fn first_failure(&self, row: &str, now: Instant) -> FirstFailure {
        let row = self.rows.get(row);
        FirstFailure {
            at: now,
            answering: row.map_or(Duration::ZERO, |row| row.answering.reading(now)),
        }
    }

    /// A call waits from now on, until [`Breaker::poll`] releases it. [`Breaker::learn`] knows of its last attempt already.
    pub(super) fn wait(&mut self, call: &FailedCall<'_>, now: Instant) -> CallId {
        let rows = &mut self.rows;
        let row = rows.entry(call.row.clone()).or_insert_with(|| Row::new(call.row.clone(), now));
        // If other devices are served, the call fails for a reason of its own, and its deadline runs from the arrival of its
        // message. If no other device sends anything and the probe is answered, less is known, and the deadline runs from
        // the first failure.
        let others_served = call.others_served == Some(row.outages);
        let late = others_served && call.spent >= call.deadline;
        let since_first = row.answering.time.saturating_sub(call.first.answering);
        let late_by_probe = since_first >= call.deadline;
        let too_long =
            call.retry_after.map(|asked| asked.wait).filter(|wait| *wait > MAX_OBEYED_RETRY_AFTER);
        let end = match too_long {
            // It is not tried again, so no attempt will show whether others are served. Unless that is known already, the
            // row has to serve for as long as the deadline first.
            Some(wait) => {
                let known = row.serving.reading(now) + call.deadline;
                Some((Next::Pause(wait), if others_served { Duration::ZERO } else { known }))
            }
            None => (late || late_by_probe).then_some((Next::GiveUp, Duration::ZERO)),
        };
        let mut backoff = self.retry.after(call.failures.saturating_sub(1));
        let left = call.deadline.saturating_sub(call.spent.max(since_first));
        // So that the last attempt is made soon after the deadline has passed, not up to a whole wait later.
        if backoff > left {
            backoff = left.max(backoff / 4);
        }
        let longest = self.settings.probe.max.mul_f64(0.5 + fastrand::f64() / 2.0);
        let id = self.next_id;
        self.next_id += 1;
        row.waiting.push(Waiting {
            id,
            failures: call.failures,
            first: call.first.at,
            failed_at: now,
            ready_at: now + backoff,
            latest: now + longest,
            not_before: call
                .retry_after
                .map(|asked| (now + asked.wait.min(MAX_OBEYED_RETRY_AFTER), asked.for_device)),
            served: row.times_served,
            // That others are served must be known from before this attempt and from after it, since an outage may just be
            // beginning.
            end: end.filter(|_| row.outage.is_none()),
            by_probe: late_by_probe && !late && too_long.is_none(),
        });
        id
    }

    /// The call does not wait any more, because its message has expired or the gateway stops.
    pub(super) fn cancel(&mut self, row: &str, id: CallId) {
        if let Some(row) = self.rows.get_mut(row) {
            row.waiting.retain(|waiting| waiting.id != id);
        }
    }

    /// Learns from the probe.
    pub(super) fn learn_from_probe(&mut self, result: Result<(), ProbeFailure>, now: Instant) {
        self.probe.under_way = false;
        let Self { settings, rows, probe, changes, unreachable, answering, .. } = self;
        let silence = self.silence;
        match result {
            Ok(()) => {
                *unreachable = 0;
                let back = probe.failures > 0;
                let mut proved = false;
                // These include rows whose only failed call is just being tried again.
                let in_doubt = |row: &&mut Row| row.failing() > 0 || row.outage.is_some();
                for row in rows.values_mut().filter(in_doubt) {
                    if row.believes_probe(settings.devices) {
                        row.probe_answered(now);
                        answering.proves(now);
                        row.comes_up(now, changes);
                        proved = true;
                    } else if row.waiting.is_empty() {
                        // No call is left that could show whether it still is down.
                        row.comes_up(now, changes);
                    } else if back {
                        row.allow_one_attempt();
                    }
                }
                // A probe whose answer proves nothing need not be sent often.
                probe.failures = if proved { 0 } else { probe.failures.saturating_add(1) };
                probe.at =
                    now + if proved { silence } else { settings.probe.ceiling(probe.failures) };
            }
            Err(failure) => {
                probe.failures = probe.failures.saturating_add(1);
                probe.at =
                    now + settings.probe.after(probe.failures).max(settings.probe.initial / 2);
                let in_doubt =
                    |row: &&mut Row| !row.waiting.is_empty() && row.wants_proof(silence, now);
                for row in rows.values_mut().filter(in_doubt) {
                    row.goes_down(failure.to_string(), settings.probe, now, changes);
                }
            }
        }
    }

    /// What has to be done at this time.
    pub(super) fn poll(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        for row in self.rows.values_mut() {
            row.refill(self.settings.probe, now);
            row.release(now, &mut due.released);
            if self.settings.probe_path.is_none() && row.waiting.is_empty() {
                row.comes_up(now, &mut self.changes);
            }
        }
        if self.settings.probe_path.is_some()
            && !self.probe.under_way
            && self.probe.at <= now
            && self.rows.values().any(|row| row.wants_proof(self.silence, now))
        {
            self.probe.under_way = true;
            due.probe = true;
        }
        due
    }

    /// When [`Breaker::poll`] has to be called again, if nothing happens before.
    pub(super) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let rows = self.rows.values().filter_map(|row| row.next_timeout(now));
        let probing = self.settings.probe_path.is_some() && !self.probe.under_way;
        let proofs = self.rows.values().filter_map(|row| row.wants_proof_at(self.silence));
        let probe = proofs.min().filter(|_| probing).map(|at| at.max(self.probe.at));
        rows.chain(probe).min()
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
