//! Connections to the REST API: those that are kept for further requests, and those for one request alone.
//!
//! Over HTTP/1.1 a connection has one request at a time. Over HTTP/2 it has many, but no more than the server allows, and the
//! library would let the rest wait where nobody sees it: so there are several kept clients, and each gets no more requests at
//! once than every server should allow.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request,
    header::{ACCEPT, PROXY_AUTHORIZATION, USER_AGENT},
    uri::Scheme,
};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, ResponseFuture},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;
use tokio::time::Instant;

use super::{
    HttpVersion, Settings,
    connector::{Connector, Resolver},
    origin::Origin,
};
use crate::{
    secrets::Secret,
    tls::{self, TlsError},
};

/// Idle connections are closed after this time. Many servers close them after 5 s; closing them earlier makes it rare that
/// a request is sent just when the server closes the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections are used for this time at most, so that a host name that gets another address is noticed.
const MAX_AGE: Duration = Duration::from_mins(1);

const ANY_TYPE: HeaderValue = HeaderValue::from_static("*/*");
const THIS_PROGRAM: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

/// The headers of every request, where the configuration has none of the same name.
pub(crate) fn always_sent() -> [(HeaderName, HeaderValue); 2] {
    [(ACCEPT, ANY_TYPE), (USER_AGENT, THIS_PROGRAM)]
}

/// Requests under way in one kept client: no server should allow fewer on a connection [RFC 9113, 6.5.2].
const MAX_REQUESTS: usize = 100;
/// How often an HTTP/2 connection with requests under way is asked whether it lives, and how long it may take to say so: one
/// that does not is no other request's.
const PING: Duration = Duration::from_secs(5);

/// Which connection a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// A kept one if one is free, else a new one, which is kept afterwards.
    Kept,
    /// A new one for this request alone. It is for requests that must not be sent while the server closes the connection,
    /// or that should go to the address that the host name has now.
    Fresh,
}

/// All connections.
pub(super) struct Connections {
    settings: Settings,
    /// Whether any connection is encrypted.
    encrypted: bool,
    origin: Origin,
    resolver: Resolver,
    clients: Mutex<Clients>,
}

struct Clients {
    /// As many as it takes for all requests that may be under way.
    kept: Box<[Kept]>,
    fresh: Client<Connector, Full<Bytes>>,
    /// It knows the `Proxy-Authorization` for a proxy that reads the requests.
    connector: Connector,
    /// The certificates that new connections use; none where no connection is encrypted.
    tls: Option<Arc<ClientConfig>>,
    made: Instant,
}

/// A client, and how many requests it has under way.
struct Kept {
    client: Client<Connector, Full<Bytes>>,
    places: Arc<()>,
}

/// A place among the requests of a client, until the answer is read.
pub(super) struct Place(#[expect(dead_code, reason = "it is counted")] Option<Arc<()>>);

/// Why the client cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A certificate file.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The upstream's URL.
    #[error("the HTTP client cannot be set up: [upstream] url: {0}")]
    Url(#[from] http::uri::InvalidUri),
    /// The proxy's URL, which is not shown: it may hold a password.
    #[error(
        "the HTTP client cannot be set up: [upstream] proxy: invalid URL; write `http://host:port`"
    )]
    Proxy,
}

impl Clients {
    fn new(
        settings: &Settings,
        tls: Option<Arc<ClientConfig>>,
        resolver: &Resolver,
    ) -> Result<Self, ClientError> {
        let mut config = tls.as_deref().cloned().map_or_else(tls::Settings::unused, Ok)?;
        let version = match settings.in_process {
            None => settings.http_version,
            Some(_) => HttpVersion::One,
        };
        config.alpn_protocols = version.alpn();
        let resolver = resolver.clone();
        let connector = Connector::new(config, proxy(settings), resolver, settings.attempt_timeout)
            .ok_or(ClientError::Proxy)?
            .in_process(settings.in_process.clone());
        // The library sends a request again by itself only when no byte of it has been sent.
        let client = |idle: usize| {
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(idle)
                .http2_only(version == HttpVersion::Two)
                .http2_keep_alive_interval(PING)
                .http2_keep_alive_timeout(PING)
                .build(connector.clone())
        };
        // Where HTTP/2 cannot be spoken, one will do.
        let many = match version {
            HttpVersion::Auto => tls.is_some(),
            HttpVersion::One => false,
            HttpVersion::Two => true,
        };
        let count = if many { settings.max_in_flight.div_ceil(MAX_REQUESTS).max(1) } else { 1 };
        let kept = |_| Kept { client: client(settings.max_in_flight), places: Arc::default() };
        Ok(Self {
            kept: (0..count).map(kept).collect(),
            fresh: client(0),
            connector,
            tls,
            made: Instant::now(),
        })
    }

