//! The REST API, as one service: a [`Call`] goes in, an [`Answer`] or a [`Failure`] comes out.
//! Knows nothing of MQTT.

mod batch;
mod breaker;
mod client;
mod retry;
mod throttle;

use std::{sync::Arc, time::Duration};

use tower::{ServiceBuilder, ServiceExt, limit::ConcurrencyLimit};
use url::Url;

use self::{
    batch::{BatchLayer, Batches},
    breaker::{Breaker, BreakerLayer, Guarded},
    client::Client,
    retry::RetryTransient,
    throttle::{Throttle, ThrottleLayer},
};
pub use self::{
    breaker::{BreakerSettings, Outage},
    client::ClientError,
    throttle::Rates,
};
use crate::{
    backoff::Backoff,
    call::{Answer, Call, Failure},
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
    /// The header that carries the device's key.
    pub key_header: reqwest::header::HeaderName,
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

/// The layers, outermost first; [`Upstream::new`] has a reason for each.
type Stack =
    tower::retry::Retry<RetryTransient, Guarded<Throttle<Batches<ConcurrencyLimit<Client>>>>>;

/// A cheap-clone handle on the upstream.
#[derive(Clone)]
pub struct Upstream {
    stack: Stack,
    breaker: Arc<Breaker>,
}

impl Upstream {
    /// Sets up the client and the layers around it. Opens no connection.
    ///
    /// # Errors
    /// [`ClientError`] when a certificate file or the proxy cannot be used.
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Result<Self, ClientError> {
        let breaker = Breaker::new(settings.breaker, metrics.clone());
        let client = Client::new(settings, metrics, breaker.clone())?;
        let stack = ServiceBuilder::new()
            // Outermost, so that it sees each attempt's result and gives everything below back
            // while it waits: a call in back-off holds neither a turn nor a connection.
            .layer(tower::retry::RetryLayer::new(RetryTransient::new(
                settings.backoff,
                breaker.clone(),
            )))
            // Below retry, so that it sees every attempt, and a call that has failed is held before
            // its next one; above the throttle, so that held calls take no turns.
            .layer(BreakerLayer(breaker.clone()))
            // Below retry, so that every attempt counts against the limits the API sets; above the
            // concurrency limit, so that a device waiting for its turn takes nobody's place.
            .layer(ThrottleLayer::new(&settings.rates, breaker.clone()))
            // Below the throttle, so that each call takes its own turn; above the concurrency limit, since
            // what waits to travel together is not under way.
            .layer(BatchLayer {
                max_in_flight: settings.max_in_flight,
                max_bytes: settings.max_request_bytes,
            })
            // Last before the wire: bounds connections and the memory that answers need.
            .layer(tower::limit::GlobalConcurrencyLimitLayer::new(settings.max_in_flight))
            .service(client);
        Ok(Self { stack, breaker })
    }

    /// Makes the call, again if it has to be.
    ///
    /// # Errors
    /// [`Failure`] when no answer that counts could be had before the call's deadline.
    pub async fn call(&self, call: Call) -> Result<Answer, Failure> {
        self.stack.clone().oneshot(call).await
    }

    /// How long the upstream has been down and how that showed, if it is.
    pub fn outage(&self) -> Option<Outage> {
        self.breaker.outage()
    }

    /// Holds no calls any longer. Those under way go on.
    pub fn stop(&self) {
        self.breaker.stop();
    }
}

/// Reaches for the API's root once, as `check --connect` does; any answer will do.
///
/// # Errors
/// A sentence for the operator.
pub async fn probe(settings: &Settings) -> Result<String, String> {
    let metrics = Arc::new(Metrics::default());
    let breaker = Breaker::new(settings.breaker, metrics.clone());
    let client = Client::new(settings, metrics, breaker).map_err(|e| e.to_string())?;
    let status = client.probe().await.map_err(|failure| failure.to_string())?;
    Ok(format!("{} answers {status}", settings.url))
}
