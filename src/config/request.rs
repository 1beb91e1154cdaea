//! Reads what a row says of its requests: `call` and `headers`.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, header::AUTHORIZATION};
use toml::de::DeValue;

use super::{
    auth::sign,
    reader::Section,
    secrets::Secrets,
    values::{endpoint, is_reserved_header},
};
use crate::{
    call::{Endpoint, headers::Headers, sign::Sign},
    secrets::is_printable,
    template::Template,
    upstream::Settings,
};

/// What the requests of all rows have in common.
pub(super) struct Requests<'s, 'a> {
    pub(super) secrets: &'s Secrets<'a>,
    pub(super) common: Common,
    /// Where a device's key goes if nothing else is said.
    pub(super) key_header: HeaderName,
    /// Whether `[upstream.auth]` makes the header `Authorization`.
    pub(super) has_auth: bool,
    /// How long each of them may take, with all attempts.
    pub(super) deadline: Duration,
}

/// What `[upstream]` says of them.
pub(super) struct Common {
    pub(super) headers: Vec<(HeaderName, Template)>,
    pub(super) sign: Option<Arc<Sign>>,
}

impl<'s, 'a> Requests<'s, 'a> {
    pub(super) fn new(secrets: &'s Secrets<'a>, common: Common, upstream: &Settings) -> Self {
        let (key_header, has_auth) = (upstream.key_header.clone(), upstream.auth.is_some());
        Self { secrets, common, key_header, has_auth, deadline: upstream.deadline }
    }

    /// The call of a row, with its headers; `None` if it has none, or it is wrong, which is noted.
    pub(super) fn call(&self, row: &Section<'a>) -> Option<Endpoint> {
        let call = row.parsed("call", endpoint);
        let own = headers(row, self.secrets);
        let has_call = row.is_written("call");
        if !own.is_empty() && !has_call {
            row.mistake(None, "headers", "a row without `call` sends none; take them out");
        }
        let own_sign = sign(row, self.secrets).map(Arc::new);
        if row.is_written("sign") && !has_call {
            row.mistake(None, "sign", "a row without `call` sends nothing to sign; take it out");
        }
        let call = call?;
        self.check_secrets(row, "call", &call);
        let mut merged = self.common.headers.clone();
        for (name, value) in own {
            merged.retain(|(other, _)| *other != name);
            merged.extend(value.map(|value| (name, value)));
        }
        if self.has_auth && merged.iter().any(|(name, _)| name == AUTHORIZATION) {
            let text = "`Authorization` is made by [upstream.auth]; take one of the two out";
            row.mistake(None, "headers", text);
        }
        let sign = own_sign.or_else(|| self.common.sign.clone());
        let taken = sign.as_ref().filter(|s| merged.iter().any(|(name, _)| *name == s.header));
        if let Some(sign) = taken {
            let text =
                format!("`{}` is the header of `sign`; take one of the two out", sign.header);
            row.mistake(None, "headers", text);
        }
        Some(Endpoint { headers: Headers::new(merged), sign, ..call })
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
            (true, false) if self.has_auth && header == AUTHORIZATION => Some(
                "`Authorization` carries the device's key on this row ([device] key_header), and [upstream.auth] \
                 makes it; write another key_header, or `{$key}` where the key belongs"
                    .to_owned(),
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
