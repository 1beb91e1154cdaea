//! Templates for paths, headers and topics: literal text with `{names}` that captures fill in, and `{$secrets}`.
//!
//! Captured levels are hostile input. In a path a value becomes exactly one percent-encoded segment
//! or the message is refused: `..`, `.` and the empty level would otherwise call another endpoint.
//!
//! Secrets are filled in when a request is made, and not before: until then a text has their names only.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::secrets::{Secret, is_printable};

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Longest captured level that is put into a path, in bytes. Identifiers are short; servers refuse
/// request lines of more than some kilobytes.
const MAX_SEGMENT_BYTES: usize = 1024;
/// Longest value of a header, in bytes; servers refuse heads of more than some kilobytes.
const MAX_HEADER_BYTES: usize = 4096;

/// The secret that is none of the gateway's own: the key of the device that a call speaks for.
pub(crate) const KEY: &str = "key";

/// Text with names in braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    pieces: Vec<Piece>,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text that stands for itself.
    Literal(Box<str>),
    /// `{name}`.
    Name(Box<str>),
    /// `{$name}`, without the `$`.
    Secret(Arc<str>),
}

/// Why a captured level, or a value, cannot stand in a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSegment {
    /// Nothing captured that name; configuration rules this out, `explain` may meet it.
    #[error("nothing is called `{0}`")]
    Missing(Box<str>),
    /// The level is empty, `.` or `..`, which would change the path.
    #[error("`{0}` is empty, `.` or `..`")]
    Dots(Box<str>),
    /// The level has control characters.
    #[error("`{0}` has control characters")]
    Control(Box<str>),
    /// The level is longer than an identifier can be.
    #[error("`{0}` is longer than {MAX_SEGMENT_BYTES} bytes")]
    TooLong(Box<str>),
    /// It comes from a payload and is no text, number or truth, or not one alone.
    #[error("`{0}` is no text and no number")]
    NoText(Box<str>),
}

/// The value of this header has something in it that no header may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the header `{0}` cannot be made: at most {MAX_HEADER_BYTES} printable ASCII characters go into one"
)]
pub struct BadHeader(pub Box<str>);

/// A template whose names are filled in and whose secrets are not: each stands in the text by its name, `<name>`, and so
/// it may be shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    text: String,
    holes: Vec<Hole>,
}

/// Where a secret belongs.
#[derive(Clone, PartialEq, Eq)]
struct Hole {
    at: Range<usize>,
    secret: Arc<str>,
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// A sentence that says where the braces are wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((literal, tail)) = rest.split_once('{') {
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.into()));
            }
            let (piece, tail) = name(tail).ok_or_else(|| {
                let dots = if tail.split('}').next().is_some_and(|name| name.ends_with("...")) {
                    "; the dots of `{name...}` stand in `on` alone, write `{name}`"
                } else {
                    ""
                };
                format!(
                    "`{text}`: `{{` opens no name of letters, digits and `_`, nor `{{$name}}` of a secret{dots}"
                )
            })?;
            pieces.push(piece);
            rest = tail;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest.into()));
        }
        if pieces.iter().any(|piece| matches!(piece, Piece::Literal(l) if l.contains('}'))) {
            return Err(format!("`{text}`: `}}` closes nothing"));
        }
        Ok(Self { text: text.into(), pieces })
    }

    /// The template as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its parts, in order.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The names that need a value.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Name(name) => Some(&**name),
            Piece::Literal(_) | Piece::Secret(_) => None,
        })
    }

    /// The secrets that it has, `key` among them.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Secret(name) => Some(name),
            Piece::Literal(_) | Piece::Name(_) => None,
        })
    }

    /// Renders a topic. `None` when a name has no value, or a secret stands in it.
    pub fn topic<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Option<String> {
        let mut topic = String::with_capacity(self.text.len() + 32);
        for piece in &self.pieces {
            topic.push_str(match piece {
                Piece::Literal(text) => text,
                Piece::Name(name) => value(name)?,
                Piece::Secret(_) => return None,
            });
        }
        Some(topic)
    }

    /// Renders a path; every value becomes one percent-encoded segment.
    ///
    /// # Errors
    /// [`BadSegment`] when a value could change which endpoint is called.
    pub fn path<'v>(
        &self,
        value: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<Rendered, BadSegment> {
        self.render(|name, path| {
            let level = value(name).ok_or_else(|| BadSegment::Missing(name.into()))?;
            check_segment(name, level)?;
            path.extend(utf8_percent_encode(level, SEGMENT));
            Ok(())
        })
    }

    /// Renders the value of the header of this name; every value goes into it as it is.
    ///
    /// # Errors
    /// [`BadHeader`] when something in it may not stand in a header.
    pub fn header<'v>(
        &self,
        header: &str,
        value: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<Rendered, BadHeader> {
        let bad = || BadHeader(header.into());
        let rendered = self.render(|name, text| {
            text.push_str(value(name).ok_or_else(bad)?);
            Ok(())
        })?;
        let legal = is_printable(&rendered.text) && rendered.text.len() <= MAX_HEADER_BYTES;
        if legal { Ok(rendered) } else { Err(bad()) }
    }

    fn render<E>(&self, put: impl Fn(&str, &mut String) -> Result<(), E>) -> Result<Rendered, E> {
        let (mut text, mut holes) = (String::with_capacity(self.text.len() + 64), Vec::new());
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Name(name) => put(name, &mut text)?,
                Piece::Secret(secret) => {
                    let start = text.len();
                    text.extend(["<", secret, ">"]);
                    holes.push(Hole { at: start..text.len(), secret: secret.clone() });
                }
            }
        }
        Ok(Rendered { text, holes })
    }
}

