//! Topic patterns: which topics a row listens on, and what their levels capture.
//!
//! A pattern is a topic in which some levels are names in braces, `v1/device/{device_id}/telemetry`.
//! Each name captures exactly one level; `{name...}`, the last one, captures all that are left, at least one, as one value.
//! As a subscription every name becomes `+`, and the last one of that kind `#` [MQTT-4.7.1].

mod index;
pub mod patterns;
pub mod sender;

use std::sync::Arc;

/// Longest topic that fits in a packet, in bytes [MQTT-4.7.3-3].
const MAX_TOPIC_BYTES: usize = 65_535;
/// Most levels of a topic that is published on: at some more, brokers end the connection.
const MAX_LEVELS: usize = 100;
/// What follows a name that captures all levels that are left.
const REST: &str = "...";

/// One level of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Literal(Box<str>),
    Capture(Arc<str>),
    /// All levels from here on.
    Rest(Arc<str>),
}

impl Level {
    fn parse(level: &str) -> Result<Self, String> {
        if level.contains(['+', '#']) {
            return Err(format!(
                "`{level}` is a wildcard; name the level instead, `{{device_id}}` for example, or all that are \
                 left, `{{device_id...}}`"
            ));
        }
        if !level.contains(['{', '}']) {
            return Ok(Self::Literal(level.into()));
        }
        let inside = level.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        match inside.map(|name| name.strip_suffix(REST).map_or((name, false), |name| (name, true)))
        {
            Some((name, false)) if is_name(name) => Ok(Self::Capture(name.into())),
            Some((name, true)) if is_name(name) => Ok(Self::Rest(name.into())),
            _ => Err(format!(
                "`{level}` is not a capture: one is a whole level, `{{name}}`, of letters, digits and `_`"
            )),
        }
    }

    /// The name that captures it.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Capture(name) | Self::Rest(name) => Some(name),
        }
    }
}

/// Whether some topic fits both. A rest is any number of levels here, also none, as `#` is.
fn overlap(one: &[Level], other: &[Level]) -> bool {
    match (one, other) {
        ([], []) => true,
        ([Level::Rest(_), after @ ..], _) => {
            overlap(after, other)
                || other.split_first().is_some_and(|(_, others)| overlap(one, others))
        }
        (_, [Level::Rest(_), ..]) => overlap(other, one),
        ([], _) | (_, []) => false,
        ([Level::Literal(a), ..], [Level::Literal(b), ..]) if a != b => false,
        ([_, ones @ ..], [_, others @ ..]) => overlap(ones, others),
    }
}

/// Whether all topics that fit the inner one fit the outer one.
fn covers(outer: &[Level], inner: &[Level]) -> bool {
    match (outer, inner) {
        ([Level::Rest(_)], _) | ([], []) => true,
        ([Level::Capture(_), outer @ ..], [Level::Capture(_) | Level::Literal(_), inner @ ..]) => {
            covers(outer, inner)
        }
        ([Level::Literal(a), outer @ ..], [Level::Literal(b), inner @ ..]) => {
            a == b && covers(outer, inner)
        }
        _ => false,
    }
}

/// A compiled topic pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    levels: Vec<Level>,
}

