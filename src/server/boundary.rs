//! What holds for every RPC: a deadline that is answered as one, panics that stay inside, refusals while draining, and
//! failures of the transport in the same words as all others.

use std::{
    any::Any,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ALLOW, AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::{
    sync::Semaphore,
    time::{Instant, Sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};
use tower_http::catch_panic::CatchPanicLayer;

use super::{
    MAX_MESSAGE_BYTES,
    connections::{Held, Peer},
    tls::ClientCertificate,
};
use crate::{
    callers::{Callers, Identity, Unidentified},
    central::{LONGEST_WATCH, SentMark},
    config,
    license::OperationId,
    service::{
        Deadline, Draining, Room,
        status::{self, Failure, Violation},
    },
    telemetry::metrics::{Closed, Metrics, Shed},
};

const GRPC_TIMEOUT: &str = "grpc-timeout";
const GRPC_ENCODING: &str = "grpc-encoding";
const GRPC_ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// The metadata of a request, counted as HTTP/2 counts it. Peers are allowed some more on the wire, so that too much is
/// refused here, in our words.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// What HTTP/2 counts for a header beside its name and value.
const HEADER_BYTES: usize = 32;
/// What a stream of reflection may hold: what its peer may send ahead, or answers that it has not taken.
const REFLECTION_BYTES: usize = 256 * 1024;
/// What stands before a message.
const MESSAGE_HEAD_BYTES: usize = 5;

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

/// What needs no call, or one that is kept for all.
const CHEAP: [&str; 4] = ["/ListServices", "/ListCustomers", "/GetOperation", "/ListOperations"];

/// Stands around every RPC.
#[derive(Debug, Clone)]
pub(super) struct Boundary {
    draining: CancellationToken,
    callers: Arc<Callers>,
    /// Capacity for requests that change something.
    changes: Arc<Semaphore>,
    /// Capacity for reads.
    reads: Arc<Semaphore>,
    /// How long a message may take to arrive.
    receive_timeout: Duration,
    /// How long a request may take, whatever its caller says.
    max_deadline: Duration,
    /// Counts what is not finished.
    work: TaskTracker,
    metrics: Metrics,
}

impl Boundary {
    /// Open for `max_requests` requests at once, which count as `work` until they are answered.
    pub(super) fn new(settings: &config::Server, callers: Arc<Callers>, work: TaskTracker, metrics: Metrics) -> Self {
        Self {
            draining: CancellationToken::new(),
            callers,
            changes: Arc::new(Semaphore::new(settings.max_requests)),
            reads: Arc::new(Semaphore::new(settings.max_requests.div_ceil(CHANGES_PER_READ))),
            receive_timeout: settings.receive_timeout,
            max_deadline: settings.max_deadline,
            work,
            metrics,
        }
    }

    /// From now on, requests are refused, and streams end.
    pub(super) fn drain(&self) {
        self.draining.cancel();
    }
}

/// Guards one RPC: first what costs nothing, then who is calling, then the message. Only what has all of it takes up
/// capacity, so that nobody can hold it by saying half.
pub(super) async fn guard(State(boundary): State<Boundary>, mut request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        refused(&request);
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "POST")]).into_response();
    }
    if !is_grpc(request.headers()) {
        refused(&request);
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let operation_id = request.extensions().get().copied().unwrap_or_else(OperationId::new);
    let is_infrastructure = is_infrastructure(&request);
    if boundary.draining.is_cancelled() && !is_infrastructure {
        boundary.metrics.shed(Shed::Draining);
        return respond(&Failure::Draining, operation_id, None);
    }
    let now = Instant::now();
    let longest = longest(boundary.max_deadline, request.uri().path());
    let (allowed, is_callers) = match grpc_timeout(request.headers()) {
        Ok(Some(allowed)) if allowed <= longest => (allowed, true),
        Ok(_) => (longest, false),
        Err(malformed) => {
            refused(&request);
            return respond(&Failure::InvalidRequest(vec![malformed]), operation_id, None);
        }
    };
    let head_start = head_start(allowed);
    let at = now + allowed.saturating_sub(head_start);
    request.extensions_mut().insert(Deadline { at, is_callers });
    // The service keeps its deadline itself and knows whether anything was sent. This one is for what does not reach
    // the service in time.
    let deadline = now + allowed.saturating_sub(head_start / 2);
    if is_reflection(request.uri().path()) {
        // Both sides of it are streams, and the one ends with the other.
        request = request.map(|body| Body::new(Ending { body, at: Box::pin(sleep_until(deadline)) }));
    }
    let mark = SentMark::default();
    request.extensions_mut().insert(mark.clone());
    request.extensions_mut().insert(Draining(boundary.draining.clone()));
    let _unfinished = boundary.work.token();
    let is_compressed = request.headers().get(GRPC_ENCODING).is_some_and(|encoding| encoding != "identity");
    match timeout_at(deadline, answered(&boundary, request, next)).await {
        Ok(Ok(response)) if is_infrastructure => response,
        Ok(Ok(response)) => with_details(response, operation_id, &mark, is_compressed),
        Ok(Err(failure)) => respond(&failure, operation_id, Some(deadline).filter(|_| is_callers)),
        Err(_) => respond(&Failure::DeadlineExceeded { nothing_was_sent: !mark.is_set() }, operation_id, None),
    }
}

