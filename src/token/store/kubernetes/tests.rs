//! The store against an API server that misbehaves on demand.

use std::sync::Arc;

use serde_json::json;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    api_server::{ApiServer, BEARER, Fault as Trouble},
    *,
};
use crate::{
    telemetry::log::with_causes,
    token::store::{
        TokenStore,
        conformance::{self, record},
    },
};

const NAME: &str = "license-gateway-token";

fn cluster(address: std::net::SocketAddr) -> Config {
    let mut config = Config::new(format!("http://{address}").parse().unwrap());
    config.default_namespace = "gateway\n".to_owned();
    config.auth_info.token = Some(BEARER.into());
    config
}

pub(super) fn store(server: &ApiServer) -> KubernetesStore {
    store_in(server, None)
}

fn store_in(server: &ApiServer, namespace: Option<&str>) -> KubernetesStore {
    let settings = config::KubernetesSettings { namespace: namespace.map(str::to_owned), name: NAME.to_owned() };
    let store = KubernetesStore::with_config(&settings, cluster(server.address)).unwrap();
    // Tests of silence need not take 5 s each.
    KubernetesStore { answer_within: Duration::from_millis(500), ..store }
}

async fn swap(store: &KubernetesStore, record: TokenRecord) -> Version {
    let version = store.load().await.unwrap().version;
    match store.cas(version, record).await.unwrap() {
        Swap::Stored(version) => version,
        Swap::Conflict => panic!("nobody else writes"),
    }
}

#[tokio::test]
async fn it_conforms() {
    conformance::holds(async || {
        let server = ApiServer::start().await;
        (TokenStore::Kubernetes(store(&server)), server)
    })
    .await;
}

#[tokio::test]
async fn a_new_secret_says_what_it_is() {
    let server = ApiServer::start().await;
    swap(&store(&server), record(1)).await;
    let secret = server.cluster.secret("gateway", NAME).unwrap();
    assert_eq!(secret["type"], "Opaque");
    assert_eq!(secret["metadata"]["labels"]["app.kubernetes.io/managed-by"], "license-gateway");
    let description = secret["metadata"]["annotations"]["kubernetes.io/description"].as_str().unwrap();
    assert!(description.contains("must not be restored from a backup"), "{description}");
    assert_eq!(secret["data"].as_object().unwrap().len(), 1);
    assert!(!secret.to_string().contains("refresh-1"), "values are base64");
}

#[tokio::test]
async fn the_namespace_can_be_chosen() {
    let server = ApiServer::start().await;
    swap(&store_in(&server, Some("other")), record(1)).await;
    assert!(server.cluster.secret("other", NAME).is_some());
    assert_eq!(store(&server).load().await.unwrap().record, None);
}

#[tokio::test]
async fn an_empty_secret_of_an_operator_is_filled_and_keeps_what_is_in_it() {
    let server = ApiServer::start().await;
    server.cluster.forbid("create");
    server.cluster.apply("gateway", NAME, |secret| {
        secret["data"] = json!({ "note": "aGVsbG8=" });
        secret["metadata"]["labels"] = json!({ "team": "licences" });
        secret["metadata"]["annotations"] = json!({ "why": "made by hand" });
    });
    let store = store(&server);
    assert_eq!(store.load().await.unwrap().record, None);
    swap(&store, record(1)).await;
    swap(&store, record(2)).await;
    let secret = server.cluster.secret("gateway", NAME).unwrap();
    assert_eq!(secret["data"]["note"], "aGVsbG8=");
    assert_eq!(secret["metadata"]["labels"], json!({ "team": "licences" }));
    assert_eq!(secret["metadata"]["annotations"], json!({ "why": "made by hand" }));
    assert_eq!(store.load().await.unwrap().record, Some(record(2)));
}

#[tokio::test]
async fn any_change_between_load_and_cas_is_a_conflict() {
    let server = ApiServer::start().await;
    let store = store(&server);
    let version = swap(&store, record(1)).await;
    server.cluster.apply("gateway", NAME, |secret| secret["metadata"]["labels"]["touched"] = json!("yes"));
    assert_eq!(store.cas(version, record(2)).await.unwrap(), Swap::Conflict);
    let version = store.load().await.unwrap().version;
    server.cluster.delete("gateway", NAME);
    assert_eq!(store.cas(version, record(2)).await.unwrap(), Swap::Conflict);
}

