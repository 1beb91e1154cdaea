//! Plays one history, event by event.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use fastrand::Rng;

use super::{super::*, ATTEMPT, DEADLINE, PROBE_MAX, ROWS, SECOND};
use crate::failure::FailureKind;

/// How the API fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// 500 or 503, at once.
    Error,
    /// No answer until the attempt's time is up.
    Hang,
    /// No connection.
    Away,
    /// 429, sometimes with `Retry-After`.
    Busy,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Trouble {
    pub(super) fault: Fault,
    pub(super) row: Option<usize>,
    pub(super) device: Option<usize>,
    /// Only every n-th message of the device.
    pub(super) message: Option<usize>,
    pub(super) from: Duration,
    pub(super) to: Duration,
}

impl Trouble {
    pub(super) fn hits(&self, device: usize, message: Message, at: Duration) -> bool {
        (self.from..self.to).contains(&at)
            && self.row.is_none_or(|row| row == message.row)
            && self.device.is_none_or(|bad| bad == device)
            && self.message.is_none_or(|every| message.number.is_multiple_of(every))
    }

    /// Everybody is hit, on one row or on all.
    pub(super) fn is_outage(&self) -> bool {
        self.device.is_none()
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub(super) number: usize,
    pub(super) row: usize,
    pub(super) came: Duration,
}

#[derive(Debug)]
pub(super) struct History {
    pub(super) devices: usize,
    /// How often each device sends a message.
    pub(super) every: Duration,
    pub(super) troubles: Vec<Trouble>,
    /// Calls that the API takes in a second, from all devices.
    pub(super) limit: Option<u32>,
    pub(super) lasts: Duration,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Served,
    GivenUp,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) device: usize,
    pub(super) message: Message,
    pub(super) at: Duration,
    pub(super) end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Comes(usize),
    Answered(usize),
    Probed(bool),
    Poll,
}

/// A device with its lane.
struct Lane {
    waiting: VecDeque<(Message, Duration)>,
    current: Option<Current>,
    sent: usize,
}

struct Current {
    message: Message,
    since: Duration,
    failures: u32,
    first: Option<FirstFailure>,
    others_served: Option<u64>,
    result: Option<Fault>,
    asked: Option<RetryAfter>,
}

pub(super) struct Play<'h> {
    history: &'h History,
    rng: Rng,
    breaker: Breaker,
    began: Instant,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    lanes: Vec<Lane>,
    waits: HashMap<CallId, usize>,
    pub(super) ended: Vec<Ended>,
    pub(super) attempts: usize,
    /// When it will be asked again, or was.
    polls: Duration,
    /// Calls taken in the current second.
    taken: (u64, u32),
}

impl<'h> Play<'h> {
    pub(super) fn new(history: &'h History, seed: u64) -> Self {
        fastrand::seed(seed);
        let settings = BreakerSettings {
            devices: 3,
            probe: Backoff { initial: SECOND, max: PROBE_MAX },
            probe_path: Some("/".into()),
        };
        let retry = Backoff { initial: SECOND / 5, max: 10 * SECOND };
        let began = Instant::now();
        let lane = || Lane { waiting: [].into(), current: None, sent: 0 };
        Self {
            history,
            rng: Rng::with_seed(seed),
            breaker: Breaker::new(settings, retry, DEADLINE, began),
            began,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            lanes: (0..history.devices).map(|_| lane()).collect(),
            waits: HashMap::new(),
            ended: Vec::new(),
            attempts: 0,
            polls: Duration::ZERO,
            taken: (0, 0),
        }
    }

    /// To the end: everything that was sent has ended, or two days have passed.
    pub(super) fn run(mut self) -> Self {
        let begun = !self.events.is_empty();
        for device in (0..self.history.devices).filter(|_| !begun) {
            let first = self.history.every.mul_f64(self.rng.f64());
            self.at(first, Event::Comes(device));
        }
        let patience = self.history.lasts + Duration::from_hours(50);
        while let Some(Reverse((at, event))) = self.events.pop()
            && at < patience
        {
            self.now = at;
            match event {
                Event::Comes(device) => self.comes(device),
                Event::Answered(device) => self.answered(device),
                Event::Probed(answers) => {
                    let away = ProbeFailure::Failed(FailureKind::AttemptTimeout);
                    let result = if answers { Ok(()) } else { Err(away) };
                    self.breaker.learn_from_probe(result, self.began + at);
                }
                Event::Poll => {}
            }
            self.poll();
        }
        self
    }

    pub(super) fn at(&mut self, at: Duration, event: Event) {
        self.events.push(Reverse((at, event)));
    }

