use std::collections::{BTreeSet, HashMap};

use http::HeaderMap;
use prost::Message as _;
use tonic_types::{StatusExt as _, pb};

use super::*;
use crate::{
    callers::{
        Identity,
        policy::{Asked, decide},
        usage::Hour,
    },
    central::{Flaw, Parts},
    config::{CallerRules, Policy, WhichCaller},
    exchange,
    license::{CustomerId, Customers, Reason, Scope, ServiceName, Services, Unassignment},
    proto::PartialOutcome,
    token,
};

fn change(error: Error) -> Failure {
    Failure::Change(Failed { outcome: error.outcome(), error: Arc::new(error), calls: 1, parts: None })
}

fn id(id: &str) -> CustomerId {
    CustomerId::new(id.to_owned()).unwrap()
}

/// What somebody is told who may touch none, or one and has done so.
fn refused(entries: usize) -> Failure {
    let anyone = || CallerRules { max_customers_per_hour: Some(1), ..CallerRules::everything(WhichCaller::Anonymous) };
    let policy = Policy { read_only: false, callers: (0..entries).map(|_| anyone()).collect() };
    let unassignment = Unassignment {
        scope: Scope::Include(Customers::new(vec![id("a")]).unwrap()),
        services: Services::new(vec![ServiceName::new("s".to_owned()).unwrap()]).unwrap(),
        reason: Reason::default(),
        etag: None,
    };
    let now = std::time::SystemTime::now();
    let mut hour = Hour::default();
    hour.take(1, now);
    let refusal = decide(&policy, &Identity::Anonymous, Asked::Unassign(&unassignment), &hour, now).unwrap_err();
    NotAdmitted::Policy(refusal).into()
}

/// An error of the HTTP client, the only way to get one.
async fn transport_error() -> reqwest::Error {
    reqwest::Client::new().get("http://[::1]:0/").send().await.unwrap_err()
}

