//! Replicas on one Redis.

use license_gateway::config;

use super::*;
use crate::{redis_server::RedisServer, shared_store::redis};

async fn replica(sandbox: &Sandbox, server: &RedisServer) -> Gateway {
    let kind = redis(server);
    let change = |config: &mut config::Config| config.token_store.kind = kind;
    let gateway = Gateway::start_with(sandbox, change).await;
    gateway.ready().await;
    gateway
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_runs_once_whatever_replica_is_asked_and_both_tell_of_it() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let gateways = [Arc::new(replica(&sandbox, &server).await), Arc::new(replica(&sandbox, &server).await)];
    for _ in 0..3 {
        sandbox.clear_calls();
        let (id, who) = (new_id(), customer(&sandbox, 0));
        let mut asking = JoinSet::new();
        for n in 0..200 {
            let (gateway, request) = (Arc::clone(&gateways[n % 2]), with_id(&id, &[&who]));
            asking.spawn(async move { ask(&gateway, request).await.expect("applied") });
        }
        let answers = asking.join_all().await;
        assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
        assert_eq!(sandbox.unassign_calls().len(), 1);
        for gateway in &gateways {
            let told = by_request(gateway, &id).await.unwrap();
            assert_eq!(
                (told.operation_id.as_str(), told.outcome()),
                (answers[0].operation_id.as_str(), OperationOutcome::Applied)
            );
            let reused = ask(gateway, with_id(&id, &[&customer(&sandbox, 1)])).await.unwrap_err();
            assert_eq!(reused.reason, "REQUEST_ID_REUSED");
        }
    }
    for gateway in &gateways {
        let request = ListOperationsRequest { page_size: 500, page_token: String::new() };
        let page = gateway.client().list_operations(request).await.unwrap().into_inner();
        assert_eq!(page.operations.len(), 3, "of both");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_store_nothing_is_sent_and_the_id_is_free_when_it_is_back() {
    let (sandbox, mut server) = (sandbox().await, RedisServer::start());
    let gateway = replica(&sandbox, &server).await;
    let (id, who) = (new_id(), customer(&sandbox, 0));
    server.kill();
    for request in [with_id(&id, &[&who]), include(&[&who])] {
        let failure = ask(&gateway, request).await.unwrap_err();
        let told = (failure.code, failure.reason.as_str(), failure.outcome.as_str());
        assert_eq!(told, (Code::Unavailable, "OPERATIONS_UNAVAILABLE", "not_applied"));
    }
    assert!(sandbox.unassign_calls().is_empty());
    server.run();
    assert!(!ask(&gateway, with_id(&id, &[&who])).await.unwrap().replayed);
    assert_eq!(sandbox.unassign_calls().len(), 1);
    gateway.stop().await;
}

/// Slow, full, damaged: a change waits, or nothing is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_trouble_costs_no_second_call() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let gateway = replica(&sandbox, &server).await;
    let who = customer(&sandbox, 0);
    let (slow, full, damaged) = (new_id(), new_id(), new_id());
    server.command("CLIENT PAUSE 300 ALL");
    ask(&gateway, with_id(&slow, &[&who])).await.expect("it waits");

    server.command("CONFIG SET maxmemory 1");
    let failure = ask(&gateway, with_id(&full, &[&who])).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("OPERATIONS_UNAVAILABLE", "not_applied"));
    server.command("CONFIG SET maxmemory 0");
    ask(&gateway, with_id(&full, &[&who])).await.expect("there is room again");

    ask(&gateway, with_id(&damaged, &[&who])).await.expect("applied");
    let other = replica(&sandbox, &server).await;
    let damage =
        "for _, key in ipairs(redis.call('KEYS', '*:operation:*')) do redis.call('SET', key, 'x') end return 1";
    let mut connection = ::redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let _: u64 = ::redis::cmd("EVAL").arg(damage).arg(0).query(&mut connection).unwrap();
    let failure = ask(&other, with_id(&damaged, &[&who])).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("OPERATIONS_UNAVAILABLE", "not_applied"));
    assert_eq!(sandbox.unassign_calls().len(), 3, "one each");
    // The one that did it knows.
    assert!(ask(&gateway, with_id(&damaged, &[&who])).await.unwrap().replayed);
}

/// What another replica does can take longer than this one has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_that_waits_for_another_replica_holds_no_stop_up() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let (first, second) = (replica(&sandbox, &server).await, replica(&sandbox, &server).await);
    sandbox.fault(Fault::hold("call").on(OfSandbox::Unassign));
    let (id, who) = (new_id(), customer(&sandbox, 0));
    let sent = tokio::spawn({
        let (mut client, request) = (first.client(), with_id(&id, &[&who]));
        async move { client.unassign_licenses(request).await }
    });
    sandbox.wait_for_held("call", 1).await;
    let waits = tokio::spawn({
        let (mut client, request) = (second.client(), with_id(&id, &[&who]));
        async move { client.unassign_licenses(request).await.map_err(Failure::from) }
    });
    while by_request(&second, &id).await.is_err() {}
    second.stop().await;
    let failure = waits.await.unwrap().unwrap_err();
    assert!(["unknown", "not_applied"].contains(&failure.outcome.as_str()), "{failure:?}");
    // It may have come after the stop.
    assert!(failure.outcome == "unknown" || failure.reason == "GATEWAY_DRAINING", "{failure:?}");
    sandbox.release("call");
    assert!(!sent.await.unwrap().unwrap().into_inner().replayed);
    assert_eq!(sandbox.unassign_calls().len(), 1);
    first.stop().await;
}

/// One replica is killed around its send, and the caller goes to the other one.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_killed_leaves_at_most_one_call_and_the_others_tell_the_truth() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let (other, url) = (replica(&sandbox, &server).await, server.url());
    let store = [("LICENSE_GATEWAY__TOKEN_STORE__KIND", "redis"), ("LICENSE_GATEWAY__TOKEN_STORE__URL", &*url)];
    killed::one_of_two(&sandbox, &other.client(), &store).await;
}