/// The name behind an opened brace, and what comes after it.
fn name(text: &str) -> Option<(Piece, &str)> {
    let (name, rest) = text.split_once('}')?;
    let piece = match name.strip_prefix('$') {
        Some(secret) if crate::topic::is_name(secret) => Piece::Secret(secret.into()),
        None if crate::topic::is_name(name) => Piece::Name(name.into()),
        Some(_) | None => return None,
    };
    Some((piece, rest))
}

/// Whether a value can become a segment of a path.
///
/// # Errors
/// [`BadSegment`] when it could change which endpoint is called.
pub(crate) fn check_segment(name: &str, level: &str) -> Result<(), BadSegment> {
    match level {
        // Also within a name of many levels: whoever decodes the segment would follow them.
        _ if level.split('/').any(|level| matches!(level, "" | "." | "..")) => {
            Err(BadSegment::Dots(name.into()))
        }
        _ if level.len() > MAX_SEGMENT_BYTES => Err(BadSegment::TooLong(name.into())),
        _ if level.contains(char::is_control) => Err(BadSegment::Control(name.into())),
        _ => Ok(()),
    }
}

impl Rendered {
    /// The text with the names of its secrets.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The secrets that it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.holes.iter().map(|hole| &*hole.secret)
    }

    /// The whole path, each secret as one percent-encoded segment. `None` when one has no value.
    pub fn fill_path(&self, secret: impl Fn(&str) -> Option<Secret>) -> Option<Cow<'_, str>> {
        self.fill(secret, |text, value| text.extend(utf8_percent_encode(value, SEGMENT)))
    }

    /// The whole text, each secret as it is. `None` when one has no value.
    pub fn fill_text(&self, secret: impl Fn(&str) -> Option<Secret>) -> Option<Cow<'_, str>> {
        self.fill(secret, String::push_str)
    }

    fn fill(
        &self,
        secret: impl Fn(&str) -> Option<Secret>,
        put: impl Fn(&mut String, &str),
    ) -> Option<Cow<'_, str>> {
        if self.holes.is_empty() {
            return Some(Cow::Borrowed(&self.text));
        }
        let (mut whole, mut end) = (String::with_capacity(self.text.len() + 128), 0);
        for hole in &self.holes {
            whole.push_str(self.text.get(end..hole.at.start)?);
            put(&mut whole, secret(&hole.secret)?.expose());
            end = hole.at.end;
        }
        whole.push_str(self.text.get(end..)?);
        Some(Cow::Owned(whole))
    }
}

