//! One trace per request, from the caller's span to Central's answer.

use license_gateway::sandbox::{Fault, Operation};
use tonic::metadata::MetadataValue;

use crate::{
    admin::{page, page_when, value},
    collector::{Collector, Kind, Span},
    support::{Gateway, customer, include, otel, sandbox},
};

const RPC: &str = "central.licensing.v1.LicensingService/UnassignLicenses";
const DELETE: &str = "DELETE /platform/licensing/v1/msp/subscriptions/devices/all";
const EXCHANGE: &str = "POST /oauth2/token";

const CALLERS_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLERS_SPAN: &str = "b7ad6b7169203331";

/// Sends one request with a caller's trace, stops the gateway, and gives the spans with their collector.
async fn spans_of(fault: Option<Fault>) -> Vec<Span> {
    let sandbox = sandbox().await;
    let collector = Collector::start().await;
    let settings = otel(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())]);
    let gateway = Gateway::start_with(&sandbox, |config| config.telemetry = settings).await;
    gateway.ready().await;
    if let Some(fault) = fault {
        sandbox.fault(fault.on(Operation::Unassign));
    }
    let mut request = tonic::Request::new(include(&[&customer(&sandbox, 0)]));
    let traceparent = format!("00-{CALLERS_TRACE}-{CALLERS_SPAN}-01");
    request.metadata_mut().insert("traceparent", MetadataValue::try_from(traceparent).unwrap());
    let _ = gateway.client().unassign_licenses(request).await;
    gateway.stop().await;
    collector.wait_for_spans(|spans| spans.iter().any(|span| span.name() == RPC)).await
}

