//! Compiles the rows of `[[route]]` and `[[fetch]]`, and checks that they fit each other.

use std::{ops::Range, sync::Arc};

use toml::{Spanned, de::DeValue};

use super::{
    reader::{Reader, Section, unknown},
    values::{duration, number, word},
};
use crate::{
    call::{Batch, Endpoint, Method, Retry, StatusCode},
    filter::Filter,
    table::{
        Table,
        fetch::{Condition, Fetch, Then},
        identity::Identity,
        route::{Credentials, Route},
    },
    template::Template,
    topic::Pattern,
};

/// A row whose `then` is not resolved yet.
struct Draft<'a> {
    route: Route,
    /// Whether its `on` is what was written.
    listens: bool,
    then: Vec<Spanned<DeValue<'a>>>,
    row: Section<'a>,
}

/// Reads both tables.
pub(super) fn read<'a>(reader: &'a Reader<'a>, root: &Section<'a>, identity: Identity) -> Table {
    let fetches: Vec<(Fetch, Range<usize>)> =
        root.rows("fetch").into_iter().filter_map(fetch).collect();
    let drafts: Vec<Draft<'a>> = root.rows("route").into_iter().filter_map(route).collect();
    unique(reader, "route", drafts.iter().map(|draft| (&*draft.route.name, draft.row.span())));
    unique(reader, "fetch", fetches.iter().map(|(fetch, span)| (&*fetch.name, span.clone())));
    overlaps(reader, &drafts);
    let fetches: Vec<Arc<Fetch>> = fetches.into_iter().map(|(fetch, _)| fetch.into()).collect();
    let mut routes = Vec::new();
    for Draft { mut route, listens, then, row } in drafts {
        route.then = then
            .into_iter()
            .filter_map(|entry| self::then(&row, &route, entry, &fetches))
            .collect();
        route.reads_payload = route.body.is_some() || {
            let fetches = route.then.iter().flat_map(|then| then.fetch.filters());
            let filters = route.answer.iter().chain(route.deciding()).chain(fetches);
            filters.into_iter().any(Filter::reads_payload)
        };
        if listens {
            check(&row, &route, &identity);
        }
        row.finish();
        routes.push(route);
    }
    if routes.is_empty() {
        reader.mistake(None, "route", "the table has no [[route]]; the gateway would do nothing");
    }
    Table { routes, fetches, identity }
}

