//! Which connection a request goes on: one that is kept, or one for this request alone.

use std::sync::{Arc, Mutex, PoisonError};

use http::{
    HeaderName, HeaderValue, Request, Response,
    header::{ACCEPT, PROXY_AUTHORIZATION, USER_AGENT},
    uri::Scheme,
};
use rustls::ClientConfig;

use super::{
    HttpVersion, Settings,
    connection::{Body, Connection, Lease, Payload, SendError},
    connector::{Connector, Resolver},
    origin::Origin,
    pool::Pool,
};
use crate::{
    secrets::Secret,
    tls::{self, TlsError},
};

const ANY_TYPE: HeaderValue = HeaderValue::from_static("*/*");
const THIS_PROGRAM: HeaderValue =
    HeaderValue::from_static(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")));

/// The headers of every request, where the configuration has none of the same name.
pub(crate) fn always_sent() -> [(HeaderName, HeaderValue); 2] {
    [(ACCEPT, ANY_TYPE), (USER_AGENT, THIS_PROGRAM)]
}

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
    current: Mutex<Arc<Current>>,
}

/// What new requests use.
struct Current {
    connector: Connector,
    kept: Arc<Pool>,
    /// The certificates that new connections use; none where no connection is encrypted.
    tls: Option<Arc<ClientConfig>>,
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

impl Current {
    fn new(
        settings: &Settings,
        tls: Option<Arc<ClientConfig>>,
        resolver: &Resolver,
        origin: &Origin,
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
            .only_http2(version == HttpVersion::Two)
            .in_process(settings.in_process.clone());
        // Without TLS nobody can choose.
        let many = match version {
            HttpVersion::Auto => tls.is_some(),
            HttpVersion::One => false,
            HttpVersion::Two => true,
        };
        let kept = Pool::new(connector.clone(), origin.base().clone(), many);
        Ok(Self { connector, kept, tls })
    }

    fn has(&self, tls: Option<&Arc<ClientConfig>>) -> bool {
        match (&self.tls, tls) {
            (Some(used), Some(tls)) => Arc::ptr_eq(used, tls),
            (None, None) => true,
            _ => false,
        }
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
        let current = Current::new(settings, tls, &resolver, &origin)?;
        let current = Mutex::new(Arc::new(current));
        Ok(Self { settings: settings.clone(), encrypted, origin, resolver, current })
    }

    /// The URL that paths are appended to.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Sends a request and waits for the head of the answer. A redirect is not followed, since it could send a key to a host
    /// that the operator never named. The request is taken out of where it stands.
    ///
    /// # Errors
    /// [`SendError`] when there is no answer.
    pub(super) async fn send(
        &self,
        request: &mut Request<Payload>,
        which: Which,
    ) -> Result<Response<Body>, SendError> {
        let current = self.current();
        let Current { connector, kept, .. } = &*current;
        let headers = request.headers_mut();
        for (name, value) in always_sent() {
            headers.entry(name).or_insert(value);
        }
        if let Some(authorization) = connector.proxy_authorization(request.uri()) {
            let authorization = authorization.clone();
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        let to = request.uri().clone();
        loop {
            let (connection, pool) = match which {
                Which::Kept => (kept.get().await?, Some(kept.clone())),
                // Boxed, so that calls which open none have no room for it.
                Which::Fresh => {
                    let opened = Connection::open(connector.clone(), to.clone(), Arc::default());
                    (Box::pin(opened).await?, None)
                }
            };
            if let Some(response) = Lease::new(connection, pool).send(request).await? {
                return Ok(response);
            }
            // The server has closed it at this moment, and has not begun with the request.
            *request.uri_mut() = to.clone();
        }
    }

    /// With the certificates that the files have now.
    fn current(&self) -> Arc<Current> {
        // They were read at start, so what cannot be used now changes nothing.
        let tls = if self.encrypted { self.settings.tls.client().ok() } else { None };
        // No code that can panic runs under this lock.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !current.has(tls.as_ref()) {
            // Requests under way go on with their connections.
            match Current::new(&self.settings, tls, &self.resolver, &self.origin) {
                Ok(new) => *current = Arc::new(new),
                Err(error) => tracing::error!(%error, "the HTTP client goes on as it was"),
            }
        }
        current.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

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
        let used = || connections.current().tls.clone().unwrap();
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
