//! Which row a topic belongs to, and what is subscribed to for all of them.
//!
//! One row's pattern may lie inside another's: the inner one has what it matches, and only the outer one is subscribed
//! to, so that nothing arrives twice, alone or in a share group.

use std::sync::Arc;

use super::{Captures, Pattern, PatternIndex, index::LevelIndex, sender::Sender};

/// The patterns of all rows, each with who sends there.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    rows: Vec<(Pattern, Sender)>,
    /// All rows, each before those that it lies in.
    inner_first: Vec<PatternIndex>,
    /// The same, found by a level of a topic.
    index: LevelIndex,
    /// Those that lie in no other.
    outermost: Vec<Pattern>,
    /// Those that do.
    inner: Vec<Pattern>,
    /// What is below a sender's own levels is not everywhere its own.
    is_mixed: bool,
}

impl Patterns {
    /// Those of these rows, which are found again by their index.
    pub fn new(rows: Vec<(Pattern, Sender)>) -> Self {
        // Who covers another one covers more rows than that one does.
        let covered = |at: usize| rows.iter().filter(|(on, _)| rows[at].0.covers(on)).count();
        let mut inner_first: Vec<usize> = (0..rows.len()).collect();
        inner_first.sort_by_cached_key(|at| covered(*at));
        let (mut outermost, mut inner) = (Vec::new(), Vec::new());
        for at in inner_first.iter().rev() {
            let on = &rows[*at].0;
            match outermost.iter().map(|outer: &usize| &rows[*outer].0).find(|o| o.covers(on)) {
                None => outermost.push(*at),
                Some(outer) if !on.covers(outer) => inner.push(on.clone()),
                // The same filter.
                Some(_) => {}
            }
        }
        outermost.sort_unstable();
        let outermost = outermost.into_iter().map(|at| rows[at].0.clone()).collect();
        let is_mixed = rows.iter().any(|a| rows.iter().any(|b| hears_others(a, b)));
        let index = LevelIndex::new(inner_first.iter().map(|at| &rows[*at].0));
        let inner_first = inner_first.into_iter().map(PatternIndex).collect();
        Self { rows, inner_first, index, outermost, inner, is_mixed }
    }

    /// The row that a topic belongs to, and what its pattern captures.
    pub fn find(&self, topic: &str) -> Option<(PatternIndex, Captures)> {
        let at = |rank: usize| self.row(*self.inner_first.get(rank)?);
        let fits = |rank| at(rank).is_some_and(|(on, _)| on.fits(topic));
        let rank = self.index.first(topic, fits)?;
        Some((*self.inner_first.get(rank)?, at(rank)?.0.captured(topic)))
    }

    /// Who sends on the topics of a row.
    pub fn sender(&self, row: PatternIndex, captures: &Captures) -> Option<Arc<str>> {
        self.row(row)?.1.of(captures)
    }

    fn row(&self, PatternIndex(row): PatternIndex) -> Option<&(Pattern, Sender)> {
        self.rows.get(row)
    }

    /// Whether what is below a sender's own levels can be another one's.
    pub fn is_mixed(&self) -> bool {
        self.is_mixed
    }

    /// Whether another one than `device` sends on this topic.
    pub fn is_anothers(&self, topic: &str, device: &str) -> bool {
        self.is_mixed
            && self.find(topic).is_some_and(|(row, captures)| {
                self.sender(row, &captures).as_deref() != Some(device)
            })
    }

    /// The row that this one lies in most closely.
    pub fn outer(&self, row: PatternIndex) -> Option<PatternIndex> {
        let on = &self.row(row)?.0;
        let mut others = self.inner_first.iter().filter(|other| **other != row);
        others.find(|other| self.row(**other).is_some_and(|(other, _)| other.covers(on))).copied()
    }

    /// All rows, each before those that it lies in.
    pub fn inner_first(&self) -> &[PatternIndex] {
        &self.inner_first
    }

    /// What is subscribed to.
    pub fn outermost(&self) -> &[Pattern] {
        &self.outermost
    }

    /// What comes by the subscriptions of others.
    pub fn inner(&self) -> &[Pattern] {
        &self.inner
    }

