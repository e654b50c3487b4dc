//! The keys of tokens, as they come and go.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use license_gateway::config::{Jwt, KeySource, WhichCaller::TokenSubject};
use serde_json::json;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use tonic::{Request, transport::Channel};

use super::*;
use crate::callers::{
    authority::Authority,
    issuer::{AUDIENCE, ISSUER, Key, KeyServer, by_file, by_url, claims, now, set},
    tokens::{refused, refused_token},
};

const ALICE: &str = "alice";
const POD: &str = "system:serviceaccount:offboarding:worker";
const ROUNDS: usize = 20;
/// How many requests are made with each key while both are there.
const EACH: usize = 10;

async fn gateway_of(sandbox: &Sandbox, jwt: Jwt) -> Gateway {
    Gateway::start_with(sandbox, |config| {
        config.jwt = Some(jwt);
        let bearer = |subject: &str| CallerRules::everything(TokenSubject(subject.to_owned()));
        config.policy.callers = vec![bearer(ALICE), bearer(POD)];
    })
    .await
}

/// Whether the bearer of a token of this key is known now.
async fn is_known(channel: Channel, key: &Key) -> Result<(), Failure> {
    let mut request = Request::new(ListServicesRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {}", key.token(&claims(ALICE))).parse().unwrap());
    let answer = timeout(PATIENCE, LicensingServiceClient::new(channel).list_services(request)).await;
    answer.expect("an answer").map(|_| ()).map_err(Failure::from)
}

fn unknown(failure: &Failure) {
    assert_eq!(failure.reason, "CALLER_UNAUTHENTICATED", "{failure:?}");
    assert!(failure.status.message().contains("a key that this gateway does not know"), "{failure:?}");
}

fn unavailable(failure: &Failure) {
    assert_eq!((failure.code, &*failure.reason), (Code::Unavailable, "CALLER_KEYS_UNAVAILABLE"), "{failure:?}");
    assert_eq!((&*failure.outcome, &*failure.pushback), ("not_applied", "1000"), "{failure:?}");
}

async fn until_refused(gateway: &Gateway, key: &Key) {
    let refused = async {
        loop {
            if let Err(failure) = is_known(gateway.channel.clone(), key).await {
                return unknown(&failure);
            }
        }
    };
    timeout(PATIENCE, refused).await.expect("the key that was taken away is refused");
}

async fn until_known(gateway: &Gateway, key: &Key) {
    let known = async { while is_known(gateway.channel.clone(), key).await.is_err() {} };
    timeout(PATIENCE, known).await.expect("the key is known");
}

/// Rotates again and again, under load: while a key is in the set, not one of its tokens is refused, from the first
/// moment on.
async fn rotates(gateway: &Gateway, anchor: &Arc<Key>, publish: impl Fn(&[&Key]), settled: impl AsyncFn()) {
    let (done, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = tokio::spawn({
        let (done, requests, anchor) = (Arc::clone(&done), Arc::clone(&requests), Arc::clone(anchor));
        let channel = gateway.channel.clone();
        async move {
            while !done.load(Relaxed) {
                is_known(channel.clone(), &anchor).await.expect("the key that is always there");
                requests.fetch_add(1, Relaxed);
            }
        }
    });
    let mut old = Arc::new(Key::new("key 0", "ES256"));
    publish(&[anchor, &old]);
    settled().await;
    until_known(gateway, &old).await;
    for round in 1..=ROUNDS {
        settled().await;
        let new = Arc::new(Key::new(&format!("key {round}"), "ES256"));
        publish(&[anchor, &old, &new]);
        let both: Vec<_> = [&old, &new, &old, &new]
            .map(|key| {
                let (key, channel) = (Arc::clone(key), gateway.channel.clone());
                tokio::spawn(async move {
                    for _ in 0..EACH {
                        is_known(channel.clone(), &key).await.expect("both are in the set");
                    }
                })
            })
            .into();
        for requests in both {
            requests.await.expect("no request failed");
        }
        publish(&[anchor, &new]);
        until_refused(gateway, &old).await;
        old = new;
    }
    done.store(true, Relaxed);
    load.await.expect("no request failed");
    assert!(requests.load(Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_file_are_rotated_under_load_and_nobody_notices() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let anchor = Arc::new(Key::new("anchor", "RS256"));
    let gateway = gateway_of(&sandbox, by_file(dir.path(), &[&anchor])).await;
    gateway_ready(&gateway, &anchor).await;
    let file = dir.path().join("keys.json");
    rotates(&gateway, &anchor, |keys| put(&file, &set(keys)), async || {}).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_url_are_rotated_under_load_and_nobody_notices() {
    let sandbox = sandbox().await;
    let anchor = Arc::new(Key::new("anchor", "RS256"));
    let server = KeyServer::start(&[&anchor]).await;
    let gateway = gateway_of(&sandbox, Jwt { refresh_interval: HURRY, ..by_url(&server.url) }).await;
    gateway_ready(&gateway, &anchor).await;
    // So far apart, another look may be asked for.
    let settled = async || server.asked(server.requests().len() + 4).await;
    rotates(&gateway, &anchor, |keys| server.show(keys), settled).await;
    gateway.stop().await;
}

/// Shorter than what may be configured.
const HURRY: Duration = Duration::from_millis(50);

/// Waits until the list of services is at hand: what comes next is the test's own.
async fn gateway_ready(gateway: &Gateway, key: &Key) {
    is_known(gateway.channel.clone(), key).await.expect("ready");
}

#[tokio::test]
async fn a_key_that_is_not_known_is_fetched_at_once_by_one_for_all_and_not_too_often() {
    let sandbox = sandbox().await;
    let (old, new, never) = (Key::new("old", "ES256"), Key::new("new", "ES256"), Key::new("never", "ES256"));
    let server = KeyServer::start(&[&old]).await;
    let gateway = gateway_of(&sandbox, by_url(&server.url)).await;
    gateway_ready(&gateway, &old).await;
    assert_eq!(server.requests().len(), 1, "the one at the start");

    server.show(&[&old, &new]);
    server.hold();
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let (channel, token) = (gateway.channel.clone(), new.token(&claims(ALICE)));
            let customer = customer(&sandbox, 0);
            tokio::spawn(async move {
                let mut request = Request::new(include(&[&customer]));
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
                LicensingServiceClient::new(channel).unassign_licenses(request).await.map(|_| ())
            })
        })
        .collect();
    // One leaves, having waited in vain; the fetch goes on.
    let mut request = Request::new(include(&[&customer(&sandbox, 0)]));
    let authorization = format!("Bearer {}", new.token(&claims(ALICE)));
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    request.set_timeout(Duration::from_millis(300));
    let left = gateway.client().unassign_licenses(request).await.unwrap_err();
    // Whose clock was first, the gateway's or the client library's own, does not matter.
    assert!(matches!(left.code(), Code::DeadlineExceeded | Code::Cancelled), "{left:?}");
    server.asked(2).await;
    // Meanwhile, whoever is known waits for nothing.
    is_known(gateway.channel.clone(), &old).await.unwrap();
    server.release();
    for asked in asking {
        timeout(PATIENCE, asked).await.expect("an answer").unwrap().expect("the new key is known");
    }
    assert_eq!(server.requests().len(), 2, "one fetch for all of them");

    // Anybody can make these.
    let never = Arc::new(never);
    let strangers: Vec<_> = (0..20)
        .map(|_| {
            let (channel, never) = (gateway.channel.clone(), Arc::clone(&never));
            tokio::spawn(async move { unknown(&is_known(channel, &never).await.unwrap_err()) })
        })
        .collect();
    for stranger in strangers {
        stranger.await.unwrap();
    }
    assert!(server.requests().len() <= 4, "no fetch for each of them: {}", server.requests().len());
    gateway.stop().await;
}

/// Somebody sends tokens with invented keys all the time, and the issuer rotates: the bearers of good tokens wait, or
/// come again, and are never called strangers.
#[tokio::test]
async fn invented_keys_keep_nobody_from_a_new_key() {
    let sandbox = sandbox().await;
    let (old, new) = (Key::new("old", "ES256"), Key::new("new", "ES256"));
    let server = KeyServer::start(&[&old]).await;
    let gateway = gateway_of(&sandbox, by_url(&server.url)).await;
    gateway_ready(&gateway, &old).await;
    let stranger = Arc::new(Key::new("0", "ES256"));
    let strangers: Vec<_> = (0..8)
        .map(|_| {
            let (channel, stranger) = (gateway.channel.clone(), Arc::clone(&stranger));
            tokio::spawn(async move {
                loop {
                    let _ = is_known(channel.clone(), &stranger).await;
                }
            })
        })
        .collect();
    server.asked(2).await; // because of them
    server.show(&[&old, &new]);
    // The fetch that they led to may have been answered before.
    is_known(gateway.channel.clone(), &new).await.expect("known after the next fetch");
    assert!(server.requests().len() <= 4, "{}", server.requests().len());
    strangers.iter().for_each(tokio::task::JoinHandle::abort);
    // While the issuer is away, nobody can say that a key is not one of its.
    server.say(503, "");
    unavailable(&is_known(gateway.channel.clone(), &stranger).await.unwrap_err());
    gateway.stop().await;
}

#[tokio::test]
async fn without_keys_nobody_is_called_a_stranger() {
    let sandbox = sandbox().await;
    let key = Key::new("k", "ES256");
    let server = KeyServer::start(&[&key]).await;
    server.say(503, "");
    let gateway = gateway_of(&sandbox, Jwt { refresh_interval: HURRY, ..by_url(&server.url) }).await;
    unavailable(&is_known(gateway.channel.clone(), &key).await.unwrap_err());
    let token = key.token(&claims(ALICE));
    unavailable(&refused_token(gateway.channel.clone(), &sandbox, &token).await.unwrap());
    // What is wrong whoever signed it is said all the same.
    let wrong = refused(gateway.channel.clone(), &sandbox, &["Basic YTpi"]).await.unwrap();
    assert_eq!(wrong.reason, "CALLER_UNAUTHENTICATED");
    assert_eq!(deletes(&sandbox), 0);
    server.show(&[&key]);
    until_known(&gateway, &key).await;

    // From now on, nothing that the server does takes them away.
    let redirect = KeyServer::start(&[]).await;
    for (status, body) in [
        (500, String::new()),
        (404, set(&[])),
        (302, redirect.url.clone()),
        (204, String::new()),
        (200, String::new()),
        (200, "<html>".to_owned()),
        (200, "{}".to_owned()),
        (200, set(&[])),
        (200, json!({"keys": [{"kty": "oct", "kid": "k", "k": "c2VjcmV0"}]}).to_string()),
        // A good set, but longer than what is read.
        (200, set(&[&Key::new("other", "ES256")]) + &" ".repeat(300 * 1024)),
    ] {
        server.say(status, body.clone());
        server.asked(server.requests().len() + 3).await;
        is_known(gateway.channel.clone(), &key).await.unwrap_or_else(|failure| panic!("{status} {body}: {failure:?}"));
    }
    assert_eq!(redirect.requests().len(), 0, "redirects are not followed");
    gateway.stop().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_keeps_the_keys_before_and_is_told() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Key::new("old", "ES256"), Key::new("new", "ES256"));
    by_file(dir.path(), &[&old]);
    let file = dir.path().join("keys.json");
    let more = [
        ("LICENSE_GATEWAY__JWT__ISSUER", ISSUER),
        ("LICENSE_GATEWAY__JWT__AUDIENCE", AUDIENCE),
        ("LICENSE_GATEWAY__JWT__JWKS_FILE", file.to_str().unwrap()),
    ];
    let mut process = Process::serve(&sandbox, dir.path(), &more).await;
    let config = dir.path().join("gateway.toml");
    let entry = format!("[[callers]]\ntoken_subject = \"{ALICE}\"\nrpcs = [\"ListServices\"]\n");
    put(&config, &(fs::read_to_string(&config).unwrap() + &entry));
    process.said("a new policy holds").await;
    let channel = channel(process.address).await;
    is_known(channel.clone(), &old).await.unwrap();

    put(&file, "{\"keys\": [");
    let line = process.line("the keys of callers' tokens cannot be had; the ones before stay in use").await;
    assert!(line["problem"].as_str().unwrap().contains("no JSON Web Key Set"), "{line}");
    is_known(channel.clone(), &old).await.unwrap();
    unavailable(&is_known(channel.clone(), &new).await.unwrap_err());
    put(&file, &set(&[&new]));
    let known = async { while is_known(channel.clone(), &new).await.is_err() {} };
    timeout(PATIENCE, known).await.expect("a good file is used");
    unknown(&is_known(channel.clone(), &old).await.unwrap_err());
    process.terminate();
    assert!(process.exit().await.0.success());
}

#[tokio::test]
async fn what_makes_tokens_unsafe_or_useless_is_said_at_the_start_and_stops_nothing() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new("k", "ES256");
    by_file(dir.path(), &[&key]);
    let file = dir.path().join("keys.json");
    let of_token = ["[[callers]]", "token_subject = \"alice\"", "rpcs = [\"ListServices\"]"].join("\n");
    let everywhere = ("LICENSE_GATEWAY__SERVER__LISTEN", "0.0.0.0:0");
    let with_tokens = [
        everywhere,
        ("LICENSE_GATEWAY__JWT__ISSUER", ISSUER),
        ("LICENSE_GATEWAY__JWT__AUDIENCE", AUDIENCE),
        ("LICENSE_GATEWAY__JWT__JWKS_FILE", file.to_str().unwrap()),
    ];
    let mut process = Process::serve(&sandbox, dir.path(), &with_tokens).await;
    let plaintext = "callers' tokens come over plaintext: without a mesh, a reader of the network can use them";
    process.said(plaintext).await;
    let config = dir.path().join("gateway.toml");
    put(&config, &(fs::read_to_string(&config).unwrap() + &of_token));
    process.said("a new policy holds").await;
    let channel = channel((Ipv4Addr::LOCALHOST, process.address.port()).into()).await;
    is_known(channel, &key).await.expect("it serves all the same");
    process.terminate();
    assert!(process.exit().await.0.success());

    let mut process = Process::serve_file(&config, &[]).await;
    let useless = "a [[callers]] entry has a token_subject, and tokens are ignored: there is no section jwt";
    process.said(useless).await;
    process.terminate();
    let (_, log) = process.exit().await;
    assert!(log.iter().all(|line| line["message"] != plaintext), "no tokens, nothing to read");
}

#[tokio::test]
async fn a_file_without_keys_stops_the_start() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = crate::support::config(&sandbox, dir.path());
    config.jwt = Some(by_file(dir.path(), &[]));
    let telemetry = license_gateway::telemetry::Telemetry::start(&config.telemetry).unwrap();
    let error = license_gateway::server::Server::bind(config, telemetry.tracing()).await.unwrap_err();
    assert_eq!(error.to_string(), "callers' tokens cannot be verified");
}

