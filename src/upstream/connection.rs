//! One connection to the REST API, over HTTP/1.1 or HTTP/2, and the body of an answer that comes on it.
//!
//! Over HTTP/1.1 whoever has the exchange also drives the connection: it has no task of its own, so nothing has to be handed
//! over and woken for each step of an exchange. Over HTTP/2 many exchanges share a connection, which then has one.

use std::{
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri,
    header::HOST,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::Full;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::{
    connector::{Connector, Stream},
    pool::Pool,
};

/// Requests under way on one HTTP/2 connection: no server should allow fewer [RFC 9113, 6.5.2]. The library would let more
/// wait where nobody sees it.
pub(super) const MAX_REQUESTS: usize = 100;
/// How often an HTTP/2 connection with requests under way is asked whether it lives, and how long it may take to say so: one
/// that does not is no other request's.
const PING: Duration = Duration::from_secs(5);

/// What a request carries.
pub(super) type Payload = Full<Bytes>;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// There is no connection.
    #[error("no connection")]
    Connect(#[source] BoxError),
    /// It broke, or is no HTTP.
    #[error("no answer")]
    Exchange(#[source] hyper::Error),
}

/// A connection, or over HTTP/2 a place on it.
pub(super) struct Connection {
    wire: Wire,
    made: Instant,
    /// Whether there was a request on it before.
    used: bool,
    /// It is counted as long as it is open; places on it are not.
    #[expect(dead_code, reason = "it is counted")]
    open: Option<Arc<()>>,
}

enum Wire {
    One(Box<One>),
    Two { sender: http2::SendRequest<Payload>, places: Arc<()> },
}

/// HTTP/1.1.
struct One {
    sender: http1::SendRequest<Payload>,
    /// Reads and writes; none once it is closed.
    driver: Option<http1::Connection<Stream, Payload>>,
    host: HeaderValue,
    /// Whether a proxy reads the requests, which must then have the whole URL in their first line.
    proxied: bool,
}

impl Connection {
    /// Opens one.
    ///
    /// # Errors
    /// [`SendError`] when there is nobody, or nobody who speaks HTTP.
    pub(super) async fn open(
        mut connector: Connector,
        to: Uri,
        open: Arc<()>,
    ) -> Result<Self, SendError> {
        let host = host(&to);
        let stream = connector.call(to).await.map_err(SendError::Connect)?;
        let wire = if stream.speaks_http2() {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING);
            let (mut sender, driver) =
                builder.handshake(stream).await.map_err(SendError::Exchange)?;
            // What ends it, its requests are told.
            tokio::spawn(driver);
            sender.ready().await.map_err(SendError::Exchange)?;
            Wire::Two { sender, places: Arc::default() }
        } else {
            let proxied = stream.is_proxied();
            let (sender, driver) = http1::handshake(stream).await.map_err(SendError::Exchange)?;
            Wire::One(Box::new(One { sender, driver: Some(driver), host, proxied }))
        };
        Ok(Self { wire, made: Instant::now(), used: false, open: Some(open) })
    }

    /// How many requests it takes at once.
    pub(super) fn capacity(&self) -> usize {
        match self.wire {
            Wire::One(_) => 1,
            Wire::Two { .. } => MAX_REQUESTS,
        }
    }

    /// How long ago it was opened.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now - self.made
    }

    /// Another place on it, where it has one to give. It then counts as used.
    pub(super) fn share(&mut self) -> Option<Self> {
        let Wire::Two { sender, places } = &self.wire else { return None };
        // One is that of the connection itself.
        (Arc::strong_count(places) <= MAX_REQUESTS).then(|| {
            let wire = Wire::Two { sender: sender.clone(), places: places.clone() };
            let used = mem::replace(&mut self.used, true);
            Self { wire, made: self.made, used, open: None }
        })
    }

    /// Whether many requests share it.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self.wire, Wire::Two { .. })
    }

    /// Whether no request is under way on it, while it is kept.
    pub(super) fn is_idle(&self) -> bool {
        match &self.wire {
            Wire::One(_) => true,
            Wire::Two { places, .. } => Arc::strong_count(places) == 1,
        }
    }

    /// Whether a request can be sent on it. It looks what the server has done in the meantime, without waiting.
    pub(super) fn is_usable(&mut self) -> bool {
        match &mut self.wire {
            Wire::One(one) => {
                one.step(&mut Context::from_waker(Waker::noop()));
                one.driver.is_some() && one.sender.is_ready()
            }
            Wire::Two { sender, .. } => sender.is_ready(),
        }
    }

    /// Sends a request, which is taken out of where it stands, and waits for the head of the answer.
    ///
    /// # Errors
    /// The error, with the request if no byte of it has been sent.
    async fn send(
        &mut self,
        request: &mut Request<Payload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Payload>>> {
        match &mut self.wire {
            Wire::One(one) => {
                one.shape(request);
                let mut sent = pin!(one.sender.try_send_request(mem::take(request)));
                let one = &mut **one;
                std::future::poll_fn(|cx| one.drive(cx, |cx| sent.as_mut().poll(cx))).await
            }
            Wire::Two { sender, .. } => sender.try_send_request(mem::take(request)).await,
        }
    }
}

