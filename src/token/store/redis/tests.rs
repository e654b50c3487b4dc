//! Against a real `redis-server` (package `redis-server`): Cargo feature `tests-with-redis`.

#[path = "../../../../tests/api/redis_server.rs"]
mod redis_server;

use std::{
    error::Error as _,
    fs,
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{UnixListener, UnixStream},
    time::sleep,
};

use self::redis_server::RedisServer;
use super::{connect::ANSWER_TIMEOUT, *};
use crate::token::store::{
    TokenStore,
    conformance::{self, record},
    operations,
};

const KEY: &str = "license-gateway:token";

fn settings(url: &str) -> config::RedisSettings {
    config::RedisSettings {
        url: url.parse().unwrap(),
        username: None,
        password_file: None,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        key: KEY.to_owned(),
    }
}

fn open(server: &RedisServer) -> RedisStore {
    RedisStore::open(&settings(&server.url())).unwrap()
}

/// Past the store, as another client.
fn admin<T: FromRedisValue>(server: &RedisServer, words: &[&str]) -> T {
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    Cmd::new().arg(words).query(&mut connection).unwrap()
}

async fn stored(store: &RedisStore, record: TokenRecord) -> Version {
    let version = store.load().await.unwrap().version;
    match store.cas(version, record).await.unwrap() {
        Swap::Stored(version) => version,
        Swap::Conflict => panic!("conflict"),
    }
}

/// The error and its causes, as a log shows them.
fn chain(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn it_conforms() {
    conformance::holds(async || {
        let server = RedisServer::start();
        (TokenStore::Redis(open(&server)), server)
    })
    .await;
}

#[tokio::test]
async fn its_operations_conform() {
    let server = RedisServer::start();
    let store = TokenStore::Redis(open(&server)).operations().expect("replicas share it");
    operations::conformance::holds(&store).await;
}

#[tokio::test]
async fn a_server_that_is_down_is_told_at_once_and_used_when_it_is_up() {
    let mut server = RedisServer::prepare(&[]);
    let store = open(&server);
    let begun = Instant::now();
    let error = store.load().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(1));
    let swap = store.cas(Version(String::new()), record(1)).await;
    assert!(matches!(swap, Err(Error::Unavailable { .. })), "{swap:?}");
    server.run();
    stored(&store, record(1)).await;
    server.kill();
    assert!(matches!(store.load().await, Err(Error::Unavailable { .. })));
    server.run();
    assert_eq!(store.load().await.unwrap().record, Some(record(1)));
}

