//! Plays the breaker through thousands of histories: devices, rows, faults and time, each from a seed.
//!
//! A fleet sends messages, one at a time per device, to an API that fails in the ways of the history: away as a
//! whole, on one row, for a device, for a message; by errors, time-outs, refused connections or limits. What must hold is
//! checked over every history. A failure names the seed; `SEED=n` plays that one alone.

mod play;

use std::collections::BTreeSet;

use fastrand::Rng;

use self::play::{End, Ended, Event, Fault, History, Message, Play, Trouble};
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);
const PROBE_MAX: Duration = Duration::from_secs(30);
const ATTEMPT: Duration = Duration::from_secs(10);
/// The longest time until a call is answered that no outage holds: the longest wait between attempts, and an attempt.
const TURN: Duration = Duration::from_secs(30 + 10 + 1);
const ROWS: [&str; 3] = ["a", "b", "c"];

/// A history from a seed: some troubles of some devices, and outages.
fn history(rng: &mut Rng) -> History {
    let devices = rng.usize(6..16);
    let lasts = SECOND * rng.u32(20..200);
    let faults = [Fault::Error, Fault::Hang, Fault::Away, Fault::Busy];
    let mut troubles = Vec::new();
    // Four devices are well: where only one speaks, a bad message and a row that is down look the same.
    for device in 0..rng.usize(..devices - 3) {
        let fault = faults[[0, 1, 3][rng.usize(..3)]];
        let message = rng.bool().then(|| rng.usize(1..20));
        let row = rng.bool().then(|| rng.usize(..ROWS.len()));
        let (from, to) = (Duration::ZERO, Duration::from_hours(1000));
        troubles.push(Trouble { fault, row, device: Some(device), message, from, to });
    }
    for _ in 0..rng.usize(..3) {
        let from = lasts.mul_f64(rng.f64());
        let to = from + SECOND * rng.u32(1..120);
        let fault = faults[rng.usize(..faults.len())];
        let row = rng.bool().then(|| rng.usize(..ROWS.len()));
        troubles.push(Trouble { fault, row, device: None, message: None, from, to });
    }
    let every = SECOND.mul_f64(0.5 + 3.0 * rng.f64());
    History { devices, every, troubles, limit: None, lasts }
}

/// `count` seeds. `SEED=7` plays that one alone, `SEEDS=100000` more of them.
fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let one = number("SEED");
    one.map_or(0..number("SEEDS").unwrap_or(count), |seed| seed..seed + 1)
}

/// Ends of troubles that hit a message since it came: from the last of them on it can be served.
fn well_since(history: &History, device: usize, message: Message, at: Duration) -> Duration {
    let hit = |t: &&Trouble| t.is_outage() && t.hits(device, message, t.from) && t.from <= at;
    history.troubles.iter().filter(hit).map(|t| t.to).fold(message.came, Duration::max)
}

#[test]
fn a_call_that_can_be_served_is_and_one_that_fails_alone_ends() {
    for seed in seeds(1000) {
        let history = history(&mut Rng::with_seed(seed));
        let play = Play::new(&history, seed).run();
        let bad = |device: usize, message: Message| {
            let own = history.troubles.iter().filter(|trouble| !trouble.is_outage());
            own.into_iter().any(|trouble| trouble.hits(device, message, Duration::ZERO))
        };
        let outages: Vec<_> = history.troubles.iter().filter(|t| t.is_outage()).collect();
        let context = || format!("SEED={seed} {outages:?} {history:?}");
        assert_eq!(play.ended.len(), play.sent(), "something never ended: {}", context());
        // When a device's lane was free for each of its messages.
        let mut free = vec![Duration::ZERO; history.devices];
        for ended in &play.ended {
            let Ended { device, message, at, end } = *ended;
            let begins = free[device].max(message.came);
            free[device] = at;
            if bad(device, message) {
                assert_eq!(end, End::GivenUp, "{ended:?} {}", context());
                assert!(at >= message.came + DEADLINE, "given up early: {ended:?} {}", context());
            } else {
                assert_eq!(end, End::Served, "it could be served: {ended:?} {}", context());
                let well = well_since(&history, device, message, at).max(begins);
                // A device that was asked to wait during an outage waits.
                let busy = |t: &Trouble| t.is_outage() && t.fault == Fault::Busy;
                let told = history.troubles.iter().any(busy);
                let most = TURN + if told { 60 * SECOND } else { Duration::ZERO };
                assert!(
                    at <= well + most,
                    "late by {:?}: {ended:?} {}",
                    at.saturating_sub(well),
                    context()
                );
            }
        }
    }
}

