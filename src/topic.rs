//! Topic patterns: which topics a row listens on, and what their levels capture.
//!
//! A pattern is a topic in which some levels are names in braces, `v1/device/{device_id}/telemetry`.
//! Each name captures exactly one level. As a subscription every name becomes `+` [MQTT-4.7.1-2].

use std::sync::Arc;

/// Longest topic that fits in a packet, in bytes [MQTT-4.7.3-3].
const MAX_TOPIC_BYTES: usize = 65_535;

/// One level of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Literal(Box<str>),
    Capture(Arc<str>),
}

/// A compiled topic pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    levels: Vec<Level>,
}

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
        let mut levels = Vec::new();
        for level in text.split('/') {
            if level.contains(['+', '#']) {
                return Err(format!(
                    "`{level}` is a wildcard; name the level instead, for example `{{device_id}}`"
                ));
            }
            match level.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(name) if is_name(name) => {
                    let name: Arc<str> = name.into();
                    if levels.contains(&Level::Capture(name.clone())) {
                        return Err(format!("`{{{name}}}` is captured twice"));
                    }
                    levels.push(Level::Capture(name));
                }
                None if !level.contains(['{', '}']) => levels.push(Level::Literal(level.into())),
                _ => {
                    return Err(format!(
                        "`{level}` is not a capture: one is a whole level, `{{name}}`, of letters, \
                         digits and `_`"
                    ));
                }
            }
        }
        Ok(Self { text: text.into(), levels })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The topic filter to subscribe to.
    pub fn filter(&self) -> String {
        let levels: Vec<&str> = self
            .levels
            .iter()
            .map(|level| match level {
                Level::Literal(text) => text,
                Level::Capture(_) => "+",
            })
            .collect();
        levels.join("/")
    }

    /// Whether the pattern captures a level under this name.
    pub fn captures(&self, name: &str) -> bool {
        self.levels.iter().any(|level| matches!(level, Level::Capture(n) if **n == *name))
    }

    /// Matches a topic; the captured levels if it fits.
    pub fn matches(&self, topic: &str) -> Option<Captures> {
        let mut captures = Vec::new();
        let mut levels = self.levels.iter();
        for text in topic.split('/') {
            match levels.next()? {
                Level::Literal(literal) if **literal == *text => {}
                Level::Literal(_) => return None,
                Level::Capture(name) => captures.push((name.clone(), text.into())),
            }
        }
        levels.next().is_none().then_some(Captures(captures))
    }

    /// Whether some topic matches both patterns.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.levels.len() == other.levels.len()
            && self.levels.iter().zip(&other.levels).all(|pair| match pair {
                (Level::Literal(a), Level::Literal(b)) => a == b,
                _ => true,
            })
    }

    /// The part of a matching `topic` that belongs to one sender: everything up to and with the
    /// level captured as `name`, and the `/` behind it. `v1/device/d1/` for the shipped table.
    pub fn subtree<'t>(&self, topic: &'t str, name: &str) -> Option<&'t str> {
        let depth = self
            .levels
            .iter()
            .position(|level| matches!(level, Level::Capture(n) if **n == *name))?;
        let (end, _) = topic.match_indices('/').nth(depth)?;
        topic.get(..=end)
    }
}

/// The levels of one topic that a pattern captured, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captures(Vec<(Arc<str>, Box<str>)>);

impl Captures {
    /// The level captured under this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| **n == *name).map(|(_, level)| &**level)
    }
}

/// A name that may stand in braces: letters, digits and `_`.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether the gateway may publish on this topic: a legal topic name [MQTT-3.3.2-2] outside `$`,
/// without control characters, at which brokers cut the connection.
pub fn is_publishable(topic: &str) -> bool {
    !topic.is_empty()
        && topic.len() <= MAX_TOPIC_BYTES
        && !topic.starts_with('$')
        && !topic.contains(|c: char| matches!(c, '+' | '#') || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn captures_whole_levels_and_nothing_else() {
        let telemetry = pattern("v1/device/{device_id}/telemetry");
        let captures = telemetry.matches("v1/device/d1/telemetry").unwrap();
        assert_eq!(captures.get("device_id"), Some("d1"));
        assert_eq!(captures.get("other"), None);
        assert_eq!(telemetry.filter(), "v1/device/+/telemetry");
        for other in ["v1/device/d1", "v1/device/d1/telemetry/x", "v1/device/d1/config", ""] {
            assert_eq!(telemetry.matches(other), None, "{other}");
        }
        assert_eq!(telemetry.matches("v1/device//telemetry").unwrap().get("device_id"), Some(""));
    }

    #[test]
    fn overlap_is_seen_through_captures() {
        let a = pattern("v1/{kind}/{id}/config");
        assert!(a.overlaps(&pattern("v1/device/{id}/config")));
        assert!(!a.overlaps(&pattern("v1/device/{id}/update")));
        assert!(!a.overlaps(&pattern("v1/device/{id}/config/update")));
    }

    #[test]
    fn subtree_ends_behind_the_device() {
        let config = pattern("v1/device/{device_id}/config/update");
        assert_eq!(
            config.subtree("v1/device/d1/config/update", "device_id"),
            Some("v1/device/d1/")
        );
        assert_eq!(config.subtree("v1/device/d1/config/update", "site"), None);
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (text, hint) in [
            ("", "empty"),
            ("$SYS/x", "broker"),
            ("v1/+/x", "{device_id}"),
            ("v1/#", "{device_id}"),
            ("v1/d{id}/x", "whole level"),
            ("v1/{}/x", "whole level"),
            ("v1/{a}/{a}", "twice"),
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn only_plain_topics_are_published_on() {
        assert!(is_publishable("v1/device/d1/config"));
        for topic in ["", "$SYS/x", "v1/+/x", "v1/#", "v1/a\u{7}b", &"x".repeat(70_000)] {
            assert!(!is_publishable(topic), "{topic:.20}");
        }
    }
}