/// With the names of its secrets.
impl fmt::Display for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// A text without secrets.
impl From<&str> for Rendered {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), holes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(level: &str) -> Result<String, BadSegment> {
        let path = Template::parse("/v1/devices/{id}/telemetry").unwrap().path(|_| Some(level));
        path.map(|path| path.to_string())
    }

    #[test]
    fn a_level_becomes_exactly_one_segment() {
        assert_eq!(path("d1").unwrap(), "/v1/devices/d1/telemetry");
        for (level, segment) in [
            ("%2e%2e", "%252e%252e"),
            ("a%2fb", "a%252fb"),
            ("a?b#c", "a%3Fb%23c"),
            ("a\\b", "a%5Cb"),
            ("...", "..."),
            ("ü", "%C3%BC"),
            ("kitchen/lamp", "kitchen%2Flamp"),
        ] {
            let path = path(level).unwrap();
            assert_eq!(path, format!("/v1/devices/{segment}/telemetry"));
            let url = url::Url::parse(&format!("http://hub{path}")).unwrap();
            assert_eq!(url.path_segments().unwrap().count(), 4, "{level}");
            assert_eq!(url.query(), None);
        }
    }

    #[test]
    fn levels_that_change_the_path_are_refused() {
        for level in ["", ".", "..", "a/../b", "a//b", "a/", "/a"] {
            assert!(matches!(path(level), Err(BadSegment::Dots(_))), "{level:?}");
        }
        assert!(matches!(path("a\nb"), Err(BadSegment::Control(_))));
        assert!(matches!(path(&"x".repeat(60_000)), Err(BadSegment::TooLong(_))));
    }

    #[test]
    fn names_are_known_before_anything_is_rendered() {
        let template = Template::parse("a/{b}/{c}.json").unwrap();
        assert_eq!(template.names().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(template.topic(|_| Some("x")).unwrap(), "a/x/x.json");
        assert_eq!(template.topic(|n| (n == "b").then_some("x")), None);
        assert!(Template::parse("a/{b").unwrap_err().contains("opens no name"));
        assert!(Template::parse("a/{b...}").unwrap_err().ends_with("write `{name}`"));
        assert!(Template::parse("a/b}").unwrap_err().contains("closes nothing"));
        assert!(Template::parse("a/{b c}").unwrap_err().contains("opens no name"));
    }
    #[test]
    fn a_secret_is_its_name_until_it_is_filled_in() {
        let template = Template::parse("/bot{$bot}/{chat}?k={$key}").unwrap();
        assert_eq!(template.names().collect::<Vec<_>>(), ["chat"]);
        let path = template.path(|_| Some("<bot>/x")).unwrap();
        assert_eq!(path.as_str(), "/bot<bot>/%3Cbot%3E%2Fx?k=<key>");
        assert_eq!(format!("{path:?}"), "\"/bot<bot>/%3Cbot%3E%2Fx?k=<key>\"");
        let secret = |name: &str| (name == "bot").then(|| Secret::new("1:a/b"));
        assert_eq!(path.fill_path(secret), None, "one has no value");
        let secret = |name: &str| Some(Secret::new(format!("{name}/&")));
        assert_eq!(path.fill_path(secret).unwrap(), "/botbot%2F%26/%3Cbot%3E%2Fx?k=key%2F%26");
        assert_eq!(template.topic(|_| Some("x")), None);
        for text in ["{$}", "{$a b}", "{$$a}", "{a$}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_header_has_printable_characters_only() {
        let template = Template::parse("Token {$influx} {site}").unwrap();
        let header = |site: &str| template.header("X-A", |_| Some(site)).map(|h| h.to_string());
        assert_eq!(header("a b").unwrap(), "Token <influx> a b");
        for site in ["\u{e9}", "a\nb", "\u{7f}", &"x".repeat(5000)] {
            assert_eq!(header(site), Err(BadHeader("X-A".into())), "{site}");
        }
        assert!(template.header("X-A", |_| None).is_err());
        let whole = template.header("X-A", |_| Some("s")).unwrap();
        let whole = whole.fill_text(|_| Some(Secret::new("a=b c"))).unwrap().into_owned();
        assert_eq!(whole, "Token a=b c s");
    }
}
