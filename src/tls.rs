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

/// Certificate files as the configuration names them. Files are read when a connection is set up.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_field_names, reason = "they are called as the keys are")]
pub struct Settings {
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Our certificate chain, for mutual TLS.
    pub cert_file: Option<PathBuf>,
    /// The private key of that certificate.
    pub key_file: Option<PathBuf>,
}

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not readable or not PEM.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate and the key do not belong together.
    #[error("this is not the key of `cert_file`: {0}")]
    Pair(rustls::Error),
    /// The cryptography is not usable.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
    /// The system trusts nobody and no `ca_file` is given.
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

    /// Reads the files that are named, so that a wrong one is found before any socket opens.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used.
    pub fn check(&self) -> Result<(), TlsError> {
        let files = [&self.ca_file, &self.cert_file, &self.key_file];
        if files.iter().any(|file| file.is_some()) { self.client().map(|_| ()) } else { Ok(()) }
    }

    /// A configuration that trusts nobody, for plain connections that never use it; it spares
    /// reading the system's certificates.
    ///
    /// # Errors
    /// [`TlsError::Rustls`] when the cryptography is not usable.
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
        return Err(unusable(file, "no certificate in this file; PEM is wanted"));
    }
    Ok(certificates)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = fs::read(file).map_err(|error| unusable(file, error.to_string()))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        // The library passes over what it cannot use and finds nothing.
        let text = String::from_utf8_lossy(&text);
        if text.contains("ENCRYPTED") {
            unusable(
                file,
                "the key is encrypted and nobody is there to be asked; write it out with \
                            `openssl pkey -in <file> -out <file>`",
            )
        } else if matches!(error, pem::Error::NoItemsFound) {
            unusable(file, "no private key in this file; PEM is wanted")
        } else {
            unusable(file, error.to_string())
        }
    })
}

/// What to do about a connection that failed on a certificate, as the end of a sentence; empty if it did
/// not.
pub(crate) fn remedy(error: &(dyn Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let rustls = error.downcast_ref::<rustls::Error>();
        match rustls {
            Some(rustls::Error::InvalidCertificate(reason)) => return certificate_remedy(reason),
            Some(rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
            )) => return "; it may want a certificate of ours: set `cert_file` and `key_file`",
            Some(rustls::Error::InvalidMessage(_)) => {
                return "; this is not TLS: is the port one for plain connections?";
            }
            Some(_) => return "",
            None => {
                // An I/O error keeps what it was made of to itself.
                let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
                cause = inner.map(|inner| inner as &dyn Error).or_else(|| error.source());
            }
        }
    }
    ""
}

fn certificate_remedy(reason: &CertificateError) -> &'static str {
    match reason {
        // A bad signature: signed by another authority of the same name, as when it has been renewed.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "; whoever signed it is not trusted here: set `ca_file` to that authority's certificate"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "; it has to be renewed there, or the clock here is wrong"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "; the clock here or there is wrong"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "; write the url with a name that stands in it"
        }
        // The library has no variant of its own for it.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "; this certificate is an authority, as `openssl req -x509` makes it: make a server \
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
