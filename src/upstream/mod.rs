//! The REST API as one service: a [`Call`] goes in, and an [`Answer`] comes out, or the reason why there is none
//! ([`Unanswered`]). This folder knows nothing of MQTT.

mod batch;
mod breaker;
mod budget;
mod client;
mod coding;
mod connection;
mod connections;
mod connector;
mod credentials;
#[cfg(test)]
mod fixtures;
mod in_process;
#[cfg(test)]
mod moving_name;
mod origin;
mod pool;
#[cfg(test)]
mod pool_histories;
mod retry;
mod retry_after;
mod shared_breaker;
mod throttle;
mod token;

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tower::{
    ServiceBuilder, ServiceExt,
    layer::layer_fn,
    limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer},
    retry::{Retry, RetryLayer},
};
use url::Url;

use self::{
    batch::{BatchLimits, Batches},
    client::Client,
    connector::Resolver,
    retry::RetryTransient,
    shared_breaker::SharedBreaker,
    throttle::{Throttle, Turns},
};
pub(crate) use self::{
    breaker::{BreakerSettings, Outage},
    connections::{ClientError, always_sent},
    in_process::InProcess,
    throttle::Rates,
    token::ClientCredentials,
};
use crate::{
    backoff::Backoff,
    call::{Answer, Attempt, Call, Lifetime, StatusCode, Trial},
    failure::{FailureKind, Unanswered},
    metrics::Metrics,
    secrets::{Secret, Secrets},
    template::Rendered,
    tls,
};

/// What the configuration says about the upstream.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The URL of the API; paths are appended to it.
    pub url: Url,
    /// How long one exchange may take, body included.
    pub attempt_timeout: Duration,
    /// How long the calls of one message may take, with all attempts.
    pub deadline: Duration,
    /// How many exchanges may be under way at once.
    pub max_in_flight: usize,
    /// Largest payload or body sent, in bytes.
    pub max_request_bytes: usize,
    /// Largest payload or answer that a filter reads, in bytes.
    pub max_filter_bytes: usize,
    /// Largest answer read, in bytes.
    pub max_response_bytes: usize,
    /// Answers kept in memory at once, in bytes; small ones do not count.
    pub max_held_response_bytes: usize,
    /// The header that carries the device's key.
    pub key_header: http::HeaderName,
    /// What stands before the key in that header.
    pub key_prefix: Box<str>,
    /// The gateway's own secrets, which calls name.
    pub secrets: Arc<Secrets>,
    /// What goes into `Authorization` of every call.
    pub auth: Option<Arc<Auth>>,
    /// Statuses by which the API refuses them.
    pub refused_on: Box<[StatusCode]>,
    /// URL of an HTTP proxy; it may hold a password.
    pub proxy: Option<Secret>,
    /// Certificates.
    pub tls: tls::Settings,
    /// Which HTTP is spoken.
    pub http_version: HttpVersion,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// When a row counts as down, and how that is found out.
    pub breaker: BreakerSettings,
    /// Limits on attempts.
    pub rates: Rates,
    /// Where calls go in place of the network.
    pub in_process: Option<InProcess>,
}

/// `[upstream] http_version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HttpVersion {
    /// What the server prefers of both, by ALPN; without TLS it is 1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    One,
    /// HTTP/2, without TLS as well.
    Two,
}

impl HttpVersion {
    /// As the configuration has them.
    pub const WORDS: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("1.1", Self::One), ("2", Self::Two)];

    /// What is offered by ALPN.
    fn alpn(self) -> Vec<Vec<u8>> {
        let (one, two) = (b"http/1.1".to_vec(), b"h2".to_vec());
        match self {
            Self::Auto => vec![two, one],
            Self::One => Vec::new(),
            Self::Two => vec![two],
        }
    }
}

/// `[upstream.auth]`: what goes into `Authorization` of every call.
#[derive(Debug, Clone)]
pub enum Auth {
    /// A user and its password.
    Basic(Rendered),
    /// A token.
    ClientCredentials(ClientCredentials),
}

impl Settings {
    /// The URL without a trailing slash: what paths are appended to.
    pub fn base(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Where tokens are had.
    pub fn token_url(&self) -> Option<&http::Uri> {
        match self.auth.as_deref() {
            Some(Auth::ClientCredentials(credentials)) => Some(&credentials.token_url),
            Some(Auth::Basic(_)) | None => None,
        }
    }
}

/// The layers, outermost first; [`Upstream::new`] gives the reason for each.
type Stack = Retry<RetryTransient, Throttle<Batches<ConcurrencyLimit<Client>>>>;

/// The upstream. A clone is cheap and shares everything with the original.
#[derive(Clone)]
pub(crate) struct Upstream {
    stack: Stack,
    turns: Arc<Turns>,
    breaker: Arc<SharedBreaker>,
}

impl Upstream {
    /// Sets up the client and the layers around it. Opens no connection.
    ///
    /// # Errors
    /// [`ClientError`] when a certificate file or the proxy cannot be used.
    pub(crate) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, ClientError> {
        Self::with(Resolver::system(), settings, metrics)
    }

