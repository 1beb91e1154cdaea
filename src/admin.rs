//! The admin endpoint: `/livez`, `/readyz`, `/metrics` and `/routes`. Whoever can reach it can do no harm:
//! connections are few, short-lived and answered once, and the oldest makes room for a new one.

use std::{collections::VecDeque, convert::Infallible, fs::File, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{health::Health, metrics::Metrics};

/// What Prometheus expects of the text that `prometheus-client` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// How many connections there are at once: enough for probes, scrapers and people.
const MAX_CONNECTIONS: usize = 64;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may take in all, for whoever reads slowly.
const WHOLE: Duration = Duration::from_secs(15);
/// Largest head of a request in bytes, the least that the library takes.
const MAX_HEAD: usize = 8 * 1024;
/// How long to wait when no connection can be accepted, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);
/// How many times longer than it takes to write the metrics it is until they are written again: scrapes
/// must not take the gateway's one thread.
const SPARE: u32 = 10;

/// What is shown.
pub(crate) struct Pages {
    /// Behind `/readyz`.
    pub health: Arc<Health>,
    /// Behind `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Behind `/routes`: the table in force, as JSON.
    pub routes: String,
    /// When the metrics may be written again.
    pub next_scrape: Mutex<Instant>,
}

/// Serves until it is aborted.
pub(crate) async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    // A descriptor to give up when there is none left: probes are answered then as well.
    let mut spare = File::open("/dev/null").ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() == MAX_CONNECTIONS {
                    // Whoever has been here longest has been answered, or does not ask.
                    connections.pop_front().inspect(AbortHandle::abort);
                }
                let serving = tokio::spawn(answer(stream, pages.clone()));
                connections.push_back(serving.abort_handle());
            }
            Err(error) => {
                tracing::warn!(%error, "the admin endpoint cannot accept a connection");
                spare = None;
                if let Ok(Ok((stream, _))) = timeout(PAUSE, listener.accept()).await {
                    answer(stream, pages.clone()).await;
                }
                sleep(PAUSE).await;
            }
        }
        if spare.is_none() {
            spare = File::open("/dev/null").ok();
        }
    }
}

/// Answers one request and closes.
async fn answer(stream: TcpStream, pages: Arc<Pages>) {
    let service = service_fn(|request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away or takes too long is its own trouble.
    let _ = timeout(WHOLE, connection).await;
}

impl Pages {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/" => page(StatusCode::OK, TEXT, "/livez\n/readyz\n/metrics\n/routes\n"),
            "/livez" => page(StatusCode::OK, TEXT, "alive\n"),
            "/readyz" => match self.health.unready().as_slice() {
                [] => page(StatusCode::OK, TEXT, "ready\n"),
                reasons => page(StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons.join("\n") + "\n"),
            },
            "/metrics" => page(StatusCode::OK, OPENMETRICS, self.scrape().await),
            "/routes" => page(StatusCode::OK, JSON, self.routes.clone()),
            _ => page(StatusCode::NOT_FOUND, TEXT, "/ lists what there is\n"),
        }
    }

    async fn scrape(&self) -> String {
        let mut next = self.next_scrape.lock().await;
        sleep_until(*next).await;
        let began = Instant::now();
        let text = self.metrics.render();
        *next = Instant::now() + began.elapsed() * SPARE;
        text
    }
}

fn page(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}
