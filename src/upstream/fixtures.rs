//! What the tests of the layers need besides calls and answers: a breaker without an API behind it.

use std::{sync::Arc, time::Duration};

use super::{
    BreakerSettings, Settings, client::Client, connector::Resolver, shared_breaker::SharedBreaker,
    throttle::Rates,
};
use crate::{backoff::Backoff, tls};

pub(super) use crate::fixtures::{answer, call};

pub(super) const NO_WAIT: Backoff = Backoff { initial: Duration::ZERO, max: Duration::ZERO };

/// A breaker that sends no probe, and lets calls wait as `retry` says.
pub(super) fn shared_breaker(retry: Backoff) -> Arc<SharedBreaker> {
    let breaker = BreakerSettings {
        devices: 3,
        probe: Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(30) },
        probe_path: None,
    };
    let settings = settings("http://localhost", retry, breaker.clone());
    let client = Client::new(&settings, Resolver::system(), Arc::default());
    let client = client.expect("nothing can be wrong with it");
    SharedBreaker::new(breaker, retry, settings.deadline, client, Arc::default())
}

/// An upstream at this URL.
pub(super) fn settings(url: &str, retry: Backoff, breaker: BreakerSettings) -> Settings {
    Settings {
        in_process: None,
        url: url.parse().expect("a URL"),
        attempt_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(30),
        max_in_flight: 1,
        max_request_bytes: 1,
        max_filter_bytes: 1,
        max_response_bytes: 1,
        max_held_response_bytes: 1,
        key_header: http::header::AUTHORIZATION,
        key_prefix: "".into(),
        secrets: Arc::default(),
        auth: None,
        refused_on: Box::default(),
        proxy: None,
        tls: tls::Settings::default(),
        http_version: super::HttpVersion::Auto,
        backoff: retry,
        breaker,
        rates: Rates::default(),
    }
}
