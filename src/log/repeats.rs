//! Sums up lines of the log that repeat. The first few lines of a kind are written at once; after them one line a
//! minute is written, and how many there were.
//!
//! A kind is a place in the code, a row and a reason, but never a device, so that the number of kinds is bounded.
//! The metrics count every event, whether its line is written or not.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// How many lines of a kind are written before the rest is summed up.
const FIRST: u64 = 10;
/// How much time one summary covers.
const PERIOD: Duration = Duration::from_mins(1);
/// How many kinds are counted separately; all further ones share one count.
const MAX_KINDS: usize = 500;

/// What two lines of the same kind have in common. The summary shows the text, the row and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Kind {
    /// The place in the code that writes the line.
    pub place: &'static str,
    /// The message, without its fields.
    pub text: String,
    /// The row of the table, if the line names one.
    pub row: String,
    /// The reason, if the line has one: a code such as `deadline`.
    pub reason: String,
}

/// Lines that were not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Their kind.
    pub kind: Kind,
    /// How many there were.
    pub more: u64,
}

/// Counts lines by kind, and decides which are written.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    kinds: HashMap<Kind, Count>,
}

#[derive(Debug)]
struct Count {
    /// When the current period began.
    since: Instant,
    /// Lines in this period.
    lines: u64,
    /// How many of them may be written; the rest is summed up.
    limit: u64,
}

impl Repeats {
    /// Whether a line of this kind is written now.
    pub(crate) fn admit(&mut self, kind: Kind, now: Instant) -> bool {
        let full = self.kinds.len() >= MAX_KINDS && !self.kinds.contains_key(&kind);
        let kind =
            if full { Kind { text: "other lines".to_owned(), ..Kind::default() } } else { kind };
        let count = self.kinds.entry(kind).or_insert(Count { since: now, lines: 0, limit: FIRST });
        count.lines += 1;
        count.lines <= count.limit
    }

    /// The summaries of the periods that have ended. A kind without a line in its period is forgotten.
    pub(crate) fn summaries(&mut self, now: Instant) -> Vec<Summary> {
        let mut summaries = Vec::new();
        self.kinds.retain(|kind, count| {
            if now.duration_since(count.since) < PERIOD {
                return true;
            }
            let more = count.lines.saturating_sub(count.limit);
            if more > 0 {
                summaries.push(Summary { kind: kind.clone(), more });
            }
            let repeats = count.lines > 0;
            // A kind that goes on repeating is written once in each period, as an example.
            let limit = if more > 0 || count.limit == 1 { 1 } else { FIRST };
            *count = Count { since: now, lines: 0, limit };
            repeats
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

        tokio::time::advance(PERIOD).await;
        let summary = |more| [Summary { kind: kind("a"), more }];
        assert_eq!(repeats.summaries(Instant::now()), summary(5000 - FIRST));
        assert_eq!(flood(&mut repeats, 3000), 1);
        tokio::time::advance(PERIOD).await;
        assert_eq!(repeats.summaries(Instant::now()), summary(2999));

        // None came for a minute: the next ones are written at once again.
        tokio::time::advance(PERIOD).await;
        assert_eq!(repeats.summaries(Instant::now()), []);
        assert_eq!(flood(&mut repeats, 5000), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn rows_and_reasons_that_come_mixed_are_summed_up_each() {
        let mut repeats = Repeats::default();
        let rows = ["a", "b", "c"];
        let reasons = ["deadline", "bad_payload"];
        let kinds = || {
            rows.iter().flat_map(|row| {
                reasons.iter().map(|reason| Kind { reason: (*reason).to_owned(), ..kind(row) })
            })
        };
        for minute in 0..3_u64 {
            let mut written = 0;
            for _ in 0..100 {
                written += kinds().filter(|k| repeats.admit(k.clone(), Instant::now())).count();
            }
            let each = if minute == 0 { FIRST } else { 1 };
            assert_eq!(written as u64, 6 * each, "minute {minute}");
            tokio::time::advance(PERIOD).await;
            let mut summaries = repeats.summaries(Instant::now());
            summaries.sort_by_key(|s| (s.kind.row.clone(), s.kind.reason.clone()));
            let mut expected: Vec<_> =
                kinds().map(|kind| Summary { kind, more: 100 - each }).collect();
            expected.sort_by_key(|s| (s.kind.row.clone(), s.kind.reason.clone()));
            assert_eq!(summaries, expected, "minute {minute}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_written_whole() {
        let mut repeats = Repeats::default();
        for _ in 0..100 {
            assert!(repeats.admit(kind("a"), Instant::now()));
            tokio::time::advance(PERIOD / 5).await;
            assert_eq!(repeats.summaries(Instant::now()), []);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_are_bounded_and_nothing_goes_uncounted() {
        let mut repeats = Repeats::default();
        let written = (0..5000).filter(|n| repeats.admit(kind(&n.to_string()), Instant::now()));
        let written = written.count();
        assert!(repeats.kinds.len() <= MAX_KINDS + 1);
        tokio::time::advance(PERIOD).await;
        let more: u64 = repeats.summaries(Instant::now()).iter().map(|s| s.more).sum();
        assert_eq!(written as u64 + more, 5000);
    }
}
