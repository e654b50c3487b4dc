//! Login with user name and password: heals a lost chain, is rare, and is for nothing else.

use std::{fs, sync::Arc};

use central_sandbox::{Operation, Sandbox};
use license_gateway::{config, proto::health::health_check_response::ServingStatus};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;

use super::{
    A_LOOK, REJECTED, UNAVAILABLE, applied, edit_record, holds_the_living, logins, place, put_seed, refused,
    shows_credentials, store,
};
use crate::support::{Gateway, customer, living, sandbox};

/// A gateway that may log in with this password.
async fn start(sandbox: &Sandbox, state: &Arc<TempDir>, password: &str) -> Gateway {
    let settings = sandbox.settings();
    let password_file = state.path().join("password");
    fs::write(&password_file, password).unwrap();
    Gateway::start_in(sandbox, Arc::clone(state), |config| {
        config.credentials.login =
            Some(config::UserCredentials { username: settings.username, password_file, customer_id: settings.msp_id });
    })
    .await
}

#[tokio::test]
async fn a_lost_chain_is_healed_by_one_login() {
    let (sandbox, state) = (sandbox().await, place());
    let gateway = start(&sandbox, &state, &sandbox.settings().password).await;
    gateway.ready().await;
    assert_eq!(logins(&sandbox), 0, "a seed is not a login");
    for round in 1..=2 {
        crate::support::another_tool_refreshes(&sandbox).await;
        let customer = customer(&sandbox, round);
        gateway.unassign(&customer).await.expect("whoever meets the loss waits for the login");
        let steps: Vec<_> = sandbox.calls().iter().map(|call| call.operation).filter(|step| is_oauth(*step)).collect();
        let expected = [Operation::Token, Operation::Login, Operation::Authorize, Operation::Token];
        assert_eq!(steps, expected, "refused, then the three steps");
        assert!(sandbox.applied_customers().contains(&customer));
        assert!(holds_the_living(state.path(), &sandbox), "the new chain is in the store");
    }
    gateway.stop().await;
}

/// Central has not seen it, so there is no reason to wait half an hour.
#[tokio::test]
async fn a_login_that_never_left_is_not_counted() {
    let (sandbox, state) = (sandbox().await, place());
    let password = sandbox.settings().password;
    let gateway = start(&sandbox, &state, &password).await;
    gateway.ready().await;
    fs::remove_file(state.path().join("password")).unwrap();
    crate::support::another_tool_refreshes(&sandbox).await;
    refused("no password", &gateway, &customer(&sandbox, 0), UNAVAILABLE).await;
    assert_eq!(logins(&sandbox), 0);
    fs::write(state.path().join("password"), &password).unwrap();
    applied("healed by a login", &gateway, &customer(&sandbox, 0)).await;
    assert_eq!(logins(&sandbox), 1);
    gateway.stop().await;
}

fn is_oauth(operation: Operation) -> bool {
    matches!(operation, Operation::Token | Operation::Login | Operation::Authorize)
}