/// Lets a request in, and has it answered.
async fn answered(boundary: &Boundary, request: Request, next: Next) -> Result<Response, Failure> {
    let is_infrastructure = is_infrastructure(&request);
    let peer = request.extensions().get::<Arc<Peer>>().cloned();
    match boundary.admit(request).await {
        Ok((request, held)) => {
            match peer {
                Some(peer) if is_infrastructure => peer.asks_for_public(),
                Some(peer) => peer.admit(),
                None => {}
            }
            let mut response = next.run(request).await;
            if let Some(held) = held {
                response.extensions_mut().insert(Arc::new(held));
            }
            Ok(response)
        }
        Err(NotTaken { failure, is_strangers }) => {
            if let Some(peer) = peer.filter(|_| is_strangers) {
                peer.refused();
            }
            Err(failure)
        }
    }
}

/// Whether it is for health or reflection, and not for the contract.
fn is_infrastructure(request: &Request) -> bool {
    request.uri().path().starts_with("/grpc.")
}

fn is_reflection(path: &str) -> bool {
    path.starts_with("/grpc.reflection.")
}

/// How long a request may take. A watch looks for hours if it must: it has a bound of its own.
fn longest(max_deadline: Duration, path: &str) -> Duration {
    if path.ends_with("/WatchRelease") { max_deadline.max(LONGEST_WATCH) } else { max_deadline }
}

/// Why a request is not taken.
struct NotTaken {
    failure: Failure,
    /// Whether it speaks against its peer.
    is_strangers: bool,
}

impl NotTaken {
    fn strangers(failure: Failure) -> Self {
        Self { failure, is_strangers: true }
    }
}