/// The first look passes for all of them: only the API server tells them apart.
#[tokio::test]
async fn a_write_that_comes_too_late_is_refused_by_the_api_server() {
    let server = ApiServer::start().await;
    let store = store(&server);
    for round in 0..2 {
        let verb = if round == 0 { "create" } else { "update" };
        let version = store.load().await.unwrap().version;
        for _ in 0..5 {
            server.cluster.next(verb, Trouble::Delay(Duration::from_millis(100)));
        }
        let mut racers = JoinSet::new();
        for racer in 0..5 {
            let (store, version) = (store.clone(), version.clone());
            racers.spawn(async move { store.cas(version, record(racer)).await.unwrap() });
        }
        let stored = racers.join_all().await.into_iter().filter(|swap| matches!(swap, Swap::Stored(_))).count();
        assert_eq!(stored, 1, "{verb}");
        let sent = server.cluster.requests().iter().filter(|sent| **sent == verb).count();
        assert_eq!(sent, 5, "all of them tried to {verb}");
    }
}

#[tokio::test]
async fn a_write_without_an_answer_is_told_truthfully() {
    let refused = Trouble::Answer(500, "InternalError", "etcdserver: request timed out");
    for (trouble, was_done) in [
        (Trouble::HangAfter, true),
        (Trouble::CutAfter, true),
        (Trouble::Garble, true),
        (Trouble::Twice, true),
        (Trouble::HangBefore, false),
        (refused, false),
    ] {
        for verb in ["create", "update"] {
            let server = ApiServer::start().await;
            let store = store(&server);
            if verb == "update" {
                swap(&store, record(1)).await;
            }
            let before = store.load().await.unwrap();
            server.cluster.next(verb, trouble);
            let result = store.cas(before.version.clone(), record(2)).await;
            let after = store.load().await.unwrap();
            let case = format!("{verb} {trouble:?}: {result:?}");
            match result {
                Ok(Swap::Stored(version)) if was_done => {
                    assert_eq!(after, LoadedRecord { record: Some(record(2)), version }, "{case}");
                }
                Err(Error::Unavailable { .. }) if !was_done => assert_eq!(after, before, "{case}"),
                _ => panic!("{case}"),
            }
        }
    }
}

