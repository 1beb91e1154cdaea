//! One attempt: a call becomes one HTTP exchange, bounded in time and size.

use std::{
    error::Error as _,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    Response,
    header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    Settings,
    budget::{Budget, Reserved},
};
use crate::{
    call::{Answer, Authorization, Call, JSON, Retry, SMALL_ANSWER, StatusCode},
    failure::{Failure, FailureKind, Transience},
    metrics::{Attempt, Metrics},
    tls::{self, TlsError},
};

/// Idle connections are closed before servers close them, which many do after 5 s, so that a request rarely
/// meets a connection that is just going away.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections are not used for longer, so that a name that moves to another address is followed, and
/// certificate files that are renewed are read.
const MAX_AGE: Duration = Duration::from_mins(1);
/// The part of an attempt's time that a call gets whose time is up and whose device hangs.
const HURRIED: u32 = 10;

const CONTENT_TYPE_JSON: HeaderValue = HeaderValue::from_static(JSON);

/// Longest `Retry-After` that is told on: clocks cannot count to what a server may say.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24 * 366);

/// What a machine says that has nothing left to make a call with: EMFILE, ENFILE, ENOMEM, ENOBUFS, EADDRNOTAVAIL
/// (as Linux numbers them).
const LOCAL_FAULTS: [i32; 5] = [24, 23, 12, 105, 99];

/// The HTTP client as a tower service.
#[derive(Clone)]
pub(super) struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    http: Mutex<Http>,
    settings: Settings,
    /// The upstream's URL without a trailing slash.
    base: String,
    budget: Budget,
    metrics: Arc<Metrics>,
}

/// Connections.
struct Http {
    /// Kept and used again.
    kept: reqwest::Client,
    /// One for each request: where a request must not meet a connection that the server is about to close, and where
    /// the name should be looked up anew.
    fresh: reqwest::Client,
    made: Instant,
}

impl Http {
    fn new(settings: &Settings) -> Result<Self, ClientError> {
        let encrypted = settings.url.scheme() == "https"
            || settings.proxy.as_ref().is_some_and(|proxy| proxy.expose().starts_with("https:"));
        let tls = if encrypted { settings.tls.client()? } else { tls::Settings::unused()? };
        let client = |idle: usize| -> Result<reqwest::Client, ClientError> {
            let builder = reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                // Redirects could lead a key to a host the operator never named.
                .redirect(redirect::Policy::none())
                // reqwest's own repetition would be invisible to the limits and to the metrics.
                .retry(reqwest::retry::never())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(idle)
                .connect_timeout(settings.attempt_timeout)
                .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
            let builder = match &settings.proxy {
                Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.expose())?),
                // What is in force stands in the configuration, not in the environment.
                None => builder.no_proxy(),
            };
            Ok(builder.build()?)
        };
        let (kept, fresh) = (client(settings.max_in_flight)?, client(0)?);
        Ok(Self { kept, fresh, made: Instant::now() })
    }
}

/// Why the client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A certificate file.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Anything else, the proxy for example.
    #[error("the HTTP client cannot be set up: {0}")]
    Http(#[from] reqwest::Error),
}

