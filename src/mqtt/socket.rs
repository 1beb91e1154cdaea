//! The way to the broker: TCP, TLS, web sockets, as one stream of bytes each way.

use std::io::{self, ErrorKind};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, future::ready};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, split},
    net::TcpStream,
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
use crate::tls;

/// What comes from the broker.
pub(super) type Input = Box<dyn AsyncRead + Send + Unpin>;
/// What goes to the broker. Not everything has left before it is flushed.
pub(super) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Opens a connection. Certificate files are looked at each time, so that they can be changed while the
/// gateway runs.
///
/// # Errors
/// A sentence for the operator.
pub(super) async fn connect(settings: &Settings) -> Result<(Input, Output), String> {
    let address = &settings.address;
    // A literal IPv6 address stands in brackets in a URL, and nowhere else.
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    let named = |error: io::Error| format!("{address}: {error}");
    let tcp = TcpStream::connect((host, address.port)).await.map_err(named)?;
    // What waits is written in one piece; nothing is gained by waiting for more.
    tcp.set_nodelay(true).map_err(named)?;
    match address.transport {
        Transport::Mqtt => {
            let (read, write) = tcp.into_split();
            Ok((Box::new(read), Box::new(write)))
        }
        Transport::Ws => web_socket(settings, tcp).await,
        Transport::Mqtts | Transport::Wss => {
            settings.tls.look_again();
            let config = settings.tls.client().map_err(|error| error.to_string())?;
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| format!("{host}: this is no name that a certificate could have"))?;
            let tls = TlsConnector::from(config).connect(name, tcp).await;
            let tls = tls.map_err(|error| {
                let remedy = match (tls::remedy(&error), error.kind()) {
                    ("", ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                        "; is this the port for unencrypted connections?"
                    }
                    (remedy, _) => remedy,
                };
                format!("{address}: TLS: {error}{remedy}")
            })?;
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
) -> Result<(Input, Output), String> {
    // Not the URL itself: it may hold a token.
    let address = &settings.address;
    let named = |error: Error| format!("{address}: web socket: {error}");
    let mut request = address.url.expose().into_client_request().map_err(named)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
    // A message may hold several packets.
    let most = Some(settings.max_packet as usize * 2 + 65_536);
    let config = WebSocketConfig::default().max_message_size(most).max_frame_size(most);
    let (socket, _) =
        client_async_with_config(request, stream, Some(config)).await.map_err(named)?;
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
