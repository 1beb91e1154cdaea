//! One attempt: a call becomes one HTTP exchange, bounded in time and size.

use std::{
    error::Error as _,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    Response,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
    redirect,
};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{Settings, breaker::Breaker};
use crate::{
    call::{Answer, Call, Failure, FailureKind, JSON, StatusCode},
    metrics::{Attempt, Metrics},
    tls::{self, TlsError},
};

/// Idle connections are closed before servers commonly close them (60 s and more), so that a
/// request rarely meets a connection that is just going away.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

const CONTENT_TYPE_JSON: HeaderValue = HeaderValue::from_static(JSON);

/// Longest `Retry-After` that is taken at its word. It is longer than any deadline, so a call that is
/// told to wait so long ends at once; and clocks cannot count to what a server may say.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24 * 366);

/// The HTTP client as a tower service.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    shared: Arc<Shared>,
}

struct Shared {
    /// The upstream's URL without a trailing slash.
    base: String,
    attempt_timeout: Duration,
    max_response_bytes: usize,
    key_header: HeaderName,
    key_prefix: Box<str>,
    metrics: Arc<Metrics>,
    breaker: Arc<Breaker>,
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
    pub(super) fn new(
        settings: &Settings,
        metrics: Arc<Metrics>,
        breaker: Arc<Breaker>,
    ) -> Result<Self, ClientError> {
        let encrypted = settings.url.scheme() == "https"
            || settings.proxy.as_ref().is_some_and(|proxy| proxy.expose().starts_with("https:"));
        let tls = if encrypted { settings.tls.client()? } else { tls::Settings::unused()? };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            // Redirects could lead a key to a host the operator never named.
            .redirect(redirect::Policy::none())
            // reqwest's own repetition would be invisible to the limits and to the metrics.
            .retry(reqwest::retry::never())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(settings.max_in_flight)
            .connect_timeout(settings.attempt_timeout)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));
        builder = match &settings.proxy {
            Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.expose())?),
            // What is in force stands in the configuration, not in the environment.
            None => builder.no_proxy(),
        };
        Ok(Self {
            http: builder.build()?,
            shared: Arc::new(Shared {
                base: settings.url.as_str().trim_end_matches('/').to_owned(),
                attempt_timeout: settings.attempt_timeout,
                max_response_bytes: settings.max_response_bytes,
                key_header: settings.key_header.clone(),
                key_prefix: settings.key_prefix.clone(),
                metrics,
                breaker,
            }),
        })
    }

    pub(super) async fn probe(&self) -> Result<StatusCode, FailureKind> {
        let request = self.http.get(&self.shared.base).timeout(self.shared.attempt_timeout);
        request.send().await.map(|response| response.status()).map_err(|error| classify(&error))
    }

    async fn attempt(self, call: Call) -> Result<Answer, Failure> {
        let began = Instant::now();
        let ends = [
            Some(began + self.shared.attempt_timeout),
            self.shared.breaker.deadline(&call),
            call.expires,
        ];
        let end = ends.into_iter().flatten().min().unwrap_or(began);
        let result =
            timeout_at(end, self.exchange(&call)).await.unwrap_or(Err(FailureKind::Timeout));
        let ended = match &result {
            Ok(answer) => Attempt::Answered(answer.status.as_u16()),
            Err(FailureKind::Unreachable(_)) => Attempt::Failed("unreachable"),
            Err(FailureKind::Timeout) => Attempt::Failed("timeout"),
            Err(_) => Attempt::Failed("broken"),
        };
        self.shared.metrics.attempt(&call.name, ended, began.elapsed());
        tracing::debug!(
            route = %call.name, device = %call.device, method = %call.method, ?ended,
            elapsed = ?began.elapsed(), "attempt"
        );
        result.map_err(Failure::from)
    }

    async fn exchange(&self, call: &Call) -> Result<Answer, FailureKind> {
        let url = Url::parse(&format!("{}{}", self.shared.base, call.path))
            .map_err(|error| FailureKind::Broken(error.to_string()))?;
        let mut request = self.http.request(call.method.clone(), url);
        if let Some(key) = &call.key {
            let value = format!("{}{}", self.shared.key_prefix, key.expose());
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| FailureKind::Broken("the key is no header value".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(self.shared.key_header.clone(), value);
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, CONTENT_TYPE_JSON).body(body.clone());
        }
        let response = request.send().await.map_err(|error| classify(&error))?;
        let (status, headers) = (response.status(), response.headers());
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let retry_after = headers.get(RETRY_AFTER).and_then(retry_after);
        let body = self.body(response).await?;
        Ok(Answer { status, content_type, body, retry_after, attempts: 1 })
    }

    async fn body(&self, mut response: Response) -> Result<Bytes, FailureKind> {
        let max = self.shared.max_response_bytes;
        // Copied, since a chunk is a part of the connection's buffer: a reply that waits for the broker
        // would keep all of it, and the connection would need another.
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error))? {
            if body.len() + chunk.len() > max {
                return Err(FailureKind::AnswerTooLarge(max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }
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
    if error.is_timeout() {
        FailureKind::Timeout
    } else if error.is_connect() {
        FailureKind::Unreachable(text)
    } else {
        FailureKind::Broken(text)
    }
}

/// `Retry-After` in seconds or as a date [RFC 9110, 10.2.3].
fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default().min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_comes_in_two_forms() {
        let parse = |text: &str| retry_after(&HeaderValue::try_from(text).unwrap());
        assert_eq!(parse("120"), Some(Duration::from_mins(2)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        let left = parse(&date).unwrap();
        assert!(left > Duration::from_secs(80) && left <= Duration::from_secs(90), "{left:?}");
        assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("18446744073709551615"), Some(MAX_RETRY_AFTER));
        assert_eq!(parse("soon"), None);
    }
}
