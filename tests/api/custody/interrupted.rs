//! The process is stopped in the middle of an exchange, the refresh task panics, somebody comes in between: at named moments.

use std::{fs, path::Path, time::Duration};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use serde_json::Value;
use tokio::time::sleep;
use tonic::transport::Channel;

use super::{A_LOOK, REJECTED, holds_the_living, put_seed, stop, store, unassign, wait_for};
use crate::support::{PATIENCE, Process, another_tool_refreshes, channel, customer, include, living, sandbox};

/// Longer than the bound of an exchange, which is 20 times shorter here: 1.5 s.
const LONG: Duration = Duration::from_millis(2_500);

/// The clock runs on meanwhile, so the bound has passed when the process runs again; but the answer lies in the socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_came_while_the_process_was_stopped_is_taken() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let process = Process::serve(&sandbox, dir.path(), &[("LICENSE_GATEWAY_FAILPOINTS_HURRY", "20")]).await;
    let (connection, customer) = (channel(process.address).await, customer(&sandbox, 0));
    wait_for("a first token", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;

    for round in 0..3 {
        sandbox.clear_calls();
        sandbox.revoke_access_token();
        sandbox.fault(Fault::hold_answer("answer").on(Operation::Token));
        let caller = tokio::spawn({
            let mut client = LicensingServiceClient::new(connection.clone());
            let request = include(&[&customer]);
            async move { client.unassign_licenses(request).await }
        });
        sandbox.wait_for_held("answer", 1).await;
        process.pause();
        sandbox.release("answer");
        sleep(LONG).await;
        process.resume();
        caller.await.unwrap().expect("the call that waited is applied");
        assert_eq!(sandbox.token_exchanges().len(), 1, "round {round}: presented once");
        assert!(holds_the_living(dir.path(), &sandbox), "round {round}");
    }
    drop(connection);
    stop(process).await;
}

/// A process with a first token that does what its moment file says. Bounds are 10 times shorter.
async fn with_failpoints(sandbox: &Sandbox, dir: &Path) -> (Process, Channel) {
    let moment_file = dir.join("moment");
    let more = [
        ("LICENSE_GATEWAY_FAILPOINTS_MOMENT_FILE", moment_file.to_str().unwrap()),
        ("LICENSE_GATEWAY_FAILPOINTS_HURRY", "10"),
    ];
    let process = Process::serve(sandbox, dir, &more).await;
    let connection = channel(process.address).await;
    let first = customer(sandbox, 0);
    wait_for("a first token", PATIENCE, async || unassign(&connection, &first).await.ok()).await;
    (process, connection)
}

