//! What the record tells a new process: a living token, a dead one, or nothing that can be understood.

use std::{fs, path::Path, sync::Arc, time::Duration};

use central_sandbox::Sandbox;
use license_gateway::proto::health::health_check_response::ServingStatus;
use serde_json::{Value, json};
use tokio::{net::TcpSocket, time::sleep};

use super::{
    A_LOOK, REJECTED, UNAVAILABLE, applied, edit_record, health, presented, put_seed, refused, shows, stop, store,
    unassign, wait_for,
};
use crate::support::{Gateway, PATIENCE, Process, channel, customer, living, sandbox, unlimited};

#[tokio::test]
async fn a_restart_with_a_valid_token_serves_without_a_call() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let state = Arc::clone(&gateway.state);
    gateway.stop().await;
    sandbox.clear_calls();
    let gateway = Gateway::start_in(&sandbox, state, |_| {}).await;
    shows(&gateway.channel, ServingStatus::Serving).await;
    sleep(A_LOOK).await;
    assert_eq!(sandbox.calls(), []);
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn a_restart_with_an_expired_token_presents_the_refresh_token_once() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let state = Arc::clone(&gateway.state);
    gateway.stop().await;
    edit_record(&store(state.path()).join("token.json"), |record| {
        record["received_at"]["secs_since_epoch"] = json!(1_000);
    });
    sandbox.clear_calls();
    let gateway = Gateway::start_in(&sandbox, state, |_| {}).await;
    shows(&gateway.channel, ServingStatus::Serving).await;
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.unwrap(), 1, "the old token is not tried");
    assert_eq!(sandbox.token_exchanges().len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_lost_chain_stays_lost_over_restarts_until_it_is_seeded() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let state = Arc::clone(&gateway.state);
    crate::support::another_tool_refreshes(&sandbox).await;
    let customer = customer(&sandbox, 0);
    refused("lost", &gateway, &customer, REJECTED).await;
    gateway.stop().await;
    assert_eq!(sandbox.token_exchanges().len(), 1);

    for has_expired in [false, true] {
        if has_expired {
            edit_record(&store(state.path()).join("token.json"), |record| {
                record["received_at"]["secs_since_epoch"] = json!(1_000);
            });
        }
        sandbox.clear_calls();
        let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |_| {}).await;
        refused("still lost", &gateway, &customer, REJECTED).await;
        sleep(A_LOOK).await;
        refused("still lost", &gateway, &customer, REJECTED).await;
        assert_eq!(sandbox.token_exchanges().len(), 0, "the dead token is not presented again");
        if has_expired {
            assert_eq!(health(&gateway.channel).await, ServingStatus::NotServing);
            assert_eq!(sandbox.calls(), [], "Central is left alone");
            put_seed(state.path(), &living(&sandbox));
            applied("healed by a seed", &gateway, &customer).await;
            assert_eq!(sandbox.token_exchanges().len(), 1);
            shows(&gateway.channel, ServingStatus::Serving).await;
        }
        gateway.stop().await;
    }
}

/// Every call with it would only fetch another 401 out of the day's quota.
#[tokio::test]
async fn a_lost_chain_costs_no_further_calls() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    crate::support::another_tool_refreshes(&sandbox).await;
    let customer = customer(&sandbox, 0);
    refused("lost", &gateway, &customer, REJECTED).await;
    sandbox.clear_calls();
    for _request in 0..10 {
        let failure = gateway.unassign(&customer).await.unwrap_err();
        assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), (REJECTED, "not_applied"));
    }
    sleep(A_LOOK).await;
    assert_eq!(sandbox.calls(), [], "Central is left alone");
    put_seed(gateway.state.path(), &living(&sandbox));
    applied("healed by a seed", &gateway, &customer).await;
    gateway.stop().await;
}

