//! The audit trail: nothing is sent that is not in it, and it says what became of everything.

#[cfg(feature = "failpoints")]
mod killed;

use std::{fs, path::Path, sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::{
    config::AuditPlace, proto::licensing_service_client::LicensingServiceClient, server::Server, telemetry::Telemetry,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::{
    admin::{page, page_when, value},
    commands::{Ran, command, run},
    custody::storage::{Mounted, fill},
    support::{Gateway, PATIENCE, Process, channel, config, customer, include, sandbox},
};

/// The records of the trail of a gateway whose files are in `dir`, in order.
pub fn records(dir: &Path) -> Vec<Value> {
    let Ok(entries) = fs::read_dir(dir.join("audit")) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.split_inclusive('\n').filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn of_type<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["type"] == kind).collect()
}

/// What `audit verify` says.
pub fn verify(dir: &Path) -> Ran {
    run(&["audit", "verify", "--json", "--path", dir.join("audit").to_str().unwrap()])
}

fn is_whole(dir: &Path) {
    let ran = verify(dir);
    assert_eq!(ran.code, 0, "{}", ran.out);
}

#[tokio::test]
async fn an_intent_is_on_disk_before_the_call_and_an_outcome_before_the_answer() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("call").on(Operation::Unassign));
    let (mut client, request) = (gateway.client(), include(&[&customer(&sandbox, 0)]));
    let call = tokio::spawn(async move { client.unassign_licenses(request).await });
    sandbox.wait_for_held("call", 1).await;

    let found = records(gateway.state.path());
    let [intent] = of_type(&found, "INTENT")[..] else { panic!("one intent: {found:#?}") };
    assert!(of_type(&found, "OUTCOME").is_empty(), "{found:#?}");
    assert_eq!(intent["scope"], "include_customers");
    assert_eq!(intent["customers"][0], customer(&sandbox, 0));
    assert_eq!(intent["services"][0], "advanced_ap");
    assert_eq!((intent["reason"].as_str(), intent["call"].as_u64()), (Some("test"), Some(1)));
    assert_eq!(intent["identified_by"], "connection");
    assert!(intent["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")));
    assert!(intent["caller"].as_str().unwrap().starts_with("anonymous 127.0.0.1:"), "{intent}");

    sandbox.release("call");
    let operation_id = call.await.unwrap().unwrap().into_inner().operation_id;
    let found = records(gateway.state.path());
    let [outcome] = of_type(&found, "OUTCOME")[..] else { panic!("one outcome: {found:#?}") };
    assert_eq!((&outcome["outcome"], &outcome["http_status"]), (&"applied".into(), &200.into()));
    assert_eq!((outcome["operation_id"].as_str().unwrap(), outcome["calls"].as_u64()), (&*operation_id, Some(1)));
    assert_eq!(of_type(&found, "INTENT")[0]["operation_id"], *operation_id);
    assert!(outcome["duration_ms"].is_u64(), "{outcome}");
    is_whole(gateway.state.path());
    gateway.stop().await;
}

#[tokio::test]
async fn a_repeat_is_another_call_of_the_same_operation() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.revoke_access_token();
    gateway.unassign(&customer(&sandbox, 0)).await.expect("applied after a 401");
    let found = records(gateway.state.path());
    let calls: Vec<_> = of_type(&found, "INTENT").iter().map(|intent| intent["call"].as_u64().unwrap()).collect();
    assert_eq!(calls, [1, 2]);
    let operations: Vec<_> = found.iter().filter_map(|record| record["operation_id"].as_str()).collect();
    assert_eq!(operations.len(), 3, "two intents, one outcome: {found:#?}");
    assert!(operations.iter().all(|id| *id == operations[0]));
    gateway.stop().await;
}

