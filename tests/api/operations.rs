//! Repeats of a request act at most once, and operations are told: on one gateway, after a restart, on another replica.

#[cfg(feature = "failpoints")]
mod killed;
#[cfg(feature = "kubernetes-store")]
mod kubernetes;
#[cfg(feature = "tests-with-redis")]
mod redis;

use std::{collections::HashSet, sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation as OfSandbox, Sandbox};
use license_gateway::proto::{
    GetOperationRequest, ListOperationsRequest, Operation, OperationOutcome, OperationState, UnassignLicensesRequest,
    UnassignLicensesResponse, get_operation_request::Id,
};
use tokio::task::JoinSet;
use tonic::Code;
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::support::{Failure, Gateway, customer, include, sandbox};

fn with_id(request_id: &str, customers: &[&str]) -> UnassignLicensesRequest {
    UnassignLicensesRequest { request_id: request_id.to_owned(), ..include(customers) }
}

fn new_id() -> String {
    Uuid::new_v4().to_string()
}

async fn ask(gateway: &Gateway, request: UnassignLicensesRequest) -> Result<UnassignLicensesResponse, Failure> {
    let answer = gateway.client().unassign_licenses(request).await;
    answer.map(tonic::Response::into_inner).map_err(Failure::from)
}

async fn operation(gateway: &Gateway, id: Id) -> Result<Operation, Failure> {
    let answer = gateway.client().get_operation(GetOperationRequest { id: Some(id) }).await;
    answer.map(|answer| answer.into_inner().operation.expect("always set")).map_err(Failure::from)
}

async fn by_request(gateway: &Gateway, request_id: &str) -> Result<Operation, Failure> {
    operation(gateway, Id::RequestId(request_id.to_owned())).await
}

fn metadata(failure: &Failure, key: &str) -> Option<String> {
    failure.status.get_error_details().error_info().unwrap().metadata.get(key).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_parallel_repeats_are_one_call_and_one_answer() {
    let sandbox = sandbox().await;
    let gateway = Arc::new(Gateway::start(&sandbox).await);
    gateway.ready().await;
    sandbox.fault(Fault::hold("call").on(OfSandbox::Unassign));
    let (id, who) = (new_id(), customer(&sandbox, 0));
    let mut asking = JoinSet::new();
    for _ in 0..200 {
        let (gateway, request) = (Arc::clone(&gateway), with_id(&id, &[&who]));
        asking.spawn(async move { ask(&gateway, request).await.expect("applied") });
    }
    sandbox.wait_for_held("call", 1).await;
    let running = by_request(&gateway, &id).await.unwrap();
    assert_eq!((running.state(), running.unknown_customer_ids.len()), (OperationState::Running, 1));
    sandbox.release("call");
    let answers = asking.join_all().await;
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
    assert_eq!(answers.iter().map(|answer| &answer.operation_id).collect::<HashSet<_>>().len(), 1);
    assert!(answers.iter().all(|answer| answer.call_count == 1 && answer.customer_count == Some(1)));
    assert_eq!(sandbox.unassign_calls().len(), 1);

    // The operation's own id is good for a repeat too.
    let told = by_request(&gateway, &id).await.unwrap();
    assert_eq!((told.outcome(), told.applied_customer_ids.as_slice()), (OperationOutcome::Applied, [who].as_slice()));
    Arc::into_inner(gateway).unwrap().stop().await;
}

#[tokio::test]
async fn the_recorded_answer_and_the_recorded_failure_outlive_a_restart() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let (applied, unknown, named) = (new_id(), new_id(), new_id());
    let (a, b) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let first = ask(&gateway, with_id(&applied, &[&a, &b])).await.unwrap();
    sandbox.fault(Fault::answer(500).on(OfSandbox::Unassign));
    let failed = ask(&gateway, with_id(&unknown, &[&a])).await.unwrap_err();
    let anonymous = ask(&gateway, include(&[&b])).await.unwrap();
    let calls = sandbox.unassign_calls().len();
    let state = Arc::clone(&gateway.state);
    gateway.stop().await;

    let gateway = Gateway::start_in(&sandbox, state, |_| {}).await;
    let repeated = ask(&gateway, with_id(&applied, &[&b, &a])).await.unwrap();
    assert_eq!(repeated, UnassignLicensesResponse { replayed: true, ..first });
    let again = ask(&gateway, with_id(&unknown, &[&a])).await.unwrap_err();
    assert_eq!((again.code, &again.reason, &again.outcome), (failed.code, &failed.reason, &failed.outcome));
    assert_eq!((again.status.message(), &again.http_status), (failed.status.message(), &failed.http_status));
    assert_eq!(metadata(&again, "operation_id"), metadata(&failed, "operation_id"));
    assert_eq!((metadata(&again, "replayed").as_deref(), metadata(&failed, "replayed")), (Some("true"), None));
    // Who chose no id repeats with the operation's.
    let repeated = ask(&gateway, with_id(&anonymous.operation_id, &[&b])).await.unwrap();
    assert!(repeated.replayed && repeated.operation_id == anonymous.operation_id);
    assert_eq!(sandbox.unassign_calls().len(), calls, "nothing was sent for a repeat");

    let reused = ask(&gateway, with_id(&applied, &[&a])).await.unwrap_err();
    assert_eq!((reused.code, reused.reason.as_str()), (Code::InvalidArgument, "REQUEST_ID_REUSED"));
    let missing = by_request(&gateway, &named).await.unwrap_err();
    assert_eq!((missing.code, missing.reason.as_str()), (Code::NotFound, "OPERATION_NOT_FOUND"));

    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListOperationsRequest { page_size: 2, page_token };
        let page = gateway.client().list_operations(request).await.unwrap().into_inner();
        assert!(page.operations.len() <= 2 && page.operations.iter().all(|one| one.customer_ids_omitted));
        seen.extend(page.operations.into_iter().map(|one| (one.request_id.clone(), one.outcome())));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected = [
        (anonymous.operation_id, OperationOutcome::Applied),
        (unknown, OperationOutcome::Unknown),
        (applied, OperationOutcome::Applied),
    ];
    assert_eq!(seen, expected, "newest first");
    gateway.stop().await;
}