/// Code, reason, outcome, HTTP status, milliseconds of pushback, and the details beside those that all have.
type Expected = (Code, &'static str, &'static str, Option<&'static str>, i64, &'static [&'static str]);

/// Every line of the failure table.
#[allow(clippy::too_many_lines)] // a table
async fn table() -> Vec<(Failure, Expected)> {
    use Code::{
        Aborted, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound, PermissionDenied,
        ResourceExhausted, Unavailable, Unimplemented, Unknown,
    };
    let ten = Duration::from_secs(10);
    let violation = Violation { field: "scope".to_owned(), problem: "is missing".to_owned() };
    let parts = Parts { applied: vec![id("a")], not_applied: vec![id("b")], unknown: vec![id("c")] };
    let throttled = |is_answer| Error::RateLimited { wait: ten, is_answer };
    let partial =
        Failed { error: Arc::new(throttled(true)), outcome: Outcome::Partial, calls: 3, parts: Some(Box::new(parts)) };
    let unavailable = token::Error::Stopping;
    let retry = &["RetryInfo"][..];
    let quota = &["QuotaFailure", "RetryInfo"][..];
    vec![
        (
            Failure::InvalidRequest(vec![violation]),
            (InvalidArgument, "INVALID_REQUEST", "not_applied", None, -1, &["BadRequest"]),
        ),
        (
            Failure::CallerUnauthenticated(Unidentified::NoCertificate),
            (Code::Unauthenticated, "CALLER_UNAUTHENTICATED", "not_applied", None, -1, &[]),
        ),
        (
            Failure::CallerUnauthenticated(Unidentified::KeysUnavailable),
            (Unavailable, "CALLER_KEYS_UNAVAILABLE", "not_applied", None, 1_000, retry),
        ),
        (refused(0), (PermissionDenied, "POLICY_DENIED", "not_applied", None, -1, &[])),
        (refused(1), (ResourceExhausted, "CALLER_QUOTA_EXHAUSTED", "not_applied", None, 3_660_000, quota)),
        (Failure::RepeatedByProxy, (Aborted, "REPEATED_BY_PROXY", "unknown", None, -1, &[])),
        (Failure::RequestIdReused, (InvalidArgument, "REQUEST_ID_REUSED", "not_applied", None, -1, &[])),
        (Failure::OperationsUnavailable, (Unavailable, "OPERATIONS_UNAVAILABLE", "not_applied", None, 1_000, retry)),
        (change(Error::Stopping), (Unavailable, "GATEWAY_DRAINING", "not_applied", None, 1_000, retry)),
        (
            change(Error::OperationsUnavailable),
            (Unavailable, "OPERATIONS_UNAVAILABLE", "not_applied", None, 1_000, retry),
        ),
        (Failure::OperationNotFound, (NotFound, "OPERATION_NOT_FOUND", "not_applied", None, -1, &[])),
        (Failure::UsageUnavailable, (Unavailable, "USAGE_UNAVAILABLE", "not_applied", None, 1_000, retry)),
        (Failure::PreviewRequired, (FailedPrecondition, "PREVIEW_REQUIRED", "not_applied", None, -1, &[])),
        (
            Failure::AutoLicensingActive(AutoLicensed {
                customers: vec![(id("a"), vec!["pa".to_owned()])],
                seen: 1,
                is_complete: true,
            }),
            (FailedPrecondition, "AUTO_LICENSING_ACTIVE", "not_applied", None, -1, &[]),
        ),
        (
            Failure::AutoLicensingUnknown { most: 100 },
            (FailedPrecondition, "AUTO_LICENSING_UNKNOWN", "not_applied", None, -1, &[]),
        ),
        (Failure::OperationNotFound, (NotFound, "OPERATION_NOT_FOUND", "not_applied", None, -1, &[])),
        (change(Error::PreviewStale), (Aborted, "PREVIEW_STALE", "not_applied", None, -1, &[])),
        (
            change(Error::ListUnreliable { list: "customers", flaw: Flaw::NoId }),
            (Internal, "CENTRAL_UNEXPECTED", "not_applied", Some("200"), -1, &[]),
        ),
        // What failed before anything was sent was a read, whatever it would mean of a change.
        (
            change(Error::Unresolved(Box::new(Error::Unavailable { status: 503 }))),
            (Unavailable, "CENTRAL_UNAVAILABLE", "not_applied", Some("503"), 1_000, retry),
        ),
        (
            change(Error::Unresolved(Box::new(Error::Internal { status: 500 }))),
            (Internal, "CENTRAL_INTERNAL", "not_applied", Some("500"), -1, &[]),
        ),
        (Failure::OpenScopeDenied, (PermissionDenied, "POLICY_DENIED", "not_applied", None, -1, &[])),
        (
            Failure::DeadlineExceeded { nothing_was_sent: true },
            (DeadlineExceeded, "DEADLINE_EXCEEDED", "not_applied", None, -1, &[]),
        ),
        (
            Failure::DeadlineExceeded { nothing_was_sent: false },
            (DeadlineExceeded, "DEADLINE_EXCEEDED", "unknown", None, -1, &[]),
        ),
        (Failure::ReadDeadlineExceeded, (DeadlineExceeded, "DEADLINE_EXCEEDED", "not_applied", None, -1, &[])),
        (Failure::Draining, (Unavailable, "GATEWAY_DRAINING", "not_applied", None, 1_000, retry)),
        (Failure::Bug { nothing_was_sent: true }, (Internal, "GATEWAY_INTERNAL", "not_applied", None, -1, &[])),
        (Failure::Bug { nothing_was_sent: false }, (Internal, "GATEWAY_INTERNAL", "unknown", None, -1, &[])),
        (Failure::MessageTooLarge, (ResourceExhausted, "MESSAGE_TOO_LARGE", "not_applied", None, -1, &[])),
        (Failure::MessageMalformed, (Internal, "MESSAGE_MALFORMED", "not_applied", None, -1, &[])),
        (Failure::MetadataTooLarge, (ResourceExhausted, "MESSAGE_TOO_LARGE", "not_applied", None, -1, &[])),
        (Failure::NotImplemented, (Unimplemented, "NOT_IMPLEMENTED", "not_applied", None, -1, &[])),
        (Failure::EncodingUnknown, (Unimplemented, "NOT_IMPLEMENTED", "not_applied", None, -1, &[])),
        (
            Failure::Change(partial),
            (
                ResourceExhausted,
                "CENTRAL_RATE_LIMITED",
                "partial",
                Some("429"),
                -1,
                &["PartialOutcome", "QuotaFailure"],
            ),
        ),
        (
            change(Error::ArgumentRejected { status: 422 }),
            (InvalidArgument, "CENTRAL_REJECTED_ARGUMENT", "not_applied", Some("422"), -1, &[]),
        ),
        (
            change(Error::CredentialsRejected { status: Some(401), source: None }),
            (Internal, "CENTRAL_CREDENTIALS_REJECTED", "not_applied", Some("401"), -1, &[]),
        ),
        (
            change(Error::from(token::Error::Lost)),
            (Internal, "CENTRAL_CREDENTIALS_REJECTED", "not_applied", None, -1, &[]),
        ),
        (
            change(Error::TokenUnavailable { retry_after: ten, source: unavailable }),
            (Unavailable, "CENTRAL_TOKEN_UNAVAILABLE", "not_applied", None, 10_000, retry),
        ),
        (
            change(Error::PermissionDenied),
            (PermissionDenied, "CENTRAL_PERMISSION_DENIED", "not_applied", Some("403"), -1, &[]),
        ),
        (change(Error::CustomerNotFound), (NotFound, "CUSTOMER_NOT_FOUND", "not_applied", Some("404"), -1, &[])),
        (
            change(Error::EndpointNotFound),
            (Internal, "CENTRAL_ENDPOINT_NOT_FOUND", "not_applied", Some("404"), -1, &[]),
        ),
        (change(Error::Conflict), (Aborted, "CENTRAL_CONFLICT", "not_applied", Some("409"), -1, &[])),
        (
            change(Error::TooLarge { status: 417 }),
            (InvalidArgument, "SCOPE_TOO_LARGE", "not_applied", Some("417"), -1, &[]),
        ),
        (
            change(throttled(true)),
            (ResourceExhausted, "CENTRAL_RATE_LIMITED", "not_applied", Some("429"), 10_000, quota),
        ),
        (change(throttled(false)), (ResourceExhausted, "CENTRAL_RATE_LIMITED", "not_applied", None, 10_000, quota)),
        (
            change(Error::Overloaded { retry_after: ten }),
            (ResourceExhausted, "GATEWAY_OVERLOADED", "not_applied", None, 10_000, quota),
        ),
        (Failure::Overloaded, (ResourceExhausted, "GATEWAY_OVERLOADED", "not_applied", None, 1_000, quota)),
        (
            change(Error::Down { retry_after: ten }),
            (Unavailable, "CENTRAL_UNREACHABLE", "not_applied", None, 10_000, retry),
        ),
        (
            change(Error::QuotaExhausted { wait: Duration::from_hours(24), is_answer: true }),
            (ResourceExhausted, "CENTRAL_QUOTA_EXHAUSTED", "not_applied", Some("429"), 86_400_000, quota),
        ),
        (change(Error::Internal { status: 500 }), (Internal, "CENTRAL_INTERNAL", "unknown", Some("500"), -1, &[])),
        (change(Error::Unimplemented), (Unimplemented, "CENTRAL_UNIMPLEMENTED", "not_applied", Some("501"), -1, &[])),
        (change(Error::Unavailable { status: 503 }), (Unknown, "CENTRAL_UNAVAILABLE", "unknown", Some("503"), -1, &[])),
        (change(Error::Unexpected { status: 303 }), (Unknown, "CENTRAL_UNEXPECTED", "unknown", Some("303"), -1, &[])),
        (
            change(Error::Unexpected { status: 418 }),
            (Internal, "CENTRAL_UNEXPECTED", "not_applied", Some("418"), -1, &[]),
        ),
        (change(Error::Unreadable { status: 200 }), (Unknown, "CENTRAL_UNEXPECTED", "unknown", Some("200"), -1, &[])),
        (
            change(Error::ReportedFailure { status: 200 }),
            (Internal, "CENTRAL_REPORTED_FAILURE", "unknown", Some("200"), -1, &[]),
        ),
        (
            change(Error::Unreachable(exchange::Error::NotConnected(transport_error().await))),
            (Unavailable, "CENTRAL_UNREACHABLE", "not_applied", None, 1_000, retry),
        ),
        (
            change(Error::ConnectionLost(exchange::Error::Lost(transport_error().await))),
            (Unknown, "CENTRAL_CONNECTION_LOST", "unknown", None, -1, &[]),
        ),
        (
            change(Error::TimedOut(exchange::Error::TimedOut(transport_error().await))),
            (DeadlineExceeded, "CENTRAL_TIMEOUT", "unknown", None, -1, &[]),
        ),
        (change(Error::AuditUnavailable), (FailedPrecondition, "AUDIT_UNAVAILABLE", "not_applied", None, -1, &[])),
        (
            change(Error::Deadline { nothing_was_sent: true }),
            (DeadlineExceeded, "DEADLINE_EXCEEDED", "not_applied", None, -1, &[]),
        ),
        (
            change(Error::Deadline { nothing_was_sent: false }),
            (DeadlineExceeded, "DEADLINE_EXCEEDED", "unknown", None, -1, &[]),
        ),
        (
            change(Error::NotPermitted { why: "read_only".to_owned() }),
            (PermissionDenied, "POLICY_DENIED", "not_applied", None, -1, &[]),
        ),
        (
            change(Error::ReadsSpent { retry_after: ten }),
            (ResourceExhausted, "CALLER_QUOTA_EXHAUSTED", "not_applied", None, 10_000, quota),
        ),
        (change(Error::Bug), (Internal, "GATEWAY_INTERNAL", "unknown", None, -1, &[])),
        // Reads change nothing, whatever becomes of them.
        (
            Failure::Read(Arc::new(Error::Unavailable { status: 502 })),
            (Unavailable, "CENTRAL_UNAVAILABLE", "not_applied", Some("502"), 1_000, retry),
        ),
        (
            Failure::Read(Arc::new(Error::Internal { status: 500 })),
            (Internal, "CENTRAL_INTERNAL", "not_applied", Some("500"), -1, &[]),
        ),
        (
            Failure::Read(Arc::new(Error::Unexpected { status: 302 })),
            (Internal, "CENTRAL_UNEXPECTED", "not_applied", Some("302"), -1, &[]),
        ),
        (
            Failure::Read(Arc::new(Error::Unreadable { status: 200 })),
            (Internal, "CENTRAL_UNEXPECTED", "not_applied", Some("200"), -1, &[]),
        ),
        (
            Failure::Read(Arc::new(Error::ConnectionLost(exchange::Error::Lost(transport_error().await)))),
            (Unavailable, "CENTRAL_CONNECTION_LOST", "not_applied", None, 1_000, retry),
        ),
        (
            Failure::Read(Arc::new(Error::TimedOut(exchange::Error::TimedOut(transport_error().await)))),
            (DeadlineExceeded, "CENTRAL_TIMEOUT", "not_applied", None, -1, &[]),
        ),
    ]
}

#[tokio::test]
async fn every_failure_is_told_in_full() {
    for (failure, (code, reason, outcome, http_status, pushback, own_details)) in table().await {
        let operation_id = OperationId::new();
        let status = answer(&failure, operation_id);
        assert_eq!(status.code(), code, "{failure:?}");
        assert!(
            status.code() != Code::Unavailable || outcome == "not_applied",
            "proxies repeat UNAVAILABLE: {failure:?}"
        );
        assert!(header_bytes(&status) <= row::MOST_HEADER_BYTES, "{failure:?}");
        assert_eq!(status.metadata().get(PUSHBACK).unwrap().to_str().unwrap(), pushback.to_string(), "{failure:?}");

        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), (DOMAIN, reason));
        let mut metadata = HashMap::from([("outcome", outcome.to_owned()), ("operation_id", operation_id.to_string())]);
        metadata.extend(http_status.map(|status| ("http_status", status.to_owned())));
        assert_eq!(info.metadata, metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(), "{failure:?}");
        assert_eq!(details.request_info().unwrap().request_id, operation_id.to_string());
        if pushback >= 0 {
            let wait = details.retry_info().unwrap().retry_delay.unwrap();
            assert_eq!(i64::try_from(wait.as_millis()).unwrap(), pushback, "{failure:?}");
        }
        assert_eq!(detail_names(&status), {
            let all = ["ErrorInfo", "RequestInfo"].into_iter().chain(own_details.iter().copied());
            all.map(str::to_owned).collect::<BTreeSet<_>>()
        });
        assert!(!status.message().is_empty());
    }
}

