//! The server: health as the protocol has it, limits on the wire, and a stop that finishes what runs.

use std::{sync::Arc, time::Duration};

use central_sandbox::{Fault, Operation};
use license_gateway::proto::health::{
    HealthCheckRequest, HealthListRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tokio::{net::TcpStream, time::timeout};
use tonic::Code;

use crate::{
    collector::Collector,
    support::{
        Failure, Gateway, PATIENCE, Process, another_tool_refreshes, channel, customer, include, living, of_service,
        sandbox,
    },
};

const LICENSING: &str = "central.licensing.v1.LicensingService";

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn health_follows_the_protocol() {
    let sandbox = sandbox().await;
    sandbox.fault(Fault::hold("token").on(Operation::Token));
    let gateway = Gateway::start(&sandbox).await;
    sandbox.wait_for_held("token", 1).await;
    let mut health = HealthClient::new(gateway.channel.clone());

    // Up, but of no use without a token.
    assert_eq!(health.check(about("")).await.unwrap().into_inner().status(), ServingStatus::Serving);
    assert_eq!(health.check(about(LICENSING)).await.unwrap().into_inner().status(), ServingStatus::NotServing);
    assert_eq!(health.check(about("nobody")).await.unwrap_err().code(), Code::NotFound);
    let list = health.list(HealthListRequest {}).await.unwrap().into_inner().statuses;
    let mut names: Vec<_> = list.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["", "central.credentials", LICENSING]);

    let mut watched = health.watch(about(LICENSING)).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let mut unknown = health.watch(about("nobody")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);

    sandbox.release("token");
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    gateway.stop().await;
    // Told, then ended: an open stream would keep the server from stopping.
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watched.message().await.unwrap().is_none());
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_message_over_256_kib_is_refused_in_our_words() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let mut request = include(&["a"]);
    request.reason = "x".repeat(256 * 1024);
    let failure = gateway.send(request).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "-1"));
    gateway.stop().await;
}

