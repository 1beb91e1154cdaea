//! A string that is never printed.
//!
//! Keys and passwords are kept in this type from the moment they are read. It has no `Display`, and its `Debug` hides
//! the value. [`Secret::expose`] is the only way to the value; it is called only where the bytes are written to the
//! network.

use std::{fmt, sync::Arc};

/// A key, password or token. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a value that must never be printed.
    pub fn new(value: impl Into<Arc<str>>) -> Self {
        Self(value.into())
    }

    /// The value itself. Call it only to write the value to the network.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// A name that contains one of the first, or is one of the second, belongs to a secret. Case and punctuation do not
/// count.
const PARTS: [&str; 8] =
    ["authorization", "password", "passwd", "secret", "token", "apikey", "accesskey", "signature"];
const NAMES: [&str; 6] = ["auth", "key", "pass", "pin", "pwd", "sig"];

/// Whether a value of this name is likely to be a secret.
pub(crate) fn sounds_secret(name: &str) -> bool {
    let name = plain(name);
    PARTS.iter().any(|part| name.contains(part)) || NAMES.contains(&name.as_str())
}

/// A name without case and punctuation, for comparing.
pub(crate) fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether a text can stand in a header.
pub(crate) fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_however_they_are_written() {
        for name in ["Api-Key", "key", "ACCESS_TOKEN", "client_secret", "X_Api_Key", "sig"] {
            assert!(sounds_secret(name), "{name}");
        }
        for name in ["device_id", "keyboard", "model", "status", "pinned"] {
            assert!(!sounds_secret(name), "{name}");
        }
    }

    #[test]
    fn debug_hides_the_value() {
        let secret = Secret::new("open sesame");
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "<redacted> Some(<redacted>)");
        assert_eq!(secret.expose(), "open sesame");
    }
}
