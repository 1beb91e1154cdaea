//! The circuit breaker: is it this message, this device, this row of the table, or the API as a whole?
//!
//! Nobody waits for somebody else's failure. A call that has not failed is always tried at once; a call that
//! has failed waits here, by itself, until it may be tried again. Whether its deadline runs meanwhile depends
//! on what is known of the API: it runs while the API is known to serve others on the same row, and stands
//! still in an outage. So a message that alone fails ends by its deadline, and nothing is given up for an outage.
//!
//! What is known comes from the calls themselves. Where there are too few of them to tell, the gateway asks by
//! a request of its own, the probe.
//!
//! Pure: no clock, no socket, no task. `hold` drives it; the simulation plays thousands of histories with it.

mod row;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

pub(super) use self::row::Told;
use self::row::{Clock, Row, Waiting};
use crate::{backoff::Backoff, failure::Sign};

/// So many times in a row no connection means that there is none to be had.
const UNREACHABLE: u32 = 3;
/// Longest wait that the API can ask for by `Retry-After`.
pub(super) const MAX_TOLD: Duration = Duration::from_mins(5);

/// What the configuration says about the breaker.
#[derive(Debug, Clone)]
pub struct BreakerSettings {
    /// So many devices failing on a row, and none served in between, mean that the row is down.
    pub devices: usize,
    /// Waits between attempts of calls that are held in an outage, and between probes. Its upper bound is also
    /// the longest that any call waits between two attempts, unless the API asks for longer.
    pub probe: Backoff,
    /// Path of the probe, below the upstream's URL; `None` sends none.
    pub probe_path: Option<Box<str>>,
}

/// Names a call that waits.
pub(super) type Id = u64;

/// The upstream, or one row of it, is down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// The row that nobody is served on; all rows have one each when the API is away.
    pub row: Arc<str>,
    /// Since when.
    pub since: Instant,
    /// What it was told by.
    pub sign: String,
}

/// When a call had failed first.
#[derive(Debug, Clone, Copy)]
pub(super) struct First {
    at: Instant,
    /// What the clock showed that runs while something answers.
    answering: Duration,
}

/// A call that has failed and may be tried again.
#[derive(Debug, Clone)]
pub(super) struct Failing<'a> {
    pub(super) row: &'a Arc<str>,
    /// Attempts made.
    pub(super) failures: u32,
    /// The first of them had failed.
    pub(super) first: First,
    /// How much of its deadline has passed since its message came, by the clock of its row.
    pub(super) spent: Duration,
    /// Its deadline.
    pub(super) deadline: Duration,
    /// Others had been served since its first failure when its last attempt began, after so many outages.
    pub(super) proven: Option<u64>,
    /// What the API has said about when to try again.
    pub(super) told: Option<Told>,
}

/// How a call that has failed goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is tried again. `proven`: others have been served since its first failure; after so many outages.
    Again { proven: Option<u64> },
    /// Its time is up, and others are served.
    GiveUp,
    /// The API will not take it for longer than anything waits here, and serves others.
    Pause(Duration),
}

/// What is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    Down(Outage),
    Up(Outage),
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// These calls wait no longer, and go on so.
    pub(super) released: Vec<(Id, Next)>,
    /// The probe is to be sent.
    pub(super) probe: bool,
}

struct Probe {
    /// Not before.
    at: Instant,
    failures: u32,
    under_way: bool,
}

/// What is known of the API, and who waits for it.
pub(super) struct Breaker {
    settings: BreakerSettings,
    retry: Backoff,
    /// With nothing heard for so long, the probe is asked.
    quiet: Duration,
    rows: HashMap<Arc<str>, Row>,
    next_id: Id,
    /// Attempts in a row, on any row, that found no connection.
    unreachable: u32,
    probe: Probe,
    /// Runs while the API is known to answer anybody, on any row.
    answering: Clock,
    news: Vec<News>,
}

