//! Traces, without a gateway: the middleware around a small router, the spans of calls, the flush.

use std::{
    future,
    net::TcpListener,
    process::Command,
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    body::Body,
    http::{Request, Response, StatusCode},
    middleware,
    routing::any,
};
use license_gateway::{
    config,
    license::OperationId,
    telemetry::{
        ExporterError, Origin, Telemetry, Tracing,
        http::{ClientSpan, Try},
        log,
        rpc::{self, RpcOutcome},
    },
};
use tokio::{sync::oneshot, task};
use tonic::transport::{Identity, server::TcpConnectInfo};
use tower::ServiceExt as _;
use url::Url;

use crate::{
    collector::{Collector, Kind, Span, only},
    support::otel,
};

pub const UNASSIGN: &str = "central.licensing.v1.LicensingService/UnassignLicenses";
pub const CALLER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER_SPAN: &str = "00f067aa0ba902b7";
/// Longer than a flush over the loopback takes.
pub const ENOUGH: Duration = Duration::from_secs(10);

#[tokio::test]
async fn rpc_continues_the_trace_of_its_caller() {
    let (collector, telemetry) = start().await;
    let (send, receive) = oneshot::channel();
    let handler = answer(|operation: OperationId| {
        send.send((operation, Origin::current().operation_id())).expect("the test waits");
        rpc::report(RpcOutcome { outcome: "applied", reason: None });
        Response::new(Body::empty())
    });
    call(&telemetry, UNASSIGN, "01", handler).await;
    let (operation, seen_by_logs) = receive.await.expect("the handler ran");
    assert_eq!(seen_by_logs, Some(operation));

    let spans = finish(&collector, telemetry).await;
    let span = only(&spans, UNASSIGN);
    assert_eq!(span.kind(), Kind::Server);
    assert_eq!((span.trace_id(), span.parent_id()), (CALLER_TRACE.to_owned(), CALLER_SPAN.to_owned()));
    assert_eq!(span.attribute("rpc.system.name").as_deref(), Some("grpc"));
    assert_eq!(span.attribute("rpc.method").as_deref(), Some(UNASSIGN));
    assert_eq!(span.attribute("rpc.response.status_code").as_deref(), Some("OK"));
    assert_eq!(span.attribute("server.address").as_deref(), Some("gateway.test"));
    assert_eq!(span.attribute("server.port").as_deref(), Some("50051"));
    assert_eq!(span.attribute("network.peer.address").as_deref(), Some("192.0.2.7"));
    assert_eq!(span.attribute("network.peer.port").as_deref(), Some("40000"));
    assert_eq!(span.attribute("license_gateway.operation_id"), Some(operation.to_string()));
    assert_eq!(span.attribute("license_gateway.outcome").as_deref(), Some("applied"));
    assert_eq!(span.attribute("error.type"), None);
    assert!(!span.is_error());
    assert_eq!(span.resource("service.name").as_deref(), Some("license-gateway"));
    assert_eq!(span.resource("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert!(span.resource("service.instance.id").is_some());
}

#[tokio::test]
async fn failure_of_the_gateway_is_an_error_and_a_refusal_is_not() {
    let (collector, telemetry) = start().await;
    for (code, reason) in [(13, "CENTRAL_INTERNAL"), (3, "INVALID_REQUEST")] {
        let verdict = RpcOutcome { outcome: "unknown", reason: Some(reason) };
        let handler = answer(move |_| {
            rpc::report(verdict);
            Response::builder().header("grpc-status", code).body(Body::empty()).expect("a response")
        });
        call(&telemetry, UNASSIGN, "01", handler).await;
    }
    call(&telemetry, UNASSIGN, "01", answer(|_| status(StatusCode::SERVICE_UNAVAILABLE))).await;

    let spans = finish(&collector, telemetry).await;
    let seen: Vec<_> = spans
        .iter()
        .map(|span| {
            let code = span.attribute("rpc.response.status_code").expect("every span has it");
            assert_eq!(span.attribute("error.type"), Some(code.clone()));
            (code, span.attribute("license_gateway.reason"), span.is_error())
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("INTERNAL".to_owned(), Some("CENTRAL_INTERNAL".to_owned()), true),
            ("INVALID_ARGUMENT".to_owned(), Some("INVALID_REQUEST".to_owned()), false),
            ("UNAVAILABLE".to_owned(), None, true),
        ]
    );
}

#[tokio::test]
async fn unknown_method_does_not_name_its_span() {
    let (collector, telemetry) = start().await;
    let made_up = format!("made.up/{}", "x".repeat(10_000));
    call(&telemetry, &made_up, "01", answer(|_| status(StatusCode::OK))).await;

    let spans = finish(&collector, telemetry).await;
    let span = only(&spans, "grpc");
    assert_eq!(span.attribute("rpc.method").as_deref(), Some("_OTHER"));
    assert_eq!(span.attribute("rpc.method_original").as_deref(), Some(&made_up[..256]));
}

#[tokio::test]
async fn machinery_is_not_traced() {
    let (collector, telemetry) = start().await;
    for path in ["grpc.health.v1.Health/Check", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        call(&telemetry, path, "01", Router::new().fallback(|| async { StatusCode::OK })).await;
    }
    call(&telemetry, UNASSIGN, "01", answer(|_| status(StatusCode::OK))).await;
    assert_eq!(names(&finish(&collector, telemetry).await), [UNASSIGN]);
}

#[tokio::test]
async fn caller_decides_on_sampling() {
    let (collector, telemetry) = start().await;
    let tracing = telemetry.tracing();
    let handler = Router::new().fallback(|| async move {
        ClientSpan::start(&tracing, &Origin::current(), &[], &delete(&central())).answered(200);
        StatusCode::OK
    });
    call(&telemetry, UNASSIGN, "00", handler.clone()).await;
    assert_eq!(names(&finish(&collector, telemetry).await), [] as [&str; 0]);

    // The same with the other flag, so that the silence above means something.
    let (collector, telemetry) = start().await;
    call(&telemetry, UNASSIGN, "01", handler).await;
    assert_eq!(names(&finish(&collector, telemetry).await), [UNASSIGN]);
}

#[tokio::test]
async fn without_an_endpoint_requests_still_have_an_operation() {
    let telemetry = Telemetry::start(&config::Telemetry::default()).expect("nothing to start");
    let handler = answer(|operation| {
        assert_eq!(Origin::current().operation_id(), Some(operation));
        status(StatusCode::OK)
    });
    assert_eq!(call(&telemetry, UNASSIGN, "01", handler).await, StatusCode::OK);
    telemetry.shutdown(ENOUGH).await;
}

#[tokio::test]
async fn span_of_a_caller_who_left_ends_as_cancelled_while_the_call_goes_on() {
    let (collector, telemetry) = start().await;
    let tracing = telemetry.tracing();
    let (started, has_started) = oneshot::channel();
    let (proceed, may_proceed) = oneshot::channel::<()>();
    let (finished, has_finished) = oneshot::channel();
    let started = std::sync::Mutex::new(Some((started, may_proceed, finished)));
    let started = std::sync::Arc::new(started);
    let handler = Router::new().fallback(move || {
        let (started, may_proceed, finished) = started.lock().expect("no panic").take().expect("called once");
        let tracing = tracing.clone();
        async move {
            let origin = Origin::current();
            let call = async move {
                may_proceed.await.expect("the test goes on");
                ClientSpan::start(&tracing, &Origin::current(), &[], &delete(&central())).answered(200);
                finished.send(Origin::current().operation_id()).expect("the test waits");
            };
            task::spawn(origin.run(call));
            started.send(origin.operation_id()).expect("the test waits");
            future::pending::<StatusCode>().await
        }
    });
    let request = task::spawn({
        let tracing = telemetry.tracing();
        async move { layered(tracing, handler).oneshot(request(UNASSIGN, "01")).await }
    });
    let operation = has_started.await.expect("the handler ran");
    request.abort();
    assert!(request.await.expect_err("aborted").is_cancelled());
    proceed.send(()).expect("the call waits");
    assert_eq!(has_finished.await.expect("the call ran on"), operation);
    assert!(operation.is_some());

    let spans = finish(&collector, telemetry).await;
    let rpc = only(&spans, UNASSIGN);
    assert_eq!(rpc.attribute("rpc.response.status_code").as_deref(), Some("CANCELLED"));
    assert_eq!(rpc.attribute("error.type").as_deref(), Some("CANCELLED"));
    assert!(!rpc.is_error());
    let call = only(&spans, "DELETE /platform/licensing/v1/msp/subscriptions/devices/all");
    assert_eq!((call.trace_id(), call.parent_id()), (CALLER_TRACE.to_owned(), rpc.span_id()));
}

#[tokio::test]
async fn call_is_recorded_without_its_secrets() {
    let (collector, telemetry) = start().await;
    let mut url =
        Url::parse("https://us%65r:passw0rd@[2001:db8::1]:8443/a%20b?refresh_token=s3cr3t#s3cr3t").expect("a URL");
    let call = Try { resend_count: 2, ..delete(&url) };
    ClientSpan::start(&telemetry.tracing(), &Origin::none(), &[], &call).answered(503);
    url.set_port(None).expect("it can");
    ClientSpan::start(&telemetry.tracing(), &Origin::none(), &[], &delete(&url)).answered(204);

    let spans = finish(&collector, telemetry).await;
    let [failed, done] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(failed.name(), "DELETE /platform/licensing/v1/msp/subscriptions/devices/all");
    assert_eq!(failed.kind(), Kind::Client);
    assert_eq!(failed.parent_id(), "");
    assert_eq!(failed.attribute("http.request.method").as_deref(), Some("DELETE"));
    assert_eq!(failed.attribute("url.full").as_deref(), Some("https://[2001:db8::1]:8443/a%20b"));
    assert_eq!(
        failed.attribute("url.template").as_deref(),
        Some("/platform/licensing/v1/msp/subscriptions/devices/all")
    );
    assert_eq!(failed.attribute("server.address").as_deref(), Some("2001:db8::1"));
    assert_eq!(failed.attribute("server.port").as_deref(), Some("8443"));
    assert_eq!(failed.attribute("http.request.resend_count").as_deref(), Some("2"));
    assert_eq!(failed.attribute("http.response.status_code").as_deref(), Some("503"));
    assert_eq!(failed.attribute("network.protocol.version").as_deref(), Some("1.1"));
    assert_eq!(failed.attribute("error.type").as_deref(), Some("503"));
    assert!(failed.is_error());

    assert_eq!(done.attribute("url.full").as_deref(), Some("https://[2001:db8::1]/a%20b"));
    assert_eq!(done.attribute("server.port").as_deref(), Some("443"));
    assert_eq!(
        done.attribute_keys(),
        [
            "http.request.method",
            "http.response.status_code",
            "network.protocol.version",
            "server.address",
            "server.port",
            "url.full",
            "url.template"
        ]
    );
    assert!(!done.is_error());
    let everything = format!("{spans:?}");
    for secret in ["s3cr3t", "passw0rd", "us%65r", "refresh_token"] {
        assert!(!everything.contains(secret), "{secret} in {everything}");
    }
}

#[tokio::test]
async fn call_without_an_answer_says_why() {
    let (collector, telemetry) = start().await;
    let tracing = telemetry.tracing();
    ClientSpan::start(&tracing, &Origin::none(), &[], &delete(&central())).failed("timeout");
    drop(ClientSpan::start(&tracing, &Origin::none(), &[], &delete(&central())));

    let spans = finish(&collector, telemetry).await;
    let seen: Vec<_> = spans.iter().map(|span| (span.attribute("error.type"), span.is_error())).collect();
    assert_eq!(seen, [(Some("timeout".to_owned()), true), (Some("cancelled".to_owned()), true)]);
}

#[tokio::test]
async fn token_exchange_is_a_trace_of_its_own_linked_with_those_who_wait() {
    let (collector, telemetry) = start().await;
    let waiting = [origin_of_a_request(&telemetry, "01").await, origin_of_a_request(&telemetry, "01").await];
    let url = Url::parse("https://central.test/oauth2/token").expect("a URL");
    let exchange = Try { method: "POST", url: &url, template: "/oauth2/token", resend_count: 0 };
    let span = ClientSpan::start_root(&telemetry.tracing(), &waiting, &exchange);
    // What runs inside belongs to the exchange, not to one of those who wait.
    assert_eq!(span.origin().operation_id(), None);
    span.answered(200);

    let spans = finish(&collector, telemetry).await;
    let exchange = only(&spans, "POST /oauth2/token");
    let waiting: Vec<_> = spans.iter().filter(|span| span.kind() == Kind::Server).map(Span::ids).collect();
    assert_eq!(exchange.parent_id(), "");
    assert_ne!(exchange.trace_id(), CALLER_TRACE);
    assert_eq!(exchange.links(), waiting);
}

#[tokio::test]
async fn shared_call_is_linked_there_and_back() {
    let (collector, telemetry) = start().await;
    let tracing = telemetry.tracing();
    let url = central();
    let (open, [first, second]) = open_requests(&telemetry, ["01", "01"]).await;
    ClientSpan::start(&tracing, &first, &[second], &delete(&url)).answered(200);
    close(open).await;

    let spans = finish(&collector, telemetry).await;
    let call = spans.iter().find(|span| span.kind() == Kind::Client).expect("the call");
    let first = spans.iter().find(|span| span.span_id() == call.parent_id()).expect("its parent");
    let second = spans
        .iter()
        .find(|span| span.kind() == Kind::Server && span.span_id() != first.span_id())
        .expect("the other request");
    assert_eq!(call.links(), [second.ids()]);
    assert_eq!(second.links(), [call.ids()]);
    assert_eq!(first.links(), []);
}

#[tokio::test]
async fn shared_call_belongs_to_a_request_that_is_sampled() {
    let (collector, telemetry) = start().await;
    let tracing = telemetry.tracing();
    let (open, [unsampled, sampled]) = open_requests(&telemetry, ["00", "01"]).await;
    ClientSpan::start(&tracing, &unsampled, &[sampled], &delete(&central())).answered(200);
    close(open).await;

    let spans = finish(&collector, telemetry).await;
    let rpc = only(&spans, UNASSIGN);
    let call = only(&spans, "DELETE /platform/licensing/v1/msp/subscriptions/devices/all");
    assert_eq!(call.parent_id(), rpc.span_id());
    assert_eq!(call.links().len(), 1);
}

#[test]
fn last_span_arrives_though_the_runtime_has_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(last_span_arrives());
}

#[test]
fn last_span_arrives_though_the_runtime_has_one_worker() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    // Spawned: the main future runs on the test's thread, not on the worker.
    runtime.block_on(async { task::spawn(last_span_arrives()).await.expect("it passes") });
}

