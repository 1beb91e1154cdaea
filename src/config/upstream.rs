//! Reads `[upstream]` and what is below it.

use std::sync::Arc;

use http::StatusCode;

use super::{
    auth::{auth, sign},
    fetch::statuses,
    files::certificates,
    reader::Section,
    request::{Common, headers},
    secrets::Secrets,
    values::{
        base_url, duration, key_header, key_prefix, number, one_of, positive_duration, probe_path,
        proxy, size,
    },
};
use crate::{
    backoff::Backoff,
    upstream::{BreakerSettings, HttpVersion, Rates, Settings},
};

/// And what all calls have in common. `device` says in which header a device's key goes upstream.
pub(super) fn read<'a>(
    root: &Section<'a>,
    device: &Section<'a>,
    secrets: &Secrets<'a>,
) -> (Settings, Common) {
    let section = root.section("upstream");
    let url = section.required_value("url", base_url, "missing: where the REST API lives");
    let attempt_timeout = section.value("attempt_timeout", positive_duration);
    let deadline = section.value("deadline", positive_duration);
    if attempt_timeout > deadline {
        let text = "longer than `deadline`, which ends all attempts; write at most its value";
        section.mistake(None, "attempt_timeout", text);
    }
    let settings = Settings {
        attempt_timeout,
        deadline,
        max_in_flight: section.value("max_in_flight", number),
        max_request_bytes: section.value("max_request_bytes", size),
        max_response_bytes: section.value("max_response_bytes", size),
        max_held_response_bytes: section.value("max_held_response_bytes", size),
        max_filter_bytes: section.value("max_filter_bytes", size),
        key_header: device.value("key_header", key_header),
        key_prefix: device.value("key_prefix", key_prefix).into(),
        // They come with the table, which uses them too.
        secrets: Arc::default(),
        auth: auth(&section, secrets).map(Arc::new),
        refused_on: refused_on(&section),
        proxy: section.parsed("proxy", proxy),
        http_version: section.value("http_version", |text| one_of(text, &HttpVersion::WORDS)),
        tls: certificates(&section, url.scheme() == "https"),
        backoff: backoff(&section),
        breaker: breaker(&section),
        rates: rates(&section),
        in_process: None,
        url,
    };
    if settings.http_version == HttpVersion::Two
        && settings.proxy.is_some()
        && settings.url.scheme() == "http"
    {
        let text = "no proxy takes HTTP/2 for an http:// url; write \"auto\"";
        section.mistake(None, "http_version", text);
    }
    let headers = headers(&section, secrets).into_iter();
    let headers = headers.filter_map(|(name, value)| Some((name, value?))).collect();
    let common = Common { headers, sign: sign(&section, secrets).map(Arc::new) };
    section.finish();
    (settings, common)
}

/// Left out it is 401.
fn refused_on(section: &Section<'_>) -> Box<[StatusCode]> {
    let statuses = statuses(section, "refused_on");
    if !section.is_written("refused_on") {
        return [StatusCode::UNAUTHORIZED].into();
    }
    if statuses.iter().any(|status| status.as_u16() < 400) {
        let text = "only statuses from 400 on refuse anything; take the others out";
        section.mistake(None, "refused_on", text);
    }
    statuses.into()
}

fn backoff(upstream: &Section<'_>) -> Backoff {
    let retry = upstream.section("retry");
    let backoff =
        Backoff { initial: retry.value("initial", duration), max: retry.value("max", duration) };
    if backoff.initial > backoff.max {
        retry.mistake(None, "initial", "longer than `max`; write at most its value");
    }
    retry.finish();
    backoff
}

fn breaker(upstream: &Section<'_>) -> BreakerSettings {
    let breaker = upstream.section("breaker");
    let settings = BreakerSettings {
        devices: breaker.value("devices", number),
        probe: Backoff {
            initial: breaker.value("probe", duration),
            max: breaker.value("probe_max", duration),
        },
        probe_path: breaker.value("probe_path", probe_path),
    };
    breaker.finish();
    settings
}

fn rates(upstream: &Section<'_>) -> Rates {
    let rate = upstream.section("rate");
    let rates = Rates {
        total: rate.parsed("total", str::parse),
        per_device: rate.parsed("per_device", str::parse),
        // These come with the table.
        rows: Vec::new(),
    };
    rate.finish();
    rates
}
