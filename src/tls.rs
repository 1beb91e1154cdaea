//! TLS as a client: one configuration type for the broker and for the upstream.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// Certificate files, under the names of the configuration. They are read again for new connections, so that renewed
/// certificates are used without a restart.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_field_names, reason = "they have the names of the keys")]
pub struct Settings {
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The gateway's own certificate chain, for mutual TLS.
    pub cert_file: Option<PathBuf>,
    /// The private key of that certificate.
    pub key_file: Option<PathBuf>,
}

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read, or is not PEM.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate and the key do not belong together.
    #[error("this key does not belong to the certificate in `cert_file`: {0}")]
    Pair(rustls::Error),
    /// The cryptography of rustls cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
    /// No `ca_file` is set, and the system has no trusted certificates either.
    #[error("the system has no trusted certificates; install ca-certificates or set ca_file")]
    NoRoots,
}

impl Settings {
    /// Builds the client configuration.
    ///
    /// # Errors
    /// [`TlsError`] when a file cannot be used.
    pub fn client(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.ca_file {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| unusable(file, error.to_string()))?;
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
        }
        self.finish(roots)
    }

    /// Reads the files that are set, so that a wrong one is reported before any socket opens.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used.
    pub fn check(&self) -> Result<(), TlsError> {
        let files = [&self.ca_file, &self.cert_file, &self.key_file];
        if files.iter().any(|file| file.is_some()) { self.client().map(|_| ()) } else { Ok(()) }
    }

    /// A configuration that trusts no certificate, for a client whose connections are not encrypted: the system's
    /// certificates need not be read for it.
    ///
    /// # Errors
    /// [`TlsError::Rustls`] when the cryptography cannot be used.
    pub fn unused() -> Result<ClientConfig, TlsError> {
        Self::default().finish(RootCertStore::empty())
    }

    fn finish(&self, roots: RootCertStore) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => {
                let (certificates, key) = (certificates(certificate)?, private_key(key)?);
                builder.with_client_auth_cert(certificates, key).map_err(TlsError::Pair)?
            }
            _ => builder.with_no_client_auth(),
        })
    }
}

fn unusable(file: &Path, reason: impl Into<String>) -> TlsError {
    TlsError::File { file: file.to_owned(), reason: reason.into() }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(file, error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable(file, "no certificate in this file; write it in PEM format"));
    }
    Ok(certificates)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = fs::read(file).map_err(|error| unusable(file, error.to_string()))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        // The library skips an encrypted key and reports that there is none.
        let text = String::from_utf8_lossy(&text);
        if text.contains("ENCRYPTED") {
            unusable(
                file,
                "the key is encrypted, and the gateway cannot ask for a passphrase; decrypt it with \
                 `openssl pkey -in <file> -out <file>`",
            )
        } else if matches!(error, pem::Error::NoItemsFound) {
            unusable(file, "no private key in this file; write it in PEM format")
        } else {
            unusable(file, error.to_string())
        }
    })
}

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