/// While the answer is missing, another replica writes.
#[tokio::test]
async fn a_write_without_an_answer_is_a_conflict_only_if_it_was_surely_overtaken() {
    for verb in ["create", "update"] {
        for (trouble, is_conflict) in [(Trouble::HangBefore, true), (Trouble::HangAfter, false)] {
            let server = ApiServer::start().await;
            let (ours, theirs) = (store(&server), store(&server));
            if verb == "update" {
                swap(&ours, record(1)).await;
            }
            let version = ours.load().await.unwrap().version;
            server.cluster.next(verb, trouble);
            let late = tokio::spawn({
                let ours = ours.clone();
                async move { ours.cas(version, record(2)).await }
            });
            while !server.cluster.requests().iter().any(|sent| matches!(*sent, "update" | "create")) {
                sleep(Duration::from_millis(5)).await;
            }
            sleep(Duration::from_millis(100)).await;
            swap(&theirs, record(7)).await;
            match late.await.unwrap() {
                Ok(Swap::Conflict) if is_conflict => {}
                Err(Error::Unavailable { .. }) if !is_conflict => {}
                other => panic!("{verb} {trouble:?}: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_understood_is_refused_and_left_alone() {
    let server = ApiServer::start().await;
    let store = store(&server);
    swap(&store, record(1)).await;
    let good = write_entry(Uuid::nil(), None, &record(1));
    let newer = {
        let record = serde_json::to_string(&record(1)).unwrap().replace("\"schema\":1", "\"schema\":2");
        let sha256 = checksum(Uuid::nil(), None, &record);
        serde_json::to_vec(&SecretEntry { sha256, write: Uuid::nil(), replaces: None, record }).unwrap()
    };
    let mut flipped = good.clone();
    let token = flipped.windows(9).position(|bytes| bytes == b"refresh-1").unwrap();
    flipped[token] ^= 1;
    let table: [(&[u8], &str); 5] = [
        (b"", "damaged"),
        (&good[..good.len() / 2], "damaged"),
        (b"{}", "damaged"),
        (&flipped, "checksum"),
        (&newer, "schema is 2"),
    ];
    for (bytes, expected) in table {
        server.cluster.apply("gateway", NAME, |secret| {
            secret["data"][RECORD_KEY] = serde_json::to_value(ByteString(bytes.to_vec())).unwrap();
        });
        let before = server.cluster.secret("gateway", NAME);
        let error = with_causes(&store.load().await.unwrap_err());
        assert!(error.contains(expected) && error.contains("Secret gateway/license-gateway-token"), "{error}");
        assert!(!error.contains("refresh-1"), "{error}");
        let swap = store.cas(Version(String::new()), record(5)).await;
        assert!(!matches!(swap, Ok(Swap::Stored(_))), "{swap:?}");
        assert_eq!(server.cluster.secret("gateway", NAME), before, "left as it is");

        // Whoever holds the living pair says so by the version; not over what another version of us wrote.
        let Error::Damaged { version, .. } = store.load().await.unwrap_err() else {
            assert_eq!(bytes, newer);
            continue;
        };
        assert_ne!(bytes, newer);
        let Ok(Swap::Stored(version)) = store.cas(version, record(5)).await else { panic!("it is written anew") };
        assert_eq!(store.load().await.unwrap(), LoadedRecord { record: Some(record(5)), version });
        let kept = &server.cluster.secret("gateway", NAME).unwrap()["data"][DAMAGED_KEY];
        assert_eq!(*kept, serde_json::to_value(ByteString(bytes.to_vec())).unwrap(), "kept for people");
    }
}

/// The time between a claim and its token is short.
#[tokio::test]
async fn what_was_just_read_is_not_read_again_for_the_write() {
    let server = ApiServer::start().await;
    let store = store(&server);
    swap(&store, record(1)).await;
    let before = server.cluster.requests().len();
    swap(&store, record(2)).await;
    assert_eq!(server.cluster.requests()[before..], ["get", "update"]);
}

/// Each refusal has its own remedy, and none of these is a missing right.
#[tokio::test]
async fn what_is_refused_although_it_is_allowed_says_what_to_do() {
    let server = ApiServer::start().await;
    let store = store(&server);
    let quota = "secrets \"license-gateway-token\" is forbidden: exceeded quota: few, requested: count/secrets=1, \
                 used: count/secrets=5, limited: count/secrets=5";
    let policy = "admission webhook \"policy.example\" denied the request: refresh-1 is no good";
    let end = "secrets \"license-gateway-token\" is forbidden: unable to create new content in namespace gateway \
               because it is being terminated";
    for (words, said) in
        [(quota, "raise that ResourceQuota"), (policy, "whoever runs that admission policy"), (end, "is being deleted")]
    {
        server.cluster.next("create", Trouble::Answer(403, "Forbidden", words));
        let error = with_causes(&store.rehearse().await.unwrap_err());
        assert!(error.contains(said) && !error.contains("Grant") && !error.contains("refresh-1"), "{error}");
    }
    store.rehearse().await.unwrap();
    assert_eq!(server.cluster.secret("gateway", NAME), None, "nothing was written");
    swap(&store, record(1)).await;
    let before = server.cluster.secret("gateway", NAME);
    store.rehearse().await.unwrap();
    server.cluster.forbid("update");
    assert!(with_causes(&store.rehearse().await.unwrap_err()).contains("`update` is missing"));
    assert_eq!(server.cluster.secret("gateway", NAME), before);
}

#[test]
fn what_the_first_version_wrote_is_read() {
    let entry = json!({
        "sha256": "d5a4e738f64bce23934b5b5b13d83355b24766d38312782b7c0083834c2a9c7b",
        "write": "6f0c4a52-6a0b-4c7e-9d3b-0a5c1c7c2d14",
        "replaces": null,
        "record": crate::token::store::sealed::tests::FIRST,
    });
    let found = read_entry(entry.to_string().as_bytes()).unwrap();
    assert_eq!((found.record.generation, found.record.refresh_token.expose()), (7, "refresh-7"));
}

#[tokio::test]
async fn missing_permissions_are_named() {
    let server = ApiServer::start().await;
    let store = store(&server);
    let empty = Version(String::new());
    server.cluster.forbid("create");
    let error = with_causes(&store.cas(empty.clone(), record(1)).await.unwrap_err());
    assert!(error.contains("Grant the gateway's service account `create` on `secrets`"), "{error}");
    assert!(error.contains("system:serviceaccount:gateway:license-gateway"), "{error}");
    server.cluster.allow("create");
    let version = swap(&store, record(1)).await;
    server.cluster.forbid("update");
    let error = with_causes(&store.cas(version, record(2)).await.unwrap_err());
    assert!(error.contains("`update` is missing") && error.contains("resourceNames to \"license-"), "{error}");
    server.cluster.forbid("get");
    let error = with_causes(&store.load().await.unwrap_err());
    assert!(error.contains("`get` is missing"), "{error}");

    let elsewhere = store_in(&server, Some("nowhere"));
    server.cluster.allow("get");
    let error = with_causes(&elsewhere.cas(empty, record(1)).await.unwrap_err());
    assert!(error.contains("\"nowhere\" does not exist"), "{error}");

    let mut config = cluster(server.address);
    config.auth_info.token = Some("forged".into());
    let settings = config::KubernetesSettings { namespace: None, name: NAME.to_owned() };
    let stranger = KubernetesStore::with_config(&settings, config).unwrap();
    let error = with_causes(&stranger.load().await.unwrap_err());
    assert!(error.contains("does not accept the gateway's credentials") && !error.contains("forged"), "{error}");
}

/// Otherwise a load balancer without a backend would make the gateway ask for a new seed.
#[tokio::test]
async fn a_404_that_kubernetes_did_not_write_is_not_an_empty_store() {
    let server = ApiServer::start().await;
    let store = store(&server);
    let version = swap(&store, record(1)).await;
    for verb in ["get", "update"] {
        server.cluster.next(verb, Trouble::Answer(404, "", "404 page not found"));
        let error = with_causes(&store.cas(version.clone(), record(2)).await.unwrap_err());
        assert!(error.contains(&format!("refuses to {verb} it (404")), "{error}");
    }
    assert_eq!(store.load().await.unwrap(), LoadedRecord { record: Some(record(1)), version });
}

/// Whoever stands between us and the store has seen the tokens.
#[tokio::test]
async fn nothing_that_was_sent_or_received_is_printed() {
    let server = ApiServer::start().await;
    let store = store(&server);
    let version = swap(&store, record(1)).await;
    let words = "admission webhook \"policy.example\" denied the request: refresh-2 is no good";
    for (trouble, said) in [
        (Trouble::Answer(403, "Forbidden", words), "policy.example\" denied it"),
        (Trouble::Answer(422, "Invalid", "data: Invalid value: refresh-2"), "422 Invalid"),
        (Trouble::Answer(400, "", "cannot read refresh-2"), "400"),
        (Trouble::Answer(500, "InternalError", "cannot write refresh-2"), "500 InternalError"),
        (Trouble::Answer(429, "TooManyRequests", "refresh-2"), "429 TooManyRequests"),
    ] {
        server.cluster.next("update", trouble);
        let error = store.cas(version.clone(), record(2)).await.unwrap_err();
        let text = format!("{} {error:?} {store:?}", with_causes(&error));
        assert!(with_causes(&error).contains(said), "{text}");
        assert!(!text.contains("refresh-"), "{text}");
    }
    server.cluster.next("get", Trouble::Garble);
    let error = with_causes(&store.load().await.unwrap_err());
    assert!(error.contains("the answer is no Secret"), "{error}");
}

/// The client library prints what it cannot read, at a level that is not filtered.
#[test]
fn the_client_library_logs_nothing() {
    let logged = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::registry::Registry::default();
    let subscriber = tracing_subscriber::layer::SubscriberExt::with(subscriber, Listener(Arc::clone(&logged)));
    // With one subscriber alone, a place that is first met in silence would be taken for silent for ever.
    let _second = Dispatch::new(tracing::subscriber::NoSubscriber::new());
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = ApiServer::start().await;
            let store = store(&server);
            for trouble in [Trouble::Garble, Trouble::Answer(500, "", ""), Trouble::CutAfter] {
                server.cluster.next("get", trouble);
                let _ = store.load().await;
            }
            swap(&store, record(1)).await;
            tracing::warn!("a line of our own, to show that lines are noted");
        });
    });
    let logged = logged.lock().unwrap();
    assert!(!logged.is_empty(), "our own line is there");
    assert!(logged.iter().all(|target| target.starts_with("license_gateway")), "{logged:?}");
}

