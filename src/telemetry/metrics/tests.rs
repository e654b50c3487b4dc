#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::collections::{BTreeMap, BTreeSet};

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::{
    InMemoryMetricExporter, SdkMeterProvider,
    data::{AggregatedMetrics, Metric, MetricData, ScopeMetrics},
};
use url::Url;

use super::*;
use crate::telemetry::{
    Origin, Tracing,
    http::{ClientSpan, Try},
    names::{METRICS, MetricKind},
};

/// Metrics with somebody who looks at them, both ways.
struct WatchedMetrics {
    metrics: Metrics,
    provider: SdkMeterProvider,
    exporter: InMemoryMetricExporter,
}

/// A value of a metric with its labels, and how many values it is made of.
type Points = BTreeMap<String, f64>;

impl WatchedMetrics {
    fn new() -> Self {
        Self::with(StatusCodeName::Old)
    }

    fn with(status_code_name: StatusCodeName) -> Self {
        let (exporter, registry) = (InMemoryMetricExporter::default(), prometheus::Registry::new());
        let served = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .unwrap();
        let provider = SdkMeterProvider::builder()
            .with_resource(crate::telemetry::resource(&[]))
            .with_periodic_exporter(exporter.clone())
            .with_reader(served)
            .build();
        let metrics = Metrics::new(provider.meter("test"), Some(registry), status_code_name);
        Self { metrics, provider, exporter }
    }

    /// The values of one metric by their labels, as `a=1,b=2`. Of a histogram: how many values it has.
    fn points(&self, name: &str) -> Points {
        let mut found = Points::new();
        self.each(|metric| {
            if metric.name() == name {
                found.extend(points(metric));
            }
        });
        found
    }

    fn each(&self, mut look: impl FnMut(&Metric)) {
        self.exporter.reset();
        self.provider.force_flush().unwrap();
        for resource in self.exporter.get_finished_metrics().unwrap() {
            resource.scope_metrics().flat_map(ScopeMetrics::metrics).for_each(&mut look);
        }
    }
}

#[allow(clippy::cast_precision_loss)] // small numbers
fn points(metric: &Metric) -> Points {
    fn labels<'a>(attributes: impl Iterator<Item = &'a KeyValue>) -> String {
        let mut labels: Vec<_> = attributes.map(|label| format!("{}={}", label.key, label.value)).collect();
        labels.sort();
        labels.join(",")
    }
    fn of<T: Copy>(data: &MetricData<T>, number: fn(T) -> f64) -> Points {
        match data {
            MetricData::Gauge(gauge) => {
                gauge.data_points().map(|point| (labels(point.attributes()), number(point.value()))).collect()
            }
            MetricData::Sum(sum) => {
                sum.data_points().map(|point| (labels(point.attributes()), number(point.value()))).collect()
            }
            MetricData::Histogram(histogram) => {
                histogram.data_points().map(|point| (labels(point.attributes()), point.count() as f64)).collect()
            }
            MetricData::ExponentialHistogram(_) => panic!("nothing makes one"),
        }
    }
    match metric.data() {
        AggregatedMetrics::F64(data) => of(data, |value| value),
        AggregatedMetrics::U64(data) => of(data, |value| value as f64),
        AggregatedMetrics::I64(data) => of(data, |value| value as f64),
    }
}

fn expected(points: &[(&str, f64)]) -> Points {
    points.iter().map(|(labels, value)| ((*labels).to_owned(), *value)).collect()
}

const UNASSIGN: &str = "central.licensing.v1.LicensingService/UnassignLicenses";

/// Calls every method there is.
fn touch_all(metrics: &Metrics) {
    metrics.queue_wait(Duration::from_millis(3));
    metrics.members_per_call(3);
    metrics.throttled(Window::Day);
    metrics.shed(Shed::QueueFull);
    metrics.audit_failure();
    metrics.token_exchange(ExchangeResult::Pair);
    let window = WindowQuota { remaining: Some(5), limit: Some(7) };
    metrics.observe_quota(move || QuotaReadings { second: window, day: WindowQuota::default() });
    metrics.observe_queue(|| 2);
    metrics.observe_breaker(|| BreakerPosition::HalfOpen);
    let token = TokenAges { age: Duration::from_secs(9), expires_in: Duration::from_secs(100), generation: 4 };
    metrics.observe_token(move || TokenState { token: Some(token), seed_needed: false });
    let verdict = RpcOutcome { outcome: "not_applied", reason: Some("INVALID_REQUEST") };
    metrics.rpc(Some(UNASSIGN), Code::InvalidArgument, Some(verdict), Duration::from_millis(5));
    call(metrics).answered(503);
    metrics.dropped(Dropped::Spans, DropCause::QueueFull, 2);
}

