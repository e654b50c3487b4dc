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
    for _ in 0..10 {
        sandbox.clear_calls();
        let (id, who) = (new_id(), customer(&sandbox, 0));
        let mut asking = JoinSet::new();
        for n in 0..20 {
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
        assert_eq!(page.operations.len(), 10, "of both");
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