impl Breaker {
    /// `deadline` is that of calls.
    pub(super) fn new(
        settings: BreakerSettings,
        retry: Backoff,
        deadline: Duration,
        now: Instant,
    ) -> Self {
        // Often enough to see a deadline pass.
        let quiet = settings.probe.initial.min(deadline / 10);
        let probe = Probe { at: now, failures: 0, under_way: false };
        let (rows, news) = (HashMap::new(), Vec::new());
        Self {
            settings,
            retry,
            quiet,
            rows,
            next_id: 0,
            unreachable: 0,
            probe,
            news,
            answering: Clock::default(),
        }
    }

    /// How long the row has been known to serve, added up: the clock that deadlines run by.
    pub(super) fn serving(&self, row: &str) -> Duration {
        self.rows.get(row).map_or(Duration::ZERO, |row| row.serving.time)
    }

    /// What that clock will show for this moment if the row turns out to serve now: what a deadline begins with.
    pub(super) fn reading(&self, row: &str, now: Instant) -> Duration {
        self.rows.get(row).map_or(Duration::ZERO, |row| row.serving.reading(now))
    }

    /// How long the API has been known to answer anybody, added up.
    pub(super) fn answering(&self) -> Duration {
        self.answering.time
    }

    /// Rows that are down, by name.
    pub(super) fn outages(&self) -> Vec<Outage> {
        let mut outages: Vec<_> = self.rows.values().filter_map(|row| row.outage.clone()).collect();
        outages.sort_by(|a, b| a.row.cmp(&b.row));
        outages
    }

    /// Whether nobody waits and nothing is down.
    pub(super) fn is_idle(&self) -> bool {
        self.rows.values().all(|row| row.waiting.is_empty() && row.outage.is_none())
    }

    /// Whether this device's calls on this row have failed of late because no answer came.
    pub(super) fn hangs(&self, row: &str, device: u64) -> bool {
        self.rows.get(row).is_some_and(|row| row.hangs(device))
    }

