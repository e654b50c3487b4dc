//! What a caller is told is true where paths cross: a deadline in the middle of a split, a list that moves, a policy that
//! changes while requests wait. What one request may cost the others: [`sharing`]; connections that a peer closes:
//! [`connections`].

mod connections;
mod sharing;

use std::time::Duration;

use central_sandbox::{Answer, Fault, Operation, RateHeaders, Reply, Sandbox, Settings};
use license_gateway::{
    config::{CallerRules, WhichCaller},
    proto::{PartialOutcome, UnassignLicensesRequest},
};
use prost::Message as _;
use serde_json::Value;
use tokio::{task::JoinHandle, time::sleep};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    audit::records,
    failures::faults,
    quota::NOBODY,
    support::{Failure, Gateway, PATIENCE, customer, everyone, include, look, sandbox, unlimited},
};

fn anyone() -> CallerRules {
    CallerRules::everything(WhichCaller::Anonymous)
}

/// A gateway that allows open scopes, in front of an account of so many customers.
async fn open(customers: usize) -> (Sandbox, Gateway) {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(customers)).await.unwrap();
    let gateway = Gateway::start_with(&sandbox, |config| config.central.allow_open_scopes = true).await;
    gateway.ready().await;
    (sandbox, gateway)
}

fn ids(sandbox: &Sandbox, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|index| customer(sandbox, index)).collect()
}

fn include_all(ids: &[String]) -> UnassignLicensesRequest {
    include(&ids.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Sends in the background; the caller waits so long at most.
fn send(
    gateway: &Gateway,
    wanted: UnassignLicensesRequest,
    timeout: Option<Duration>,
) -> JoinHandle<Result<u32, Failure>> {
    let (mut client, mut request) = (gateway.client(), tonic::Request::new(wanted));
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    tokio::spawn(async move {
        let answer = client.unassign_licenses(request).await;
        answer.map(|response| response.into_inner().call_count).map_err(Failure::from)
    })
}

/// The one outcome in the audit trail.
async fn outcome(gateway: &Gateway) -> Value {
    for _ in 0..PATIENCE.as_millis() / 10 {
        let found = records(gateway.state.path());
        if let Some(outcome) = found.into_iter().find(|record| record["type"] == "OUTCOME") {
            return outcome;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("no outcome: {:#?}", records(gateway.state.path()))
}

/// Central takes 600 customers in a call. The first half of 1,000 is accepted just after the caller's deadline, the second
/// half is not sent any more.
#[tokio::test]
async fn an_applied_half_is_told_recorded_and_counted() {
    let six_hundred = Settings { max_body_bytes: 21_200, ..unlimited().with_generated_customers(2_000) };
    let sandbox = Sandbox::start(six_hundred).await.unwrap();
    let limited = CallerRules { max_customers_per_hour: Some(1_000), ..anyone() };
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.policy.callers = vec![limited];
        config.central.max_in_flight = 1; // one half after the other
    })
    .await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("half").on(Operation::Unassign));
    let asked = ids(&sandbox, 0..1_000);
    let call = send(&gateway, include_all(&asked), Some(Duration::from_secs(3)));
    sandbox.wait_for_held("half", 1).await;
    let failure = call.await.unwrap().unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("DEADLINE_EXCEEDED", "partial"));
    let details = tonic_types::pb::Status::decode(failure.status.details()).unwrap().details;
    let partial = details.iter().find(|any| any.type_url.ends_with("PartialOutcome")).expect("a PartialOutcome");
    let partial = PartialOutcome::decode(&*partial.value).unwrap();
    assert_eq!((partial.applied_count, partial.not_applied_count, partial.unknown_count), (0, 500, 500));

    sandbox.release("half");
    let recorded = outcome(&gateway).await;
    assert_eq!(recorded["outcome"], "partial", "{recorded}");
    let parts = serde_json::json!({ "applied": asked[..500], "not_applied": asked[500..], "unknown": [] });
    assert_eq!(recorded["parts"], parts);
    let refused = sandbox.unassign_calls().iter().filter(|call| call.status == Some(413)).count();
    assert_eq!((sandbox.applied_customers().len(), refused), (500, 1), "{} calls", sandbox.unassign_calls().len());

    // The half that was not sent is given back, the applied half is not: 1,000 in the hour, and no more.
    let others = ids(&sandbox, 1_000..2_000);
    let mut next = others.chunks(100);
    let mut chunk = next.next().unwrap();
    for _ in 0..PATIENCE.as_millis() / 10 {
        match gateway.send(include_all(chunk)).await {
            Ok(_) if sandbox.applied_customers().len() >= 1_100 => break,
            Ok(_) => chunk = next.next().unwrap(),
            Err(failure) => {
                assert_eq!(failure.reason, "CALLER_QUOTA_EXHAUSTED");
                if sandbox.applied_customers().len() >= 1_000 {
                    break;
                }
                sleep(Duration::from_millis(10)).await; // what is given back is written first
            }
        }
    }
    assert_eq!(sandbox.applied_customers().len(), 1_000);
    gateway.stop().await;
}

