//! Whom a scope would hit, and that a change which is bound to a preview hits nobody else.

mod listings;

use std::{collections::BTreeSet, sync::Arc};

use central_sandbox::{Answer, Customer, Fault, Operation, Reply, Sandbox};
use license_gateway::{
    config,
    proto::{
        CustomerList, PreviewUnassignLicensesRequest, PreviewWarning, PreviewWarningCode, ScopeKind,
        UnassignLicensesRequest, preview_unassign_licenses_request::Scope,
    },
};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    admin::{page_when, value},
    audit::{records, verify},
    commands::run,
    support::{Failure, Gateway, SERVICE, customer, everyone, exclude, include, living, look, of_service, sandbox},
};

/// A gateway that allows open scopes.
async fn open(sandbox: &Sandbox) -> Gateway {
    open_with(sandbox, |_| {}).await
}

async fn open_with(sandbox: &Sandbox, change: impl FnOnce(&mut config::Config)) -> Gateway {
    let gateway = Gateway::start_with(sandbox, |config| {
        config.central.allow_open_scopes = true;
        change(config);
    })
    .await;
    gateway.ready().await;
    sandbox.clear_calls();
    gateway
}

/// Somebody becomes a customer.
fn joins(sandbox: &Sandbox, id: &str) {
    let newcomer = Customer { id: id.to_owned(), name: "Newcomer".to_owned(), ..sandbox.owners()[1].clone() };
    sandbox.change_owners(|owners| owners.push(newcomer));
}

/// Somebody is no customer any more.
fn leaves(sandbox: &Sandbox, id: &str) {
    sandbox.change_owners(|owners| owners.retain(|owner| owner.id != id));
}

const NEWCOMER: &str = "aaaabbbbccccddddeeeeffff00001111";

fn is_stale(failure: &Failure) {
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Aborted, "PREVIEW_STALE"), "{failure:?}");
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "-1"));
}

/// The calls of the record that are not about the token.
fn calls(sandbox: &Sandbox) -> usize {
    sandbox.calls().iter().filter(|call| call.operation != Operation::Token).count()
}

#[tokio::test]
async fn a_preview_tells_whom_a_scope_hits_and_only_reads() {
    let sandbox = sandbox().await;
    let gateway = open(&sandbox).await;
    let before = sandbox.owners();
    let (a, b) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let nobody = "00000000000000000000000000000000";

    let one = gateway.preview(&include(&[&b, nobody, &a]), 10).await.unwrap();
    assert_eq!((one.scope(), one.customer_count), (ScopeKind::IncludeCustomers, 2));
    let names: Vec<_> = one.customers.iter().map(|customer| customer.name.as_str()).collect();
    assert_eq!(names, ["Alpine Hotels", "Borealis Retail"]);
    assert_eq!(one.customers[0].id, a);
    assert_eq!((one.unknown_customer_ids, one.services), (vec![nobody.to_owned()], vec![SERVICE.to_owned()]));
    let devices = one.devices.unwrap();
    assert_eq!((devices.device_count, devices.customers_seen, devices.is_complete), (3, 2, true));
    assert!(one.warnings.is_empty(), "{:?}", one.warnings);
    assert!(one.resolved_at.is_some());
    assert_eq!(
        one.call_count as usize,
        calls(&sandbox),
        "the list, and for each of two automatic licensing and devices"
    );
    assert_eq!(one.call_count, 5);

    sandbox.clear_calls();
    let others = gateway.preview(&exclude(&[&a]), 10).await.unwrap();
    assert_eq!((others.scope(), others.customer_count), (ScopeKind::ExcludeCustomers, 4));
    // Four customers' and the MSP's own.
    assert_eq!(others.devices.unwrap().device_count, 5);
    assert_eq!(others.call_count, 6, "the list, the inventory of all in one page, automatic licensing of four");
    let codes: Vec<_> = others.warnings.iter().map(PreviewWarning::code).collect();
    assert_eq!(codes, [PreviewWarningCode::MspDevicesInReach, PreviewWarningCode::QuotaMayShrink]);

    let all = gateway.preview(&everyone(), 0).await.unwrap();
    assert_eq!((all.scope(), all.customer_count, all.devices), (ScopeKind::AllCustomers, 5, None));
    let etags: BTreeSet<_> = [&one.etag, &others.etag, &all.etag].into();
    assert_eq!(etags.len(), 3);

    assert!(sandbox.calls().iter().all(|call| call.method == "GET"), "{:#?}", sandbox.calls());
    assert_eq!(sandbox.owners(), before);
    assert_eq!(records(gateway.state.path()).len(), 1, "nothing to record");
    gateway.stop().await;
}

