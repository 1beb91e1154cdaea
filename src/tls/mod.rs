//! TLS as a client: one configuration type for the broker and for the upstream.
//!
//! When certificates end: `expiry.rs`. What to do about a connection that failed: `remedy.rs`.

mod expiry;
mod remedy;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use self::expiry::Expiry;
pub(crate) use self::remedy::{plain, remedy, unreached};
use crate::secrets::watched::{Look, Watched};

/// Certificate files, under the names of the configuration. They are read again when they have changed, so that renewed
/// certificates are used for new connections without a restart. A clone shares what was read.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    files: Files,
    client: Arc<OnceLock<Watched<Client, TlsError>>>,
}

/// The files.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_field_names, reason = "they have the names of the keys")]
pub struct Files {
    /// Certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The gateway's own certificate chain, for mutual TLS.
    pub cert_file: Option<PathBuf>,
    /// The private key of that certificate.
    pub key_file: Option<PathBuf>,
}

/// What was read in the files.
#[derive(Debug, Clone)]
struct Client {
    config: Arc<ClientConfig>,
    ends: Arc<[Expiry]>,
}

/// Read at the same time.
impl PartialEq for Client {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
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
    /// These files, which are not read yet.
    pub fn new(files: Files) -> Self {
        Self { files, client: Arc::default() }
    }

    /// The files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The client configuration for new connections: by the files as they are now, or by those read before if they cannot
    /// be used now.
    ///
    /// # Errors
    /// [`TlsError`] when a file cannot be used, and none was read before.
    pub fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let Some(watched) = self.client.get() else {
            let files = self.files.clone();
            let watched = Watched::files(files.watched(), move || files.read())?;
            return Ok(self.client.get_or_init(|| watched).last_read().config);
        };
        let Look { value, error, .. } = watched.look();
        if let Some(error) = error {
            tracing::error!(%error, "certificate files cannot be used; those read before stay");
        }
        Ok(value.config)
    }

    /// Reads the files that are set, so that a wrong one is reported before any socket opens.
    ///
    /// # Errors
    /// [`TlsError`] when one cannot be used.
    pub fn check(&self) -> Result<(), TlsError> {
        let Files { ca_file, cert_file, key_file } = &self.files;
        let files = [ca_file, cert_file, key_file];
        if files.iter().any(|file| file.is_some()) { self.client().map(drop) } else { Ok(()) }
    }

    /// The files are looked at when they are used next, however short ago it was.
    pub fn look_again(&self) {
        if let Some(watched) = self.client.get() {
            watched.look_again();
        }
    }

    /// Looks at the files now, if connections use any.
    pub fn look_now(&self) {
        self.look_again();
        if self.client.get().is_some() {
            // They were read before, so there is no error.
            let _ = self.client();
        }
    }

    /// When the first of the certificates in use ends: the gateway's own, or the last authority that it trusts by
    /// `ca_file`. `None` where no file is in use.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.ends().iter().map(|end| end.not_after).min()
    }

    /// A sentence for each certificate in use that ends within a week.
    pub fn warnings(&self, section: &'static str, now: SystemTime) -> impl Iterator<Item = String> {
        let ends = self.ends();
        (0..ends.len()).filter_map(move |index| ends.get(index)?.warning(section, now))
    }

    fn ends(&self) -> Arc<[Expiry]> {
        self.client.get().map_or_else(Arc::default, |watched| watched.last_read().ends)
    }

    /// A configuration that trusts no certificate, for a client whose connections are not encrypted: the system's
    /// certificates need not be read for it.
    ///
    /// # Errors
    /// [`TlsError::Rustls`] when the cryptography cannot be used.
    pub fn unused() -> Result<ClientConfig, TlsError> {
        Files::finish(RootCertStore::empty(), None)
    }
}

impl Files {
    /// What is read, be it the system's.
    fn watched(&self) -> Box<[PathBuf]> {
        let Self { ca_file, cert_file, key_file } = self;
        let roots = ca_file.clone().or_else(|| openssl_probe::probe().cert_file);
        roots.into_iter().chain(cert_file.clone()).chain(key_file.clone()).collect()
    }

    fn read(&self) -> Result<Client, TlsError> {
        let (mut roots, mut ends) = (RootCertStore::empty(), Vec::new());
        if let Some(file) = &self.ca_file {
            let authorities = certificates(file)?;
            ends.extend(Expiry::of_authorities("ca_file", &authorities));
            for certificate in authorities {
                roots.add(certificate).map_err(|error| unusable(file, error.to_string()))?;
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
        }
        let own = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((certificates(certificate)?, private_key(key)?)),
            _ => None,
        };
        let chain = own.as_ref().map(|(chain, _)| &**chain).unwrap_or_default();
        ends.extend(Expiry::of_chain("cert_file", chain));
        Ok(Client { config: Arc::new(Self::finish(roots, own)?), ends: ends.into() })
    }

    fn finish(
        roots: RootCertStore,
        own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        Ok(match own {
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain, key).map_err(TlsError::Pair)?
            }
            None => builder.with_no_client_auth(),
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