#[tokio::test]
async fn a_partial_outcome_names_whom_it_is_about() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let (first, second) = (customer(&sandbox, 0), customer(&sandbox, 1));
    sandbox.script(Operation::Unassign, [Fault::answer(413), Fault::none(), Fault::answer(500)]);
    let failure = gateway.send(include(&[&first, &second])).await.unwrap_err();
    assert_eq!(failure.outcome, "partial");
    let found = records(gateway.state.path());
    let named: Vec<_> = of_type(&found, "INTENT").iter().map(|intent| intent["customers"].clone()).collect();
    assert_eq!(named, [serde_json::json!([first, second]), serde_json::json!([first]), serde_json::json!([second])]);
    let outcome = of_type(&found, "OUTCOME")[0];
    assert_eq!((&outcome["outcome"], &outcome["cause"]), (&"partial".into(), &"CENTRAL_INTERNAL".into()));
    let parts = serde_json::json!({ "applied": [first], "not_applied": [], "unknown": [second] });
    assert_eq!(outcome["parts"], parts);
    gateway.stop().await;
}

/// While the first call is on its way, 40 requests wait; they travel together, and so do their intents.
#[tokio::test]
async fn operations_that_share_a_call_share_a_sync() {
    let sandbox = Sandbox::start(crate::support::unlimited().with_generated_customers(41)).await.unwrap();
    let gateway = Gateway::start_with(&sandbox, |config| config.central.max_in_flight = 1).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("first").on(Operation::Unassign));
    let call = |index| {
        let (mut client, request) = (gateway.client(), include(&[&customer(&sandbox, index)]));
        tokio::spawn(async move { client.unassign_licenses(request).await })
    };
    let first = call(40);
    sandbox.wait_for_held("first", 1).await;
    let others: Vec<_> = (0..40).map(call).collect();
    let all_wait = |_, text: &str| value(text, "license_gateway_queue_depth", &[]) > 39.5;
    page_when(gateway.admin, "/metrics", all_wait).await;
    sandbox.release("first");
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    assert_eq!(sandbox.unassign_calls().len(), 2);
    let found = records(gateway.state.path());
    let together: Vec<_> = of_type(&found, "INTENT").into_iter().filter(|intent| intent["travelling"] == 40).collect();
    assert_eq!(together.len(), 40);
    assert!(together.iter().all(|intent| intent["at"] == together[0]["at"]), "one write");
    is_whole(gateway.state.path());
    gateway.stop().await;
}

/// Refuses changes, and says why; and says so to the metrics.
async fn refuses(gateway: &Gateway, sandbox: &Sandbox) {
    for index in 0..5 {
        let failure = gateway.unassign(&customer(sandbox, index % 3)).await.expect_err("the trail cannot be written");
        let told = (failure.code, failure.reason.as_str(), failure.outcome.as_str(), failure.pushback.as_str());
        assert_eq!(told, (Code::FailedPrecondition, "AUDIT_UNAVAILABLE", "not_applied", "-1"));
    }
}

/// Needs the right to mount a tmpfs.
#[tokio::test]
async fn nothing_is_sent_while_the_disk_is_full() {
    let sandbox = sandbox().await;
    let state = Arc::new(tempfile::tempdir().unwrap());
    let disk = Mounted::over(&state.path().join("audit"), "size=64k");
    let gateway = Gateway::start_in(&sandbox, Arc::clone(&state), |_| {}).await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("there is room");
    let filler = fill(&disk.0);
    sandbox.clear_calls();
    // What fits behind the last record in its block is still taken: a few records at most.
    let began = Instant::now();
    while gateway.unassign(&customer(&sandbox, 0)).await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "the disk is full");
    }
    sandbox.clear_calls();
    refuses(&gateway, &sandbox).await;
    assert_eq!(sandbox.unassign_calls().len(), 0, "nothing was sent");
    // Reads go on.
    gateway.ready().await;

    fs::remove_file(filler).unwrap();
    gateway.unassign(&customer(&sandbox, 1)).await.expect("there is room again");
    is_whole(state.path());
    gateway.stop().await;
    let found = records(state.path());
    let open: Value = serde_json::from_str(&verify(state.path()).out).unwrap();
    assert_eq!(open["open"], 0, "{found:#?}");
    drop(disk);
}