/// The pages of the list overlap, so that a customer is on none of them; or the list is empty.
#[tokio::test]
async fn nobody_is_affected_that_no_preview_showed() {
    let (sandbox, gateway) = open(249).await;
    let bound = gateway.bound(everyone()).await;
    let refused = |failure: &Failure| {
        assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("CENTRAL_UNEXPECTED", "not_applied"));
        assert!(failure.status.message().contains("list of customers"), "{}", failure.status.message());
    };
    sandbox.configure(|settings| settings.customers_move = true);
    refused(&gateway.preview(&everyone(), 0).await.unwrap_err());
    refused(&gateway.send(bound.clone()).await.unwrap_err());

    sandbox.configure(|settings| settings.customers_move = false);
    let nobody = Fault::new(Reply::Answer(Answer::new(200).body(r#"{"customers":[],"total":0}"#)));
    sandbox.fault(nobody.on(Operation::Customers).times(2));
    refused(&gateway.preview(&everyone(), 0).await.unwrap_err());
    refused(&gateway.send(bound.clone()).await.unwrap_err());
    assert!(sandbox.unassign_calls().is_empty());

    gateway.send(bound).await.expect("the list is as it was previewed");
    gateway.stop().await;
}

/// A proxy or a library says that it sends this again; nobody knows what became of the first one.
#[tokio::test]
async fn an_announced_repeat_is_never_sent() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let announced = |header: &'static str, value: &'static str| {
        let mut request = tonic::Request::new(include(&[&customer(&sandbox, 0)]));
        request.metadata_mut().insert(header, value.parse().unwrap());
        request
    };
    for (header, value) in [("grpc-previous-rpc-attempts", "1"), ("x-envoy-attempt-count", "2")] {
        let failure = Failure::from(gateway.client().unassign_licenses(announced(header, value)).await.unwrap_err());
        assert_eq!((failure.code, failure.reason.as_str()), (Code::Aborted, "REPEATED_BY_PROXY"));
        assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("unknown", "-1"));
    }
    assert!(sandbox.unassign_calls().is_empty());
    for (header, value) in [("grpc-previous-rpc-attempts", "0"), ("x-envoy-attempt-count", "1")] {
        gateway.client().unassign_licenses(announced(header, value)).await.expect("a first attempt");
    }
    // A read may be repeated.
    let mut request = tonic::Request::new(look(&everyone(), 0));
    request.metadata_mut().insert("grpc-previous-rpc-attempts", "1".parse().unwrap());
    gateway.client().preview_unassign_licenses(request).await.expect("a preview");
    gateway.stop().await;
}

async fn failed_preview(gateway: &Gateway, patience: Duration) -> Failure {
    let mut request = tonic::Request::new(look(&everyone(), 0));
    request.set_timeout(patience);
    let failure = Failure::from(gateway.client().preview_unassign_licenses(request).await.unwrap_err());
    let wait = failure.status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    assert!(wait.is_some(), "the wait is told in any case: {failure:?}");
    assert_eq!(failure.outcome, "not_applied");
    failure
}