/// Which of the patterns that are subscribed to, in their order. Each row of the table has one, so it names a row as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatternIndex(pub usize);

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a topic pattern cannot be empty".to_owned());
        }
        if text.starts_with('$') {
            return Err("topics that begin with `$` belong to the broker".to_owned());
        }
        let levels: Vec<_> = text.split('/').map(Level::parse).collect::<Result<_, _>>()?;
        for (index, level) in levels.iter().enumerate() {
            let Some(name) = level.name() else { continue };
            if levels.iter().take(index).any(|earlier| earlier.name() == Some(name)) {
                return Err(format!("`{{{name}}}` is captured twice"));
            }
            if matches!(level, Level::Rest(_)) && index + 1 < levels.len() {
                return Err(format!(
                    "`{{{name}...}}` captures all levels that are left, so it can only be the last one"
                ));
            }
        }
        Ok(Self { text: text.into(), levels })
    }

    /// The topics that a template can become with what `on` captures, as a pattern: a level in which a name stands
    /// can be any level, and any number of them where the name captures as many. Without `on` each name is one level.
    pub fn of_template(text: &str, on: Option<&Self>) -> Self {
        let any: Arc<str> = "".into();
        let many = on.and_then(Self::rest).map(|name| format!("{{{name}}}"));
        let level = |level: &str| match &many {
            Some(many) if level.contains(&**many) => Level::Rest(any.clone()),
            _ if level.contains('{') => Level::Capture(any.clone()),
            _ => Level::Literal(level.into()),
        };
        Self { text: text.into(), levels: text.split('/').map(level).collect() }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The topic filter to subscribe to.
    pub fn filter(&self) -> String {
        let rest = self.levels.iter().position(|level| matches!(level, Level::Rest(_)));
        let levels = self.levels.iter().take(rest.map_or(self.levels.len(), |rest| rest + 1));
        let levels: Vec<&str> = levels
            .map(|level| match level {
                Level::Literal(text) => text,
                Level::Capture(_) => "+",
                Level::Rest(_) => "#",
            })
            .collect();
        levels.join("/")
    }

    /// The names of its captures, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().filter_map(Level::name)
    }

    /// The name that captures all levels that are left, if one does.
    pub fn rest(&self) -> Option<&str> {
        self.levels.iter().find(|level| matches!(level, Level::Rest(_))).and_then(Level::name)
    }

    /// Whether the pattern captures something under this name.
    pub fn captures(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    /// Which level is captured under this name, by its index.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.levels.iter().position(|level| level.name() == Some(name))
    }

    /// Whether this name captures the first level that is captured.
    pub fn begins_with(&self, name: &str) -> bool {
        self.names().next() == Some(name)
    }

    /// Whether this name captures the last level.
    pub fn ends_with(&self, name: &str) -> bool {
        self.levels.last().and_then(Level::name) == Some(name)
    }

    /// Whether a topic matches.
    pub fn fits(&self, topic: &str) -> bool {
        let mut left = Some(topic);
        for level in &self.levels {
            let Some(topic) = left else { return false };
            let (text, after) = first_level(topic);
            match level {
                Level::Literal(literal) if **literal != *text => return false,
                Level::Literal(_) | Level::Capture(_) => left = after,
                Level::Rest(_) => return true,
            }
        }
        left.is_none()
    }

    /// Matches a topic; the captured levels if it fits.
    pub fn matches(&self, topic: &str) -> Option<Captures> {
        self.fits(topic).then(|| self.captured(topic))
    }

    /// The captured levels of a topic that fits.
    fn captured(&self, topic: &str) -> Captures {
        let mut captures = Vec::with_capacity(self.names().count());
        let mut left = topic;
        for level in &self.levels {
            let (text, after) = first_level(left);
            match level {
                Level::Literal(_) => {}
                Level::Capture(name) => captures.push((name.clone(), text.into())),
                Level::Rest(name) => captures.push((name.clone(), left.into())),
            }
            left = after.unwrap_or_default();
        }
        Captures(captures)
    }

    /// Whether its subscription brings this topic although it does not match: `a/#` brings what is sent on `a`
    /// [MQTT-4.7.1-2].
    pub fn brings_beside(&self, topic: &str) -> bool {
        let Some((Level::Rest(_), levels)) = self.levels.split_last() else { return false };
        let count = topic.split('/').count();
        count == levels.len()
            && levels.iter().zip(topic.split('/')).all(|(level, text)| match level {
                Level::Literal(literal) => **literal == *text,
                Level::Capture(_) | Level::Rest(_) => true,
            })
    }

    /// Whether a broker would deliver some topic for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        overlap(&self.levels, &other.levels)
    }

    /// Whether whatever a broker would deliver for the other one it would deliver for this one too.
    pub fn covers(&self, inner: &Self) -> bool {
        covers(&self.levels, &inner.levels)
    }

    /// Whether the other one matches some topic below the first `levels` levels of this one.
    pub fn leads_to(&self, levels: usize, other: &Self) -> bool {
        let mut below: Vec<_> = self.levels.iter().take(levels).cloned().collect();
        below.push(Level::Rest("".into()));
        overlap(&below, &other.levels)
    }

    /// Whether the first `levels` levels of both are the same, and none of them is a rest.
    pub fn begins_like(&self, levels: usize, other: &Self) -> bool {
        let (Some(own), Some(others)) = (self.levels.get(..levels), other.levels.get(..levels))
        else {
            return false;
        };
        own == others && !own.iter().any(|level| matches!(level, Level::Rest(_)))
    }

    /// So many first levels of a topic that matches; a rest is one.
    pub fn first_levels<'t>(&self, topic: &'t str, levels: usize) -> Option<&'t str> {
        if matches!(self.levels.get(levels.checked_sub(1)?)?, Level::Rest(_)) {
            return Some(topic);
        }
        let end = topic.match_indices('/').nth(levels - 1).map_or(topic.len(), |(end, _)| end);
        topic.get(..end)
    }

    /// The topic that it becomes with these values; `None` where a name has none.
    pub fn filled(&self, captures: &Captures) -> Option<String> {
        let levels: Option<Vec<&str>> = self
            .levels
            .iter()
            .map(|level| match level {
                Level::Literal(text) => Some(&**text),
                Level::Capture(name) | Level::Rest(name) => captures.get(name),
            })
            .collect();
        Some(levels?.join("/"))
    }
}

/// The levels of one topic that a pattern captured, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captures(Vec<(Arc<str>, Arc<str>)>);

impl Captures {
    /// What is captured under this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| **n == *name).map(|(_, level)| &**level)
    }

    /// Every captured level with its name, in the order of the topic.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, level)| (&**name, &**level))
    }

    /// What is captured under this name, behind what is captured before it.
    pub fn up_to(&self, name: &str) -> Option<Arc<str>> {
        let at = self.0.iter().position(|(n, _)| **n == *name)?;
        match self.0.get(..=at)? {
            [(_, only)] => Some(only.clone()),
            levels => {
                let levels: Vec<&str> = levels.iter().map(|(_, level)| &**level).collect();
                Some(levels.join("/").into())
            }
        }
    }
}

/// The first level of a topic, and those behind it, if there are any. Levels are short: to look at each byte takes less
/// than a search that is made for long texts.
fn first_level(topic: &str) -> (&str, Option<&str>) {
    let end = topic.bytes().position(|byte| byte == b'/');
    let (level, rest) = topic.split_at(end.unwrap_or(topic.len()));
    (level, rest.strip_prefix('/'))
}

/// All levels of a topic.
fn levels(topic: &str) -> impl Iterator<Item = &str> {
    let mut left = Some(topic);
    std::iter::from_fn(move || {
        let (level, rest) = first_level(left?);
        left = rest;
        Some(level)
    })
}

/// A name that may stand in braces: letters, digits and `_`.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether the gateway may publish on this topic: a legal topic name [MQTT-3.3.2-2] outside `$`,
/// without what makes brokers end the connection: control characters, too many levels.
pub fn is_publishable(topic: &str) -> bool {
    !topic.is_empty()
        && topic.len() <= MAX_TOPIC_BYTES
        && !topic.starts_with('$')
        && topic.split('/').count() <= MAX_LEVELS
        && !topic.contains(|c: char| matches!(c, '+' | '#') || c.is_control())
}

#[cfg(test)]
mod tests;