/// Notes who logs.
struct Listener(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Listener {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        // What dependencies say below `info` is never printed.
        if *event.metadata().level() <= tracing::Level::INFO {
            self.0.lock().unwrap().push(event.metadata().target().to_owned());
        }
    }
}

#[tokio::test]
async fn an_api_server_that_comes_late_is_used_when_it_is_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let settings = config::KubernetesSettings { namespace: None, name: NAME.to_owned() };
    let store = KubernetesStore::with_config(&settings, cluster(address)).unwrap();
    let begun = Instant::now();
    let error = store.load().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(begun.elapsed() < API_ANSWER_WITHIN);
    let error = with_causes(&error);
    assert!(error.contains("Secret gateway/license-gateway-token cannot be read"), "{error}");
    let _server = ApiServer::serve(TcpListener::bind(address).await.unwrap(), None);
    swap(&store, record(1)).await;
}

#[tokio::test]
async fn the_api_servers_certificate_is_checked() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let tls = tokio_rustls::rustls::ServerConfig::builder_with_provider(Arc::new(
        tokio_rustls::rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![made.cert.der().clone()], key)
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = ApiServer::serve(listener, Some(tokio_rustls::TlsAcceptor::from(Arc::new(tls))));
    let settings = config::KubernetesSettings { namespace: None, name: NAME.to_owned() };
    let mut config = cluster(server.address);
    config.cluster_url = format!("https://{}", server.address).parse().unwrap();
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    for (certificate, is_trusted) in [(made.cert, true), (stranger.cert, false)] {
        config.root_cert = Some(vec![certificate.der().to_vec()]);
        let store = KubernetesStore::with_config(&settings, config.clone()).unwrap();
        let loaded = store.load().await;
        assert_eq!(loaded.is_ok(), is_trusted, "{loaded:?}");
    }
}