fn route(row: Section<'_>) -> Option<Draft<'_>> {
    let name = name(&row);
    let on = row.required("on", Pattern::parse, "missing: the topic pattern to listen on");
    let listens = on.is_some();
    let call = row.parsed("call", endpoint);
    let body = row.parsed("body", Filter::compile);
    let answer = row.parsed("answer", Filter::compile);
    if body.is_some() && call.is_none() {
        row.mistake(None, "body", "a row without `call` sends no body; take it out");
    }
    if body.as_ref().is_some_and(|body| body.as_str().trim() == "empty") {
        row.mistake(None, "body", "`empty` makes no body: every message would be refused");
    }
    if answer.is_some() && call.is_some() {
        row.mistake(None, "answer", "the answer comes from `call`; take one of them out");
    }
    let route = Route {
        call,
        reply: row.parsed("reply", topic_template),
        body,
        answer,
        credentials: row
            .parsed("credentials", |text| one_of(text, &Credentials::WORDS))
            .unwrap_or_default(),
        retry: row
            .parsed("retry", |text| {
                one_of(
                    text,
                    &[
                        ("always", Retry::Always),
                        ("idempotent", Retry::Idempotent),
                        ("never", Retry::Never),
                    ],
                )
            })
            .unwrap_or_default(),
        rate: row.parsed("rate", str::parse),
        batch: row.inline_at("batch").and_then(batch).map(Arc::new),
        remember: row.parsed("remember", Filter::compile),
        then: Vec::new(),
        reads_payload: false,
        name: name?,
        // Read although it is wrong or missing, so that the rest of the row is checked as well.
        on: on.unwrap_or_else(|| Pattern::parse("-").expect("a plain word is a pattern")),
    };
    if route.rate.is_some() && route.call.is_none() {
        let text = "it limits `call`, and there is none; fetches are limited by [upstream.rate] per_device";
        row.mistake(None, "rate", text);
    }
    if let Some(batch) = &route.batch {
        let names = batch.endpoint.path.names().next();
        if let Some(name) = names {
            let text = format!("a batch is for many devices; `{{{name}}}` would be one of them");
            row.mistake(None, "batch", text);
        }
        if !batch.endpoint.takes_body() || route.call.as_ref().is_none_or(|c| !c.takes_body()) {
            row.mistake(
                None,
                "batch",
                "bodies travel in it: it takes POST, PUT or PATCH, here and in `call`",
            );
        }
        if route.retry != Retry::Always {
            let text = "a batch that breaks off is sent again singly: leave out `retry`";
            row.mistake(None, "batch", text);
        }
    }
    Some(Draft { route, listens, then: row.array("then"), row })
}

fn batch(entry: Section<'_>) -> Option<Batch> {
    let call = entry.required("call", endpoint, "missing: the call for many devices");
    let key = "missing: the member of an entry that carries the device's key";
    let key = entry.required("key", word, key);
    let (max, linger) = (entry.or("max", "100", number), entry.or("linger", "0s", duration));
    let error = entry.or("error", "error", word).into();
    entry.finish();
    Some(Batch { endpoint: call?, max, linger, key: key.unwrap_or_default().into(), error })
}

fn fetch(row: Section<'_>) -> Option<(Fetch, Range<usize>)> {
    let name = name(&row);
    let push = row.required("push", topic_template, "missing: the topic to push on");
    let call = row.parsed("call", endpoint);
    let empty_on = row.array("empty_on").into_iter().filter_map(|value| {
        let status = match value.get_ref() {
            DeValue::Integer(number) => number.to_string().parse().ok(),
            _ => None,
        };
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        if status.is_none() {
            row.mistake(
                Some(value.span()),
                "empty_on",
                "HTTP statuses are wanted, [404, 422] for example",
            );
        }
        status
    });
    let empty_on = empty_on.collect();
    let fetch = Fetch {
        call,
        response_topic: row.parsed("response_topic", topic_template),
        payload: row.parsed("payload", Filter::compile),
        correlation: row.parsed("correlation", Filter::compile),
        empty_on,
        redeliver_after: row.parsed("redeliver_after", duration),
        name: name?,
        push: push.unwrap_or_else(|| Template::parse("-").expect("a plain word is a template")),
    };
    let span = row.span();
    row.finish();
    Some((fetch, span))
}

fn then<'a>(
    row: &Section<'a>,
    route: &Route,
    entry: Spanned<DeValue<'a>>,
    fetches: &[Arc<Fetch>],
) -> Option<Then> {
    let span = entry.span();
    let (name, condition) = match entry.into_inner() {
        DeValue::String(name) => (name.into_owned(), Condition::Always),
        DeValue::Table(table) => {
            let entry = row.inline(span.clone(), table);
            let name =
                entry.scalar("fetch").map(|scalar| scalar.text.into_owned()).unwrap_or_default();
            let when = entry.parsed("when", Filter::compile);
            let on_change = entry.parsed("on_change", Filter::compile);
            entry.finish();
            match (when, on_change) {
                (None, None) => (name, Condition::Always),
                (Some(when), None) => (name, Condition::When(when)),
                (None, Some(value)) => (name, Condition::OnChange(value)),
                (Some(_), Some(_)) => {
                    row.mistake(
                        Some(span),
                        "then",
                        "`when` and `on_change` exclude each other; take one out",
                    );
                    return None;
                }
            }
        }
        _ => {
            row.mistake(
                Some(span),
                "then",
                "write \"name\" or { fetch = \"name\", when = \"jq\" }",
            );
            return None;
        }
    };
    let Some(fetch) = fetches.iter().find(|fetch| *fetch.name == *name).cloned() else {
        let hint = unknown(fetches.iter().map(|fetch| &*fetch.name), &name);
        row.mistake(Some(span), "then", format!("there is no fetch `{name}`{hint}"));
        return None;
    };
    // The route listens where the device answers: the names of captures may differ.
    let is_reply_to_push = fetch
        .response_topic
        .as_ref()
        .and_then(|topic| Pattern::parse(topic.as_str()).ok())
        .is_some_and(|topic| topic.filter() == route.on.filter());
    Some(Then { fetch, condition, is_reply_to_push })
}