fn call(metrics: &Metrics) -> ClientSpan {
    let url = Url::parse("https://central.test/oauth2/token?refresh_token=s3cr3t").unwrap();
    let call = Try { method: "POST", url: &url, template: "/oauth2/token", resend_count: 0 };
    let tracing = Tracing { metrics: metrics.clone(), ..Tracing::disabled() };
    ClientSpan::start_root(&tracing, &[Origin::none()], &call)
}

#[test]
fn every_rpc_is_measured_and_counted_once() {
    let seen = WatchedMetrics::new();
    let applied = RpcOutcome { outcome: "applied", reason: None };
    let refused = RpcOutcome { outcome: "not_applied", reason: Some("INVALID_REQUEST") };
    let took = Duration::from_millis(20);
    seen.metrics.rpc(Some(UNASSIGN), Code::Ok, Some(applied), took);
    seen.metrics.rpc(Some(UNASSIGN), Code::InvalidArgument, Some(refused), took);
    seen.metrics.rpc(Some(UNASSIGN), Code::Cancelled, None, took);
    seen.metrics.rpc(None, Code::Unimplemented, Some(refused), took);
    let method = "rpc.method=central.licensing.v1.LicensingService/UnassignLicenses";
    let rest = "rpc.system.name=grpc";
    assert_eq!(
        seen.points("rpc.server.call.duration"),
        expected(&[
            (&format!("{method},rpc.response.status_code=OK,{rest}"), 1.0),
            (&format!("error.type=INVALID_ARGUMENT,{method},rpc.response.status_code=INVALID_ARGUMENT,{rest}"), 1.0),
            (&format!("error.type=CANCELLED,{method},rpc.response.status_code=CANCELLED,{rest}"), 1.0),
            (&format!("error.type=UNIMPLEMENTED,rpc.method=_OTHER,rpc.response.status_code=UNIMPLEMENTED,{rest}"), 1.0),
        ])
    );
    assert_eq!(
        seen.points("license_gateway.requests"),
        expected(&[
            (&format!("outcome=applied,{method}"), 1.0),
            (&format!("outcome=not_applied,reason=INVALID_REQUEST,{method}"), 1.0),
            (method, 1.0),
            ("outcome=not_applied,reason=INVALID_REQUEST,rpc.method=_OTHER", 1.0),
        ])
    );
}

#[test]
fn status_code_has_the_names_that_were_opted_for() {
    let names = |status_code_name| {
        let seen = WatchedMetrics::with(status_code_name);
        seen.metrics.rpc(Some(UNASSIGN), Code::Ok, None, Duration::ZERO);
        let points = seen.points("rpc.server.call.duration");
        let labels = points.into_keys().next().unwrap();
        (labels.contains("rpc.response.status_code=OK"), labels.contains("rpc.status_code=OK"))
    };
    assert_eq!(names(StatusCodeName::Old), (true, false));
    assert_eq!(names(StatusCodeName::New), (false, true));
    assert_eq!(names(StatusCodeName::Both), (true, true));
}

#[test]
fn every_try_is_measured_once_however_it_ends() {
    let seen = WatchedMetrics::new();
    call(&seen.metrics).answered(200);
    call(&seen.metrics).answered(429);
    call(&seen.metrics).failed("timeout");
    drop(call(&seen.metrics));
    let call = "http.request.method=POST";
    let server = "server.address=central.test,server.port=443,url.template=/oauth2/token";
    let version = "network.protocol.version=1.1";
    assert_eq!(
        seen.points("http.client.request.duration"),
        expected(&[
            (&format!("{call},http.response.status_code=200,{version},{server}"), 1.0),
            (&format!("error.type=429,{call},http.response.status_code=429,{version},{server}"), 1.0),
            (&format!("error.type=timeout,{call},{server}"), 1.0),
            (&format!("error.type=cancelled,{call},{server}"), 1.0),
        ])
    );
}

