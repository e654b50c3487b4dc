//! What callers are told when Central misbehaves: never wrong about whether anything happened.

use std::time::Duration;

use central_sandbox::{Answer, Dialect, Fault, Operation, RateHeaders, Reply, Sandbox, SuccessBody, TlsPem};
use tonic::Code;

use crate::support::{Gateway, PATIENCE, customer, include, sandbox};

/// A fault on the unassignment, and what the caller must be told: code, reason, outcome.
pub type Row = (&'static str, Fault, Option<(Code, &'static str, &'static str)>);

/// Every way in which Central's answer to one call can go wrong.
#[allow(clippy::too_many_lines)] // a table
pub fn faults() -> Vec<Row> {
    let answer = Fault::answer;
    let reply = |reply| Fault::new(reply);
    let failed = |code, reason, outcome| Some((code, reason, outcome));
    let lost = || failed(Code::Unknown, "CENTRAL_CONNECTION_LOST", "unknown");
    let timed_out = || failed(Code::DeadlineExceeded, "CENTRAL_TIMEOUT", "unknown");
    let unavailable = || failed(Code::Unknown, "CENTRAL_UNAVAILABLE", "unknown");
    let internal = || failed(Code::Internal, "CENTRAL_INTERNAL", "unknown");
    let unexpected = || failed(Code::Internal, "CENTRAL_UNEXPECTED", "not_applied");
    let foreign = || failed(Code::Unknown, "CENTRAL_UNEXPECTED", "unknown");
    let reported = || failed(Code::Internal, "CENTRAL_REPORTED_FAILURE", "unknown");
    let failing = |body: &str| Fault::new(Reply::Answer(Answer::new(200).body(body))).and_applied();
    let rejected = || failed(Code::InvalidArgument, "CENTRAL_REJECTED_ARGUMENT", "not_applied");
    vec![
        ("nothing unusual", Fault::none(), None),
        ("400", answer(400), rejected()),
        ("422", answer(422), rejected()),
        ("400 in Athena's dialect", reply(Reply::Answer(Answer::new(400).dialect(Dialect::Athena))), rejected()),
        ("403", answer(403), failed(Code::PermissionDenied, "CENTRAL_PERMISSION_DENIED", "not_applied")),
        ("404", answer(404), failed(Code::NotFound, "CUSTOMER_NOT_FOUND", "not_applied")),
        (
            "404 without a route",
            reply(Reply::Answer(Answer::new(404).body(r#"{"message":"no route and no API found with those values"}"#))),
            failed(Code::Internal, "CENTRAL_ENDPOINT_NOT_FOUND", "not_applied"),
        ),
        ("409", answer(409), failed(Code::Aborted, "CENTRAL_CONFLICT", "not_applied")),
        ("402", answer(402), unexpected()),
        ("418", answer(418), unexpected()),
        ("302", reply(Reply::Answer(Answer::redirect("/elsewhere"))), foreign()),
        ("302, applied", reply(Reply::Answer(Answer::redirect("/elsewhere"))).and_applied(), foreign()),
        ("303, applied", reply(Reply::Answer(Answer::new(303).header("Location", "/done"))).and_applied(), foreign()),
        ("404 in HTML", reply(Reply::Answer(Answer::new(404).dialect(Dialect::Html))), unexpected()),
        ("403 in HTML", reply(Reply::Answer(Answer::new(403).dialect(Dialect::Html))), unexpected()),
        ("404 of another server", reply(Reply::Answer(Answer::new(404).dialect(Dialect::Text))), unexpected()),
        ("500", answer(500), internal()),
        ("500, applied", answer(500).and_applied(), internal()),
        ("501", answer(501), failed(Code::Unimplemented, "CENTRAL_UNIMPLEMENTED", "not_applied")),
        ("502", answer(502), unavailable()),
        ("503", answer(503), unavailable()),
        ("503, applied", answer(503).and_applied(), unavailable()),
        ("504, applied", answer(504).and_applied(), unavailable()),
        ("505", answer(505), internal()),
        ("reset before the answer", Fault::reset(), lost()),
        ("reset before the answer, applied", Fault::reset().and_applied(), lost()),
        ("closed before the answer", reply(Reply::Close), lost()),
        ("closed before the answer, applied", reply(Reply::Close).and_applied(), lost()),
        ("reset in the answer", reply(Reply::ResetMidway), lost()),
        ("reset in the answer, applied", reply(Reply::ResetMidway).and_applied(), lost()),
        ("cut answer", reply(Reply::Truncated), lost()),
        ("cut answer, applied", reply(Reply::Truncated).and_applied(), lost()),
        ("silence", Fault::silence(), timed_out()),
        ("silence, applied", Fault::silence().and_applied(), timed_out()),
        ("late", Fault::none().answering_late(Duration::from_mins(1)), timed_out()),
        ("slow to start", Fault::none().delayed(Duration::from_mins(1)), timed_out()),
        ("200 that reports failure", reply(Reply::Success(SuccessBody::ReportsFailure)), reported()),
        ("200, empty", reply(Reply::Success(SuccessBody::Empty)).and_applied(), None),
        ("200, true", reply(Reply::Success(SuccessBody::True)).and_applied(), None),
        ("200, text", reply(Reply::Success(SuccessBody::Text)).and_applied(), None),
        ("200, object", reply(Reply::Success(SuccessBody::Object)).and_applied(), None),
        ("200, not JSON", reply(Reply::Success(SuccessBody::NotJson)).and_applied(), None),
        ("200, endless", reply(Reply::Huge(1 << 30)).and_applied(), foreign()),
        ("200, a login page", reply(Reply::Answer(Answer::new(200).dialect(Dialect::Html))), foreign()),
        ("200, a list with a failure", failing(r#"{"status":[{"serial":"X","error_code":"E1"}]}"#), reported()),
        ("207", reply(Reply::Answer(Answer::new(207).body("{}"))).and_applied(), reported()),
        ("200, a detail", failing(r#"{"detail":"some devices were not unassigned"}"#), reported()),
        ("200, a failure for a response", failing(r#"{"response":"failure"}"#), reported()),
        ("200, 500 for a code", failing(r#"{"code":"500"}"#), reported()),
        ("repeats our secrets", reply(Reply::EchoSecrets(400)), rejected()),
        ("says gzip", reply(Reply::Answer(Answer::lying_gzip())).and_applied(), None),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_told_truthfully_and_nothing_unknown_is_sent_twice() {
    for (name, fault, expected) in faults() {
        let sandbox = sandbox().await;
        let gateway = Gateway::start_with(&sandbox, |config| config.central.timeout = Duration::from_secs(2)).await;
        gateway.ready().await;
        let customer = customer(&sandbox, 0);
        sandbox.fault(fault.on(Operation::Unassign));

        let result = gateway.unassign(&customer).await;
        match (&result, expected) {
            (Ok(_), None) => {}
            (Err(failure), Some((code, reason, outcome))) => {
                assert_eq!(
                    (failure.code, failure.reason.as_str(), failure.outcome.as_str()),
                    (code, reason, outcome),
                    "{name}"
                );
            }
            (result, expected) => panic!("{name}: expected {expected:?}, got {result:?}"),
        }
        let outcome = result.as_ref().map_or_else(|failure| failure.outcome.as_str(), |_| "applied");
        let was_applied = !sandbox.applied_customers().is_empty();
        match outcome {
            "applied" => assert!(was_applied, "{name}: the caller was told it was done"),
            "not_applied" => assert!(!was_applied, "{name}: the caller was told that nothing happened"),
            "unknown" => assert!(sandbox.unassign_calls().len() <= 1, "{name}: sent again"),
            other => panic!("{name}: {other}"),
        }
        gateway.stop().await;
        sandbox.stop().await;
    }
}

#[tokio::test]
async fn no_connection_is_tried_again_and_then_told_as_not_applied() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let customer = customer(&sandbox, 0);
    sandbox.stop().await;
    let failure = gateway.unassign(&customer).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "CENTRAL_UNREACHABLE"));
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("not_applied", "1000"));
}

#[tokio::test]
async fn a_refused_token_is_replaced_and_the_call_sent_again_once() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::answer(401).on(Operation::Unassign));
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.unwrap(), 2);
    assert_eq!(sandbox.token_exchanges().len(), 2, "one at the start, one for the 401");

    // Again and again: Central's fault, not a loop.
    sandbox.fault(Fault::answer(401).on(Operation::Unassign).always());
    let failure = gateway.unassign(&customer(&sandbox, 1)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Internal, "CENTRAL_CREDENTIALS_REJECTED"));
    assert_eq!((failure.outcome.as_str(), failure.http_status.as_deref()), ("not_applied", Some("401")));
    let exchanges = sandbox.token_exchanges().len();
    for _ in 0..3 {
        let failure = gateway.unassign(&customer(&sandbox, 1)).await.unwrap_err();
        assert_eq!(failure.reason, "CENTRAL_CREDENTIALS_REJECTED");
    }
    assert_eq!(sandbox.token_exchanges().len(), exchanges, "a token that has just been issued is not exchanged");
    gateway.stop().await;
}

#[tokio::test]
async fn a_429_of_the_second_is_waited_for_if_the_deadline_allows() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(
        Fault::new(Reply::Answer(Answer::new(429).rate_headers(RateHeaders::SecondSpent))).on(Operation::Unassign),
    );
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.unwrap(), 2);

    sandbox.fault(
        Fault::new(Reply::Answer(Answer::new(429).rate_headers(RateHeaders::SecondSpent))).on(Operation::Unassign),
    );
    let mut request = tonic::Request::new(include(&[&customer(&sandbox, 1)]));
    request.set_timeout(Duration::from_millis(900));
    let status = gateway.client().unassign_licenses(request).await.unwrap_err();
    let failure = crate::support::Failure::from(status);
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "CENTRAL_RATE_LIMITED"));
    assert_eq!(failure.outcome, "not_applied");
    gateway.stop().await;
}

#[tokio::test]
async fn a_spent_day_is_told_at_once_with_the_time_until_midnight() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox
        .fault(Fault::new(Reply::Answer(Answer::new(429).rate_headers(RateHeaders::DaySpent))).on(Operation::Unassign));
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::ResourceExhausted, "CENTRAL_QUOTA_EXHAUSTED"));
    let wait: u64 = failure.pushback.parse().unwrap();
    assert!((1..=86_400_000).contains(&wait), "{wait}");
    assert_eq!(sandbox.unassign_calls().len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_closed_scope_that_is_too_large_travels_in_halves() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let customers: Vec<_> = (0..4).map(|n| customer(&sandbox, n)).collect();
    let customers: Vec<_> = customers.iter().map(String::as_str).collect();

    sandbox.fault(Fault::answer(413).on(Operation::Unassign));
    assert_eq!(gateway.send(include(&customers)).await.unwrap(), 3, "the whole, and both halves");
    assert_eq!(sandbox.applied_customers().len(), 4);
    gateway.stop().await;
}

