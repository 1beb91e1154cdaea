//! Opens connections to the REST API: TCP, with TLS if the URL is `https://`, and through a proxy if one is set.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::{
        legacy::connect::{
            Connection, HttpConnector,
            dns::{GaiResolver, Name},
            proxy::Tunnel,
        },
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::time::timeout;
use tower::{BoxError, Service};

use super::in_process::InProcess;

type Opened = Result<Stream, BoxError>;
type Tcp = HttpConnector<Resolver>;

/// What a name points to, looked up for each connection.
type Addresses = std::vec::IntoIter<SocketAddr>;
type Lookup = Pin<Box<dyn Future<Output = io::Result<Addresses>> + Send>>;

/// Looks names up.
#[derive(Clone)]
pub(super) struct Resolver(Arc<dyn Fn(Name) -> Lookup + Send + Sync>);

impl Resolver {
    /// By the system, as every program here.
    pub(super) fn system() -> Self {
        Self(Arc::new(|name| {
            Box::pin(async move {
                let addresses = GaiResolver::new().call(name).await?;
                Ok(addresses.collect::<Vec<_>>().into_iter())
            })
        }))
    }

    /// By a table of a test's own.
    #[cfg(test)]
    pub(super) fn scripted(
        address: impl Fn(&str) -> std::net::IpAddr + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |name| {
            let addresses = vec![SocketAddr::new(address(name.as_str()), 0)].into_iter();
            Box::pin(async { Ok(addresses) })
        }))
    }
}

impl Service<Name> for Resolver {
    type Response = Addresses;
    type Error = io::Error;
    type Future = Lookup;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Lookup {
        (self.0)(name)
    }
}

/// A connection that could not be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// To the API, or to where tokens are had.
    #[error("{to}")]
    Direct {
        /// The URL without its path, which may name a device.
        to: String,
        source: BoxError,
    },
    /// Through the proxy, or not even to the proxy.
    #[error("proxy {proxy}")]
    Proxy {
        /// Its URL, without user and password.
        proxy: Uri,
        source: BoxError,
    },
}

impl OpenError {
    fn direct(to: &Uri, source: BoxError) -> Self {
        let scheme = to.scheme_str().unwrap_or_default();
        let to = format!("{scheme}://{}", to.authority().map_or("", |to| to.as_str()));
        Self::Direct { to, source }
    }

    /// The key of the configuration that has the address.
    pub(super) fn key(&self) -> &'static str {
        match self {
            Self::Direct { .. } => "`[upstream] url`",
            Self::Proxy { .. } => "`[upstream] proxy`",
        }
    }
}

/// Opens connections for the HTTP client.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpsConnector<Tcp>,
    proxy: Option<Proxy>,
    /// How long a connection may take to open, TLS included.
    time: Duration,
    /// Whether HTTP/2 is spoken whatever the server says.
    only_http2: bool,
    /// Where connections lead in place of the network.
    in_process: Option<InProcess>,
}

#[derive(Clone)]
struct Proxy {
    url: Uri,
    /// `Proxy-Authorization`, made from the user and the password in the URL.
    authorization: Option<HeaderValue>,
    /// Opens a tunnel with CONNECT, and TLS inside of it.
    tunnel: HttpsConnector<Tunnel<HttpsConnector<Tcp>>>,
}

