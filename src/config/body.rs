//! Reads what a row takes its payloads for and what their bodies are: `takes`, `body`, `content_type`.

use super::{filters::Filters, reader::Section, values::one_of};
use crate::{
    call::Endpoint,
    filter::Filter,
    table::content::{ContentType, Kind, Takes},
};

/// What a row says of payload and body.
pub(super) struct Body {
    pub(super) takes: Takes,
    pub(super) content_type: ContentType,
    pub(super) filter: Option<Filter>,
}

/// Reads it, and checks that it fits together and to the row's `call`.
pub(super) fn read<'a>(row: &Section<'a>, filters: &Filters<'a>, call: Option<&Endpoint>) -> Body {
    let takes = row.parsed("takes", |text| one_of(text, &Takes::WORDS)).unwrap_or_default();
    let content_type: Option<ContentType> = row.parsed("content_type", str::parse);
    let is_typed = content_type.is_some();
    let filter = filters.get(row, "body");
    let body = Body { takes, content_type: content_type.unwrap_or_default(), filter };
    if body.filter.as_ref().is_some_and(|body| body.as_str().trim() == "empty") {
        row.mistake(None, "body", "`empty` makes no body: every message would be refused");
    }
    match call {
        None => without_call(row, &body, is_typed),
        Some(call) if !call.takes_body() && (body.filter.is_none() || !call.may_have_body()) => {
            without_body(row, &body, is_typed, call);
        }
        Some(call) => check(row, &body, call),
    }
    body
}

fn without_call(row: &Section<'_>, body: &Body, is_typed: bool) {
    if body.filter.is_some() {
        row.mistake(None, "body", "a row without `call` sends no body; take it out");
    }
    if is_typed {
        row.mistake(None, "content_type", "a row without `call` sends no body; take it out");
    }
}

fn without_body(row: &Section<'_>, body: &Body, is_typed: bool, call: &Endpoint) {
    for (key, is_there) in [("body", body.filter.is_some()), ("content_type", is_typed)] {
        if is_there {
            let method = &call.method;
            let text =
                format!("a {method} carries no body; take it out, or write POST, PUT or PATCH");
            row.mistake(None, key, text);
        }
    }
}

fn check(row: &Section<'_>, body: &Body, call: &Endpoint) {
    let as_it_came = body.filter.is_none() && call.takes_body();
    match (body.takes, body.content_type.kind) {
        (Takes::Bytes, _) if body.filter.is_some() => {
            let text = "no filter reads bytes; take it out, or write `takes = \"text\"`";
            row.mistake(None, "body", text);
        }
        (Takes::Text, Kind::Json) if as_it_came => {
            let text = "a text is no JSON: write its `content_type`, \"text/plain\" for example, or a `body` \
                        that makes JSON of it";
            row.mistake(None, "takes", text);
        }
        (Takes::Bytes, Kind::Json) if as_it_came => {
            let text = "bytes are no JSON: write their `content_type`, \"image/jpeg\" for example";
            row.mistake(None, "takes", text);
        }
        (Takes::Json, Kind::Form) if as_it_came => {
            let text = "JSON is no form: write a `body` that makes one object of texts and numbers";
            row.mistake(None, "content_type", text);
        }
        _ => {}
    }
}