async fn last_span_arrives() {
    let (collector, telemetry) = start().await;
    call(&telemetry, UNASSIGN, "01", answer(|_| status(StatusCode::OK))).await;
    let started = Instant::now();
    telemetry.shutdown(ENOUGH).await;
    // The wait is over because the span was delivered, not because it took too long.
    assert!(started.elapsed() < ENOUGH, "the flush waited for itself");
    assert_eq!(names(&collector.spans()), [UNASSIGN]);
}

#[tokio::test]
async fn hanging_collector_does_not_delay_the_end() {
    // Connections are accepted by the kernel, and nobody ever answers.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let telemetry = Telemetry::start(&all_to(&endpoint)).expect("it starts");
    call(&telemetry, UNASSIGN, "01", answer(|_| status(StatusCode::OK))).await;
    // Well below the exporter's own ten seconds.
    tokio::time::timeout(Duration::from_secs(5), telemetry.shutdown(Duration::from_millis(200)))
        .await
        .expect("bounded");
}

#[tokio::test]
async fn forgotten_telemetry_does_not_block_the_runtime() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    let telemetry = Telemetry::start(&all_to(&endpoint)).expect("it starts");
    call(&telemetry, UNASSIGN, "01", answer(|_| status(StatusCode::OK))).await;
    let started = Instant::now();
    drop(telemetry);
    assert!(started.elapsed() < Duration::from_secs(3), "the SDK's own flush takes five seconds");
}

