//! Templates for paths and topics: literal text with `{names}` that captures fill in.
//!
//! Captured levels are hostile input. In a path a value becomes exactly one percent-encoded segment
//! or the message is refused: `..`, `.` and the empty level would otherwise call another endpoint.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but the unreserved characters of RFC 3986, section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Longest captured level that is put into a path, in bytes. Identifiers are short; servers refuse
/// request lines of more than some kilobytes.
const MAX_SEGMENT_BYTES: usize = 1024;

/// Text with names in braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    Name(Box<str>),
}

/// Why a captured level cannot stand in a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSegment {
    /// Nothing captured that name; configuration rules this out, `explain` may meet it.
    #[error("the topic has no level `{0}`")]
    Missing(Box<str>),
    /// The level is empty, `.` or `..`, which would change the path.
    #[error("the level `{0}` is empty, `.` or `..`")]
    Dots(Box<str>),
    /// The level has control characters.
    #[error("the level `{0}` has control characters")]
    Control(Box<str>),
    /// The level is longer than an identifier can be.
    #[error("the level `{0}` is longer than {MAX_SEGMENT_BYTES} bytes")]
    TooLong(Box<str>),
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
            let (name, tail) =
                tail.split_once('}').filter(|(name, _)| crate::topic::is_name(name)).ok_or_else(
                    || format!("`{text}`: `{{` opens no name of letters, digits and `_`"),
                )?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.into()));
            }
            pieces.push(Piece::Name(name.into()));
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

    /// The names that need a value.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Name(name) => Some(&**name),
            Piece::Literal(_) => None,
        })
    }

    /// Renders a topic. `None` when a name has no value.
    pub fn topic<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Option<String> {
        let mut topic = String::with_capacity(self.text.len() + 32);
        for piece in &self.pieces {
            topic.push_str(match piece {
                Piece::Literal(text) => text,
                Piece::Name(name) => value(name)?,
            });
        }
        Some(topic)
    }

    /// Renders a path; every value becomes one percent-encoded segment.
    ///
    /// # Errors
    /// [`BadSegment`] when a value could change which endpoint is called.
    pub fn path<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Result<String, BadSegment> {
        let mut path = String::with_capacity(self.text.len() + 64);
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => path.push_str(text),
                Piece::Name(name) => {
                    let level = value(name).ok_or_else(|| BadSegment::Missing(name.clone()))?;
                    check_segment(name, level)?;
                    path.extend(utf8_percent_encode(level, SEGMENT));
                }
            }
        }
        Ok(path)
    }
}

fn check_segment(name: &str, level: &str) -> Result<(), BadSegment> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn path(level: &str) -> Result<String, BadSegment> {
        Template::parse("/v1/devices/{id}/telemetry").unwrap().path(|_| Some(level))
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
        assert!(Template::parse("a/b}").unwrap_err().contains("closes nothing"));
        assert!(Template::parse("a/{b c}").unwrap_err().contains("opens no name"));
    }
}
