//! The way to the broker: TCP, TLS, web sockets, as one stream of bytes each way.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, future::ready};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, split},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        http::{HeaderValue, header::SEC_WEBSOCKET_PROTOCOL},
        protocol::WebSocketConfig,
    },
};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::{Settings, Transport};
use crate::tls::{self, TlsError};

/// What comes from the broker.
pub(super) type Input = Box<dyn AsyncRead + Send + Unpin>;
/// What goes to the broker. Not everything has left before it is flushed.
pub(super) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// How long connecting may take.
const CONNECTING: Duration = Duration::from_secs(10);

/// Why a connection is not made. Whoever tells it names the address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The name or the port.
    #[error("{0}{remedy}", remedy = tls::unreached(Some(.0), URL))]
    Tcp(io::Error),
    /// TLS.
    #[error("TLS: {}{}", tls::plain(.0), tls_remedy(.0))]
    Tls(io::Error),
    /// Certificate files.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// No certificate could have this name.
    #[error(
        "{0}: this is no name that a certificate could have; write `[broker] url` with the server's name"
    )]
    Name(String),
    /// The web socket over it. Not the URL itself is shown: it may hold a token.
    #[error("web socket: {}{}", tls::plain(&**.0), web_socket_remedy(.0))]
    WebSocket(Box<Error>),
    /// Nobody answers.
    #[error("no connection within {} seconds; is {URL} right?", CONNECTING.as_secs())]
    Late,
}

const URL: &str = "`[broker] url`";

impl ConnectError {
    fn web_socket(error: Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

fn tls_remedy(error: &io::Error) -> String {
    match (tls::remedy(error, "broker"), error.kind()) {
        (remedy, ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) if remedy.is_empty() => {
            format!("; is {URL} its port without TLS?")
        }
        (remedy, _) => remedy,
    }
}

fn web_socket_remedy(error: &Error) -> String {
    let remedy = tls::remedy(error, "broker");
    if remedy.is_empty() {
        format!("; is {URL} its port for web sockets, with the right path, `ws://` or `wss://`?")
    } else {
        remedy
    }
}

/// Opens a connection. Certificate files are looked at each time, so that they can be changed while the
/// gateway runs.
///
/// # Errors
/// [`ConnectError`].
pub(super) async fn connect(settings: &Settings) -> Result<(Input, Output), ConnectError> {
    timeout(CONNECTING, open(settings)).await.map_err(|_| ConnectError::Late)?
}

async fn open(settings: &Settings) -> Result<(Input, Output), ConnectError> {
    let address = &settings.address;
    // A literal IPv6 address stands in brackets in a URL, and nowhere else.
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((host, address.port)).await.map_err(ConnectError::Tcp)?;
    // What waits is written in one piece; nothing is gained by waiting for more.
    tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
    match address.transport {
        Transport::Mqtt => {
            let (read, write) = tcp.into_split();
            Ok((Box::new(read), Box::new(write)))
        }
        Transport::Ws => web_socket(settings, tcp).await,
        Transport::Mqtts | Transport::Wss => {
            settings.tls.look_again();
            let config = settings.tls.client()?;
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| ConnectError::Name(host.to_owned()))?;
            let tls = TlsConnector::from(config).connect(name, tcp).await;
            let tls = tls.map_err(ConnectError::Tls)?;
            if address.transport == Transport::Wss {
                return web_socket(settings, tls).await;
            }
            let (read, write) = split(tls);
            Ok((Box::new(read), Box::new(write)))
        }
    }
}

/// MQTT over a web socket: binary messages, however the packets are cut [MQTT-6.0.0-1].
async fn web_socket(
    settings: &Settings,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<(Input, Output), ConnectError> {
    let url = settings.address.url.expose();
    let mut request = url.into_client_request().map_err(ConnectError::web_socket)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
    // A message may hold several packets.
    let most = Some(settings.max_packet as usize * 2 + 65_536);
    let config = WebSocketConfig::default().max_message_size(most).max_frame_size(most);
    let socket = client_async_with_config(request, stream, Some(config)).await;
    let (socket, _) = socket.map_err(ConnectError::web_socket)?;
    let (sink, stream) = socket.split();
    let read = StreamReader::new(stream.filter_map(|message| {
        ready(match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(_) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        })
    }));
    let write = sink.with(|bytes: Bytes| ready(Ok::<_, Error>(Message::Binary(bytes))));
    let write = SinkWriter::new(CopyToBytes::new(write.sink_map_err(io::Error::other)));
    Ok((Box::new(read), Box::new(write)))
}
