//! Who sends what comes on a row's topics.

use std::{borrow::Cow, fmt, sync::Arc};

use super::{Captures, Pattern};

/// How a topic says who sends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sender {
    /// By what is captured under this name, behind what is captured before it. A `temp` of one site is not the `temp`
    /// of another: `north/temp`.
    Captured(Arc<str>),
    /// By several names, `{user}/{phone}`, or not at all: without a name it is the same sender on all of the row's
    /// topics.
    Made(Pattern),
}

/// As it is written in `on` and `device`.
impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Captured(name) => write!(f, "{{{name}}}"),
            Self::Made(made) => f.write_str(made.as_str()),
        }
    }
}

impl Sender {
    /// Reads the form with several names or none. Each name is a whole level: what is made of others can be no one
    /// else's.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to write instead.
    pub fn made(text: &str) -> Result<Self, String> {
        let made = Pattern::parse(text)?;
        if let Some(name) = made.rest() {
            return Err(format!("write `{{{name}}}`: the dots stand in `on` alone"));
        }
        Ok(Self::Made(made))
    }

    /// The sender of a message whose topic has these captures; `None` if it names no sender.
    pub fn of(&self, captures: &Captures) -> Option<Arc<str>> {
        match self {
            Self::Captured(name) => captures.up_to(name),
            Self::Made(made) => made.filled(captures).map(Into::into),
        }
    }

    /// What the sender calls itself: what is captured, without what is captured before it.
    pub fn id<'c>(&self, captures: &'c Captures) -> Option<Cow<'c, str>> {
        match self {
            Self::Captured(name) => captures.get(name).map(Into::into),
            Self::Made(made) => made.filled(captures).map(Into::into),
        }
    }

    /// The part of a `topic` of this pattern that belongs to its sender: everything up to and with the last level that
    /// says who it is, `v1/device/d1` for the shipped table. Nothing does where no level says it.
    pub fn own<'t>(&self, on: &Pattern, topic: &'t str) -> Option<&'t str> {
        on.first_levels(topic, self.levels(on)?)
    }

    /// How many levels of a pattern lead to what belongs to its sender, those included that say who it is; none where
    /// no level says it. A name of many levels is one.
    pub fn levels(&self, on: &Pattern) -> Option<usize> {
        match self {
            Self::Captured(name) => on.position(name),
            Self::Made(made) => made.names().filter_map(|name| on.position(name)).max(),
        }
        .map(|index| index + 1)
    }

    /// Whether something is below that is its own: below a name of many levels there are names of many levels.
    pub fn has_topics(&self, on: &Pattern) -> bool {
        self.levels(on).is_some_and(|levels| on.begins_like(levels, on))
    }

    /// What is below the part of a `topic` that belongs to its sender; `None` where `other` is not below it.
    pub fn below<'o>(&self, on: &Pattern, topic: &str, other: &'o str) -> Option<&'o str> {
        other.strip_prefix(self.own(on, topic)?)?.strip_prefix('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who sends on a topic, what it calls itself, and what belongs to it.
    fn who(on: &str, device: &str, topic: &str) -> (String, String, Option<String>) {
        let on = Pattern::parse(on).unwrap();
        let sender = match device {
            "" => Sender::Captured("device".into()),
            text => Sender::made(text).unwrap(),
        };
        let captures = on.matches(topic).unwrap();
        let own = sender.own(&on, topic).map(str::to_owned);
        (sender.of(&captures).unwrap().to_string(), sender.id(&captures).unwrap().into_owned(), own)
    }

    #[test]
    fn levels_say_who_sends_and_what_is_its_own() {
        for (on, device, topic, of, id, own) in [
            ("v1/{device}/up/x", "", "v1/d1/up/x", "d1", "d1", Some("v1/d1")),
            ("up/{device}", "", "up/d1", "d1", "d1", Some("up/d1")),
            ("plant/{site}/{device}/{kind}", "", "plant/n/t/x", "n/t", "t", Some("plant/n/t")),
            ("z/{device...}", "", "z/a/b", "a/b", "a/b", Some("z/a/b")),
            (
                "o/{user}/{phone}/{rest...}",
                "{user}/{phone}",
                "o/u/p/x/y",
                "u/p",
                "u/p",
                Some("o/u/p"),
            ),
            ("o/{user}/{phone}", "{user}", "o/u/p", "u", "u", Some("o/u")),
            ("o/{phone}/{user}", "x/{user}", "o/p/u", "x/u", "x/u", Some("o/p/u")),
            ("f/events", "f", "f/events", "f", "f", None),
            ("f/{camera}/{label}", "f", "f/a/b", "f", "f", None),
        ] {
            let expected = (of.to_owned(), id.to_owned(), own.map(str::to_owned));
            assert_eq!(who(on, device, topic), expected, "{on} {device}");
        }
    }

    #[test]
    fn devices_of_one_name_at_two_sites_are_two() {
        let sender = |topic| who("plant/{site}/{device}/{kind}", "", topic).0;
        assert_eq!(sender("plant/north/temp/x"), "north/temp");
        assert_eq!(sender("plant/north/temp/x"), sender("plant/north/temp/y"));
        assert_ne!(sender("plant/north/temp/x"), sender("plant/south/temp/x"));
        // What is no level of its own would make two of different levels one.
        assert!(Sender::made("{user}-{phone}").unwrap_err().contains("whole level"));
        assert!(Sender::made("{user...}").unwrap_err().contains("`{user}`"));
    }

    #[test]
    fn what_belongs_to_a_device_is_whole_levels() {
        let on = Pattern::parse("v1/{device}/config/update").unwrap();
        let sender = Sender::Captured("device".into());
        let below = |other| sender.below(&on, "v1/d1/config/update", other);
        assert_eq!(below("v1/d1/a/b"), Some("a/b"));
        for other in ["v1/d1", "v1/d10/a", "v1/d2/a", "a"] {
            assert_eq!(below(other), None, "{other}");
        }
        let last = Pattern::parse("up/{device}").unwrap();
        assert_eq!(sender.below(&last, "up/s1", "up/s1/x"), Some("x"));
        assert_eq!(sender.below(&last, "up/s1", "up/s10"), None);
    }
}
