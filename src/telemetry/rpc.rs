//! The layer around every RPC: opens its span, names the operation, records and measures how it ended.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{FutureExt as _, SpanBuilder, SpanKind, Status, TraceContextExt as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::{Code, transport::server::TcpConnectInfo};

use super::{Tracing, names};
use crate::license::OperationId;

/// What happened, in our own words. Whoever knows tells it by [`report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RpcOutcome {
    /// Whether anything happened: [`crate::license::Outcome::as_str`].
    pub outcome: &'static str,
    /// Why it failed, as in the answer's `ErrorInfo`.
    pub reason: Option<&'static str>,
}

/// Tells the span of the RPC that the running code belongs to what happened. The first word counts.
pub fn report(outcome: RpcOutcome) {
    if let Some(Reported(slot)) = Context::current().get() {
        let _ = slot.set(outcome);
    }
}

/// Where the code that knows leaves the outcome for the layer around it.
#[derive(Debug, Clone, Default)]
struct Reported(Arc<OnceLock<RpcOutcome>>);

/// An axum middleware, to stand outside of all others. Gives every RPC an [`OperationId`], which the layers inside
/// find in the request's extensions and log lines carry by themselves, and a span that continues the caller's trace.
/// Health checks and reflection pass untouched.
pub async fn trace_rpc(State(tracing): State<Tracing>, mut request: Request, next: Next) -> Response {
    if names::is_machinery(request.uri().path()) {
        return next.run(request).await;
    }
    let operation_id = OperationId::new();
    request.extensions_mut().insert(operation_id);
    let span = RpcSpan::open(&tracing, &request, operation_id);
    let response = next.run(request).with_context(span.context.clone()).await;
    if span.method.is_some_and(names::is_stream) && !response.headers().contains_key("grpc-status") {
        return response.map(|body| until_its_end(body, span));
    }
    span.close(status_code(&response));
    response
}

/// A stream's span ends with its trailers, or with the stream: then its caller has left.
fn until_its_end(body: Body, span: RpcSpan) -> Body {
    let mut span = Some(span);
    Body::new(body.map_frame(move |frame| {
        if let Some(code) = frame.trailers_ref().and_then(|trailers| trailers.get("grpc-status"))
            && let Some(span) = span.take()
        {
            span.close(Code::from_bytes(code.as_bytes()));
        }
        frame
    }))
}

/// The span of one RPC, and its measure. Dropped before it is closed, it ends as cancelled: the caller has gone.
struct RpcSpan {
    tracing: Tracing,
    context: Context,
    /// Whether `context` holds a span of ours. What is there otherwise is the caller's.
    has_span: bool,
    is_open: bool,
    method: Option<&'static str>,
    started: Instant,
}

impl RpcSpan {
    fn open(tracing: &Tracing, request: &Request, operation_id: OperationId) -> Self {
        let started = Instant::now();
        let headers = Headers(request.headers());
        let mut caller = Context::new();
        if tracing.reads_trace_context {
            caller = TraceContextPropagator::new().extract_with_context(&caller, &headers);
        }
        let caller = caller.with_value(operation_id).with_value(Reported::default());

        // Whether to sample is decided on the caller's trace and the name alone, so that a request that is not
        // sampled does not pay for its attributes.
        let method = names::method(request.uri().path());
        let span = SpanBuilder::from_name(method.unwrap_or(names::GRPC)).with_kind(SpanKind::Server);
        let opened = tracing.open(span, &caller);
        let has_span = opened.is_some();
        let context = opened.unwrap_or(caller);
        if has_span && context.span().is_recording() {
            context.span().set_attributes(request_attributes(request, method, operation_id));
        }
        Self { tracing: tracing.clone(), context, has_span, is_open: true, method, started }
    }

    fn close(mut self, code: Code) {
        self.is_open = false;
        self.end(code);
    }

    fn end(&self, code: Code) {
        let reported = self.context.get::<Reported>().and_then(|slot| slot.0.get()).copied();
        self.tracing.metrics.rpc(self.method, code, reported, self.started.elapsed());
        if !self.has_span {
            return;
        }
        let span = self.context.span();
        if span.is_recording() {
            let name = code_name(code);
            for key in names::status_code(self.tracing.status_code_name) {
                span.set_attribute(KeyValue::new(key, name));
            }
            if code != Code::Ok {
                span.set_attribute(KeyValue::new(names::ERROR_TYPE, name));
            }
            if is_our_failure(code) {
                span.set_status(Status::error(reported.and_then(|outcome| outcome.reason).unwrap_or_default()));
            }
            if let Some(RpcOutcome { outcome, reason }) = reported {
                span.set_attribute(KeyValue::new(names::OUTCOME, outcome));
                span.set_attributes(reason.map(|reason| KeyValue::new(names::REASON, reason)));
            }
        }
        // Explicitly: a detached task may hold the context, and with it the span, for much longer.
        span.end();
    }
}

impl Drop for RpcSpan {
    fn drop(&mut self) {
        if self.is_open {
            self.end(if std::thread::panicking() { Code::Internal } else { Code::Cancelled });
        }
    }
}

fn request_attributes(request: &Request, method: Option<&'static str>, operation_id: OperationId) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new(names::RPC_SYSTEM_NAME, names::GRPC),
        KeyValue::new(names::RPC_METHOD, method.unwrap_or(names::OTHER_METHOD)),
        KeyValue::new(names::OPERATION_ID, operation_id.to_string()),
    ];
    if method.is_none() {
        let path: String = request.uri().path().trim_start_matches('/').chars().take(MAX_ORIGINAL_METHOD).collect();
        attributes.push(KeyValue::new(names::RPC_METHOD_ORIGINAL, path));
    }
    // What the caller calls us, which a load balancer's socket does not tell.
    if let Some(authority) = request.uri().authority() {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        attributes.push(KeyValue::new(names::SERVER_ADDRESS, host.to_owned()));
        attributes.extend(authority.port_u16().map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port))));
    }
    if let Some(peer) = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr) {
        attributes.push(KeyValue::new(names::NETWORK_PEER_ADDRESS, peer.ip().to_string()));
        attributes.push(KeyValue::new(names::NETWORK_PEER_PORT, i64::from(peer.port())));
    }
    attributes
}

/// The longest unknown method that is recorded, in characters: anybody can send one.
const MAX_ORIGINAL_METHOD: usize = 256;

/// A failure stands in the headers, because no message comes before it; a success in the trailers, which have not
/// been made yet. What is not gRPC at all is read as gRPC's mapping from HTTP says.
fn status_code(response: &Response) -> Code {
    match (response.headers().get("grpc-status"), response.status()) {
        (Some(code), _) => Code::from_bytes(code.as_bytes()),
        (None, StatusCode::OK) => Code::Ok,
        (None, StatusCode::BAD_REQUEST) => Code::Internal,
        (None, StatusCode::UNAUTHORIZED) => Code::Unauthenticated,
        (None, StatusCode::FORBIDDEN) => Code::PermissionDenied,
        (None, StatusCode::NOT_FOUND) => Code::Unimplemented,
        (
            None,
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT,
        ) => Code::Unavailable,
        (None, _) => Code::Unknown,
    }
}

/// A status code as gRPC's documents spell it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a code means that the server failed, not the caller. The conventions list them.
fn is_our_failure(code: Code) -> bool {
    match code {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => true,
        Code::Ok
        | Code::Cancelled
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unauthenticated => false,
    }
}

/// Headers as OpenTelemetry reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
