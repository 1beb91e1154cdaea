//! What differs between what a case says and what came of it.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;

use super::{Exchanged, Published, api::Heard, content::Content};
use crate::message::{Publication, VIA};

/// The kind of publication of which there can be several.
pub(super) const PUSH: &str = "push";
/// Longest value that is shown, in bytes.
const SHOWN: usize = 2000;

/// One thing that differs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// The line of the message that it is about.
    pub(super) line: usize,
    /// The part: `call 1: body .a`.
    pub(super) part: String,
    /// What the case says; none if it says that there is nothing.
    pub(super) expected: Option<String>,
    /// What came; none if nothing did.
    pub(super) found: Option<String>,
}

/// Collects what differs.
#[derive(Debug, Default)]
pub(super) struct Differences {
    pub(super) line: usize,
    pub(super) found: Vec<Difference>,
}

impl Differences {
    pub(super) fn add(&mut self, part: &str, expected: Option<String>, found: Option<String>) {
        let (line, part) = (self.line, part.to_owned());
        self.found.push(Difference { line, part, expected, found });
    }

    /// A text that must be this one; an empty one: there must be none.
    fn text(&mut self, part: &str, expected: &str, found: Option<&str>) {
        if found.unwrap_or_default() != expected {
            let expected = Some(expected).filter(|text| !text.is_empty());
            self.add(part, expected.map(str::to_owned), found.map(str::to_owned));
        }
    }

    fn texts(&mut self, part: &str, expected: Option<&String>, found: Option<&str>) {
        if let Some(expected) = expected {
            self.text(part, expected, found);
        }
    }

    fn content(&mut self, part: &str, expected: Option<&Content>, found: &Bytes) {
        let Some(expected) = expected.filter(|expected| !expected.is(found)) else { return };
        let values = expected.value().zip(serde_json::from_slice::<Value>(found).ok());
        if let Some((expected, found)) = values {
            return self.values(part, "", &expected, &found);
        }
        let text = |bytes: &Bytes| Some(shown(bytes)).filter(|text| !text.is_empty());
        self.add(part, text(&expected.bytes()), text(found));
    }

    /// Where two JSON values differ, each place by itself.
    fn values(&mut self, part: &str, path: &str, expected: &Value, found: &Value) {
        match (expected, found) {
            (Value::Object(expected), Value::Object(found)) => {
                for (name, value) in expected {
                    let path = format!("{path}.{name}");
                    match found.get(name) {
                        Some(found) => self.values(part, &path, value, found),
                        None => self.add(&place(part, &path), Some(cut(value)), None),
                    }
                }
                for (name, value) in found.iter().filter(|(name, _)| !expected.contains_key(*name))
                {
                    self.add(&place(part, &format!("{path}.{name}")), None, Some(cut(value)));
                }
            }
            (Value::Array(expected), Value::Array(found)) => {
                for index in 0..expected.len().max(found.len()) {
                    let path = format!("{path}[{index}]");
                    match (expected.get(index), found.get(index)) {
                        (Some(expected), Some(found)) => self.values(part, &path, expected, found),
                        (expected, found) => {
                            self.add(&place(part, &path), expected.map(cut), found.map(cut));
                        }
                    }
                }
            }
            (expected, found) if same(expected, found) => {}
            (expected, found) => {
                self.add(&place(part, path), Some(cut(expected)), Some(cut(found)));
            }
        }
    }

    /// The calls of a message; all of them, in order.
    pub(super) fn calls(&mut self, expected: &[Exchanged], found: &[Heard]) {
        for index in 0..expected.len().max(found.len()) {
            let part = format!("call {}", index + 1);
            match (expected.get(index), found.get(index)) {
                (Some(expected), Some(found)) => self.call(&part, expected, found),
                (Some(expected), None) => {
                    let call = expected.call.clone().unwrap_or_else(|| "a call".to_owned());
                    self.add(&part, Some(call), None);
                }
                (None, found) => self.add(&part, None, found.map(Heard::words)),
            }
        }
    }

