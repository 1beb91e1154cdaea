//! A span, and what is said of messages, calls and publications in the words of the field [OpenTelemetry semantic
//! conventions].

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::trace::{SdkTracer, Span as SdkSpan};
use url::Url;

use super::context;
use crate::user_properties::UserProperties;

/// The row of the table.
pub(super) const ROW: &str = "mqtt_rest_gateway.row";
const DEVICE: &str = "mqtt_rest_gateway.device";
const OUTCOME: &str = "mqtt_rest_gateway.outcome";
const STATUS: &str = "mqtt_rest_gateway.status";
const RESULT: &str = "mqtt_rest_gateway.result";
const ERROR: &str = "error.type";
const RESPONSE_STATUS: &str = "http.response.status_code";

/// A span that is under way; it ends when nobody has it any more. A clone is the same span.
#[derive(Clone)]
pub struct Span(Arc<Inner>);

struct Inner {
    tracer: SdkTracer,
    context: SpanContext,
    /// Whether it will be exported.
    is_recorded: bool,
    span: Mutex<SdkSpan>,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({} of {})", self.0.context.span_id(), self.0.context.trace_id())
    }
}

/// What is said of a message at its arrival.
pub(crate) struct Consumed<'m> {
    pub(crate) topic: &'m str,
    /// What its row listens on.
    pub(crate) pattern: &'m str,
    pub(crate) row: &'m str,
    pub(crate) device: &'m str,
    /// The size of its payload.
    pub(crate) bytes: usize,
    pub(crate) received_at: SystemTime,
    /// Its user properties.
    pub(crate) properties: &'m UserProperties,
}

impl Consumed<'_> {
    pub(super) fn attributes(&self, client_id: &str) -> Vec<KeyValue> {
        vec![
            text("messaging.system", "mqtt"),
            text("messaging.operation.name", "process"),
            text("messaging.operation.type", "process"),
            text("messaging.client.id", client_id),
            text("messaging.destination.name", self.topic),
            text("messaging.destination.template", self.pattern),
            number("messaging.message.body.size", self.bytes),
            text(ROW, self.row),
            text(DEVICE, self.device),
        ]
    }
}

/// What is said of an attempt of a call when it begins.
pub(crate) struct Attempt<'c> {
    pub(crate) row: &'c str,
    pub(crate) method: &'c Method,
    /// The URL that the path is below.
    pub(crate) base: &'c Url,
    /// Path and query, with the names of secrets in their places.
    pub(crate) path: &'c dyn fmt::Display,
    /// How many attempts there have been before.
    pub(crate) earlier: u32,
}

impl Span {
    pub(super) fn start(tracer: &SdkTracer, start: SpanBuilder, parent: &Context) -> Self {
        let span = tracer.build_with_context(start, parent);
        let (context, is_recorded) = (span.span_context().clone(), span.is_recording());
        Self(Arc::new(Inner { tracer: tracer.clone(), context, is_recorded, span: span.into() }))
    }

    /// One below this; where this one is not exported, this one itself.
    fn child(&self, start: impl FnOnce() -> SpanBuilder) -> Self {
        if !self.0.is_recorded {
            return self.clone();
        }
        let parent = Context::new().with_remote_span_context(self.0.context.clone());
        Self::start(&self.0.tracer, start(), &parent)
    }

    /// An attempt of a call.
    pub(crate) fn attempt(&self, attempt: &Attempt<'_>) -> Self {
        let Attempt { row, method, base, path, earlier } = attempt;
        self.child(|| {
            let url = format!("{}{path}", base.as_str().trim_end_matches('/'));
            let port = base.port_or_known_default().unwrap_or_default();
            let mut attributes = vec![
                text("http.request.method", method.as_str()),
                text("url.full", &url),
                text("server.address", base.host_str().unwrap_or_default()),
                number("server.port", port.into()),
                text(ROW, row),
            ];
            if *earlier > 0 {
                attributes.push(KeyValue::new("http.request.resend_count", i64::from(*earlier)));
            }
            SpanBuilder::from_name(format!("{method} {row}"))
                .with_kind(SpanKind::Client)
                .with_attributes(attributes)
        })
    }