fn all<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name() == name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_success_is_one_trace_from_the_callers_span_to_centrals_answer() {
    let spans = spans_of(None).await;
    let [rpc] = all(&spans, RPC)[..] else { panic!("one server span: {spans:#?}") };
    assert_eq!(rpc.kind(), Kind::Server);
    assert_eq!((rpc.trace_id(), rpc.parent_id()), (CALLERS_TRACE.to_owned(), CALLERS_SPAN.to_owned()));
    assert_eq!(rpc.attribute("rpc.system.name").as_deref(), Some("grpc"));
    assert_eq!(rpc.attribute("rpc.method").as_deref(), Some(RPC));
    assert_eq!(rpc.attribute("rpc.response.status_code").as_deref(), Some("OK"));
    assert_eq!(rpc.attribute("license_gateway.outcome").as_deref(), Some("applied"));
    assert!(rpc.attribute("license_gateway.operation_id").is_some());
    assert_eq!(rpc.attribute("error.type"), None);
    assert!(!rpc.is_error());

    let [delete] = all(&spans, DELETE)[..] else { panic!("one call: {spans:#?}") };
    assert_eq!(delete.kind(), Kind::Client);
    assert_eq!((delete.trace_id(), delete.parent_id()), (rpc.trace_id(), rpc.span_id()));
    assert_eq!(delete.attribute("http.request.method").as_deref(), Some("DELETE"));
    assert_eq!(delete.attribute("http.response.status_code").as_deref(), Some("200"));
    assert_eq!(delete.attribute("http.request.resend_count"), None);
    assert_eq!(delete.attribute("server.address").as_deref(), Some("127.0.0.1"));
    assert!(delete.attribute("url.full").unwrap().ends_with("/msp/subscriptions/devices/all"));

    // The exchange belongs to nobody in particular: a trace of its own, linked to who waited for it.
    let [exchange] = all(&spans, EXCHANGE)[..] else { panic!("one exchange: {spans:#?}") };
    assert_eq!((exchange.kind(), exchange.parent_id().as_str()), (Kind::Client, ""));
    assert_ne!(exchange.trace_id(), rpc.trace_id());
    assert_eq!(exchange.attribute("http.response.status_code").as_deref(), Some("200"));

    assert_eq!(rpc.resource("service.name").as_deref(), Some("license-gateway"));
    assert_eq!(rpc.resource("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resend_is_a_span_of_its_own_with_its_number_and_the_exchange_is_linked() {
    let spans = spans_of(Some(Fault::answer(401))).await;
    let [rpc] = all(&spans, RPC)[..] else { panic!("one server span: {spans:#?}") };
    let [first, second] = all(&spans, DELETE)[..] else { panic!("two calls: {spans:#?}") };
    assert_eq!(first.attribute("http.response.status_code").as_deref(), Some("401"));
    assert_eq!((first.attribute("error.type").as_deref(), first.is_error()), (Some("401"), true));
    assert_eq!(first.attribute("http.request.resend_count"), None);
    assert_eq!(second.attribute("http.request.resend_count").as_deref(), Some("1"));
    assert!(!second.is_error());
    assert_eq!((first.parent_id(), second.parent_id()), (rpc.span_id(), rpc.span_id()));

    let exchanges = all(&spans, EXCHANGE);
    assert_eq!(exchanges.len(), 2, "at the start, and for the 401");
    let linked: Vec<_> = exchanges.iter().filter(|exchange| exchange.links().contains(&rpc.ids())).collect();
    assert_eq!(linked.len(), 1, "{exchanges:#?}");
    assert!(rpc.links().contains(&linked[0].ids()), "and back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_marked_as_the_conventions_say() {
    // The server failed: an error of its span.
    let spans = spans_of(Some(Fault::answer(503))).await;
    let [rpc] = all(&spans, RPC)[..] else { panic!("one server span: {spans:#?}") };
    assert!(rpc.is_error());
    assert_eq!(rpc.attribute("rpc.response.status_code").as_deref(), Some("UNKNOWN"));
    assert_eq!(rpc.attribute("error.type").as_deref(), Some("UNKNOWN"));
    assert_eq!(rpc.attribute("license_gateway.reason").as_deref(), Some("CENTRAL_UNAVAILABLE"));
    assert_eq!(rpc.attribute("license_gateway.outcome").as_deref(), Some("unknown"));

    // The request was refused: an error of the call, not of the server.
    let spans = spans_of(Some(Fault::answer(404))).await;
    let [rpc] = all(&spans, RPC)[..] else { panic!("one server span: {spans:#?}") };
    assert!(!rpc.is_error());
    assert_eq!(rpc.attribute("error.type").as_deref(), Some("NOT_FOUND"));
    let [delete] = all(&spans, DELETE)[..] else { panic!("one call: {spans:#?}") };
    assert!(delete.is_error());
    assert_eq!(delete.attribute("error.type").as_deref(), Some("404"));

    // No answer at all.
    let spans = spans_of(Some(Fault::reset())).await;
    let [delete] = all(&spans, DELETE)[..] else { panic!("one call: {spans:#?}") };
    assert!(delete.is_error());
    assert_eq!(delete.attribute("error.type").as_deref(), Some("connection_lost"));
    assert_eq!(delete.attribute("http.response.status_code"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_call_is_linked_with_all_who_travel_in_it() {
    let sandbox = sandbox().await;
    let collector = Collector::start().await;
    let settings = otel(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())]);
    let gateway = Gateway::start_with(&sandbox, |config| {
        config.telemetry = settings;
        config.central.max_in_flight = 1;
    })
    .await;
    gateway.ready().await;
    // While the first call is held, three others wait, and then travel together.
    sandbox.fault(Fault::hold("first").on(Operation::Unassign));
    let mut callers = tokio::task::JoinSet::new();
    for index in 0..4 {
        let (mut client, request) = (gateway.client(), include(&[&customer(&sandbox, index)]));
        callers
            .spawn(async move { client.unassign_licenses(request).await.expect("applied").into_inner().operation_id });
        if index == 0 {
            sandbox.wait_for_held("first", 1).await;
        }
    }
    page_when(gateway.admin, "/metrics", |_, metrics| value(metrics, "license_gateway_queue_depth", &[]) >= 3.0).await;
    sandbox.release("first");
    callers.join_all().await;
    assert_eq!(sandbox.unassign_calls().len(), 2);
    let (_, metrics) = page(gateway.admin, "/metrics").await;
    assert!((value(&metrics, "license_gateway_call_members_sum", &[]) - 4.0).abs() < 0.1);
    assert!((value(&metrics, "license_gateway_call_members_count", &[]) - 2.0).abs() < 0.1);
    assert!((value(&metrics, "license_gateway_queue_wait_seconds_count", &[]) - 4.0).abs() < 0.1);
    gateway.stop().await;

    let spans = collector.wait_for_spans(|spans| all(spans, RPC).len() == 4 && all(spans, DELETE).len() == 2).await;
    let rpcs = all(&spans, RPC);
    let shared = all(&spans, DELETE).into_iter().find(|call| !call.links().is_empty()).expect("a call with links");
    let first = rpcs.iter().find(|rpc| rpc.span_id() == shared.parent_id()).expect("it is in the trace of one of them");
    assert_eq!(first.trace_id(), shared.trace_id());
    let others: Vec<_> = rpcs.iter().filter(|rpc| shared.links().contains(&rpc.ids())).collect();
    assert_eq!(others.len(), 2, "and linked with the other two");
    for other in others {
        assert_eq!(other.links(), [shared.ids()], "and back");
    }
    for wait in all(&spans, "license_gateway.queue") {
        let rpc = rpcs.iter().find(|rpc| rpc.span_id() == wait.parent_id()).expect("a wait is a child of its request");
        assert_eq!((wait.kind(), rpc.trace_id()), (Kind::Internal, wait.trace_id()));
    }
    assert_eq!(all(&spans, "license_gateway.queue").len(), 4);
}