impl Boundary {
    /// The request with its caller, its whole message and, last, its place among those that are in the gateway. Or, if it is
    /// for everybody, with what it holds: it has no such place.
    async fn admit(&self, request: Request) -> Result<(Request, Option<Held>), NotTaken> {
        let path = request.uri().path();
        let is_cheap = CHEAP.iter().any(|method| path.ends_with(method));
        let capacity = if is_cheap { &self.reads } else { &self.changes };
        let (is_infrastructure, is_reflection) = (is_infrastructure(&request), is_reflection(path));
        let metadata_bytes = metadata_bytes(request.headers());
        if metadata_bytes > MAX_METADATA_BYTES {
            return Err(NotTaken::strangers(Failure::MetadataTooLarge));
        }
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let overloaded = || {
            self.metrics.shed(Shed::QueueFull);
            NotTaken { failure: Failure::Overloaded, is_strangers: false }
        };
        let mut held = match &peer {
            Some(peer) => {
                let bytes = metadata_bytes + if is_reflection { REFLECTION_BYTES } else { 0 };
                Some(Held::new(peer, is_infrastructure, bytes).ok_or_else(overloaded)?)
            }
            None => None,
        };
        if is_reflection {
            return Ok((request, held));
        }
        let (mut parts, body) = request.into_parts();
        if !is_infrastructure {
            let identity = self.identify(&parts.headers, peer.as_deref()).await?;
            parts.extensions.insert(identity);
            if capacity.available_permits() == 0 {
                return Err(overloaded());
            }
        }
        let message = match timeout(self.receive_timeout, whole(body, held.as_mut())).await {
            Ok(Ok(message)) => message,
            Ok(Err(Incomplete::TooLarge)) => return Err(NotTaken::strangers(Failure::MessageTooLarge)),
            Ok(Err(Incomplete::NoRoom)) => return Err(overloaded()),
            Ok(Err(Incomplete::Broken)) => return Err(NotTaken::strangers(Failure::MessageMalformed)),
            Err(_) => return Err(NotTaken::strangers(Failure::DeadlineExceeded { nothing_was_sent: true })),
        };
        if !is_infrastructure {
            let permit = Arc::clone(capacity).try_acquire_owned().map_err(|_| overloaded())?;
            parts.extensions.insert(Room(Arc::new(permit)));
            held = None;
        }
        Ok((Request::from_parts(parts, Body::from(message)), held))
    }

    /// Who is calling: by the token of the request or the certificate of the connection.
    async fn identify(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Identity, NotTaken> {
        let certificate = peer.and_then(|peer| peer.certificate.get());
        if let (Some(certificate), Some(peer)) = (certificate, peer)
            && !certificate.holds()
        {
            peer.end(Closed::Certificate);
            return Err(NotTaken::strangers(Failure::CallerUnauthenticated(Unidentified::CertificateOutdated)));
        }
        let certificate = certificate.map(ClientCertificate::own);
        let authorization: Vec<_> = headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes).collect();
        let identified = self.callers.identify(certificate, &authorization).await;
        identified.map_err(|unidentified| NotTaken {
            is_strangers: unidentified != Unidentified::KeysUnavailable,
            failure: Failure::CallerUnauthenticated(unidentified),
        })
    }
}

/// A body that ends at a point in time, whatever was still to come.
struct Ending {
    body: Body,
    at: Pin<Box<Sleep>>,
}

impl hyper::body::Body for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.at.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

/// Why there is no whole message.
enum Incomplete {
    TooLarge,
    NoRoom,
    Broken,
}

/// All of a body, up to the largest message.
async fn whole(mut body: Body, mut held: Option<&mut Held>) -> Result<Bytes, Incomplete> {
    let (mut first, mut all) = (Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Incomplete::Broken)?.into_data() else { continue };
        if !held.as_mut().is_none_or(|held| held.more(data.len())) {
            return Err(Incomplete::NoRoom);
        }
        if first.len() + all.len() + data.len() > MAX_MESSAGE_BYTES + MESSAGE_HEAD_BYTES {
            return Err(Incomplete::TooLarge);
        }
        // Most messages come in one piece.
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

/// A browser's form must not act, and what is no gRPC cannot read our answers: only gRPC's own content types will do.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut content_types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(content_type), None) = (content_types.next(), content_types.next()) else { return false };
    let essence = content_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    matches!(essence.trim_ascii_end(), b"application/grpc" | b"application/grpc+proto")
}

/// Counts a refusal of a request that nobody has looked into.
fn refused(request: &Request) {
    if let Some(peer) = request.extensions().get::<Arc<Peer>>() {
        peer.refused();
    }
}

