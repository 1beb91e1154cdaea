//! Lines of the log that repeat: the first few of a kind are written at once, then one of them a
//! minute and how many there were.
//!
//! A kind is a place in the code, a row and a reason, never a device: the number of kinds is bounded.
//! Metrics count every single one all the same.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// How many of a kind are written before they are summed up.
const FIRST: u64 = 10;
/// How long they are summed up for.
const WINDOW: Duration = Duration::from_mins(1);
/// How many kinds are told apart; all further ones are one.
const MAX_KINDS: usize = 500;

/// What makes two lines the same kind, and what is said of it when it is summed up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Kind {
    /// The place in the code.
    pub place: &'static str,
    /// What the line says.
    pub text: String,
    /// The row.
    pub row: String,
    /// The reason, in one word.
    pub reason: String,
}

/// Lines that were not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    /// What makes them one kind.
    pub kind: Kind,
    /// How many lines were counted and not written.
    pub more: u64,
}

/// Counts lines.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    kinds: HashMap<Kind, Run>,
}

#[derive(Debug)]
struct Run {
    since: Instant,
    /// Lines that came in this window.
    came: u64,
    /// How many of them were written.
    written: u64,
}

impl Repeats {
    /// Whether a line of this kind is written now.
    pub(crate) fn admit(&mut self, kind: Kind, now: Instant) -> bool {
        let full = self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&kind);
        let kind =
            if full { Kind { text: "other lines".to_owned(), ..Kind::default() } } else { kind };
        let run = self.kinds.entry(kind).or_insert(Run { since: now, came: 0, written: FIRST });
        run.came += 1;
        run.came <= run.written
    }

    /// What was kept back in windows that have ended. A kind of which nothing came is forgotten.
    pub(crate) fn summaries(&mut self, now: Instant) -> Vec<Summary> {
        let mut summaries = Vec::new();
        self.kinds.retain(|kind, run| {
            if now.duration_since(run.since) < WINDOW {
                return true;
            }
            let more = run.came.saturating_sub(run.written);
            if more > 0 {
                summaries.push(Summary { kind: kind.clone(), more });
            }
            let goes_on = run.came > 0;
            // Of what goes on and on one line a window is enough, as an example.
            let written = if more > 0 || run.written == 1 { 1 } else { FIRST };
            *run = Run { since: now, came: 0, written };
            goes_on
        });
        summaries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(row: &str) -> Kind {
        Kind { place: "here", row: row.to_owned(), ..Kind::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_few_then_one_a_minute_and_the_sum() {
        let mut repeats = Repeats::default();
        let flood = |repeats: &mut Repeats, count| {
            (0..count).filter(|_| repeats.admit(kind("a"), Instant::now())).count() as u64
        };
        assert_eq!(flood(&mut repeats, 5000), FIRST);
        assert!(repeats.admit(kind("b"), Instant::now()), "another row is another kind");
        assert_eq!(repeats.summaries(Instant::now()), [], "the minute is not over");

        tokio::time::advance(WINDOW).await;
        let summary = |more| [Summary { kind: kind("a"), more }];
        assert_eq!(repeats.summaries(Instant::now()), summary(5000 - FIRST));
        assert_eq!(flood(&mut repeats, 3000), 1);
        tokio::time::advance(WINDOW).await;
        assert_eq!(repeats.summaries(Instant::now()), summary(2999));

        // None came for a minute: the next ones are written at once again.
        tokio::time::advance(WINDOW).await;
        assert_eq!(repeats.summaries(Instant::now()), []);
        assert_eq!(flood(&mut repeats, 5000), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_written_whole() {
        let mut repeats = Repeats::default();
        for _ in 0..100 {
            assert!(repeats.admit(kind("a"), Instant::now()));
            tokio::time::advance(WINDOW / 5).await;
            assert_eq!(repeats.summaries(Instant::now()), []);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_are_bounded_and_nothing_goes_uncounted() {
        let mut repeats = Repeats::default();
        let written = (0..5000).filter(|n| repeats.admit(kind(&n.to_string()), Instant::now()));
        let written = written.count();
        assert!(repeats.kinds.len() <= MAX_KINDS + 1);
        tokio::time::advance(WINDOW).await;
        let more: u64 = repeats.summaries(Instant::now()).iter().map(|s| s.more).sum();
        assert_eq!(written as u64 + more, 5000);
    }
}