#[tokio::test]
async fn a_split_request_that_fails_half_way_names_what_became_of_whom() {
    use license_gateway::proto::PartialOutcome;
    use prost::Message as _;

    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let customers: Vec<_> = (0..4).map(|n| customer(&sandbox, n)).collect();
    let ids: Vec<_> = customers.iter().map(String::as_str).collect();

    // The whole is too large, the first half works, the second is too large, its first half breaks.
    sandbox.fault(Fault::answer(413).on(Operation::Unassign));
    sandbox.fault(Fault::none().on(Operation::Unassign));
    sandbox.fault(Fault::answer(413).on(Operation::Unassign));
    sandbox.fault(Fault::answer(503).on(Operation::Unassign).and_applied());
    let failure = gateway.send(include(&ids)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unknown, "CENTRAL_UNAVAILABLE"));
    assert_eq!((failure.outcome.as_str(), failure.pushback.as_str()), ("partial", "-1"));

    let details = tonic_types::pb::Status::decode(failure.status.details()).unwrap().details;
    let partial = details.iter().find(|any| any.type_url.ends_with("PartialOutcome")).expect("a PartialOutcome");
    let partial = PartialOutcome::decode(&*partial.value).unwrap();
    assert_eq!(partial.applied_customer_ids[..2], customers[..2]);
    assert_eq!(partial.unknown_customer_ids, customers[2..3]);
    // The last one is not sent any more, unless it was on its way already.
    let last = [&partial.applied_customer_ids[2..], &partial.not_applied_customer_ids].concat();
    assert_eq!(last, customers[3..]);
    let was_applied = sandbox.applied_customers().contains(&customers[3]);
    assert_eq!(partial.not_applied_customer_ids.is_empty(), was_applied);
    gateway.stop().await;
}

