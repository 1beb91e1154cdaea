//! Reads rows of `[[fetch]]`.

use std::sync::Arc;

use toml::de::DeValue;

use super::{
    filters::Filters,
    reader::Section,
    request::Requests,
    values::{duration, topic_template, truth},
};
use crate::{call::StatusCode, failure::Transience, table::fetch::Fetch};

/// `None` if the row has no name or topic, which is noted.
pub(super) fn read<'a>(
    row: Section<'a>,
    name: Option<Arc<str>>,
    filters: &Filters<'a>,
    requests: &Requests<'_, 'a>,
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
    row.finish();
    Some(Arc::new(Fetch {
        name: name?,
        call,
        push: push?,
        response_topic,
        remember,
        payload,
        correlation,
        empty_on,
        redeliver_after,
        retain,
    }))
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
