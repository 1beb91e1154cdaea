//! Finds the rows that a topic may belong to without a look at every row: by a level that few rows have in common.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::FixedState;

use super::{Level, Pattern, levels};

/// Where a row stands among all, each before those that it lies in.
pub(super) type Rank = usize;

/// Rows by a level. The seed is fixed, so that equal tables look equal: what stands in here is the configuration's.
type Texts = HashMap<Box<str>, Vec<Rank>, FixedState>;

/// The rows by one literal level of each: the one that the fewest others have at that place.
#[derive(Debug, Clone, Default)]
pub(super) struct LevelIndex {
    /// By the place of that level in a topic, and by the level, the rows in their order.
    by_level: BTreeMap<usize, Texts>,
    /// Rows without a literal level.
    others: Vec<Rank>,
}

/// The literal levels of a pattern, with their places.
fn literals(pattern: &Pattern) -> impl Iterator<Item = (usize, &str)> {
    pattern.levels.iter().enumerate().filter_map(|(place, level)| match level {
        Level::Literal(text) => Some((place, &**text)),
        Level::Capture(_) | Level::Rest(_) => None,
    })
}

impl LevelIndex {
    /// Of these patterns, in the order of their ranks.
    pub(super) fn new<'p>(patterns: impl Iterator<Item = &'p Pattern> + Clone) -> Self {
        let mut rows: BTreeMap<(usize, &str), usize> = BTreeMap::new();
        for level in patterns.clone().flat_map(literals) {
            *rows.entry(level).or_default() += 1;
        }
        let mut index = Self::default();
        for (rank, pattern) in patterns.enumerate() {
            let rarest = literals(pattern).min_by_key(|level| rows.get(level));
            let Some((place, text)) = rarest else {
                index.others.push(rank);
                continue;
            };
            let at_place = index.by_level.entry(place).or_default();
            at_place.entry(text.into()).or_default().push(rank);
        }
        index
    }

    /// The first row that fits, of those that a topic may belong to.
    pub(super) fn first(&self, topic: &str, fits: impl Fn(Rank) -> bool) -> Option<Rank> {
        let mut levels = levels(topic).enumerate();
        let at_places = self.by_level.iter().filter_map(|(place, by_text)| {
            let (_, text) = levels.find(|(at, _)| at == place)?;
            by_text.get(text)
        });
        let mut first: Option<Rank> = None;
        for ranks in at_places.chain([&self.others]) {
            let earlier = ranks.iter().take_while(|rank| first.is_none_or(|first| **rank < first));
            first = earlier.copied().find(|rank| fits(*rank)).or(first);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_a_look_at_every_row_finds() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (mut found, mut lost) = (0, 0);
        for _ in 0..2000 {
            let level = |rng: &mut fastrand::Rng, place: usize, last: bool| match rng.u8(0..8) {
                0 | 1 => format!("{{n{place}}}"),
                2 if last => format!("{{n{place}...}}"),
                _ => ["a", "b", "c", "d"][rng.usize(0..4)].to_owned(),
            };
            let patterns: Vec<Pattern> = (0..rng.usize(1..30))
                .map(|_| {
                    let depth = rng.usize(1..5);
                    let levels: Vec<_> = (0..depth)
                        .map(|place| level(&mut rng, place, place + 1 == depth))
                        .collect();
                    Pattern::parse(&levels.join("/")).unwrap()
                })
                .collect();
            let index = LevelIndex::new(patterns.iter());
            for _ in 0..20 {
                let depth = rng.usize(1..6);
                let levels: Vec<_> =
                    (0..depth).map(|_| ["a", "b", "c", "d", "e", ""][rng.usize(0..6)]).collect();
                let topic = levels.join("/");
                let fits = |rank: usize| patterns[rank].fits(&topic);
                let scanned = (0..patterns.len()).find(|rank| fits(*rank));
                assert_eq!(index.first(&topic, fits), scanned, "{topic} in {patterns:?}");
                *(if scanned.is_some() { &mut found } else { &mut lost }) += 1;
            }
        }
        assert!(found > 5000 && lost > 5000, "{found} found, {lost} not");
    }

    #[test]
    fn a_row_of_many_is_found_by_a_look_at_one() {
        let patterns: Vec<Pattern> = (0..500)
            .map(|n| Pattern::parse(&format!("v1/device/{{id}}/telemetry_{n}")).unwrap())
            .collect();
        let index = LevelIndex::new(patterns.iter());
        let looks = std::cell::Cell::new(0);
        let fits = |rank: usize| {
            looks.set(looks.get() + 1);
            patterns[rank].fits("v1/device/x/telemetry_499")
        };
        assert_eq!(index.first("v1/device/x/telemetry_499", fits), Some(499));
        assert_eq!(looks.get(), 1);
    }
}
