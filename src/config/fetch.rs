//! Reads rows of `[[fetch]]`.

use std::sync::Arc;

use toml::de::DeValue;

use super::{
    filters::Filters,
    reader::Section,
    request::Requests,
    values::{duration, positive_duration, topic_template, truth},
};
use crate::{
    call::{Endpoint, StatusCode},
    failure::Transience,
    table::{every::Every, fetch::Fetch},
    template::Template,
};

/// What an `every` filter cannot read: no message sets it off, and it speaks for no device.
const OF_A_MESSAGE: [&str; 4] = ["$memory", "$payload", "$captures", "$message"];

/// `None` if the row has no name or topic, which is noted. `is_member` says that the gateway is one of a share group.
pub(super) fn read<'a>(
    row: Section<'a>,
    name: Option<Arc<str>>,
    filters: &Filters<'a>,
    requests: &Requests<'_, 'a>,
    is_member: bool,
) -> Option<Arc<Fetch>> {
    let push = row.required("push", topic_template, "missing: the topic to push on");
    let call = requests.call(&row);
    let response_topic = row.parsed("response_topic", topic_template);
    let remember = filters.get(&row, "remember");
    if remember.is_some() && call.is_none() {
        let text =
            "without `call` there is no answer but that of the route; write `remember` there";
        row.mistake(None, "remember", text);
    }
    let payload = filters.get(&row, "payload");
    let correlation = filters.get(&row, "correlation");
    let empty_on = statuses(&row, "empty_on");
    check_final(&row, "empty_on", &empty_on);
    let redeliver_after = row.parsed("redeliver_after", duration);
    let retain = row.parsed("retain", truth).unwrap_or_default();
    let period = row.parsed("every", positive_duration);
    let (on_change, values) = (filters.get(&row, "on_change"), filters.named(&row, "values"));
    let idle = [("on_change", on_change.is_some()), ("values", !values.is_empty())];
    let every = period.map(|period| Every { period, on_change, values });
    let fetch = push.map(|push| Fetch {
        name: name.clone().unwrap_or_default(),
        call,
        push,
        response_topic,
        remember,
        payload,
        correlation,
        empty_on,
        redeliver_after,
        retain,
        every,
    });
    match fetch.as_ref().map(|fetch| (fetch, &fetch.every)) {
        Some((fetch, Some(every))) => check_every(&row, fetch, every, is_member),
        Some((_, None)) => check_set_off(&row, idle),
        None => {}
    }
    row.finish();
    name.and(fetch).map(Arc::new)
}

/// A fetch that a route sets off, which has no use for these.
fn check_set_off(row: &Section<'_>, idle: [(&'static str, bool); 2]) {
    for (key, is_there) in idle {
        // What is wrong with `every` itself is noted.
        if is_there && !row.has_mistake("every") {
            let text = format!(
                "`{key}` is for a fetch that runs by itself; write `every`, or take it out"
            );
            row.mistake(None, key, text);
        }
    }
}

/// The call of a fetch that runs by itself.
fn check_call(row: &Section<'_>, call: &Endpoint) {
    for (key, template) in call.templates() {
        for name in template.names() {
            let text = format!(
                "`{{{name}}}` has no value: no message sets this fetch off, so its call is always the same"
            );
            row.mistake(None, key, text);
        }
    }
    if call.places_key() {
        let text = "`{$key}` has no value: this fetch runs by itself and speaks for no device";
        row.mistake(None, "call", text);
    }
}

/// A fetch that runs by itself.
fn check_every(row: &Section<'_>, fetch: &Fetch, every: &Every, is_member: bool) {
    if is_member {
        let text = "each member of the share_group would ask; give it to a gateway without [broker] share_group";
        row.mistake(None, "every", text);
    }
    match &fetch.call {
        None => row.mistake(None, "every", "there is nothing to ask for; write `call`"),
        Some(call) => check_call(row, call),
    }
    let (remember, redeliver_after) = (fetch.remember.is_some(), fetch.redeliver_after.is_some());
    for (key, is_there, why) in [
        ("remember", remember, "it speaks for no device of which something could be remembered"),
        ("redeliver_after", redeliver_after, "`on_change` says what is pushed again"),
    ] {
        if is_there {
            row.mistake(None, key, format!("not with `every`: {why}; take it out"));
        }
    }
    let topics = [("push", Some(&fetch.push)), ("response_topic", fetch.response_topic.as_ref())];
    for (key, topic) in topics {
        let names = topic.into_iter().flat_map(Template::names);
        for name in names.filter(|name| every.values.iter().all(|(n, _)| **n != **name)) {
            let text = format!("`{{{name}}}` is not among `values`, which names the levels");
            row.mistake(None, key, text);
        }
    }
    for (name, _) in &every.values {
        let used = topics.iter().filter_map(|(_, topic)| *topic).flat_map(Template::names);
        if used.into_iter().all(|used| *used != **name) {
            let text = format!("`{name}` stands in no topic of this fetch; take it out");
            row.mistake(None, "values", text);
        }
    }
    let values = every.values.iter().map(|(_, filter)| ("values", filter));
    let others = [
        ("payload", &fetch.payload),
        ("correlation", &fetch.correlation),
        ("on_change", &every.on_change),
    ];
    let others = others.into_iter().filter_map(|(key, filter)| Some((key, filter.as_ref()?)));
    for (key, filter) in values.chain(others) {
        if let Some(name) = OF_A_MESSAGE.iter().find(|name| filter.as_str().contains(**name)) {
            let text = format!("no message sets this fetch off, so there is no `{name}`");
            row.mistake(None, key, text);
        }
    }
}

/// An array of HTTP statuses.
pub(super) fn statuses(row: &Section<'_>, key: &'static str) -> Vec<StatusCode> {
    let status = |value: &DeValue<'_>| match value {
        DeValue::Integer(number) => StatusCode::from_u16(number.to_string().parse().ok()?).ok(),
        _ => None,
    };
    let statuses = row.array(key).into_iter().filter_map(|value| {
        let status = status(value.get_ref());
        if status.is_none() {
            let text = "expected HTTP statuses, [404, 422] for example";
            row.mistake(Some(value.span()), key, text);
        }
        status
    });
    statuses.collect()
}

/// A status that says "not now" is asked again, and never reached.
pub(super) fn check_final(row: &Section<'_>, key: &'static str, statuses: &[StatusCode]) {
    for status in statuses.iter().filter(|status| Transience::of(**status) != Transience::Final) {
        let text =
            format!("a call that is answered {} is made again; take it out", status.as_u16());
        row.mistake(None, key, text);
    }
}
