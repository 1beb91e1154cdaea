//! Subscription Identifiers that stand for their topic filter: each is a hash of it. A message tells by
//! which subscription it came, and the filter of one that an earlier configuration made is found again
//! among all those that match the message's topic.

/// Filters with more levels than this are not looked for: they are too many.
const MAX_LEVELS: usize = 12;

/// The Subscription Identifier of a topic filter: from 1 to 268,435,455 [MQTT 5.0, 3.8.2.1.2], the same in
/// every version, since it outlives the process in the broker's session.
pub(super) fn of(filter: &str) -> u32 {
    filter.split('/').map(Level::of).fold(Level::START, Level::then).identifier()
}

/// The filters with this identifier that match the topic, for a member of one of these share groups; `None`
/// is no group. Nearly always there is one or none. Without an identifier they are all that match.
pub(super) fn filters(
    identifier: Option<u32>,
    topic: &str,
    groups: &[Option<&str>],
) -> Vec<String> {
    let levels: Vec<_> = topic.split('/').map(|text| (text, Level::of(text))).collect();
    let mut search = Search { identifier, levels, wild: Vec::new(), found: Vec::new() };
    for group in groups {
        let shared = ["$share", group.unwrap_or_default()].map(Level::of);
        let levels = if group.is_some() { &shared[..] } else { &[] };
        let start = levels.iter().copied().fold(Level::START, Level::then);
        search.below(*group, start);
    }
    search.found
}

/// The hash of a level, or of levels one after the other: FNV-1a, of text or of hashes of text.
#[derive(Clone, Copy)]
struct Level(u64);

impl Level {
    const START: Self = Self(0xCBF2_9CE4_8422_2325);

    fn of(text: &str) -> Self {
        text.bytes().fold(Self::START, Self::with)
    }

    fn with(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    }

    fn then(self, next: Self) -> Self {
        next.0.to_le_bytes().into_iter().fold(self, Self::with)
    }

    fn identifier(self) -> u32 {
        u32::try_from(self.0 % 268_435_455 + 1).expect("it is at most 268,435,455")
    }
}

/// Goes through the filters that match a topic, level by level.
struct Search<'t> {
    identifier: Option<u32>,
    /// Those of the topic, with their hashes.
    levels: Vec<(&'t str, Level)>,
    /// Which of them are `+` in the filter so far.
    wild: Vec<bool>,
    found: Vec<String>,
}

impl Search<'_> {
    /// Tries all filters that begin with the levels chosen so far.
    fn below(&mut self, group: Option<&str>, chosen: Level) {
        self.tries(group, chosen.then(Level::of("#")), Some("#"));
        let depth = self.wild.len();
        let Some((_, level)) = self.levels.get(depth).copied() else {
            return self.tries(group, chosen, None);
        };
        if depth == MAX_LEVELS {
            return;
        }
        for (wild, level) in [(false, level), (true, Level::of("+"))] {
            self.wild.push(wild);
            self.below(group, chosen.then(level));
            self.wild.pop();
        }
    }

    fn tries(&mut self, group: Option<&str>, chosen: Level, last: Option<&str>) {
        if self.identifier.is_some_and(|identifier| identifier != chosen.identifier()) {
            return;
        }
        let levels = self.levels.iter().zip(&self.wild);
        let levels = levels.map(|((text, _), wild)| if *wild { "+" } else { text });
        let filter = levels.chain(last).collect::<Vec<_>>().join("/");
        self.found.push(super::packet::path(&filter, group));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_never_change() {
        assert_eq!(of("v1/device/+/telemetry"), 61_305_708);
        assert_eq!(of("$share/gateways/#"), 254_627_120);
    }

    proptest! {
        /// Whatever filter brought a message, it is the one that is found.
        #[test]
        fn the_filter_that_brought_a_message_is_found(
            topic in proptest::collection::vec("[ab+#$]{0,2}|temperature", 1..8),
            wild in any::<u8>(),
            tail in proptest::option::of(0_usize..8),
            group in proptest::option::of("[gh]"),
        ) {
            let topic: Vec<_> = topic.iter().map(|level| level.replace(['+', '#'], "x")).collect();
            let level = |(index, level)| if wild >> index & 1 == 1 { "+" } else { level };
            let mut filter: Vec<&str> =
                topic.iter().map(String::as_str).enumerate().map(level).collect();
            if let Some(tail) = tail {
                filter.truncate(tail);
                filter.push("#");
            }
            let filter = crate::mqtt::packet::path(&filter.join("/"), group.as_deref());
            let groups = [None, Some("g"), Some("h")];
            let found = filters(Some(of(&filter)), &topic.join("/"), &groups);
            prop_assert_eq!(found, [filter]);
        }
    }

    #[test]
    fn what_cannot_have_brought_it_is_not_found() {
        let groups = [None, Some("g")];
        for filter in ["a/b", "b/+", "$share/h/a", "a/+", "+/+", ""] {
            assert!(filters(Some(of(filter)), "a", &groups).is_empty(), "{filter}");
        }
    }

    #[test]
    fn without_an_identifier_all_are_found() {
        let mut found = filters(None, "a/b", &[None]);
        found.sort_unstable();
        let all =
            ["#", "+/#", "+/+", "+/+/#", "+/b", "+/b/#", "a/#", "a/+", "a/+/#", "a/b", "a/b/#"];
        assert_eq!(found, all);
    }

    /// A topic may have 30,000 levels.
    #[test]
    fn of_a_deep_topic_the_first_levels_are_looked_at() {
        let deep = "a/".repeat(30_000);
        assert_eq!(filters(Some(of("a/+/#")), &deep, &[None]), ["a/+/#"]);
        assert!(filters(Some(of("x")), &deep, &[None]).is_empty());
    }
}