#[tokio::test]
async fn a_server_killed_right_after_it_stored_a_record_still_has_it() {
    let mut server = RedisServer::start();
    let store = open(&server);
    for generation in 1..=5 {
        let version = stored(&store, record(generation)).await;
        server.kill();
        server.run();
        assert_eq!(store.load().await.unwrap(), LoadedRecord { record: Some(record(generation)), version });
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_understood_is_refused_and_left_alone() {
    let server = RedisServer::start();
    let store = open(&server);
    let before = stored(&store, record(1)).await;
    let good: String = admin(&server, &["GET", KEY]);
    let newer = serde_json::to_string(&record(1)).unwrap().replace("\"schema\":1", "\"schema\":2");
    let newer = String::from_utf8(SealedRecord::seal_text(1, newer).to_bytes()).unwrap();
    let flipped = good.replace("refresh-1", "refresh-2");
    let table = [
        ("", "damaged"),
        ("hello", "damaged"),
        (&good[..good.len() / 2], "damaged"),
        (&flipped, "checksum"),
        (&newer, "schema is 2"),
    ];
    for (value, expected) in table {
        let () = admin(&server, &["SET", KEY, value]);
        let error = store.load().await.unwrap_err();
        assert!(matches!(error, Error::UnusableKey { .. } | Error::Damaged { .. }), "{error:?}");
        assert!(error.to_string().contains(expected) && error.to_string().contains(KEY), "{error}");
        assert!(!chain(&error).contains("refresh-"), "{error}");
        for version in [before.clone(), Version(String::new())] {
            assert_eq!(store.cas(version, record(5)).await.unwrap(), Swap::Conflict);
        }
        assert_eq!(admin::<String>(&server, &["GET", KEY]), value, "left as it is");

        // Whoever holds the living pair says so by the version; not over what another version of us wrote.
        assert_eq!(matches!(error, Error::Damaged { .. }), value != newer);
        if let Error::Damaged { version, .. } = error {
            assert!(matches!(store.cas(version, record(5)).await, Ok(Swap::Stored(_))));
            assert_eq!(store.load().await.unwrap().record, Some(record(5)));
        }
    }
    let () = admin(&server, &["DEL", KEY]);
    let () = admin(&server, &["HSET", KEY, "a", "b"]);
    let error = store.load().await.unwrap_err();
    assert!(error.to_string().contains("something else is stored there"), "{error}");
    store.cas(before, record(5)).await.unwrap_err();
    assert_eq!(admin::<String>(&server, &["TYPE", KEY]), "hash");
}

/// A version that was read before the key was deleted, or put back from a backup, is worth nothing afterwards.
#[tokio::test]
async fn a_key_that_was_deleted_begins_anew() {
    let server = RedisServer::start();
    let store = open(&server);
    let before = stored(&store, record(1)).await;
    let () = admin(&server, &["DEL", KEY]);
    assert_eq!(store.load().await.unwrap().record, None);
    let after = stored(&store, record(1)).await;
    assert_ne!(before, after, "although record and serial number are the same");
    assert_eq!(store.cas(before, record(2)).await.unwrap(), Swap::Conflict);
}

#[tokio::test]
async fn a_time_to_live_that_somebody_set_ends_with_the_next_write() {
    let server = RedisServer::start();
    let store = open(&server);
    stored(&store, record(1)).await;
    let () = admin(&server, &["EXPIRE", KEY, "1000"]);
    stored(&store, record(2)).await;
    assert_eq!(admin::<i64>(&server, &["TTL", KEY]), -1);
}

#[tokio::test]
async fn two_processes_race_and_one_wins_each_time() {
    let server = RedisServer::start();
    let (left, right) = (open(&server), open(&server));
    for round in 1..=100 {
        let version = left.load().await.unwrap().version;
        let (one, other) =
            tokio::join!(left.cas(version.clone(), record(2 * round)), right.cas(version, record(2 * round + 1)));
        let (winner, swap) = match (one.unwrap(), other.unwrap()) {
            (Swap::Stored(version), Swap::Conflict) => (record(2 * round), version),
            (Swap::Conflict, Swap::Stored(version)) => (record(2 * round + 1), version),
            both => panic!("round {round}: {both:?}"),
        };
        assert_eq!(right.load().await.unwrap(), LoadedRecord { record: Some(winner), version: swap });
    }
}

#[tokio::test]
async fn what_a_paused_server_did_is_told_truthfully() {
    let server = RedisServer::start();
    let (store, other) = (open(&server), open(&server));
    let first = stored(&store, record(1)).await;

    // It goes on while we look: the write arrived.
    server.pause();
    let resume = async {
        sleep(ANSWER_TIMEOUT + Duration::from_secs(1)).await;
        server.resume();
    };
    let (swap, ()) = tokio::join!(store.cas(first.clone(), record(2)), resume);
    let Swap::Stored(second) = swap.unwrap() else { panic!("it was stored") };
    assert_eq!(other.load().await.unwrap(), LoadedRecord { record: Some(record(2)), version: second.clone() });

    // The same with an outdated version: somebody else's record is there.
    server.pause();
    let resume = async {
        sleep(ANSWER_TIMEOUT + Duration::from_secs(1)).await;
        server.resume();
    };
    let (swap, ()) = tokio::join!(store.cas(first, record(9)), resume);
    assert_eq!(swap.unwrap(), Swap::Conflict);

    // It does not go on: nobody knows. Afterwards the store tells, and can be written.
    server.pause();
    let begun = Instant::now();
    let error = store.cas(second, record(3)).await.unwrap_err();
    assert!(chain(&error).contains("no answer within 2 s"), "{error:?}");
    assert!(begun.elapsed() < 2 * ANSWER_TIMEOUT + Duration::from_secs(2), "{:?}", begun.elapsed());
    server.resume();
    let loaded = store.load().await.unwrap();
    assert!([record(2), record(3)].map(Some).contains(&loaded.record), "{loaded:?}");
    assert!(matches!(store.cas(loaded.version, record(4)).await, Ok(Swap::Stored(_))));
    assert_eq!(other.load().await.unwrap().record, Some(record(4)));
}

/// What happens to the connection that carries the swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The server never sees it.
    Request,
    /// The server carries it out, and the answer is lost.
    Answer,
}

/// Stands between store and server and cuts the first connection that carries a swap. Counts the swaps it saw.
fn cutting_proxy(server: &RedisServer, cut: Cut) -> (String, Arc<AtomicUsize>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("proxy.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (swaps, behind) = (Arc::new(AtomicUsize::new(0)), server.socket());
    let seen = Arc::clone(&swaps);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (behind, seen) = (behind.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut upstream = UnixStream::connect(behind).await.unwrap();
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = upstream.split();
                let up = async {
                    let mut buffer = vec![0; 64 * 1024];
                    loop {
                        let n = from_client.read(&mut buffer).await.unwrap_or(0);
                        let is_swap = buffer[..n].windows(4).any(|part| part == b"EVAL");
                        let is_first = is_swap && seen.fetch_add(1, SeqCst) == 0;
                        if n == 0 || (is_first && cut == Cut::Request) {
                            return false;
                        }
                        to_server.write_all(&buffer[..n]).await.unwrap();
                        if is_first {
                            return true;
                        }
                    }
                };
                let is_cut_after = tokio::select! {
                    is_cut_after = up => is_cut_after,
                    _ = copy(&mut from_server, &mut to_client) => false,
                };
                if is_cut_after {
                    from_server.read_u8().await.unwrap(); // the server has answered: to nobody
                }
            });
        }
    });
    (format!("unix://{}", socket.display()), swaps, dir)
}