impl Connector {
    /// `None` when the proxy's URL cannot be used. Opens no connection.
    pub(super) fn new(
        tls: ClientConfig,
        proxy: Option<&str>,
        resolver: Resolver,
        time: Duration,
    ) -> Option<Self> {
        let mut tcp = Tcp::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // What is offered to the API is not offered to a proxy, which is to open tunnels.
        let mut without_alpn = tls.clone();
        without_alpn.alpn_protocols.clear();
        let tls = Arc::new(tls);
        let to_proxy = proxy.is_some().then(|| Arc::new(without_alpn));
        let direct = HttpsConnector::from((tcp, to_proxy.unwrap_or_else(|| tls.clone())));
        let proxy = match proxy {
            None => None,
            Some(text) => {
                // The library takes the user and the password out of the URL.
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
        Some(Self { direct, proxy, time, only_http2: false, in_process: None })
    }

    /// Its connections lead there, if anywhere, in place of the network.
    pub(super) fn in_process(self, in_process: Option<InProcess>) -> Self {
        Self { in_process, ..self }
    }

    /// Its connections speak HTTP/2 whatever the server says, if so.
    pub(super) fn only_http2(self, only_http2: bool) -> Self {
        Self { only_http2, ..self }
    }

    /// `Proxy-Authorization` for a request in clear text, which the proxy reads. A request over TLS is hidden from it: there
    /// the tunnel has the header.
    pub(super) fn proxy_authorization(&self, to: &Uri) -> Option<&HeaderValue> {
        let proxy = self.proxy.as_ref().filter(|_| to.scheme() == Some(&Scheme::HTTP))?;
        proxy.authorization.as_ref()
    }

    async fn open(mut self, to: Uri) -> Opened {
        if let Some(in_process) = self.in_process {
            let stream = TokioIo::new(in_process.connect(&to)?);
            return Ok(Stream::new(stream, false, false));
        }
        let Some(Proxy { url, mut tunnel, .. }) = self.proxy else {
            let open = self.direct.call(to.clone()).await;
            let io = open.map_err(|source| OpenError::direct(&to, source))?;
            let h2 = io.connected().is_negotiated_h2();
            return Ok(Stream::new(io, false, h2));
        };
        let named = |source| OpenError::Proxy { proxy: url.clone(), source };
        Ok(if to.scheme() == Some(&Scheme::HTTP) {
            let io = self.direct.call(url.clone()).await.map_err(named)?;
            Stream::new(io, true, false)
        } else {
            let io = tunnel.call(to).await.map_err(named)?;
            let h2 = io.connected().is_negotiated_h2();
            Stream::new(io, false, h2)
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
        let only_http2 = self.only_http2;
        Box::pin(async move {
            let opened = timeout(time, open).await;
            let stream = opened.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(Stream { h2: stream.h2 || only_http2, ..stream })
        })
    }
}

/// What a connection reads at a turn, by the size of its buffers, in bytes: then others have theirs. An answer may come faster
/// than it can be read, without end.
const READ_AT_A_TURN: usize = 64 * 1024;

trait Io: Read + Write + Send + Unpin {}
impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection to the API or to the proxy.
pub(super) struct Stream {
    io: Box<dyn Io>,
    /// Whether a proxy reads the requests, which must then have the whole URL in their first line.
    proxied: bool,
    /// Whether the server has chosen HTTP/2, or nothing else may be spoken.
    h2: bool,
    /// How much has been asked for since nothing was there to be read.
    asked: usize,
}

impl Stream {
    fn new(io: impl Io + 'static, proxied: bool, h2: bool) -> Self {
        Self { io: Box::new(io), proxied, h2, asked: 0 }
    }

    /// Whether a proxy reads the requests.
    pub(super) fn is_proxied(&self) -> bool {
        self.proxied
    }

    pub(super) fn speaks_http2(&self) -> bool {
        self.h2
    }

    fn io(self: Pin<&mut Self>) -> Pin<&mut dyn Io> {
        Pin::new(&mut *self.get_mut().io)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.asked >= READ_AT_A_TURN {
            self.asked = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let asked = self.asked + buffer.remaining();
        let read = self.as_mut().io().poll_read(cx, buffer);
        self.asked = if read.is_ready() { asked } else { 0 };
        read
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, header::AUTHORIZATION};
    use http_body_util::Full;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        tls,
        upstream::connection::{Connection, Lease},
    };

    /// The head of the first request that a proxy with a user and a password gets for this URL, and its connection.
    async fn through_proxy(url: &'static str, answer: &str) -> (String, TcpStream) {
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = proxy.local_addr().unwrap();
        let user = format!("http://us%40er:pass@{address}");
        let tls = tls::Settings::unused().unwrap();
        let time = Duration::from_secs(9);
        let connector = Connector::new(tls, Some(&user), Resolver::system(), time).unwrap();
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = Uri::from_static(url);
        request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static("the device's key"));
        if let Some(authorization) = connector.proxy_authorization(request.uri()) {
            request.headers_mut().insert("proxy-authorization", authorization.clone());
        }
        let sent = tokio::spawn(async move {
            let connection = Connection::open(connector, Uri::from_static(url), Arc::default());
            Lease::new(connection.await.ok()?, None).send(&mut request).await.ok()?
        });
        let (mut stream, _) = proxy.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        if !url.starts_with("https:") {
            assert_eq!(sent.await.unwrap().unwrap().status(), 204);
        }
        (String::from_utf8(head).unwrap().to_lowercase(), stream)
    }

    /// `us@er:pass`.
    const BASIC: &str = "proxy-authorization: basic dxnazxi6cgfzcw==\r\n";

    #[tokio::test]
    async fn a_proxy_gets_requests_in_clear_text_with_the_whole_url() {
        let (head, _) = through_proxy("http://api.invalid/x?y", "HTTP/1.1 204 Fine\r\n\r\n").await;
        assert!(head.starts_with("get http://api.invalid/x?y http/1.1\r\n"), "{head}");
        assert!(head.contains(BASIC) && head.contains("host: api.invalid\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_proxy_tunnels_tls_and_sees_nothing_of_the_request() {
        let answer = "HTTP/1.1 200 Connected\r\n\r\n";
        let (head, mut stream) = through_proxy("https://api.invalid/secret", answer).await;
        assert!(head.starts_with("connect api.invalid:443 http/1.1\r\n"), "{head}");
        assert!(
            head.contains(BASIC) && !head.contains("secret") && !head.contains("key"),
            "{head}"
        );
        // A TLS record with a handshake message, the ClientHello.
        assert_eq!(stream.read_u8().await.unwrap(), 0x16);
    }

    #[tokio::test]
    async fn a_url_that_cannot_be_a_proxy_is_refused() {
        let connector = |proxy: &str| {
            let (tls, time) = (tls::Settings::unused().unwrap(), Duration::from_secs(9));
            Connector::new(tls, Some(proxy), Resolver::system(), time)
        };
        assert!(connector("https://proxy:3128").is_some());
        assert!(connector("ftp://proxy").is_none() && connector("http://").is_none());
    }
}