/// A library that follows the pushback would sleep past its caller's deadline.
#[tokio::test(start_paused = true)]
async fn a_read_is_not_told_to_wait_past_its_deadline() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let a_minute = Answer::new(429).rate_headers(RateHeaders::None).header("Retry-After", "60");
    sandbox.fault(Fault::new(Reply::Answer(a_minute)).on(Operation::Customers));
    let failure = failed_preview(&gateway, Duration::from_secs(20)).await;
    assert_eq!((failure.reason.as_str(), failure.pushback.as_str()), ("CENTRAL_RATE_LIMITED", "-1"));
    gateway.stop().await;

    // Central is down, and is not asked for a second or two.
    let sandbox = crate::support::sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::answer(503).on(Operation::Unassign).always());
    for _ in 0..5 {
        gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    }
    for (patience, may_wait) in [(Duration::from_millis(300), false), (PATIENCE, true)] {
        let failure = failed_preview(&gateway, patience).await;
        assert_eq!(failure.reason, "CENTRAL_UNREACHABLE");
        assert_eq!(failure.pushback != "-1", may_wait, "{failure:?}");
    }
    gateway.stop().await;
}

/// How long a request may wait in the queue and how long its caller waits are two things.
#[tokio::test(start_paused = true)]
async fn a_request_that_waited_long_is_repeated_while_its_caller_waits() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.central.max_in_flight = 1;
        config.central.timeout = Duration::from_secs(30);
        config.central.max_wait = Duration::from_secs(10);
    })
    .await;
    gateway.ready().await;
    let slow = Fault::none().answering_late(Duration::from_millis(9_900)).on(Operation::Unassign);
    sandbox.script(Operation::Unassign, [slow, Fault::answer(429).on(Operation::Unassign)]);
    let first = send(&gateway, include(&[&customer(&sandbox, 0)]), None);
    sandbox.wait_for_operation(Operation::Unassign, 1).await;
    let waited = send(&gateway, include(&[&customer(&sandbox, 1)]), Some(Duration::from_mins(1)));
    first.await.unwrap().expect("applied");
    assert_eq!(waited.await.unwrap().expect("repeated after the 429"), 2);

    let slow = Fault::none().answering_late(Duration::from_millis(9_900)).on(Operation::Unassign);
    sandbox.script(Operation::Unassign, [slow, Fault::answer(401).on(Operation::Unassign)]);
    let first = send(&gateway, include(&[&customer(&sandbox, 2)]), None);
    sandbox.wait_for_operation(Operation::Unassign, 4).await;
    // The exchange for the newer token takes a while too.
    sandbox.fault(Fault::none().answering_late(Duration::from_millis(500)).on(Operation::Token));
    let waited = send(&gateway, include(&[&customer(&sandbox, 3)]), Some(Duration::from_mins(1)));
    first.await.unwrap().expect("applied");
    assert_eq!(waited.await.unwrap().expect("repeated with the newer token"), 2);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preview_never_ends_as_unknown() {
    for (name, fault, _) in faults() {
        let sandbox = sandbox().await;
        let gateway = Gateway::start_with(&sandbox, |config| config.central.timeout = Duration::from_secs(2)).await;
        gateway.ready().await;
        sandbox.fault(fault.on(Operation::Customers));
        if let Err(failure) = gateway.preview(&everyone(), 0).await {
            assert_eq!(failure.outcome, "not_applied", "{name}: {failure:?}");
            assert_ne!(failure.code, Code::Unknown, "{name}: {failure:?}");
        }
        gateway.stop().await;
        sandbox.stop().await;
    }
}

