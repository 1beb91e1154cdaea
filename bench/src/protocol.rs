//! What is spoken to the API: HTTP/1.1 or HTTP/2, with TLS or without.

use std::{fs, io, path::Path, sync::Arc};

use clap::ValueEnum;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// What the API speaks, and nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    #[default]
    Http1,
    Http2,
    Http1Tls,
    Http2Tls,
}

impl Protocol {
    pub const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Http1Tls, Self::Http2Tls];

    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2, set",
            Self::Http1Tls => "HTTP/1.1, TLS",
            Self::Http2Tls => "HTTP/2, TLS",
        }
    }

    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Http2Tls)
    }

    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Http1Tls | Self::Http2Tls)
    }
}

/// What takes connections in, with a certificate that is made now and written to this file; nothing without TLS.
pub fn acceptor(protocol: Protocol, certificate: &Path) -> io::Result<Option<TlsAcceptor>> {
    if !protocol.is_encrypted() {
        return Ok(None);
    }
    let made = generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
    let CertifiedKey { cert, signing_key } = made;
    fs::write(certificate, cert.pem())?;
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .map_err(io::Error::other)?;
    let spoken: &[u8] = if protocol.is_http2() { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![spoken.to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