#[tokio::test]
async fn a_swap_whose_answer_is_lost_is_looked_up_and_never_sent_again() {
    for cut in [Cut::Answer, Cut::Request] {
        let server = RedisServer::start();
        let (url, swaps, _dir) = cutting_proxy(&server, cut);
        let store = RedisStore::open(&settings(&url)).unwrap();
        let before = store.load().await.unwrap();
        let swap = store.cas(before.version.clone(), record(1)).await;
        assert_eq!(swaps.load(SeqCst), 1, "{cut:?}");
        let loaded = open(&server).load().await.unwrap();
        match cut {
            Cut::Answer => {
                assert_eq!(swap.unwrap(), Swap::Stored(loaded.version.clone()));
                assert_eq!(loaded.record, Some(record(1)));
            }
            Cut::Request => {
                assert!(matches!(swap, Err(Error::Unavailable { action: "be written", .. })), "{swap:?}");
                assert_eq!(loaded, before);
            }
        }
        assert!(matches!(store.cas(loaded.version, record(2)).await, Ok(Swap::Stored(_))), "{cut:?}");
    }
}

#[tokio::test]
async fn a_connection_that_was_cut_while_idle_is_replaced() {
    let server = RedisServer::start();
    let store = open(&server);
    stored(&store, record(1)).await;
    for _ in 0..20 {
        let killed: i64 = admin(&server, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert!(killed >= 1);
        assert_eq!(store.load().await.unwrap().record, Some(record(1)));
    }
}

#[tokio::test]
async fn a_wrong_password_or_right_is_told_without_secrets() {
    let server = RedisServer::start();
    let rights = ["~license-gateway:*", "+get", "+set", "+eval", "+select"];
    let () = admin(&server, &[&["ACL", "SETUSER", "gateway", "on", ">s3cret-good"], &rights[..]].concat());
    let () = admin(&server, &["ACL", "SETUSER", "poor", "on", ">s3cret-good", "~other:*", "+get", "+eval"]);
    let dir = tempfile::tempdir().unwrap();
    let password_file = dir.path().join("password");
    let with = |username: &str| config::RedisSettings {
        username: Some(username.to_owned()),
        password_file: Some(password_file.clone()),
        ..settings(&server.url())
    };
    let table = [
        ("gateway", "s3cret-bad", "the user name or the password of the token_store is wrong"),
        ("nobody", "s3cret-good", "the user name or the password of the token_store is wrong"),
        ("poor", "s3cret-good", "NOPERM"),
    ];
    for (username, password, expected) in table {
        fs::write(&password_file, password).unwrap();
        let store = RedisStore::open(&with(username)).unwrap();
        let error = store.load().await.unwrap_err();
        assert!(chain(&error).contains(expected), "{}", chain(&error));
        assert!(!format!("{} {store:?}", chain(&error)).contains("s3cret"), "{}", chain(&error));
    }
    // The file is mended while the gateway runs; a trailing newline is not part of the password.
    let store = RedisStore::open(&with("gateway")).unwrap();
    fs::write(&password_file, "s3cret-good\n").unwrap();
    stored(&store, record(1)).await;
    let warnings = store.durability_warnings().await.unwrap();
    assert!(matches!(&warnings[..], [warning] if warning.contains("cannot be checked")), "{warnings:?}");
    // The password is changed: the next connection reads the new one.
    let () = admin(&server, &["ACL", "SETUSER", "gateway", "resetpass", ">s3cret-new"]);
    fs::write(&password_file, "s3cret-new").unwrap();
    let () = admin(&server, &["CLIENT", "KILL", "USER", "gateway"]);
    stored(&store, record(2)).await;
    let another = config::RedisSettings { url: format!("{}?db=3", server.url()).parse().unwrap(), ..with("gateway") };
    let store = RedisStore::open(&another).unwrap();
    assert_eq!(store.load().await.unwrap().record, None, "another database");
}

#[tokio::test]
async fn a_server_that_wants_a_password_says_which_setting_is_missing() {
    let server = RedisServer::start_with(&["--requirepass", "s3cret"]);
    let error = open(&server).load().await.unwrap_err();
    assert!(chain(&error).contains("set token_store.password_file"), "{}", chain(&error));
}

#[tokio::test]
async fn a_replica_is_refused_even_if_it_became_one_while_connected() {
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", "1"]);
    let error = open(&replica).load().await.unwrap_err();
    assert!(chain(&error).contains("token_store.url must name the primary"), "{}", chain(&error));

    let server = RedisServer::start();
    let store = open(&server);
    let version = stored(&store, record(1)).await;
    let () = admin(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    let error = store.cas(version, record(2)).await.unwrap_err();
    assert!(chain(&error).contains("token_store.url must name the primary"), "{}", chain(&error));
    store.load().await.unwrap_err();
    let () = admin(&server, &["REPLICAOF", "NO", "ONE"]);
    stored(&store, record(2)).await;
}

/// Two servers, and a name that points to the first.
fn behind_a_name() -> (RedisServer, RedisServer, TempDir, config::RedisSettings) {
    let (first, second, dir) = (RedisServer::start(), RedisServer::start(), tempfile::tempdir().unwrap());
    let name = dir.path().join("name");
    std::os::unix::fs::symlink(first.socket(), &name).unwrap();
    let settings = settings(&format!("unix://{}", name.display()));
    (first, second, dir, settings)
}

fn point_to(server: &RedisServer, dir: &TempDir) {
    std::os::unix::fs::symlink(server.socket(), dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), dir.path().join("name")).unwrap();
}

/// After a failover the old primary answers reads for as long as the connection lives.
#[tokio::test]
async fn a_server_that_refuses_writes_is_left_as_soon_as_the_name_points_elsewhere() {
    for refusal in [["min-replicas-to-write", "1"], ["maxmemory", "1"]] {
        let (first, second, dir, settings) = behind_a_name();
        let store = RedisStore::open(&settings).unwrap();
        let version = stored(&store, record(1)).await;
        let mut set = vec!["CONFIG", "SET"];
        set.extend(refusal);
        let () = admin(&first, &set);
        store.cas(version.clone(), record(2)).await.unwrap_err();
        point_to(&second, &dir);
        store.load().await.unwrap(); // the connection that was there
        let _ = store.cas(version, record(2)).await;
        assert_eq!(store.load().await.unwrap().record, None, "{refusal:?}: the second server is empty");
        stored(&store, record(2)).await;
    }
}

/// The old server lives and takes writes: nothing but the name says that it is the wrong one.
#[tokio::test]
async fn a_name_that_points_elsewhere_is_followed_and_one_that_points_nowhere_is_not() {
    let (first, second, dir, settings) = behind_a_name();
    let RedisStore(mut handle) = RedisStore::open(&settings).unwrap();
    Arc::get_mut(&mut handle).unwrap().follow_name_every = Duration::ZERO;
    let store = RedisStore(handle);
    stored(&store, record(1)).await;
    fs::rename(dir.path().join("name"), dir.path().join("away")).unwrap();
    assert_eq!(store.load().await.unwrap().record, Some(record(1)), "the connection still works");
    point_to(&second, &dir);
    assert_eq!(store.load().await.unwrap().record, None);
    stored(&store, record(2)).await;
    drop(first);
    assert_eq!(store.load().await.unwrap().record, Some(record(2)));
}

#[tokio::test]
async fn a_full_server_refuses_and_keeps_the_record() {
    let server = RedisServer::start();
    let store = open(&server);
    let version = stored(&store, record(1)).await;
    let () = admin(&server, &["CONFIG", "SET", "maxmemory", "1"]);
    let error = store.cas(version, record(2)).await.unwrap_err();
    assert!(chain(&error).contains("raise its maxmemory"), "{}", chain(&error));
    assert_eq!(store.load().await.unwrap().record, Some(record(1)));
}

#[tokio::test]
async fn the_settings_of_a_real_server_are_checked() {
    let server = RedisServer::start();
    assert_eq!(open(&server).durability_warnings().await.unwrap(), Vec::<String>::new());

    let server = RedisServer::start_with(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    let warnings = open(&server).durability_warnings().await.unwrap();
    let [journal, memory] = &warnings[..] else { panic!("{warnings:?}") };
    assert!(journal.contains("set appendonly yes and appendfsync always"), "{journal}");
    assert!(memory.contains("set maxmemory-policy noeviction"), "{memory}");

    // Without CONFIG, INFO knows some of it.
    let rights = ["~*", "+get", "+eval", "+info", "+role"];
    let () = admin(&server, &[&["ACL", "SETUSER", "gateway", "on", ">pw"], &rights[..]].concat());
    let dir = tempfile::tempdir().unwrap();
    let password_file = dir.path().join("password");
    fs::write(&password_file, "pw").unwrap();
    let login = config::RedisSettings {
        username: Some("gateway".to_owned()),
        password_file: Some(password_file),
        ..settings(&server.url())
    };
    let store = RedisStore::open(&login).unwrap();
    assert_eq!(store.durability_warnings().await.unwrap(), warnings);
}

/// An authority, a server certificate for `localhost`, and one for a client; and the arguments that make use of them.
struct TlsFiles {
    dir: TempDir,
    port: u16,
}

impl TlsFiles {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority"); // else the leaves look self-signed
        let key = KeyPair::generate().unwrap();
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let authority = Issuer::new(params, key);
        for name in ["localhost", "gateway"] {
            let key = KeyPair::generate().unwrap();
            let certificate =
                CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
            fs::write(dir.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { dir, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self, asks_for_certificates: &str) -> RedisServer {
        let path = |name| self.path(name).display().to_string();
        RedisServer::start_with(&[
            "--tls-port",
            &self.port.to_string(),
            "--bind",
            "127.0.0.1",
            "--tls-cert-file",
            &path("localhost.pem"),
            "--tls-key-file",
            &path("localhost.key"),
            "--tls-ca-cert-file",
            &path("ca.pem"),
            "--tls-auth-clients",
            asks_for_certificates,
        ])
    }

    fn settings(&self, host: &str) -> config::RedisSettings {
        config::RedisSettings {
            ca_file: Some(self.path("ca.pem")),
            ..settings(&format!("rediss://{host}:{}/1", self.port))
        }
    }
}

#[tokio::test]
async fn a_server_is_reached_with_tls_and_its_certificate_is_checked() {
    let tls = TlsFiles::new();
    let _server = tls.server("no");
    stored(&RedisStore::open(&tls.settings("localhost")).unwrap(), record(1)).await;

    let stranger = TlsFiles::new();
    let other = config::RedisSettings { ca_file: Some(stranger.path("ca.pem")), ..tls.settings("localhost") };
    let error = RedisStore::open(&other).unwrap().load().await.unwrap_err();
    assert!(chain(&error).contains("invalid peer certificate"), "{}", chain(&error));
    let error = RedisStore::open(&tls.settings("127.0.0.1")).unwrap().load().await.unwrap_err();
    assert!(chain(&error).contains("not valid for name"), "{}", chain(&error));
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_ours() {
    let tls = TlsFiles::new();
    let _server = tls.server("yes");
    let without = RedisStore::open(&tls.settings("localhost")).unwrap();
    assert!(matches!(without.load().await, Err(Error::Unavailable { .. })));
    let with = config::RedisSettings {
        client_certificate_file: Some(tls.path("gateway.pem")),
        client_key_file: Some(tls.path("gateway.key")),
        ..tls.settings("localhost")
    };
    stored(&RedisStore::open(&with).unwrap(), record(1)).await;
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    let missing = dir.path().join("missing");
    let plain = || settings("redis://localhost");
    let table = [
        (config::RedisSettings { username: Some("a".to_owned()), ..plain() }, "token_store.username needs a password"),
        (
            config::RedisSettings { password_file: Some(empty.clone()), ..plain() },
            "token_store.password_file holds no password",
        ),
        (config::RedisSettings { password_file: Some(missing), ..plain() }, "cannot read"),
        (config::RedisSettings { ca_file: Some(empty.clone()), ..plain() }, "must begin with rediss://"),
        (
            config::RedisSettings { client_key_file: Some(empty.clone()), ..settings("rediss://localhost") },
            "token_store.client_certificate_file and token_store.client_key_file go together",
        ),
        (
            config::RedisSettings { ca_file: Some(empty), ..settings("rediss://localhost") },
            "token_store.ca_file holds no certificate",
        ),
    ];
    for (settings, expected) in table {
        let error = RedisStore::open(&settings).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    for url in ["redis://localhost", "valkey://[::1]:1/2", "rediss://h/1", "valkeys://h", "unix:///a?db=1"] {
        RedisStore::open(&settings(url)).unwrap();
    }
}

/// What is kept beside the record: an answer that is lost is not taken for a yes or a no, nor is the text sent again.
#[tokio::test]
async fn a_text_beside_the_record_whose_answer_is_lost_is_unclear() {
    use crate::token::store::UsageWrite;

    for (cut, is_written) in [(Cut::Answer, true), (Cut::Request, false)] {
        let server = RedisServer::start();
        let here = TokenStore::Redis(open(&server)).usage();
        let read = here.load().await.unwrap();
        let (url, swaps, _dir) = cutting_proxy(&server, cut);
        let far = TokenStore::Redis(RedisStore::open(&settings(&url)).unwrap()).usage();
        let put = far.put(&read, b"1".to_vec()).await;
        assert!(matches!(put, Ok(UsageWrite::Unclear(_))), "{put:?}");
        assert_eq!(swaps.load(SeqCst), 1);
        assert_eq!(here.load().await.unwrap().text.is_some(), is_written, "{cut:?}");
    }
}

/// With the rights that docs/tokens.md asks for, and not without.
#[tokio::test]
async fn counting_customers_needs_the_clock_and_a_key_beside_the_records() {
    use crate::token::store::UsageWrite;

    let server = RedisServer::start();
    let rights = ["on", ">pw", "~license-gateway:token", "+get", "+set", "+eval"];
    let () = admin(&server, &[&["ACL", "SETUSER", "without"], &rights[..]].concat());
    let () = admin(
        &server,
        &[&["ACL", "SETUSER", "with"], &rights[..], &["~license-gateway:token:usage", "+time"]].concat(),
    );
    let dir = tempfile::tempdir().unwrap();
    let password_file = dir.path().join("password");
    fs::write(&password_file, "pw").unwrap();
    let usage = |name: &str| {
        let settings = config::RedisSettings {
            username: Some(name.to_owned()),
            password_file: Some(password_file.clone()),
            ..settings(&server.url())
        };
        TokenStore::Redis(RedisStore::open(&settings).unwrap()).usage()
    };
    let error = chain(&usage("without").load().await.unwrap_err());
    assert!(error.contains("license-gateway:token:usage") && error.contains("+time"), "{error}");
    let with = usage("with");
    let read = with.load().await.unwrap();
    assert!(matches!(with.put(&read, b"1".to_vec()).await, Ok(UsageWrite::Stored)));
    // Somebody else's list under that key is not overwritten.
    let _: i64 = admin(&server, &["DEL", "license-gateway:token:usage"]);
    let _: i64 = admin(&server, &["LPUSH", "license-gateway:token:usage", "a"]);
    with.load().await.unwrap_err();
    with.put(&read, b"2".to_vec()).await.unwrap_err();
}