#[tokio::test]
async fn endpoint_is_checked() {
    let start = |endpoint: &str| {
        let mut settings = config::Telemetry::default();
        settings.traces.otlp = Some(config::Otlp::grpc(endpoint));
        Telemetry::start(&settings)
    };
    assert!(start("https://collector.test:4317").is_ok());
    assert!(matches!(start("http://user:passw0rd@collector.test:4317"), Err(ExporterError::Credentials)));
    assert!(matches!(start("http://not a host"), Err(ExporterError::Exporter(_))));
}

#[tokio::test]
async fn environment_names_the_service() {
    let collector = Collector::start().await;
    child("child_exports_one_span")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .env("OTEL_SERVICE_NAME", "another")
        .env("OTEL_RESOURCE_ATTRIBUTES", "service.version=9,k8s.pod.name=pod-1")
        .run();
    let spans = collector.wait_for_spans(|spans| !spans.is_empty()).await;
    assert_eq!(spans[0].resource("service.name").as_deref(), Some("another"));
    assert_eq!(spans[0].resource("service.version").as_deref(), Some("9"));
    assert_eq!(spans[0].resource("k8s.pod.name").as_deref(), Some("pod-1"));
}

#[tokio::test]
async fn environment_switches_sampling_off() {
    let collector = Collector::start().await;
    child("child_exports_one_span")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .env("OTEL_TRACES_SAMPLER", "always_off")
        .run();
    assert_eq!(names(&collector.spans()), [] as [&str; 0]);
}

