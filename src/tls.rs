//! TLS as a client: one configuration type for the broker and for the upstream.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// Certificate files as the configuration names them. Files are read when a connection is set up.
#[derive(Debug, Clone, Default)]
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
    /// The certificate and key do not work together, or no protocol version is left.
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
                roots.add(certificate)?;
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
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
                    file: key.clone(),
                    reason: error.to_string(),
                })?;
                builder.with_client_auth_cert(certificates(certificate)?, key)?
            }
            _ => builder.with_no_client_auth(),
        })
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = |reason: String| TlsError::File { file: file.clone(), reason };
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() {
        return Err(unusable("no certificate in this file".to_owned()));
    }
    Ok(certificates)
}
