//! Seeds: used once, however often they are put in place; taken over from without a gap.

use std::{fs, sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::config::GrantPlacement;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{
    A_LOOK, REJECTED, UNAVAILABLE, applied, fingerprint, holds_the_living, place, presented, put_seed, refused, stop,
    unassign, wait_for,
};
use crate::support::{Gateway, PATIENCE, Process, channel, config_file, customer, living, sandbox};

#[tokio::test]
async fn a_seed_that_is_put_in_place_a_hundred_times_is_presented_once() {
    let sandbox = sandbox().await;
    let seed = sandbox.settings().refresh_token;
    let state = place();
    for _restart in 0..5 {
        let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |config| {
            config.credentials.grant_placement = GrantPlacement::Query;
        })
        .await;
        gateway.ready().await;
        // Spread over more than one look.
        for time in 0..20 {
            let spelling = if time % 2 == 0 { seed.clone() } else { format!("{{\"refresh_token\":\"{seed}\"}}\n") };
            put_seed(state.path(), &spelling);
            sleep(A_LOOK / 20).await;
        }
        gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
        gateway.stop().await;
    }
    assert_eq!(presented(&sandbox), [fingerprint(&seed)]);
}

/// The same for `token seed`, whose inbox is emptied once its token is known.
#[tokio::test]
async fn a_seed_in_the_inbox_is_taken_once_and_the_file_goes() {
    let sandbox = sandbox().await;
    let gateway =
        Gateway::start_with(&sandbox, |config| config.credentials.grant_placement = GrantPlacement::Query).await;
    gateway.ready().await;
    let inbox = gateway.state.path().join("state/seed");
    let new = operator_logs_in(&sandbox).await;
    for _time in 0..2 {
        fs::write(&inbox, &new).unwrap();
        let is_taken = async || (!inbox.exists() && !presented(&sandbox).is_empty()).then_some(());
        wait_for("the seed to be taken from the inbox", PATIENCE, is_taken).await;
        gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    }
    assert_eq!(presented(&sandbox), [fingerprint(&new)], "the second time it was known");
    assert!(holds_the_living(gateway.state.path(), &sandbox));
    gateway.stop().await;
}

