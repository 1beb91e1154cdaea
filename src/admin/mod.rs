//! The admin endpoint: a page for people, `/livez`, `/readyz`, `/metrics`, `/routes`, and `/events`, which the page
//! is fed by.
//!
//! A client of it can neither change anything nor slow the forwarding down. The number of connections is bounded, each
//! is answered once and then closed, and when there are too many, a new one closes the oldest. Who listens to `/events`
//! is counted apart (`events.rs`).

mod ask;
mod events;
mod health;
mod status;

use std::{
    collections::VecDeque, convert::Infallible, fs::File, pin::pin, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{
        ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName,
        HeaderValue, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
    },
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
    ask::{AskError, Opened, ask, open},
    health::{Health, remind},
    status::About,
};
use self::{
    events::{Events, Listener},
    status::Observer,
};
use crate::metrics::{Format, Metrics};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const EVENTS: &str = "text/event-stream";

/// What `/` says to programs.
const LIST: &str = "/livez\n/readyz\n/metrics\n/routes\n/events\n";
/// The page for people. It is served from here alone, and may load nothing from anywhere else.
const PAGE: &str = include_str!("page/index.html");
const PAGE_STYLE: &str = include_str!("page/page.css");
const PAGE_SCRIPT: &str = include_str!("page/page.js");
/// What every answer says besides.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (VARY, HeaderValue::from_static("accept")),
];

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

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What the endpoint answers from.
pub(crate) struct Pages {
    /// Answers `/readyz`.
    health: Arc<Health>,
    /// Answers `/metrics`.
    metrics: Arc<Metrics>,
    /// Answers `/routes`: the table in force, as JSON.
    routes: String,
    /// What the page shows that does not change.
    about: About,
    /// Answers `/events`.
    events: Events,
    /// The next scrape is not answered before this time.
    next_scrape: Mutex<Instant>,
}

/// Serves until its task is aborted.
pub(crate) async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let Pages { about, health, metrics, events, .. } = &*pages;
    let begin = || {
        let mut observer = Observer::new(about, health, metrics);
        move || observer.look()
    };
    tokio::join!(events.run(begin), accept(&listener, &pages));
}

async fn accept(listener: &TcpListener, pages: &Arc<Pages>) {
    let mut connections: VecDeque<(AbortHandle, Arc<Listener>)> = VecDeque::new();
    // A file descriptor that is closed when the process has no other left, so that a probe is answered even then.
    let mut reserve = File::open("/dev/null").ok();
    loop {
        let place = Arc::new(Listener::default());
        match listener.accept().await {
            Ok((stream, _)) => {
                connections
                    .retain(|(connection, place)| !connection.is_finished() && !place.listens());
                if connections.len() == MAX_CONNECTIONS {
                    // The oldest has been answered already, or has sent no request for a long time.
                    connections.pop_front().inspect(|(connection, _)| connection.abort());
                }
                let serving = tokio::spawn(answer(stream, pages.clone(), place.clone()));
                connections.push_back((serving.abort_handle(), place));
            }
            Err(error) => {
                tracing::warn!(%error, "the admin endpoint cannot accept a connection");
                reserve = None;
                if let Ok(Ok((stream, _))) = timeout(ACCEPT_RETRY, listener.accept()).await {
                    let answer = answer(stream, pages.clone(), place);
                    let _ = timeout(CONNECTION_TIMEOUT, answer).await;
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
async fn answer(stream: TcpStream, pages: Arc<Pages>, place: Arc<Listener>) {
    let service = service_fn(|request| {
        let (pages, place) = (pages.clone(), place.clone());
        async move { Ok::<_, Infallible>(pages.answer(&request, &place).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            // Whether the client went away or took too long makes no difference to the gateway.
            _ = &mut connection => break,
            () = place.ended() => break,
            // Who listens may do so for as long as it reads.
            () = sleep(CONNECTION_TIMEOUT) => if !place.takes() { break },
        }
    }
    place.leave();
}

impl Pages {
    /// `routes` is the table in force, as JSON.
    pub(crate) fn new(
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        routes: String,
        about: About,
    ) -> Self {
        let next_scrape = Mutex::new(Instant::now());
        Self { health, metrics, routes, about, events: Events::new(), next_scrape }
    }

    async fn answer(&self, request: &Request<Incoming>, place: &Arc<Listener>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET only\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/" if is_for_people(request) => page(StatusCode::OK, HTML, PAGE),
            "/" => page(StatusCode::OK, TEXT, LIST),
            "/page.css" => page(StatusCode::OK, CSS, PAGE_STYLE),
            "/page.js" => page(StatusCode::OK, SCRIPT, PAGE_SCRIPT),
            "/livez" => page(StatusCode::OK, TEXT, "alive\n"),
            "/readyz" => match self.health.unready().as_slice() {
                [] => page(StatusCode::OK, TEXT, "ready\n"),
                reasons => {
                    let lines: Vec<_> = reasons.iter().map(|r| r.text.as_str()).collect();
                    page(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines.join("\n") + "\n")
                }
            },
            "/metrics" => {
                let format = Format::wanted(request.headers());
                page(StatusCode::OK, format.content_type(), self.scrape(format).await)
            }
            "/routes" => page(StatusCode::OK, JSON, self.routes.clone()),
            "/events" if request.method() == Method::GET => {
                page(StatusCode::OK, EVENTS, "").map(|_| self.events.listen(place).boxed_unsync())
            }
            "/events" => page(StatusCode::OK, EVENTS, ""),
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

/// Whether it comes from a browser.
fn is_for_people(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

fn page(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut page = Response::new(Full::new(text.into()).boxed_unsync());
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page.headers_mut().extend(HEADERS);
    page
}