#[tokio::test]
async fn the_readme_has_every_reason_of_the_table_and_no_other() {
    let readme = include_str!("../../../README.md");
    let shown =
        readme.split("<!-- failures:start -->").nth(1).and_then(|rest| rest.split("<!-- failures:end -->").next());
    let shown: BTreeSet<_> = shown
        .expect("README.md has a failure table between its two comments")
        .split('`')
        .filter(|word| word.len() > 3 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    let table = table().await;
    let codes: BTreeSet<_> = ["INVALID_ARGUMENT", "PERMISSION_DENIED"].into();
    // Recorded failures are told of another operation than the request's: not in that table.
    let recorded = ["GATEWAY_CRASHED"];
    let expected: BTreeSet<_> = table.iter().map(|(_, (_, reason, ..))| *reason).chain(recorded).collect();
    assert_eq!(shown.difference(&codes).copied().collect::<BTreeSet<_>>(), expected);
}

/// The short names of all details; each type stands at most once.
fn detail_names(status: &Status) -> BTreeSet<String> {
    let status = pb::Status::decode(status.details()).unwrap();
    let names: Vec<_> = status.details.iter().map(|any| any.type_url.rsplit('.').next().unwrap().to_owned()).collect();
    let set: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(names.len(), set.len(), "{names:?}");
    set
}

/// For a caller who waits for ever.
fn answer(failure: &Failure, operation_id: OperationId) -> Status {
    respond(failure, operation_id, None, Instant::now())
}

fn partly(error: Error, [applied, not_applied, unknown]: [Vec<CustomerId>; 3]) -> Failure {
    let parts = Parts { applied, not_applied, unknown };
    Failure::Change(Failed {
        error: Arc::new(error),
        outcome: Outcome::Partial,
        calls: 2,
        parts: Some(Box::new(parts)),
    })
}

fn partial(status: &Status) -> PartialOutcome {
    let details = pb::Status::decode(status.details()).unwrap().details;
    let partial = details.iter().find(|any| any.type_url.ends_with("PartialOutcome")).unwrap();
    assert_eq!(partial.type_url, "type.googleapis.com/central.licensing.v1.PartialOutcome");
    PartialOutcome::decode(&*partial.value).unwrap()
}

/// What a failure's headers take on the wire, as HTTP/2 counts them.
fn header_bytes(status: &Status) -> usize {
    let mut headers = HeaderMap::new();
    headers.insert("date", "Tue, 07 Oct 2025 23:59:50 GMT".parse().unwrap());
    headers.insert("content-type", "application/grpc".parse().unwrap());
    status.add_header(&mut headers).unwrap();
    let http_status = ":status200".len() + 32;
    http_status + headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum::<usize>()
}

#[test]
fn partial_outcomes_name_every_customer_that_fits_and_count_all() {
    let status = answer(
        &partly(Error::Internal { status: 500 }, [vec![id("a"), id("b")], vec![], vec![id("c")]]),
        OperationId::new(),
    );
    let few = partial(&status);
    assert_eq!((few.applied_customer_ids, few.applied_count), (vec!["a".to_owned(), "b".to_owned()], 2));
    assert_eq!((few.unknown_customer_ids, few.unknown_count), (vec!["c".to_owned()], 1));
    assert_eq!((few.not_applied_customer_ids.len(), few.not_applied_count), (0, 0));

    for (width, least) in [(32, 30), (128, 8), (1, 300)] {
        let ids = |count: usize| (0..count).map(|n| id(&format!("{:0width$}", n % 10))).collect::<Vec<_>>();
        for counts in [[1_000, 0, 0], [500, 499, 1], [0, 2, 998], [334, 333, 333]] {
            let status = answer(&partly(Error::Conflict, counts.map(ids)), OperationId::new());
            let bytes = header_bytes(&status);
            assert!(bytes <= row::MOST_HEADER_BYTES, "{counts:?} of {width}: {bytes} bytes");
            let many = partial(&status);
            let all = [many.applied_count, many.not_applied_count, many.unknown_count].map(|count| count as usize);
            assert_eq!(all, counts);
            let shown = [&many.applied_customer_ids, &many.not_applied_customer_ids, &many.unknown_customer_ids];
            let shown = shown.map(Vec::len);
            assert!(shown.iter().sum::<usize>() >= least, "{shown:?} of {counts:?}");
            assert!(
                shown.iter().zip(counts).all(|(shown, all)| *shown == all || *shown >= 2),
                "{shown:?} of {counts:?}"
            );
            assert_eq!(reason_and_outcome(&status), ("CENTRAL_CONFLICT".to_owned(), "partial".to_owned()));
        }
    }
}

fn reason_and_outcome(status: &Status) -> (String, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    (info.reason.clone(), info.metadata["outcome"].clone())
}

#[tokio::test]
async fn a_partial_outcome_is_never_told_as_if_nothing_happened() {
    for (failure, _) in table().await {
        let Failure::Change(Failed { error, .. }) = failure else { continue };
        let error = Arc::into_inner(error).expect("nobody else has it");
        let status = answer(&partly(error, [vec![id("a")], vec![id("b")], vec![]]), OperationId::new());
        let message = status.message();
        assert!(message.contains("1 customers are done, 1 are not, of 0 it is not known"), "{message}");
        for word in ["nothing", "safe", "before anything"] {
            assert!(!message.contains(word), "{message}");
        }
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "-1");
        assert_ne!(status.code(), Code::Unavailable, "proxies repeat it: {message}");
        assert_eq!(reason_and_outcome(&status).1, "partial");
    }
}