/// What is kept beside the record: an answer that does not come is not taken for a yes or a no.
#[tokio::test]
async fn the_text_beside_it_is_told_stored_refused_or_unclear() {
    use crate::token::store::UsageWrite;

    let server = ApiServer::start().await;
    let usage = TokenStore::Kubernetes(store(&server)).usage();
    let read = usage.load().await.unwrap();
    server.cluster.forbid("create");
    let error = with_causes(&usage.put(&read, b"1".to_vec()).await.unwrap_err());
    assert!(error.contains("license-gateway-token-usage") && error.contains("`create`"), "{error}");
    server.cluster.allow("create");
    server.cluster.next("create", Trouble::Twice);
    assert!(matches!(usage.put(&read, b"1".to_vec()).await, Ok(UsageWrite::Stored)));

    let mut text = 1_u8;
    for (trouble, is_written) in [
        (Trouble::Twice, true),
        (Trouble::HangBefore, false),
        (Trouble::HangAfter, true),
        (Trouble::CutAfter, true),
        (Trouble::Garble, true),
        (Trouble::Answer(500, "InternalError", "it failed"), false),
        (Trouble::Answer(403, "Forbidden", "it is forbidden"), false),
        (Trouble::Answer(429, "TooManyRequests", "too many"), false),
    ] {
        let read = usage.load().await.unwrap();
        text += 1;
        server.cluster.next("update", trouble);
        let put = usage.put(&read, vec![text]).await;
        match trouble {
            Trouble::Twice => assert!(matches!(put, Ok(UsageWrite::Stored)), "{put:?}"),
            Trouble::Answer(403 | 429, ..) => assert!(put.is_err(), "{put:?}"),
            _ => assert!(matches!(put, Ok(UsageWrite::Unclear(_))), "{trouble:?}: {put:?}"),
        }
        assert_eq!(usage.load().await.unwrap().text == Some(vec![text]), is_written, "{trouble:?}");
    }
    // Deleted by somebody: not there any more, so not what was read.
    let read = usage.load().await.unwrap();
    server.cluster.delete("gateway", "license-gateway-token-usage");
    assert!(matches!(usage.put(&read, b"new".to_vec()).await, Ok(UsageWrite::Conflict)));
    // An object that a person has made keeps what is theirs.
    server.cluster.apply("gateway", "license-gateway-token-usage", |secret| {
        secret["metadata"]["labels"] = json!({ "team": "noc" });
    });
    let read = usage.load().await.unwrap();
    assert_eq!(read.text, None);
    assert!(matches!(usage.put(&read, b"new".to_vec()).await, Ok(UsageWrite::Stored)));
    let secret = server.cluster.secret("gateway", "license-gateway-token-usage").unwrap();
    assert_eq!(secret["metadata"]["labels"]["team"], "noc");
}