    fn comes(&mut self, device: usize) {
        let row = self.rng.usize(..ROWS.len());
        let lane = &mut self.lanes[device];
        lane.sent += 1;
        let message = Message { number: lane.sent, row, came: self.now };
        let clock = self.breaker.serving_time_at(ROWS[row], self.began + self.now);
        lane.waiting.push_back((message, clock));
        let next = self.now + self.history.every.mul_f64(0.5 + self.rng.f64());
        // The last device is well, and sends as long as others are not finished: without it, nothing would show whether the
        // API serves.
        let (_, others) = self.lanes.split_last().unwrap();
        let others = others.iter().any(|lane| lane.current.is_some());
        if next < self.history.lasts || device + 1 == self.history.devices && others {
            self.at(next, Event::Comes(device));
        }
        self.take(device);
    }

    fn take(&mut self, device: usize) {
        let lane = &mut self.lanes[device];
        if lane.current.is_none()
            && let Some((message, since)) = lane.waiting.pop_front()
        {
            let (failures, first) = (0, None);
            lane.current = Some(Current {
                message,
                since,
                failures,
                first,
                others_served: None,
                result: None,
                asked: None,
            });
            self.attempt(device);
        }
    }

    fn attempt(&mut self, device: usize) {
        self.attempts += 1;
        let message = self.lanes[device].current.as_ref().unwrap().message;
        let hit = |trouble: &&Trouble| trouble.hits(device, message, self.now);
        let mut fault = self.history.troubles.iter().find(hit).map(|trouble| trouble.fault);
        if let Some(limit) = self.history.limit {
            let second = self.now.as_secs();
            let (current, taken) = self.taken;
            self.taken = if current == second { (current, taken + 1) } else { (second, 1) };
            if self.taken.1 > limit {
                fault = fault.or(Some(Fault::Busy));
            }
        }
        let retry_after =
            (fault == Some(Fault::Busy) && self.history.limit.is_none() && self.rng.bool())
                .then(|| RetryAfter { wait: SECOND * self.rng.u32(0..60), for_device: true });
        let current = self.lanes[device].current.as_mut().unwrap();
        (current.result, current.asked) = (fault, retry_after);
        let takes = match fault {
            Some(Fault::Hang) => ATTEMPT,
            Some(Fault::Away) => Duration::from_millis(1),
            _ => Duration::from_millis(5 + self.rng.u64(..50)),
        };
        self.at(self.now + takes, Event::Answered(device));
    }

    fn answered(&mut self, device: usize) {
        let now = self.began + self.now;
        let current = self.lanes[device].current.as_mut().unwrap();
        let row: Arc<str> = ROWS[current.message.row].into();
        let sign = match current.result {
            None => Sign::Served,
            Some(Fault::Away) => Sign::Unreachable,
            Some(Fault::Hang) => Sign::Hung,
            Some(_) => Sign::Failed,
        };
        self.breaker.learn(&row, device as u64, sign, &format!("{:?}", current.result), now);
        if current.result.is_none() {
            return self.end(device, End::Served);
        }
        current.failures += 1;
        let first = *current.first.get_or_insert_with(|| self.breaker.first_failure(&row, now));
        let clock = self.breaker.serving_time(&row);
        let failing = FailedCall {
            row: &row,
            failures: current.failures,
            first,
            others_served: current.others_served,
            spent: clock.saturating_sub(current.since),
            deadline: DEADLINE,
            retry_after: current.asked,
        };
        let id = self.breaker.wait(&failing, now);
        self.waits.insert(id, device);
    }

    fn end(&mut self, device: usize, end: End) {
        let message = self.lanes[device].current.take().unwrap().message;
        self.ended.push(Ended { device, message, at: self.now, end });
        self.take(device);
    }

    fn poll(&mut self) {
        let now = self.began + self.now;
        let due = self.breaker.poll(now);
        for (id, next) in due.released {
            let device = self.waits.remove(&id).unwrap();
            match next {
                Next::Again { others_served } => {
                    self.lanes[device].current.as_mut().unwrap().others_served = others_served;
                    self.attempt(device);
                }
                Next::GiveUp | Next::Pause(_) => self.end(device, End::GivenUp),
            }
        }
        if due.probe {
            let away = self.history.troubles.iter().any(|trouble| {
                trouble.is_outage()
                    && trouble.row.is_none()
                    && (trouble.from..trouble.to).contains(&self.now)
            });
            self.at(self.now + Duration::from_millis(20), Event::Probed(!away));
        }
        if let Some(next) = self.breaker.next_timeout(now) {
            let next = (next - self.began).max(self.now + Duration::from_millis(1));
            if self.polls <= self.now || next < self.polls {
                self.polls = next;
                self.at(next, Event::Poll);
            }
        }
    }

    pub(super) fn sent(&self) -> usize {
        self.lanes.iter().map(|lane| lane.sent).sum()
    }
}
