//! Reads what a row says of its requests: `call` and `headers`.

use http::HeaderName;
use toml::de::DeValue;

use super::{
    reader::Section,
    secrets::Secrets,
    values::{endpoint, is_reserved_header},
};
use crate::{
    call::Endpoint,
    headers::Headers,
    template::{Template, is_printable},
    upstream::Settings,
};

/// What the requests of all rows have in common.
pub(super) struct Requests<'s, 'a> {
    pub(super) secrets: &'s Secrets<'a>,
    /// The headers of `[upstream]`.
    pub(super) headers: Vec<(HeaderName, Template)>,
    /// Where a device's key goes if nothing else is said.
    pub(super) key_header: HeaderName,
}

impl<'s, 'a> Requests<'s, 'a> {
    pub(super) fn new(
        secrets: &'s Secrets<'a>,
        headers: Vec<(HeaderName, Template)>,
        upstream: &Settings,
    ) -> Self {
        Self { secrets, headers, key_header: upstream.key_header.clone() }
    }

    /// The call of a row, with its headers; `None` if it has none, or it is wrong, which is noted.
    pub(super) fn call(&self, row: &Section<'a>) -> Option<Endpoint> {
        let call = row.parsed("call", endpoint);
        let own = headers(row, self.secrets);
        let has_call = row.is_written("call");
        if !own.is_empty() && !has_call {
            row.mistake(None, "headers", "a row without `call` sends none; take them out");
        }
        let call = call?;
        self.check_secrets(row, "call", &call);
        let mut merged = self.headers.clone();
        for (name, value) in own {
            merged.retain(|(other, _)| *other != name);
            merged.extend(value.map(|value| (name, value)));
        }
        Some(Endpoint { headers: Headers::new(merged), ..call })
    }

    /// Notes an unknown secret in the path.
    pub(super) fn check_secrets(&self, row: &Section<'_>, key: &'static str, call: &Endpoint) {
        if let Some(text) = self.secrets.unknown(&call.path) {
            row.mistake(None, key, text);
        }
    }

    /// What is wrong with a call on a row that sends the device's key, or has none.
    pub(super) fn key_trouble(&self, call: &Endpoint, has_key: bool) -> Option<String> {
        let header = &self.key_header;
        match (has_key, call.places_key()) {
            (false, true) => Some(
                "`{$key}` has no value, since the row asks for no key (`credentials`)".to_owned(),
            ),
            (true, false) if call.headers.templates().any(|(name, _)| name == header) => {
                Some(format!(
                    "the header `{header}` carries the device's key on this row ([device] key_header); leave \
                     it out (`{header} = \"\"`), or write `{{$key}}` where the key belongs"
                ))
            }
            _ => None,
        }
    }
}

/// The table `headers` of a row or of `[upstream]`, each name once; those that are to be left out have no value. What is
/// wrong is noted.
pub(super) fn headers<'a>(
    section: &Section<'a>,
    secrets: &Secrets<'a>,
) -> Vec<(HeaderName, Option<Template>)> {
    let Some(table) = section.inline_at("headers") else { return Vec::new() };
    let mut headers: Vec<(HeaderName, Option<Template>)> = Vec::new();
    for (name, value) in table.entries() {
        let note = |text: &str| {
            section.mistake(Some(value.span()), "headers", format!("`{name}`: {text}"));
        };
        match header(&name, value.get_ref()) {
            Ok((name, _)) if headers.iter().any(|(other, _)| *other == name) => {
                note("it is there twice; take one out");
            }
            Ok((name, template)) => {
                if let Some(text) = template.as_ref().and_then(|t| secrets.unknown(t)) {
                    note(&text);
                }
                headers.push((name, template));
            }
            Err(text) => note(&text),
        }
    }
    headers
}

/// One header; no value leaves it out. Its value is not echoed.
fn header(name: &str, value: &DeValue<'_>) -> Result<(HeaderName, Option<Template>), String> {
    if name.eq_ignore_ascii_case("content-type") {
        return Err("write `content_type = \"...\"` in the row instead".to_owned());
    }
    if is_reserved_header(name) {
        return Err("it is set by HTTP itself; take it out".to_owned());
    }
    let header = name.parse::<HeaderName>();
    let header = header.map_err(|_| "it is no name of a header; use letters, digits and `-`")?;
    let DeValue::String(text) = value else {
        return Err(format!("expected a text, found {}", value.type_str()));
    };
    if text.is_empty() {
        return Ok((header, None));
    }
    if !is_printable(text) {
        return Err("only printable ASCII characters are allowed in a header".to_owned());
    }
    let template = Template::parse(text);
    let wrong = "write `{name}` for what a topic captures and `{$name}` for a secret; other braces cannot stand here";
    Ok((header, Some(template.map_err(|_| wrong)?)))
}
