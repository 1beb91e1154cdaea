//! Reads rows of `[[route]]`.

use std::{collections::BTreeSet, sync::Arc};

use toml::{Spanned, de::DeValue};

use super::{
    batch::{self, Fits},
    body::{self, Body},
    fetch,
    filters::Filters,
    names::nearest,
    reader::Section,
    request::Requests,
    values::{one_of, topic_template, truth},
};
use crate::{
    call::{Batch, BatchForm, Endpoint, Retry, StatusCode},
    filter::Filter,
    table::{
        content::Takes,
        fetch::{Condition, Fetch, Then},
        identity::Identity,
        route::{Credentials, Route},
    },
    template::Template,
    topic::{Pattern, sender::Sender},
};

const RETRY: [(&str, Retry); 3] =
    [("always", Retry::Always), ("idempotent", Retry::Idempotent), ("never", Retry::Never)];

/// A row of `[[fetch]]` as rows of `[[route]]` find it.
pub(super) struct Known {
    pub(super) name: Option<Arc<str>>,
    /// `None` if the row is wrong, which is noted.
    pub(super) fetch: Option<Arc<Fetch>>,
}

impl Known {
    /// Whether it does so, or may be meant to.
    pub(super) fn runs_by_itself(&self) -> bool {
        self.fetch.as_ref().is_none_or(|fetch| fetch.every.is_some())
    }
}

/// `None` if the row has no name or pattern, which is noted; the rest of it is checked all the same.
pub(super) fn read<'a>(
    row: &Section<'a>,
    name: Option<Arc<str>>,
    filters: &Filters<'a>,
    fetches: &[Known],
    identity: &Identity,
    credentials: Credentials,
    requests: &Requests<'_, 'a>,
) -> Option<Route> {
    let on = row.required("on", Pattern::parse, "missing: the topic pattern to listen on");
    let device = row.written("device");
    let says_device = device.is_some();
    let sender = device.and_then(|text| row.parse(text, Sender::made));
    let call = requests.call(row);
    let reply = row.parsed("reply", topic_template);
    let retain = row.parsed("retain", truth).unwrap_or_default();
    if retain && reply.is_none() {
        let text = "only what goes to `reply` is retained, and this row has none; take it out, or write `reply`";
        row.mistake(None, "retain", text);
    }
    let body = body::read(row, filters, call.as_ref());
    let when = filters.get(row, "when");
    let values = values(row, filters, on.as_ref());
    let answer = filters.get(row, "answer");
    let ok_on = ok_on(row, call.as_ref());
    let credentials =
        row.parsed("credentials", |text| one_of(text, &Credentials::WORDS)).unwrap_or(credentials);
    let retry = row.parsed("retry", |text| one_of(text, &RETRY)).unwrap_or_default();
    let rate = row.parsed("rate", str::parse);
    let fits = Fits { call: call.as_ref(), body: &body, retry, credentials, requests };
    let batch = batch::read(row, filters, &fits);
    let Body { takes, content_type, filter: body } = body;
    let remember = filters.get(row, "remember");
    let then = row.array("then").into_iter();
    let then: Vec<Then> =
        then.filter_map(|entry| self::then(row, on.as_ref(), entry, filters, fetches)).collect();
    if rate.is_some() && call.is_none() {
        let text = "it limits `call`, and this row has none; fetches are limited by [upstream.rate] per_device";
        row.mistake(None, "rate", text);
    }
    let mut route = Route {
        name: name?,
        on: on?,
        // Looked at below.
        sender: sender.unwrap_or_else(|| Sender::Captured(identity.capture.clone())),
        call,
        reply,
        retain,
        when,
        values,
        takes,
        content_type,
        body,
        answer,
        ok_on,
        credentials,
        retry,
        rate,
        batch: batch.map(Arc::new),
        remember,
        then,
        reads_payload: false,
    };
    route.reads_payload = reads_payload(&route);
    check_sender(row, &route, says_device);
    check_captures(row, &route);
    check_payload(row, &route);
    check_keys(row, &route, requests);
    Some(route)
}

