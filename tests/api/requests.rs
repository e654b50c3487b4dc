//! What goes to Central for which request, and what is refused before that.

use central_sandbox::{Fault, Operation};
use license_gateway::proto::{ListServicesRequest, ScopeKind, UnassignLicensesRequest};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{Failure, Gateway, SERVICE, customer, everyone, exclude, include, sandbox};

#[tokio::test]
async fn an_include_scope_takes_licences_from_exactly_its_customers() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let (a, b) = (customer(&sandbox, 0), customer(&sandbox, 1));
    let has_service = |id: &str| sandbox.licences_of(id).iter().any(|(_, service)| service == SERVICE);
    assert!(has_service(&a) && has_service(&b) && has_service(&customer(&sandbox, 2)));

    let response = gateway.client().unassign_licenses(include(&[&a, &b])).await.unwrap().into_inner();
    assert_eq!(response.scope(), ScopeKind::IncludeCustomers);
    assert_eq!((response.customer_count, response.call_count), (Some(2), 1));
    assert_eq!(response.resolved_customer_count, None, "nobody looked it up");
    assert_eq!(response.services, [SERVICE]);
    assert_eq!(response.operation_id.len(), 36);
    assert!(!has_service(&a) && !has_service(&b));
    assert!(has_service(&customer(&sandbox, 2)), "nobody else is touched");

    let call = &sandbox.unassign_calls()[0];
    assert_eq!(call.method, "DELETE");
    assert_eq!(call.path, "/platform/licensing/v1/msp/subscriptions/devices/all");
    assert_eq!(call.body, Some(json!({"services": [SERVICE], "include_customers": [a, b]})));
    let header = |name: &str| call.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    assert_eq!(header("content-type"), Some("application/json"));
    assert_eq!(header("accept"), Some("application/json"));
    assert_eq!(header("content-length"), Some(call.body_bytes.to_string().as_str()));
    assert!(header("authorization").is_some());
    for absent in ["expect", "transfer-encoding", "accept-encoding", "tenantid", "traceparent"] {
        assert_eq!(header(absent), None, "{absent}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn open_scopes_are_refused_unless_the_configuration_allows_them() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let spared = customer(&sandbox, 0);
    for request in [everyone(), exclude(&[&spared])] {
        let request = gateway.bound(request).await; // looking is allowed
        let failure = gateway.send(request).await.unwrap_err();
        assert_eq!((failure.code, failure.reason.as_str()), (Code::PermissionDenied, "POLICY_DENIED"));
        assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "-1"));
    }
    assert!(sandbox.unassign_calls().is_empty());
    gateway.stop().await;

    let sandbox = crate::support::sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.central.allow_open_scopes = true).await;
    let response =
        gateway.client().unassign_licenses(gateway.bound(exclude(&[&spared])).await).await.unwrap().into_inner();
    assert_eq!((response.scope(), response.customer_count), (ScopeKind::ExcludeCustomers, None));
    assert_eq!(response.resolved_customer_count, Some(4));
    let response = gateway.client().unassign_licenses(gateway.bound(everyone()).await).await.unwrap().into_inner();
    assert_eq!((response.scope(), response.resolved_customer_count), (ScopeKind::AllCustomers, Some(5)));
    let bodies: Vec<_> = sandbox.unassign_calls().into_iter().map(|call| call.body.unwrap()).collect();
    assert_eq!(
        bodies,
        [json!({"services": [SERVICE], "exclude_customers": [spared]}), json!({"services": [SERVICE]}),]
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_bad_request_names_every_violation_and_sends_nothing() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let mut request = include(&["a", "", "a"]);
    request.services = vec![];
    request.reason = "bell\u{7}".to_owned();
    let failure = gateway.send(request).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    let fields: Vec<_> = failure.status.get_error_details().bad_request().unwrap().field_violations.clone();
    let fields: Vec<_> = fields.into_iter().map(|violation| violation.field).collect();
    assert_eq!(
        fields,
        ["include_customers.customer_ids[1]", "include_customers.customer_ids[2]", "services", "reason"]
    );

    let failure = gateway.send(UnassignLicensesRequest::default()).await.unwrap_err();
    assert_eq!(failure.reason, "INVALID_REQUEST");
    assert!(sandbox.unassign_calls().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn an_unknown_service_is_refused_while_the_list_is_at_hand_and_goes_on_when_it_is_not() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut request = include(&[&customer(&sandbox, 0)]);
    request.services.push("advanced_toaster".to_owned());
    let failure = gateway.send(request.clone()).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::InvalidArgument, "INVALID_REQUEST"));
    let violation = failure.status.get_error_details().bad_request().unwrap().field_violations[0].clone();
    assert_eq!(violation.field, "services[1]");
    assert!(violation.description.contains("advanced_toaster"), "{}", violation.description);
    assert!(sandbox.unassign_calls().is_empty());
    gateway.stop().await;

    // Central cannot give the list: it is Central's to decide.
    let sandbox = crate::support::sandbox().await;
    sandbox.fault(Fault::answer(500).on(Operation::ServicesConfig).always());
    let gateway = Gateway::start(&sandbox).await;
    let failure = gateway.send(request).await.unwrap_err();
    assert_eq!(failure.reason, "CENTRAL_REJECTED_ARGUMENT");
    gateway.send(include(&[&customer(&sandbox, 0)])).await.unwrap();
    assert_eq!(sandbox.calls_of(Operation::ServicesConfig).len(), 1, "not asked again for every request");
    gateway.stop().await;
}

#[tokio::test]
async fn services_are_listed_sorted_and_asked_for_once() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    for _ in 0..3 {
        let list = gateway.client().list_services(ListServicesRequest {}).await.unwrap().into_inner();
        let names: Vec<_> = list.services.iter().map(|service| service.name.clone()).collect();
        assert!(names.is_sorted() && names.contains(&SERVICE.to_owned()), "{names:?}");
        assert!(list.fetched_at.is_some());
    }
    assert_eq!(sandbox.calls_of(Operation::ServicesConfig).len(), 1);
    gateway.stop().await;

    let sandbox = crate::support::sandbox().await;
    sandbox.fault(Fault::answer(503).on(Operation::ServicesConfig));
    let gateway = Gateway::start(&sandbox).await;
    let status = gateway.client().list_services(ListServicesRequest {}).await.unwrap_err();
    let failure = Failure::from(status);
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "CENTRAL_UNAVAILABLE"));
    assert_eq!(
        (failure.outcome.as_str(), failure.pushback.as_str()),
        ("not_applied", "1000"),
        "a read may be repeated"
    );
    gateway.client().list_services(ListServicesRequest {}).await.unwrap();
    gateway.stop().await;
}
