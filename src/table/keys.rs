//! What is a key in a message, under whatever name it came. Neither dead letters nor filters are given it.

use std::borrow::Cow;

use crate::{
    message::Message,
    secrets::{self, Secret, plain},
};

/// How many of the device's properties are taken over, and how many bytes of names and values.
pub(crate) const MAX_PROPERTIES: usize = 32;
/// See [`MAX_PROPERTIES`].
pub(crate) const MAX_PROPERTY_BYTES: usize = 8 * 1024;

/// The keys of one message.
pub(crate) struct Keys<'k> {
    name: String,
    values: Vec<&'k str>,
}

impl<'k> Keys<'k> {
    /// Those under the user property of this name, and the one of its call, if one was found.
    pub(crate) fn new(message: &'k Message, property: &str, key: Option<&'k Secret>) -> Self {
        let values = message.user_property(property).chain(key.map(Secret::expose));
        let values = values.filter(|value| !value.is_empty()).collect();
        Self { name: plain(property), values }
    }

    /// The message's user properties without the keys, and how many are left out for their number or size.
    pub(crate) fn others<'m>(&self, message: &'m Message) -> (Vec<(&'m str, &'m str)>, usize) {
        let (mut taken, mut bytes, mut left_out) = (Vec::new(), 0, 0);
        for (name, value) in message.properties.user.iter() {
            // First of all: each name is compared with the key's, which takes time by its length.
            let size = name.len() + value.len();
            if taken.len() == MAX_PROPERTIES || bytes + size > MAX_PROPERTY_BYTES {
                left_out += 1;
                continue;
            }
            bytes += size;
            if !self.is_key(name, value) {
                taken.push((name, value));
            }
        }
        (taken, left_out)
    }

    /// Whether it is the key, or is called nearly as the key is.
    fn is_key(&self, name: &str, value: &str) -> bool {
        let sounds_secret = secrets::sounds_secret(name);
        let name = plain(name);
        let slips = if self.name.len() < 6 { 1 } else { 2 };
        sounds_secret
            || self.mask(value) != value
            || !self.name.is_empty() && name.contains(&self.name)
            || strsim::damerau_levenshtein(&name, &self.name) <= slips
    }

    /// The text without the keys.
    pub(crate) fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let whole = Cow::Borrowed(text);
        self.values.iter().fold(whole, |text, key| secrets::without(text, key))
    }
}
