//! What a payload is taken for, and what the outputs of `body` become: JSON, a form, or lines of text.

use std::str::FromStr;

use bytes::Bytes;
use http::HeaderValue;
use url::form_urlencoded::Serializer;

use super::refusal::Refusal;
use crate::{
    call::CONTENT_TYPE_JSON,
    filter::{self, FilterError, Val},
    json,
};

/// What a row takes its payloads for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Takes {
    /// JSON, to filters the value that it stands for.
    #[default]
    Json,
    /// UTF-8, to filters a text.
    Text,
    /// Anything; no filter reads it.
    Bytes,
}

impl Takes {
    /// What can be written in the table.
    pub const WORDS: [(&'static str, Self); 3] =
        [("json", Self::Json), ("text", Self::Text), ("bytes", Self::Bytes)];

    /// As it is written in the table.
    pub(crate) fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }

    /// Checks a payload that goes as it came.
    ///
    /// # Errors
    /// [`Refusal::BadPayload`].
    pub fn check(self, payload: &[u8]) -> Result<(), Refusal> {
        match self {
            Self::Json => json::check(payload).map_err(|error| not_json(&error)),
            Self::Text => text(payload).map(|_| ()),
            Self::Bytes => Ok(()),
        }
    }

    /// A payload as filters have it; bytes are null.
    ///
    /// # Errors
    /// [`Refusal::BadPayload`].
    pub fn read(self, payload: &Bytes) -> Result<Val, Refusal> {
        match self {
            Self::Json => filter::parse(payload).map_err(|error| not_json(&error)),
            Self::Text => text(payload).map(|_| Val::utf8_str(payload.clone())),
            Self::Bytes => Ok(Val::Null),
        }
    }
}

fn not_json(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::BadPayload(format!("the payload is not JSON: {error}"))
}

fn text(payload: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(payload).map_err(|error| {
        let good = error.valid_up_to();
        Refusal::BadPayload(format!("the payload is no text: it is not UTF-8 behind byte {good}"))
    })
}

/// What a body is, to the API and in the making.
#[derive(Debug, Clone)]
pub struct ContentType {
    /// The header.
    pub header: HeaderValue,
    /// What the outputs of `body` become.
    pub kind: Kind,
}

/// What the outputs of `body` become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One output, as JSON.
    Json,
    /// One output, an object of texts and numbers, as `name=value&...` [WHATWG URL, 5.2].
    Form,
    /// Each output a line: a text by its own bytes, anything else as JSON.
    Lines,
}

impl Default for ContentType {
    fn default() -> Self {
        Self { header: CONTENT_TYPE_JSON, kind: Kind::Json }
    }
}

impl FromStr for ContentType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_token = |token: &str| {
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            !token.is_empty() && token.bytes().all(legal)
        };
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let parts = essence.split_once('/').filter(|(kind, sub)| is_token(kind) && is_token(sub));
        let header = HeaderValue::try_from(text).ok().filter(|_| text.is_ascii());
        let (Some((_, sub)), Some(header)) = (parts, header) else {
            return Err(format!(
                "`{}` is no media type; write `application/json`, `text/plain` or `image/jpeg`, for example",
                text.escape_debug()
            ));
        };
        let kind = match &*essence {
            "application/json" => Kind::Json,
            "application/x-www-form-urlencoded" => Kind::Form,
            _ if sub.ends_with("+json") => Kind::Json,
            _ => Kind::Lines,
        };
        Ok(Self { header, kind })
    }
}

impl Kind {
    /// The body that these outputs are, of at most `max` bytes.
    ///
    /// # Errors
    /// [`FilterError`].
    pub fn body(self, outputs: &[Val], max: usize) -> Result<Bytes, FilterError> {
        match (self, outputs) {
            (Self::Json, [body]) => filter::to_json(body, max),
            (Self::Form, [body]) => form(body, max),
            (Self::Json | Self::Form, _) => {
                Err(FilterError(format!("{} bodies instead of one", outputs.len())))
            }
            (Self::Lines, []) => Err(FilterError("no line".to_owned())),
            (Self::Lines, outputs) => {
                let lines = outputs.iter().map(|output| filter::to_bytes(output, max));
                lines_of(lines.collect::<Result<_, _>>()?, max)
            }
        }
    }
}

/// The lines as one text; one alone as it is.
pub(super) fn lines_of(lines: Vec<Bytes>, max: usize) -> Result<Bytes, FilterError> {
    let bytes = lines.iter().map(|line| line.len() + 1).sum::<usize>() - 1;
    if bytes > max {
        return Err(FilterError(format!("puts out more than {max} bytes")));
    }
    Ok(match <[Bytes; 1]>::try_from(lines) {
        Ok([line]) => line,
        Err(lines) => lines.join(&b'\n').into(),
    })
}

