//! Traces: one tree of spans for each message, from its arrival to its PUBACK, sent to a collector by OTLP over HTTP.
//!
//! Off by default, and then nothing of this runs: there is no tracer, so no span, and what would carry one carries none.
//! Where it is on, a span that is not sampled costs its identifiers. What is exported waits in a bounded queue for a
//! thread of its own; when that is full, or the collector away, spans are dropped and counted, and no message waits.
//!
//! Names and places go into spans, such as rows, topics, paths and devices, but never a payload, a key or a secret.

mod context;
mod export;
mod sampling;
mod span;

use std::{env, time::Duration};

use opentelemetry::{
    KeyValue,
    trace::{SpanBuilder, SpanKind, TracerProvider},
};
use opentelemetry_sdk::{
    Resource,
    resource::{EnvResourceDetector, ResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracer, SdkTracerProvider},
};
use url::Url;

pub use self::span::Span;
pub(crate) use self::{
    context::parent,
    export::TracesError,
    span::{Attempt, Consumed},
};

/// What the configuration says about traces.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the collector takes OTLP over HTTP.
    pub endpoint: Url,
    /// The share of messages that are traced, of those that bring no decision with them.
    pub sample: f64,
}

/// What exports spans, from the start to the end of the process.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
}

/// Begins spans. A clone is cheap.
#[derive(Clone)]
pub(crate) struct Tracer {
    tracer: SdkTracer,
    client_id: std::sync::Arc<str>,
}

impl Traces {
    /// Starts the thread that exports. Opens no connection.
    ///
    /// # Errors
    /// [`TracesError`] when the exporter cannot be set up, mostly for what a variable `OTEL_*` says.
    pub(crate) fn start(
        settings: &Settings,
        client_id: &std::sync::Arc<str>,
    ) -> Result<(Self, Tracer), TracesError> {
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampling::sampler(settings.sample))
            .with_resource(resource(client_id))
            .with_span_processor(export::processor(&settings.endpoint)?)
            .build();
        // The last one that is dropped would wait for the collector, at a second signal for example: none is the last.
        std::mem::forget(provider.clone());
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok((Self { provider }, Tracer { tracer, client_id: client_id.clone() }))
    }

    /// Exports what has ended, for no longer than this.
    pub(crate) async fn flush(self, time: Duration) {
        // It blocks until the exporting thread has answered.
        let flush = move || self.provider.shutdown_with_timeout(time);
        // What could not be exported is in the log already.
        let _ = tokio::task::spawn_blocking(flush).await;
    }
}

/// Who sends the spans. The standard variables go before what is known here.
fn resource(client_id: &str) -> Resource {
    let own = [
        ("service.name", env!("CARGO_PKG_NAME")),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", client_id),
    ];
    let own = own.map(|(name, value)| KeyValue::new(name, value.to_owned()));
    let detectors: [Box<dyn ResourceDetector>; 2] =
        [Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())];
    let builder = Resource::builder_empty().with_attributes(own).with_detectors(&detectors);
    match env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => builder.with_service_name(name).build(),
        _ => builder.build(),
    }
}

impl Tracer {
    /// The span of a message that has arrived, below the one that the message names, if it does.
    pub(crate) fn message(&self, message: &Consumed<'_>) -> Span {
        let start = SpanBuilder::from_name(format!("process {}", message.pattern))
            .with_kind(SpanKind::Consumer)
            .with_start_time(message.received_at)
            .with_attributes(message.attributes(&self.client_id));
        Span::start(&self.tracer, start, &parent(message.properties))
    }

    /// The span of a fetch that runs by itself.
    pub(crate) fn fetch(&self, name: &str) -> Span {
        let row = KeyValue::new(span::ROW, name.to_owned());
        let start = SpanBuilder::from_name(format!("fetch {name}")).with_attributes([row]);
        Span::start(&self.tracer, start, &opentelemetry::Context::new())
    }
}

#[cfg(test)]
mod tests;
