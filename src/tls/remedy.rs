//! What to do about a connection that failed: the end of a sentence, with the key to set.

use std::{error::Error, io};

use rustls::{AlertDescription as Alert, CertificateError, Error as Tls};

/// What to do about a connection that failed on TLS, as the end of a sentence; `section` has the keys. Empty if it failed on
/// something else.
pub(crate) fn remedy(error: &(dyn Error + 'static), section: &str) -> String {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<Tls>() {
            return tls(error, section).unwrap_or_default();
        }
        // `source` of an I/O error skips the error that it was made of.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = inner.map(|inner| inner as &dyn Error).or_else(|| error.source());
    }
    String::new()
}

/// The same for an address at which nothing was reached; `key` has it.
pub(crate) fn unreached(error: Option<&io::Error>, key: &str) -> String {
    match error.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            format!("; nothing listens there: is {key} right, and does it run?")
        }
        _ => format!("; is {key} right?"),
    }
}

/// The text of an error without the library's links.
pub(crate) fn plain(error: &dyn Error) -> String {
    let text = error.to_string();
    text.split(": https://").next().unwrap_or_default().to_owned()
}

fn tls(error: &Tls, section: &str) -> Option<String> {
    Some(match error {
        Tls::InvalidCertificate(reason) => return certificate(reason, section),
        Tls::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => format!(
            "; it may require a client certificate: set `[{section}] cert_file` and `key_file`"
        ),
        Tls::AlertReceived(Alert::NoApplicationProtocol) => {
            format!("; it does not speak HTTP/2: set `[{section}] http_version` to \"auto\"")
        }
        Tls::AlertReceived(Alert::UnknownCA) => format!(
            "; it does not trust the authority that signed our certificate: is it the right one, in `[{section}] cert_file`?"
        ),
        Tls::AlertReceived(Alert::CertificateExpired) => {
            format!("; our certificate has ended: renew `[{section}] cert_file`")
        }
        Tls::AlertReceived(
            Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::DecryptError,
        ) => format!("; it does not accept our certificate: look at `[{section}] cert_file`"),
        Tls::InvalidMessage(_) => {
            format!(
                "; the other side does not speak TLS: is `[{section}] url` its port without TLS?"
            )
        }
        _ => return None,
    })
}

fn certificate(reason: &CertificateError, section: &str) -> Option<String> {
    Some(match reason {
        // The signature is bad if another authority of the same name signed it, for example a renewed one.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "; the authority that signed it is not trusted: set `[{section}] ca_file` to its certificate"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "; renew it on the server, or set the clock of this machine right".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "; the clock of this machine or of the server is wrong".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("; write `[{section}] url` with one of the names in the certificate")
        }
        // The library has no variant of its own for it.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "; the server's certificate is one of an authority, as `openssl req -x509` makes it: make a server \
             certificate with `basicConstraints=CA:FALSE`"
                .to_owned()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_found_however_deep_the_cause_lies() {
        let cause = Tls::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(cause.clone()));
        assert!(remedy(&wrapped, "broker").contains("`[broker] ca_file`"));
        assert!(remedy(&cause, "broker").contains("`[broker] ca_file`"));
        assert_eq!(remedy(&io::Error::other("else"), "broker"), "");
    }
}
