//! Two gateways on one token store, and nothing goes wrong.

use std::{path::PathBuf, sync::Arc};

use license_gateway::config::{RedisStore, StoreKind};
use tokio::task::JoinSet;

use crate::{
    redis_server::RedisServer,
    support::{Gateway, customer, sandbox},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_one_pair_and_present_each_refresh_token_once() {
    let (sandbox, server) = (sandbox().await, RedisServer::start());
    let store = RedisStore {
        url: server.url().parse().unwrap(),
        username: None,
        password_file: None::<PathBuf>,
        ca_file: None,
        client_certificate_file: None,
        client_key_file: None,
        key: "license-gateway:token".to_owned(),
    };
    let mut gateways = Vec::new();
    for _ in 0..2 {
        // All have the same seed mounted.
        let kind = StoreKind::Redis(store.clone());
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
        assert!(!gateway.state.path().join("state").exists(), "all was stored where it belongs");
    }
}
