//! The table in force, in words: for `routes` and for `/routes`. Shows no secret.

use std::fmt::Write;

use serde_json::json;

use super::{
    Table,
    every::Every,
    fetch::{Condition, Then},
};
use crate::{
    call::{
        BatchForm, Endpoint, StatusCode,
        headers::{HIDDEN, is_in_plain_sight},
    },
    filter::Filter,
    secrets,
    template::Template,
    topic::PatternIndex,
};

/// The table in force, a line for each row.
pub(crate) fn table(table: &Table) -> String {
    let mut rows = vec![["NAME", "ON", "CALL", "REPLY", "THEN"].map(str::to_owned)];
    for (row, route) in table.routes.iter().enumerate() {
        let entries: Vec<_> = route.then.iter().map(then).collect();
        let inside = outer(table, row).map(|name| format!(" (inside {name})"));
        rows.push([
            route.name.to_string(),
            format!("{}{}", route.on.as_str(), inside.unwrap_or_default()),
            endpoint(route.call.as_ref()),
            route.reply.as_ref().map_or("-".to_owned(), |reply| retained(reply, route.retain)),
            if entries.is_empty() { "-".to_owned() } else { entries.join(", ") },
        ]);
    }
    let mut text = columns(&rows);
    let mut rows = vec![["FETCH", "PUSH", "CALL", "RESPONSE TOPIC", "EVERY"].map(str::to_owned)];
    for fetch in &table.fetches {
        rows.push([
            fetch.name.to_string(),
            retained(&fetch.push, fetch.retain),
            endpoint(fetch.call.as_ref()),
            fetch.response_topic.as_ref().map_or("-", Template::as_str).to_owned(),
            fetch.every.as_ref().map_or("-".to_owned(), every),
        ]);
    }
    text.push('\n');
    text + &columns(&rows)
}

/// How a fetch runs by itself, in words.
fn every(every: &Every) -> String {
    let period = humantime::format_duration(every.period);
    match &every.on_change {
        None => period.to_string(),
        Some(value) => format!("{period}, on change of {}", value.as_str()),
    }
}

/// A topic, and whether what is published there is retained.
fn retained(topic: &Template, retain: bool) -> String {
    format!("{}{}", topic.as_str(), if retain { " (retained)" } else { "" })
}

/// The row that this one lies in: it gets what this one does not match, and brings what this one does.
fn outer(table: &Table, row: usize) -> Option<&str> {
    table.route(table.patterns.outer(PatternIndex(row))).map(|route| &*route.name)
}

fn endpoint(call: Option<&Endpoint>) -> String {
    call.map_or("-".to_owned(), |call| format!("{} {}", call.method, shown(call.path.as_str())))
}

/// A path and query without values that are likely to be secrets.
pub(crate) fn shown(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        // What is filled in is the device's name for something, or stands there by its own name only.
        Some((name, value)) if secrets::sounds_secret(name) && !value.starts_with(['{', '<']) => {
            format!("{name}=<hidden>")
        }
        _ => pair.to_owned(),
    });
    format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
}

fn columns(rows: &[[String; 5]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The table in force, for programs.
pub(crate) fn table_json(table: &Table) -> String {
    let call = |call: &Option<Endpoint>| call.as_ref().map(|call| endpoint(Some(call)));
    let headers = |call: &Option<Endpoint>| {
        let all = call.iter().flat_map(|call| call.headers.templates());
        let all = all.map(|(name, value)| {
            let hidden = is_in_plain_sight(name, value);
            (name.to_string(), if hidden { HIDDEN } else { value.as_str() }.into())
        });
        all.collect::<serde_json::Map<_, _>>()
    };
    let text = |template: &Option<Template>| template.as_ref().map(|t| t.as_str().to_owned());
    let routes = table.routes.iter().enumerate().map(|(row, route)| {
        json!({
            "name": &*route.name,
            "on": route.on.as_str(),
            "filter": route.on.filter(),
            "inside": outer(table, row),
            "device": route.sender.to_string(),
            "call": call(&route.call),
            "headers": headers(&route.call),
            "reply": text(&route.reply),
            "retain": route.retain,
            "when": route.when.as_ref().map(Filter::as_str),
            "values": route.values.iter().map(|(name, _)| &**name).collect::<Vec<_>>(),
            "takes": route.takes.as_str(),
            "content_type": String::from_utf8_lossy(route.content_type.header.as_bytes()),
            "ok_on": route.ok_on.iter().map(StatusCode::as_u16).collect::<Vec<_>>(),
            "credentials": route.credentials.as_str(),
            "batch": route.batch.as_ref().map(|batch| match &batch.form {
                BatchForm::Entries(entries) => endpoint(Some(&entries.endpoint)),
                BatchForm::Joined(_) => endpoint(route.call.as_ref()),
            }),
            "then": route.then.iter().map(then).collect::<Vec<_>>(),
        })
    });
    let fetches = table.fetches.iter().map(|fetch| {
        json!({
            "name": &*fetch.name,
            "call": call(&fetch.call),
            "headers": headers(&fetch.call),
            "push": fetch.push.as_str(),
            "retain": fetch.retain,
            "every": fetch.every.as_ref().map(every),
            "response_topic": text(&fetch.response_topic),
        })
    });
    let (routes, fetches): (Vec<_>, Vec<_>) = (routes.collect(), fetches.collect());
    json!({ "routes": routes, "fetches": fetches }).to_string()
}

/// One entry of `then`, in words.
pub(crate) fn then(then: &Then) -> String {
    let name = &then.fetch.name;
    match &then.condition {
        Condition::Always => name.to_string(),
        Condition::When(when) => format!("{name} when {}", when.as_str()),
        Condition::OnChange(value) => format!("{name} on change of {}", value.as_str()),
    }
}