/// While others are served all the time, what fails alone takes its deadline, and not much more.
#[test]
fn what_fails_alone_takes_no_longer_than_its_deadline_while_others_are_served() {
    for seed in seeds(60) {
        let mut history = history(&mut Rng::with_seed(seed));
        history.troubles.retain(|trouble| !trouble.is_outage() && trouble.fault != Fault::Busy);
        history.troubles.truncate(history.devices / 2);
        history.every = SECOND / 2;
        let play = Play::new(&history, seed).run();
        let mut free = vec![Duration::ZERO; history.devices];
        for ended in &play.ended {
            let begins = free[ended.device].max(ended.message.came);
            free[ended.device] = ended.at;
            // Behind its own device's others it is tried once or twice, when its turn comes.
            let most =
                DEADLINE.saturating_sub(begins.saturating_sub(ended.message.came)) + 2 * TURN;
            let late = ended.at.saturating_sub(begins) > most && ended.at < history.lasts;
            assert!(!late, "SEED={seed} {ended:?} began {begins:?} {history:?}");
        }
    }
}

/// A fleet of one or two has the same promise.
#[test]
fn one_or_two_devices_lose_nothing_in_an_outage_and_are_not_stopped_by_a_bad_message() {
    for seed in seeds(500) {
        let rng = &mut Rng::with_seed(seed);
        let outage = (SECOND * rng.u32(..100), SECOND * rng.u32(100..300));
        let fault = [Fault::Error, Fault::Hang, Fault::Away][rng.usize(..3)];
        let whole =
            Trouble { fault, row: None, device: None, message: None, from: outage.0, to: outage.1 };
        let bad = Trouble {
            fault: Fault::Error,
            device: Some(0),
            message: Some(rng.usize(5..10)),
            from: Duration::ZERO,
            to: Duration::from_hours(1000),
            ..whole
        };
        let history = History {
            devices: rng.usize(1..3),
            every: 4 * SECOND,
            troubles: vec![whole, bad],
            limit: None,
            lasts: 400 * SECOND,
        };
        let play = Play::new(&history, seed).run();
        assert_eq!(play.ended.len(), play.sent(), "SEED={seed} {history:?}");
        for ended in &play.ended {
            let Ended { device, message, end, .. } = *ended;
            let given_up = bad.hits(device, message, Duration::ZERO);
            assert_eq!(end == End::GivenUp, given_up, "SEED={seed} {ended:?} {history:?}");
        }
    }
}

/// Calls come back at a growing rate: an API that takes ten calls a second is not asked thousands of times.
#[test]
fn a_limit_of_the_api_is_not_hammered() {
    for seed in seeds(3) {
        let history = History {
            devices: 400,
            every: 1000 * SECOND,
            troubles: Vec::new(),
            limit: Some(10),
            lasts: SECOND,
        };
        let mut play = Play::new(&history, seed);
        for device in 0..400 {
            play.at(Duration::ZERO, Event::Comes(device));
        }
        let play = play.run();
        let served = play.ended.iter().filter(|ended| ended.end == End::Served).count();
        let took = play.ended.iter().map(|ended| ended.at).max().unwrap_or_default();
        assert!(served >= 400, "SEED={seed}: {served} served");
        assert!(play.attempts < 3000, "SEED={seed}: {} attempts in {took:?}", play.attempts);
    }
}

/// An outage costs few attempts, however many wait, and none of them at once when it is over.
#[test]
fn an_outage_is_not_hammered() {
    for seed in seeds(3) {
        let whole = Trouble {
            fault: Fault::Away,
            row: None,
            device: None,
            message: None,
            from: Duration::ZERO,
            to: 600 * SECOND,
        };
        let history = History {
            devices: 300,
            every: 1000 * SECOND,
            troubles: vec![whole],
            limit: None,
            lasts: SECOND,
        };
        let mut play = Play::new(&history, seed);
        for device in 0..300 {
            play.at(Duration::ZERO, Event::Comes(device));
        }
        let play = play.run();
        let first: Vec<_> = play.ended.iter().filter(|e| e.message.number == 1).collect();
        let served: BTreeSet<_> = first.iter().map(|ended| ended.device).collect();
        assert_eq!(served.len(), 300);
        let last = first.iter().map(|ended| ended.at).max().unwrap_or_default();
        assert!(last <= whole.to + PROBE_MAX + SECOND, "SEED={seed}: {last:?}");
        // Each device once by itself, and then once in half of the longest wait.
        let most = 300 * (1 + 600 / 15 + 2);
        assert!(play.attempts < most, "SEED={seed}: {} attempts", play.attempts);
    }
}
