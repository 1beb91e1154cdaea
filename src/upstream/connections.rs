//! HTTP/1.1 connections to the REST API: kept ones and fresh ones.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request,
    header::{ACCEPT, PROXY_AUTHORIZATION, USER_AGENT},
};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, ResponseFuture},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::Instant;

use super::{Settings, connector::Connector, origin::Origin};
use crate::{
    secret::Secret,
    tls::{self, TlsError},
};

/// Idle connections are closed before servers close them, which many do after 5 s, so that a request rarely
/// meets a connection that is just going away.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// Connections are not used for longer, so that a name that moves to another address is followed, and
/// certificate files that are renewed are read.
const MAX_AGE: Duration = Duration::from_mins(1);

const ANY_TYPE: HeaderValue = HeaderValue::from_static("*/*");
const THIS_PROGRAM: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

/// Which connection a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// One that is kept, if one is free.
    Kept,
    /// One for this request alone: it must not meet a connection that the server is about to close, or the name
    /// should be looked up anew.
    Fresh,
}

/// All connections.
pub(super) struct Connections {
    settings: Settings,
    origin: Origin,
    clients: Mutex<Clients>,
}

struct Clients {
    kept: Client<Connector, Full<Bytes>>,
    fresh: Client<Connector, Full<Bytes>>,
    /// For a proxy that reads the requests.
    proxy_authorization: Option<HeaderValue>,
    made: Instant,
}

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
    fn new(settings: &Settings, origin: &Origin) -> Result<Self, ClientError> {
        let proxy = settings.proxy.as_ref().map(Secret::expose);
        let encrypted = settings.url.scheme() == "https"
            || proxy.is_some_and(|proxy| proxy.starts_with("https:"));
        let tls = if encrypted { settings.tls.client()? } else { tls::Settings::unused()? };
        let connector =
            Connector::new(tls, proxy, settings.attempt_timeout).ok_or(ClientError::Proxy)?;
        // It sends a request again by itself only when nothing of it has been sent.
        let client = |idle: usize| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(idle)
                .build(connector.clone())
        };
        Ok(Self {
            kept: client(settings.max_in_flight),
            fresh: client(0),
            proxy_authorization: connector.proxy_authorization(origin.base()).cloned(),
            made: Instant::now(),
        })
    }
}

impl Connections {
    /// Opens none.
    ///
    /// # Errors
    /// [`ClientError`] when a certificate file or the proxy cannot be used.
    pub(super) fn new(settings: &Settings) -> Result<Self, ClientError> {
        let origin = Origin::new(&settings.url)?;
        let clients = Mutex::new(Clients::new(settings, &origin)?);
        Ok(Self { settings: settings.clone(), origin, clients })
    }

    /// The URL that paths are appended to.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Sends a request. Neither redirects nor answers that ask for another attempt are followed: a redirect could
    /// lead a key to a host the operator never named.
    pub(super) fn send(&self, mut request: Request<Full<Bytes>>, which: Which) -> ResponseFuture {
        // No code that can panic runs under this lock.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.made.elapsed() >= MAX_AGE {
            match Clients::new(&self.settings, &self.origin) {
                Ok(new) => *clients = new,
                Err(error) => {
                    clients.made = Instant::now();
                    tracing::error!(%error, "the HTTP client goes on with the certificates it has");
                }
            }
        }
        let headers = request.headers_mut();
        headers.insert(ACCEPT, ANY_TYPE);
        headers.insert(USER_AGENT, THIS_PROGRAM);
        if let Some(authorization) = &clients.proxy_authorization {
            headers.insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        match which {
            Which::Kept => clients.kept.request(request),
            Which::Fresh => clients.fresh.request(request),
        }
    }
}