/// What a failure's headers take on the wire, as HTTP/2 counts them, and the sizes of `:status` and `date` beside it.
async fn header_bytes(gateway: &Gateway, message: &impl prost::Message) -> (usize, tonic::Status) {
    use tower::Service as _;

    let mut frame = vec![0];
    let body = message.encode_to_vec();
    frame.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    frame.extend(body);
    let request = http::Request::post("/central.licensing.v1.LicensingService/UnassignLicenses")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(http_body_util::Full::from(frame)))
        .unwrap();
    let mut channel = gateway.channel.clone();
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let response = channel.call(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let trailers = http_body_util::BodyExt::collect(body).await.unwrap().trailers().cloned().unwrap_or_default();
    let size = |headers: &http::HeaderMap| {
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum::<usize>()
    };
    let status = tonic::Status::from_header_map(&trailers).or_else(|| tonic::Status::from_header_map(&parts.headers));
    (size(&parts.headers) + size(&trailers) + 42, status.unwrap())
}

#[tokio::test]
async fn what_does_not_fit_into_headers_is_cut_with_its_count() {
    use license_gateway::proto::PartialOutcome;
    use prost::Message as _;

    const MOST: usize = 4_096;
    let sandbox = Sandbox::start(crate::support::unlimited().with_generated_customers(1_000)).await.unwrap();
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;

    // Every id is bad.
    let bad: Vec<_> = (0..1_000).map(|n| format!("an id with blanks {n}")).collect();
    let (bytes, status) = header_bytes(&gateway, &include(&bad.iter().map(String::as_str).collect::<Vec<_>>())).await;
    assert!(bytes <= MOST, "{bytes} bytes");
    let failure = crate::support::Failure::from(status);
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("INVALID_REQUEST", "not_applied"));
    let details = tonic_types::StatusExt::get_error_details(&failure.status);
    let violations = &details.bad_request().unwrap().field_violations;
    let (last, shown) = violations.split_last().unwrap();
    assert!(shown.len() >= 10, "{}", shown.len());
    assert!(last.description.starts_with(&format!("and {} more", 1_000 - shown.len())), "{last:?}");

    // Half is done, the other half is not known.
    let ids: Vec<_> = (0..1_000).map(|n| customer(&sandbox, n)).collect();
    sandbox.fault(Fault::answer(413).on(Operation::Unassign));
    sandbox.fault(Fault::none().on(Operation::Unassign));
    sandbox.fault(Fault::reset().on(Operation::Unassign));
    let (bytes, status) = header_bytes(&gateway, &include(&ids.iter().map(String::as_str).collect::<Vec<_>>())).await;
    assert!(bytes <= MOST, "{bytes} bytes");
    let failure = crate::support::Failure::from(status);
    assert_eq!((failure.reason.as_str(), failure.outcome.as_str()), ("CENTRAL_CONNECTION_LOST", "partial"));
    let details = tonic_types::pb::Status::decode(failure.status.details()).unwrap().details;
    let partial = details.iter().find(|any| any.type_url.ends_with("PartialOutcome")).expect("a PartialOutcome");
    let partial = PartialOutcome::decode(&*partial.value).unwrap();
    assert_eq!((partial.applied_count, partial.not_applied_count, partial.unknown_count), (500, 0, 500));
    let shown = partial.unknown_customer_ids.len();
    assert!(shown >= 15, "{shown}");
    assert_eq!(partial.unknown_customer_ids, ids[500..500 + shown]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_page_of_a_proxy_is_not_about_one_of_the_callers() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    sandbox.fault(Fault::new(Reply::Answer(Answer::new(404).dialect(Dialect::Html))).on(Operation::Unassign).always());
    let calls = (0..16).map(|n| {
        let (mut client, id) = (gateway.client(), customer(&sandbox, n % 5));
        async move { client.unassign_licenses(include(&[&id])).await.unwrap_err() }
    });
    let mut all = tokio::task::JoinSet::new();
    calls.for_each(|call| drop(all.spawn(call)));
    while let Some(status) = all.join_next().await {
        let failure = crate::support::Failure::from(status.unwrap());
        assert_eq!((failure.code, failure.reason.as_str()), (Code::Internal, "CENTRAL_UNEXPECTED"));
        assert_eq!(failure.outcome, "not_applied");
    }
    assert!(sandbox.unassign_calls().len() <= 16, "nobody is asked about in halves");
    gateway.stop().await;
}