#[test]
fn a_long_list_of_violations_is_cut_to_what_fits_with_its_count() {
    let violations = |count: usize, problem: &str| -> Vec<_> {
        (0..count)
            .map(|n| Violation { field: format!("include_customers.customer_ids[{n}]"), problem: problem.to_owned() })
            .collect()
    };
    let told = |violations: Vec<Violation>| {
        let status = answer(&Failure::InvalidRequest(violations), OperationId::new());
        let bytes = header_bytes(&status);
        assert!(bytes <= row::MOST_HEADER_BYTES, "{bytes} bytes");
        assert_eq!(reason_and_outcome(&status), ("INVALID_REQUEST".to_owned(), "not_applied".to_owned()));
        let shown = status.get_error_details().bad_request().unwrap().field_violations.clone();
        (status.message().to_owned(), shown)
    };
    let (message, shown) = told(violations(5, "must not be blank"));
    assert_eq!(message, "include_customers.customer_ids[0] must not be blank; and 4 more, see the BadRequest detail");
    assert_eq!(shown.len(), 5);
    for problem in ["must not be blank", &"x".repeat(5_000), &"\u{e4}\u{1f600}".repeat(500), "%? {}"] {
        let (message, shown) = told(violations(1_100, problem));
        assert!(message.starts_with("include_customers.customer_ids[0] "), "{message}");
        let (last, first) = shown.split_last().unwrap();
        assert!(!first.is_empty(), "{problem:.10}");
        assert!(first[0].description.starts_with(&problem[..2]), "{first:?}");
        let more = 1_100 - first.len();
        assert_eq!(last.field, format!("include_customers.customer_ids[{}]", first.len()));
        assert!(last.description.starts_with(&format!("and {more} more violations")), "{last:?}");
    }
}

