//! Reads `batch`: how calls of one row travel as one.

use std::time::Duration;

use super::{
    body::Body,
    filters::Filters,
    reader::Section,
    request::Requests,
    values::{duration, endpoint, non_empty, number},
};
use crate::{
    call::{Batch, BatchForm, Endpoint, Entries, Join, Retry},
    table::{
        content::{Kind, Takes},
        join,
        route::Credentials,
    },
};

/// Most calls in a batch whose row says nothing of it.
const MAX: usize = 100;
/// How long a call waits for others to travel with if its row says nothing of it.
const LINGER: Duration = Duration::ZERO;
/// The member of a batch's answer that says that one of its calls failed, if its row says nothing of it.
const ERROR: &str = "error";

/// What a batch has to fit.
pub(super) struct Fits<'r, 'a> {
    pub(super) call: Option<&'r Endpoint>,
    pub(super) body: &'r Body,
    pub(super) retry: Retry,
    pub(super) credentials: Credentials,
    pub(super) requests: &'r Requests<'r, 'a>,
}

/// With `key`, or a `call` of its own, a batch has an entry for each device; else it is the row's call with the bodies of
/// all.
pub(super) fn read<'a>(
    row: &Section<'a>,
    filters: &Filters<'a>,
    fits: &Fits<'_, 'a>,
) -> Option<Batch> {
    let entry = row.inline_at("batch")?;
    let max = entry.optional("max", number).unwrap_or(MAX);
    let linger = entry.optional("linger", duration).unwrap_or(LINGER);
    if linger >= fits.requests.deadline {
        let text =
            "a call would wait here for as long as [upstream] `deadline` gives it; write less";
        row.mistake(None, "linger", text);
    }
    let form = if entry.has("key") || entry.has("call") {
        let form = entries(&entry, fits.call);
        if let Some(form) = &form {
            fits.requests.check_secrets(row, "batch", &form.endpoint);
        }
        form.map(BatchForm::Entries)
    } else {
        joined(row, &entry, filters, fits.body).map(BatchForm::Joined)
    };
    entry.finish();
    let form = form?;
    check(row, &form, fits);
    Some(Batch { max, linger, form })
}

/// They have the headers of the row's `call`.
fn entries(entry: &Section<'_>, row: Option<&Endpoint>) -> Option<Entries> {
    let call = entry.required("call", endpoint, "missing: the call for many devices");
    let missing = "missing: the member of an entry that carries the device's key";
    let key = entry.required("key", non_empty, missing);
    let error = entry.optional("error", non_empty).map_or(ERROR.into(), Into::into);
    if entry.take("join").is_some() {
        let text = "with `key` each body is an entry of its own, and nothing is joined; take one of the two out";
        entry.mistake(None, "join", text);
    }
    let headers = row.map(|row| row.headers.clone()).unwrap_or_default();
    let sign = row.and_then(|row| row.sign.clone());
    let endpoint = Endpoint { headers, sign, ..call? };
    Some(Entries { endpoint, key: key.unwrap_or_default().into(), error })
}

/// How the row's bodies become one.
fn joined<'a>(
    row: &Section<'a>,
    entry: &Section<'a>,
    filters: &Filters<'a>,
    body: &Body,
) -> Option<Join> {
    let is_written = entry.has("join");
    let filter = filters.get(entry, "join");
    if body.takes == Takes::Bytes {
        row.mistake(None, "batch", "bytes cannot be joined; take it out");
        return None;
    }
    match body.content_type.kind {
        Kind::Form => {
            row.mistake(None, "batch", "forms cannot be joined; take it out");
            None
        }
        Kind::Lines => {
            if is_written {
                entry.mistake(None, "join", "lines are joined as they are; take it out");
            }
            Some(join::lines())
        }
        Kind::Json => {
            if !is_written {
                let text = "missing: jq over an array of bodies that makes one of them, \".\" for the array itself";
                entry.mistake(None, "join", text);
            }
            let filter = filter?;
            if filter.reads_message() || filter.as_str().contains("$memory") {
                let text = "the bodies are of many messages, so it can read nothing of one; take the variable out";
                entry.mistake(None, "join", text);
            }
            Some(join::json(filter))
        }
    }
}

fn check(row: &Section<'_>, form: &BatchForm, fits: &Fits<'_, '_>) {
    let mistake = |text: &str| row.mistake(None, "batch", text);
    let has_key = fits.credentials != Credentials::None;
    let shared = match form {
        BatchForm::Entries(entries) => {
            if !has_key {
                mistake(
                    "an entry of a batch carries its device's key, and this row's devices have none \
                     (credentials = \"none\"); take `batch` out, or `key` and `call` in it",
                );
            }
            if fits.body.content_type.kind != Kind::Json {
                mistake("the entries of such a batch are JSON; take `batch` or `content_type` out");
            }
            Some(&entries.endpoint)
        }
        BatchForm::Joined(_) => {
            if has_key {
                mistake(
                    "one call cannot carry the keys of several devices; write `credentials = \"none\"`, or `key` \
                     for a call that takes an entry of each",
                );
            }
            fits.call
        }
    };
    if let Some(name) = shared.and_then(|shared| shared.path.names().next()) {
        mistake(&format!("a batch is for many devices, so its path cannot name one: `{{{name}}}`"));
    }
    let names_one = |call: &Endpoint| {
        let mut headers = call.headers.templates();
        headers.any(|(_, value)| value.names().next().is_some()) || call.places_key()
    };
    if shared.is_some_and(names_one) {
        mistake(
            "a batch is for many devices, so neither its path nor its headers can name what is one device's",
        );
    }
    if [shared, fits.call].iter().any(|call| call.is_none_or(|call| !call.takes_body())) {
        mistake("a batch joins bodies; use POST, PUT or PATCH, here and in `call`");
    }
    if fits.retry != Retry::Always {
        mistake("the calls of a batch that fails are repeated one by one; take `retry` out");
    }
}