#[tokio::test]
async fn an_id_is_free_again_where_nothing_was_done_and_bad_ids_are_refused() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let (id, who) = (new_id(), customer(&sandbox, 0));
    sandbox.fault(Fault::answer(409).on(OfSandbox::Unassign));
    let refused = ask(&gateway, with_id(&id, &[&who])).await.unwrap_err();
    assert_eq!(refused.outcome, "not_applied");
    let told = by_request(&gateway, &id).await.unwrap();
    assert_eq!(
        (told.outcome(), told.failure.unwrap().reason.as_str()),
        (OperationOutcome::NotApplied, "CENTRAL_CONFLICT")
    );
    let answer = ask(&gateway, with_id(&id, &[&who])).await.unwrap();
    assert!(!answer.replayed);
    assert_eq!(by_request(&gateway, &id).await.unwrap().operation_id, answer.operation_id, "the last one of the id");
    assert_eq!(sandbox.unassign_calls().len(), 2);

    let nil = Uuid::nil().to_string();
    for bad in ["x", &id.replace('-', ""), nil.as_str(), &format!("{{{id}}}")] {
        let failure = ask(&gateway, with_id(bad, &[&who])).await.unwrap_err();
        assert_eq!(failure.reason, "INVALID_REQUEST", "{bad}");
        assert_eq!(by_request(&gateway, bad).await.unwrap_err().reason, "INVALID_REQUEST", "{bad}");
    }
    assert!(ask(&gateway, with_id(&id.to_uppercase(), &[&who])).await.unwrap().replayed, "one UUID in either case");
    gateway.stop().await;
}

#[tokio::test]
async fn a_repeat_that_a_proxy_announces_is_answered_where_it_has_an_id() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let announced = |request| {
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("x-envoy-attempt-count", "2".parse().unwrap());
        request
    };
    let (id, who) = (new_id(), customer(&sandbox, 0));
    let status = gateway.client().unassign_licenses(announced(include(&[&who]))).await.unwrap_err();
    assert_eq!(Failure::from(status).reason, "REPEATED_BY_PROXY");
    // The first attempt was lost on its way: this one acts. The next one does not.
    for is_replayed in [false, true] {
        let answer = gateway.client().unassign_licenses(announced(with_id(&id, &[&who]))).await.unwrap();
        assert_eq!(answer.into_inner().replayed, is_replayed);
    }
    assert_eq!(sandbox.unassign_calls().len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn the_deadline_of_a_repeat_holds_and_the_one_of_a_caller_who_left_does_not() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("call").on(OfSandbox::Unassign));
    let (id, who) = (new_id(), customer(&sandbox, 0));
    let first = tokio::spawn({
        let (mut client, request) = (gateway.client(), with_id(&id, &[&who]));
        async move { client.unassign_licenses(request).await }
    });
    sandbox.wait_for_held("call", 1).await;
    let mut hurried = tonic::Request::new(with_id(&id, &[&who]));
    hurried.set_timeout(Duration::from_millis(300));
    let failure = Failure::from(gateway.client().unassign_licenses(hurried).await.unwrap_err());
    assert_eq!((failure.code, failure.outcome.as_str()), (Code::DeadlineExceeded, "unknown"));
    // The first caller leaves, and the call runs on.
    first.abort();
    let _ = first.await;
    let patient = tokio::spawn({
        let (mut client, request) = (gateway.client(), with_id(&id, &[&who]));
        async move { client.unassign_licenses(request).await }
    });
    sandbox.release("call");
    let answer = patient.await.unwrap().unwrap().into_inner();
    assert!(answer.replayed);
    assert_eq!(Some(answer.operation_id), metadata(&failure, "operation_id"));
    assert_eq!(sandbox.unassign_calls().len(), 1);
    gateway.stop().await;
}