/// As in a cluster: TLS by an authority of its own, a token of the gateway's own, 406 to who asks for mere JSON; tokens
/// with a list of audiences and without a type.
#[tokio::test]
async fn tokens_of_kubernetes_service_accounts_are_believed() {
    let cluster = Authority::new("cluster");
    let pair = cluster.server();
    let tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let sandbox = sandbox().await;
    let key = Key::new("DfzYUVAfTDCN8WJqAAWQ", "RS256");
    let server = KeyServer::serve(&[&key], Some(TlsAcceptor::from(Arc::new(tls))), Some("pods-own-token")).await;
    let dir = tempfile::tempdir().unwrap();
    let (ca_file, token_file) = (dir.path().join("ca.crt"), dir.path().join("token"));
    put(&ca_file, &Authority::new("somebody else").pem());
    put(&token_file, "an-older-token\n");
    let mut jwt = Jwt { refresh_interval: HURRY, ..by_url(&server.url) };
    let KeySource::Url(from) = &mut jwt.keys else { unreachable!() };
    (from.ca_file, from.token_file) = (Some(ca_file.clone()), Some(token_file.clone()));
    let gateway = gateway_of(&sandbox, jwt).await;

    let account = json!({
        "iss": ISSUER,
        "aud": ["https://kubernetes.default.svc", AUDIENCE],
        "sub": POD,
        "iat": now(),
        "nbf": now(),
        "exp": now() + 3_607,
        "jti": "5f1a3c9e-0000-4000-8000-000000000000",
        "kubernetes.io": {
            "namespace": "offboarding",
            "pod": {"name": "worker-0", "uid": "0"},
            "serviceaccount": {"name": "worker", "uid": "0"},
            "warnafter": now() + 3_000,
        },
    });
    let header = json!({"alg": "RS256", "kid": key.id}).to_string();
    let token = key.token_of(&header, &account.to_string());
    let ask = async || refused_token(gateway.channel.clone(), &sandbox, &token).await;
    unavailable(&ask().await.expect("the authority is not the cluster's"));
    assert_eq!(server.requests().len(), 0, "nothing was said to a stranger");
    // Both files are replaced while the gateway runs, as a kubelet does it.
    put(&ca_file, &cluster.pem());
    server.asked(1).await;
    unavailable(&ask().await.expect("the token is not the right one"));
    put(&token_file, "pods-own-token\n");
    let known = async { while ask().await.is_some() {} };
    timeout(PATIENCE, known).await.expect("the pod is known");
    gateway.stop().await;
}