#[tokio::test]
async fn a_wait_longer_than_the_deadline_is_no_pushback() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let a_minute = Answer::new(429).rate_headers(RateHeaders::None).header("Retry-After", "60");
    sandbox.fault(Fault::new(Reply::Answer(a_minute)).on(Operation::Unassign));
    let mut request = tonic::Request::new(include(&[&customer(&sandbox, 0)]));
    request.set_timeout(PATIENCE);
    let failure = crate::support::Failure::from(gateway.client().unassign_licenses(request).await.unwrap_err());
    assert_eq!((failure.reason.as_str(), failure.pushback.as_str()), ("CENTRAL_RATE_LIMITED", "-1"));
    let details = tonic_types::StatusExt::get_error_details(&failure.status);
    assert!(details.retry_info().and_then(|info| info.retry_delay).is_some(), "the wait is told all the same");
    gateway.stop().await;
}

#[tokio::test]
async fn an_open_scope_that_is_too_large_is_never_split() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start_with(&sandbox, |config| config.central.allow_open_scopes = true).await;
    gateway.ready().await;
    let spared: Vec<_> = (0..4).map(|n| customer(&sandbox, n)).collect();
    let spared: Vec<_> = spared.iter().map(String::as_str).collect();
    for request in [crate::support::exclude(&spared), crate::support::everyone()] {
        let request = gateway.bound(request).await;
        sandbox.fault(Fault::answer(413).on(Operation::Unassign));
        let before = sandbox.unassign_calls().len();
        let failure = gateway.send(request).await.unwrap_err();
        assert_eq!((failure.code, failure.reason.as_str()), (Code::InvalidArgument, "SCOPE_TOO_LARGE"));
        assert_eq!(failure.outcome, "not_applied");
        assert_eq!(sandbox.unassign_calls().len(), before + 1);
    }
    assert!(sandbox.applied_customers().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn a_deadline_is_told_apart_before_and_after_sending() {
    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    gateway.ready().await;
    let send = |customer: String| {
        let mut client = gateway.client();
        let mut request = tonic::Request::new(include(&[&customer]));
        request.set_timeout(Duration::from_millis(300));
        async move {
            let status = tokio::time::timeout(PATIENCE, client.unassign_licenses(request)).await.unwrap().unwrap_err();
            crate::support::Failure::from(status)
        }
    };

    sandbox.fault(Fault::hold("sent").on(Operation::Unassign));
    let failure = send(customer(&sandbox, 0)).await;
    assert_eq!((failure.code, failure.reason.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(failure.outcome, "unknown");
    sandbox.release("sent");

    // No token: nothing can be sent, and nothing is sent later.
    sandbox.revoke_access_token();
    sandbox.fault(Fault::hold("token").on(Operation::Token));
    let failure = send(customer(&sandbox, 1)).await;
    assert_eq!((failure.code, failure.outcome.as_str()), (Code::DeadlineExceeded, "not_applied"));
    sandbox.release("token");
    gateway.stop().await;
    assert!(!sandbox.applied_customers().contains(&customer(&sandbox, 1)), "it was told that nothing happened");
}

/// Sends through a sandbox that speaks TLS with a certificate of a private authority.
#[tokio::test]
async fn a_private_authority_is_trusted_when_named_and_not_otherwise() {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = key.cert.pem();
    let mut settings = crate::support::unlimited();
    settings.tls = Some(TlsPem { certificate: pem.clone(), key: key.signing_key.serialize_pem() });
    let sandbox = Sandbox::start(settings).await.unwrap();
    let localhost = |config: &mut license_gateway::config::Config| {
        config.central.base_url.set_host(Some("localhost")).unwrap();
        config.central.allow_plaintext = false;
    };

    let gateway = Gateway::start_with(&sandbox, localhost).await;
    let failure = gateway.unassign(&customer(&sandbox, 0)).await.unwrap_err();
    assert_eq!((failure.code, failure.reason.as_str()), (Code::Unavailable, "CENTRAL_TOKEN_UNAVAILABLE"));
    gateway.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let gateway = Gateway::start_with(&sandbox, |config| {
        localhost(config);
        config.central.ca_file = Some(ca_file);
    })
    .await;
    assert_eq!(gateway.unassign(&customer(&sandbox, 0)).await.unwrap(), 1);
    gateway.stop().await;
}

/// Tools that know the contract by reflection alone can show why a call failed.
#[tokio::test]
async fn reflection_knows_the_details_of_failures() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let sandbox = sandbox().await;
    let gateway = Gateway::start(&sandbox).await;
    let mut reflection = ServerReflectionClient::new(gateway.channel.clone());
    for symbol in [
        "google.rpc.ErrorInfo",
        "google.rpc.RequestInfo",
        "google.rpc.RetryInfo",
        "google.rpc.BadRequest",
        "google.rpc.QuotaFailure",
        "central.licensing.v1.PartialOutcome",
    ] {
        let message_request = Some(MessageRequest::FileContainingSymbol(symbol.to_owned()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let asked = tokio_stream::once(request);
        let mut answers = reflection.server_reflection_info(asked).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{symbol}: {answer:?}");
    }
    drop(reflection);
    gateway.stop().await;
}