#[tokio::test]
async fn spans_travel_encrypted_to_a_collector_that_the_system_trusts() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let trusted = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(trusted.path(), certified.cert.pem()).expect("it is written");
    let identity = Identity::from_pem(certified.cert.pem(), certified.signing_key.serialize_pem());
    let collector = Collector::start_with_tls(identity).await;

    let trusting = || child("child_exports_one_span").env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.tls_endpoint());
    trusting().run();
    assert_eq!(names(&collector.spans()), [] as [&str; 0]);
    trusting().env("SSL_CERT_FILE", trusted.path()).run();
    assert_eq!(names(&collector.spans()), [UNASSIGN]);
}

#[test]
fn export_that_fails_is_logged() {
    // Nothing listens on port 1.
    let lines = child("child_exports_one_span").env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1").run();
    let failures: Vec<_> = lines.iter().filter(|line| line["target"] == "opentelemetry_sdk").collect();
    let [failure] = failures[..] else { panic!("{lines:?}") };
    assert_eq!(failure["level"], "ERROR");
    assert_eq!(failure["message"], "BatchSpanProcessor.ExportError");
    assert!(failure["error"].as_str().expect("text").contains("refused"), "{failure}");
}

#[test]
fn panic_is_logged_without_its_data() {
    let lines = child("child_panics").run();
    let [constant, formatted] = &lines[..] else { panic!("{lines:?}") };
    for line in [constant, formatted] {
        assert_eq!((&line["level"], &line["message"]), (&"ERROR".into(), &"panicked".into()));
        assert!(line["location"].as_str().expect("text").contains("tests/api/telemetry.rs"), "{line}");
    }
    assert_eq!(constant["panic"], "a constant");
    assert_eq!(formatted["panic"], "withheld, it may hold data");
}

