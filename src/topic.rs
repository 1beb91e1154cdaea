//! Topic patterns: which topics a row listens on, and what their levels capture.
//!
//! A pattern is a topic in which some levels are names in braces, `v1/device/{device_id}/telemetry`.
//! Each name captures exactly one level. As a subscription every name becomes `+` [MQTT-4.7.1-2].

use std::sync::Arc;

/// Longest topic that fits in a packet, in bytes [MQTT-4.7.3-3].
const MAX_TOPIC_BYTES: usize = 65_535;
/// Most levels of a topic that is published on: at some more, brokers end the connection.
const MAX_LEVELS: usize = 100;

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

    /// The topics that a template of captures can become, as a pattern: every level in which a name stands can be
    /// any level.
    pub fn of_template(text: &str) -> Self {
        let any: Arc<str> = "".into();
        let level = |level: &str| {
            if level.contains('{') {
                Level::Capture(any.clone())
            } else {
                Level::Literal(level.into())
            }
        };
        let levels = text.split('/').map(level);
        Self { text: text.into(), levels: levels.collect() }
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

    /// Whether this name captures the first level that is captured.
    pub fn begins_with(&self, name: &str) -> bool {
        let first = self.levels.iter().find_map(|level| match level {
            Level::Capture(name) => Some(&**name),
            Level::Literal(_) => None,
        });
        first == Some(name)
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

    /// What is below the part of a matching `topic` that belongs to one sender, which is everything up to and
    /// with the level captured as `name`: `v1/device/d1` for the shipped table. `None` where `other` is not
    /// below it.
    pub fn below<'o>(&self, topic: &str, name: &str, other: &'o str) -> Option<&'o str> {
        other.strip_prefix(self.own(topic, name)?)?.strip_prefix('/')
    }

    /// The part of a matching `topic` that belongs to its sender.
    pub fn own<'t>(&self, topic: &'t str, name: &str) -> Option<&'t str> {
        let depth = self
            .levels
            .iter()
            .position(|level| matches!(level, Level::Capture(n) if **n == *name))?;
        let end = topic.match_indices('/').nth(depth).map_or(topic.len(), |(end, _)| end);
        topic.get(..end)
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

    /// Every captured level with its name, in the order of the topic.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, level)| (&**name, &**level))
    }

    /// Who is meant where the level captured under this name names the sender: that level, behind those
    /// captured before it. A `temp` of one site is not the `temp` of another: `north/temp`.
    pub fn sender(&self, name: &str) -> Option<Arc<str>> {
        let at = self.0.iter().position(|(n, _)| **n == *name)?;
        match self.0.get(..=at)? {
            [(_, only)] => Some(Arc::from(&**only)),
            levels => {
                let levels: Vec<&str> = levels.iter().map(|(_, level)| &**level).collect();
                Some(levels.join("/").into())
            }
        }
    }
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
    fn where_a_template_leads_is_seen_before_it_is_filled_in() {
        let leads = |template, on| Pattern::of_template(template).overlaps(&pattern(on));
        assert!(leads("v1/{a}/x-{b}", "v1/{id}/x-1") && leads("v1/a", "v1/{id}"));
        assert!(!leads("v1/{a}", "v2/{id}") && !leads("v1/{a}", "v1/{id}/x"));
    }

    #[test]
    fn what_belongs_to_a_device_is_whole_levels() {
        let config = pattern("v1/device/{device_id}/config/update");
        let topic = "v1/device/d1/config/update";
        let below = |other| config.below(topic, "device_id", other);
        assert_eq!(config.own(topic, "device_id"), Some("v1/device/d1"));
        assert_eq!(below("v1/device/d1/a/b"), Some("a/b"));
        for other in ["v1/device/d1", "v1/device/d10/a", "v1/device/d2/a", "a"] {
            assert_eq!(below(other), None, "{other}");
        }
        assert_eq!(config.own(topic, "site"), None);
        // Also where the device is the last level.
        let last = pattern("up/{sensor}");
        assert_eq!(last.below("up/s1", "sensor", "up/s1/x"), Some("x"));
        assert_eq!(last.below("up/s1", "sensor", "up/s10"), None);
    }

    #[test]
    fn devices_of_one_name_at_two_sites_are_two() {
        let plant = pattern("plant/{site}/{sensor}/{kind}");
        let sender = |topic| plant.matches(topic).unwrap().sender("sensor").unwrap();
        assert_eq!(&*sender("plant/north/temp/x"), "north/temp");
        assert_eq!(sender("plant/north/temp/x"), sender("plant/north/temp/y"));
        assert_ne!(sender("plant/north/temp/x"), sender("plant/south/temp/x"));
        let captures = pattern("v1/device/{id}/{kind}").matches("v1/device/d1/x").unwrap();
        assert_eq!(captures.sender("id").as_deref(), Some("d1"));
        assert_eq!(captures.sender("site"), None);
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
        for topic in
            ["", "$SYS/x", "v1/+/x", "v1/#", "v1/a\u{7}b", &"x".repeat(70_000), &"/".repeat(100)]
        {
            assert!(!is_publishable(topic), "{topic:.20}");
        }
    }
}
