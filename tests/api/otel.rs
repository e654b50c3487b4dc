//! The standard `OTEL_*` variables, as a collector sees them. What each means on paper is tested in `config/otel`.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use http::HeaderMap;
use license_gateway::telemetry::{Origin, Telemetry, http::ClientSpan};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair};
use serde_json::Value;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tonic::{
    metadata::MetadataValue,
    transport::{Certificate, Identity},
};

use crate::{
    collector::{Arrived, Collector, Record, Span, only},
    support::{Process, channel, customer, include, otel, sandbox},
    telemetry::{CALLER_TRACE, ENOUGH, UNASSIGN, answer, call, central, delete, names, status},
};

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const CALL: &str = "DELETE /platform/licensing/v1/msp/subscriptions/devices/all";

/// A telemetry that was started with these variables.
fn started(variables: &[(&str, &str)]) -> Telemetry {
    Telemetry::start(&otel(variables)).expect("it starts")
}

/// One request with one call, from a caller whose trace is sampled.
async fn one_request(telemetry: &Telemetry) {
    let tracing = telemetry.tracing();
    let handler = answer(move |_| {
        ClientSpan::start(&tracing, &Origin::current(), &[], &delete(&central())).answered(200);
        status(http::StatusCode::OK)
    });
    call(telemetry, UNASSIGN, "01", handler).await;
}

/// What a collector gets of one request, with these variables beside its endpoint.
async fn arrived_with(collector: &Collector, variables: &[(&str, &str)]) -> Arrived {
    let endpoint = collector.endpoint();
    let telemetry = started(&[&[(ENDPOINT, endpoint.as_str())], variables].concat());
    one_request(&telemetry).await;
    telemetry.shutdown(ENOUGH).await;
    collector.arrived()
}

