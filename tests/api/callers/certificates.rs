//! Certificates that are replaced while the gateway serves.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use tonic::Code;

use super::*;
use crate::callers::authority::{Authority, Pair, connect, somebody, uri};

const SWAPS: usize = 100;
const ALICE: &str = "spiffe://msp.test/alice";

/// Whose certificate the server shows in a new handshake.
async fn shown(address: SocketAddr, authority: &Authority) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = timeout(PATIENCE, connected).await.expect("a handshake").expect("a handshake that succeeds");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn alice(dir: &Path, servers: &Authority, clients: &Authority) -> Pair {
    servers.server().put(dir);
    fs::write(dir.join("clients.pem"), clients.pem()).unwrap();
    clients.issue(&somebody(&[uri(ALICE)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_swapped_under_load_and_nobody_notices() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let pair = alice(dir.path(), &servers, &clients);
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.tls = Some(tls_files(dir.path()));
        config.policy.callers = vec![CallerRules::everything(WhichCaller::Named(ALICE.to_owned()))];
    })
    .await;
    let address = gateway.address;
    let customer = customer(&sandbox, 0);

    // One that stays connected, one that connects for every request.
    let (done, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = |stays: bool| {
        let (done, requests, customer, pair) =
            (Arc::clone(&done), Arc::clone(&requests), customer.clone(), pair.clone());
        let authority = servers.pem();
        async move {
            let connect = async || connect_with(address, &authority, &pair).await;
            let mut client = LicensingServiceClient::new(connect().await);
            while !done.load(Relaxed) {
                if !stays {
                    client = LicensingServiceClient::new(connect().await);
                }
                let answer = timeout(PATIENCE, client.unassign_licenses(include(&[&customer]))).await;
                answer.expect("an answer").expect("no failed request");
                requests.fetch_add(1, Relaxed);
            }
        }
    };
    let load = [tokio::spawn(load(true)), tokio::spawn(load(false))];

    for swap in 0..SWAPS {
        let next = servers.server();
        next.put(dir.path());
        let swapped = async { while shown(address, &servers).await != next.der {} };
        timeout(PATIENCE, swapped).await.unwrap_or_else(|_| panic!("swap {swap} is never seen"));
    }
    done.store(true, Relaxed);
    for task in load {
        task.await.unwrap();
    }
    println!("{SWAPS} swaps, {} requests beside them", requests.load(Relaxed));
    assert!(requests.load(Relaxed) >= 100, "there was no load");
    gateway.stop().await;
}

async fn connect_with(address: SocketAddr, authority: &str, pair: &Pair) -> tonic::transport::Channel {
    use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority))
        .identity(Identity::from_pem(&pair.certificate, &pair.key));
    let endpoint = Channel::from_shared(format!("https://127.0.0.1:{}", address.port())).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.expect("no failed handshake")
}

// The commands that it runs keep their thread waiting, and the sandbox must answer meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_pairs_are_refused_and_told_and_new_authorities_hold() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let pair = alice(dir.path(), &servers, &clients);
    let before = CertificateDer::from_pem_file(dir.path().join("server.pem")).unwrap().to_vec();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (certificate, key, authority) = (file("server.pem"), file("server.key"), file("clients.pem"));
    let settings = [
        ("LICENSE_GATEWAY__TLS__CERTIFICATE_FILE", certificate.as_str()),
        ("LICENSE_GATEWAY__TLS__KEY_FILE", key.as_str()),
        ("LICENSE_GATEWAY__TLS__CLIENT_CA_FILE", authority.as_str()),
        ("LICENSE_GATEWAY__SERVER__ALLOW_ANONYMOUS_CALLERS", "true"),
    ];
    let mut process = Process::serve(&sandbox, dir.path(), &settings).await;
    process.said("TLS certificates in use").await;
    assert_eq!(shown(process.address, &servers).await, before);

    // The people's client shows its certificate, too.
    put(&dir.path().join("servers.pem"), &servers.pem());
    put(&dir.path().join("alice.pem"), &pair.certificate);
    put(&dir.path().join("alice.key"), &pair.key);
    let run = |arguments: &[&str]| {
        let address = format!("https://127.0.0.1:{}", process.address.port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_license-gateway"));
        command.args(arguments).args(["--address", &address, "--ca-file", &file("servers.pem")]);
        command.env_clear().output().unwrap()
    };
    let (alice_pem, alice_key) = (file("alice.pem"), file("alice.key"));
    let shows = ["--cert-file", &alice_pem, "--key-file", &alice_key];
    let health = run(&[&["health"], &shows[..]].concat());
    assert_eq!(health.status.code(), Some(0), "{health:?}");
    let unknown = run(&[&["services", "--json"], &shows[..]].concat());
    assert!(String::from_utf8_lossy(&unknown.stdout).contains("POLICY_DENIED"), "Alice has no entry here: {unknown:?}");
    let nobody = run(&["services"]);
    assert_eq!(nobody.status.code(), Some(0), "somebody has, who is wanted here: {nobody:?}");
    assert_eq!(run(&["services", "--cert-file", &alice_pem]).status.code(), Some(64), "a certificate without its key");

    // A key that does not fit.
    put(&dir.path().join("server.key"), &servers.server().key);
    let line = process.line("TLS certificates cannot be used; the ones before stay in use").await;
    assert!(line["problem"].as_str().unwrap().contains("server.key cannot be used together"), "{line}");
    assert!(!line.to_string().contains("PRIVATE"), "{line}");
    assert_eq!(shown(process.address, &servers).await, before);

    // A new pair, and another authority for clients: who was believed before is not any more.
    let others = Authority::new("clients");
    let next = servers.server();
    next.put(dir.path());
    put(&dir.path().join("clients.pem"), &others.pem());
    let believed = async |pair: &Pair| {
        let channel = connect(process.address, &servers, Some(pair)).await.ok()?;
        let answer = LicensingServiceClient::new(channel).list_services(ListServicesRequest {}).await;
        // A certificate that is believed gets an answer of the policy.
        answer.err().filter(|status| status.code() == Code::PermissionDenied)
    };
    let bob = others.issue(&somebody(&[uri("spiffe://msp.test/bob")]));
    let changed = async { while believed(&bob).await.is_none() {} };
    timeout(PATIENCE, changed).await.expect("the new authority is believed");
    assert!(believed(&pair).await.is_none(), "the authority before is believed");
    assert_eq!(shown(process.address, &servers).await, next.der);
    process.terminate();
    assert!(process.exit().await.0.success());
}