#[tokio::test]
async fn a_new_seed_takes_over_from_a_valid_token_without_a_gap() {
    let sandbox = sandbox().await;
    let gateway =
        Gateway::start_with(&sandbox, |config| config.credentials.grant_placement = GrantPlacement::Query).await;
    gateway.ready().await;
    let new = operator_logs_in(&sandbox).await;
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    let before = newest_generation_used(&sandbox);
    sandbox.fault(Fault::hold("exchange").on(Operation::Token));
    put_seed(gateway.state.path(), &new);

    // Within the look (5 s are promised) it is presented; until Central answers, the old token serves.
    timeout(Duration::from_secs(5), sandbox.wait_for_held("exchange", 1)).await.expect("a look at the seed in time");
    for _request in 0..5 {
        gateway.unassign(&customer(&sandbox, 0)).await.expect("the old chain serves");
    }
    sandbox.release("exchange");
    let is_used = async || {
        gateway.unassign(&customer(&sandbox, 0)).await.expect("the new chain serves");
        (newest_generation_used(&sandbox) > before).then_some(())
    };
    wait_for("the new chain to be used", Duration::from_secs(5), is_used).await;
    assert!(holds_the_living(gateway.state.path(), &sandbox));
    assert_eq!(presented(&sandbox), [fingerprint(&new)]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_lost_chain_is_left_for_a_new_seed_however_often_the_old_one_is_put_back() {
    let sandbox = sandbox().await;
    let gateway =
        Gateway::start_with(&sandbox, |config| config.credentials.grant_placement = GrantPlacement::Query).await;
    gateway.ready().await;
    crate::support::another_tool_refreshes(&sandbox).await;
    refused("lost", &gateway, &customer(&sandbox, 0), REJECTED).await;
    put_seed(gateway.state.path(), &sandbox.settings().refresh_token);
    sleep(A_LOOK).await;
    refused("still lost", &gateway, &customer(&sandbox, 0), REJECTED).await;
    assert_eq!(presented(&sandbox).len(), 1, "the dead token, once; the old seed, never");

    let new = living(&sandbox);
    put_seed(gateway.state.path(), &new);
    applied("healed", &gateway, &customer(&sandbox, 0)).await;
    assert_eq!(presented(&sandbox)[1..], [fingerprint(&new)]);
    gateway.stop().await;
}

/// Whoever mistypes a seed is told so, and the chain that works goes on.
#[tokio::test]
async fn a_mistyped_seed_does_not_cost_a_living_chain() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let state = Arc::clone(&gateway.state);
    put_seed(state.path(), "NobodysRefreshToken0000000000001");
    sandbox.until("the seed is refused", |counters, _| counters.by_status.contains_key(&400)).await;
    sandbox.revoke_access_token();
    applied("gone back", &gateway, &customer(&sandbox, 0)).await;
    gateway.stop().await;

    // A restart does not try the mistyped one again.
    let exchanges = sandbox.token_exchanges().len();
    let gateway = Gateway::start_in(&sandbox, state, |_| {}).await;
    applied("after a restart", &gateway, &customer(&sandbox, 1)).await;
    assert_eq!(sandbox.token_exchanges().len(), exchanges);
    gateway.stop().await;
}

/// The verdict about a seed is that of the Central that gave it; the file with the seed stays where it is.
#[tokio::test]
async fn a_seed_that_was_tried_at_the_wrong_address_is_tried_again_at_the_right_one() {
    let (right, wrong, state) = (sandbox().await, sandbox().await, place());
    let gateway = Gateway::start_in(&right, Arc::clone(&state), |_| {}).await;
    gateway.ready().await;
    let new = operator_logs_in(&right).await;
    gateway.stop().await;

    let gateway = Gateway::start_in(&wrong, Arc::clone(&state), |_| {}).await;
    put_seed(state.path(), &new);
    wrong.until("the seed is refused", |counters, _| counters.by_status.contains_key(&400)).await;
    sleep(A_LOOK).await;
    gateway.stop().await;
    assert_eq!(wrong.token_exchanges().len(), 1, "once at each place");

    let gateway = Gateway::start_in(&right, Arc::clone(&state), |config| {
        config.credentials.grant_placement = GrantPlacement::Query;
    })
    .await;
    put_seed(state.path(), &new);
    let is_tried = async || presented(&right).contains(&fingerprint(&new)).then_some(());
    wait_for("the seed to be tried at the right address", PATIENCE, is_tried).await;
    applied("the seed works", &gateway, &customer(&right, 0)).await;
    gateway.stop().await;
}

/// A store that cannot be written is no missing seed.
#[tokio::test]
async fn a_seed_that_the_store_does_not_take_asks_nobody_for_another_one() {
    let (sandbox, state) = (sandbox().await, place());
    let next = super::store(state.path()).join("token.next");
    fs::create_dir_all(&next).unwrap();
    let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |_| {}).await;
    for _ in 0..2 {
        let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
        assert_eq!(failure.reason, UNAVAILABLE, "{failure:?}");
        sleep(A_LOOK).await;
    }
    fs::remove_dir(&next).unwrap();
    applied("the store takes it", &gateway, &customer(&sandbox, 0)).await;
    gateway.stop().await;
}

