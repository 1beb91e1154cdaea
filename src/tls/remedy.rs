//! What to do about a connection that failed on TLS.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError};

/// What to do about a connection that failed on TLS, as the end of a sentence. Empty if it failed on something else.
pub(crate) fn remedy(error: &(dyn Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let rustls = error.downcast_ref::<rustls::Error>();
        match rustls {
            Some(rustls::Error::InvalidCertificate(reason)) => return certificate_remedy(reason),
            Some(rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
            )) => return "; it may require a client certificate: set `cert_file` and `key_file`",
            Some(rustls::Error::InvalidMessage(_)) => {
                return "; the other side does not speak TLS: is this the port for unencrypted connections?";
            }
            Some(_) => return "",
            None => {
                // `source` of an I/O error skips the error that it was made of.
                let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
                cause = inner.map(|inner| inner as &dyn Error).or_else(|| error.source());
            }
        }
    }
    ""
}

fn certificate_remedy(reason: &CertificateError) -> &'static str {
    match reason {
        // The signature is bad if another authority of the same name signed it, for example a renewed one.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "; the authority that signed it is not trusted: set `ca_file` to its certificate"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "; renew it on the server, or set the clock of this machine right"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "; the clock of this machine or of the server is wrong"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "; write the url with one of the names in the certificate"
        }
        // The library has no variant of its own for it.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "; the server's certificate is one of an authority, as `openssl req -x509` makes it: make a server \
             certificate with `basicConstraints=CA:FALSE`"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_found_however_deep_the_cause_lies() {
        let cause = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(cause.clone()));
        assert!(remedy(&wrapped).contains("ca_file"));
        assert!(remedy(&cause).contains("ca_file"));
        assert_eq!(remedy(&io::Error::other("else")), "");
    }
}