#[tokio::test]
#[ignore = "run in a process of its own by other tests"]
async fn child_exports_one_span() {
    log_json();
    let settings = config::Telemetry::from_variables(config::process_environment()).expect("valid");
    let telemetry = Telemetry::start(&settings).expect("it starts");
    call(&telemetry, UNASSIGN, "01", answer(|_| status(StatusCode::OK))).await;
    telemetry.shutdown(ENOUGH).await;
}

#[test]
#[ignore = "run in a process of its own by other tests"]
fn child_panics() {
    log_json();
    log::install_panic_hook();
    std::panic::catch_unwind(|| panic!("a constant")).expect_err("it panics");
    let secret = std::hint::black_box("s3cr3t");
    std::panic::catch_unwind(|| panic!("with {secret}")).expect_err("it panics");
}

fn log_json() {
    log::init(&config::Log { filter: "info".parse().expect("a level"), format: config::LogFormat::Json }, false);
}

/// A test that is run in a process of its own.
pub struct Child(Command);

fn child(test: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args([&format!("telemetry::{test}"), "--exact", "--ignored", "--nocapture"]);
    Child(command)
}

impl Child {
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// The lines it logged.
    pub fn run(mut self) -> Vec<serde_json::Value> {
        let output = self.0.output().expect("it starts");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{text}");
        assert!(!text.contains("s3cr3t"), "{text}");
        // The test harness writes around and, for the first line, in front of what the test writes.
        text.lines().filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok()).collect()
    }
}