    fn call(&mut self, part: &str, expected: &Exchanged, found: &Heard) {
        // An API that refuses the connection does not see the request.
        let Heard::Request { call, headers, body } = found else { return };
        if let Some(expected) = expected.call.as_ref().filter(|expected| *expected != call) {
            self.add(part, Some(expected.clone()), Some(call.clone()));
        }
        for (name, value) in &expected.headers {
            self.text(&format!("{part}: header {name}"), value, header(headers, name).as_deref());
        }
        self.content(&format!("{part}: body"), expected.body.as_ref(), body);
    }

    /// Publications of one kind; all of them, in order.
    pub(super) fn publications(
        &mut self,
        kind: &str,
        expected: &[Published],
        found: &[&Publication],
    ) {
        for index in 0..expected.len().max(found.len()) {
            // Of most kinds there is one at most.
            let part = if kind == PUSH { format!("{kind} {}", index + 1) } else { kind.to_owned() };
            self.publication(&part, expected.get(index), found.get(index).copied());
        }
    }

    fn publication(
        &mut self,
        part: &str,
        expected: Option<&Published>,
        found: Option<&Publication>,
    ) {
        let words = |publication: &Publication| {
            format!("{}: {}", publication.topic, shown(&publication.payload))
        };
        let (expected, found) = match (expected, found) {
            (None, None) => return,
            (Some(expected), Some(found)) => (expected, found),
            (Some(expected), None) => {
                let topic = expected.topic.clone().unwrap_or_else(|| "a publication".to_owned());
                return self.add(part, Some(topic), None);
            }
            (None, Some(found)) => return self.add(part, None, Some(words(found))),
        };
        let properties = &found.properties;
        self.texts(&format!("{part}: topic"), expected.topic.as_ref(), Some(&found.topic));
        self.content(&format!("{part}: payload"), expected.payload.as_ref(), &found.payload);
        let correlation = properties.correlation_data.as_deref().map(String::from_utf8_lossy);
        for (name, expected, found) in [
            ("correlation", &expected.correlation, correlation.as_deref()),
            ("response_topic", &expected.response_topic, properties.response_topic.as_deref()),
            ("content_type", &expected.content_type, properties.content_type.as_deref()),
        ] {
            self.texts(&format!("{part}: {name}"), expected.as_ref(), found);
        }
        if let Some(expected) = expected.retain.filter(|expected| *expected != found.retain) {
            let part = format!("{part}: retain");
            self.add(&part, Some(expected.to_string()), Some(found.retain.to_string()));
        }
        for (name, value) in &expected.properties {
            let found = properties.user.get(name).next();
            // Whose it is stands in every publication of a gateway.
            if name != VIA || !value.is_empty() {
                self.text(&format!("{part}: property {name}"), value, found);
            }
        }
    }
}

fn header(headers: &HeaderMap, name: &http::HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn place(part: &str, path: &str) -> String {
    if path.is_empty() { part.to_owned() } else { format!("{part} {path}") }
}

fn cut(value: &Value) -> String {
    shown(&value.to_string().into())
}

/// Bytes for people.
pub(super) fn shown(bytes: &Bytes) -> String {
    crate::log::printable::short_line(&String::from_utf8_lossy(bytes), SHOWN)
}

/// Whether two JSON values mean the same: 1 and 1.0 do.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let is_same = |(name, a)| b.get(name).is_some_and(|b| same(a, b));
            a.len() == b.len() && a.iter().all(is_same)
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_that_differs_is_shown_place_by_place() {
        let mut differences = Differences::default();
        let expected = json!({"a": 1, "b": {"c": [1, 2, 3]}, "d": "x"});
        let found = json!({"a": 1.0, "b": {"c": [1, 4]}, "e": null});
        differences.values("body", "", &expected, &found);
        let words = differences.found.iter().map(|difference| {
            let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            format!(
                "{} {} {}",
                difference.part,
                text(&difference.expected),
                text(&difference.found)
            )
        });
        let words: Vec<_> = words.collect();
        assert_eq!(
            words,
            ["body .b.c[1] 2 4", "body .b.c[2] 3 -", "body .d \"x\" -", "body .e - null"]
        );
    }
}