#[test]
fn what_is_told_is_counted_under_its_label() {
    let seen = WatchedMetrics::new();
    seen.metrics.queue_wait(Duration::from_millis(3));
    seen.metrics.members_per_call(3);
    seen.metrics.throttled(Window::Day);
    seen.metrics.throttled(Window::Day);
    seen.metrics.shed(Shed::BreakerOpen);
    seen.metrics.audit_failure();
    seen.metrics.token_exchange(ExchangeResult::TokenRefused);
    seen.metrics.dropped(Dropped::Logs, DropCause::ExportFailed, 7);
    assert_eq!(seen.points("license_gateway.queue.wait"), expected(&[("", 1.0)]));
    assert_eq!(seen.points("license_gateway.call.members"), expected(&[("", 1.0)]));
    assert_eq!(seen.points("license_gateway.audit.failures"), expected(&[("", 1.0)]));
    // The others of the closed set stand at zero.
    assert_eq!(
        seen.points("license_gateway.throttled"),
        expected(&[("window=second", 0.0), ("window=day", 2.0), ("window=unknown", 0.0)])
    );
    assert_eq!(
        seen.points("license_gateway.shed"),
        expected(&[("reason=queue_full", 0.0), ("reason=breaker_open", 1.0), ("reason=draining", 0.0)])
    );
    let exchanges = seen.points("license_gateway.token.exchanges");
    assert_eq!((exchanges.len(), exchanges["result=token_refused"], exchanges["result=pair"]), (7, 1.0, 0.0));
    let dropped = seen.points("license_gateway.telemetry.dropped");
    assert_eq!((dropped.len(), dropped["cause=export_failed,signal=logs"]), (4, 7.0));
}

#[test]
fn what_is_asked_for_is_as_it_stands_when_somebody_looks() {
    use std::sync::Mutex;

    let seen = WatchedMetrics::new();
    let quota = Arc::new(Mutex::new(QuotaReadings::default()));
    let asked = Arc::clone(&quota);
    seen.metrics.observe_quota(move || *asked.lock().unwrap());
    seen.metrics.observe_queue(|| 5);
    seen.metrics.observe_breaker(|| BreakerPosition::Open);
    assert_eq!(seen.points("license_gateway.quota.remaining"), Points::new(), "nothing is known yet");
    let day = WindowQuota { remaining: Some(0), limit: Some(5_000) };
    *quota.lock().unwrap() = QuotaReadings { second: WindowQuota { remaining: Some(6), limit: None }, day };
    assert_eq!(
        seen.points("license_gateway.quota.remaining"),
        expected(&[("window=second", 6.0), ("window=day", 0.0)])
    );
    assert_eq!(seen.points("license_gateway.quota.limit"), expected(&[("window=day", 5_000.0)]));
    assert_eq!(seen.points("license_gateway.queue.depth"), expected(&[("", 5.0)]));
    assert_eq!(
        seen.points("license_gateway.breaker.state"),
        expected(&[("state=closed", 0.0), ("state=half_open", 0.0), ("state=open", 1.0)])
    );
}

#[test]
fn token_is_shown_with_its_ages_or_not_at_all() {
    let seen = WatchedMetrics::new();
    let token = TokenAges { age: Duration::from_millis(1_500), expires_in: Duration::from_mins(1), generation: 12 };
    seen.metrics.observe_token(move || TokenState { token: Some(token), seed_needed: false });
    assert_eq!(seen.points("license_gateway.token.age"), expected(&[("", 1.5)]));
    assert_eq!(seen.points("license_gateway.token.expires_in"), expected(&[("", 60.0)]));
    assert_eq!(seen.points("license_gateway.token.generation"), expected(&[("", 12.0)]));
    assert_eq!(seen.points("license_gateway.token.seed_needed"), expected(&[("", 0.0)]));

    let seen = WatchedMetrics::new();
    seen.metrics.observe_token(|| TokenState { token: None, seed_needed: true });
    assert_eq!(seen.points("license_gateway.token.age"), Points::new());
    assert_eq!(seen.points("license_gateway.token.seed_needed"), expected(&[("", 1.0)]));
}