/// Needs the right to mount a tmpfs.
#[tokio::test]
async fn nothing_is_sent_while_the_directory_cannot_be_written() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.unassign(&customer(&sandbox, 0)).await.expect("it can be written");
    sandbox.clear_calls();
    let over = Mounted::over(&gateway.state.path().join("audit"), "ro,size=4k");
    refuses(&gateway, &sandbox).await;
    assert_eq!(sandbox.unassign_calls().len(), 0, "nothing was sent");
    drop(over);
    gateway.unassign(&customer(&sandbox, 1)).await.expect("it can be written again");
    is_whole(gateway.state.path());
    gateway.stop().await;
}

/// The trail fails while Central is at work: the caller gets their answer, and the outcome is written when it can be.
#[tokio::test]
async fn an_outcome_that_cannot_be_written_is_written_later() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold_answer("answer").on(Operation::Unassign));
    let (mut client, request) = (gateway.client(), include(&[&customer(&sandbox, 0)]));
    let call = tokio::spawn(async move { client.unassign_licenses(request).await });
    sandbox.wait_for_held("answer", 1).await;
    let (here, away) = (gateway.state.path().join("audit"), gateway.state.path().join("away"));
    fs::rename(&here, &away).unwrap();
    sandbox.release("answer");
    call.await.unwrap().expect("it was applied, whatever becomes of the record");
    let (_, metrics) = page(gateway.admin, "/metrics").await;
    assert!(value(&metrics, "license_gateway_audit_failures_total", &[]) > 0.5, "it is measured");
    fs::rename(&away, &here).unwrap();
    let began = Instant::now();
    while of_type(&records(gateway.state.path()), "OUTCOME").is_empty() {
        assert!(began.elapsed() < PATIENCE, "nobody asks for anything, and it is written");
        sleep(Duration::from_millis(50)).await;
    }
    is_whole(gateway.state.path());
    gateway.stop().await;
}

#[tokio::test]
async fn a_second_process_and_a_trail_that_was_changed_are_refused_at_the_start() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    let start = async |store: &str| {
        let mut config = config(&sandbox, gateway.state.path());
        config.token_store.path = gateway.state.path().join(store);
        let telemetry = Telemetry::start(&config.telemetry).unwrap();
        Server::bind(config, telemetry.tracing()).await.map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = start("another").await.unwrap_err();
    assert!(refused.contains("another process writes the audit trail"), "{refused}");
    let state = Arc::clone(&gateway.state);
    gateway.stop().await;

    let file = state.path().join("audit/audit-0000000001.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("advanced_ap", "advanced_xx")).unwrap();
    let mut config = config(&sandbox, state.path());
    config.token_store.path = state.path().join("third");
    let telemetry = Telemetry::start(&config.telemetry).unwrap();
    let refused = Server::bind(config, telemetry.tracing()).await.map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("the audit trail is damaged"), "{refused}");
    let ran = verify(state.path());
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains("it was edited"), "{}", ran.out);
}