/// With the real process: what it says is part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_understood_is_told_left_alone_and_repaired_without_a_restart() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let path = store(dir.path()).join("token.json");
    let customer = customer(&sandbox, 0);
    let first = Process::serve(&sandbox, dir.path(), &[]).await;
    let connection = channel(first.address).await;
    wait_for("a first token", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;
    stop(first).await;
    let good = fs::read(&path).unwrap();
    sandbox.clear_calls();

    for (bytes, problem) in damages(&path, &good, &living(&sandbox)) {
        fs::write(&path, &bytes).unwrap();
        let process = Process::serve(&sandbox, dir.path(), &[]).await;
        let connection = channel(process.address).await;
        assert_eq!(unassign(&connection, &customer).await, Err(UNAVAILABLE.to_owned()), "{problem}");
        assert_eq!(health(&connection).await, ServingStatus::NotServing, "{problem}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{problem}: left as it is");

        fs::write(&path, &good).unwrap();
        wait_for("the repaired record", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;
        shows(&connection, ServingStatus::Serving).await;
        let log = stop(process).await;
        let told = log.iter().map(Value::to_string).find(|line| line.contains(problem));
        let told = told.unwrap_or_else(|| panic!("nobody said {problem}: {log:#?}"));
        assert!(told.contains(path.to_str().unwrap()), "which file: {told}");
        for secret in [&sandbox.settings().client_secret, &living(&sandbox), &sandbox.settings().refresh_token] {
            assert!(log.iter().all(|line| !line.to_string().contains(secret)), "a secret in {log:#?}");
        }
    }
    assert_eq!(sandbox.token_exchanges().len(), 0, "nothing was presented on a guess");
}

/// Ways to spoil a record, and the words for each.
fn damages(path: &Path, good: &[u8], token: &str) -> Vec<(Vec<u8>, &'static str)> {
    let mut flipped = good.to_vec();
    let place = good.windows(token.len()).position(|window| window == token.as_bytes()).expect("the token is in it");
    flipped[place] ^= 1; // still text, still JSON, and another token
    edit_record(path, |record| record["schema"] = json!(2));
    let newer = fs::read(path).unwrap();
    edit_record(path, |record| record["schema"] = json!(1));
    edit_record(path, |record| record["unheard_of"] = json!(true));
    let stranger = fs::read(path).unwrap();
    vec![
        (Vec::new(), "it is damaged"),
        (good[..good.len() / 2].to_vec(), "it is damaged"),
        (flipped, "its checksum does not fit"),
        (newer, "its schema is 2"),
        (stranger, "it makes no sense"),
    ]
}

#[tokio::test]
async fn a_gateway_that_starts_before_central_is_not_ready_and_becomes_so_by_itself() {
    let known = sandbox().await;
    // Bound and not listening: connections are refused, and nobody else gets the port.
    let port = TcpSocket::new_v4().unwrap();
    port.set_reuseaddr(true).unwrap();
    port.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = port.local_addr().unwrap();
    let gateway = Gateway::start_with(&known, |config| {
        config.central.base_url = format!("http://{address}").parse().unwrap();
    })
    .await;
    let customer = customer(&known, 0);
    assert_eq!(health(&gateway.channel).await, ServingStatus::NotServing);
    let failure = gateway.unassign(&customer).await.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), (UNAVAILABLE, "not_applied"));
    let wait: u64 = failure.pushback.parse().unwrap();
    assert!(wait <= 60_000, "{wait}");

    let central = Sandbox::start(central_sandbox::Settings { listen: address, ..unlimited() }).await.unwrap();
    // Nobody asks: health alone tells.
    shows(&gateway.channel, ServingStatus::Serving).await;
    gateway.unassign(&customer).await.unwrap();
    assert_eq!(central.token_exchanges().len(), 1);
    assert_eq!(known.calls(), []);
    gateway.stop().await;
}

/// The start of Central's day: overloaded, then itself again. The seed may be spent after the first answer, so it is
/// presented once more and not more often.
#[tokio::test]
async fn a_seed_that_meets_an_overloaded_central_is_not_lost() {
    use central_sandbox::{Fault, Operation};
    use license_gateway::config::GrantPlacement;

    let sandbox = sandbox().await;
    sandbox.fault(Fault::answer(503).on(Operation::Token).times(1));
    let gateway =
        Gateway::start_with(&sandbox, |config| config.credentials.grant_placement = GrantPlacement::Query).await;
    sandbox.wait_for_operation(Operation::Token, 1).await;
    assert_eq!(health(&gateway.channel).await, ServingStatus::NotServing);
    let look = async || (health(&gateway.channel).await == ServingStatus::Serving).then_some(());
    wait_for("ready", Duration::from_secs(20), look).await;
    let presented = presented(&sandbox);
    assert_eq!(presented.len(), 2);
    assert_eq!(presented[0], presented[1]);
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    gateway.stop().await;
}
