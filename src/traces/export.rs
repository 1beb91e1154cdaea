//! Sends spans to the collector, from a thread of its own, and counts what is lost.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderValue, Uri, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry::Context;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter as Otlp, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::Builder,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use url::Url;

use crate::{
    log::seconds,
    tls::{self, TlsError},
};

/// How many spans may wait to be exported.
const MAX_WAITING: usize = 2048;
/// How long one exchange with the collector may take.
const EXCHANGE: Duration = Duration::from_secs(10);
/// Largest answer of a collector that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// What is lost is said at most this often.
const TELL: Duration = Duration::from_mins(1);
/// Below the endpoint, where traces go [OTLP 1.9, 4.2].
const PATH: &str = "/v1/traces";

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// What a variable `OTEL_*` says, for example.
    #[error("traces cannot be exported: {0}")]
    Exporter(#[from] ExporterBuildError),
    /// The system's certificates.
    #[error("traces cannot be exported: [traces] endpoint: {0}")]
    Tls(#[from] TlsError),
}

/// Takes spans that have ended, and exports them.
pub(super) fn processor(endpoint: &Url) -> Result<Bounded, TracesError> {
    let endpoint = endpoint.as_str().trim_end_matches('/');
    let endpoint = endpoint.strip_suffix(PATH).unwrap_or(endpoint);
    let losses = Arc::new(Losses::default());
    let otlp = Otlp::builder()
        .with_http()
        .with_http_client(Collector::new(endpoint.starts_with("https:"), losses.clone())?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{endpoint}{PATH}"))
        .build()?;
    let exporter = Counted { otlp, losses: losses.clone() };
    // Size of a batch and delay are those of the standard variables, or the library's.
    let config = BatchConfigBuilder::default().with_max_queue_size(MAX_WAITING).build();
    let inner = BatchSpanProcessor::new(exporter, config);
    Ok(Bounded { inner, losses })
}

/// Spans that wait, and those that were lost.
#[derive(Debug, Default)]
struct Losses {
    waiting: AtomicUsize,
    /// For want of room.
    dropped: AtomicUsize,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    /// Lost with the collector since then.
    unexported: usize,
    /// Why the last exchange with the collector failed: the library says only that it did.
    trouble: Option<String>,
}

impl Losses {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what has been lost, unless that was said a moment ago.
    fn tell(&self, unexported: usize, error: Option<&OTelSdkError>) {
        let mut told = self.told();
        told.unexported += unexported;
        let since = told.last.map(|last| last.elapsed());
        let dropped = self.dropped.load(Ordering::Relaxed);
        if told.unexported + dropped == 0 || since.is_some_and(|since| since < TELL) {
            return;
        }
        self.dropped.fetch_sub(dropped, Ordering::Relaxed);
        let unexported = std::mem::take(&mut told.unexported);
        told.last = Some(Instant::now());
        let error = told.trouble.take().or_else(|| error.map(ToString::to_string));
        let within_seconds = since.map(seconds);
        tracing::warn!(
            unexported,
            dropped,
            within_seconds,
            error,
            "spans are lost: the collector does not take them, or not fast enough"
        );
    }
}

/// Takes no more spans than may wait.
#[derive(Debug)]
pub(super) struct Bounded {
    inner: BatchSpanProcessor,
    losses: Arc<Losses>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let Losses { waiting, dropped, .. } = &*self.losses;
        if waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            waiting.fetch_sub(1, Ordering::Relaxed);
            dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts the spans that are exported, and those that are lost.
#[derive(Debug)]
struct Counted {
    otlp: Otlp,
    losses: Arc<Losses>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.losses.waiting.fetch_sub(count, Ordering::Relaxed);
        let result = self.otlp.export(batch).await;
        let error = result.as_ref().err();
        self.losses.tell(error.map_or(0, |_| count), error);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.otlp.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.otlp.set_resource(resource);
    }
}

/// A client for one request at a time.
struct Collector {
    tls: Option<TlsConnector>,
    losses: Arc<Losses>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl Collector {
    fn new(encrypted: bool, losses: Arc<Losses>) -> Result<Self, TracesError> {
        let tls = encrypted.then(|| tls::Settings::default().client()).transpose()?;
        Ok(Self { tls: tls.map(TlsConnector::from), losses })
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri().clone();
        let host = uri.host().ok_or("the endpoint has no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        match &self.tls {
            None => send(stream, request).await,
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned())?;
                send(tls.connect(name, stream).await?, request).await
            }
        }
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    mut request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // How it ends is what the request ends with.
    tokio::spawn(async move { drop(connection.await) });
    let uri = request.uri().clone();
    let authority = uri.authority().ok_or("the endpoint has no host")?;
    request.headers_mut().insert(HOST, HeaderValue::try_from(authority.as_str())?);
    let path = uri.path_and_query().ok_or("the endpoint has no path")?;
    *request.uri_mut() = Uri::from(path.clone());
    let response = sender.send_request(request.map(Full::new)).await?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}

/// An error with its causes, on one line.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // This is the exporting thread, which has nothing else to do: on a runtime of its own for the moment, so that
        // the gateway's thread has no part in it.
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let uri = request.uri().clone();
        let result = runtime.block_on(async { timeout(EXCHANGE, self.exchange(request)).await? });
        if let Err(error) = &result {
            self.losses.told().trouble = Some(format!("{uri}: {}", with_causes(&**error)));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;
    use crate::log::fixtures::Page;

    #[test]
    fn what_waits_is_bounded_and_the_rest_is_counted() {
        // Nobody is there, and until that is found out nothing is taken out of the queue.
        let endpoint = "http://127.0.0.1:9".parse().unwrap();
        let inner = processor(&endpoint).unwrap();
        let losses = inner.losses.clone();
        let provider = SdkTracerProvider::builder().with_span_processor(inner).build();
        let tracer = provider.tracer("test");
        for _ in 0..20 * MAX_WAITING {
            drop(tracer.start("s"));
            assert!(losses.waiting.load(Ordering::Relaxed) <= MAX_WAITING);
        }
        assert!(losses.dropped.load(Ordering::Relaxed) > 0);
        let began = Instant::now();
        let _ = provider.shutdown_with_timeout(Duration::from_millis(100));
        assert!(began.elapsed() < Duration::from_secs(5), "it does not wait for the collector");
    }

    #[tokio::test(start_paused = true)]
    async fn losses_are_said_at_most_once_a_minute_and_none_is_forgotten() {
        let page = Page::open();
        let losses = Losses::default();
        losses.tell(0, None);
        assert!(page.lines().is_empty(), "nothing is lost");
        let error = OTelSdkError::InternalFailure("away".to_owned());
        losses.tell(10, Some(&error));
        losses.dropped.fetch_add(5, Ordering::Relaxed);
        losses.tell(10, Some(&error));
        losses.tell(10, Some(&error));
        let [line] = &*page.lines() else { panic!("{:?}", page.lines()) };
        assert_eq!((&line["unexported"], &line["dropped"]), (&10.into(), &0.into()));
        assert!(line["error"].as_str().unwrap().contains("away"));
        tokio::time::advance(TELL).await;
        losses.tell(0, None);
        let lines = page.lines();
        let [_, line] = &*lines else { panic!("{lines:?}") };
        assert_eq!((&line["unexported"], &line["dropped"]), (&20.into(), &5.into()));
        assert!(line["within_seconds"].as_f64().unwrap() >= 60.0);
    }
}