async fn start() -> (Collector, Telemetry) {
    let collector = Collector::start().await;
    let telemetry = Telemetry::start(&all_to(&collector.endpoint())).expect("the exporter starts");
    (collector, telemetry)
}

fn all_to(endpoint: &str) -> config::Telemetry {
    otel(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)])
}

/// All spans that were made.
async fn finish(collector: &Collector, telemetry: Telemetry) -> Vec<Span> {
    telemetry.shutdown(ENOUGH).await;
    collector.spans()
}

pub fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(Span::name).collect()
}

/// A service that answers its one request with what `respond` makes of the operation.
pub fn answer(respond: impl FnOnce(OperationId) -> Response<Body> + Send + 'static) -> Router {
    let respond = std::sync::Arc::new(std::sync::Mutex::new(Some(respond)));
    Router::new().fallback(any(move |Extension(operation): Extension<OperationId>| async move {
        let respond = respond.lock().expect("no panic").take().expect("called once");
        respond(operation)
    }))
}

pub fn status(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(Body::empty()).expect("a response")
}

fn layered(tracing: Tracing, service: Router) -> Router {
    service.layer(middleware::from_fn_with_state(tracing, rpc::trace_rpc))
}

/// A call from a caller whose trace has these flags.
pub async fn call(telemetry: &Telemetry, method: &str, flags: &str, service: Router) -> StatusCode {
    let response = layered(telemetry.tracing(), service).oneshot(request(method, flags)).await;
    response.expect("a router always answers").status()
}

fn request(method: &str, flags: &str) -> Request<Body> {
    Request::post(format!("http://gateway.test:50051/{method}"))
        .header("traceparent", format!("00-{CALLER_TRACE}-{CALLER_SPAN}-{flags}"))
        .extension(TcpConnectInfo { local_addr: None, remote_addr: Some(([192, 0, 2, 7], 40_000).into()) })
        .body(Body::empty())
        .expect("a request")
}

/// Where a request stood that has been answered.
async fn origin_of_a_request(telemetry: &Telemetry, flags: &str) -> Origin {
    let (send, receive) = oneshot::channel();
    let handler = answer(|_| {
        assert!(send.send(Origin::current()).is_ok());
        status(StatusCode::OK)
    });
    call(telemetry, UNASSIGN, flags, handler).await;
    receive.await.expect("the handler ran")
}

/// Requests that are still being worked on, with their origins.
async fn open_requests<const N: usize>(
    telemetry: &Telemetry,
    flags: [&str; N],
) -> (Vec<(oneshot::Sender<()>, task::JoinHandle<()>)>, [Origin; N]) {
    let mut open = Vec::new();
    let mut origins = Vec::new();
    for flags in flags {
        let (send, receive) = oneshot::channel();
        let (close, closed) = oneshot::channel::<()>();
        let parts = std::sync::Arc::new(std::sync::Mutex::new(Some((send, closed))));
        let handler = Router::new().fallback(move || {
            let (send, closed) = parts.lock().expect("no panic").take().expect("called once");
            async move {
                assert!(send.send(Origin::current()).is_ok());
                closed.await.expect("the test closes it");
                StatusCode::OK
            }
        });
        let service = layered(telemetry.tracing(), handler);
        let request = request(UNASSIGN, flags);
        open.push((
            close,
            task::spawn(async move {
                service.oneshot(request).await.expect("a router always answers");
            }),
        ));
        origins.push(receive.await.expect("the handler runs"));
    }
    (open, origins.try_into().expect("as many as asked for"))
}

async fn close(open: Vec<(oneshot::Sender<()>, task::JoinHandle<()>)>) {
    for (close, request) in open {
        close.send(()).expect("the handler waits");
        request.await.expect("the request ends");
    }
}

pub fn central() -> Url {
    Url::parse("https://central.test/platform/licensing/v1/msp/subscriptions/devices/all").expect("a URL")
}

pub fn delete(url: &Url) -> Try<'_> {
    Try { method: "DELETE", url, template: "/platform/licensing/v1/msp/subscriptions/devices/all", resend_count: 0 }
}
