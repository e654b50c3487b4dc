//! What holds for every RPC: a deadline that is answered as one, panics that stay inside, refusals while draining, and
//! failures of the transport in the same words as all others.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::HeaderMap;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    central::SentMark,
    deadline::within,
    license::OperationId,
    service::{
        Deadline, Draining, Room,
        status::{self, Failure},
    },
    telemetry::metrics::{Metrics, Shed},
};

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// How much before the caller's deadline answers leave: an answer that arrives after the caller's own timer is never
/// seen, and with it what the caller needs to know most: whether anything was sent.
///
/// Some milliseconds for the way, and a hundredth because gRPC's C core (Python, C++, Ruby) rounds `grpc-timeout` up
/// by as much: it sends 1010m for a second, 10100m for ten, 121S for two minutes.
fn head_start(allowed: Duration) -> Duration {
    Duration::from_millis(20).min(allowed / 10) + allowed / 100
}

/// One in so many requests may be a read on top: reads keep a share of their own.
const CHANGES_PER_READ: usize = 8;

/// Stands around every RPC.
#[derive(Debug, Clone)]
pub(super) struct Boundary {
    draining: CancellationToken,
    /// Capacity for requests that change something.
    changes: Arc<Semaphore>,
    /// Capacity for reads.
    reads: Arc<Semaphore>,
    /// Counts what is not finished.
    work: TaskTracker,
    metrics: Metrics,
}

impl Boundary {
    /// Open for `max_requests` requests at once, which count as `work` until they are answered.
    pub(super) fn new(max_requests: usize, work: TaskTracker, metrics: Metrics) -> Self {
        Self {
            draining: CancellationToken::new(),
            changes: Arc::new(Semaphore::new(max_requests)),
            reads: Arc::new(Semaphore::new(max_requests.div_ceil(CHANGES_PER_READ))),
            work,
            metrics,
        }
    }

    /// From now on, requests are refused, and streams end.
    pub(super) fn drain(&self) {
        self.draining.cancel();
    }
}

/// Guards one RPC.
pub(super) async fn guard(State(boundary): State<Boundary>, mut request: Request, next: Next) -> Response {
    let operation_id = request.extensions().get().copied().unwrap_or_else(OperationId::new);
    let is_infrastructure = request.uri().path().starts_with("/grpc.");
    // What needs no call, or one that is kept for all.
    let cheap = ["/ListServices", "/ListCustomers", "/GetOperation", "/ListOperations"];
    let is_read = cheap.iter().any(|method| request.uri().path().ends_with(method));
    if boundary.draining.is_cancelled() && !is_infrastructure {
        boundary.metrics.shed(Shed::Draining);
        return respond(&Failure::Draining, operation_id, None);
    }
    let capacity = if is_read { &boundary.reads } else { &boundary.changes };
    if !is_infrastructure {
        let Ok(permit) = Arc::clone(capacity).try_acquire_owned() else {
            boundary.metrics.shed(Shed::QueueFull);
            let deadline = grpc_timeout(request.headers()).map(|allowed| Instant::now() + allowed);
            return respond(&Failure::Overloaded, operation_id, deadline);
        };
        request.extensions_mut().insert(Room(Arc::new(permit)));
    }
    let mark = SentMark::default();
    request.extensions_mut().insert(mark.clone());
    request.extensions_mut().insert(Draining(boundary.draining.clone()));
    let _unfinished = boundary.work.token();
    let deadline = grpc_timeout(request.headers()).map(|allowed| {
        let now = Instant::now();
        let head_start = head_start(allowed);
        request.extensions_mut().insert(Deadline(now + allowed.saturating_sub(head_start)));
        // The service keeps its deadline itself and knows whether anything was sent. This one is for messages that
        // arrive too slowly to reach the service. tonic's own timer, which ends later, would answer CANCELLED.
        now + allowed.saturating_sub(head_start / 2)
    });
    match within(deadline, next.run(request)).await {
        Ok(response) if is_infrastructure => response,
        Ok(response) => with_details(response, operation_id, &mark),
        Err(_) => respond(&Failure::DeadlineExceeded { nothing_was_sent: !mark.is_set() }, operation_id, None),
    }
}

/// Turns a panic of a handler into an answer that [`guard`] turns into a failure with details. The panic hook has logged it.
pub(super) fn catch_panics() -> CatchPanicLayer<fn(Box<dyn Any + Send + 'static>) -> Response> {
    CatchPanicLayer::custom(|_| {
        let mut response = Status::internal("").into_http();
        response.extensions_mut().insert(Panicked);
        response
    })
}

/// Marks the answer of a handler that panicked.
#[derive(Debug, Clone, Copy)]
struct Panicked;

/// Failures that tonic makes on its own have no details; ours always have.
fn with_details(response: Response, operation_id: OperationId, mark: &SentMark) -> Response {
    let headers = response.headers();
    if headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    let Some(code) = headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes())) else {
        return response;
    };
    let failure = match code {
        Code::Ok => return response,
        _ if response.extensions().get::<Panicked>().is_some() => Failure::Bug { nothing_was_sent: !mark.is_set() },
        // tonic's code for a message over the limit; the protocol wants RESOURCE_EXHAUSTED.
        Code::OutOfRange | Code::ResourceExhausted => Failure::MessageTooLarge,
        Code::Unimplemented => Failure::NotImplemented,
        _ => Failure::MessageMalformed,
    };
    respond(&failure, operation_id, None)
}