impl One {
    /// Makes a request what this version of HTTP wants [RFC 9112, 3.2].
    fn shape(&self, request: &mut Request<Payload>) {
        request.headers_mut().entry(HOST).or_insert_with(|| self.host.clone());
        if !self.proxied {
            let uri = request.uri_mut();
            let path = uri.path_and_query().cloned();
            *uri = path.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
        }
    }

    /// Reads and writes what can be.
    fn step(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            // What ended it is told to the exchange, at the latest by this.
            self.driver = None;
        }
    }

    /// Reads and writes until this is had.
    fn drive<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let had = poll(cx);
        if had.is_ready() {
            return had;
        }
        self.step(cx);
        poll(cx)
    }
}

/// `Host` [RFC 9110, 7.2]: without the port that the scheme has anyway.
fn host(to: &Uri) -> HeaderValue {
    let host = to.host().unwrap_or_default();
    let usual = if to.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let text = match to.port_u16() {
        Some(port) if port != usual => format!("{host}:{port}"),
        _ => host.to_owned(),
    };
    HeaderValue::try_from(text).expect("a host name of a URL has visible characters only")
}

/// A request's place on a connection, until its answer is read.
pub(super) struct Lease {
    connection: Option<Connection>,
    /// Where it goes afterwards.
    pool: Option<Arc<Pool>>,
}

impl Lease {
    /// The connection is closed, or the place left, with this value; or it goes back to the pool when the answer is read.
    pub(super) fn new(connection: Connection, pool: Option<Arc<Pool>>) -> Self {
        Self { connection: Some(connection), pool }
    }

    /// Sends a request, which is taken out of where it stands, and waits for the head of the answer. None if no byte of it has
    /// been sent, and another connection may be tried: then it stands where it was.
    ///
    /// # Errors
    /// [`SendError`] when there is no answer.
    pub(super) async fn send(
        mut self,
        request: &mut Request<Payload>,
    ) -> Result<Option<Response<Body>>, SendError> {
        let connection = self.connection.as_mut().expect("it leaves when the answer is read");
        match connection.send(request).await {
            Ok(response) => Ok(Some(response.map(|incoming| Body { incoming, lease: self }))),
            // A server that closes each new connection is not asked for ever.
            Err(mut error) => match error.take_message().filter(|_| connection.used) {
                Some(unsent) => {
                    *request = unsent;
                    Ok(None)
                }
                None => Err(SendError::Exchange(error.into_error())),
            },
        }
    }

    /// The answer is read.
    fn end(&mut self, cx: &mut Context<'_>) {
        let Some(mut connection) = self.connection.take() else { return };
        if let Wire::One(one) = &mut connection.wire {
            // It finds out that the answer has ended, and whether the server keeps the connection.
            one.step(cx);
            connection.used = true;
            if one.driver.is_none() || !one.sender.is_ready() {
                return;
            }
        }
        if let Some(pool) = self.pool.take() {
            pool.put(connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Somebody may wait for the place that is free now.
        if let Some(connection) = self.connection.take()
            && connection.is_shared()
            && let Some(pool) = self.pool.take()
        {
            pool.put(connection);
        }
    }
}

/// The body of an answer.
pub(super) struct Body {
    incoming: Incoming,
    lease: Lease,
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { incoming, lease } = &mut *self;
        let mut frame = |cx: &mut Context<'_>| Pin::new(&mut *incoming).poll_frame(cx);
        let polled = match &mut lease.connection {
            Some(Connection { wire: Wire::One(one), .. }) => one.drive(cx, frame),
            _ => frame(cx),
        };
        if matches!(polled, Poll::Ready(None)) {
            lease.end(cx);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
