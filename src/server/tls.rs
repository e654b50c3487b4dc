//! The server's own TLS: certificates that can be replaced while it runs, callers' certificates verified, handshakes that
//! end in time.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
        server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
    server::TlsStream,
};
use tracing::{debug, info, warn};

use super::follow::follow;
use crate::{config, telemetry::log::with_causes};

/// How long a peer whose handshake failed may take to read the alert and close.
const ALERT_TIMEOUT: Duration = Duration::from_secs(1);
/// How much it may send meanwhile.
const MOST_BYTES_AFTER_ALERT: u64 = 256 * 1024;
/// A certificate that was verified just now is not verified again.
const VERIFIED_FOR: Duration = Duration::from_secs(1);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{file} cannot be read")]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A file holds something else.
    #[error("{file} is no PEM file of the right kind")]
    Malformed {
        /// Which. Why it is not, is not told: the library's words hold lines of the file, and a key may stand in it.
        file: PathBuf,
    },
    /// A file holds no certificate.
    #[error("{file} holds no certificate")]
    Empty {
        /// Which.
        file: PathBuf,
    },
    /// Certificate and key do not fit together, or are of no use.
    #[error("the certificate in {certificate} and the key in {key} cannot be used together")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities are of no use.
    #[error("the certificate authorities in {file} cannot be used")]
    Authorities {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: AuthorityError,
    },
}

/// Why authorities are of no use.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// One is no authority.
    #[error(transparent)]
    Certificate(#[from] rustls::Error),
    /// They are no ground to verify anything on.
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
}

/// What the next handshake will be made with.
#[derive(Debug)]
pub(super) struct ServerTls {
    files: config::Tls,
    current: ArcSwap<Current>,
}

/// What the files hold, made ready.
#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// Where clients are asked for certificates.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// The certificate that a client has shown in its handshake. It may expire while the connection lasts, and its authority
/// may be replaced.
#[derive(Debug)]
pub(super) struct ClientCertificate {
    /// Its own first.
    chain: Vec<CertificateDer<'static>>,
    tls: Arc<ServerTls>,
    /// By what, and when.
    verified: Mutex<Option<(Arc<Current>, Instant)>>,
}

impl ClientCertificate {
    /// Whether a handshake with it would succeed now.
    pub(super) fn holds(&self) -> bool {
        let current = self.tls.current.load_full();
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.as_ref().is_some_and(|(by, at)| Arc::ptr_eq(by, &current) && at.elapsed() < VERIFIED_FOR) {
            return true;
        }
        let (Some(clients), Some((own, others))) = (&current.clients, self.chain.split_first()) else { return false };
        let holds = clients.verify_client_cert(own, others, UnixTime::now()).is_ok();
        *verified = holds.then(|| (current, Instant::now()));
        holds
    }

    pub(super) fn own(&self) -> &[u8] {
        self.chain.first().map(AsRef::as_ref).unwrap_or_default()
    }
}

impl ServerTls {
    /// With what the files hold now.
    pub(super) fn new(files: config::Tls) -> Result<Self, Error> {
        let current = ArcSwap::from_pointee(Current::new(&files, &Contents::read(&files)?)?);
        Ok(Self { files, current })
    }

    /// Keeps up with the files, for ever. What cannot be used is refused, and what was there before stays.
    pub(super) async fn follow(self: Arc<Self>) {
        let read = {
            let tls = Arc::clone(&self);
            move || Contents::read(&tls.files).map_err(|error| with_causes(&error))
        };
        let mut is_first = true;
        follow(read, |contents| {
            // What was there at the start is in use already; between the two it may have changed.
            let what = if std::mem::take(&mut is_first) { "in use" } else { "replaced" };
            let made = match contents {
                Ok(contents) => Current::new(&self.files, contents).map_err(|error| with_causes(&error)),
                Err(error) => Err(error.clone()),
            };
            match made {
                Ok(made) => {
                    self.current.store(Arc::new(made));
                    info!(certificate = %self.files.certificate_file.display(), "TLS certificates {what}");
                }
                Err(problem) => warn!(problem, "TLS certificates cannot be used; the ones before stay in use"),
            }
        })
        .await;
    }

    /// Makes the handshake. None: it failed, and the peer has been sent the alert that says why.
    pub(super) async fn accept(&self, stream: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.current.load().config));
        match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => Some(stream),
            Err((error, stream)) => {
                // Anybody can make these; they are counted, and not worth a line each.
                debug!(%peer, error = &error as &(dyn std::error::Error + 'static), "a TLS handshake failed");
                let _ = timeout(ALERT_TIMEOUT, let_the_alert_arrive(stream)).await; // it has had its time
                None
            }
        }
    }
}

/// The certificate that the client of this connection has shown.
pub(super) fn certificate(tls: &Arc<ServerTls>, stream: &TlsStream<TcpStream>) -> Option<ClientCertificate> {
    let chain = stream.get_ref().1.peer_certificates()?.iter().map(|one| one.clone().into_owned()).collect();
    Some(ClientCertificate { chain, tls: Arc::clone(tls), verified: Mutex::default() })
}

/// A socket that is closed with unread bytes is reset, and the peer loses the alert: so what it still sends is read.
async fn let_the_alert_arrive(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = (&mut stream).take(MOST_BYTES_AFTER_ALERT);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

/// What the files hold. Not to be printed: a private key is in it.
#[derive(PartialEq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &config::Tls) -> Result<Self, Error> {
        let read = |file: &PathBuf| {
            fs::read(file).map_err(|source| Error::Unreadable { file: file.clone(), source: Arc::new(source) })
        };
        Ok(Self {
            certificate: read(&files.certificate_file)?,
            key: read(&files.key_file)?,
            client_ca: files.client_ca_file.as_ref().map(read).transpose()?,
        })
    }
}

impl Current {
    fn new(files: &config::Tls, contents: &Contents) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions() // 1.2 and 1.3
            .expect("aws-lc has cipher suites for both versions");
        let clients = match (&files.client_ca_file, &contents.client_ca) {
            (Some(file), Some(pem)) => Some(verifier(file, pem, provider)?),
            _ => None,
        };
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
            None => builder.with_no_client_auth(),
        };
        let chain = certificates(&files.certificate_file, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|_| Error::Malformed { file: files.key_file.clone() })?;
        let mut config = builder.with_single_cert(chain, key).map_err(|source| Error::Pair {
            certificate: files.certificate_file.clone(),
            key: files.key_file.clone(),
            source,
        })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would not have its client's certificate verified again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), clients })
    }
}

/// Verifies clients by these authorities. A caller without a certificate gets a response that says what is missing, and may
/// ask for health.
fn verifier(file: &Path, pem: &[u8], provider: Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let failed = |source| Error::Authorities { file: file.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, pem)? {
        roots.add(certificate).map_err(|error| failed(error.into()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
    builder.build().map_err(|error| failed(error.into()))
}

fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| Error::Malformed { file: file.to_owned() })?;
    if certificates.is_empty() { Err(Error::Empty { file: file.to_owned() }) } else { Ok(certificates) }
}
