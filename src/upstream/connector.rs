//! Connections to the REST API: TCP, with TLS where the URL says so, and through a proxy where one is set.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::client::{
    legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
    proxy::matcher::Matcher,
};
use rustls::ClientConfig;
use tokio::time::timeout;
use tower::{BoxError, Service};

type Opened = Result<Stream, BoxError>;

/// Opens connections for the HTTP client.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpsConnector<HttpConnector>,
    proxy: Option<Proxy>,
    /// How long a connection may take to open, TLS included.
    time: Duration,
}

#[derive(Clone)]
struct Proxy {
    url: Uri,
    /// `Proxy-Authorization`, from the user and the password in its URL.
    authorization: Option<HeaderValue>,
    /// Opens a tunnel by CONNECT and speaks TLS through it.
    tunnel: HttpsConnector<Tunnel<HttpsConnector<HttpConnector>>>,
}

impl Connector {
    /// `None` when the proxy's URL cannot be used. Opens no connection.
    pub(super) fn new(tls: ClientConfig, proxy: Option<&str>, time: Duration) -> Option<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let tls = Arc::new(tls);
        let direct = HttpsConnector::from((tcp, tls.clone()));
        let proxy = match proxy {
            None => None,
            Some(text) => {
                // It takes the user and the password out of the URL.
                let proxy = Matcher::builder().all(text).build();
                let proxy = proxy.intercept(&Uri::from_static("http://api"))?;
                let (url, authorization) = (proxy.uri().clone(), proxy.basic_auth().cloned());
                let tunnel = Tunnel::new(url.clone(), direct.clone());
                let tunnel = match &authorization {
                    Some(authorization) => tunnel.with_auth(authorization.clone()),
                    None => tunnel,
                };
                let tunnel = HttpsConnector::from((tunnel, tls));
                Some(Proxy { url, authorization, tunnel })
            }
        };
        Some(Self { direct, proxy, time })
    }

    /// What a request in clear text through the proxy has to carry for it. Requests over TLS are not seen by it.
    pub(super) fn proxy_authorization(&self, to: &Uri) -> Option<&HeaderValue> {
        let proxy = self.proxy.as_ref().filter(|_| to.scheme() == Some(&Scheme::HTTP))?;
        proxy.authorization.as_ref()
    }

    async fn open(mut self, to: Uri) -> Opened {
        Ok(match self.proxy {
            None => Stream { io: Box::new(self.direct.call(to).await?), proxied: false },
            Some(proxy) if to.scheme() == Some(&Scheme::HTTP) => {
                Stream { io: Box::new(self.direct.call(proxy.url).await?), proxied: true }
            }
            Some(mut proxy) => {
                Stream { io: Box::new(proxy.tunnel.call(to).await?), proxied: false }
            }
        })
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Opened> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (time, open) = (self.time, self.clone().open(to));
        Box::pin(async move {
            timeout(time, open).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        })
    }
}

trait Io: Read + Write + Send + Unpin {}
impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection to the API or to the proxy.
pub(super) struct Stream {
    io: Box<dyn Io>,
    /// The proxy reads the requests, which must name the API in full.
    proxied: bool,
}

impl Stream {
    fn io(self: Pin<&mut Self>) -> Pin<&mut dyn Io> {
        Pin::new(&mut *self.get_mut().io)
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, buffers)
    }
}