/// Whoever takes its place may keep the tokens elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_being_replaced_takes_no_seed() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let mut process = Process::serve(&sandbox, dir.path(), &[]).await;
    let (connection, customer) = (channel(process.address).await, customer(&sandbox, 0));
    wait_for("a first token", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;
    let new = operator_logs_in(&sandbox).await;
    sandbox.fault(Fault::hold("work").on(Operation::Unassign));
    let work = tokio::spawn(async move { unassign(&connection, &customer).await });
    sandbox.wait_for_held("work", 1).await;
    process.terminate();
    process.said("draining: no new requests, what runs is finished").await;
    put_seed(dir.path(), &new);
    sleep(2 * A_LOOK).await;
    sandbox.release("work");
    work.await.unwrap().expect("what runs is finished");
    process.exit().await;
    assert_eq!(sandbox.token_exchanges().len(), 0, "the seed was presented");
    let record = fs::read_to_string(super::store(dir.path()).join("token.json")).unwrap();
    assert!(!record.contains(&new), "the seed was taken");
}

/// Before the first seed, while the chain lives and after it is lost; and not at every look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_holds_no_seed_is_told_once_per_change_whatever_the_state() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let file = config_file(&sandbox, dir.path());
    put_seed(dir.path(), "two words");
    let process = Process::serve_file(&file, &[]).await;
    let (connection, customer) = (channel(process.address).await, customer(&sandbox, 0));
    let asked = async || unassign(&connection, &customer).await;
    assert!(asked().await.is_err(), "nothing was seeded");
    sleep(2 * A_LOOK).await;
    put_seed(dir.path(), &living(&sandbox));
    wait_for("a first token", PATIENCE, async || asked().await.ok()).await;
    for text in ["three more words", "and four more words"] {
        put_seed(dir.path(), text);
        sleep(2 * A_LOOK).await;
    }
    crate::support::another_tool_refreshes(&sandbox).await;
    wait_for("the loss", PATIENCE, async || (asked().await == Err(REJECTED.to_owned())).then_some(())).await;
    put_seed(dir.path(), "which makes it five words");
    sleep(2 * A_LOOK).await;
    drop(connection);
    let log = stop(process).await;
    let told = log.iter().filter(|line| line["message"] == "a file with a refresh token is not used").count();
    assert_eq!(told, 4, "{log:#?}");
}

/// The newest pair whose access token a licensing call carried.
fn newest_generation_used(sandbox: &Sandbox) -> u64 {
    let calls = sandbox.calls();
    let used = calls.iter().filter(|call| call.grant.is_none()).filter_map(|call| call.token_generation);
    used.max().unwrap_or_default()
}

/// A person logs in at Central and downloads a second chain of tokens: the first one lives on.
async fn operator_logs_in(sandbox: &Sandbox) -> String {
    let known = sandbox.credentials();
    let client = reqwest::Client::new();
    let post = |path: &str| client.post(format!("{}{path}", sandbox.base_url()));
    let who = format!(r#"{{"username":"{}","password":"{}"}}"#, known.username, known.password);
    let login = post("/oauth2/authorize/central/api/login").query(&[("client_id", &known.client_id)]).body(who);
    let answer = login.send().await.unwrap();
    let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().map(|line| line.to_str().unwrap()).collect();
    let cookie = |name: &str| -> String {
        let value = cookies.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).expect("a cookie");
        value.split(';').next().unwrap().to_owned()
    };
    let authorize = post("/oauth2/authorize/central/api")
        .query(&[("client_id", known.client_id.as_str()), ("response_type", "code"), ("scope", "all")])
        .header("x-csrf-token", cookie("csrftoken"))
        .header("cookie", format!("session={}", cookie("session")))
        .body(format!(r#"{{"customer_id":"{}"}}"#, known.msp_id));
    let code: Value = serde_json::from_slice(&authorize.send().await.unwrap().bytes().await.unwrap()).unwrap();
    let grant = [
        ("grant_type", "authorization_code"),
        ("client_id", &known.client_id),
        ("client_secret", &known.client_secret),
        ("code", code["auth_code"].as_str().expect("a code")),
    ];
    let answer = post("/oauth2/token").query(&grant).send().await.unwrap();
    let pair: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    sandbox.clear_calls();
    pair["refresh_token"].as_str().expect("a refresh token").to_owned()
}