#[tokio::test]
async fn a_wrong_password_costs_one_login_in_half_an_hour_and_a_seed_still_heals() {
    let (sandbox, state) = (sandbox().await, place());
    let gateway = start(&sandbox, &state, "wrong").await;
    gateway.ready().await;
    crate::support::another_tool_refreshes(&sandbox).await;
    let customer = customer(&sandbox, 0);
    // The next login may heal it: callers are told when to come back, and a person that they are needed.
    let told = async |what: &str, gateway: &Gateway| {
        let failure = refused(what, gateway, &customer, UNAVAILABLE).await;
        let wait: u64 = failure.pushback.parse().expect("a wait");
        assert!((1_700_000..=1_800_000).contains(&wait), "{what}: {wait} ms");
        shows_credentials(&gateway.channel, ServingStatus::NotServing).await;
    };
    told("lost", &gateway).await;
    for _ask in 0..10 {
        told("not healed", &gateway).await;
        sleep(A_LOOK / 5).await;
    }
    assert_eq!(logins(&sandbox), 1);

    // A crash loop is no reason for more: accounts get locked.
    gateway.stop().await;
    for _restart in 0..3 {
        let gateway = start(&sandbox, &state, "wrong").await;
        told("not healed by a restart", &gateway).await;
        sleep(A_LOOK).await;
        assert_eq!(logins(&sandbox), 1);
        gateway.stop().await;
    }

    // Half an hour later by the record's clock there is a second one, and a third.
    for login in 2..=3 {
        edit_record(&store(state.path()).join("token.json"), |record| {
            let last = &mut record["intent"]["last_login"]["secs_since_epoch"];
            *last = json!(last.as_u64().expect("the login was counted") - 1_800);
        });
        let gateway = start(&sandbox, &state, "wrong").await;
        if login == 2 {
            told("not healed by a second login", &gateway).await;
        } else {
            refused("no login is left", &gateway, &customer, REJECTED).await;
        }
        sleep(A_LOOK).await;
        assert_eq!(logins(&sandbox), login);
        gateway.stop().await;
    }
    assert_eq!(sandbox.token_exchanges().len(), 1, "the dead token, once, over all restarts");

    let gateway = start(&sandbox, &state, "wrong").await;
    put_seed(state.path(), &living(&sandbox));
    applied("healed by a seed", &gateway, &customer).await;
    assert_eq!(logins(&sandbox), 3);
    shows_credentials(&gateway.channel, ServingStatus::Serving).await;
    gateway.stop().await;
}

/// The password is right and the application is not: a login would not help, and Central counts it.
#[tokio::test]
async fn a_refused_client_never_logs_in_and_loses_nothing() {
    let (sandbox, state) = (sandbox().await, place());
    let (password, secret) = (sandbox.settings().password, sandbox.settings().client_secret);
    let gateway = start(&sandbox, &state, &password).await;
    gateway.ready().await;
    sandbox.configure(|settings| settings.client_secret = "rotated at Central, not here yet".to_owned());
    sandbox.revoke_access_token();
    sandbox.clear_calls();
    let customer = customer(&sandbox, 0);
    refused("the client is refused", &gateway, &customer, REJECTED).await;
    sleep(A_LOOK).await;
    refused("the client is still refused", &gateway, &customer, REJECTED).await;
    assert_eq!((logins(&sandbox), sandbox.token_exchanges().len()), (0, 1));
    gateway.stop().await;

    sandbox.configure(|settings| settings.client_secret = secret);
    let gateway = start(&sandbox, &state, &password).await;
    applied("the chain lives on", &gateway, &customer).await;
    assert_eq!((logins(&sandbox), sandbox.token_exchanges().len()), (0, 2));
    gateway.stop().await;
}

/// What heals a chain must not be spent twice either: the new chain's first answer is lost with the code.
#[tokio::test]
async fn a_login_whose_tokens_are_lost_is_not_repeated_at_once() {
    use central_sandbox::Fault;

    let (sandbox, state) = (sandbox().await, place());
    let gateway = start(&sandbox, &state, &sandbox.settings().password).await;
    gateway.ready().await;
    crate::support::another_tool_refreshes(&sandbox).await;
    sandbox.fault(Fault::reset().and_applied().on(Operation::Token).skip(1));
    let customer = customer(&sandbox, 0);
    refused("lost", &gateway, &customer, UNAVAILABLE).await;
    sandbox.wait_for_operation(Operation::Token, 2).await;
    sleep(A_LOOK).await;
    refused("lost again", &gateway, &customer, UNAVAILABLE).await;
    assert_eq!((logins(&sandbox), sandbox.token_exchanges().len()), (1, 2));
    gateway.stop().await;
}

/// The grant of a login travels where it is set to, too.
#[tokio::test]
async fn a_login_keeps_secrets_out_of_urls() {
    let (sandbox, state) = (sandbox().await, place());
    let gateway = start(&sandbox, &state, &sandbox.settings().password).await;
    gateway.ready().await;
    crate::support::another_tool_refreshes(&sandbox).await;
    applied("healed", &gateway, &customer(&sandbox, 0)).await;
    let secret = ["client_secret", "password", "code", "refresh_token"];
    for call in sandbox.calls() {
        assert!(call.query.iter().all(|(name, _)| !secret.contains(&name.as_str())), "{call:?}");
    }
    gateway.stop().await;
}