#[tokio::test]
async fn a_preview_is_checked_as_the_change_would_be() {
    let sandbox = sandbox().await;
    let gateway = open(&sandbox).await;
    let fields = |failure: Failure| -> Vec<String> {
        assert_eq!((failure.code, failure.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
        let details = failure.status.get_error_details();
        details.bad_request().unwrap().field_violations.iter().map(|violation| violation.field.clone()).collect()
    };
    let empty = Some(Scope::ExcludeCustomers(CustomerList::default()));
    let bad = PreviewUnassignLicensesRequest { scope: empty, services: vec![], max_device_calls: 101 };
    let failure = gateway.client().preview_unassign_licenses(bad).await.unwrap_err().into();
    assert_eq!(fields(failure), ["exclude_customers.customer_ids", "services", "max_device_calls"]);
    let nothing = PreviewUnassignLicensesRequest::default();
    let failure = gateway.client().preview_unassign_licenses(nothing).await.unwrap_err().into();
    assert_eq!(fields(failure), ["scope", "services"]);
    assert_eq!(fields(gateway.preview(&of_service("no_such_service", &["c"]), 0).await.unwrap_err()), ["services[0]"]);
    assert_eq!(calls(&sandbox), 0);
    gateway.stop().await;

    let looks_only = config::CallerRules {
        rpcs: [config::RpcName::PreviewUnassignLicenses].into(),
        ..config::CallerRules::everything(config::WhichCaller::Anonymous)
    };
    let sandbox = crate::support::sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.policy.callers = vec![looks_only]).await;
    gateway.preview(&everyone(), 0).await.expect("looking is allowed, also where open scopes are not");
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    assert_eq!(failure.reason, "POLICY_DENIED");
    gateway.stop().await;
    let gateway = Gateway::start_in(&sandbox, Arc::new(seeded(&sandbox)), |config| config.policy.callers.clear()).await;
    assert_eq!(gateway.preview(&everyone(), 0).await.unwrap_err().reason, "POLICY_DENIED");
    gateway.stop().await;
}

/// A directory whose refresh token is the one that Central takes now.
fn seeded(sandbox: &Sandbox) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("refresh_token"), living(sandbox)).unwrap();
    dir
}

#[tokio::test]
async fn whoever_becomes_a_customer_after_the_preview_is_not_hit() {
    let sandbox = sandbox().await;
    let gateway = open(&sandbox).await;
    let requests = [gateway.bound(everyone()).await, gateway.bound(exclude(&[&customer(&sandbox, 0)])).await];
    joins(&sandbox, NEWCOMER);
    for request in &requests {
        is_stale(&gateway.send(request.clone()).await.unwrap_err());
    }
    assert!(sandbox.unassign_calls().is_empty());
    leaves(&sandbox, NEWCOMER);
    // The set is the same again, so what was previewed is what is hit.
    for request in requests {
        gateway.send(request).await.expect("applied");
    }
    assert_eq!(sandbox.unassign_calls().len(), 2);

    let request = gateway.bound(everyone()).await;
    leaves(&sandbox, &customer(&sandbox, 4));
    is_stale(&gateway.send(request).await.unwrap_err());
    assert_eq!(sandbox.unassign_calls().len(), 2);
    gateway.stop().await;
}

/// Sends in the background.
fn send(gateway: &Gateway, request: UnassignLicensesRequest) -> JoinHandle<Result<u32, Failure>> {
    let mut client = gateway.client();
    tokio::spawn(async move {
        let answer = client.unassign_licenses(request).await;
        answer.map(|response| response.into_inner().call_count).map_err(Failure::from)
    })
}

pub async fn queued(gateway: &Gateway, count: f64) {
    let waits = |_, text: &str| value(text, "license_gateway_queue_depth", &[]) >= count;
    page_when(gateway.admin, "/metrics", waits).await;
}

