//! The REST API, as one service: a [`Call`] goes in, an [`Answer`] or the reason why there is none
//! ([`Unanswered`]) comes out. Knows nothing of MQTT.

mod batch;
mod breaker;
mod budget;
mod client;
mod coding;
mod connections;
mod connector;
#[cfg(test)]
mod fixtures;
mod hold;
mod origin;
mod retry;
mod throttle;

use std::{sync::Arc, time::Duration};

use tower::{ServiceBuilder, ServiceExt, limit::ConcurrencyLimit};
use url::Url;

use self::{
    batch::{BatchLayer, Batches},
    client::Client,
    hold::Hold,
    retry::RetryTransient,
    throttle::{Throttle, ThrottleLayer, Turns},
};
pub use self::{
    breaker::{BreakerSettings, Outage},
    connections::ClientError,
    throttle::Rates,
};
use crate::{
    backoff::Backoff,
    call::{Answer, Call, Lifetime, Trial},
    failure::Unanswered,
    metrics::Metrics,
    secret::Secret,
    tls,
};

/// What the configuration says about the upstream.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API lives; paths are appended.
    pub url: Url,
    /// How long one exchange may take, body included.
    pub attempt_timeout: Duration,
    /// How long one message may take, all attempts.
    pub deadline: Duration,
    /// Exchanges under way at once.
    pub max_in_flight: usize,
    /// Largest payload or body sent, in bytes.
    pub max_request_bytes: usize,
    /// Largest payload or answer that a filter reads, in bytes.
    pub max_filter_bytes: usize,
    /// Largest answer read, in bytes.
    pub max_response_bytes: usize,
    /// Answers held at once, in bytes, small ones not counted.
    pub max_held_response_bytes: usize,
    /// The header that carries the device's key.
    pub key_header: http::HeaderName,
    /// What stands before the key in that header.
    pub key_prefix: Box<str>,
    /// URL of an HTTP proxy; it may hold a password.
    pub proxy: Option<Secret>,
    /// Certificates.
    pub tls: tls::Settings,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// When the upstream counts as down.
    pub breaker: BreakerSettings,
    /// Limits on attempts.
    pub rates: Rates,
}

impl Settings {
    /// The URL without a trailing slash: what paths are appended to.
    pub fn base(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }
}

/// The layers, outermost first; [`Upstream::new`] has a reason for each.
type Stack = tower::retry::Retry<RetryTransient, Throttle<Batches<ConcurrencyLimit<Client>>>>;

/// A cheap-clone handle on the upstream.
#[derive(Clone)]
pub struct Upstream {
    stack: Stack,
    turns: Turns,
    hold: Arc<Hold>,
}

impl Upstream {
    /// Sets up the client and the layers around it. Opens no connection.
    ///
    /// # Errors
    /// [`ClientError`] when a certificate file or the proxy cannot be used.
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, ClientError> {
        let client = Client::new(settings, metrics.clone())?;
        let hold = Hold::new(
            settings.breaker.clone(),
            settings.backoff,
            settings.deadline,
            client.clone(),
            metrics,
        );
        let turns = Turns::new(&settings.rates, hold.clone());
        let stack = ServiceBuilder::new()
            // Outermost, so that it sees each attempt's result and gives everything below back
            // while it waits: a call in back-off holds neither a turn nor a connection.
            .layer(tower::retry::RetryLayer::new(RetryTransient::new(
                settings.backoff,
                hold.clone(),
            )))
            // Below retry, so that every attempt that the API counts takes a turn; above the
            // concurrency limit, so that a device waiting for its turn takes nobody's place.
            .layer(ThrottleLayer(turns.clone()))
            // Below the throttle, so that each call takes its own turn; above the concurrency limit, since
            // what waits to travel together is not under way.
            .layer(BatchLayer {
                max_in_flight: settings.max_in_flight,
                max_bytes: settings.max_request_bytes,
            })
            // Last before the wire: bounds connections and the memory that answers need.
            .layer(tower::limit::GlobalConcurrencyLimitLayer::new(settings.max_in_flight))
            .service(client);
        Ok(Self { stack, turns, hold })
    }

    /// Makes the call, again if it has to be.
    ///
    /// # Errors
    /// [`Unanswered`] when no answer that counts could be had before the call's deadline, or the gateway stops.
    pub async fn call(&self, call: Call) -> Result<Answer, Unanswered> {
        self.stack.clone().oneshot(call).await
    }

    /// Waits for a turn of the limits on a device's calls on a row, before anything is spent on making one;
    /// the call then says [`Call::has_turn`] and has this [`Trial`].
    ///
    /// # Errors
    /// [`Throttled`](crate::failure::FailureKind::Throttled) when the turn would come later than the deadline,
    /// [`Unanswered::Stopping`] when the gateway stops.
    pub async fn turn(
        &self,
        row: &Arc<str>,
        device: &Arc<str>,
        lifetime: Lifetime,
    ) -> Result<Trial, Unanswered> {
        let trial = Trial::default();
        self.turns.take(row, device, lifetime, &trial).await?;
        Ok(trial)
    }

    /// What the clock shows that deadlines of this row run by; see [`Call::since`].
    pub fn clock(&self, row: &str) -> Duration {
        self.hold.reading(row)
    }

    /// How long the API has been known to answer anybody, added up: the time in which a device can be said not to
    /// get on by itself.
    pub fn answering(&self) -> Duration {
        self.hold.answering()
    }

    /// Rows on which nobody is served: since when, and how that showed.
    pub fn outages(&self) -> Vec<Outage> {
        self.hold.outages()
    }

    /// What this machine could not do of late, if that kept it from making calls.
    pub fn local_fault(&self) -> Option<String> {
        self.hold.local_fault()
    }

    /// Whether a call of this device has failed and waits, or waits for a turn of a limit of its own.
    pub fn is_delayed(&self, device: &str) -> bool {
        self.hold.is_delayed(device)
    }

    /// Holds no calls any longer. Those under way go on.
    pub fn stop(&self) {
        self.hold.stop();
    }
}

/// Reaches for the API once, as `check --connect` does; any answer will do.
///
/// # Errors
/// A sentence for the operator.
pub async fn probe(settings: &Settings) -> Result<String, String> {
    let client = Client::new(settings, Arc::default()).map_err(|e| e.to_string())?;
    let path = settings.breaker.probe_path.as_deref().unwrap_or("/");
    let status = client.get(path).await.map_err(|failure| failure.to_string())?;
    Ok(format!("{} answers {status}", settings.url))
}