impl Client {
    pub(super) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, ClientError> {
        let shared = Shared {
            http: Mutex::new(Http::new(settings)?),
            base: settings.base().to_owned(),
            budget: Budget::new(settings.max_held_response_bytes, settings.max_response_bytes),
            settings: settings.clone(),
            metrics,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A connection that is kept, or a fresh one.
    fn http(&self, fresh: bool) -> reqwest::Client {
        // No code that can panic runs under this lock.
        let mut http = self.shared.http.lock().unwrap_or_else(PoisonError::into_inner);
        if http.made.elapsed() >= MAX_AGE {
            match Http::new(&self.shared.settings) {
                Ok(new) => *http = new,
                Err(error) => {
                    http.made = Instant::now();
                    tracing::error!(%error, "the HTTP client goes on with the certificates it has");
                }
            }
        }
        if fresh { http.fresh.clone() } else { http.kept.clone() }
    }

    /// Asks whether anything answers at this path: whatever says more than "not now".
    pub(super) async fn probe(&self, path: &str) -> Result<(), String> {
        match self.get(path).await {
            Ok(status) if Transience::of(status) != Transience::Final => {
                Err(format!("the API answers {status}"))
            }
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// One GET without credentials, on a connection of its own; its body is not read.
    pub(super) async fn get(&self, path: &str) -> Result<StatusCode, FailureKind> {
        let url = format!("{}{path}", self.shared.base);
        let request = self.http(true).get(url).timeout(self.shared.settings.attempt_timeout);
        request.send().await.map(|response| response.status()).map_err(|error| classify(&error))
    }

    async fn attempt(self, call: Call) -> Result<Answer, Failure> {
        let began = Instant::now();
        if let Some(queued) = call.queued {
            // Waiting for a place among those under way is our own limit.
            call.trial.excuse(began - queued);
        }
        let time = self.shared.settings.attempt_timeout;
        let time = if call.hurried { time / HURRIED } else { time };
        let result = self.exchange(&call, began + time).await;
        let ended = match &result {
            Ok(answer) => Attempt::Answered(answer.status.as_u16()),
            Err(kind) => Attempt::Failed(kind.attempt()),
        };
        self.shared.metrics.attempt(&call.name, ended, began.elapsed());
        tracing::debug!(
            route = %call.name, device = ?call.device, method = %call.method, ?ended,
            elapsed = ?began.elapsed(), "attempt"
        );
        result.map_err(Failure::from)
    }

    async fn exchange(&self, call: &Call, end: Instant) -> Result<Answer, FailureKind> {
        let clock = Clock { end, expires: call.expires };
        let settings = &self.shared.settings;
        let url = Url::parse(&format!("{}{}", self.shared.base, call.path))
            .map_err(|error| FailureKind::Broken(error.to_string()))?;
        // A repetition goes to where the name points to now. What may not be sent twice must not meet
        // a connection that the server closes at that moment.
        let once = match call.retry {
            Retry::Always => false,
            Retry::Idempotent => !call.method.is_idempotent(),
            Retry::Never => true,
        };
        let mut request = self.http(call.attempts > 0 || once).request(call.method.clone(), url);
        match &call.authorization {
            Authorization::SpeakersKey(key) => {
                let value = format!("{}{}", settings.key_prefix, key.expose());
                let mut value = HeaderValue::try_from(value)
                    .map_err(|_| FailureKind::Broken("the key is no header value".to_owned()))?;
                value.set_sensitive(true);
                request = request.header(settings.key_header.clone(), value);
            }
            Authorization::None => {}
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, CONTENT_TYPE_JSON).body(body.clone());
        }
        let response = clock.bound(request.send()).await?.map_err(|error| classify(&error))?;
        let (status, headers) = (response.status(), response.headers());
        if let Some(coding) = coding(headers) {
            return Err(FailureKind::Coding(coding));
        }
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let retry_after = headers.get(RETRY_AFTER).and_then(|v| retry_after(v, headers.get(DATE)));
        let body = self.body(response, clock).await?;
        Ok(Answer { status, content_type, body, retry_after, attempts: 1 })
    }

    async fn body(&self, mut response: Response, mut clock: Clock) -> Result<Bytes, FailureKind> {
        let max = self.shared.settings.max_response_bytes;
        // What is larger is found out when it comes: it may not.
        let length = response.content_length();
        let length = length.map(|length| usize::try_from(length).unwrap_or(max).min(max));
        // Before anything of it is read: the client library reads ahead, up to 0.4 MiB at a time.
        let mut reserved = match length {
            Some(length) if length > SMALL_ANSWER => Some(self.reserve(length, &mut clock).await),
            _ => None,
        };
        // Copied, since a chunk is a part of the connection's buffer: a reply that waits for the broker
        // would keep all of it, and the connection would need another.
        let mut body = Vec::with_capacity(length.unwrap_or_default());
        while let Some(chunk) =
            clock.bound(response.chunk()).await?.map_err(|error| classify(&error))?
        {
            if body.len() + chunk.len() > max {
                return Err(FailureKind::AnswerTooLarge(max));
            }
            body.extend_from_slice(&chunk);
            drop(chunk);
            if body.len() > SMALL_ANSWER && reserved.is_none() {
                reserved = Some(self.reserve(max, &mut clock).await);
            }
        }
        // What it has grown by in vain is not counted.
        body.shrink_to_fit();
        Ok(match reserved {
            None => body.into(),
            Some(reserved) => reserved.hold(body),
        })
    }

    /// Waits for room for an answer, which is no fault of the API.
    async fn reserve(&self, bytes: usize, clock: &mut Clock) -> Reserved {
        let waits = Instant::now();
        let reserved = self.shared.budget.reserve(bytes).await;
        clock.end += waits.elapsed();
        reserved
    }
}

/// What bounds an attempt in time.
#[derive(Clone, Copy)]
struct Clock {
    end: Instant,
    expires: Option<Instant>,
}

impl Clock {
    async fn bound<F: Future>(&self, exchange: F) -> Result<F::Output, FailureKind> {
        let end = self.expires.map_or(self.end, |expires| expires.min(self.end));
        timeout_at(end, exchange).await.map_err(|_| {
            // An attempt that the message's own expiry cuts short says nothing about the API.
            if end < self.end { FailureKind::Expired } else { FailureKind::AttemptTimeout }
        })
    }
}

/// A content coding that is left on an answer: those that are understood are taken off before.
fn coding(headers: &HeaderMap) -> Option<String> {
    let coding = headers.get(CONTENT_ENCODING)?.to_str().unwrap_or("?").trim();
    (!coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
        .then(|| coding.escape_debug().take(40).collect())
}

impl tower::Service<Call> for Client {
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        Box::pin(self.clone().attempt(call))
    }
}

/// What a client error means for the next attempt. The text names causes, never the request.
fn classify(error: &reqwest::Error) -> FailureKind {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text.push_str(tls::remedy(error));
    if let Some(io) = io_error(error) {
        if io.raw_os_error().is_some_and(|code| LOCAL_FAULTS.contains(&code)) {
            return FailureKind::Local(text);
        }
        // An answer that is not coded as it says.
        if matches!(io.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
            && error.is_decode()
        {
            return FailureKind::Coding(text);
        }
    }
    if error.is_timeout() {
        FailureKind::AttemptTimeout
    } else if error.is_connect() {
        FailureKind::Unreachable(text)
    } else {
        FailureKind::Broken(text)
    }
}

/// The system's own error below a client error.
fn io_error<'e>(error: &'e reqwest::Error) -> Option<&'e io::Error> {
    let mut cause: Option<&'e (dyn std::error::Error + 'static)> = error.source();
    let mut found = None;
    while let Some(error) = cause {
        found = error.downcast_ref::<io::Error>().or(found);
        cause = error.source();
    }
    found
}

/// `Retry-After` in seconds or as a date [RFC 9110, 10.2.3]; a date is read by the clock of who wrote it.
fn retry_after(value: &HeaderValue, date: Option<&HeaderValue>) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let parse = |text: &str| httpdate::parse_http_date(text.trim()).ok();
    let then = parse(text)?;
    let now = date.and_then(|date| parse(date.to_str().ok()?)).unwrap_or_else(SystemTime::now);
    Some(then.duration_since(now).unwrap_or_default().min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_the_expiry_cuts_short_is_no_time_out() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let hang = std::future::pending::<()>;
        let own = Clock { end: now + 2 * second, expires: Some(now + second) };
        assert_eq!(own.bound(hang()).await, Err(FailureKind::Expired));
        assert_eq!(now.elapsed(), second);
        let attempt = Clock { expires: Some(now + 3 * second), ..own };
        assert_eq!(attempt.bound(hang()).await, Err(FailureKind::AttemptTimeout));
        assert_eq!(now.elapsed(), 2 * second);
    }

    #[test]
    fn retry_after_comes_in_two_forms() {
        let parse = |text: &str| retry_after(&HeaderValue::try_from(text).unwrap(), None);
        assert_eq!(parse("120"), Some(Duration::from_mins(2)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        let left = parse(&date).unwrap();
        assert!(left > Duration::from_secs(80) && left <= Duration::from_secs(90), "{left:?}");
        assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("18446744073709551615"), Some(MAX_RETRY_AFTER));
        assert_eq!(parse("soon"), None);
        // Its clock is an hour behind ours.
        let at = |text: &str| HeaderValue::try_from(text).unwrap();
        let (date, then) = ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:29:00 GMT");
        assert_eq!(retry_after(&at(then), Some(&at(date))), Some(Duration::from_mins(1)));
    }
}