#[tokio::test]
async fn whoever_becomes_a_customer_while_the_request_waits_is_not_hit() {
    let sandbox = sandbox().await;
    let gateway = open_with(&sandbox, |config| config.central.max_in_flight = 1).await;
    let spared = customer(&sandbox, 0);
    for request in [everyone(), exclude(&[&spared]), include(&[&spared, NEWCOMER])] {
        let request = gateway.bound(request).await;
        let before = sandbox.unassign_calls().len();
        sandbox.fault(Fault::hold("first").on(Operation::Unassign));
        let first = send(&gateway, include(&[&spared]));
        sandbox.wait_for_held("first", 1).await;
        let waiting = send(&gateway, request);
        queued(&gateway, 1.0).await;
        joins(&sandbox, NEWCOMER);
        sandbox.release("first");
        first.await.unwrap().expect("applied");
        is_stale(&waiting.await.unwrap().unwrap_err());
        assert_eq!(sandbox.unassign_calls().len(), before + 1, "the first one alone");
        leaves(&sandbox, NEWCOMER);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_repeat_looks_again() {
    let sandbox = sandbox().await;
    let gateway = open(&sandbox).await;
    for status in [401, 429] {
        let request = gateway.bound(everyone()).await;
        sandbox.clear_calls();
        sandbox.fault(Fault { before: Fault::hold("call").before, ..Fault::answer(status).on(Operation::Unassign) });
        let call = send(&gateway, request.clone());
        sandbox.wait_for_held("call", 1).await;
        joins(&sandbox, NEWCOMER);
        sandbox.release("call");
        is_stale(&call.await.unwrap().unwrap_err());
        assert_eq!(sandbox.unassign_calls().len(), 1, "the refused one alone: {status}");
        leaves(&sandbox, NEWCOMER);

        sandbox.clear_calls();
        sandbox.fault(Fault::answer(status).on(Operation::Unassign));
        assert_eq!(gateway.send(request).await.unwrap(), 2, "nothing has changed: {status}");
        assert_eq!(sandbox.calls_of(Operation::Customers).len(), 2, "looked before each call");
    }
    gateway.stop().await;
}

/// What an etag may be taken for. Nothing of this is applied.
#[tokio::test]
async fn an_etag_that_is_misused_applies_nothing() {
    let sandbox = sandbox().await;
    let gateway = open(&sandbox).await;
    let (a, b, c) = (customer(&sandbox, 0), customer(&sandbox, 1), customer(&sandbox, 2));
    let etag = |request: UnassignLicensesRequest| {
        let gateway = &gateway;
        async move { gateway.preview(&request, 0).await.unwrap().etag }
    };
    let good = etag(everyone()).await;
    let with =
        |request: UnassignLicensesRequest, etag: &str| UnassignLicensesRequest { etag: etag.to_owned(), ..request };
    let services = |request: UnassignLicensesRequest, names: &[&str]| UnassignLicensesRequest {
        services: names.iter().map(ToString::to_string).collect(),
        ..request
    };
    joins(&sandbox, NEWCOMER);
    let old = etag(everyone()).await;
    leaves(&sandbox, NEWCOMER);
    let other_account = {
        let other = crate::support::sandbox().await;
        other.change_owners(|owners| owners[1].id = NEWCOMER.to_owned());
        let gateway = open(&other).await;
        let etag = gateway.preview(&everyone(), 0).await.unwrap().etag;
        gateway.stop().await;
        etag
    };
    let other_digit = if good.ends_with('0') { "1" } else { "0" };
    let (required, stale, invalid) = ("PREVIEW_REQUIRED", "PREVIEW_STALE", "INVALID_REQUEST");
    let misuses: Vec<(&str, UnassignLicensesRequest, &str)> = vec![
        ("missing: all", everyone(), required),
        ("missing: exclude", exclude(&[&a]), required),
        ("a blank", with(everyone(), " "), invalid),
        ("a blank before", with(everyone(), &format!(" {good}")), invalid),
        ("a line feed behind", with(everyone(), &format!("{good}\n")), invalid),
        ("in quotes", with(everyone(), &format!("\"{good}\"")), invalid),
        ("cut short", with(everyone(), &good[..good.len() - 1]), invalid),
        ("a digit more", with(everyone(), &format!("{good}0")), invalid),
        ("upper case", with(everyone(), &good.to_uppercase()), invalid),
        ("digits in upper case", with(everyone(), &format!("v1:{}", good[3..].to_uppercase())), invalid),
        ("another version", with(everyone(), &good.replace("v1", "v2")), invalid),
        ("anything", with(everyone(), "*"), invalid),
        ("garbled", with(everyone(), &format!("{}{other_digit}", &good[..good.len() - 1])), stale),
        ("of an older set", with(everyone(), &old), stale),
        ("of another account", with(everyone(), &other_account), stale),
        ("of all, for exclude", with(exclude(&[&a]), &good), stale),
        ("of exclude, for all", with(everyone(), &etag(exclude(&[&a])).await), stale),
        // Everybody, named: the same customers, another scope.
        (
            "of include, for all",
            with(everyone(), &etag(include(&[&a, &b, &c, &customer(&sandbox, 3), &customer(&sandbox, 4)])).await),
            stale,
        ),
        ("of other excluded ids", with(exclude(&[&a, &b]), &etag(exclude(&[&a])).await), stale),
        ("of fewer excluded ids that nobody has", with(exclude(&[&a, "x"]), &etag(exclude(&[&a])).await), stale),
        ("of more services", with(everyone(), &etag(services(everyone(), &[SERVICE, "pa"])).await), stale),
        ("of other services", with(services(everyone(), &["pa"]), &good), stale),
        ("of a part of the included", with(include(&[&a, &b]), &etag(include(&[&a])).await), stale),
        ("of more than the included", with(include(&[&a]), &etag(include(&[&a, &b])).await), stale),
        ("malformed, with include", with(include(&[&a]), "v1:"), invalid),
    ];
    for (name, request, reason) in misuses {
        let failure = gateway.send(request).await.expect_err(name);
        assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), (reason, "not_applied"), "{name}");
        let code = [(required, Code::FailedPrecondition), (stale, Code::Aborted), (invalid, Code::InvalidArgument)];
        assert!(code.contains(&(reason, failure.code)), "{name}: {:?}", failure.code);
    }
    assert!(sandbox.unassign_calls().is_empty());
    assert!(sandbox.applied().is_empty());

    // These mean the same, so they are accepted: what was shown is what is hit. Order is no difference; an etag does not
    // wear off, because it stands for a set and not for a request: Central takes nothing twice from the same customers.
    let pair = etag(services(exclude(&[&a, &b]), &[SERVICE, "pa"])).await;
    gateway.send(with(services(exclude(&[&b, &a]), &["pa", SERVICE]), &pair)).await.expect("another order");
    gateway.send(with(everyone(), &good)).await.expect("old, after a change and back");
    gateway.send(with(everyone(), &good)).await.expect("used before, and nobody came or went");
    gateway.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_where_who_is_in_scope_cannot_be_looked_up() {
    let sandbox = sandbox().await;
    let gateway = open(&sandbox).await;
    let request = gateway.bound(everyone()).await;
    let no_id = Fault::new(Reply::Answer(Answer::new(200).body(r#"{"customers":[{"customer_name":"x"}],"total":1}"#)));
    let table = [
        (Fault::answer(500), Code::Internal, "CENTRAL_INTERNAL", "-1"),
        (Fault::answer(503), Code::Unavailable, "CENTRAL_UNAVAILABLE", "1000"),
        (Fault::answer(403), Code::PermissionDenied, "CENTRAL_PERMISSION_DENIED", "-1"),
        (Fault::answer(404), Code::Internal, "CENTRAL_ENDPOINT_NOT_FOUND", "-1"),
        (Fault::reset(), Code::Unavailable, "CENTRAL_CONNECTION_LOST", "1000"),
        (no_id, Code::Internal, "CENTRAL_UNEXPECTED", "-1"),
        (Fault::new(Reply::Huge(2_000_000)), Code::Internal, "CENTRAL_UNEXPECTED", "-1"),
    ];
    for (fault, code, reason, pushback) in table {
        sandbox.fault(fault.on(Operation::Customers));
        let failure = gateway.send(request.clone()).await.unwrap_err();
        assert_eq!((failure.code, failure.reason.as_str()), (code, reason), "{failure:?}");
        assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", pushback));
        assert!(failure.status.message().starts_with("nothing was changed"), "{failure:?}");
        assert!(!failure.status.message().contains("look whether"), "{failure:?}");
    }
    assert!(sandbox.unassign_calls().is_empty());
    assert_eq!(records(gateway.state.path()).len(), 1, "no intent: nothing was about to be sent");
    gateway.stop().await;
}

#[tokio::test]
async fn a_bound_request_travels_alone_and_in_parts_if_need_be() {
    let sandbox = sandbox().await;
    let gateway = open_with(&sandbox, |config| config.central.max_in_flight = 1).await;
    let ids: Vec<_> = (0..3).map(|index| customer(&sandbox, index)).collect();
    let bound = gateway.bound(include(&[&ids[0]])).await;
    sandbox.fault(Fault::hold("first").on(Operation::Unassign));
    let first = send(&gateway, include(&[&ids[0]]));
    sandbox.wait_for_held("first", 1).await;
    // The same services, the same slot: two share a call, the bound one has its own.
    let others = [send(&gateway, bound), send(&gateway, include(&[&ids[1]])), send(&gateway, include(&[&ids[2]]))];
    queued(&gateway, 3.0).await;
    sandbox.release("first");
    first.await.unwrap().unwrap();
    for other in others {
        assert_eq!(other.await.unwrap().unwrap(), 1);
    }
    assert_eq!(sandbox.unassign_calls().len(), 3);

    let bound = gateway.bound(include(&[&ids[0], &ids[1]])).await;
    sandbox.clear_calls();
    sandbox.fault(Fault::answer(413).on(Operation::Unassign));
    assert_eq!(gateway.send(bound.clone()).await.unwrap(), 3, "whole, then each half");
    // Once for each call, and again by a half that finds the slot taken by the other.
    let reads = sandbox.calls_of(Operation::Customers).len();
    assert!((3..=5).contains(&reads), "{reads}");

    // Somebody leaves between the halves: the second one is not sent.
    sandbox.fault(Fault::answer(413).on(Operation::Unassign));
    sandbox.fault(Fault::hold("half").on(Operation::Unassign));
    let halves = send(&gateway, bound);
    sandbox.wait_for_held("half", 1).await;
    leaves(&sandbox, &ids[1]);
    sandbox.release("half");
    let failure = halves.await.unwrap().unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("PREVIEW_STALE", "partial"));
    gateway.stop().await;
}

#[tokio::test]
async fn the_trail_says_which_preview_a_change_was_bound_to() {
    let sandbox = sandbox().await;
    let gateway = open(&sandbox).await;
    let request = gateway.bound(exclude(&[&customer(&sandbox, 0)])).await;
    gateway.unassign(&customer(&sandbox, 0)).await.unwrap();
    gateway.send(request.clone()).await.unwrap();
    joins(&sandbox, NEWCOMER);
    is_stale(&gateway.send(request.clone()).await.unwrap_err());
    let found = records(gateway.state.path());
    let intents: Vec<_> = found.iter().filter(|record| record["type"] == "INTENT").collect();
    assert_eq!(intents.len(), 2, "none for what was not about to be sent: {found:#?}");
    assert!(intents[0].get("etag").is_none() && intents[0].get("resolved_customers").is_none());
    assert_eq!((&intents[1]["etag"], &intents[1]["resolved_customers"]), (&request.etag.into(), &4.into()));
    let ran = verify(gateway.state.path());
    assert_eq!(ran.code, 0, "{}", ran.out);
    let path = gateway.state.path().join("audit");
    let shown = run(&["audit", "show", "--path", path.to_str().unwrap()]).out;
    assert!(shown.contains("all but 1: 4 customers"), "{shown}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_caller_who_leaves_ends_the_looking() {
    let sandbox = sandbox().await;
    sandbox.change_owners(|owners| {
        let one = owners[1].clone();
        owners.extend((0..300).map(|n| Customer { id: format!("{n:032x}"), ..one.clone() }));
    });
    let gateway = open(&sandbox).await;
    sandbox.fault(Fault::hold("page").on(Operation::Customers));
    let mut client = gateway.client();
    let look = look(&everyone(), 0);
    let call = tokio::spawn(async move { client.preview_unassign_licenses(look).await });
    sandbox.wait_for_held("page", 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // The cancellation is on its way before this answer.
    gateway.ready().await;
    sandbox.release("page");
    gateway.stop().await; // waits for what was set in motion
    assert_eq!(sandbox.calls_of(Operation::Customers).len(), 1, "one page of four");
}
