//! A signature over a request, in a header: HMAC-SHA256 [RFC 2104] over a template, as webhooks have it.

use std::{fmt, fmt::Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderName;
use ring::hmac;

use crate::template::{Piece, Rendered, Template};

/// What a signature can go over.
pub(crate) const SIGNED: [&str; 4] = ["timestamp", "method", "path", "body"];
/// What its header can have in it.
pub(crate) const WRITTEN: [&str; 3] = ["timestamp", "hex", "base64"];

/// How requests of a row are signed.
#[derive(Clone, PartialEq, Eq)]
pub struct Sign {
    /// The key, a secret.
    pub secret: Rendered,
    /// What is signed, of [`SIGNED`].
    pub over: Template,
    /// The header that has the signature.
    pub header: HeaderName,
    /// Its value, of [`WRITTEN`].
    pub value: Template,
    /// A header that has the time alone.
    pub timestamp: Option<HeaderName>,
}

/// What is signed.
pub(crate) struct Signed<'r> {
    /// Seconds since 1970.
    pub timestamp: &'r str,
    /// HTTP method.
    pub method: &'r str,
    /// Path and query, as they are sent.
    pub path: &'r str,
    /// The body, as it is sent.
    pub body: &'r [u8],
}

impl Sign {
    /// The value of its header. `key` is the value of `secret`.
    pub(crate) fn value(&self, key: &str, signed: &Signed<'_>) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        let mut context = hmac::Context::with_key(&key);
        for piece in self.over.pieces() {
            context.update(match piece {
                Piece::Literal(text) => text.as_bytes(),
                Piece::Name(name) => match &**name {
                    "timestamp" => signed.timestamp.as_bytes(),
                    "method" => signed.method.as_bytes(),
                    "path" => signed.path.as_bytes(),
                    _ => signed.body,
                },
                Piece::Secret(_) => &[],
            });
        }
        let tag = context.sign();
        let mut value = String::new();
        for piece in self.value.pieces() {
            match piece {
                Piece::Literal(text) => value.push_str(text),
                Piece::Name(name) if **name == *"timestamp" => value.push_str(signed.timestamp),
                Piece::Name(name) if **name == *"hex" => {
                    for byte in tag.as_ref() {
                        // Writing into a string cannot fail.
                        let _ = write!(value, "{byte:02x}");
                    }
                }
                Piece::Name(_) => STANDARD.encode_string(tag.as_ref(), &mut value),
                Piece::Secret(_) => {}
            }
        }
        value
    }
}

impl fmt::Debug for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As it is shown: its header, with names where they are filled in.
impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} with {}", self.header, self.value.as_str(), self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(over: &str, value: &str) -> Sign {
        Sign {
            secret: "<s>".into(),
            over: Template::parse(over).unwrap(),
            header: HeaderName::from_static("x-signature"),
            value: Template::parse(value).unwrap(),
            timestamp: None,
        }
    }

    #[test]
    fn a_signature_is_that_of_the_standard() {
        // RFC 4231, test case 2.
        let signed = Signed {
            timestamp: "17",
            method: "POST",
            path: "/x",
            body: b"what do ya want for nothing?",
        };
        let hex = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let made = sign("{body}", "sha256={hex}").value("Jefe", &signed);
        assert_eq!(made, format!("sha256={hex}"));
        let made = sign("{body}", "t={timestamp},v1={base64}").value("Jefe", &signed);
        assert_eq!(made, "t=17,v1=W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=");
        let body = Signed { body: b"17.POST/x", ..signed };
        let pieces = sign("{timestamp}.{method}{path}", "{hex}").value("k", &signed_parts());
        assert_eq!(pieces, sign("{body}", "{hex}").value("k", &body));
    }

    fn signed_parts() -> Signed<'static> {
        Signed { timestamp: "17", method: "POST", path: "/x", body: b"" }
    }
}