fn metadata_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES).sum()
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
fn with_details(response: Response, operation_id: OperationId, mark: &SentMark, is_compressed: bool) -> Response {
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
        Code::Unimplemented if is_compressed => Failure::EncodingUnknown,
        Code::Unimplemented => Failure::NotImplemented,
        _ => Failure::MessageMalformed,
    };
    let mut response = respond(&failure, operation_id, None);
    if is_compressed {
        response.headers_mut().insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    response
}

fn respond(failure: &Failure, operation_id: OperationId, deadline: Option<Instant>) -> Response {
    status::respond(failure, operation_id, deadline, Instant::now()).into_http()
}

/// How long the caller waits, by the header of the gRPC protocol: up to eight digits and a unit. None: as long as it
/// takes.
fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Violation> {
    let Some(value) = headers.get(GRPC_TIMEOUT) else { return Ok(None) };
    let read = value.to_str().ok().and_then(timeout_of);
    // Without a deadline it might run long after its caller has stopped waiting.
    let problem = "is no time as gRPC writes it: up to eight digits and one of the units H, M, S, m, u, n";
    read.map(Some).ok_or_else(|| Violation { field: GRPC_TIMEOUT.to_owned(), problem: problem.to_owned() })
}

fn timeout_of(text: &str) -> Option<Duration> {
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
    use crate::{config::Config, token::Store};

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
            assert_eq!(grpc_timeout(&headers).ok(), expected.map(Some), "{text:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn only_content_types_of_grpc_are_grpc() {
        let is_grpc_of =
            |value: &'static str| is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]));
        for value in ["application/grpc", "application/grpc+proto", "application/grpc; charset=utf-8"] {
            assert!(is_grpc_of(value), "{value}");
        }
        for value in
            ["text/plain", "application/json", "application/grpc-web", "application/grpc+json", "", "application/grpcx"]
        {
            assert!(!is_grpc_of(value), "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
        let mut both = HeaderMap::new();
        both.append(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        both.append(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        assert!(!is_grpc(&both));
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

    /// A boundary for one request at a time, on this machine: everybody is anonymous.
    async fn boundary() -> (Boundary, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let settings = [
            ("SERVER__MAX_REQUESTS", "1"),
            ("CENTRAL__BASE_URL", "https://central.test"),
            ("CREDENTIALS__CLIENT_ID", "gateway"),
            ("CREDENTIALS__CLIENT_SECRET_FILE", secret.to_str().unwrap()),
            ("TOKEN_STORE__PATH", dir.path().to_str().unwrap()),
        ];
        let settings = settings.map(|(name, value)| (format!("LICENSE_GATEWAY__{name}"), value.to_owned()));
        let config = Config::load(None, settings).unwrap();
        let store = Store::open(&config.token_store).await.unwrap();
        let callers = Callers::new(&config, std::net::Ipv4Addr::LOCALHOST.into(), store.usage()).unwrap();
        (Boundary::new(&config.server, Arc::new(callers), TaskTracker::new(), Metrics::disabled()), dir)
    }

    /// Sends one request through all that stands around a handler.
    async fn through<F: Future<Output = Response> + Send + 'static>(
        method: &str,
        headers: &[(&'static str, &str)],
        handler: impl FnOnce() -> F + Clone + Send + Sync + 'static,
    ) -> Status {
        let (boundary, _dir) = boundary().await;
        let router = axum::Router::new()
            .fallback(handler)
            .layer(catch_panics())
            .layer(axum::middleware::from_fn_with_state(boundary, guard));
        let mut request = Request::builder().method(Method::POST).header(CONTENT_TYPE, "application/grpc");
        request = request.uri(format!("/central.licensing.v1.LicensingService/{method}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
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
        let (boundary, _dir) = boundary().await;
        let router = axum::Router::new()
            .fallback(handler)
            .layer(catch_panics())
            .layer(axum::middleware::from_fn_with_state(boundary, guard));
        let request =
            Request::builder().method(Method::POST).uri("/central.licensing.v1.LicensingService/UnassignLicenses");
        let request = request.header(CONTENT_TYPE, "application/grpc");
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
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
