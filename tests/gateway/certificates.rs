//! A certificate authority of a test's own and what it signs, in files as Kubernetes mounts them; and a server that uses
//! them.

use std::{
    fs,
    future::ready,
    os::unix::fs::symlink,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, Version,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::Notify};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

/// A certificate authority, and files signed by it: links through `..data`, which is changed in one step.
pub struct Certificates {
    dir: TempDir,
    authority: Mutex<Option<CertifiedIssuer<'static, KeyPair>>>,
    generation: AtomicUsize,
}

/// Those whose certificates are signed.
const NAMES: [&str; 2] = ["server", "client"];

impl Certificates {
    pub fn new() -> Self {
        let certificates = Self {
            dir: tempfile::tempdir().unwrap(),
            authority: Mutex::default(),
            generation: AtomicUsize::new(0),
        };
        certificates.renew();
        certificates
    }

    /// Another authority, and other files in the place of all.
    pub fn renew(&self) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "the authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pem = ca.pem();
        *self.authority.lock().unwrap() = Some(ca);
        let mut files = vec![("ca.pem".to_owned(), pem)];
        for name in NAMES {
            let (certificate, key) = self.sign(name, |_| ());
            files.push((format!("{name}.pem"), certificate));
            files.push((format!("{name}.key"), key));
        }
        self.change(&files);
    }

    /// A certificate and its key, in PEM.
    pub fn sign(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names = ["127.0.0.1", "localhost", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new(names.to_vec()).unwrap();
        // OpenSSL takes a certificate for self-signed that is named like its issuer.
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let authority = self.authority.lock().unwrap();
        let certificate = params.signed_by(&key, authority.as_ref().unwrap()).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Puts these files in the place of those of the same names, all at once.
    pub fn change(&self, files: &[(String, String)]) {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let at = |name: &str| self.dir.path().join(name);
        let (old, new) = (at("..data"), at(&format!("..{generation}")));
        fs::create_dir(&new).unwrap();
        for entry in fs::read_dir(&old).into_iter().flatten().map(Result::unwrap) {
            fs::copy(entry.path(), new.join(entry.file_name())).unwrap();
        }
        for (name, content) in files {
            fs::write(new.join(name), content).unwrap();
            if !at(name).is_symlink() {
                symlink(format!("..data/{name}"), at(name)).unwrap();
            }
        }
        let link = at("..data_tmp");
        symlink(&new, &link).unwrap();
        fs::rename(&link, &old).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// Lines of `mosquitto.conf` for one more listener.
    pub fn listener(&self, address: &str, port: u16, more: &str) -> String {
        format!(
            "listener {port} {address}\ncafile {}\ncertfile {}\nkeyfile {}\n{more}",
            self.path("ca.pem"),
            self.path("server.pem"),
            self.path("server.key"),
        )
    }

    /// TLS as a server, which asks for a certificate of a client if that is said.
    fn server(&self, asks: bool) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let read = |name| {
            let certificates = CertificateDer::pem_file_iter(self.file(name)).unwrap();
            certificates.map(Result::unwrap).collect::<Vec<_>>()
        };
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(read("ca.pem"));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        builder.with_single_cert(read("server.pem"), key).unwrap()
    }
}

/// An HTTPS server that answers every request with `"ok"`, in HTTP/2 if it is agreed on.
pub struct Https {
    tls: Arc<Mutex<TlsAcceptor>>,
    asks: bool,
    alpn: Vec<Vec<u8>>,
    pub port: u16,
    seen: Seen,
}

/// The requests that came: on the how manyeth connection, by which HTTP, and their path.
pub type Seen = Arc<Mutex<Vec<(usize, Version, String)>>>;

impl Https {
    /// On a port of this address.
    pub async fn start(certificates: &Certificates, address: &str, asks: bool) -> Self {
        let answer = |_: &str, _| ready(Answer::Ok);
        Self::speaking(&["http/1.1"], certificates, address, asks, answer).await
    }

    /// The same with these protocols to agree on, and an answer of the test's own to a path that comes for the how manyeth
    /// time.
    pub async fn speaking<F>(
        alpn: &[&str],
        certificates: &Certificates,
        address: &str,
        asks: bool,
        answer: impl Fn(&str, usize) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let alpn: Vec<_> = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = acceptor(certificates, asks, &alpn);
        let tls = Arc::new(Mutex::new(acceptor));
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Seen::default();
        let server = Self { tls: tls.clone(), asks, alpn, port, seen: seen.clone() };
        tokio::spawn(async move {
            let mut connections = 0;
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = tls.lock().unwrap().clone();
                connections += 1;
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move {
                    // A client that does not trust us goes away here.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    serve(TokioIo::new(stream), h2, connections, seen, answer).await;
                });
            }
        });
        server
    }

    /// From now on by the files as they are now.
    pub fn renew(&self, certificates: &Certificates) {
        *self.tls.lock().unwrap() = acceptor(certificates, self.asks, &self.alpn);
    }

    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.port)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<(usize, Version, String)> {
        self.seen.lock().unwrap().clone()
    }
}

fn acceptor(certificates: &Certificates, asks: bool, alpn: &[Vec<u8>]) -> TlsAcceptor {
    let mut config = certificates.server(asks);
    config.alpn_protocols = alpn.to_vec();
    TlsAcceptor::from(Arc::new(config))
}

/// What a server does with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `"ok"`.
    Ok,
    /// 503.
    Busy,
    /// `"ok"`, and no further request on this connection.
    Last,
    /// Over HTTP/2 a stream that is refused.
    Refuse,
}

/// Serves one connection.
pub async fn serve<F>(
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    h2: bool,
    connection: usize,
    seen: Seen,
    answer: impl Fn(&str, usize) -> F,
) where
    F: Future<Output = Answer> + Send + 'static,
{
    let last = Arc::new(Notify::new());
    let service = service_fn(|request: Request<_>| {
        let path = request.uri().path().to_owned();
        let mut seen = seen.lock().unwrap();
        seen.push((connection, request.version(), path.clone()));
        let times = seen.iter().filter(|(_, _, seen)| *seen == path).count();
        let (answer, last) = (answer(&path, times), last.clone());
        async move {
            let answer = answer.await;
            if answer == Answer::Last {
                last.notify_one();
            }
            if answer == Answer::Refuse {
                return Err(h2::Error::from(h2::Reason::REFUSED_STREAM));
            }
            let mut response = Response::new(Full::new(Bytes::from_static(b"\"ok\"")));
            if answer == Answer::Busy {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            Ok(response)
        }
    });
    // How it ends does not matter.
    if h2 {
        let mut http = http2::Builder::new(TokioExecutor::new());
        let mut connection = pin!(http.max_concurrent_streams(100).serve_connection(io, service));
        tokio::select! {
            _ = &mut connection => return,
            () = last.notified() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    } else {
        let _ = http1::Builder::new().serve_connection(io, service).await;
    }
}