/// Whether one of the row's filters reads the payload, before the call or after it.
fn reads_payload(route: &Route) -> bool {
    let fetches = route.then.iter().flat_map(|then| then.fetch.filters());
    let mut filters = own(route).chain(fetches);
    let over_it = route.opens().is_some() || route.when.is_some();
    over_it && route.takes != Takes::Bytes || filters.any(|filter| filter.reads().payload)
}

/// The row's own filters that are not there to read the payload, but may.
fn own(route: &Route) -> impl Iterator<Item = &Filter> {
    let values = route.values.iter().map(|(_, filter)| filter);
    route.when.iter().chain(values).chain(&route.answer).chain(route.deciding())
}

/// The names that the payload fills in; the topic's are its own.
fn values<'a>(
    row: &Section<'a>,
    filters: &Filters<'a>,
    on: Option<&Pattern>,
) -> Vec<(Box<str>, Filter)> {
    let values = filters.named(row, "values");
    for (name, _) in values.iter().filter(|(name, _)| on.is_some_and(|on| on.captures(name))) {
        let text = format!(
            "the topic captures `{name}`, and a payload cannot speak for it; take another name"
        );
        row.mistake(None, "values", text);
    }
    values
}

/// Statuses that are successes of this row.
fn ok_on(row: &Section<'_>, call: Option<&Endpoint>) -> Arc<[StatusCode]> {
    let statuses = fetch::statuses(row, "ok_on");
    fetch::check_final(row, "ok_on", &statuses);
    if call.is_none() && !statuses.is_empty() {
        row.mistake(None, "ok_on", "a row without `call` has no answer of the API; take it out");
    }
    if statuses.contains(&StatusCode::UNAUTHORIZED) {
        row.mistake(None, "ok_on", "401 says that the key is refused; take it out");
    }
    statuses.into()
}

/// What reads a payload must be able to.
fn check_payload(row: &Section<'_>, route: &Route) {
    if route.takes == Takes::Bytes && own(route).any(|filter| filter.reads().payload) {
        let text = "no filter reads bytes, and one of this row reads `$payload`; write \"text\" or \"json\"";
        row.mistake(None, "takes", text);
    }
}

/// `on` is the row's pattern, if it is right.
fn then<'a>(
    row: &Section<'a>,
    on: Option<&Pattern>,
    entry: Spanned<DeValue<'a>>,
    filters: &Filters<'a>,
    fetches: &[Known],
) -> Option<Then> {
    let span = entry.span();
    let mistake = |text: &str| row.mistake(Some(span.clone()), "then", text);
    let (name, condition) = match entry.into_inner() {
        DeValue::String(name) => (name.into_owned(), Condition::Always),
        DeValue::Table(table) => {
            let entry = row.inline("then", span.clone(), table);
            let name = entry.written("fetch").map(|scalar| scalar.text.into_owned());
            let (when, on_change) = (filters.get(&entry, "when"), filters.get(&entry, "on_change"));
            entry.finish();
            let condition = match (when, on_change) {
                (None, None) => Condition::Always,
                (Some(when), None) => Condition::When(when),
                (None, Some(value)) => Condition::OnChange(value),
                (Some(_), Some(_)) => {
                    mistake("`when` and `on_change` exclude each other; take one out");
                    return None;
                }
            };
            (name.unwrap_or_default(), condition)
        }
        _ => {
            mistake("write \"name\" or { fetch = \"name\", when = \"jq\" }");
            return None;
        }
    };
    let Some(known) = fetches.iter().find(|known| known.name.as_deref() == Some(&name)) else {
        let hint = nearest(fetches.iter().filter_map(|known| known.name.as_deref()), &name);
        mistake(&format!("unknown fetch `{name}`{hint}"));
        return None;
    };
    let fetch = known.fetch.clone()?;
    if fetch.every.is_some() {
        mistake(&format!("fetch `{name}` runs by itself (`every`); take it out"));
        return None;
    }
    // The route listens where the device answers: the names of captures may differ.
    let answered = fetch.response_topic.as_ref().zip(on);
    let is_reply_to_push = answered
        .is_some_and(|(t, on)| Pattern::of_template(t.as_str(), Some(on)).filter() == on.filter());
    Some(Then { fetch, condition, is_reply_to_push })
}

