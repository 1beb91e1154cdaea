//! The user properties of a publication [MQTT 5.0, 3.3.2.3.7], with all their text in one piece: every message has some,
//! and an allocation for each name and each value would be a tenth of what a message costs.

use std::fmt;

/// Room for the first ones, in bytes: for an identifier and a key with their names.
const ROOM: usize = 128;

/// Names and values in the order in which they stand; a name may stand more than once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct UserProperties {
    /// Each name, and behind it its value.
    text: String,
    /// How long the name and the value of each are, in bytes.
    lengths: Vec<(usize, usize)>,
}

impl UserProperties {
    /// Puts one behind the others.
    pub fn push(&mut self, name: &str, value: &str) {
        if self.is_empty() {
            self.text.reserve(ROOM);
        }
        self.text.push_str(name);
        self.text.push_str(value);
        self.lengths.push((name.len(), value.len()));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Each name with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut left = &*self.text;
        let mut next = move |length| {
            let (text, rest) = left.split_at_checked(length).unwrap_or_default();
            left = rest;
            text
        };
        self.lengths.iter().map(move |(name, value)| (next(*name), next(*value)))
    }

    /// The values of all of this name.
    pub fn get<'u>(&'u self, name: &str) -> impl Iterator<Item = &'u str> {
        self.iter().filter(move |(own, _)| *own == name).map(|(_, value)| value)
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for UserProperties {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(properties: I) -> Self {
        let mut all = Self::default();
        all.extend(properties);
        all
    }
}

impl<N: AsRef<str>, V: AsRef<str>> Extend<(N, V)> for UserProperties {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, properties: I) {
        for (name, value) in properties {
            self.push(name.as_ref(), value.as_ref());
        }
    }
}

/// Their names alone: a value may be a device's key.
impl fmt::Debug for UserProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_not_printed() {
        let properties: UserProperties = [("access_key", "open-sesame")].into_iter().collect();
        assert_eq!(format!("{properties:?}"), r#"["access_key"]"#);
    }

    proptest! {
        #[test]
        fn what_is_put_in_comes_out(pairs: Vec<(String, String)>, name: String) {
            let properties: UserProperties = pairs.iter().map(|(n, v)| (n, v)).collect();
            let same: Vec<_> =
                properties.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(&same, &pairs);
            prop_assert_eq!((properties.len(), properties.is_empty()), (pairs.len(), pairs.is_empty()));
            for name in pairs.iter().map(|(n, _)| n).chain([&name]) {
                let own: Vec<_> = pairs.iter().filter(|(n, _)| n == name).map(|(_, v)| &**v).collect();
                prop_assert_eq!(properties.get(name).collect::<Vec<_>>(), own);
            }
        }
    }
}