#[test]
fn durations_have_the_buckets_of_the_conventions() {
    let seen = WatchedMetrics::new();
    touch_all(&seen.metrics);
    let text = seen.metrics.render().unwrap();
    for name in ["rpc_server_call_duration_seconds", "http_client_request_duration_seconds"] {
        let buckets: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}_bucket{{")))
            .map(|line| line.split("le=\"").nth(1).unwrap().split('"').next().unwrap())
            .collect();
        let conventions = [
            "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1", "2.5", "5", "7.5", "10",
            "+Inf",
        ];
        assert_eq!(buckets, conventions, "{name}");
    }
}

#[test]
fn disabled_metrics_do_nothing() {
    let metrics = Metrics::disabled();
    touch_all(&metrics);
    assert_eq!(metrics.render(), None);
}

/// One row: the name by OTLP, the name for Prometheus, type, unit, labels, meaning.
type DocumentedMetric = [String; 6];

/// The table in the document is what the code registers: every row, and no other.
#[test]
fn document_lists_every_metric_as_it_is() {
    let seen = WatchedMetrics::new();
    touch_all(&seen.metrics);

    // What is exported is what the names list, and the labels seen are among those listed.
    let mut exported = BTreeMap::new();
    seen.each(|metric| {
        let labels = points(metric).into_keys().flat_map(|labels| {
            labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned())).collect::<Vec<_>>()
        });
        let described = (metric.unit().to_owned(), metric.description().to_owned());
        exported.insert(metric.name().to_owned(), (described, labels.collect::<BTreeSet<_>>()));
    });
    let listed: Vec<_> = METRICS.iter().filter(|metric| metric.name != "target_info").collect();
    assert_eq!(
        exported.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        listed.iter().map(|metric| metric.name).collect::<BTreeSet<_>>()
    );
    for metric in &listed {
        let ((unit, meaning), labels) = &exported[metric.name];
        assert_eq!((unit.as_str(), meaning.as_str()), (metric.unit, metric.meaning));
        let unlisted: Vec<_> = labels.iter().filter(|label| !metric.labels.contains(&label.as_str())).collect();
        assert!(unlisted.is_empty(), "{}: {unlisted:?}", metric.name);
    }

    // What is served is what the names come to.
    let text = seen.metrics.render().unwrap();
    let served: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut table: Vec<DocumentedMetric> = METRICS.iter().map(|metric| row(metric)).collect();
    table.sort();
    let names: BTreeMap<&str, &str> = table.iter().map(|row| (row[1].trim_matches('`'), row[2].as_str())).collect();
    assert_eq!(served, names);

    let document = include_str!("../../../docs/telemetry.md");
    let mut documented: Vec<DocumentedMetric> = document
        .split_once("<!-- metrics:start -->")
        .and_then(|(_, rest)| rest.split_once("<!-- metrics:end -->"))
        .unwrap()
        .0
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            cells.try_into().unwrap()
        })
        .collect();
    documented.sort();
    let wanted = || table.iter().map(|row| format!("| {} |", row.join(" | "))).collect::<Vec<_>>().join("\n");
    assert_eq!(documented, table, "docs/telemetry.md should have these rows:\n{}", wanted());
}

fn row(metric: &names::Metric) -> DocumentedMetric {
    let (kind, suffix) = match metric.kind {
        MetricKind::Counter => ("counter", "_total"),
        MetricKind::Gauge => ("gauge", ""),
        MetricKind::Histogram(_) => ("histogram", ""),
    };
    let unit = if metric.unit == "s" { "_seconds" } else { "" };
    let prometheus = format!("{}{unit}{suffix}", metric.name.replace('.', "_"));
    let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
    let cell = |text: &str, empty: &str| if text.is_empty() { empty.to_owned() } else { text.to_owned() };
    [
        format!("`{}`", metric.name),
        format!("`{prometheus}`"),
        kind.to_owned(),
        cell(metric.unit, "-"),
        cell(&labels.join(", "), "-"),
        metric.meaning.to_owned(),
    ]
}

#[tokio::test]
async fn no_attribute_of_the_resource_breaks_a_scrape() {
    let attributes = ["2fa", "__name__", "__x", "_y", "a.b"].map(|name| (name.to_owned(), "v".to_owned()));
    let settings = crate::config::Telemetry { resource: attributes.to_vec(), ..crate::config::Telemetry::default() };
    let telemetry = crate::telemetry::Telemetry::start(&settings).unwrap();
    let text = telemetry.tracing().metrics().render().unwrap();
    let line = text.lines().find(|line| line.starts_with("target_info{")).unwrap();
    for name in ["key_2fa", "key__name__", "key__x", "_y", "a_b"] {
        assert!(line.contains(&format!("{name}=\"v\"")), "{name}: {line}");
    }
    assert!(!line.contains(",__") && !line.contains("{__") && !line.contains("{2"), "{line}");
}