    /// The same with names looked up by this.
    fn with(
        resolver: Resolver,
        settings: &Settings,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientError> {
        let client = Client::new(settings, resolver, metrics.clone())?;
        let breaker = SharedBreaker::new(
            settings.breaker.clone(),
            settings.backoff,
            settings.deadline,
            client.clone(),
            metrics.clone(),
        );
        let turns = Arc::new(Turns::new(&settings.rates, breaker.clone()));
        let retry = RetryTransient::new(settings.backoff, breaker.clone());
        let limits = BatchLimits {
            in_flight: settings.max_in_flight,
            bytes: settings.max_request_bytes,
            filter_bytes: settings.max_filter_bytes,
        };
        let (most, places) =
            (settings.max_in_flight, Arc::new(Semaphore::new(settings.max_in_flight)));
        let free = places.clone();
        metrics.readings().calls_in_flight.is(move || most - free.available_permits());
        metrics.readings().calls_in_flight_limit.is(move || most);
        let stack = ServiceBuilder::new()
            // Outermost, so that it sees the result of each attempt, and everything below is free while it waits: a call
            // in back-off keeps neither a turn nor a connection.
            .layer(RetryLayer::new(retry))
            // Below retry, so that every attempt that the API counts takes a turn; above the concurrency limit, so that a
            // call that waits for its turn takes no other call's place.
            .layer(layer_fn(|inner| Throttle { inner, turns: turns.clone() }))
            // Below the throttle, so that each call takes its own turn; above the concurrency limit, since calls that wait
            // to be sent together are not under way yet.
            .layer(layer_fn(move |inner| Batches::new(inner, limits, metrics.clone())))
            // Next to the client: it bounds the connections, and the memory that answers need.
            .layer(GlobalConcurrencyLimitLayer::with_semaphore(places))
            .service(client);
        Ok(Self { stack, turns, breaker })
    }

    /// Makes the call, with as many attempts as it takes. `turn` is what [`Upstream::turn`] gave, if it was asked before.
    ///
    /// # Errors
    /// [`Unanswered`] when the call got no final answer before its deadline, or the gateway stops.
    pub(crate) fn call(
        &self,
        call: Call,
        turn: Option<Trial>,
    ) -> impl Future<Output = Result<Answer, Unanswered>> + use<> {
        let has_turn = turn.is_some();
        let mut first = Attempt::first(Call { trial: turn.unwrap_or_default(), ..call });
        first.has_turn = has_turn;
        self.stack.clone().oneshot(first)
    }

    /// Waits for a turn of the rate limits for a device's calls on a row, before any work is spent on a call.
    ///
    /// # Errors
    /// [`Throttled`](crate::failure::FailureKind::Throttled) when the turn would come later than the deadline,
    /// [`Unanswered::Stopping`] when the gateway stops.
    pub(crate) async fn turn(
        &self,
        row: &Arc<str>,
        device: &Arc<str>,
        lifetime: Lifetime,
    ) -> Result<Trial, Unanswered> {
        let trial = Trial::default();
        self.turns.take(row, device, lifetime, &trial).await?;
        Ok(trial)
    }

    /// The reading of the clock by which deadlines of this row run; see [`Call::since`].
    pub(crate) fn clock(&self, row: &str) -> Duration {
        self.breaker.serving_time_now(row)
    }

    /// How long the API has been known to answer, added up. A device without progress is only at fault in this time.
    pub(crate) fn answering_time(&self) -> Duration {
        self.breaker.answering_time()
    }

    /// The rows that are down: since when, and what showed it.
    pub(crate) fn outages(&self) -> Vec<Outage> {
        self.breaker.outages()
    }

    /// The last fault of this machine that kept it from making calls, if it was recent.
    pub(crate) fn local_fault(&self) -> Option<String> {
        self.breaker.local_fault()
    }

    /// Whether a call of this device waits to be tried again, or for a turn of a rate limit.
    pub(crate) fn is_delayed(&self, device: &str) -> bool {
        self.breaker.is_delayed(device)
    }

    /// Ends the wait of every call that waits. Attempts under way go on.
    pub(crate) fn stop(&self) {
        self.breaker.stop();
    }
}

/// Why `check --connect` did not reach the API.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnreachedError {
    /// The client could not be set up.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No connection; the text names the address.
    #[error("{0}")]
    Unreachable(String),
    /// The request got no answer.
    #[error("{0}: {1}")]
    Failed(Url, FailureKind),
    /// The token endpoint gives no token.
    #[error(transparent)]
    Token(#[from] FailureKind),
}

/// Sends one request to the API, as `check --connect` does, and returns the status of the answer, whatever it is.
///
/// # Errors
/// [`UnreachedError`] when there is no answer.
pub(crate) async fn probe(settings: &Settings) -> Result<StatusCode, UnreachedError> {
    let client = Client::new(settings, Resolver::system(), Arc::default())?;
    let path = settings.breaker.probe_path.as_deref().unwrap_or("/");
    client.get(path).await.map_err(|kind| match kind {
        FailureKind::Unreachable(text) if text.contains("://") => UnreachedError::Unreachable(text),
        kind => UnreachedError::Failed(settings.url.clone(), kind),
    })
}

/// Asks for a token, as `check --connect` does; `None` where calls carry none.
///
/// # Errors
/// [`UnreachedError`] when there is none to be had.
pub(crate) async fn probe_tokens(settings: &Settings) -> Option<Result<(), UnreachedError>> {
    let Auth::ClientCredentials(credentials) = settings.auth.as_deref()? else { return None };
    Some(token::probe(settings, credentials).await)
}
