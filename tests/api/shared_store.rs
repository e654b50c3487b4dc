//! Two gateways on one token store, and nothing goes wrong.

use std::{fs, process::Command, sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation};
use license_gateway::config::{RedisSettings, StoreKind};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    redis_server::RedisServer,
    support::{Gateway, config_file, customer, living, sandbox},
};

/// The store of this server.
pub fn redis(server: &RedisServer) -> StoreKind {
    StoreKind::Redis(RedisSettings {
        url: server.url().parse().unwrap(),
        username: None,
        password_file: None,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        key: "license-gateway:token".to_owned(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_pair_and_present_each_refresh_token_once() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let mut gateways = Vec::new();
    for _ in 0..2 {
        // All have the same seed mounted.
        let kind = redis(&server);
        let gateway = Gateway::start_with(&sandbox, |config| config.token_store.kind = kind).await;
        gateway.ready().await;
        gateways.push(Arc::new(gateway));
    }
    assert_eq!(sandbox.token_exchanges().len(), 1, "the second replica takes what the first one stored");

    for round in 2..=4 {
        sandbox.revoke_access_token();
        let mut asking = JoinSet::new();
        for gateway in &gateways {
            let (gateway, customer) = (Arc::clone(gateway), customer(&sandbox, 0));
            asking.spawn(async move { gateway.unassign(&customer).await.expect("applied") });
        }
        asking.join_all().await;
        assert_eq!(sandbox.token_exchanges().len(), round, "each refresh token is presented once");
    }
    for gateway in gateways {
        let beside: Vec<_> = fs::read_dir(gateway.state.path().join("state")).unwrap().collect();
        assert!(beside.is_empty(), "all was stored where it belongs: {beside:?}");
    }
}

/// Somebody empties the server, or a failover loses the last write; and nobody asks for a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_redis_forgets_is_put_back_at_once() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let kind = redis(&server);
        let gateway = Gateway::start_with(&sandbox, |config| config.token_store.kind = kind).await;
        gateway.ready().await;
        gateways.push(gateway);
    }
    server.command("FLUSHALL");
    let deadline = Instant::now() + Duration::from_secs(10);
    let holds_the_living = || {
        let writes = server.writes();
        let after =
            writes.iter().rposition(|write| write[0].eq_ignore_ascii_case(b"FLUSHALL")).expect("it was emptied");
        let living = living(&sandbox);
        writes[after..].iter().any(|write| String::from_utf8_lossy(write.last().unwrap()).contains(&living))
    };
    while !holds_the_living() {
        assert!(Instant::now() < deadline, "nobody puts the pair back");
        sleep(Duration::from_millis(50)).await;
    }
    sandbox.revoke_access_token();
    for gateway in gateways {
        gateway.unassign(&customer(&sandbox, 0)).await.expect("the pair is good");
        gateway.stop().await;
    }
    assert_eq!(sandbox.token_exchanges().len(), 2, "each refresh token is presented once");
}

/// Somebody's script writes over the key. Both replicas hold the pair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_damaged_in_redis_is_written_anew_by_whoever_holds_the_pair() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let mut gateways = Vec::new();
    for _ in 0..2 {
        let kind = redis(&server);
        let gateway = Gateway::start_with(&sandbox, |config| config.token_store.kind = kind).await;
        gateway.ready().await;
        gateways.push(gateway);
    }
    server.command("SET license-gateway:token damaged");
    sandbox.revoke_access_token();
    for gateway in gateways {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(failure) = gateway.unassign(&customer(&sandbox, 0)).await {
            assert!(Instant::now() < deadline, "nobody writes it anew: {failure:?}");
            sleep(Duration::from_millis(50)).await;
        }
        gateway.stop().await;
    }
    assert_eq!(sandbox.token_exchanges().len(), 2, "each refresh token is presented once");
}

/// A person seeds while the answer to an exchange is on its way: the seed is of no use, and the pair that comes is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistyped_seed_in_the_middle_of_an_exchange_does_not_cost_the_chain() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let kind = redis(&server);
    let gateway = Arc::new(Gateway::start_with(&sandbox, |config| config.token_store.kind = kind).await);
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold_answer("exchange").on(Operation::Token));
    let call = tokio::spawn({
        let (gateway, customer) = (Arc::clone(&gateway), customer(&sandbox, 0));
        async move { gateway.unassign(&customer).await }
    });
    sandbox.wait_for_held("exchange", 1).await;

    let dir = tempfile::tempdir().unwrap();
    let file = config_file(&sandbox, dir.path());
    let store = format!("[token_store]\nkind = \"redis\"\nurl = \"{}\"\n", server.url());
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("[token_store]\n", &store)).unwrap();
    fs::write(dir.path().join("mistyped"), "NobodysRefreshToken0000000000001").unwrap();
    let seeded = Command::new(env!("CARGO_BIN_EXE_license-gateway"))
        .args(["token", "seed", "--config"])
        .arg(&file)
        .env_clear()
        .stdin(fs::File::open(dir.path().join("mistyped")).unwrap())
        .output()
        .unwrap();
    assert!(seeded.status.success(), "{seeded:?}");

    let exchanges = sandbox.token_exchanges().len();
    sandbox.release("exchange");
    call.await.unwrap().expect("served by the pair that came");
    let deadline = Instant::now() + Duration::from_secs(10);
    while sandbox.token_exchanges().len() == exchanges {
        assert!(Instant::now() < deadline, "the seed is not tried");
        sleep(Duration::from_millis(50)).await;
    }
    sandbox.revoke_access_token();
    while let Err(failure) = gateway.unassign(&customer(&sandbox, 0)).await {
        assert!(Instant::now() < deadline, "the chain is lost: {failure:?}");
        sleep(Duration::from_millis(50)).await;
    }
    Arc::into_inner(gateway).unwrap().stop().await;
}

/// Redis goes away between Central's commit and the store: the pair is served, and kept on this node meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_redis_does_not_take_stands_in_the_journal_of_its_node() {
    let (sandbox, mut server) = (sandbox().await, RedisServer::start());
    let kind = redis(&server);
    let gateway = Arc::new(Gateway::start_with(&sandbox, |config| config.token_store.kind = kind).await);
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold_answer("exchange").on(Operation::Token));
    // A read: a change also needs the store, for its operation.
    let call = tokio::spawn({
        let (gateway, wanted) = (Arc::clone(&gateway), crate::support::include(&[&customer(&sandbox, 0)]));
        async move { gateway.preview(&wanted, 0).await }
    });
    sandbox.wait_for_held("exchange", 1).await;
    server.kill();
    sandbox.release("exchange");
    call.await.unwrap().expect("served from memory");
    // Those who wait are answered first.
    let journal = gateway.state.path().join("state/unsaved.json");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_to_string(&journal).is_ok_and(|text| text.contains(&living(&sandbox))) {
        assert!(Instant::now() < deadline, "it is not written");
        sleep(Duration::from_millis(20)).await;
    }
    server.run();
}