/// One process that serves one request and stops: what the collector got, and what the process logged.
async fn process_with(collector: &Collector, variables: &[(&str, &str)]) -> (Arrived, Vec<Value>) {
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let process = Process::serve(&sandbox, dir.path(), variables).await;
    let mut client =
        license_gateway::proto::licensing_service_client::LicensingServiceClient::new(channel(process.address).await);
    let mut request = tonic::Request::new(include(&[&customer(&sandbox, 0)]));
    let traceparent = format!("00-{CALLER_TRACE}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", MetadataValue::try_from(traceparent).unwrap());
    client.unassign_licenses(request).await.unwrap();
    process.terminate();
    let (exit, log) = process.exit().await;
    assert_eq!(exit.code(), Some(0), "{log:#?}");
    (collector.arrived(), log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_signals_arrive_by_grpc() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let (arrived, log) = process_with(&collector, &[(ENDPOINT, &endpoint)]).await;
    all_three_belong_together(&arrived, &log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_signals_arrive_by_http() {
    let collector = Collector::start_http().await;
    let endpoint = collector.endpoint();
    let variables = [(ENDPOINT, endpoint.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")];
    let (arrived, log) = process_with(&collector, &variables).await;
    all_three_belong_together(&arrived, &log);
}

fn all_three_belong_together(arrived: &Arrived, log: &[Value]) {
    let rpc = only(&arrived.spans, UNASSIGN);
    assert_eq!(rpc.trace_id(), CALLER_TRACE);
    assert_eq!(only(&arrived.spans, CALL).parent_id(), rpc.span_id());

    let measured =
        |name| arrived.metrics.iter().find(|point| point.name == name).unwrap_or_else(|| panic!("no {name}"));
    let duration = measured("rpc.server.call.duration");
    assert_eq!((duration.value, duration.attribute("rpc.method").as_deref()), (1.0, Some(UNASSIGN)));
    assert_eq!(measured("license_gateway.requests").attribute("outcome").as_deref(), Some("applied"));

    // The same line, with the same ids, as on standard output.
    let record = one_record(&arrived.logs, "unassign finished");
    let line = log.iter().find(|line| line["message"] == "unassign finished").expect("it was logged");
    assert_eq!(record.severity(), line["level"]);
    assert_eq!(record.ids(), rpc.ids());
    assert_eq!((line["trace_id"].as_str().unwrap(), line["span_id"].as_str().unwrap()), {
        let (trace, span) = (CALLER_TRACE, record.ids().1);
        (trace, span.leak() as &str)
    });
    let operation = rpc.attribute("license_gateway.operation_id");
    assert!(operation.is_some());
    assert_eq!(record.attribute("operation_id"), operation);
    for (field, value) in line.as_object().unwrap() {
        let known = ["timestamp", "level", "target", "message", "trace_id", "span_id"];
        if !known.contains(&field.as_str()) && (value.is_string() || value.is_i64()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(record.attribute(field), Some(value), "{field}");
        }
    }
    assert_eq!(record.resource("service.name").as_deref(), Some("license-gateway"));
    assert_eq!(record.resource("service.instance.id"), rpc.resource("service.instance.id"));
}

fn one_record<'a>(records: &'a [Record], message: &str) -> &'a Record {
    let found: Vec<_> = records.iter().filter(|record| record.message() == message).collect();
    let [record] = found[..] else { panic!("expected one {message:?} among {records:#?}") };
    record
}

#[tokio::test]
async fn sdk_disabled_sends_nothing() {
    let collector = Collector::start().await;
    let arrived = arrived_with(&collector, &[("OTEL_SDK_DISABLED", "true")]).await;
    assert!(arrived.spans.is_empty() && arrived.metrics.is_empty(), "{arrived:#?}");
    // So that the silence above means something.
    let arrived = arrived_with(&collector, &[("OTEL_SDK_DISABLED", "false")]).await;
    assert!(!arrived.spans.is_empty() && !arrived.metrics.is_empty());
}

#[tokio::test]
async fn each_signal_can_be_switched_off() {
    let collector = Collector::start().await;
    let arrived = arrived_with(&collector, &[("OTEL_TRACES_EXPORTER", "none")]).await;
    assert!(arrived.spans.is_empty() && !arrived.metrics.is_empty(), "{arrived:#?}");
    let collector = Collector::start().await;
    let arrived = arrived_with(&collector, &[("OTEL_METRICS_EXPORTER", "none")]).await;
    assert!(!arrived.spans.is_empty() && arrived.metrics.is_empty(), "{arrived:#?}");
    let collector = Collector::start().await;
    let arrived = arrived_with(&collector, &[("OTEL_METRICS_EXPORTER", "prometheus")]).await;
    assert!(!arrived.spans.is_empty() && arrived.metrics.is_empty(), "{arrived:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_can_be_switched_off_and_standard_output_keeps_them() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let variables = [(ENDPOINT, endpoint.as_str()), ("OTEL_LOGS_EXPORTER", "none")];
    let (arrived, log) = process_with(&collector, &variables).await;
    assert!(arrived.logs.is_empty() && !arrived.spans.is_empty(), "{:#?}", arrived.logs);
    assert!(log.iter().any(|line| line["message"] == "unassign finished"));
}

#[tokio::test]
async fn propagators_decide_whose_trace_it_is() {
    let rpc = async |propagators| -> Span {
        let collector = Collector::start().await;
        let arrived = arrived_with(&collector, &[("OTEL_PROPAGATORS", propagators)]).await;
        only(&arrived.spans, UNASSIGN).clone()
    };
    for read in ["tracecontext", "tracecontext,baggage", "b3,tracecontext"] {
        assert_eq!(rpc(read).await.trace_id(), CALLER_TRACE, "{read}");
    }
    for unread in ["none", "baggage"] {
        let rpc = rpc(unread).await;
        assert_ne!(rpc.trace_id(), CALLER_TRACE, "{unread}");
        assert_eq!(rpc.parent_id(), "", "{unread}");
    }
}

#[tokio::test]
async fn each_signal_may_have_its_own_collector_and_protocol() {
    let (grpc, http) = (Collector::start().await, Collector::start_http().await);
    let (all, own) = (grpc.endpoint(), format!("{}/v1/traces", http.endpoint()));
    let telemetry = started(&[
        (ENDPOINT, &all),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &own),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
    ]);
    one_request(&telemetry).await;
    telemetry.shutdown(ENOUGH).await;
    let (by_grpc, by_http) = (grpc.arrived(), http.arrived());
    assert!(by_grpc.spans.is_empty() && !by_grpc.metrics.is_empty());
    assert!(!by_http.spans.is_empty() && by_http.metrics.is_empty());
}

#[tokio::test]
async fn gzip_and_headers_travel_by_both_protocols() {
    for (collector, protocol, encoding) in [
        (Collector::start().await, "grpc", "grpc-encoding"),
        (Collector::start_http().await, "http/protobuf", "content-encoding"),
    ] {
        let has = |headers: &HeaderMap, name: &str, value: &str| {
            headers.get(name).is_some_and(|found| found.as_bytes() == value.as_bytes())
        };
        let arrived = arrived_with(
            &collector,
            &[
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20key,x-tenant=7"),
            ],
        )
        .await;
        assert!(!arrived.spans.is_empty() && !arrived.metrics.is_empty());
        for headers in &arrived.headers {
            assert!(has(headers, encoding, "gzip"), "{protocol}: {headers:?}");
            assert!(has(headers, "api-key", "a key") && has(headers, "x-tenant", "7"), "{protocol}: {headers:?}");
        }
        let arrived = arrived_with(&collector, &[("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)]).await;
        let plain = arrived.headers.last().expect("an export");
        assert!(!has(plain, encoding, "gzip") && !plain.contains_key("api-key"), "{protocol}: {plain:?}");
    }
}

#[tokio::test]
async fn insecure_lets_an_endpoint_without_a_scheme_do_without_tls() {
    let collector = Collector::start().await;
    let address = collector.address().to_string();
    let telemetry = started(&[(ENDPOINT, &address), ("OTEL_EXPORTER_OTLP_INSECURE", "true")]);
    one_request(&telemetry).await;
    telemetry.shutdown(ENOUGH).await;
    assert_eq!(collector.spans().len(), 2);
}

/// An authority, a collector it vouches for, and a client it vouches for: as PEM files.
struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(dir.path().join("ca"), issuer.pem()).unwrap();
        Self { dir, issuer }
    }

    fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let issuer: &Issuer<'_, KeyPair> = &self.issuer;
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
        (certificate, key)
    }

    /// The variables of a client that trusts this authority and shows a certificate of it.
    fn variables(&self) -> [(&'static str, String); 3] {
        let (certificate, key) = self.issue("client");
        let path = |name: &str| self.dir.path().join(name);
        fs::write(path("cert"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        let text = |path: &Path| path.display().to_string();
        [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", text(&path("ca"))),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", text(&path("cert"))),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", text(&path("key"))),
        ]
    }
}

/// Trust in the collector, and the certificate that it asks for: spans arrive with both and not without either.
async fn tls_is_as_set(authority: &Authority, collector: &Collector, protocol: &str) {
    let (endpoint, variables) = (collector.tls_endpoint(), authority.variables());
    let [ca, cert, key] = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let common = [(ENDPOINT, endpoint.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)];
    for lacking in [&[][..], &[ca]] {
        let telemetry = started(&[&common[..], lacking].concat());
        one_request(&telemetry).await;
        telemetry.shutdown(ENOUGH).await;
        assert_eq!(names(&collector.spans()), [] as [&str; 0], "{protocol}, {lacking:?}");
    }
    let telemetry = started(&[&common[..], &[ca, cert, key]].concat());
    one_request(&telemetry).await;
    telemetry.shutdown(ENOUGH).await;
    assert_eq!(collector.spans().len(), 2, "{protocol}");
}

#[tokio::test]
async fn certificates_are_used_by_grpc() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
    let collector = Collector::start_with_mutual_tls(identity, Certificate::from_pem(authority.issuer.pem())).await;
    tls_is_as_set(&authority, &collector, "grpc").await;
}

#[tokio::test]
async fn certificates_are_used_by_http() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let root = authority.issuer.der().clone();
    let collector = Collector::start_https(certificate.der().clone(), key, Some(root)).await;
    tls_is_as_set(&authority, &collector, "http/protobuf").await;
}

#[tokio::test]
async fn sampler_decides_where_the_caller_may_not() {
    let kept = async |sampler, argument| {
        let collector = Collector::start().await;
        let variables = [("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)];
        !arrived_with(&collector, &variables).await.spans.is_empty()
    };
    // The caller's trace is sampled.
    assert!(kept("always_on", "").await);
    assert!(!kept("always_off", "").await);
    assert!(!kept("traceidratio", "0").await);
    assert!(kept("traceidratio", "1").await);
    assert!(kept("parentbased_traceidratio", "0").await);
    assert!(kept("parentbased_always_off", "").await);
}

#[tokio::test]
async fn batches_leave_after_their_delay() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let telemetry = started(&[(ENDPOINT, &endpoint), ("OTEL_BSP_SCHEDULE_DELAY", "20")]);
    let began = Instant::now();
    one_request(&telemetry).await;
    // Nobody flushes.
    collector.wait_for_spans(|spans| spans.len() == 2).await;
    assert!(began.elapsed() < Duration::from_secs(4), "without the variable it is five seconds");
    telemetry.shutdown(ENOUGH).await;
}

#[tokio::test]
async fn batches_have_at_most_their_size() {
    let collector = Collector::start().await;
    let variables = [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"), ("OTEL_METRICS_EXPORTER", "none")];
    let arrived = arrived_with(&collector, &variables).await;
    assert_eq!((arrived.spans.len(), arrived.headers.len()), (2, 2), "each span in an export of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_records_leave_after_their_delay() {
    let (collector, sandbox) = (Collector::start().await, sandbox().await);
    let dir = tempfile::tempdir().unwrap();
    let endpoint = collector.endpoint();
    let variables = [(ENDPOINT, endpoint.as_str()), ("OTEL_BLRP_SCHEDULE_DELAY", "20")];
    let process = Process::serve(&sandbox, dir.path(), &variables).await;
    // Nobody stops the process.
    let arrived = collector.wait_for(|arrived| arrived.logs.iter().any(|record| record.message() == "listening")).await;
    let listening = one_record(&arrived.logs, "listening");
    assert_eq!(listening.ids(), (String::new(), String::new()));
    assert_eq!(listening.attribute("listen"), Some(process.address.to_string()));
}

#[tokio::test]
async fn metrics_leave_at_their_interval_with_the_temporality_asked_for() {
    for (preference, is_delta) in [("delta", true), ("cumulative", false)] {
        let collector = Collector::start().await;
        let endpoint = collector.endpoint();
        let telemetry = started(&[
            (ENDPOINT, &endpoint),
            ("OTEL_METRIC_EXPORT_INTERVAL", "20"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference),
        ]);
        one_request(&telemetry).await;
        // Nobody flushes.
        let is_it = |arrived: &Arrived| arrived.metrics.iter().any(|point| point.name == "license_gateway.requests");
        let arrived = collector.wait_for(is_it).await;
        let requests = arrived.metrics.iter().find(|point| point.name == "license_gateway.requests").unwrap();
        assert_eq!(requests.is_delta, is_delta, "{preference}");
        telemetry.shutdown(ENOUGH).await;
    }
}

#[tokio::test]
async fn limits_cut_texts_and_attributes() {
    let collector = Collector::start().await;
    let arrived = arrived_with(&collector, &[("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "7")]).await;
    let rpc = only(&arrived.spans, UNASSIGN);
    assert_eq!(rpc.attribute("rpc.method").as_deref(), Some("central"));
    assert_eq!(rpc.attribute("rpc.response.status_code").as_deref(), Some("OK"));
    let collector = Collector::start().await;
    let arrived = arrived_with(&collector, &[("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")]).await;
    assert_eq!(only(&arrived.spans, UNASSIGN).attribute_keys().len(), 2);
}

#[tokio::test]
async fn semconv_opt_in_renames_the_status_code() {
    let seen = async |opt_in| {
        let collector = Collector::start().await;
        let arrived = arrived_with(&collector, &[("OTEL_SEMCONV_STABILITY_OPT_IN", opt_in)]).await;
        let rpc = only(&arrived.spans, UNASSIGN);
        ["rpc.response.status_code", "rpc.status_code"].map(|name| rpc.attribute(name).is_some())
    };
    assert_eq!(seen("").await, [true, false]);
    assert_eq!(seen("rpc").await, [false, true]);
    assert_eq!(seen("rpc/dup").await, [true, true]);
}

#[tokio::test]
async fn service_name_and_resource_attributes_name_the_service() {
    let collector = Collector::start().await;
    let arrived = arrived_with(
        &collector,
        &[
            ("OTEL_SERVICE_NAME", "another"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,service.version=9,k8s.pod.name=pod-1"),
        ],
    )
    .await;
    let resource = |key| arrived.spans[0].resource(key);
    assert_eq!(resource("service.name").as_deref(), Some("another"));
    assert_eq!(resource("service.version").as_deref(), Some("9"));
    assert_eq!(resource("k8s.pod.name").as_deref(), Some("pod-1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_effect_is_named_in_one_warning() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let variables = [
        (ENDPOINT, endpoint.as_str()),
        ("OTEL_LOG_LEVEL", "debug"),
        ("OTEL_PROPAGATORS", "tracecontext,b3"),
        ("OTEL_METRICS_EXPORTER", "otlp,console"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TRACE_ENDPOINT", "http://s3cr3t"),
    ];
    let (_, log) = process_with(&collector, &variables).await;
    let warnings: Vec<_> = log.iter().filter(|line| line["level"] == "WARN").collect();
    let [warning] = warnings[..] else { panic!("{warnings:#?}") };
    assert_eq!(warning["message"], "OTEL_* variables that have no effect here");
    assert_eq!(
        warning["variables"],
        "OTEL_EXPORTER_OTLP_COMPRESSION (`zstd` is not supported), OTEL_METRICS_EXPORTER (`console` is not \
         supported), OTEL_PROPAGATORS (`b3` is not supported), OTEL_EXPORTER_OTLP_TRACE_ENDPOINT, OTEL_LOG_LEVEL"
    );
    // The first line stays what other programs rely on.
    assert_eq!(log[0]["message"], "listening");
}

/// A failing export of spans speaks, and what it says is not the subject of another export.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_exporter_says_is_not_exported() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint();
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).unwrap();
    let refused = format!("http://{nobody}");
    let variables = [
        ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", refused.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_BLRP_SCHEDULE_DELAY", "20"),
    ];
    let sandbox = sandbox().await;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::serve(&sandbox, dir.path(), &variables).await;
    let mut client =
        license_gateway::proto::licensing_service_client::LicensingServiceClient::new(channel(process.address).await);
    client.unassign_licenses(include(&[&customer(&sandbox, 0)])).await.unwrap();
    // Said while the log is still exported.
    process.said("BatchSpanProcessor.ExportError").await;
    client.unassign_licenses(include(&[&customer(&sandbox, 1)])).await.unwrap();
    collector.wait_for(|arrived| finished(&arrived.logs) == 2).await;
    process.terminate();
    let (_, log) = process.exit().await;
    assert!(log.iter().any(|line| line["target"] == "opentelemetry_sdk"), "{log:#?}");
    let exported = collector.arrived().logs;
    let own: Vec<_> = exported.iter().filter(|record| record.message().contains("Export")).collect();
    assert!(own.is_empty(), "{own:#?}");
}

fn finished(records: &[Record]) -> usize {
    records.iter().filter(|record| record.message() == "unassign finished").count()
}

#[tokio::test]
async fn check_config_tells_where_telemetry_goes_and_what_has_no_effect() {
    let (sandbox, dir) = (sandbox().await, tempfile::tempdir().unwrap());
    let variables = [
        (ENDPOINT, "http://collector.test:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cr3t"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_METRICS_EXPORTER", "otlp,console"),
        ("OTEL_LOG_LEVEL", "debug"),
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_license-gateway"))
        .args(["check-config", "--config"])
        .arg(crate::support::config_file(&sandbox, dir.path()))
        .env_clear()
        .envs(variables)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for line in [
        "traces go nowhere: no OTEL_EXPORTER_OTLP_ENDPOINT, or switched off",
        "metrics go to http://collector.test:4318/v1/metrics by OTLP over HTTP and to /metrics of admin.listen",
        "logs go to http://collector.test:4318/v1/logs by OTLP over HTTP and to standard output",
        "without effect here: OTEL_METRICS_EXPORTER (`console` is not supported), OTEL_LOG_LEVEL",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    assert!(!text.contains("s3cr3t"), "{text}");
}