/// An object of texts and numbers as a form; a list repeats its name.
fn form(body: &Val, max: usize) -> Result<Bytes, FilterError> {
    let Val::Obj(fields) = body else {
        return Err(FilterError("a form is one object of texts and numbers".to_owned()));
    };
    let mut form = Serializer::new(String::new());
    for (name, value) in fields.iter() {
        let name = filter::to_bytes(name, max)?;
        let name = std::str::from_utf8(&name).unwrap_or_default();
        let values = match value {
            Val::Arr(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            if !matches!(value, Val::TStr(_) | Val::Num(_) | Val::Bool(_)) {
                let kind = if matches!(value, Val::Null) { "null" } else { "a list or an object" };
                let name = filter::shorten(name.to_owned());
                return Err(FilterError(format!(
                    "`{name}` is {kind}: a form has texts and numbers"
                )));
            }
            let value = filter::to_bytes(value, max)?;
            form.append_pair(name, std::str::from_utf8(&value).unwrap_or_default());
        }
    }
    let form = form.finish();
    if form.len() > max {
        return Err(FilterError(format!("puts out more than {max} bytes")));
    }
    Ok(form.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{Context, Filter};

    #[test]
    fn a_media_type_says_what_a_body_becomes() {
        for (text, kind) in [
            ("application/json", Kind::Json),
            ("Application/JSON; charset=utf-8", Kind::Json),
            ("application/ld+json", Kind::Json),
            ("application/x-www-form-urlencoded", Kind::Form),
            ("text/plain; charset=utf-8", Kind::Lines),
            ("application/x-ndjson", Kind::Lines),
            ("image/jpeg", Kind::Lines),
        ] {
            let parsed: ContentType = text.parse().unwrap();
            assert_eq!((parsed.kind, parsed.header.to_str().unwrap()), (kind, text));
        }
        for text in
            ["json", "text/", "/plain", "text plain/x", "a/b/c", "text/plain\r\nx: y", "t/\u{e9}"]
        {
            assert!(text.parse::<ContentType>().unwrap_err().contains("no media type"), "{text}");
        }
        assert_eq!(ContentType::default().kind, Kind::Json);
    }

    #[test]
    fn outputs_become_what_the_content_type_says() {
        let body = |kind: Kind, filter: &str| {
            let outputs = Filter::compile(filter).unwrap().run(Val::Null, &Context::default());
            let body = kind.body(&outputs.unwrap(), 40).map_err(|error| error.0);
            body.map(|body| String::from_utf8(body.to_vec()).unwrap())
        };
        let made = |text: &str| Ok(text.to_owned());
        assert_eq!(body(Kind::Json, "\"a\""), made("\"a\""));
        assert_eq!(body(Kind::Lines, "\"a b\\n\""), made("a b\n"));
        assert_eq!(body(Kind::Lines, "\"a\", {b: 1.50}, \"\""), made("a\n{\"b\":1.50}\n"));
        assert_eq!(
            body(Kind::Form, "{\"a b\": \"1&=\", n: 21.50, l: [1, \"x\"], t: true, e: []}"),
            made("a+b=1%26%3D&n=21.50&l=1&l=x&t=true")
        );
        for (kind, filter, why) in [
            (Kind::Json, "1, 2", "2 bodies"),
            (Kind::Form, "empty", "0 bodies"),
            (Kind::Lines, "empty", "no line"),
            (Kind::Form, "\"a=b\"", "one object"),
            (Kind::Form, "{a: {}}", "`a` is a list or an object"),
            (Kind::Form, "{a: null}", "`a` is null"),
            (Kind::Form, "{a: [[1]]}", "`a` is a list"),
            (Kind::Form, "{a: (\"&\" * 14)}", "more than 40"),
            (Kind::Lines, "\"x\" * 41", "more than 40"),
            (Kind::Lines, "\"x\" * 20 | ., .", "more than 40"),
            (Kind::Lines, "1 / 0", "no JSON"),
        ] {
            let error = body(kind, filter).unwrap_err();
            assert!(error.contains(why), "{filter}: {error}");
        }
    }

    #[test]
    fn a_payload_is_what_its_row_takes_it_for() {
        let bytes = |bytes: &'static [u8]| Bytes::from_static(bytes);
        let jpeg = bytes(b"\xff\xd8\xff\x00");
        assert!(Takes::Bytes.check(&jpeg).is_ok());
        assert_eq!(Takes::Bytes.read(&jpeg), Ok(Val::Null));
        for takes in [Takes::Text, Takes::Json] {
            assert!(matches!(takes.check(&jpeg), Err(Refusal::BadPayload(_))));
            assert!(matches!(takes.read(&jpeg), Err(Refusal::BadPayload(_))));
        }
        assert_eq!(Takes::Text.read(&bytes(b"21.5")), Ok(Val::utf8_str("21.5")));
        assert_eq!(Takes::Text.read(&bytes(b"")), Ok(Val::utf8_str("")));
        assert!(Takes::Text.check(b"nan").is_ok() && Takes::Json.check(b"nan").is_err());
    }
}