fn said(log: &[Value], words: &str) -> bool {
    log.iter().any(|line| line["message"].as_str().is_some_and(|message| message.contains(words)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_task_that_panics_goes_on_and_loses_only_what_was_nowhere_yet() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let (process, connection) = with_failpoints(&sandbox, dir.path()).await;
    let customer = customer(&sandbox, 0);
    let moments = ["about to claim", "claimed", "about to present", "answered", "save: synced", "kept", "published"];
    for moment in moments {
        sandbox.clear_calls();
        fs::write(dir.path().join("moment"), format!("panic: {moment}")).unwrap();
        sandbox.revoke_access_token();
        // Central's answer was in the refresh task's hands and nowhere else.
        let is_lost = moment == "answered";
        let served = async || match unassign(&connection, &customer).await {
            Err(reason) if is_lost && reason == REJECTED => {
                let record = fs::read_to_string(store(dir.path()).join("token.json")).unwrap();
                assert!(record.contains(r#"\"suspect\":true"#), "presented again without a word");
                put_seed(dir.path(), &living(&sandbox));
                None
            }
            other => other.ok(),
        };
        wait_for(moment, PATIENCE, served).await;
        assert!(!dir.path().join("moment").exists(), "{moment}: it did not panic");
        let is_stored = async || holds_the_living(dir.path(), &sandbox).then_some(());
        wait_for(moment, Duration::from_secs(5), is_stored).await;
        let exchanges = sandbox.token_exchanges().len();
        assert_eq!(exchanges, if is_lost { 3 } else { 1 }, "{moment}");
    }
    drop(connection);
    let log = stop(process).await;
    let times = log.iter().filter(|line| line.to_string().contains("the token refresh task failed by a bug")).count();
    assert_eq!(times, moments.len() - 1, "a panic within the store is the store's error: {log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_is_in_memory_only_survives_a_panic_of_the_refresh_task() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let (process, connection) = with_failpoints(&sandbox, dir.path()).await;
    let first = customer(&sandbox, 0);
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold_answer("answer").on(Operation::Token));
    let (on_its_way, customer_id) = (connection.clone(), first.clone());
    let caller = tokio::spawn(async move { unassign(&on_its_way, &customer_id).await });
    sandbox.wait_for_held("answer", 1).await;
    let (here, away) = (store(dir.path()), dir.path().join("away"));
    fs::rename(&here, &away).unwrap();
    fs::write(dir.path().join("moment"), "panic: kept").unwrap();
    sandbox.release("answer");
    assert_eq!(caller.await.unwrap(), Ok(()), "the call that waited is applied");
    assert!(!dir.path().join("moment").exists(), "it did not panic");
    sleep(A_LOOK).await;
    assert_eq!(unassign(&connection, &first).await, Ok(()), "served from memory");
    fs::rename(&away, &here).unwrap();
    let is_stored = async || holds_the_living(dir.path(), &sandbox).then_some(());
    wait_for("the pair to be stored", Duration::from_secs(5), is_stored).await;
    drop(connection);
    stop(process).await;
}

/// `token seed` twice in a row, the second time with the token that works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_comes_into_the_inbox_while_another_is_adopted_is_adopted_too() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let (mut process, connection) = with_failpoints(&sandbox, dir.path()).await;
    another_tool_refreshes(&sandbox).await;
    fs::write(dir.path().join("moment"), "adopted a seed").unwrap();
    let inbox = store(dir.path()).join("seed");
    fs::write(&inbox, "NobodysRefreshToken0000000000001").unwrap();
    process.said("stopped at a failpoint").await;
    fs::write(&inbox, living(&sandbox)).unwrap();
    fs::remove_file(dir.path().join("moment")).unwrap();

    let customer = customer(&sandbox, 0);
    wait_for("healed by the second seed", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;
    let is_empty = async || (!inbox.exists() && !store(dir.path()).join("seed.taken").exists()).then_some(());
    wait_for("no seed lies about", PATIENCE, is_empty).await;
    drop(connection);
    stop(process).await;
}

/// An exchange whose answer is held by Central, in a process with this bound on its drain.
async fn in_an_exchange(sandbox: &Sandbox, dir: &Path, drain: &str) -> Process {
    let process = Process::serve(sandbox, dir, &[("LICENSE_GATEWAY__SERVER__DRAIN_TIMEOUT", drain)]).await;
    let (connection, customer) = (channel(process.address).await, customer(sandbox, 0));
    wait_for("a first token", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold_answer("answer").on(Operation::Token));
    tokio::spawn(async move { unassign(&connection, &customer).await });
    sandbox.wait_for_held("answer", 1).await;
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_outlasts_the_drain_is_stored_before_the_process_ends() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let mut process = in_an_exchange(&sandbox, dir.path(), "100ms").await;
    process.terminate();
    process.said("not everything was finished within server.drain_timeout").await;
    sandbox.release("answer");
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(holds_the_living(dir.path(), &sandbox), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_cuts_the_drain_short_but_not_an_exchange() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let mut process = in_an_exchange(&sandbox, dir.path(), "1m").await;
    process.terminate();
    process.said("draining: no new requests, what runs is finished").await;
    process.terminate();
    process.said("told to stop again: what runs is not finished, but for an exchange of tokens").await;
    sandbox.release("answer");
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(1), "{log:#?}");
    assert!(holds_the_living(dir.path(), &sandbox), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_goes_away_ends_nothing() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let mut process = in_an_exchange(&sandbox, dir.path(), "1m").await;
    process.hang_up();
    process
        .said("SIGHUP is ignored: files that may change are read again when they change; SIGTERM ends the gateway")
        .await;
    process.hang_up();
    sandbox.release("answer");
    let is_stored = async || holds_the_living(dir.path(), &sandbox).then_some(());
    wait_for("the pair to be stored", PATIENCE, is_stored).await;
    stop(process).await;
}

/// It may be all that is left of a living pair, and somebody may be able to read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_cannot_be_understood_is_told_and_left_alone() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    fs::create_dir(store(dir.path())).unwrap();
    let journal = store(dir.path()).join("unsaved.json");
    fs::write(&journal, "half of a rec").unwrap();
    let (process, connection) = with_failpoints(&sandbox, dir.path()).await;
    sandbox.revoke_access_token();
    let customer = customer(&sandbox, 0);
    wait_for("another pair", PATIENCE, async || unassign(&connection, &customer).await.ok()).await;
    assert_eq!(fs::read_to_string(&journal).unwrap(), "half of a rec");
    drop(connection);
    let log = stop(process).await;
    assert!(said(&log, "that an earlier process could not store cannot be read back"), "{log:#?}");
    assert!(log.iter().all(|line| !line.to_string().contains("half of a rec")), "{log:#?}");
}