#[test]
fn a_wait_that_outlives_the_deadline_is_no_pushback() {
    let now = Instant::now();
    let pushback = |failure: &Failure, deadline_ms: Option<u64>| {
        let deadline = deadline_ms.map(|left| now + Duration::from_millis(left));
        let status = respond(failure, OperationId::new(), deadline, now);
        let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        (status.metadata().get(PUSHBACK).unwrap().to_str().unwrap().parse::<i64>().unwrap(), wait)
    };
    let second = Some(Duration::from_secs(1));
    for (deadline, expected) in [(None, 1_000), (Some(1_001), 1_000), (Some(1_000), -1), (Some(0), -1)] {
        assert_eq!(pushback(&Failure::Draining, deadline), (expected, second), "{deadline:?}");
    }
    assert_eq!(pushback(&Failure::OpenScopeDenied, Some(60_000)), (-1, None));
}

#[test]
fn a_limit_is_said_to_be_whose_it_is() {
    let day = Error::QuotaExhausted { wait: Duration::ZERO, is_answer: true };
    for (failure, subject) in [
        (Failure::Overloaded, "license-gateway: requests in the gateway"),
        (change(Error::Overloaded { retry_after: Duration::ZERO }), "license-gateway: requests waiting"),
        (refused(1), "license-gateway: customers per hour"),
        (change(day), "central: calls per day"),
    ] {
        let details = answer(&failure, OperationId::new()).get_error_details();
        let [violation] = &details.quota_failure().unwrap().violations[..] else { panic!("{failure:?}") };
        assert_eq!(violation.subject, subject);
        assert_eq!(violation.description.contains("Central limits"), subject.starts_with("central"), "{violation:?}");
    }
}
