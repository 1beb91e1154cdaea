//! The admin endpoint: `/livez`, `/readyz`, `/metrics` and `/routes`.
//!
//! A client of it can neither change anything nor slow the forwarding down. The number of connections is bounded, each
//! is answered once and then closed, and when there are too many, a new one closes the oldest.

mod ask;
mod health;

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

pub(crate) use self::{
    ask::ask,
    health::{Health, remind},
};
use crate::metrics::{Format, Metrics};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// How many connections may be open at once: enough for probes, scrapers and people.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, so that a client that reads slowly does not keep it.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest head of a request, in bytes. The HTTP library allows no smaller limit.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// How long to wait after a connection could not be accepted, for example because no file descriptor is left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// The pause between two scrapes, as a multiple of the time that the first one took: scrapes run on the gateway's only
/// thread and must leave most of it to the messages.
const PAUSE_PER_SCRAPE: u32 = 10;

/// What the endpoint answers from.
pub(crate) struct Pages {
    /// Answers `/readyz`.
    health: Arc<Health>,
    /// Answers `/metrics`.
    metrics: Arc<Metrics>,
    /// Answers `/routes`: the table in force, as JSON.
    routes: String,
    /// The next scrape is not answered before this time.
    next_scrape: Mutex<Instant>,
}

/// Serves until its task is aborted.
pub(crate) async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    // A file descriptor that is closed when the process has no other left, so that a probe is answered even then.
    let mut reserve = File::open("/dev/null").ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.is_finished());
                if connections.len() == MAX_CONNECTIONS {
                    // The oldest has been answered already, or has sent no request for a long time.
                    connections.pop_front().inspect(AbortHandle::abort);
                }
                let serving = tokio::spawn(answer(stream, pages.clone()));
                connections.push_back(serving.abort_handle());
            }
            Err(error) => {
                tracing::warn!(%error, "the admin endpoint cannot accept a connection");
                reserve = None;
                if let Ok(Ok((stream, _))) = timeout(ACCEPT_RETRY, listener.accept()).await {
                    answer(stream, pages.clone()).await;
                }
                sleep(ACCEPT_RETRY).await;
            }
        }
        if reserve.is_none() {
            reserve = File::open("/dev/null").ok();
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
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Whether the client went away or took too long makes no difference to the gateway.
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

impl Pages {
    /// `routes` is the table in force, as JSON.
    pub(crate) fn new(health: Arc<Health>, metrics: Arc<Metrics>, routes: String) -> Self {
        Self { health, metrics, routes, next_scrape: Mutex::new(Instant::now()) }
    }

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
            "/metrics" => {
                let format = Format::wanted(request.headers());
                page(StatusCode::OK, format.content_type(), self.scrape(format).await)
            }
            "/routes" => page(StatusCode::OK, JSON, self.routes.clone()),
            _ => page(StatusCode::NOT_FOUND, TEXT, "not found: `/` lists the pages\n"),
        }
    }

    async fn scrape(&self, format: Format) -> String {
        let mut next = self.next_scrape.lock().await;
        sleep_until(*next).await;
        let began = Instant::now();
        let text = self.metrics.render(format);
        *next = Instant::now() + began.elapsed() * PAUSE_PER_SCRAPE;
        text
    }
}

fn page(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut page = Response::new(Full::new(text.into()));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}