/// The log's one line of an operation is a copy, and remembers the end of the chain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_remembers_the_chain_and_people_can_read_the_trail() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &[]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    let asked_for = customer(&sandbox, 0);
    let answer = client.unassign_licenses(include(&[&asked_for])).await.unwrap().into_inner();
    let line = process.line("unassign finished").await;
    assert_eq!(line["customers"], asked_for);
    assert_eq!((line["identified_by"].as_str(), line["http_status"].as_u64()), (Some("connection"), Some(200)));
    let path = dir.path().join("audit").to_str().unwrap().to_owned();
    let (seq, hash) = (line["audit_seq"].as_u64().unwrap(), line["audit_hash"].as_str().unwrap());
    let expect = format!("{seq}:{hash}");
    assert_eq!(run(&["audit", "verify", "--path", &path, "--expect", &expect]).code, 0);
    let other = format!("{seq}:{}", "0".repeat(64));
    let ran = run(&["audit", "verify", "--path", &path, "--expect", &other]);
    assert_eq!(ran.code, 1, "{}", ran.out);
    assert!(ran.out.contains("written anew"), "{}", ran.out);

    let id = &answer.operation_id;
    let table = run(&["audit", "show", "--path", &path, "--operation", &id[..18]]);
    assert!(table.out.contains(id) && table.out.contains(&asked_for) && table.out.contains("applied"), "{}", table.out);
    let json = run(&["audit", "show", "--path", &path, "--customer", &asked_for, "--since", "1h", "--json"]);
    let types: Vec<_> =
        json.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].clone()).collect();
    assert_eq!(types, ["INTENT", "OUTCOME"], "{}", json.out);
    for nothing in [["--customer", "nobody"], ["--operation", "ffff"], ["--since", "2999-01-01T00:00:00Z"]] {
        let ran = run(&[&["audit", "show", "--path", &path], &nothing[..]].concat());
        assert_eq!(ran.out.trim(), "no such operations", "{nothing:?}");
    }
    drop(client);
    process.terminate();
    assert_eq!(process.exit().await.0.code(), Some(0));
}

/// Between the lines of the log, for a collector.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_may_go_to_standard_output() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::serve(&sandbox, dir.path(), &[("LICENSE_GATEWAY__AUDIT__PATH", "stdout")]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap();
    drop(client);
    process.terminate();
    let (_, lines) = process.exit().await;
    let types: Vec<_> = lines.iter().filter_map(|line| line["type"].as_str()).collect();
    assert_eq!(types, ["OPENED", "INTENT", "OUTCOME"], "{lines:#?}");
    assert!(!dir.path().join("audit").exists());
}

#[tokio::test]
async fn what_was_never_sent_is_not_in_the_trail() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| {
        assert!(matches!(config.audit.place, AuditPlace::Directory(_)));
    })
    .await;
    gateway.ready().await;
    gateway.send(include(&[])).await.unwrap_err();
    gateway.send(crate::support::everyone()).await.unwrap_err();
    let found = records(gateway.state.path());
    assert_eq!(found.len(), 1, "the file's first record alone: {found:#?}");
    gateway.stop().await;
}

/// SIGXFSZ, of a write past RLIMIT_FSIZE, would end the process.
#[tokio::test]
async fn nothing_is_sent_while_files_may_not_grow() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &[]).await;
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.expect("files may grow");
    process.limit_file_size(Some(1));
    sandbox.clear_calls();
    let refused = client.unassign_licenses(include(&[&customer(&sandbox, 1)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(sandbox.unassign_calls().len(), 0, "nothing was sent");
    let line = process.line("the audit trail cannot be written: no changes are made until it can").await;
    assert!(line["error"].as_str().unwrap().contains("File too large"), "{line}");
    process.limit_file_size(None);
    client.unassign_licenses(include(&[&customer(&sandbox, 1)])).await.expect("files may grow again");
    process.terminate();
    assert!(process.exit().await.0.success());
    is_whole(dir.path());
}

#[tokio::test]
async fn a_trail_that_cannot_be_shown_is_told() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    for index in 0..3 {
        gateway.unassign(&customer(&sandbox, index)).await.unwrap();
    }
    let path = gateway.state.path().join("audit");
    let path = path.to_str().unwrap();
    for arguments in [
        &["audit", "show", "--path", path, "--json"][..],
        &["audit", "show", "--path", path],
        &["audit", "verify", "--path", path],
        &["check-config", "--list"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran = Ran::from(command(arguments).stdout(full).output().unwrap());
        assert_eq!(ran.code, 1, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains("standard output cannot be written: No space left"), "{arguments:?}: {}", ran.err);
    }
    gateway.stop().await;
}