/// Every name a template uses must be captured by every row that renders it.
fn check(row: &Section<'_>, route: &Route, identity: &Identity) {
    if !route.on.captures(&identity.capture) {
        row.mistake(
            None,
            "on",
            format!(
                "`{}` does not capture `{{{}}}`, which names the device ([device] capture)",
                route.on.as_str(),
                identity.capture
            ),
        );
    }
    if route.batch.is_some() && !route.on.begins_with(&identity.capture) {
        let text = format!(
            "an entry is named by `{{{}}}` alone; capture nothing before it, or two devices would be one",
            identity.capture
        );
        row.mistake(None, "batch", text);
    }
    let uncaptured = |template: &Template| {
        let names = template.names().filter(|name| !route.on.captures(name));
        names
            .map(|name| format!("`{{{name}}}` is not captured by `{}`", route.on.as_str()))
            .collect::<Vec<_>>()
    };
    let own =
        [("call", route.call.as_ref().map(|call| &call.path)), ("reply", route.reply.as_ref())];
    for (key, template) in own {
        for text in template.into_iter().flat_map(uncaptured) {
            row.mistake(None, key, text);
        }
    }
    for Then { fetch, .. } in &route.then {
        let templates = fetch
            .call
            .iter()
            .map(|call| &call.path)
            .chain([&fetch.push])
            .chain(&fetch.response_topic);
        let mut texts: Vec<_> = templates.flat_map(uncaptured).collect();
        texts.dedup();
        for text in texts {
            row.mistake(None, "then", format!("fetch `{}`: {text}", fetch.name));
        }
    }
}

fn overlaps(reader: &Reader<'_>, drafts: &[Draft<'_>]) {
    for (index, draft) in drafts.iter().enumerate().filter(|(_, draft)| draft.listens) {
        let before = drafts[..index].iter().filter(|other| other.listens);
        for other in before.filter(|other| other.route.on.overlaps(&draft.route.on)) {
            reader.mistake(
                Some(draft.row.span()),
                &format!("route `{}`: on", draft.route.name),
                format!(
                    "`{}` and `{}` of route `{}` match the same topics; a topic belongs to one row",
                    draft.route.on.as_str(),
                    other.route.on.as_str(),
                    other.route.name
                ),
            );
        }
    }
}

fn unique<'n>(
    reader: &Reader<'_>,
    kind: &str,
    names: impl Iterator<Item = (&'n str, Range<usize>)>,
) {
    let mut seen = std::collections::BTreeSet::new();
    for (name, span) in names {
        if !seen.insert(name) {
            let text = "another row has this name; names are labels and must be unique";
            reader.mistake(Some(span), &format!("{kind} `{name}`: name"), text);
        }
    }
}

fn name(row: &Section<'_>) -> Option<Arc<str>> {
    let parse = |text: &str| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
        if !text.is_empty() && text.bytes().all(legal) {
            Ok(text.into())
        } else {
            Err(format!("`{text}` is a label; use letters, digits, `_` and `-`"))
        }
    };
    row.required("name", parse, "missing: the label of this row in metrics and logs")
}

fn endpoint(text: &str) -> Result<Endpoint, String> {
    const METHODS: [Method; 6] =
        [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];
    let wanted = || format!("`{text}` is no call; write `POST /path/{{device_id}}`");
    let (method, path) = text.split_once(' ').ok_or_else(wanted)?;
    let path = path.trim();
    let method = METHODS.into_iter().find(|known| known.as_str() == method).ok_or_else(|| {
        format!("`{method}` is no method; write GET, POST, PUT, PATCH, DELETE or HEAD")
    })?;
    if !path.starts_with('/') || path.contains(['#', ' ']) {
        return Err(wanted());
    }
    Ok(Endpoint { method, path: Template::parse(path)? })
}

pub(super) fn topic_template(text: &str) -> Result<Template, String> {
    if text.chars().any(char::is_control) {
        return Err("no control characters here".to_owned());
    }
    if text.contains(['+', '#']) || text.starts_with('$') {
        return Err(format!("`{text}` is no topic to publish on: no wildcards, no leading `$`"));
    }
    Template::parse(text)
}

/// A closed vocabulary.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("`{text}` is not one of {}", words.join(", "))
    })
}
