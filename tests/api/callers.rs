//! Who is calling and what they may do, through the real server.

pub mod authority;
mod certificates;
mod credentials;
mod ids;
pub mod issuer;
mod keys;
mod tokens;
mod usage;

use std::{fs, path::Path};

use central_sandbox::{Fault, Operation, Sandbox};
use license_gateway::{
    config::{self, AllowedNames, CallerRules, Policy, WhichCaller},
    license::CustomerId,
    proto::{ListServicesRequest, UnassignLicensesRequest, licensing_service_client::LicensingServiceClient},
};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    admin::{page_when, value},
    quota::services,
    support::{Failure, Gateway, PATIENCE, Process, channel, config_file, customer, exclude, include, sandbox},
};

fn deletes(sandbox: &Sandbox) -> usize {
    sandbox.calls().iter().filter(|call| call.operation == Operation::Unassign).count()
}

fn denied(failure: &Failure) {
    assert_eq!((failure.code, failure.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"), "{failure:?}");
    assert_eq!(failure.outcome, "not_applied");
}

fn quota_exhausted(failure: &Failure) {
    let (code, reason) = (failure.code, failure.reason.as_str());
    assert_eq!((code, reason), (Code::ResourceExhausted, "CALLER_QUOTA_EXHAUSTED"), "{failure:?}");
    assert_eq!(failure.outcome, "not_applied");
}

async fn gateway(sandbox: &Sandbox, callers: Vec<CallerRules>) -> Gateway {
    Gateway::start_with(sandbox, |config| config.policy = Policy { read_only: false, callers }).await
}

fn anyone() -> CallerRules {
    CallerRules::everything(WhichCaller::Anonymous)
}

#[tokio::test]
async fn without_a_policy_nobody_can_take_a_licence() {
    let sandbox = sandbox().await;
    let gateway = gateway(&sandbox, vec![]).await;
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    denied(&failure);
    assert!(failure.status.message().contains("no [[callers]] entry for anonymous"), "{failure:?}");
    denied(&gateway.client().list_services(ListServicesRequest {}).await.unwrap_err().into());
    assert_eq!(deletes(&sandbox), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn callers_from_the_network_need_an_identity_unless_anonymous_ones_are_wanted() {
    for (is_wanted, expected) in [(false, Some("CALLER_UNAUTHENTICATED")), (true, None)] {
        let sandbox = sandbox().await;
        let state = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let gateway = Gateway::start_in(&sandbox, state, |config| {
            config.server.listen = ([0, 0, 0, 0], 0).into();
            config.server.allow_anonymous_callers = is_wanted;
        })
        .await;
        let failed = gateway.unassign(&customer(&sandbox, 0)).await.err();
        assert_eq!(failed.as_ref().map(|failure| failure.reason.as_str()), expected);
        assert_eq!(failed.map(|failure| failure.code), expected.map(|_| Code::Unauthenticated));
        assert_eq!(deletes(&sandbox), usize::from(is_wanted));
        let listed = gateway.client().list_services(ListServicesRequest {}).await;
        assert_eq!(listed.is_ok(), is_wanted);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn nothing_is_sent_for_what_the_policy_does_not_allow() {
    let sandbox = sandbox().await;
    let (mine, other) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let only_mine =
        CallerRules { customers: AllowedNames::Only([CustomerId::new(mine.clone()).unwrap()].into()), ..anyone() };
    let gateway = gateway(&sandbox, vec![only_mine]).await;
    let failure = gateway.send(include(&[&mine, &other])).await.unwrap_err();
    denied(&failure);
    assert!(failure.status.message().ends_with(&format!("the customers {other}")), "{failure:?}");
    denied(&gateway.send(exclude(&[&mine])).await.unwrap_err());
    assert_eq!(deletes(&sandbox), 0);
    assert_eq!(gateway.unassign(&mine).await.unwrap(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn customers_of_the_hour_count_when_something_was_done_and_only_then() {
    let sandbox = sandbox().await;
    let gateway = gateway(&sandbox, vec![CallerRules { max_customers_per_hour: Some(2), ..anyone() }]).await;
    // Surely not done: a service that is not listed, a customer that Central does not know.
    for _ in 0..3 {
        let nothing = gateway.send(crate::support::of_service("no_such_service", &["c"])).await.unwrap_err();
        assert_eq!(nothing.reason, "INVALID_REQUEST");
        let nobody = gateway.unassign(&"0".repeat(32)).await.unwrap_err();
        assert_eq!((nobody.reason.as_str(), nobody.outcome.as_str()), ("CUSTOMER_NOT_FOUND", "not_applied"));
    }
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    gateway.unassign(&customer(&sandbox, 1)).await.unwrap();
    sandbox.clear_calls();
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    quota_exhausted(&failure);
    let wait: u64 = failure.pushback.parse().expect("a wait");
    assert!((3_000_000..=3_660_000).contains(&wait), "{wait} ms");
    assert_eq!(deletes(&sandbox), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn the_switch_works_at_once_and_a_bad_file_changes_nothing() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &[]).await;
    let file = config_file(&sandbox, dir.path());
    let text = fs::read_to_string(&file).unwrap();
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    let mut unassign = async || {
        let answer = client.unassign_licenses(include(&[&customer(&sandbox, 0)]));
        timeout(PATIENCE, answer).await.expect("an answer").map(|_| ()).map_err(Failure::from)
    };
    unassign().await.unwrap();

    put(&file, &format!("read_only = true\n{text}"));
    let line = process.line("a new policy holds").await;
    assert_eq!((&line["read_only"], &line["callers"]), (&true.into(), &1.into()));
    sandbox.clear_calls();
    let failure = unassign().await.unwrap_err();
    denied(&failure);
    assert!(failure.status.message().contains("read-only"), "{failure:?}");

    // Not even the switch goes back by a file that cannot be understood.
    put(&file, &format!("read_only = false\n[[callers]]\n{text}"));
    let line = process.line("the policy cannot be loaded; the one before still holds").await;
    assert!(line["problem"].as_str().unwrap().contains("callers[0].identity"), "{line}");
    denied(&unassign().await.unwrap_err());
    assert_eq!(deletes(&sandbox), 0);

    put(&file, &text);
    let works_again = async {
        while unassign().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, works_again).await.expect("the switch goes back");
    process.terminate();
    assert!(process.exit().await.0.success());
}

/// A mistake in a file that asks for `read_only`, in that word even, does not leave it off.
#[tokio::test]
async fn a_bad_file_that_asks_for_the_switch_sets_it() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::serve(&sandbox, dir.path(), &[]).await;
    let file = config_file(&sandbox, dir.path());
    let text = fs::read_to_string(&file).unwrap();
    let mut client = LicensingServiceClient::new(channel(process.address).await);
    let mut unassign = async || {
        let answer = client.unassign_licenses(include(&[&customer(&sandbox, 0)]));
        timeout(PATIENCE, answer).await.expect("an answer").map(|_| ()).map_err(Failure::from)
    };
    let cases = [
        ("raed_only = true\n", "raed_only"),
        // The section stands there twice then, which is a mistake of its own.
        ("[central]\nread_only = true\n", "central"),
        ("read_only = true\n[[callers]]\n", "callers[0].identity"),
    ];
    for (wrong, _) in cases {
        unassign().await.unwrap();
        put(&file, &format!("{wrong}{text}"));
        let failure = async {
            loop {
                if let Err(failure) = unassign().await {
                    return failure;
                }
            }
        };
        denied(&timeout(PATIENCE, failure).await.expect("the switch is set"));
        put(&file, &text);
        let works_again = async { while unassign().await.is_err() {} };
        timeout(PATIENCE, works_again).await.expect("the switch goes back");
    }
    process.terminate();
    let (status, log) = process.exit().await;
    assert!(status.success());
    let message = "the policy cannot be loaded, but for read_only: the one before still holds, without changes";
    let told: Vec<_> = log.iter().filter(|line| line["message"] == message).collect();
    assert_eq!(told.len(), cases.len(), "{told:?}");
    for (line, (_, named)) in told.iter().zip(cases) {
        assert!(line["problem"].as_str().unwrap().contains(named), "{line}");
    }
}

/// Fifty requests wait when the switch is set; what was on its way already is not stopped.
#[tokio::test]
async fn what_waits_when_the_switch_is_set_is_not_sent() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let one_at_a_time = [("LICENSE_GATEWAY__CENTRAL__MAX_IN_FLIGHT", "1")];
    let mut process = Process::serve(&sandbox, dir.path(), &one_at_a_time).await;
    let admin = process.line("admin listening").await["listen"].as_str().unwrap().parse().unwrap();
    let client = LicensingServiceClient::new(channel(process.address).await);
    let send = |index: usize| {
        // Each with other services, so that none of them share a call.
        let services = services(&sandbox, index);
        let request = UnassignLicensesRequest { services, ..include(&[&customer(&sandbox, 0)]) };
        let mut client = client.clone();
        tokio::spawn(async move { client.unassign_licenses(request).await.map(drop).map_err(Failure::from) })
    };
    sandbox.fault(Fault::hold("first").on(Operation::Unassign));
    let first = send(0);
    sandbox.wait_for_held("first", 1).await;
    let waiting: Vec<_> = (1..=50).map(send).collect();
    page_when(admin, "/metrics", |_, text| value(text, "license_gateway_queue_depth", &[]) >= 50.0).await;

    let file = config_file(&sandbox, dir.path());
    let text = fs::read_to_string(&file).unwrap();
    put(&file, &format!("read_only = true\n{text}"));
    process.line("a new policy holds").await;
    sandbox.release("first");
    first.await.unwrap().expect("it was on its way");
    for call in waiting {
        let failure = timeout(PATIENCE, call).await.expect("an answer").unwrap().unwrap_err();
        denied(&failure);
        assert!(failure.status.message().contains("read-only"), "{failure:?}");
    }
    assert_eq!(deletes(&sandbox), 1);
    process.terminate();
    assert!(process.exit().await.0.success());
}

/// As editors and mounted volumes do it: all at once.
fn put(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

/// A gateway's files for TLS in `dir`.
fn tls_files(dir: &Path) -> config::Tls {
    config::Tls {
        certificate_file: dir.join("server.pem"),
        key_file: dir.join("server.key"),
        client_ca_file: Some(dir.join("clients.pem")),
    }
}