    /// A fetch after a message.
    pub(crate) fn fetch(&self, name: &str) -> Self {
        self.child(|| {
            SpanBuilder::from_name(format!("fetch {name}")).with_attributes([text(ROW, name)])
        })
    }

    /// Something that is published.
    pub(crate) fn publication(&self, what: &str, topic: &str, bytes: usize) -> Self {
        self.child(|| {
            SpanBuilder::from_name(format!("send {what}"))
                .with_kind(SpanKind::Producer)
                .with_attributes([
                    text("messaging.system", "mqtt"),
                    text("messaging.operation.name", "send"),
                    text("messaging.operation.type", "send"),
                    text("messaging.destination.name", topic),
                    number("messaging.message.body.size", bytes),
                ])
        })
    }

    /// A call that carries those of these spans: a tree of its own, linked with each of them in both directions.
    pub(crate) fn batch<'s>(row: &str, carried: impl Iterator<Item = &'s Self>) -> Option<Self> {
        let carried: Vec<&Self> = carried.collect();
        let first = carried.first()?;
        let links = carried.iter().map(|span| Link::with_context(span.0.context.clone()));
        let start = SpanBuilder::from_name(format!("batch {row}"))
            .with_attributes([
                text(ROW, row),
                number("messaging.batch.message_count", carried.len()),
            ])
            .with_links(links.collect());
        let batch = Self::start(&first.0.tracer, start, &Context::new());
        for span in carried.iter().filter(|span| span.0.is_recorded) {
            span.lock().add_link(batch.0.context.clone(), Vec::new());
        }
        Some(batch)
    }

    /// The outcome of a message.
    pub(crate) fn concluded(&self, outcome: &'static str, status: u16, trouble: Option<String>) {
        self.say(OUTCOME, outcome);
        self.say(STATUS, i64::from(status));
        if let Some(trouble) = trouble {
            self.failed(outcome, trouble);
        }
    }

    /// What came of a fetch.
    pub(crate) fn fetched(&self, result: &'static str) {
        self.say(RESULT, result);
    }

    /// The status of an answer.
    pub(crate) fn answered(&self, status: u16) {
        self.say(RESPONSE_STATUS, i64::from(status));
        if status >= 400 {
            self.failed(status.to_string(), String::new());
        }
    }

    /// It has failed: the kind of failure in a word, and the reason in words.
    pub(crate) fn failed(&self, kind: impl Into<Value>, trouble: String) {
        self.say(ERROR, kind);
        if self.0.is_recorded {
            self.lock().set_status(Status::error(trouble));
        }
    }

    fn say(&self, name: &'static str, value: impl Into<Value>) {
        if self.0.is_recorded {
            self.lock().set_attribute(KeyValue::new(name, value));
        }
    }

    /// Puts its context into the head of a request.
    pub(crate) fn put_headers(&self, headers: &mut HeaderMap) {
        context::put(&self.0.context, |name, value| {
            let name = HeaderName::try_from(name);
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        });
    }

    /// Puts its context into user properties, in place of another one.
    pub(crate) fn put_properties(&self, properties: &mut UserProperties) {
        let others = properties.iter().filter(|(name, _)| !context::is_context(name));
        let mut put: UserProperties = others.collect();
        context::put(&self.0.context, |name, value| put.push(name, &value));
        *properties = put;
    }

    fn lock(&self) -> MutexGuard<'_, SdkSpan> {
        self.0.span.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text(name: &'static str, value: &str) -> KeyValue {
    KeyValue::new(name, value.to_owned())
}

fn number(name: &'static str, value: usize) -> KeyValue {
    KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX))
}