/// Two calls for each preview: the list, and automatic licensing.
#[tokio::test]
async fn a_preview_that_the_hour_has_no_reads_for_is_refused() {
    let sandbox = sandbox().await;
    let rules = CallerRules { max_reads_per_hour: 4, ..anyone() };
    let gateway = Gateway::start_with(&sandbox, |config| config.policy.callers = vec![rules]).await;
    gateway.ready().await;
    sandbox.clear_calls();
    for _ in 0..2 {
        assert_eq!(gateway.preview(&everyone(), 0).await.expect("within the quota").call_count, 2);
    }
    let failure = gateway.preview(&everyone(), 0).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "CALLER_QUOTA_EXHAUSTED"));
    assert_eq!(failure.outcome, "not_applied");
    let details = failure.status.get_error_details();
    let [violation] = &details.quota_failure().unwrap().violations[..] else { panic!("{failure:?}") };
    assert!(violation.description.contains("max_reads_per_hour"), "{violation:?}");
    let wait = details.retry_info().and_then(|info| info.retry_delay).expect("a wait");
    assert!(wait > Duration::from_mins(50) && wait <= Duration::from_mins(61), "{wait:?}");
    assert_eq!(sandbox.calls().len(), 4, "Central is not asked");
    gateway.unassign(&customer(&sandbox, 0)).await.expect("changes are another matter");
    gateway.stop().await;
}

/// The hour that is spent is told as a quota.
#[tokio::test]
async fn an_hour_that_is_spent_is_a_quota_with_a_wait() {
    let sandbox = sandbox().await;
    let rules = CallerRules { max_customers_per_hour: Some(1), ..anyone() };
    let gateway = Gateway::start_with(&sandbox, |config| config.policy.callers = vec![rules]).await;
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    let failure = gateway.unassign(&customer(&sandbox, 1)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "CALLER_QUOTA_EXHAUSTED"));
    let details = failure.status.get_error_details();
    let [violation] = &details.quota_failure().unwrap().violations[..] else { panic!("{failure:?}") };
    assert_eq!(violation.subject, "license-gateway: customers per hour");
    assert!(details.retry_info().and_then(|info| info.retry_delay).is_some(), "{failure:?}");
    gateway.stop().await;
}

/// A web page of a proxy in Central's place says nothing about one of 64 requests.
#[tokio::test]
async fn a_web_page_refuses_a_batch_with_one_call() {
    let sandbox = Sandbox::start(unlimited().with_generated_customers(65)).await.unwrap();
    let gateway = Gateway::start_with(&sandbox, |config| config.central.max_in_flight = 1).await;
    gateway.ready().await;
    let page = Fault::new(Reply::Answer(Answer::new(404).dialect(central_sandbox::Dialect::Html)));
    sandbox.script(Operation::Unassign, [Fault::hold("first"), page.always()]);
    let first = send(&gateway, include(&[&customer(&sandbox, 64)]), None);
    sandbox.wait_for_held("first", 1).await;
    let waiting: Vec<_> = (0..64).map(|n| send(&gateway, include(&[&customer(&sandbox, n)]), None)).collect();
    crate::previews::queued(&gateway, 64.0).await;
    sandbox.release("first");
    first.await.unwrap().expect("applied");
    for call in waiting {
        let failure = call.await.unwrap().unwrap_err();
        assert_eq!((failure.code, failure.reason.as_str()), (Code::Internal, "CENTRAL_UNEXPECTED"));
        assert_eq!(failure.outcome, "not_applied");
    }
    assert_eq!(sandbox.unassign_calls().len(), 2, "the first one, and one for the 64");
    gateway.stop().await;
}

/// Halves of a refused batch find the unknown customers; everybody else is applied, however long that takes.
#[tokio::test(start_paused = true)]
async fn unknown_customers_among_many_spoil_nobody_elses_request() {
    let sandbox = crate::quota::central(128).await;
    let gateway = crate::quota::gateway(&sandbox).await;
    crate::quota::a_fresh_second(&sandbox).await;
    let is_unknown = |index: usize| index % 8 == 3;
    let requests = (0..128).map(|index| {
        if is_unknown(index) {
            include(&[&format!("{index:04x}{}", &NOBODY[4..])])
        } else {
            include(&[&customer(&sandbox, index)])
        }
    });
    for (index, answer) in crate::quota::send_all(&gateway.client(), requests).join_all().await {
        match answer {
            Ok(_) => assert!(!is_unknown(index), "{index}"),
            Err(failure) => {
                assert!(is_unknown(index) && failure.reason == "CUSTOMER_NOT_FOUND", "{index}: {failure:?}");
            }
        }
    }
    assert_eq!(sandbox.applied_customers().len(), 112);
}
