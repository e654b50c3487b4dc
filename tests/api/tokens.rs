//! The account's token: one exchange for all, never lost by our doing, healed by a new seed.

use std::{fs, sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation, Reply, Sandbox};
use license_gateway::{
    config::{AuditPlace, GrantPlacement},
    server::{Error, Server},
    telemetry::Tracing,
    token::CustodyError,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::Code;

use crate::support::{self, Gateway, PATIENCE, customer, living, sandbox, unlimited};

/// What the gateway's store holds, as bytes.
fn stored(gateway: &Gateway) -> String {
    fs::read_to_string(gateway.state.path().join("state/token.json")).expect("a record")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_costs_one_exchange_however_many_callers_meet_it() {
    for callers in [1, 64, 500] {
        let sandbox = Sandbox::start(unlimited().with_generated_customers(callers)).await.unwrap();
        let gateway = Arc::new(Gateway::start(&sandbox).await);
        gateway.ready().await;
        sandbox.revoke_access_token();
        sandbox.clear_calls();

        let mut asking = JoinSet::new();
        for index in 0..callers {
            let (gateway, customer) = (Arc::clone(&gateway), customer(&sandbox, index));
            asking.spawn(async move { gateway.unassign(&customer).await.expect("applied") });
        }
        let calls = asking.join_all().await;
        assert!(calls.iter().all(|calls| *calls <= 2), "{callers} callers: {calls:?}");
        assert_eq!(sandbox.token_exchanges().len(), 1, "{callers} callers");
        assert_eq!(sandbox.applied_customers().len(), callers);
    }
}

#[tokio::test]
async fn a_late_401_of_an_old_generation_uses_the_new_token_and_no_exchange() {
    let sandbox = sandbox().await;
    let gateway = Arc::new(Gateway::start(&sandbox).await);
    gateway.ready().await;

    // One call hangs in front of Kong with the first token …
    sandbox.fault(Fault::hold("late").at_proxy().on(Operation::Unassign));
    let late = tokio::spawn({
        let (gateway, customer) = (Arc::clone(&gateway), customer(&sandbox, 0));
        async move { gateway.unassign(&customer).await }
    });
    sandbox.wait_for_held("late", 1).await;
    // … while another one meets the revocation and brings the second.
    sandbox.revoke_access_token();
    assert_eq!(gateway.unassign(&customer(&sandbox, 1)).await.unwrap(), 2);
    let exchanges = sandbox.token_exchanges().len();

    sandbox.release("late");
    assert_eq!(late.await.unwrap().unwrap(), 2, "refused, then sent with the token that is there");
    assert_eq!(sandbox.token_exchanges().len(), exchanges);
}

#[tokio::test]
async fn the_new_pair_is_stored_before_it_is_used() {
    let sandbox = sandbox().await;
    let gateway = Arc::new(Gateway::start(&sandbox).await);
    gateway.ready().await;
    sandbox.revoke_access_token();
    // The second try carries the new token: hold it and look at the disk.
    sandbox.fault(Fault::hold("used").on(Operation::Unassign));
    let call = tokio::spawn({
        let (gateway, customer) = (Arc::clone(&gateway), customer(&sandbox, 0));
        async move { gateway.unassign(&customer).await }
    });
    sandbox.wait_for_held("used", 1).await;
    assert!(stored(&gateway).contains(&living(&sandbox)), "the living refresh token is on disk");
    sandbox.release("used");
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_restart_uses_the_stored_token_and_asks_central_nothing() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let state = Arc::clone(&gateway.state);
    gateway.stop().await;
    sandbox.clear_calls();

    // The seed is still in its file, and spent: its fingerprint is known, so it is not presented again.
    let gateway = Gateway::start_in(&sandbox, state, |_| {}).await;
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    assert_eq!(sandbox.token_exchanges().len(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_lost_after_the_commit_is_told_and_a_new_seed_heals_it_without_a_restart() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::reset().and_applied().on(Operation::Token));

    // At first it may have been lost on the way: worth a repeat.
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "CENTRAL_TOKEN_UNAVAILABLE"));
    assert_eq!(failure.outcome, "not_applied");
    let failure = until(&gateway, &customer(&sandbox, 0), "CENTRAL_CREDENTIALS_REJECTED").await;
    assert_eq!((failure.code, failure.outcome.as_str()), (Code::Internal, "not_applied"));
    let exchanges = sandbox.token_exchanges();
    assert_eq!(exchanges.len(), 3, "the first one, the lost one, and one more with the suspect token: {exchanges:?}");

    // Central knows a living pair; an operator puts it in place.
    let seed = living(&sandbox);
    fs::write(gateway.state.path().join("refresh_token"), seed).unwrap();
    let healed = Instant::now() + PATIENCE;
    while let Err(failure) = gateway.unassign(&customer(&sandbox, 0)).await {
        assert!(Instant::now() < healed, "never healed: {failure:?}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(sandbox.token_exchanges().len(), 4);
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_lost_before_the_commit_loses_nothing() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::reset().on(Operation::Token));
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    assert_eq!(failure.reason, "CENTRAL_TOKEN_UNAVAILABLE");
    let wait: u64 = failure.pushback.parse().unwrap();
    assert!((1_000..=5_000).contains(&wait), "{wait}");
    sandbox.wait_for_operation(Operation::Token, 3).await; // presented again, by itself
    let healed = Instant::now() + PATIENCE;
    while gateway.unassign(&customer(&sandbox, 0)).await.is_err() {
        assert!(Instant::now() < healed, "never healed");
        sleep(Duration::from_millis(50)).await;
    }
    gateway.stop().await;
}

/// Asks until the gateway gives this reason.
async fn until(gateway: &Gateway, customer: &str, reason: &str) -> support::Failure {
    let patience = Instant::now() + PATIENCE;
    loop {
        match gateway.unassign(customer).await {
            Err(failure) if failure.reason == reason => return failure,
            other => assert!(Instant::now() < patience, "waited for {reason}, got {other:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_valid_token_is_served_while_central_is_down() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::answer(503).on(Operation::Token).always());
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn wrong_credentials_are_told_without_a_storm() {
    let sandbox = sandbox().await;
    let gateway =
        Gateway::start_with(&sandbox, |config| config.credentials.client_id = "somebody-else".to_owned()).await;
    for _ in 0..20 {
        let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
        assert_eq!((failure.code, failure.reason.as_str()), (Code::Internal, "CENTRAL_CREDENTIALS_REJECTED"));
        assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "-1"));
    }
    assert_eq!(sandbox.token_exchanges().len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn the_grant_travels_in_the_form_or_in_the_query_as_set() {
    use central_sandbox::Placement;

    for (setting, expected) in [(GrantPlacement::Form, Placement::Form), (GrantPlacement::Query, Placement::Query)] {
        let sandbox = sandbox().await;
        let gateway = Gateway::start_with(&sandbox, |config| config.credentials.grant_placement = setting).await;
        gateway.ready().await;
        let exchanges = sandbox.token_exchanges();
        assert_eq!(exchanges.len(), 1);
        assert_eq!(exchanges[0].grant.as_ref().unwrap().placement, expected);
        assert_eq!(exchanges[0].query.is_empty(), setting == GrantPlacement::Form, "secrets stay out of URLs");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_store_is_refused_in_words() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut config = support::config(&sandbox, gateway.state.path());
    // A trail of its own, or that is what it would be refused for.
    let trail = tempfile::tempdir().unwrap();
    config.audit.place = AuditPlace::Directory(trail.path().to_owned());
    let error = Server::bind(config, Tracing::disabled()).await.unwrap_err();
    assert!(matches!(error, Error::Token(CustodyError::Store(_))), "{error:?}");
    let sentence = error.to_string();
    assert!(sentence.contains("held by another process") && sentence.contains("token_store.path"), "{sentence}");
    gateway.stop().await;
}

#[tokio::test]
async fn without_a_seed_the_gateway_starts_says_so_and_takes_one_later() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| {
        let empty = config.credentials.refresh_token_file.as_ref().unwrap();
        fs::remove_file(empty).unwrap();
    })
    .await;
    let failure = until(&gateway, &customer(&sandbox, 0), "CENTRAL_CREDENTIALS_REJECTED").await;
    assert_eq!(failure.outcome, "not_applied");
    // The JSON that Central's "Download Token" button gives.
    let token = living(&sandbox);
    let downloaded = format!(r#"{{"access_token":"x","refresh_token":"{token}","expires_in":7200}}"#);
    fs::write(gateway.state.path().join("refresh_token"), downloaded).unwrap();
    let healed = Instant::now() + PATIENCE;
    while gateway.unassign(&customer(&sandbox, 0)).await.is_err() {
        assert!(Instant::now() < healed, "never adopted");
        sleep(Duration::from_millis(50)).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn stopping_waits_for_the_exchange_that_is_on_its_way() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let state = Arc::clone(&gateway.state);
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold_answer("exchange").on(Operation::Token));
    let caller = tokio::spawn({
        let (mut client, customer) = (gateway.client(), customer(&sandbox, 0));
        async move { client.unassign_licenses(support::include(&[&customer])).await }
    });
    sandbox.wait_for_held("exchange", 1).await;
    let stopping = tokio::spawn(gateway.stop());
    sandbox.release("exchange");
    stopping.await.unwrap();
    caller.await.unwrap().expect("the call on its way is finished");
    let record = fs::read_to_string(state.path().join("state/token.json")).unwrap();
    assert!(record.contains(&living(&sandbox)));
}

#[tokio::test]
async fn an_endless_answer_of_the_token_endpoint_is_not_swallowed() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::new(Reply::Huge(1 << 30)).on(Operation::Token));
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    assert_eq!(failure.reason, "CENTRAL_TOKEN_UNAVAILABLE");
    gateway.stop().await;
}