#[tokio::test]
async fn who_says_nothing_is_sent_away() {
    let servers = Authority::new("servers");
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    servers.server().put(dir.path());
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.tls = Some(config::Tls { client_ca_file: None, ..tls_files(dir.path()) });
    })
    .await;
    let mut silent = TcpStream::connect(gateway.address).await.unwrap();
    shown(gateway.address, &servers).await; // meanwhile others are served
    let read = timeout(PATIENCE, silent.read_u8()).await.expect("it is sent away");
    assert!(read.is_err());
    gateway.stop().await;
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_stops_the_start() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let servers = Authority::new("servers");
    Pair { key: servers.server().key, ..servers.server() }.put(dir.path());
    let mut config = crate::support::config(&sandbox, dir.path());
    config.tls = Some(config::Tls { client_ca_file: None, ..tls_files(dir.path()) });
    let telemetry = license_gateway::telemetry::Telemetry::start(&config.telemetry).unwrap();
    let error = license_gateway::server::Server::bind(config, telemetry.tracing()).await.unwrap_err();
    assert_eq!(error.to_string(), "TLS cannot be set up");
}

/// Asks on the same connection until it is refused, and why.
async fn refused(mut client: LicensingServiceClient<tonic::transport::Channel>) -> Failure {
    let asking = async {
        loop {
            if let Err(status) = client.list_services(ListServicesRequest {}).await {
                return Failure::from(status);
            }
        }
    };
    timeout(PATIENCE, asking).await.expect("it is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_counts_no_longer_than_it_would_in_a_new_handshake() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let pair = alice(dir.path(), &servers, &clients);
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.tls = Some(tls_files(dir.path()));
        config.policy.callers = vec![CallerRules::everything(WhichCaller::Named(ALICE.to_owned()))];
    })
    .await;
    let connected = async |pair: &Pair| {
        let mut client = LicensingServiceClient::new(connect_with(gateway.address, &servers.pem(), pair).await);
        client.list_services(ListServicesRequest {}).await.expect("the certificate is good");
        client
    };
    let of_the_past = |failure: &Failure| {
        assert_eq!((failure.code, failure.outcome.as_str()), (Code::Unauthenticated, "not_applied"), "{failure:?}");
        assert!(failure.status.message().contains("expired, or its authority"), "{failure:?}");
    };

    // One that expires while its connection lasts.
    let mut brief = somebody(&[uri(ALICE)]);
    brief.not_after = (std::time::SystemTime::now() + std::time::Duration::from_secs(4)).into();
    of_the_past(&refused(connected(&clients.issue(&brief)).await).await);

    // One whose authority is replaced. Who is accepted by the new one stays.
    let client = connected(&pair).await;
    put(&dir.path().join("clients.pem"), &Authority::new("clients").pem());
    of_the_past(&refused(client).await);
    page_when(gateway.admin, "/metrics", |_, text| {
        value(text, "license_gateway_connections_closed_total", &["reason=\"certificate\""]) >= 2.0
    })
    .await;
    gateway.stop().await;
}

/// What the gateway has to say to a client that shows this certificate and goes on sending.
async fn refusal(address: SocketAddr, authority: &Authority, pair: &Pair) -> std::io::Error {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    let exchange = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await?;
        // As clients do: what is sent with the handshake is still unread when it fails.
        stream.write_all(&[0; 60_000]).await?;
        stream.read_u8().await
    };
    timeout(PATIENCE, exchange).await.expect("an end").expect_err("it is not let in")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_accepted_is_refused_by_an_alert_that_arrives() {
    let (servers, clients, others) = (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    alice(dir.path(), &servers, &clients);
    let gateway = Gateway::start_with(&sandbox, |config| config.tls = Some(tls_files(dir.path()))).await;
    let stranger = others.issue(&somebody(&[uri(ALICE)]));
    for _ in 0..20 {
        let error = refusal(gateway.address, &servers, &stranger).await;
        assert!(error.to_string().contains("alert"), "{error}");
    }
}