#[tokio::test]
async fn an_unknown_method_is_refused_in_our_words() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut grpc = tonic::client::Grpc::new(gateway.channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/central.licensing.v1.LicensingService/Nothing");
    let codec = tonic_prost::ProstCodec::<HealthListRequest, HealthListRequest>::default();
    let answer = grpc.unary(tonic::Request::new(HealthListRequest {}), path, codec).await;
    let failure = Failure::from(answer.unwrap_err());
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unimplemented, "NOT_IMPLEMENTED"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_connection_carries_no_more_calls_at_once_than_set() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.server.max_streams_per_connection = 2).await;
    gateway.ready().await;
    sandbox.fault(Fault::hold("stream").on(Operation::Unassign).times(2));
    let gateway = Arc::new(gateway);
    let calls: Vec<_> = (0..3)
        .map(|index| {
            // Each with a service of its own: requests for the same services would share a call.
            let request = of_service(&sandbox.settings().services[index], &[&customer(&sandbox, index)]);
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.send(request).await })
        })
        .collect();
    sandbox.wait_for_held("stream", 2).await;
    // A call on a connection of its own overtakes the third, which waits for a stream on the first connection.
    let mut health = HealthClient::new(channel(gateway.address).await);
    health.check(about("")).await.unwrap();
    assert_eq!(sandbox.unassign_calls().len(), 2);
    sandbox.release("stream");
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_what_runs_ends_what_watches_and_exits_with_0() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::serve(&sandbox, dir.path(), &[]).await;
    let connection = channel(process.address).await;
    let mut client = license_gateway::proto::licensing_service_client::LicensingServiceClient::new(connection.clone());
    let mut watch = HealthClient::new(connection).watch(about("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let _idle = TcpStream::connect(process.address).await.unwrap();

    sandbox.fault(Fault::hold("in flight").on(Operation::Unassign));
    let customer = customer(&sandbox, 0);
    let call = tokio::spawn(async move { client.unassign_licenses(include(&[&customer])).await });
    sandbox.wait_for_held("in flight", 1).await;
    process.terminate();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none(), "the stream ends");
    sandbox.release("in flight");

    call.await.unwrap().expect("the call on its way is answered");
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0));
    let messages: Vec<_> = log.iter().filter_map(|line| line["message"].as_str()).collect();
    assert!(messages.contains(&"drained"), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_does_not_end_before_an_exchange_that_nobody_waits_for_is_stored() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &[]).await;
    let mut client =
        license_gateway::proto::licensing_service_client::LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap();
    // A new seed is exchanged whether or not anybody asks for a token.
    another_tool_refreshes(&sandbox).await;
    sandbox.fault(Fault::hold_answer("exchange").on(Operation::Token));
    std::fs::write(dir.path().join("refresh_token"), living(&sandbox)).unwrap();
    sandbox.wait_for_held("exchange", 1).await;
    process.terminate();
    process.said("draining: no new requests, what runs is finished").await;
    sandbox.release("exchange");
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0), "{log:#?}");
    let record = std::fs::read_to_string(dir.path().join("state/token.json")).unwrap();
    assert!(record.contains(&living(&sandbox)), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_hangs_cannot_hold_the_stop_beyond_its_bound() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let more = [("LICENSE_GATEWAY__SERVER__DRAIN_TIMEOUT", "300ms")];
    let process = Process::serve(&sandbox, dir.path(), &more).await;
    let mut client =
        license_gateway::proto::licensing_service_client::LicensingServiceClient::new(channel(process.address).await);
    sandbox.fault(Fault::hold("for ever").on(Operation::Unassign));
    let customer = customer(&sandbox, 0);
    let call = tokio::spawn(async move { client.unassign_licenses(include(&[&customer])).await });
    sandbox.wait_for_held("for ever", 1).await;
    process.terminate();
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0));
    assert!(log.iter().any(|line| line["message"] == "not everything was finished within server.drain_timeout"));
    assert!(timeout(PATIENCE, call).await.unwrap().unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_still_waits_when_the_drain_has_ended_is_not_sent() {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let more = [("LICENSE_GATEWAY__SERVER__DRAIN_TIMEOUT", "300ms"), ("LICENSE_GATEWAY__CENTRAL__MAX_IN_FLIGHT", "1")];
    let mut process = Process::serve(&sandbox, dir.path(), &more).await;
    let client =
        license_gateway::proto::licensing_service_client::LicensingServiceClient::new(channel(process.address).await);
    // The first call is held, so the second one waits for its slot.
    sandbox.fault(Fault::hold("first").on(Operation::Unassign));
    let send = |index: usize| {
        let (mut client, service) = (client.clone(), sandbox.settings().services[index].clone());
        let request = of_service(&service, &[&customer(&sandbox, index)]);
        tokio::spawn(async move { client.unassign_licenses(request).await })
    };
    let first = send(0);
    sandbox.wait_for_held("first", 1).await;
    let second = send(1);
    // The process does not end before this exchange. (The calls so far are forgotten with it.)
    another_tool_refreshes(&sandbox).await;
    sandbox.fault(Fault::hold_answer("exchange").on(Operation::Token));
    std::fs::write(dir.path().join("refresh_token"), living(&sandbox)).unwrap();
    sandbox.wait_for_held("exchange", 1).await;
    process.terminate();
    process.said("not everything was finished within server.drain_timeout").await;
    sandbox.release("first");
    timeout(PATIENCE, first).await.unwrap().unwrap().expect("what was sent is answered");
    let failure = Failure::from(timeout(PATIENCE, second).await.unwrap().unwrap().unwrap_err());
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("GATEWAY_DRAINING", "not_applied"));
    assert_eq!(sandbox.unassign_calls().len(), 0, "no other call");
    sandbox.release("exchange");
    assert_eq!(process.exit().await.0.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_span_arrives_on_sigterm_also_with_one_worker() {
    let sandbox = sandbox().await;
    let collector = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    let endpoint = collector.endpoint();
    let more = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("TOKIO_WORKER_THREADS", "1")];
    let process = Process::serve(&sandbox, dir.path(), &more).await;
    let mut client =
        license_gateway::proto::licensing_service_client::LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap();
    process.terminate();
    let (status, log) = process.exit().await;
    assert_eq!(status.code(), Some(0), "{log:#?}");
    let spans = collector.wait_for_spans(|spans| spans.iter().any(|span| span.name().contains("Unassign"))).await;
    assert!(spans.iter().any(|span| span.name().starts_with("DELETE")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_that_ends_the_process_is_exported() {
    let sandbox = sandbox().await;
    let collector = Collector::start().await;
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (endpoint, taken_address) = (collector.endpoint(), taken.local_addr().unwrap().to_string());
    let more = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("LICENSE_GATEWAY__ADMIN__LISTEN", taken_address.as_str()),
    ];
    let (status, log) = Process::serve(&sandbox, dir.path(), &more).await.exit().await;
    assert_eq!(status.code(), Some(1), "{log:#?}");
    let arrived = collector.wait_for(|arrived| !arrived.logs.is_empty()).await;
    let messages: Vec<_> = arrived.logs.iter().map(crate::collector::Record::message).collect();
    assert!(messages.iter().any(|message| message == "stopped by an error"), "{messages:?}");
}

/// A deadline is answered by the gateway itself, in time for the caller to read what became of the request.
#[tokio::test]
async fn a_deadline_leaves_the_caller_time_to_read_the_answer() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::none().delayed(Duration::from_secs(5)).on(Operation::Unassign));
    let mut request = tonic::Request::new(include(&[&customer(&sandbox, 0)]));
    request.set_timeout(Duration::from_millis(300));
    // tonic's own client has a timer too: had the answer come after it, there would be no details.
    let failure = Failure::from(gateway.client().unassign_licenses(request).await.unwrap_err());
    assert_eq!((failure.code, failure.outcome.as_str()), (Code::DeadlineExceeded, "unknown"));
}