/// The topics of every row that does something say who sends there.
fn check_sender(row: &Section<'_>, route: &Route, says_device: bool) {
    let on = route.on.as_str();
    match &route.sender {
        // It says it wrongly, which is noted.
        Sender::Captured(_) if says_device => {}
        Sender::Captured(device) => {
            if !route.on.captures(device) && !route.swallows() {
                let text = format!(
                    "`{on}` does not capture `{{{device}}}`, which names the device ([device] capture); capture it, or \
                     say who sends there: `device = \"{{user}}/{{phone}}\"` of other captures, or a constant text"
                );
                row.mistake(None, "on", text);
            }
            let has_entries = |batch: &Arc<Batch>| matches!(batch.form, BatchForm::Entries(_));
            if route.batch.as_ref().is_some_and(has_entries) && !route.on.begins_with(device) {
                let text = format!(
                    "the entries of a batch are named by `{{{device}}}` alone; capture nothing before it, or two \
                     devices would be one"
                );
                row.mistake(None, "batch", text);
            }
        }
        Sender::Made(made) => {
            for name in made.names().filter(|name| !route.on.captures(name)) {
                row.mistake(None, "device", format!("`{{{name}}}` is not captured by `{on}`"));
            }
            if let Some(rest) = route.on.rest()
                && made.names().any(|name| name == rest)
                && !made.ends_with(rest)
            {
                let text = format!(
                    "`{{{rest}}}` captures several levels; put it last, or two devices could have one name"
                );
                row.mistake(None, "device", text);
            }
        }
    }
}

/// Every name that a template uses must be captured by every row that renders it.
fn check_captures(row: &Section<'_>, route: &Route) {
    let on = route.on.as_str();
    let is_value = |name: &str| route.values.iter().any(|(value, _)| **value == *name);
    let uncaptured = |template: &Template| {
        let names = template.names().filter(|name| !route.on.captures(name));
        let text = |name| {
            if is_value(name) {
                format!(
                    "`{{{name}}}` is of `values`: it stands in the row's `call` and `headers`, and in no topic"
                )
            } else {
                format!("`{{{name}}}` is not captured by `{on}`")
            }
        };
        names.map(text).collect::<Vec<_>>()
    };
    let mut used = BTreeSet::new();
    for (key, template) in route.call.iter().flat_map(Endpoint::templates) {
        for name in template.names() {
            used.insert(name);
            if !is_value(name) && !route.on.captures(name) {
                row.mistake(None, key, format!("`{{{name}}}` is not captured by `{on}`"));
            }
        }
    }
    for (name, _) in route.values.iter().filter(|(name, _)| !used.contains(&**name)) {
        let text = format!(
            "`{name}` is unused: neither `call` nor `headers` has `{{{name}}}`; take it out"
        );
        row.mistake(None, "values", text);
    }
    for text in route.reply.iter().flat_map(uncaptured) {
        row.mistake(None, "reply", text);
    }
    for Then { fetch, .. } in &route.then {
        let call = fetch.call.iter().flat_map(Endpoint::templates).map(|(_, template)| template);
        let templates = call.chain([&fetch.push]).chain(&fetch.response_topic);
        let mut texts: Vec<_> = templates.flat_map(uncaptured).collect();
        texts.dedup();
        for text in texts {
            row.mistake(None, "then", format!("fetch `{}`: {text}", fetch.name));
        }
    }
}

/// The device's key goes where the row says, or into its header, and only where there is one.
fn check_keys(row: &Section<'_>, route: &Route, requests: &Requests<'_, '_>) {
    let has_key = route.credentials.give_key();
    let trouble = |call: &Option<Endpoint>| requests.key_trouble(call.as_ref()?, has_key);
    if let Some(text) = trouble(&route.call) {
        row.mistake(None, "headers", text);
    }
    for Then { fetch, .. } in &route.then {
        if let Some(text) = trouble(&fetch.call) {
            row.mistake(None, "then", format!("fetch `{}`: {text}", fetch.name));
        }
    }
}