    /// Whether they go on being used: they are not too old, and the certificate files say what they said.
    fn are_current(&self, tls: Option<&Arc<ClientConfig>>) -> bool {
        let same = match (&self.tls, tls) {
            (Some(used), Some(tls)) => Arc::ptr_eq(used, tls),
            (None, None) => true,
            _ => false,
        };
        same && self.made.elapsed() < MAX_AGE
    }
}

/// The proxy's URL, if connections lead to the network.
fn proxy(settings: &Settings) -> Option<&str> {
    settings.proxy.as_ref().map(Secret::expose).filter(|_| settings.in_process.is_none())
}

/// Whether any connection is encrypted: to the API, to the proxy or to where tokens are had.
fn is_encrypted(settings: &Settings) -> bool {
    settings.in_process.is_none()
        && (settings.url.scheme() == "https"
            || proxy(settings).is_some_and(|proxy| proxy.starts_with("https:"))
            || settings.token_url().is_some_and(|url| url.scheme() == Some(&Scheme::HTTPS)))
}

impl Connections {
    /// Sets everything up. Opens no connection.
    ///
    /// # Errors
    /// [`ClientError`] when a certificate file or the proxy cannot be used.
    pub(super) fn new(settings: &Settings, resolver: Resolver) -> Result<Self, ClientError> {
        let origin = Origin::new(&settings.url)?;
        let encrypted = is_encrypted(settings);
        let tls = encrypted.then(|| settings.tls.client()).transpose()?;
        let clients = Mutex::new(Clients::new(settings, tls, &resolver)?);
        Ok(Self { settings: settings.clone(), encrypted, origin, resolver, clients })
    }

    /// The URL that paths are appended to.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Sends a request. A redirect is not followed, since it could send a key to a host that the operator never named.
    /// The place is to be kept until the answer is read.
    pub(super) fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        which: Which,
    ) -> (ResponseFuture, Place) {
        // They were read at start, so what cannot be used now changes nothing.
        let tls = if self.encrypted { self.settings.tls.client().ok() } else { None };
        // No code that can panic runs under this lock.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if !clients.are_current(tls.as_ref()) {
            // Requests under way go on with their connections.
            match Clients::new(&self.settings, tls, &self.resolver) {
                Ok(new) => *clients = new,
                Err(error) => {
                    clients.made = Instant::now();
                    tracing::error!(%error, "the HTTP client goes on as it was");
                }
            }
        }
        let authorization = clients.connector.proxy_authorization(request.uri()).cloned();
        let headers = request.headers_mut();
        for (name, value) in always_sent() {
            headers.entry(name).or_insert(value);
        }
        if let Some(authorization) = authorization {
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        match which {
            Which::Kept => {
                let has_room = |kept: &&Kept| Arc::strong_count(&kept.places) <= MAX_REQUESTS;
                // There is one, but for requests that are not counted in `max_in_flight`, for tokens.
                let kept = clients.kept.iter().find(has_room).unwrap_or(&clients.kept[0]);
                (kept.client.request(request), Place(Some(kept.places.clone())))
            }
            Which::Fresh => (clients.fresh.request(request), Place(None)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        backoff::Backoff,
        secrets::watched::PAUSE,
        upstream::{BreakerSettings, fixtures},
    };

    #[tokio::test(start_paused = true)]
    async fn new_certificates_are_used_after_a_pause_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let renew = || {
            let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            fs::write(&file, ca.cert.pem()).unwrap();
        };
        renew();
        let wait = Backoff { initial: Duration::ZERO, max: Duration::ZERO };
        let breaker = BreakerSettings { devices: 1, probe: wait, probe_path: None };
        let mut settings = fixtures::settings("https://localhost:1", wait, breaker);
        let files = tls::Files { ca_file: Some(file.clone()), ..tls::Files::default() };
        settings.tls = tls::Settings::new(files);
        let connections = Connections::new(&settings, Resolver::system()).unwrap();
        let used = || {
            drop(connections.send(Request::new(Full::default()), Which::Kept));
            connections.clients.lock().unwrap().tls.clone().unwrap()
        };
        let first = used();
        renew();
        assert!(Arc::ptr_eq(&first, &used()), "they were looked at a moment ago");
        tokio::time::advance(PAUSE).await;
        let second = used();
        assert!(!Arc::ptr_eq(&first, &second));
        for content in ["", "half"] {
            fs::write(&file, content).unwrap();
            tokio::time::advance(PAUSE).await;
            assert!(Arc::ptr_eq(&second, &used()), "{content}");
        }
        renew();
        tokio::time::advance(PAUSE).await;
        assert!(!Arc::ptr_eq(&second, &used()));
    }
}