    /// Whether a topic of no row comes all the same: `a/#` brings what is sent on `a` [MQTT-4.7.1-2].
    pub fn brings_beside(&self, topic: &str) -> bool {
        self.rows.iter().any(|(on, _)| on.brings_beside(topic))
    }
}

/// Whether the second row takes messages of another sender on topics below the levels of a sender of the first.
fn hears_others((on, sender): &(Pattern, Sender), (other, others): &(Pattern, Sender)) -> bool {
    let Some(levels) = sender.levels(on) else { return false };
    let is_same =
        sender == others && others.levels(other) == Some(levels) && on.begins_like(levels, other);
    !is_same && on.leads_to(levels, other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(rows: &[(&str, &str)]) -> Patterns {
        let row = |(on, device): &(&str, &str)| {
            let sender = match *device {
                "" => Sender::Captured("device".into()),
                text => Sender::made(text).unwrap(),
            };
            (Pattern::parse(on).unwrap(), sender)
        };
        Patterns::new(rows.iter().map(row).collect())
    }

    fn filters(patterns: &[Pattern]) -> Vec<String> {
        patterns.iter().map(Pattern::filter).collect()
    }

    #[test]
    fn the_inner_row_wins_and_the_outer_one_is_subscribed_to() {
        let rows = patterns(&[
            ("z/{device...}", ""),
            ("z/bridge/{device...}", ""),
            ("z/bridge/log/{device}", ""),
            ("other/{device}", ""),
            ("z", "all"),
        ]);
        let row = |topic| rows.find(topic).map(|(PatternIndex(row), _)| row);
        for (topic, expected) in [
            ("z/a", Some(0)),
            ("z/a/b", Some(0)),
            ("z/bridge", Some(0)),
            ("z/bridge/state", Some(1)),
            ("z/bridge/log/x", Some(2)),
            ("z/bridge/log/x/y", Some(1)),
            ("other/a", Some(3)),
            ("z", Some(4)),
            ("other", None),
        ] {
            assert_eq!(row(topic), expected, "{topic}");
        }
        assert_eq!(filters(rows.outermost()), ["z/#", "other/+"]);
        let mut inner = filters(rows.inner());
        inner.sort();
        assert_eq!(inner, ["z", "z/bridge/#", "z/bridge/log/+"]);
        let outer = |row| rows.outer(PatternIndex(row)).map(|PatternIndex(row)| row);
        assert_eq!([outer(0), outer(1), outer(2), outer(3)], [None, Some(0), Some(1), None]);
    }

    #[test]
    fn equal_filters_are_subscribed_to_once_and_never_ended() {
        let rows = patterns(&[("d/{device}/x", ""), ("d/{device}/x", ""), ("d/{other}/x", "a")]);
        assert_eq!(filters(rows.outermost()), ["d/+/x"]);
        assert!(rows.inner().is_empty());
    }

    #[test]
    fn a_subscription_brings_the_level_above_which_no_row_takes() {
        let rows = patterns(&[("a/{device}/{rest...}", ""), ("b/{device}", "")]);
        assert!(rows.brings_beside("a/x") && rows.find("a/x").is_none());
        for topic in ["a", "a/x/y", "b", "x/y"] {
            assert!(!rows.brings_beside(topic), "{topic}");
        }
    }

    #[test]
    fn below_a_sender_another_one_may_speak() {
        // No other one may where every row names the device by the same levels.
        let alike = patterns(&[("d/{device}/a", ""), ("d/{device}/b/{what...}", "")]);
        assert!(!alike.is_mixed && !alike.is_anothers("d/d2/a", "d1"));
        let rows =
            patterns(&[("z/{device...}", ""), ("y/{device}/a", ""), ("y/{site}/{device}/b", "")]);
        for (topic, device, anothers) in [
            ("z/a/b", "a", true),
            ("z/a/b", "a/b", false),
            ("y/d1/a", "d1", false),
            ("y/d1/d2/b", "d1", true),
            ("y/d1/answers", "d1", false),
        ] {
            assert_eq!(rows.is_anothers(topic, device), anothers, "{topic} {device}");
        }
        assert!(
            patterns(&[("d/{device}/a", ""), ("d/{user}/b", "all")]).is_anothers("d/d1/b", "d1")
        );
    }
}