    /// What has happened since the last time.
    pub(super) fn news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Learns from an attempt; `how` it ended, in words.
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
        let Self { settings, rows, unreachable, news, answering, .. } = self;
        let row = match rows.get_mut(row) {
            Some(row) => row,
            None => rows.entry(row.clone()).or_insert_with(|| Row::new(row.clone(), now)),
        };
        *unreachable = match sign {
            Sign::Unreachable => unreachable.saturating_add(1),
            Sign::Served | Sign::Refused | Sign::Failed | Sign::Hung | Sign::Nothing => 0,
        };
        match sign {
            Sign::Served => {
                row.served(device, now, news);
                answering.proves(now);
            }
            Sign::Refused => row.forget(device),
            Sign::Failed | Sign::Hung | Sign::Unreachable => {
                row.failed(device, sign == Sign::Hung);
                let sign = if *unreachable >= UNREACHABLE {
                    how.to_string()
                } else if row.is_down_for_all(settings.devices) {
                    format!("{} devices tried and none was served, at last: {how}", row.failing())
                } else {
                    return;
                };
                row.goes_down(sign, settings.probe, now, news);
                answering.interrupt();
            }
            Sign::Nothing => {}
        }
    }

    /// A call has failed for the first time.
    pub(super) fn first(&self, row: &str, now: Instant) -> First {
        let row = self.rows.get(row);
        First { at: now, answering: row.map_or(Duration::ZERO, |row| row.answering.reading(now)) }
    }

    /// A call has failed, and its attempt has been learnt from: it waits until [`Breaker::poll`] releases it.
    pub(super) fn wait(&mut self, call: &Failing<'_>, now: Instant) -> Id {
        let rows = &mut self.rows;
        let row = rows.entry(call.row.clone()).or_insert_with(|| Row::new(call.row.clone(), now));
        // Others are served, so it fails by itself: its deadline runs from its message's arrival. Or nobody else speaks, and
        // the probe is answered: then it runs from the first failure, since what is known is less.
        let alone = row.answering.time.saturating_sub(call.first.answering);
        let proven = call.proven == Some(row.outages);
        let later = alone >= call.deadline;
        let late = proven && call.spent >= call.deadline;
        let asked = call.told.map(|told| told.wait).filter(|asked| *asked > MAX_TOLD);
        let end = match asked {
            // It is not asked again to see whether others are served: they must be, for as long as it would take.
            Some(asked) => {
                let known = row.serving.reading(now) + call.deadline;
                Some((Next::Pause(asked), if proven { Duration::ZERO } else { known }))
            }
            None => (late || later).then_some((Next::GiveUp, Duration::ZERO)),
        };
        let mut backoff = self.retry.after(call.failures.saturating_sub(1));
        let left = call.deadline.saturating_sub(call.spent.max(alone));
        // The last attempt is made when the deadline passes, not up to a whole wait later.
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
            not_before: call.told.map(|told| (now + told.wait.min(MAX_TOLD), told.personal)),
            served: row.times_served,
            // That others are served must be known from before this attempt and from after it: an outage may just begin.
            end: end.filter(|_| row.outage.is_none()),
            by_probe: later && !late && asked.is_none(),
        });
        id
    }

    /// The call does not wait any more.
    pub(super) fn cancel(&mut self, row: &str, id: Id) {
        if let Some(row) = self.rows.get_mut(row) {
            row.waiting.retain(|waiting| waiting.id != id);
        }
    }

    /// The probe has been answered, or not, and how.
    pub(super) fn probed(&mut self, result: Result<(), String>, now: Instant) {
        self.probe.under_way = false;
        let Self { settings, rows, probe, news, unreachable, answering, .. } = self;
        let quiet = self.quiet;
        match result {
            Ok(()) => {
                *unreachable = 0;
                let back = probe.failures > 0;
                let mut proved = false;
                // Also those whose failing call is just being tried.
                let asking = |row: &&mut Row| row.failing() > 0 || row.outage.is_some();
                for row in rows.values_mut().filter(asking) {
                    if row.believes_probe(settings.devices) {
                        row.answers(now);
                        answering.proves(now);
                        row.comes_up(now, news);
                        proved = true;
                    } else if row.waiting.is_empty() {
                        // Nobody is left to say whether it still is.
                        row.comes_up(now, news);
                    } else if back {
                        row.looks_again();
                    }
                }
                // What it cannot tell, it need not ask often.
                probe.failures = if proved { 0 } else { probe.failures.saturating_add(1) };
                probe.at =
                    now + if proved { quiet } else { settings.probe.ceiling(probe.failures) };
            }
            Err(how) => {
                probe.failures = probe.failures.saturating_add(1);
                probe.at =
                    now + settings.probe.after(probe.failures).max(settings.probe.initial / 2);
                let asking =
                    |row: &&mut Row| !row.waiting.is_empty() && row.wants_proof(quiet, now);
                for row in rows.values_mut().filter(asking) {
                    row.goes_down(how.clone(), settings.probe, now, news);
                }
            }
        }
    }

    /// What is due.
    pub(super) fn poll(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        for row in self.rows.values_mut() {
            row.refill(self.settings.probe, now);
            row.release(now, &mut due.released);
            if self.settings.probe_path.is_none() && row.waiting.is_empty() {
                row.comes_up(now, &mut self.news);
            }
        }
        if self.settings.probe_path.is_some()
            && !self.probe.under_way
            && self.probe.at <= now
            && self.rows.values().any(|row| row.wants_proof(self.quiet, now))
        {
            self.probe.under_way = true;
            due.probe = true;
        }
        due
    }

    /// When [`Breaker::poll`] should be asked again, if nothing happens before.
    pub(super) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let rows = self.rows.values().filter_map(|row| row.next_timeout(now));
        let probing = self.settings.probe_path.is_some() && !self.probe.under_way;
        let proofs = self.rows.values().filter_map(|row| row.wants_proof_at(self.quiet));
        let probe = proofs.min().filter(|_| probing).map(|at| at.max(self.probe.at));
        rows.chain(probe).min()
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
