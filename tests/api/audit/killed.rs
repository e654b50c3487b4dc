//! `kill -9` at random moments under load: whatever Central saw has an intent, the next process closes what is open, and
//! the chain holds.
//!
//! 300 kills; `LICENSE_GATEWAY_TEST_AUDIT_KILLS=3000` makes it as many as one likes.

use std::{collections::HashMap, time::Duration};

use central_sandbox::{Call, Fault, Operation, Sandbox};
use license_gateway::proto::licensing_service_client::LicensingServiceClient;
use rand::RngExt as _;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{of_type, records, verify};
use crate::support::{PATIENCE, Process, channel, customer, include, unlimited};

/// Callers at once.
const CALLERS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_central_saw_has_an_intent_however_often_the_process_is_killed() {
    let kills =
        std::env::var("LICENSE_GATEWAY_TEST_AUDIT_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let sandbox = Sandbox::start(unlimited().with_generated_customers(40)).await.unwrap();
    sandbox.fault(Fault::none().answering_late(Duration::from_millis(2)).on(Operation::Unassign).always());
    let dir = tempfile::tempdir().unwrap();
    // Small files, so that a kill meets their changing too.
    let more = [("LICENSE_GATEWAY__AUDIT__MAX_FILE_BYTES", "4096")];
    let mut seen: Vec<Call> = Vec::new();
    for _ in 0..kills {
        let process = Process::serve(&sandbox, dir.path(), &more).await;
        let connection = channel(process.address).await;
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let mut client = LicensingServiceClient::new(connection.clone());
                let ids: Vec<_> = (0..5).map(|n| customer(&sandbox, caller * 5 + n)).collect();
                tokio::spawn(async move {
                    for id in ids.iter().cycle() {
                        // After the kill nobody answers.
                        if client.unassign_licenses(include(&[id])).await.is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        let began = Instant::now();
        while sandbox.unassign_calls().is_empty() {
            assert!(began.elapsed() < PATIENCE, "calls are made");
            sleep(Duration::from_millis(1)).await;
        }
        // The moment itself is the test's subject.
        let moment = Duration::from_micros(rand::rng().random_range(0..40_000));
        sleep(moment).await;
        process.kill().await;
        callers.iter().for_each(tokio::task::JoinHandle::abort);
        sandbox.wait_until_idle().await;
        seen.extend(sandbox.unassign_calls());
        sandbox.clear_calls();
    }
    let process = Process::serve(&sandbox, dir.path(), &more).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.expect("it goes on");
    drop(client);
    seen.extend(sandbox.unassign_calls());
    process.terminate();
    assert_eq!(process.exit().await.0.code(), Some(0));

    let found = records(dir.path());
    let (intents, outcomes) = (of_type(&found, "INTENT"), of_type(&found, "OUTCOME"));
    let mut intended: HashMap<&str, usize> = HashMap::new();
    for intent in &intents {
        *intended.entry(intent["customers"][0].as_str().unwrap()).or_default() += 1;
    }
    let mut sent: HashMap<&str, usize> = HashMap::new();
    for call in &seen {
        let body = call.body.as_ref().expect("a body");
        for id in body["include_customers"].as_array().expect("closed scopes") {
            *sent.entry(id.as_str().unwrap()).or_default() += 1;
        }
    }
    for (id, count) in &sent {
        assert!(intended.get(id).is_some_and(|intents| intents >= count), "{id}: {count} sent, {:?}", intended.get(id));
    }
    let ran = verify(dir.path());
    assert_eq!(ran.code, 0, "{}", ran.out);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(report["open"], 0, "{report:#}");
    let crashed = outcomes.iter().filter(|outcome| outcome["cause"] == "crash").count();
    println!(
        "{kills} kills: {} calls seen, {} intents, {} outcomes, {crashed} of them unknown (crash), {} torn ends",
        seen.len(),
        intents.len(),
        outcomes.len(),
        report["notes"].as_array().unwrap().len(),
    );
    assert!(kills == 0 || crashed > 0, "the kills met nothing that was open");
}