fn respond(failure: &Failure, operation_id: OperationId, deadline: Option<Instant>) -> Response {
    status::respond(failure, operation_id, deadline, Instant::now()).into_http()
}

/// How long the caller waits, by the header of the gRPC protocol: up to eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tonic_types::StatusExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        let table = [
            ("300m", Some(Duration::from_millis(300))),
            ("1H", Some(Duration::from_hours(1))),
            ("2M", Some(Duration::from_mins(2))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0m", Some(Duration::ZERO)),
            ("", None),
            ("m", None),
            ("300", None),
            ("300s", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            ("123456789S", None),
            ("1\u{e9}", None),
        ];
        for (text, expected) in table {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static(GRPC_TIMEOUT),
                HeaderValue::from_bytes(text.as_bytes()).unwrap(),
            )]);
            assert_eq!(grpc_timeout(&headers), expected, "{text:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn answers_leave_before_the_callers_own_timer() {
        // What the caller set, and what gRPC's C core makes of it.
        for (set, sent) in [(280, 300), (1_000, 1_010), (10_000, 10_100), (20_000, 20_100), (120_000, 121_000)] {
            let sent = Duration::from_millis(sent);
            let answered = sent.saturating_sub(head_start(sent));
            assert!(answered < Duration::from_millis(set), "{set} ms: answered at {answered:?}");
            assert!(answered > sent.mul_f64(0.85), "{set} ms: {answered:?} is much too early");
        }
    }

    /// Sends one request through all that stands around a handler.
    async fn through<F: Future<Output = Response> + Send + 'static>(
        method: &str,
        headers: &[(&'static str, &str)],
        handler: impl FnOnce() -> F + Clone + Send + Sync + 'static,
    ) -> Status {
        let boundary = Boundary::new(1, TaskTracker::new(), Metrics::disabled());
        let router = axum::Router::new()
            .fallback(handler)
            .layer(catch_panics())
            .layer(axum::middleware::from_fn_with_state(boundary, guard));
        let mut request = Request::builder().uri(format!("/central.licensing.v1.LicensingService/{method}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        Status::from_header_map(response.headers()).expect("a failure")
    }

    fn reason_and_outcome(status: &Status) -> (String, String) {
        let details = status.get_error_details();
        let info = details.error_info().expect("every failure has one");
        (info.reason.clone(), info.metadata["outcome"].clone())
    }

    const UNASSIGN: &str = "UnassignLicenses";

    #[tokio::test]
    async fn a_panic_after_sending_is_told_as_unknown() {
        async fn handler(request: Request) -> Response {
            request.extensions().get::<SentMark>().expect("every RPC has one").set();
            panic!("on purpose")
        }
        let boundary = Boundary::new(1, TaskTracker::new(), Metrics::disabled());
        let router = axum::Router::new()
            .fallback(handler)
            .layer(catch_panics())
            .layer(axum::middleware::from_fn_with_state(boundary, guard));
        let request = Request::builder().uri("/central.licensing.v1.LicensingService/UnassignLicenses");
        let response = router.oneshot(request.body(axum::body::Body::empty()).unwrap()).await.unwrap();
        let status = Status::from_header_map(response.headers()).expect("a failure");
        assert_eq!(reason_and_outcome(&status), ("GATEWAY_INTERNAL".to_owned(), "unknown".to_owned()));
    }

    #[tokio::test]
    async fn a_panic_stays_inside_and_nothing_was_sent() {
        let status = through(UNASSIGN, &[], || async { panic!("on purpose") }).await;
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(reason_and_outcome(&status), ("GATEWAY_INTERNAL".to_owned(), "not_applied".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_never_arrives_does_not_outlive_its_deadline() {
        let began = Instant::now();
        let status = through(UNASSIGN, &[("grpc-timeout", "300m")], std::future::pending).await;
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(reason_and_outcome(&status).1, "not_applied");
        assert!(began.elapsed() < Duration::from_millis(300));
    }

    #[tokio::test]
    async fn failures_of_the_transport_get_our_words_and_ours_keep_theirs() {
        let table = [
            (Status::out_of_range("too large"), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Status::unimplemented(""), Code::Unimplemented, "NOT_IMPLEMENTED"),
            (Status::internal("bad bytes"), Code::Internal, "MESSAGE_MALFORMED"),
            (
                status::respond(&Failure::OpenScopeDenied, OperationId::new(), None, Instant::now()),
                Code::PermissionDenied,
                "POLICY_DENIED",
            ),
        ];
        for (made, code, reason) in table {
            let status = through("UnassignLicenses", &[], move || async move { made.into_http() }).await;
            assert_eq!((status.code(), reason_and_outcome(&status).0.as_str()), (code, reason));
        }
    }
}
